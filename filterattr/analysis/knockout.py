"""The knock-out oracle: set each unit back to base alone and measure the loss; one forward pass per unit and sample."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError, StateMismatchError, StorageError, name_some
from filterattr.files.fingerprint import fingerprint
from filterattr.intervention import swapped
from filterattr.jobs.checkpoint import JobFile
from filterattr.jobs.progress import Progress, counted
from filterattr.jobs.samples import series
from filterattr.loss.checks import Loss
from filterattr.model.random_state import seed_all
from filterattr.model.state_dict import StateLike, completed, state_for
from filterattr.model.swap import ParameterSwap
from filterattr.results.scores import FilterScores, FilterSelection
from filterattr.units.unit import ScoredParameter, units_of

_LOSS_TOLERANCE = 1e-4  # of a loss, between two machines
_SECONDS_BETWEEN_WRITES = 20.0
_ONE_BY_ONE = 16  # units for which the weights of target are put into the model once


@dataclass(frozen=True)
class KnockOutCost:
    """The cost of a knock-out.

    Attributes:
        n_units: Number of units that are still to be knocked out.
        n_forwards: Number of forward passes for them, one per unit and sample.
        seconds: Estimated duration, if the passes run one after another.
    """

    n_units: int
    n_forwards: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.n_units} units, {self.n_forwards} forward passes, about {self.seconds:.0f} s"


@dataclass(frozen=True, eq=False)
class KnockOut:
    """The effect of single units on the loss.

    Attributes:
        scores: Loss with the unit set back to base minus loss of target, mean over the samples; minus infinity for
            units that were not knocked out.
        units: The units that were knocked out.
        loss_target: Mean loss of target.
        n_forwards: Number of forward passes of this call.
        is_complete: Whether all requested units are done. It is false if the time was up first.
    """

    scores: FilterScores
    units: FilterSelection
    loss_target: float
    n_forwards: int
    is_complete: bool


class KnockOutJob:
    """A knock-out that reports its cost before it starts, resumes, and stops when its time is up.

    The units are knocked out in random order, in groups of one parameter. So an unfinished job has a representative
    sample of them.

    Args:
        attributor: Defines the units.
        base: Weights to set units back to.
        target: Weights of the intact network.
        loss: ``loss(model, sample)``; randomness inside is the same for every unit.
        data: Samples; a few are enough, and a batch counts as one sample.
        units: The units to knock out; all units by default.
        batch_units: Number of units of one parameter to knock out in one pass, with `torch.func.vmap`. The layers in
            front of the parameter are computed once, and small layers use the hardware better. The model and loss must
            be batchable (no ``.item()``, no branches on values). Activations need this many times the memory.
        checkpoint: File to save progress to; needs samples whose content can be compared.
        seed: Seed of the order.

    Raises:
        SettingError: There are no samples or units, or a number is out of range.
        StateMismatchError: Base or target lacks scored parameters; the message names all of them.
        StorageError: The checkpoint is damaged or belongs to another job.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> base, target = {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[1.0, 3.0]])}
        >>> loss = lambda model, x: (model(x) - 4).square().sum()
        >>> job = KnockOutJob(FilterAttributor(layer), base, target, loss, [torch.ones(2)])
        >>> job.cost().n_forwards
        2
        >>> job.run().scores["weight"]
        tensor([[1., 9.]], dtype=torch.float64)
    """

    def __init__(
        self,
        attributor: FilterAttributor,
        base: StateLike,
        target: StateLike,
        loss: Loss,
        data: Sequence[Any],
        *,
        units: FilterSelection | None = None,
        batch_units: int = 1,
        checkpoint: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        self._model = attributor.model
        self._parameters = attributor.scored_parameters()
        self._base = state_for(self._model, base, "base")
        self._target = state_for(self._model, target, "target")
        self._loss = loss
        self._samples = list(series(data))
        self._batch = batch_units
        self._check()
        everything = FilterSelection(
            {
                name: torch.ones(shape, dtype=torch.bool, device="cpu")
                for name, shape in units_of(self._parameters).items()
            },
            self._parameters,
        )
        self.units = everything if units is None else units
        self.units.check_same_units(everything)
        if not self.units.count:
            raise SettingError("units must hold at least one unit; it is empty.")
        self._losses = torch.full((self.units.n_units,), torch.nan, dtype=torch.float64, device="cpu")
        self._groups = self._grouped(seed)
        started = time.monotonic()
        self.loss_target = self._loss_of(self._target)
        self._seconds = time.monotonic() - started
        self._loss_base = math.nan  # looked at where a checkpoint is kept
        self._file = self._taken_up(checkpoint)

    def cost(self) -> KnockOutCost:
        """Estimate the remaining cost from the duration of the loss of target.

        Returns:
            The cost.
        """
        left = sum(len(self._left(places)) for _, places in self._groups)
        return KnockOutCost(left, left * len(self._samples), left * self._seconds)

    def run(self, *, seconds: float | None = None, progress: Progress = None) -> KnockOut:
        """Knock out the remaining units.

        Args:
            seconds: Stop after about this time; ``None`` runs to the end.
            progress: As in `FilterAttributor.attribute`, counted in groups of units.

        Returns:
            The effects that are known when it stops.

        Raises:
            SettingError: ``batch_units`` is above 1 and the model or loss cannot be batched.
            StorageError: The checkpoint cannot be written.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        written = time.monotonic()
        before = int(self._losses.isfinite().sum())
        left = [(name, rest) for name, places in self._groups if (rest := self._left(places))]
        try:
            with counted(progress, len(self._groups), "group", len(self._groups) - len(left)) as step:
                for group in self._computed(left):
                    places, values = group
                    self._losses[places] = values
                    step()
                    now = time.monotonic()
                    if self._file is not None and now - written > _SECONDS_BETWEEN_WRITES:
                        self._write()
                        written = now
                    if deadline is not None and now > deadline:
                        break
        finally:
            self._write()
        return self._result(before)

    def _check(self) -> None:
        misfits = [
            f"{name!r} ({role})"
            for role, state in (("base", self._base), ("target", self._target))
            for name, scored in self._parameters.items()
            if name not in state or tuple(state[name].shape) != scored.shape
        ]
        if misfits:
            raise StateMismatchError(
                f"base and target must both hold the scored parameters in the model's shapes; {name_some(misfits)} do "
                "not."
            )
        if not self._samples or not isinstance(self._batch, int) or self._batch < 1:
            raise SettingError(
                f"a knock-out needs samples and batch_units of at least 1; got {len(self._samples)} samples and "
                f"batch_units={self._batch!r}."
            )

    def _grouped(self, seed: int) -> list[tuple[str, list[int]]]:
        """Flat places of the wanted units, in groups of one parameter, shuffled."""
        generator = np.random.default_rng(seed)
        groups = []
        begin = 0
        for name, chosen in self.units.items():
            places = begin + torch.nonzero(chosen.reshape(-1)).reshape(-1).numpy()
            places = generator.permutation(places).tolist()
            size = self._batch if self._batch > 1 else _ONE_BY_ONE
            groups += [(name, places[i : i + size]) for i in range(0, len(places), size)]
            begin += chosen.numel()
        return [groups[i] for i in generator.permutation(len(groups))]

    def _left(self, places: list[int]) -> list[int]:
        return [place for place in places if not torch.isfinite(self._losses[place])]

    @torch.no_grad()
    def _loss_of(self, state: Mapping[str, Tensor]) -> float:
        with swapped(self._model, completed(state, self._model), seed=0) as model:
            return float(self._mean_loss(model))

    def _mean_loss(self, model: nn.Module) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for index, sample in enumerate(self._samples):
            seed_all(index)
            value = self._loss(model, sample)
            total = total.to(value.device) + value.to(torch.float64)
        return total / len(self._samples)

    def _computed(self, groups: Sequence[tuple[str, list[int]]]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield flat places and the losses without them; between two groups the model is its own again."""
        begins = dict(
            zip(self.units, np.cumsum([0, *(member.numel() for member in self.units.values())]), strict=False)
        )
        labels: dict[str, Tensor] = {}
        for name, places in groups:
            members = [member for member, scored in self._parameters.items() if scored.key(member) == name]
            labels |= {member: unit_labels(self._parameters[member]) for member in members if member not in labels}
            numbers = torch.tensor(places, device="cpu") - int(begins[name])
            stacked = {}
            for member in members:
                value = self._target[member]
                marked = (labels[member] == numbers.reshape(-1, *[1] * value.ndim)).to(value.device)
                stacked[member] = torch.where(marked, self._base[member].to(value.device, value.dtype), value)
            yield places, self._losses_with(stacked).cpu()

    @torch.no_grad()
    def _losses_with(self, values: Mapping[str, Tensor]) -> Tensor:
        """Losses of target with other values of some parameters, one per row."""
        with swapped(self._model, completed(self._target, self._model), seed=0) as model:
            parameters = ParameterSwap(model).parameters
            held = [parameters[name] for name in values]  # copies, which may be written to
            if self._batch > 1:
                return self._batched(model, held, tuple(values.values()))
            rows = zip(*values.values(), strict=True)
            return torch.stack([self._mean_loss_with(model, held, row) for row in rows])

    def _mean_loss_with(self, model: nn.Module, held: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        for parameter, value in zip(held, values, strict=True):
            parameter.copy_(value)
        return self._mean_loss(model)

    def _batched(self, model: nn.Module, held: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        places = [
            (module._parameters, local, index)
            for module in model.modules()
            for local, parameter in module._parameters.items()
            for index, moved in enumerate(held)
            if parameter is moved
        ]

        def with_one(values: Sequence[Tensor]) -> Tensor:
            for entries, local, index in places:
                entries[local] = values[index]  # type: ignore[assignment]
            return self._mean_loss(model)

        try:
            rows = tuple(
                value.to(parameter.device, parameter.dtype) for value, parameter in zip(values, held, strict=True)
            )
            losses: Tensor = torch.func.vmap(with_one, randomness="same")(rows)
        except RuntimeError as error:
            raise SettingError(
                f"batch_units above 1 needs a model and a loss that torch.func.vmap can batch ({error}). Use "
                "batch_units=1."
            ) from error
        return losses

    def _taken_up(self, checkpoint: str | PathLike[str] | None) -> JobFile | None:
        """Load what is done already."""
        if checkpoint is None:
            return None
        identity = {
            "base": fingerprint({name: self._base[name] for name in self._parameters}),
            "target": fingerprint(self._target),
            "set of units": fingerprint({name: chosen.clone() for name, chosen in self.units.items()}),
            "samples": fingerprint(self._samples, "data"),
        }
        file = JobFile(Path(checkpoint), identity, {"torch": str(torch.__version__)})
        self._loss_base = self._loss_of({**self._target, **{name: self._base[name] for name in self._parameters}})
        stored = file.read()
        if stored is None:
            return file
        losses, known = stored.tensors.get("losses"), stored.numbers.get("loss_target")
        if losses is None or losses.shape != self._losses.shape or not isinstance(known, float):
            raise StorageError(f"'{file.path}' is no complete knock-out.")
        self._check_loss(file, "target", known, self.loss_target)
        known = stored.numbers.get("loss_base")
        if isinstance(known, float):  # version 0.1 kept that of target alone
            self._check_loss(file, "base", known, self._loss_base)
        self._losses = losses
        return file

    @staticmethod
    def _check_loss(file: JobFile, end: str, known: float, value: float) -> None:
        """Functions cannot be compared; what they return can, at both ends: at one of them two losses may agree."""
        if abs(known - value) > _LOSS_TOLERANCE * max(abs(known), abs(value)):
            raise StorageError(
                f"'{file.path}' belongs to another job: the loss of {end} was {known:.6g} and is {value:.6g} now. Give "
                "every job a file of its own, or delete this one."
            )

    def _write(self) -> None:
        if self._file is not None:
            ends = {"loss_target": self.loss_target, "loss_base": self._loss_base}
            numbers = {"n_samples": int(self._losses.isfinite().sum()), **ends}
            self._file.write({"losses": self._losses}, numbers)

    def _result(self, before: int) -> KnockOut:
        known = self._losses.isfinite()
        scores = torch.where(known, self._losses - self.loss_target, -torch.inf)
        return KnockOut(
            scores=FilterScores(self.units._split(scores), self._parameters),
            units=FilterSelection(self.units._split(known), self._parameters),
            loss_target=self.loss_target,
            n_forwards=(int(known.sum()) - before) * len(self._samples),
            is_complete=int(known.sum()) == self.units.count,
        )


def unit_labels(scored: ScoredParameter) -> Tensor:
    """Return the unit of every weight of a parameter.

    Args:
        scored: How the parameter is scored.

    Returns:
        Flat indices of the units, ``int64``, in the shape of the parameter.

    Example:
        >>> from filterattr import ScoredParameter, Unit
        >>> unit_labels(ScoredParameter(Unit("o i -> o"), (2, 3)))
        tensor([[0, 0, 0],
                [1, 1, 1]])
    """
    with torch.inference_mode(False), torch.enable_grad():
        weights = torch.zeros(scored.shape, dtype=torch.float64, requires_grad=True, device="cpu")
        units = scored.unit.reduce(weights)
        numbers = torch.arange(units.numel(), dtype=torch.float64, device="cpu").reshape(units.shape)
        (labels,) = torch.autograd.grad(units, weights, numbers)
    return labels.round().long()
