"""What is scored: parameters and the units that they are made of, also as a file describes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from filterattr.units.unit import Unit

Reduction: TypeAlias = Literal["sum_of_abs", "abs_of_sum", "sum"]
K = TypeVar("K")
V = TypeVar("V")
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
# what is averaged over samples; abs_of_sum and sum have the same square
STATISTICS: dict[str, tuple[Reduction, ...]] = {"means": REDUCTIONS, "mean_squares": ("sum_of_abs", "sum")}


class ReadOnly(Mapping[K, V]):
    """A mapping that nobody can change through what it hands out: of tensors it gives copies.

    Args:
        values: Its content; the tensors are not copied here.

    Attributes:
        kept: The content itself, for those who only read.

    Example:
        >>> held = ReadOnly({"w": torch.ones(2)})
        >>> held["w"].zero_()
        tensor([0., 0.])
        >>> held["w"]
        tensor([1., 1.])
    """

    def __init__(self, values: Mapping[K, V]) -> None:
        self.kept: dict[K, V] = dict(values.kept if isinstance(values, ReadOnly) else values)

    def __getitem__(self, key: K) -> V:
        value = self.kept[key]
        return value.detach().clone() if isinstance(value, Tensor) else value  # type: ignore[return-value]

    def __iter__(self) -> Iterator[K]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __repr__(self) -> str:
        return repr(self.kept)


def kept_by(values: Mapping[K, V]) -> Mapping[K, V]:
    """The content of a mapping without copies of its tensors, for those who only read.

    Args:
        values: Any mapping.

    Returns:
        What a `ReadOnly` holds, and any other mapping itself.
    """
    return values.kept if isinstance(values, ReadOnly) else values


@dataclass(frozen=True)
class ScoredParameter:
    """How one parameter is scored.

    Attributes:
        unit: What its units are.
        shape: Shape of the parameter, not of its scores.
        group: Name of the group whose units it shares with other parameters, if any.
    """

    unit: Unit
    shape: tuple[int, ...]
    group: str | None = None

    @cached_property
    def units_shape(self) -> torch.Size:
        """Shape of its scores."""
        return self.unit.units_shape(self.shape)

    @property
    def is_weight_by_weight(self) -> bool:
        """Whether every weight is a unit."""
        return self.units_shape.numel() == math.prod(self.shape)

    def key(self, name: str) -> str:
        """Name that its scores stand under: that of its group, or its own.

        Args:
            name: Name of the parameter.

        Returns:
            The key of scores and selections.
        """
        return self.group or name


def units_of(parameters: Mapping[str, ScoredParameter]) -> dict[str, torch.Size]:
    """List what has scores: parameters, and groups of parameters that share their units.

    Args:
        parameters: Parameter name to how it is scored.

    Returns:
        Name of the parameter or group to the shape of its scores; a group stands where its first member does.
    """
    units: dict[str, torch.Size] = {}
    for name, scored in parameters.items():
        units.setdefault(scored.key(name), scored.units_shape)
    return units


def kept_as(statistic: str, reduction: Reduction, scored: ScoredParameter) -> Reduction:
    """The reduction whose numbers are kept for a statistic; where every weight is a unit, some are equal to others.

    Args:
        statistic: One of `STATISTICS`.
        reduction: One of its reductions.
        scored: How the parameter is scored.

    Returns:
        The reduction itself, or ``"sum_of_abs"`` if its numbers are the same to the last bit.

    Example:
        >>> weights = ScoredParameter(Unit("... -> ..."), (3, 2))
        >>> kept_as("means", "abs_of_sum", weights), kept_as("means", "sum", weights)
        ('sum_of_abs', 'sum')
    """
    is_twin = reduction == ("abs_of_sum" if statistic == "means" else "sum")
    return "sum_of_abs" if is_twin and scored.group is None and scored.is_weight_by_weight else reduction


def sum_over_units(values: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> dict[str, Tensor]:
    """Sum tensors of the parameters' shapes over the weights of every unit; members of a group add up.

    Args:
        values: Parameter name to a floating tensor of its shape.
        parameters: Parameter name to how it is scored.

    Returns:
        Name of the parameter or group to one number per unit.

    Example:
        >>> half = lambda group: ScoredParameter(Unit("o i -> o"), (2, 3), group)
        >>> ones = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
        >>> sum_over_units(ones, {"a": half("both"), "b": half("both")})
        {'both': tensor([6., 6.])}
    """
    sums: dict[str, Tensor] = {}
    for name, scored in parameters.items():
        own = scored.unit.reduce(values[name])
        key = scored.key(name)
        sums[key] = sums[key] + own if key in sums else own
    return sums
