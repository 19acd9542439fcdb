"""Where the samples stand in what a layer puts out: in front, as a rule, but time-major layers have them elsewhere.

It is found by running the model once more with one sample changed: the numbers that change belong to that sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from filterattr.activations.hooks import Call
from filterattr.activations.line import Line
from filterattr.errors import SettingError, gathered

Arguments: TypeAlias = tuple[Tensor, ...]
Estimator: TypeAlias = Callable[[Arguments], Mapping[Call, Tensor]]

CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding)
# what a layer puts out for a batch has at least so many axes; with fewer it got a single sample without the axis of it
_AXES: tuple[tuple[int, tuple[type[nn.Module], ...]], ...] = (
    (2, (nn.Linear, nn.Bilinear, nn.BatchNorm1d, nn.GroupNorm)),
    (3, (nn.Conv1d, nn.ConvTranspose1d, nn.InstanceNorm1d)),
    (4, (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d, nn.BatchNorm2d)),
    (5, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d, nn.BatchNorm3d)),
)


@dataclass(frozen=True)
class Place:
    """Where the samples stand.

    Attributes:
        axis: Their axis. The first one may be longer than there are samples: each has a block of rows.
        alternating: The rows of the first axis alternate between the samples instead.

    Example:
        >>> rows = torch.tensor([10, 20, 11, 21])  # two samples, time first
        >>> Place(alternating=True).samples_first(rows, 2)
        tensor([10, 11, 20, 21])
    """

    axis: int = 0
    alternating: bool = False

    def samples_first(self, tensor: Tensor, n_samples: int) -> Tensor:
        """Put the samples in front, each with its block of rows.

        Args:
            tensor: What a layer puts out, or something of its shape.
            n_samples: Number of samples.

        Returns:
            A view, or a copy where none is possible.
        """
        if self.alternating:
            return tensor.reshape(-1, n_samples, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
        return tensor.movedim(self.axis, 0)

    def moved(self, axis: int) -> int:
        """Where another axis is afterwards; ``-1`` for the last one stays what it is."""
        return axis + 1 if 0 <= axis < self.axis else axis


Places: TypeAlias = dict[Call, Place | None]


def channel_axis(module: nn.Module) -> int:
    """Which axis of what a layer puts out the channels are."""
    return -1 if isinstance(module, CHANNELS_LAST) else 1


def find_places(
    outputs: Mapping[Call, Tensor], layers: Mapping[str, nn.Module], line: Line, run: Estimator, *, is_random: bool
) -> Places:
    """Find where the samples stand in what every call put out.

    Args:
        outputs: What each call put out at the inputs.
        layers: Name to module.
        line: The inputs.
        run: Runs the model on other arguments, and returns what each call puts out.
        is_random: Whether the model draws random numbers.

    Returns:
        Call to place; ``None`` where there is none: layers that mix the samples, or that see no batch at all.

    Raises:
        SettingError: A layer got a single sample without the axis of the samples; all of them are named.
    """
    _refuse_single_samples(outputs, layers)
    places: Places = dict.fromkeys(outputs, Place())
    unsure = {
        call: output.detach() for call, output in outputs.items() if not _is_sure(output, layers[call.layer], line)
    }
    if unsure:
        places |= _Search(unsure, line, run, is_random).places()
    return places


def _refuse_single_samples(outputs: Mapping[Call, Tensor], layers: Mapping[str, nn.Module]) -> None:
    findings = {
        call.layer: f"'{call.layer}' ({type(layers[call.layer]).__name__}) puts out shape {tuple(output.shape)}"
        for call, output in outputs.items()
        for axes, kinds in _AXES
        if isinstance(layers[call.layer], kinds) and output.ndim < axes
    }
    if findings:
        raise SettingError(
            "the first axis of the inputs, and of what layers are given, must be the samples; without it "
            f"{gathered(findings.values(), 3)}. Use inputs.unsqueeze(0) and baselines.unsqueeze(0) for a single "
            "sample, or choose other layers."
        )


def _is_sure(output: Tensor, layer: nn.Module, line: Line) -> bool:
    """Whether the samples can only be in front, or whether it makes no difference."""
    first, *others = output.shape
    if line.n_samples > 1:
        return first == line.n_samples and all(length % first for length in others)
    return first == 1 or channel_axis(layer) == -1 or any(isinstance(layer, kinds) for _, kinds in _AXES)


class _Search:
    """Some calls whose shapes leave it open."""

    def __init__(self, outputs: Mapping[Call, Tensor], line: Line, run: Estimator, is_random: bool) -> None:
        self._outputs = outputs
        self._line = line
        self._run = run
        self._is_random = is_random
        self._n = line.n_samples
        self._open = {call: list(_candidates(output.shape, self._n)) for call, output in outputs.items()}
        self._moved: set[Call] = set()

    def places(self) -> Places:
        """Change samples, then exchange them, then leave one out: the first that tells decides."""
        if self._n == 1:
            return self._by_shape(set(self._outputs))
        for number in (self._n - 1, 0):
            if any(call not in self._moved or len(places) > 1 for call, places in self._open.items()):
                self._change(number)
        mixing = {call for call, places in self._open.items() if not places}
        if mixing:  # batch statistics connect the samples, but do not know their order
            self._exchange(mixing)
        chosen: Places = {call: places[0] if places else None for call, places in self._open.items()}
        unknown = {call for call, places in self._open.items() if call not in self._moved or len(places) > 1}
        if self._is_random:  # dropout and batch statistics together leave nothing but the shapes
            unknown |= {call for call, place in chosen.items() if place is None}
        return chosen | self._by_shape(unknown) if unknown else chosen

    def _change(self, number: int) -> None:
        """Keep the candidates that hold one sample where numbers change when it does."""
        arguments = _with_another_sample(self._line, number)
        if arguments is None:
            return
        for call, after in self._run(arguments).items():
            if call not in self._open:
                continue
            changes = _differ(self._outputs[call], after)
            if bool(changes.any()):
                self._moved.add(call)
                self._open[call] = [place for place in self._open[call] if self._holds(place, changes, number)]

    def _holds(self, place: Place, changes: Tensor, number: int) -> bool:
        by_sample = self._by_sample(place, changes)
        return not any(bool(by_sample[other].any()) for other in range(self._n) if other != number)

    def _exchange(self, calls: set[Call]) -> None:
        """Keep the candidates along which numbers go round when the samples do."""
        after = self._run(_each(self._line, lambda argument: argument.roll(1, 0)))
        for call in calls:
            self._open[call] = [
                place
                for place in _candidates(self._outputs[call].shape, self._n)
                if call in after and self._goes_round(place, self._outputs[call], after[call])
            ]

    def _goes_round(self, place: Place, before: Tensor, after: Tensor) -> bool:
        if before.shape != after.shape:
            return False
        expected = self._by_sample(place, before).roll(1, 0)
        return not bool(_differ(expected, self._by_sample(place, after)).any())

    def _by_shape(self, calls: set[Call]) -> Places:
        """Find the axis whose length follows the number of samples."""
        count = self._n - 1 or 2
        try:
            shapes = self._run(_each(self._line, lambda argument: torch.cat([argument, argument])[:count]))
        except Exception:  # noqa: BLE001 - the model, or what it is called with, may take just so many samples
            return {
                call: Place() if self._n > 1 and len(self._outputs[call]) % self._n == 0 else None for call in calls
            }
        return {
            call: self._place_by_shape(self._outputs[call].shape, shapes[call].shape, count) if call in shapes else None
            for call in calls
        }

    def _place_by_shape(self, before: Sequence[int], after: Sequence[int], count: int) -> Place | None:
        follow = [axis for axis, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
        if len(before) != len(after) or len(follow) != 1:
            return None
        axis = follow[0]
        if after[axis] * self._n != before[axis] * count or (axis and before[axis] != self._n):
            return None
        return Place(axis)

    def _by_sample(self, place: Place, tensor: Tensor) -> Tensor:
        rows = place.samples_first(tensor, self._n)
        return rows.reshape(self._n, -1, *rows.shape[1:])


def _candidates(shape: Sequence[int], n_samples: int) -> Iterator[Place]:
    if shape[0] % n_samples == 0:
        yield Place()
        if shape[0] > n_samples:
            yield Place(alternating=True)
    for axis, length in enumerate(shape[1:], 1):
        if length == n_samples:
            yield Place(axis)


def _with_another_sample(line: Line, number: int) -> Arguments | None:
    """The inputs, but with another sample in the place of one; ``None`` if there is no other."""
    arguments = [argument.detach().clone() for argument in line.inputs]
    is_other = False
    for place, moves in enumerate(line.moves):
        if len(arguments[place].shape) == 0 or len(arguments[place]) != line.n_samples:
            continue
        if not moves and (place or any(line.moves)):
            continue  # a condition that stays the same may have as many rows by chance
        rows = (*line.inputs[place].detach(), line.baselines[place][number].detach())
        other = next((row for row in rows if not torch.equal(row, rows[number])), None)
        if other is not None:
            arguments[place][number] = other
            is_other = True
    return tuple(arguments) if is_other else None


def _each(line: Line, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Change all arguments that have the samples first, and copy the others."""
    return tuple(
        change(argument.detach()).clone() if argument.shape[:1] == (line.n_samples,) else argument.detach().clone()
        for argument in line.inputs
    )


def agree(first: Tensor, second: Tensor, dtype: torch.dtype, *, power: float = 0.75) -> bool:
    """Whether two tensors are the same numbers, except for rounding in the type that they were computed in.

    Args:
        first: Some numbers.
        second: The others.
        dtype: The type.
        power: Of the precision of the type, which gives the tolerance: 1 is a single rounding, less is more of them.

    Returns:
        Whether they are.
    """
    if first.shape != second.shape:
        return False
    return not bool(_differ(first.detach().to(dtype), second.detach().to(dtype), power).any())


def _differ(before: Tensor, after: Tensor, power: float = 0.75) -> Tensor:
    """Where two tensors of one shape differ beyond rounding."""
    if before.shape != after.shape:
        return torch.ones_like(before, dtype=torch.bool)
    wide = before.double(), after.double()
    finite = wide[0][torch.isfinite(wide[0])].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    tolerance = scale * torch.finfo(before.dtype).eps ** power
    return ~torch.isclose(*wide, rtol=0.0, atol=tolerance, equal_nan=True)
