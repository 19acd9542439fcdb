"""Training of restoration networks: L1 loss, Adam, cosine schedule, moving average of the weights, resumable.

The random numbers of iteration ``i`` come from a generator seeded with ``(seed, i)``: a run that was killed goes on
from its last checkpoint and ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from filterattr.engine.storage import read_tensors, write_tensors
from filterattr.errors import FilterAttrError
from sr_zoo.data import PatchSampler
from sr_zoo.degradations import evaluation_inputs, from_config
from sr_zoo.evaluation import check_photographs, measure

PRECISIONS = ("fp32", "bf16")


class TrainingError(FilterAttrError, ValueError):
    """A recipe makes no sense, a checkpoint belongs to another run, or a training diverged."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training, apart from the network, its first weights and the photographs.

    Args:
        degradation: What the network learns to undo; `Degradation.config` of it.
        iterations: Number of optimizer steps.
        learning_rate: First learning rate of every period, after the warm-up.
        final_rate: Last learning rate of every period.
        period: Iterations of one cosine period; 0 means one period over all iterations.
        warmup: Iterations of linear warm-up.
        batch_size: Patches in one step.
        patch_size: Width of a reference patch in pixels.
        margin: Pixels around a patch that take part in the degradation, so that no border is seen.
        ema_decay: Decay of the moving average of the weights; what ships is the average.
        precision: ``"fp32"`` or ``"bf16"`` (autocast; weights and optimizer stay in fp32).
        seed: Seed of everything random.

    Raises:
        TrainingError: A value makes no sense; all of them are named.
        DegradationError: The degradation is none.

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> recipe = Recipe(clean_inputs().config(), iterations=100)
        >>> recipe.rate(0) > recipe.rate(99)
        True
    """

    degradation: dict[str, Any]
    iterations: int = 20_000
    learning_rate: float = 2e-4
    final_rate: float = 1e-7
    period: int = 0
    warmup: int = 0
    batch_size: int = 16
    patch_size: int = 64
    margin: int = 16
    ema_decay: float = 0.999
    precision: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        """Gather every value that makes no sense."""
        limits = {
            "iterations": (1, math.inf),
            "learning_rate": (0, 1),
            "final_rate": (0, 1),
            "period": (0, math.inf),
            "warmup": (0, math.inf),
            "batch_size": (1, math.inf),
            "patch_size": (16, math.inf),
            "margin": (0, math.inf),
            "ema_decay": (0, 1),
            "seed": (0, 2**31 - 1),
        }
        wrong = [
            f"{name} must lie in [{low:g}, {high:g}]; got {getattr(self, name)}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.precision not in PRECISIONS:
            wrong.append(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if wrong:
            raise TrainingError("; ".join(wrong) + ".")
        from_config(self.degradation)

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration: linear warm-up, then cosine periods from `learning_rate` to `final_rate`.

        Args:
            iteration: Number of the iteration, from 0.

        Returns:
            ``final + (first - final) (1 + cos(pi p)) / 2`` at the place ``p`` in the period, from 0 to nearly 1.
        """
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / self.warmup
        period = self.period or max(self.iterations - self.warmup, 1)
        place = ((iteration - self.warmup) % period) / period
        swing = (self.learning_rate - self.final_rate) / 2
        return self.final_rate + swing * (1 + math.cos(math.pi * place))


