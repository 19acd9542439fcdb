"""Losses at the ends of the path are evaluated without what only a backward pass needs."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from filterattr import FilterAttributor
from filterattr.engine.modes import Forgetting
from tests.memory import allocated, needs_glibc

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")

SAMPLES = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ends = [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh()).double() for _ in range(2)]
    return ends[0], ends[1]


def squares(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x.double()).square().sum()


def with_a_penalty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The squared length of the gradient of a loss is part of the loss."""
    value = squares(model, x)
    slopes = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
    return value + 0.1 * sum(slope.square().sum() for slope in slopes)


def with_a_functional_penalty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same with `torch.func`, which refuses hooks of saved tensors."""
    weights = dict(model.named_parameters())
    slopes, value = torch.func.grad_and_value(
        lambda held: torch.func.functional_call(model, held, (x.double(),)).square().sum()
    )(weights)
    return value + 0.1 * sum(slope.square().sum() for slope in slopes.values())


def counted(loss, calls):
    def count(model, x):
        calls.append(float(x[0, 0]))
        return loss(model, x)

    return count


@needs_glibc
def test_activations_are_given_back_at_the_ends_but_for_the_first_one():
    layers = [part for _ in range(8) for part in (nn.Linear(4, 4), nn.Tanh())]
    base, target = nn.Sequential(*layers), copy.deepcopy(nn.Sequential(*layers))
    with torch.no_grad():
        target[0].weight.add_(0.1)
    held: list[int] = []

    def loss(model, x):
        before = allocated()
        handle = model[-1].register_forward_hook(lambda *_: held.append((allocated() - before) // x.nbytes))
        try:
            return model(x).square().sum()
        finally:
            handle.remove()

    samples = [torch.randn(65536, 4) for _ in range(2)]
    FilterAttributor(base).attribute(base, target, loss, samples, n_steps=3, progress=False)
    first, second = held[:5], held[5:]  # the ends come first
    assert min(first[0], *first[2:], *second[2:]) >= 8
    assert max(first[1], *second[:2]) <= 3


@pytest.mark.parametrize("loss", [with_a_penalty, with_a_functional_penalty])
def test_a_loss_may_take_derivatives_of_its_own(loss):
    base, target = networks()
    calls: list[float] = []
    found = FilterAttributor(base).attribute(base, target, counted(loss, calls), SAMPLES, n_steps=12, progress=False)
    by_hand = sum((loss(target, x) - loss(base, x)).item() for x in SAMPLES) / len(SAMPLES)
    assert found.loss_target - found.loss_base == pytest.approx(by_hand, rel=1e-12)
    assert found.completeness_error < 1e-6
    # torch.func refuses before it computes, and is asked once more; nobody else is
    assert len(calls) == 14 * len(SAMPLES) + (loss is with_a_functional_penalty)


def test_a_loss_that_begins_to_take_derivatives_later_is_asked_again():
    base, target = networks()
    calls: list[float] = []

    def loss(model, x):
        return (with_a_penalty if len(calls) > 6 else squares)(model, x)

    found = FilterAttributor(base).attribute(base, target, counted(loss, calls), SAMPLES, n_steps=4, progress=False)
    assert found.n_samples == 3
    assert len(calls) == 6 * 3 + 1
    wanted = (squares(target, SAMPLES[0]).item() + sum(with_a_penalty(target, x).item() for x in SAMPLES[1:])) / 3
    assert found.loss_target == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("inner", [squares, with_a_penalty])
@pytest.mark.parametrize("failing", [1, 2, 3, 7])
def test_an_error_of_the_loss_is_raised_the_first_time(inner, failing):
    base, target = networks()
    calls: list[float] = []

    def loss(model, x):
        value = inner(model, x)
        if len(calls) == failing:
            raise RuntimeError("stop")
        return value

    with pytest.raises(RuntimeError, match="stop"):
        FilterAttributor(base).attribute(base, target, counted(loss, calls), SAMPLES, n_steps=4, progress=False)
    assert len(calls) == failing


def test_hooks_of_the_user_are_on_again_afterwards():
    base, target = networks()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(1) or x.detach(), lambda x: x):
        FilterAttributor(base).attribute(base, target, squares, SAMPLES, n_steps=2, progress=False)
        kept.clear()
        x = torch.ones((), requires_grad=True)
        x.square().backward()
    assert kept == [1]
    assert x.grad == 2


def test_where_hooks_are_forbidden_everything_is_kept():
    base, target = networks()
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        found = FilterAttributor(base).attribute(base, target, squares, SAMPLES, n_steps=2, progress=False)
    again = FilterAttributor(base).attribute(base, target, squares, SAMPLES, n_steps=2, progress=False)
    assert torch.equal(found.scores()["0.weight"], again.scores()["0.weight"])


def test_it_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        mode = Forgetting()
        for _ in range(3):
            mode.enter()
            torch.ones(2, requires_grad=True).square()
            mode.restore()
        watched = weakref.ref(mode)
        del mode
        assert watched() is None
    finally:
        gc.enable()
