r"""Units are einops reductions of a parameter, such as ``o i ... -> o i`` for kernels.

A unit maps a tensor of the shape of the parameter to one number per unit by summation,
:math:`s_u = \sum_{k \in u} a_k`, and a selection of units back to their weights. Results and files hold units and no
model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NoReturn, Self, TypeAlias, TypeVar, get_args

import einops
import numpy as np
import torch
from torch import Tensor

from filterattr.errors import UnitError

Reduction: TypeAlias = Literal["sum_of_abs", "abs_of_sum", "sum"]
K = TypeVar("K")
V = TypeVar("V")
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
SIGNED: tuple[Reduction, ...] = ("abs_of_sum", "sum")  # what needs no attribution of every weight
# what is averaged over samples; abs_of_sum and sum have the same square
STATISTICS: dict[str, tuple[Reduction, ...]] = {"means": REDUCTIONS, "mean_squares": ("sum_of_abs", "sum")}


class ReadOnly(Mapping[K, V]):
    """A mapping that cannot be changed through what it returns: of tensors it returns copies.

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


class FixedDict(dict[K, V]):
    """A dictionary that cannot be changed; it is compared, written and sent to other processes as any other.

    Example:
        >>> FixedDict({"blur": 1.0})["blur"] = 2.0
        Traceback (most recent call last):
        ...
        TypeError: what a result returns cannot be changed; change a copy of it: dict(...).
    """

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("what a result returns cannot be changed; change a copy of it: dict(...).")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Self], tuple[dict[K, V]]]:
        return type(self), (dict(self),)


def read_only(value: Any) -> Any:
    """Make what an object keeps safe to return.

    Args:
        value: Mappings and lists, however deep; arrays, which are marked, not copied; anything else.

    Returns:
        The same with `FixedDict` for mappings, tuples for lists, and arrays that refuse to be written to.

    Example:
        >>> read_only({"losses": {"blur": [1.0, 2.0]}})
        {'losses': {'blur': (1.0, 2.0)}}
    """
    if isinstance(value, FixedDict | ReadOnly):
        return value
    if isinstance(value, Mapping):
        return FixedDict((key, read_only(entry)) for key, entry in value.items())
    if isinstance(value, list):
        return tuple(map(read_only, value))
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    return value


@dataclass(frozen=True)
class Immutable:
    """Base of frozen dataclasses whose mappings and lists cannot be changed, either.

    Example:
        >>> @dataclass(frozen=True)
        ... class Losses(Immutable):
        ...     of: Mapping[str, float]
        >>> Losses({"blur": 1.0}).of["blur"] = 2.0
        Traceback (most recent call last):
        ...
        TypeError: what a result returns cannot be changed; change a copy of it: dict(...).
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, read_only(getattr(self, each.name)))


@dataclass(frozen=True)
class Unit(Immutable):
    """How the weights of one parameter form units.

    Attributes:
        pattern: An einops pattern from the parameter's axes to the axes of its scores.
        sizes: Lengths of axes that the shape does not determine.

    Example:
        >>> heads = Unit("(heads d) i -> heads", {"heads": 2})
        >>> heads.reduce(torch.ones(4, 3))
        tensor([6., 6.])
        >>> heads.expand(torch.tensor([True, False]), (4, 3)).sum(1)
        tensor([3, 3, 0, 0])
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor of the parameter's shape over the weights of every unit.

        Args:
            values: Floating tensor of the parameter's shape.

        Returns:
            One number per unit.

        Raises:
            UnitError: The pattern does not fit the shape.
        """
        return self._apply(values, "sum")

    def units_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """Shape of the scores of a parameter.

        Args:
            shape: Shape of the parameter.

        Returns:
            The shape of the result of `reduce`.

        Raises:
            UnitError: The pattern does not fit the shape.

        Example:
            >>> Unit("o i ... -> o i").units_shape((4, 3, 5, 5))
            torch.Size([4, 3])
        """
        return self._apply(torch.empty(shape, device="meta"), _without_axes).shape

    def _apply(self, values: Tensor, reduction: str | Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
        try:
            return einops.reduce(values, self.pattern, reduction, **self.sizes)
        except einops.EinopsError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            sizes = f" with {dict(self.sizes)}" if self.sizes else ""
            raise UnitError(
                f"the pattern '{self.pattern}'{sizes} does not fit a parameter of shape {tuple(values.shape)}: {reason}"
            ) from error

    def expand(self, chosen: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Mark the weights of the selected units. It is the transpose of `reduce`.

        Args:
            chosen: Boolean, one entry per unit.
            shape: Shape of the parameter.

        Returns:
            Boolean tensor of that shape, on the device of ``chosen``.
        """
        return self.spread(chosen.to(torch.float32), shape) != 0

    def spread(self, values: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Give every weight the number of its unit.

        Args:
            values: Floating, one entry per unit.
            shape: Shape of the parameter.

        Returns:
            Tensor of that shape, of the type and on the device of ``values``.

        Example:
            >>> Unit("o i -> o").spread(torch.tensor([1.0, 2.0]), (2, 3))
            tensor([[1., 1., 1.],
                    [2., 2., 2.]])
        """
        with torch.inference_mode(False), torch.enable_grad():
            weights = torch.zeros(shape, dtype=values.dtype, device=values.device, requires_grad=True)
            (spread,) = torch.autograd.grad(self.reduce(weights), weights, values)
        return spread


def _without_axes(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """An empty tensor of the shape that a sum has; a sum of tensors without content imports packages for a second."""
    return values.new_empty([size for axis, size in enumerate(values.shape) if axis not in axes])


@dataclass(frozen=True)
class ScoredParameter:
    """How one parameter is scored.

    Attributes:
        unit: The units of the parameter.
        shape: Shape of the parameter, not of its scores.
        group: Name of the group of parameters that share their units, if any.
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
        """The key of its scores: the name of its group, or its own name.

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
    return add_members({name: scored.unit.reduce(values[name]) for name, scored in parameters.items()}, parameters)


def add_members(scores: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> dict[str, Tensor]:
    """Add up the scores of the members of every group.

    Args:
        scores: Parameter name to one number per unit; what is not among the parameters is left out.
        parameters: Parameter name to how it is scored.

    Returns:
        Name of the parameter or group to one number per unit.
    """
    sums: dict[str, Tensor] = {}
    for name, scored in parameters.items():
        if name in scores:
            key = scored.key(name)
            sums[key] = sums[key] + scores[name] if key in sums else scores[name]
    return sums
