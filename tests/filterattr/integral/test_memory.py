"""Memory above the bare passes: some copies of the parameters, however many nodes and samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor
from tests.memory import allocated, needs_glibc, peak_of

pytestmark = [needs_glibc, pytest.mark.slow, pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")]

LAYERS, WIDTH = 12, 256
COPY = LAYERS * WIDTH * WIDTH * 4


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def copies(samples: int = 1, **options: object) -> tuple[float, float]:
    """What a call holds above what was held before, in copies of the parameters: while the loss runs, and at most.

    The first is seen in every call of the loss, the second by a thread that may miss a moment.
    """
    model, base, target = network(), network().state_dict(), network().state_dict()
    attributor = FilterAttributor(model, unit="filter")
    data = [torch.rand(1, WIDTH) for _ in range(samples)]
    seen: list[int] = []
    # the first call of a process asks for 30 MiB, for an instant, that it never touches
    attributor.attribute(base, target, lambda model: model(torch.rand(1, WIDTH)).sum(), n_steps=1, progress=False)

    def loss(model: nn.Module, inputs: Tensor) -> Tensor:
        seen.append(allocated())
        return model(inputs).square().sum()

    before = allocated()
    peak = peak_of(lambda: attributor.attribute(base, target, loss, data, **options))
    return (max(seen) - before) / COPY, (max(peak, *seen) - before) / COPY


# above what was there before; the gradient of one layer of twelve, and its product, belong to the bare pass
@pytest.mark.parametrize(
    ("options", "in_loss_at_most", "at_most"),
    [
        ({"n_steps": 8}, 2.2, 2.4),
        ({"keep": "signed", "n_steps": 8}, 1.25, 1.4),
        ({"keep": "signed", "n_steps": 8, "samples": 16}, 1.3, 1.4),
        ({"method": "adaptive", "tolerance": 1e-9, "n_steps": 31}, 2.2, 2.4),
        ({"aggregate": "pooled", "samples": 8}, 4.2, 4.8),
    ],
    ids=["all scores", "signed", "signed, many samples", "adaptive", "pooled"],
)
def test_copies_of_the_parameters(options: dict[str, object], in_loss_at_most: float, at_most: float) -> None:
    """A point and the sums; base and target are not copied."""
    in_loss, peak = copies(**options)
    assert in_loss_at_most - 0.4 < in_loss <= in_loss_at_most
    assert peak <= at_most


def test_eight_hundred_nodes_need_no_more_than_eight() -> None:
    assert abs(copies(n_steps=800)[0] - copies(n_steps=8)[0]) < 0.3


def test_many_samples_need_no_more_than_few() -> None:
    few, many = (copies(aggregate="pooled", samples=samples)[0] for samples in (8, 200))
    assert abs(many - few) < 0.3
