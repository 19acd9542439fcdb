"""Units of a parameter of which this process holds a part: what the part adds to each of them."""

from __future__ import annotations

import re
from functools import cached_property

from torch import Tensor

from filterattr.model.sharded import Shard
from filterattr.units.unit import ScoredParameter

_AXES = re.compile(r"\([^)]*\)|\S+")


class UnitsOfShard:
    """Sums over the weights of every unit that lie in a shard; the shards of all processes add up to the whole.

    Units that lie inside of the shard are reduced by themselves. Where an axis that is split consists of several, such
    as ``"(heads d)"``, the part is laid into zeros of the shape of the whole parameter.

    Args:
        scored: How the parameter is scored.
        shard: Which part of it there is.

    Example:
        >>> import torch
        >>> from filterattr import Unit
        >>> filters = UnitsOfShard(ScoredParameter(Unit("o i -> o"), (3, 2)), Shard((3, 2), 0, 2, 1))
        >>> filters.reduce(torch.ones(1, 2))
        tensor([0., 0., 2.])
    """

    def __init__(self, scored: ScoredParameter, shard: Shard) -> None:
        self._scored, self._shard = scored, shard

    def reduce(self, values: Tensor) -> Tensor:
        """Sum over the weights of every unit.

        Args:
            values: Of the shape of the shard.

        Returns:
            One number for every unit of the whole parameter, 0 for those that lie elsewhere.
        """
        if self._is_summed:
            return self._scored.unit.reduce(values) if values.numel() else values.new_zeros(self._scored.units_shape)
        if self._place is None:
            padded = values.new_zeros(self._shard.shape)
            self._shard.of(padded).copy_(values)
            return self._scored.unit.reduce(padded)
        units = values.new_zeros(self._scored.units_shape)
        if values.numel():
            units.narrow(self._place, self._shard.begin, self._shard.length).copy_(self._scored.unit.reduce(values))
        return units

    @cached_property
    def _sides(self) -> tuple[list[str], list[str]]:
        left, right = (_AXES.findall(side) for side in self._scored.unit.pattern.split("->"))
        return left, right

    @cached_property
    def _split(self) -> str | None:
        """The name of the axis that is split, where it is one by itself and no size is told."""
        before = self._sides[0][: self._shard.axis + 1]
        if "..." in before or not before[-1].isidentifier() or before[-1] in self._scored.unit.sizes:
            return None
        return before[-1]

    @cached_property
    def _is_summed(self) -> bool:
        """Whether every unit has weights in every shard."""
        right = self._sides[1]
        return not right or (self._split is not None and self._split not in re.findall(r"\w+", " ".join(right)))

    @cached_property
    def _place(self) -> int | None:
        """The axis of the scores that is split like the parameter."""
        left, right = self._sides
        if left == right == ["..."]:
            return self._shard.axis
        if self._split is None or self._split not in right:
            return None
        place = right.index(self._split)
        return None if "..." in right[:place] else place
