"""A path around a barrier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, NonFiniteError, SettingError, StateMismatchError
from filterattr.analysis import bend
from tests.reliability.fingerprint import Fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.errors.FilterAttrWarning")


class Product(nn.Module):
    """Two numbers whose product is all that counts: networks that rescale each other are joined by a hyperbola."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([a]).double()), nn.Parameter(torch.tensor([b]).double())
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * self.b * x


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


DATA = {"copying": [torch.ones(1).double(), 2 * torch.ones(1).double()]}


def by_hand(steps: int, rate: float, batch: int, seed: int = 0) -> tuple[float, float]:
    """The same training, written out with derivatives of (ab - 1)^2 x^2."""
    base, target = torch.tensor([4.0, 0.25]).double(), torch.tensor([0.25, 4.0]).double()
    point = (base + target) / 2
    squares = [float(x.square()) for x in DATA["copying"]]
    # the loss at base is 0, so that it is no scale
    scale = 1.0
    first, second = torch.zeros(2).double(), torch.zeros(2).double()
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        place = float(torch.rand((), generator=generator))
        end, part = (base, 2 * place) if place < 0.5 else (target, 2 - 2 * place)
        a, b = (end + part * (point - end)).tolist()
        chosen = torch.randint(2, (batch,), generator=generator).tolist()
        slope = sum(2 * (a * b - 1) * squares[index] for index in chosen) / batch / scale * part
        gradient = slope * torch.tensor([b, a]).double()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        now = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        point = point - now * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    a, b = point.tolist()
    return a, b


def test_is_the_training_that_is_written_out() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    point = bend(base, base, target, loss, DATA, steps=30, rate=0.05, batch=2)
    assert (float(point["a"]), float(point["b"])) == pytest.approx(by_hand(30, 0.05, 2), rel=1e-7)


def test_takes_the_barrier_away_and_keeps_completeness() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    point = bend(base, base, target, loss, DATA, steps=200, rate=0.1)
    attributor = FilterAttributor(base, unit="... -> ...", select="*")
    straight, bent = (
        attributor.attribute(base, target, loss, DATA["copying"], waypoints=waypoints, n_steps=16)
        for waypoints in ([], [point])
    )
    assert straight.barrier > 20
    assert bent.barrier < 0.05 * straight.barrier
    assert bent.total == pytest.approx(bent.loss_target - bent.loss_base, abs=1e-6)


def test_leaves_the_network_and_random_numbers_as_they_are() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    before, state = Fingerprint(target), torch.get_rng_state()
    point = bend(target, base, target, loss, DATA, steps=3)
    assert not before.changes(target)
    assert torch.equal(torch.get_rng_state(), state)
    point["seen"].fill_(7)
    assert float(target.seen) == 0


def test_the_same_seed_gives_the_same_point() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    first, again, other = (bend(base, base, target, loss, DATA, steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], other["a"])


def test_mistakes_are_gathered_before_any_pass() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    with pytest.raises(SettingError) as error:
        bend(base, base, target, loss, {"nothing": []}, steps=0, batch=-1, rate=0.0)
    for part in ("steps is 0", "batch is -1", "rate is 0.0", "'nothing' have no samples"):
        assert part in str(error.value)
    with pytest.raises(SettingError, match="data is empty"):
        bend(base, base, target, loss, {})
    with pytest.raises(StateMismatchError, match="must differ in a parameter"):
        bend(base, base, base, loss, DATA)


def test_a_rate_that_is_far_too_high_is_an_error() -> None:
    base, target = Product(4.0, 0.25), Product(0.25, 4.0)
    with pytest.raises(NonFiniteError, match="take a lower rate"):
        bend(base, base, target, loss, DATA, rate=1e300)