def random_patches(
    sampler: PatchSampler, recipe: Recipe, scale: int, iteration: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw the batch of one iteration.

    Args:
        sampler: Draws patches of ``patch_size + 2 * margin`` pixels.
        recipe: The recipe.
        scale: Upscaling factor of the network.
        iteration: Number of the iteration; together with the seed it decides every random number.
        device: Where the batch goes.

    Returns:
        ``degraded`` of shape ``(N, 3, patch / scale, patch / scale)`` and ``reference`` of ``(N, 3, patch, patch)``.

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> sampler = PatchSampler([torch.zeros(3, 96, 96, dtype=torch.uint8)], size=96)
        >>> recipe = Recipe(clean_inputs().config(), batch_size=2)
        >>> [tuple(batch.shape) for batch in random_patches(sampler, recipe, 2, 0, torch.device("cpu"))]
        [(2, 3, 32, 32), (2, 3, 64, 64)]
    """
    generator = torch.Generator().manual_seed(_iteration_seed(recipe.seed, iteration))
    wide = sampler.draw(recipe.batch_size, generator).to(device)
    degraded = from_config(recipe.degradation)(wide, generator)
    inner, outer = recipe.margin // scale, recipe.margin
    return _without_border(degraded, inner), _without_border(wide, outer)


def _iteration_seed(seed: int, iteration: int) -> int:
    """Mix seed and iteration into 32 bits, which is all that PyTorch's generator for the CPU reads of a seed.

    Every seed owns the stretch of numbers that begins at its multiple of the golden section: the stretches of a
    thousand seeds are more than a million iterations apart. Seed 0 begins at 0.
    """
    return (seed * 0x9E3779B1 + iteration) % 2**32


def _without_border(images: Tensor, border: int) -> Tensor:
    """Cut ``border`` pixels off every side."""
    return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]


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
        validate_every: Iterations between validations and checkpoints; a last one comes at the end.
        device: Where to train.
        progress: Show a progress bar.

    Raises:
        TrainingError: The patch does not suit the scale, or ``validate_every`` is below 1.
        ImageError: No photograph is as large as a patch with its margin, or one to validate on is too small.

    Example:
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
        validate_every: int = 1000,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> None:
        self.scale = int(getattr(network, "upscale", 1))
        if recipe.patch_size % self.scale or recipe.margin % self.scale:
            raise TrainingError(
                f"patch_size and margin must be multiples of the scale {self.scale}; got {recipe.patch_size} and "
                f"{recipe.margin}."
            )
        if validate_every < 1:
            raise TrainingError(f"validate_every must be at least 1 iteration; got {validate_every}.")
        check_photographs(validation, self.scale)
        self.recipe = recipe
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.progress = progress
        self.validate_every = validate_every
        self.validation = list(validation)
        self.sampler = PatchSampler(photographs, recipe.patch_size + 2 * recipe.margin)
        # channels_last is what the convolution kernels of CPUs and GPUs want with bf16
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.first = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        self.average = AveragedModel(
            self.network,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.iteration = 0

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def run(self) -> dict[str, Tensor]:
        """Train to the end and return the averaged weights.

        Returns:
            Parameter name to ``float32`` tensor on the CPU.

        Raises:
            TrainingError: The folder holds the checkpoint of another run, or loss or weights stopped being finite.
            StorageError: The checkpoint is damaged, or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._resume()
        self._forget_later_reports()
        bar = tqdm(
            total=self.recipe.iterations,
            initial=self.iteration,
            desc=self.folder.name,
            unit="it",
            disable=not self.progress,
        )
        recent: list[Tensor] = []
        started = time.perf_counter()
        with bar:
            while self.iteration < self.recipe.iterations:
                recent.append(self._step())
                bar.update()
                if self.iteration % 100 == 0 or self._is_checkpoint_due():
                    self._report(recent, time.perf_counter() - started, bar)
                    recent, started = [], time.perf_counter()
        return self.averaged()

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
        return self.iteration % self.validate_every == 0 or self.iteration == self.recipe.iterations

    def _step(self) -> Tensor:
        """One optimizer step; returns the loss without waiting for the device."""
        recipe = self.recipe
        degraded, reference = random_patches(self.sampler, recipe, self.scale, self.iteration, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.iteration)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            restored = self.network(degraded.contiguous(memory_format=torch.channels_last))
        loss = functional.l1_loss(restored.float(), reference)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.iteration += 1
        return loss.detach()

    def _report(self, recent: list[Tensor], seconds: float, bar: tqdm[Any]) -> None:
        """Log the mean loss; validate and save when it is time."""
        loss, cosine = float(torch.stack(recent).mean()), self.cosine()
        if not math.isfinite(loss) or not math.isfinite(cosine):
            raise TrainingError(
                f"loss and weights must stay finite; got a mean loss of {loss} and a cosine of {cosine} to the first "
                f"weights at iteration {self.iteration}. Lower the learning rate; the last checkpoint is unharmed."
            )
        entry: dict[str, Any] = {
            "iteration": self.iteration,
            "loss": loss,
            "rate": self.recipe.rate(self.iteration - 1),
            "patches_per_second": len(recent) * self.recipe.batch_size / seconds,
            "cosine": cosine,
        }
        due = self._is_checkpoint_due()
        if due:
            entry["psnr"] = {
                name: row["psnr"]
                for name, row in measure(
                    self.average.module,
                    self.validation,
                    evaluation_inputs(self.scale),
                    seed=self.recipe.seed,
                ).items()
            }
        # the line before the checkpoint: a kill in between costs a line that is written again, never one for good
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        if due:
            self._save()
            draw_curves(self.folder)
        bar.set_postfix(loss=f"{loss:.4f}", cos=f"{cosine:.3f}")

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
        old = description["recipe"]
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

    def _forget_later_reports(self) -> None:
        """Keep the log lines up to this iteration: what came after was lost with the run that wrote it."""
        kept = [entry for entry in read_log(self.folder) if entry["iteration"] <= self.iteration]
        (self.folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line cut off by a kill is passed over.

    Args:
        folder: The folder of the run.

    Returns:
        One dictionary per report: ``iteration``, ``loss`` (L1), ``rate``, ``patches_per_second``, ``cosine`` to the
        first weights, and at validations ``psnr`` in dB per input.

    Example:
        >>> read_log("no such run")
        []
    """
    path = Path(folder) / "log.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def draw_curves(folder: str | Path) -> None:
    """Draw loss and validation PSNR of a run as ``curves.png`` in its folder.

    Args:
        folder: The folder of the run; it must exist.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "log.jsonl").write_text('{"iteration": 1, "loss": 0.1, "psnr": {"clean": 30.0}}')
        54
        >>> draw_curves(folder)
        >>> (folder / "curves.png").exists()
        True
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    entries = read_log(folder)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([e["iteration"] for e in entries], [e["loss"] for e in entries], lw=1)
    left.set(xlabel="iteration", ylabel="training loss (L1)")
    if entries and all(e["loss"] > 0 for e in entries):
        left.set_yscale("log")
    validated = [e for e in entries if "psnr" in e]
    for name in validated[-1]["psnr"] if validated else ():
        right.plot(
            [e["iteration"] for e in validated],
            [e["psnr"][name] for e in validated],
            label=name,
            marker=".",
        )
    right.set(xlabel="iteration", ylabel="validation PSNR (dB, RGB)")
    if validated:
        right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(folder) / "curves.png", dpi=120)
