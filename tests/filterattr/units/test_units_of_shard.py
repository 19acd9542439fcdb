"""What the parts of a split parameter add to its units sums up to the units of the whole."""

from __future__ import annotations

import pytest
import torch

from filterattr.model.sharded import Shard
from filterattr.units.sharded import UnitsOfShard
from filterattr.units.unit import ScoredParameter, Unit


def parts_of(shape: tuple[int, ...], axis: int, count: int) -> list[Shard]:
    """As `torch.chunk` splits: the last ones are shorter, or empty."""
    size = shape[axis]
    each = -(-size // count)
    begins = [min(number * each, size) for number in range(count)]
    return [Shard(shape, axis, begin, min(each, size - begin)) for begin in begins]


@pytest.mark.parametrize(
    ("unit", "shape"),
    [
        (Unit("o i ... -> o i"), (5, 4, 3, 3)),
        (Unit("o i ... -> i o"), (5, 4, 3, 3)),
        (Unit("o ... -> o"), (5, 4, 3)),
        (Unit("o i ... -> i"), (6, 4, 3)),
        (Unit("o i k -> i k", {"o": 6}), (6, 4, 3)),
        (Unit("... ->"), (6, 4)),
        (Unit("... -> ..."), (6, 4)),
        (Unit("(heads d) i -> heads", {"heads": 3}), (6, 4)),
        (Unit("o (heads d) -> heads", {"heads": 2}), (6, 4)),
        (Unit("(g o) i ... -> (g i)", {"g": 2}), (6, 4, 3)),
        (Unit("(g i) o -> (g o) i", {"g": 2}), (6, 4)),
        (Unit("o i -> (o i)"), (6, 4)),
        (Unit("... i -> i"), (6, 5, 4)),
        (Unit("o ... -> ... o"), (6, 5, 4)),
        (Unit("o -> o"), (6,)),
    ],
    ids=lambda value: value.pattern if isinstance(value, Unit) else "x".join(map(str, value)),
)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_parts_add_up_to_the_whole(unit, shape, count):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scored, expected = ScoredParameter(unit, shape), unit.reduce(values)
    for axis in range(len(shape)):
        sums = [UnitsOfShard(scored, part).reduce(part.of(values)) for part in parts_of(shape, axis, count)]
        torch.testing.assert_close(sum(sums), expected, rtol=1e-12, atol=1e-12)


def test_whole_filters_are_not_laid_into_the_whole_parameter(monkeypatch):
    """A copy of the whole parameter on every process would take the memory that splitting saves."""
    scored, part = ScoredParameter(Unit("o i -> o"), (4, 3)), Shard((4, 3), 0, 2, 2)
    reduced = []
    monkeypatch.setattr(Unit, "reduce", lambda self, values: reduced.append(values.shape) or values.sum(1))
    assert UnitsOfShard(scored, part).reduce(torch.ones(2, 3)).tolist() == [0, 0, 3, 3]
    assert reduced == [(2, 3)]
