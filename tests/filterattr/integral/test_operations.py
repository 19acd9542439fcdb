"""What a node adds to its bare passes: a few operations for every parameter, however large, and none in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from filterattr import FilterAttributor

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")

LAYERS = 5
# they lead to other views of the same memory, and compute nothing
VIEWS = {
    "detach",
    "alias",
    "view",
    "_unsafe_view",
    "t",
    "split",
    "slice",
    "select",
    "as_strided",
    "expand",
    "transpose",
}


class Operations(TorchDispatchMode):
    """Counts operations, and those on float64 tensors with as many entries as a weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.wide: set[str] = set()
        self._size = size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names[name] += 1
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.numel() >= self._size and tensor.dtype == torch.float64:
                self.wide.add(name)
        return result


def network(width: int, kind: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=kind) for _ in range(LAYERS)))


def counted(work: Callable[[], object], size: int) -> Operations:
    operations = Operations(size)
    with operations:
        work()
    return operations


def per_node(width: int, **options: object) -> Counter[str]:
    """Operations of a node above those of its pass: what a call with more nodes does more, less so many passes."""
    base, target = network(width), network(width)
    inputs = torch.rand(1, width)
    loss = lambda model: model(inputs).square().sum()  # noqa: E731
    attributor = FilterAttributor(base, unit="filter")

    def call(n_steps: int) -> Operations:
        work = lambda: attributor.attribute(base, target, loss, n_steps=n_steps, progress=False, **options)  # noqa: E731
        return counted(work, width * width)

    calls = [call(4), call(14)]
    assert calls[1].wide == set()
    bare = counted(lambda: torch.autograd.grad(loss(base), list(base.parameters())), width * width)
    more = Counter({name: count // 10 for name, count in (calls[1].names - calls[0].names).items()})
    return more - bare.names


@pytest.mark.parametrize(("options", "at_most"), [({}, 2), ({"keep": "signed"}, 4)], ids=["all scores", "signed"])
def test_a_node_adds_as_many_operations_for_large_weights_as_for_small_ones(options, at_most: int) -> None:
    small, large = per_node(100, **options), per_node(1000, **options)
    assert small == large
    assert large.total() / LAYERS <= at_most + 1.2  # and the loss, its checks and the scores of all units at once
    assert sum(large[name] for name in ("lerp", "add_", "sub", "mul_", "sum", "mul", "lerp_")) <= (at_most + 1) * LAYERS


OPTIONS = [{}, {"keep": "signed"}, {"method": "adaptive", "tolerance": 0.1}, {"internal_batch_size": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_is_computed_in_float64_for_every_weight_of_float32(options) -> None:
    base, target = network(100), network(100)
    attributor = FilterAttributor(base, unit="filter")
    loss = lambda model, x: model(x).square().sum()  # noqa: E731
    data = torch.rand(2, 1, 100)
    found = counted(lambda: attributor.attribute(base, target, loss, data, progress=False, **options), 10_000)
    assert found.wide == set()
