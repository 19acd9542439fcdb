"""Training of restoration networks: L1 loss, Adam, cosine schedule, moving average of the weights, resumable.

The random numbers of iteration ``i`` come from a generator seeded with ``(seed, i)``: a run that was killed goes on
from its last checkpoint and ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from filterattr.files import read_tensors, write_tensors
from sr_zoo.data import PatchSampler
from sr_zoo.degradations import Degradation, evaluation_inputs
from sr_zoo.evaluation import check_colour, check_photographs, measure
from sr_zoo.models import DASR
from sr_zoo.training.interrupts import TrainingInterrupted, noted_interrupt
from sr_zoo.training.log import append_to_log, cut_log, draw_curves, open_board, write_board
from sr_zoo.training.objective import Objective
from sr_zoo.training.processes import Processes
from sr_zoo.training.recipe import PRECISIONS, Recipe, TrainingError, random_patches

_CHECKPOINT = "checkpoint.safetensors"
_INTERRUPTED = "interrupted"  # stands among the losses that the processes average

# width and height of what a rehearsal validates on, in pixels
_REHEARSED = 256

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def stored_precision(folder: str | Path) -> str | None:
    """Say in which precision the run of a folder was begun, which it goes on in.

    Args:
        folder: The folder of the run.

    Returns:
        ``"fp32"`` or ``"bf16"``, or ``None`` if there is no run to go on with.

    Raises:
        StorageError: The checkpoint is damaged.

    Example:
        >>> stored_precision("no such run") is None
        True
    """
    path = Path(folder) / _CHECKPOINT
    if not path.exists():
        return None
    recipe = read_tensors(path, "training")[1].get("recipe")
    precision = recipe.get("precision") if isinstance(recipe, dict) else None
    return precision if precision in PRECISIONS else None


class Trainer:
    """One training run in a folder: it goes on where it stopped, and writes what is needed to look at it.

    The folder receives ``checkpoint.safetensors`` (weights, average, optimizer), ``log.jsonl`` (one line per report)
    and ``curves.png``. Starting a run again with the same arguments continues it.

    Args:
        network: The network with its first weights; it is trained in place.
        photographs: ``uint8`` tensors of shape ``(3, H, W)`` to train on.
        validation: The same, to validate on.
        recipe: The recipe.
        folder: Where the run lives.
        inputs: Name to degradation of what to validate on; `evaluation_inputs` of the scale if not given.
        validate_every: Iterations between validations and checkpoints; a last one comes at the end.
        device: Where to train.
        progress: Show a progress bar, with throughput and the time left.
        tensorboard: Write a log that TensorBoard reads, too, into the subfolder ``tensorboard``.
        processes: Those that share the training; all make the same call, the first one writes.

    Raises:
        TrainingError: The patch does not suit the scale, or ``validate_every`` is below 1, or a `DASR`
            network is to be trained in several processes or with single patches.
        ImageError: No photograph is as large as a patch with its margin, one to validate on is too small, or the
            network does not map colours to colours.

    Example:
        >>> from sr_zoo.training import Recipe, read_log
        >>> import tempfile
        >>> from sr_zoo.degradations import clean_inputs
        >>> from sr_zoo.models import SRResNet
        >>> photographs = [torch.zeros(3, 64, 64, dtype=torch.uint8)]
        >>> recipe = Recipe(clean_inputs().config(), iterations=2, batch_size=1, patch_size=16)
        >>> folder, network = tempfile.mkdtemp(), SRResNet(num_feat=4, num_block=1)
        >>> weights = Trainer(network, photographs, photographs, recipe, folder, progress=False).run()
        >>> [entry["iteration"] for entry in read_log(folder)]
        [2]
    """

    def __init__(
        self,
        network: nn.Module,
        photographs: Sequence[Tensor],
        validation: Sequence[Tensor],
        recipe: Recipe,
        folder: str | Path,
        *,
        inputs: Mapping[str, Degradation] | None = None,
        validate_every: int = 1000,
        device: torch.device | str = "cpu",
        progress: bool = True,
        tensorboard: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.scale = int(getattr(network, "upscale", 1))
        if recipe.patch_size % self.scale or recipe.margin % self.scale:
            raise TrainingError(
                f"patch_size and margin must be multiples of the scale {self.scale}; got {recipe.patch_size} and "
                f"{recipe.margin}."
            )
        if validate_every < 1:
            raise TrainingError(f"validate_every must be at least 1 iteration; got {validate_every}.")
        self.processes = Processes() if processes is None else processes
        self.processes.check(recipe.batch_size)
        if isinstance(network, DASR) and (self.processes.count > 1 or recipe.batch_size < 2):
            raise TrainingError(
                "dasr compares the patches of a batch with one another: train it in one process, with a batch of at "
                f"least 2; got {self.processes.count} processes and a batch of {recipe.batch_size}."
            )
        check_colour(network)
        check_photographs(validation, self.scale)
        self.recipe = recipe
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.progress = progress and self.processes.is_first
        self.tensorboard = tensorboard and self.processes.is_first
        self.validate_every = validate_every
        self.validation = list(validation)
        self.inputs = evaluation_inputs(self.scale) if inputs is None else dict(inputs)
        self.sampler = PatchSampler(photographs, recipe.patch_size + 2 * recipe.margin)
        # channels_last is what the convolution kernels of CPUs and GPUs want with bf16
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.first = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        self.average = AveragedModel(
            self.network,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.objective = Objective(self.network, recipe.precision, recipe.prediction_weight)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.iteration = 0
        self.end = recipe.iterations
        self.board: SummaryWriter | None = None
        self._is_interrupted: Callable[[], bool] = bool
        self._interrupted = torch.zeros(())  # share of the processes that were, one step ago

    @property
    def _checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT

    def run(self, stop_after: int | None = None) -> dict[str, Tensor]:
        """Train to the end and return the averaged weights.

        Args:
            stop_after: Stop, with a checkpoint, after so many iterations in all; a later call goes on.

        Returns:
            Parameter name to ``float32`` tensor on the CPU.

        Raises:
            TrainingError: The folder holds the checkpoint of another run, or loss or weights stopped being finite.
            StorageError: The checkpoint is damaged, or cannot be written.
            TrainingInterrupted: The user pressed Ctrl-C; the iteration was finished and saved, and a later call goes
                on. It is a `KeyboardInterrupt`.
        """
        self.end = min(self.recipe.iterations, stop_after or self.recipe.iterations)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._resume()
        if self.processes.is_first:
            cut_log(self.folder, self.iteration)
        self.board = open_board(self.folder / "tensorboard", self.iteration) if self.tensorboard else None
        bar = tqdm(
            total=self.end,
            initial=self.iteration,
            desc=self.folder.name,
            unit="it",
            disable=None if self.progress else True,
        )
        try:
            with bar, self._noted_interrupt() as self._is_interrupted:
                self._train(bar)
        finally:
            if self.board is not None:
                self.board.close()
        return self.averaged()

    def _noted_interrupt(self) -> AbstractContextManager[Callable[[], bool]]:
        if self.processes.count == 1:
            return noted_interrupt()
        return noted_interrupt(is_quiet=not self.processes.is_first, repeats_within=1.0)

    def _train(self, bar: tqdm[Any]) -> None:
        """Take the steps that are left, and report on the way."""
        recent: list[dict[str, Tensor]] = []
        started = time.perf_counter()
        while self.iteration < self.end:
            recent.append(self._step())
            bar.update()
            stops = self._stops(recent[-1])
            if stops or self.iteration % 100 == 0 or self._is_checkpoint_due():
                self._report(recent, time.perf_counter() - started, bar)
                recent, started = [], time.perf_counter()
            if stops and self.iteration < self.end:
                if self.processes.is_first and not self._is_checkpoint_due():
                    self._save()
                self.processes.wait()  # whoever ends first has the others ended by torchrun
                raise TrainingInterrupted(
                    f"'{self._checkpoint}' was saved after {self.iteration} of {self.recipe.iterations} iterations; "
                    "the same call goes on from there"
                )

    def _stops(self, losses: dict[str, Tensor]) -> bool:
        """Whether the training stops after this step, of which several processes hear in one and the same step.

        Each says with its losses whether it was interrupted. All read it one step later, when it is there.
        """
        if self.processes.count == 1:
            return self._is_interrupted()
        before, self._interrupted = self._interrupted, losses.pop(_INTERRUPTED)
        return bool(before)

    def rehearse(self, steps: int = 5, seconds: float = 10.0) -> tuple[float, float]:
        """Find out how long the training will take; the network is worth nothing afterwards, and nothing is written.

        Args:
            steps: Iterations to measure, after two that are not.
            seconds: Time after which no further iteration begins; on a slow machine a single one is measured.

        Returns:
            Seconds of an iteration, and of a validation, which is measured on a piece of one photograph.
        """
        durations: list[float] = []
        started = time.perf_counter()
        while len(durations) < steps + 2 and (not durations or time.perf_counter() - started < seconds):
            before = time.perf_counter()
            float(self._step()["loss"])  # waits for the device
            durations.append(time.perf_counter() - before)
        measured = durations[2:] or durations[-1:]
        piece = self.validation[0][:, :_REHEARSED, :_REHEARSED]
        pixels = sum(image[0].numel() for image in self.validation)
        started = time.perf_counter()
        measure(self.average.module, [piece], self.inputs)
        validation = (time.perf_counter() - started) * pixels / piece[0].numel()
        return sum(measured) / len(measured), validation

    def averaged(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU."""
        state = self.average.module.state_dict()
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    @torch.no_grad()
    def cosine(self) -> float:
        """Return the cosine between the averaged weights and the first ones, over all parameters."""
        pairs = [(self.first[name], value) for name, value in self.average.module.named_parameters()]
        dot = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
        norms = [math.sqrt(sum(float(p[i].double().square().sum()) for p in pairs)) for i in (0, 1)]
        return dot / (norms[0] * norms[1])

    def _is_checkpoint_due(self) -> bool:
        """Whether this iteration ends with a validation and a checkpoint."""
        return self.iteration % self.validate_every == 0 or self.iteration == self.end

    def _step(self) -> dict[str, Tensor]:
        """One optimizer step; returns the losses without waiting for the device."""
        recipe = self.recipe
        batch = self.processes.share(random_patches(self.sampler, recipe, self.scale, self.iteration, self.device))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.iteration)
        total, losses = self.objective(batch.degraded, batch.reference, batch.strengths)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.processes.count > 1:
            losses[_INTERRUPTED] = total.new_full((), float(self._is_interrupted()))
        losses = self.processes.average(list(self.network.parameters()), losses)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.iteration += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _report(self, recent: list[dict[str, Tensor]], seconds: float, bar: tqdm[Any]) -> None:
        """Log the mean losses; validate and save when it is time."""
        losses = {name: float(torch.stack([step[name] for step in recent]).mean()) for name in recent[0]}
        loss, cosine = losses["loss"], self.cosine()
        if not math.isfinite(loss) or not math.isfinite(cosine):
            raise TrainingError(
                f"loss and weights must stay finite; got a mean loss of {loss} and a cosine of {cosine} to the first "
                f"weights at iteration {self.iteration}. Lower the learning rate; the last checkpoint is unharmed."
            )
        entry: dict[str, Any] = {
            "iteration": self.iteration,
            **losses,
            "rate": self.recipe.rate(self.iteration - 1),
            "patches_per_second": len(recent) * self.recipe.batch_size / seconds,
            "cosine": cosine,
        }
        bar.set_postfix(loss=f"{loss:.4f}", cos=f"{cosine:.3f}")
        if self.processes.is_first:
            self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        """Write a line of the log; with it, when it is time, validation, checkpoint and pictures."""
        due = self._is_checkpoint_due()
        if due:
            entry["psnr"] = {
                name: row["psnr"]
                for name, row in measure(
                    self.average.module,
                    self.validation,
                    self.inputs,
                    seed=self.recipe.seed,
                ).items()
            }
        # the line before the checkpoint: a kill in between costs a line that is written again, never one for good
        append_to_log(self.folder, entry)
        if self.board is not None:
            write_board(self.board, entry)
        if due:
            self._save()
            draw_curves(self.folder)

    def _save(self) -> None:
        """Write everything that the next iteration depends on."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            tensors[f"network.{name}"] = parameter
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        for name, value in self.average.module.named_parameters():
            tensors[f"average.{name}"] = value
        for name, value in self.first.items():
            tensors[f"first.{name}"] = value
        description = {"iteration": self.iteration, "recipe": asdict(self.recipe)}
        write_tensors(self._checkpoint, "training", tensors, description)

    @torch.no_grad()
    def _resume(self) -> None:
        """Continue from the folder's checkpoint."""
        tensors, description = read_tensors(self._checkpoint, "training")
        differences = self._differences(tensors, description)
        if differences:
            raise TrainingError(
                f"'{self._checkpoint}' belongs to another run: {'; '.join(differences)}. Give this run a folder of "
                "its own, or repeat the arguments of the old one."
            )
        self.iteration = int(description["iteration"])
        for name, parameter in self.network.named_parameters():
            parameter.copy_(tensors[f"network.{name}"])
            self.first[name].copy_(tensors[f"first.{name}"])
            state = self.optimizer.state[parameter]
            state["step"] = tensors[f"optimizer.step.{name}"]
            for key in ("exp_avg", "exp_avg_sq"):
                saved = tensors[f"optimizer.{key}.{name}"].to(parameter.device)
                state[key] = torch.empty_like(parameter).copy_(saved)
        for name, value in self.average.module.named_parameters():
            value.copy_(tensors[f"average.{name}"])
        self.average.n_averaged.fill_(self.iteration)

    def _differences(self, tensors: dict[str, Tensor], description: dict[str, Any]) -> list[str]:
        """What tells a checkpoint from one of this run: settings of the recipe, the network, where it started."""
        # a setting that was not there yet had the value that it has now if nobody asks for another
        old = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}
        old |= description["recipe"]
        new = json.loads(json.dumps(asdict(self.recipe)))  # as a file would hold it
        differences = [
            f"{name} was {old.get(name)} and is {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        held = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("network.")}
        if held != {f"network.{name}": tuple(value.shape) for name, value in self.first.items()}:
            return [*differences, "the network has other parameters"]
        for name, value in self.first.items():
            start = tensors[f"first.{name}"].to(value)
            # another processor may round the same random weights differently; another start is far off
            if not torch.isclose(start, value, rtol=1e-3, atol=1e-6).all():
                return [*differences, f"it started from other weights ('{name}' first)"]
        return differences
