"""Threads with a model each share the random generators of the process: every call gets the numbers it gets alone."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from filterattr import ChannelAttributor, FilterAttributor, ModelChangedError
from filterattr.analysis.gradients import taylor
from filterattr.analysis.masking import Masking
from filterattr.model import random_state as randomness
from filterattr.model.random_state import CallersRandomness, Turn
from tests.reliability.fingerprint import Fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:.* in train mode:filterattr.FilterAttrWarning")

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))


def network(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Dropout(p), nn.Linear(16, 3))


def ends(p: float = 0.3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return network(p), network(p)


def squared(model: nn.Module, x: Tensor = X) -> Tensor:
    return model(x).square().sum()


def with_python(model: nn.Module, _: Any = None) -> Tensor:
    return squared(model) * random.random()


def with_numpy(model: nn.Module, _: Any = None) -> Tensor:
    return squared(model) * float(np.random.rand())  # noqa: NPY002 - the global one


def in_threads(work: Callable[[int], Any], number: int = 4, calls: int = 16) -> list[Any]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(calls)))


@pytest.mark.parametrize("loss", [squared, with_python, with_numpy])
@pytest.mark.parametrize("options", [{}, {"aggregate": "pooled"}, {"method": "adaptive", "n_steps": 31}], ids=str)
def test_every_call_gets_what_it_gets_alone(loss, options):
    base, target = ends()
    data = [X, X + 1, X - 1]

    def one(_: int) -> Tensor:
        attributor = FilterAttributor(copy.deepcopy(base), unit="weight")
        return attributor.attribute(base, target, loss, data, **options).scores("sum").flat()

    before = Fingerprint(base)
    alone = one(0)
    for found in in_threads(one):
        assert torch.equal(found, alone)
    assert before.changes(base) == []  # the random state of the caller included


def test_losses_with_and_without_draws_side_by_side():
    def one(p: float) -> Tensor:
        base, target = pairs[p]
        attributor = FilterAttributor(copy.deepcopy(base), unit="weight")
        return attributor.attribute(base, target, squared, [X] * 3).scores("sum").flat()

    pairs = {p: ends(p) for p in (0.0, 0.5)}
    torch.manual_seed(5)
    alone = {p: one(p) for p in pairs}
    found = in_threads(lambda number: (number % 2 / 2, one(number % 2 / 2)), calls=24)
    assert all(torch.equal(scores, alone[p]) for p, scores in found)


def test_shuffled_data_come_in_the_order_they_come_in_alone():
    base, target = ends()

    def one(_: int) -> Tensor:
        loader = DataLoader([X + number for number in range(5)], batch_size=None, shuffle=True)
        attributor = FilterAttributor(copy.deepcopy(base), unit="weight")
        return attributor.attribute(base, target, squared, loader, n_steps=4).scores("sum").flat()

    alone = one(0)
    assert all(torch.equal(found, alone) for found in in_threads(one))


def test_channels_get_the_same_numbers_in_threads():
    base, _ = ends()

    def one(_: int) -> Tensor:
        attributor = ChannelAttributor(copy.deepcopy(base))
        return attributor.attribute(X, torch.zeros_like(X), lambda out: out.sum(), n_steps=12)["3"]

    alone = one(0)
    assert all(torch.equal(found, alone) for found in in_threads(one))


def test_gradients_and_masking_get_the_same_numbers_in_threads():
    base, target = ends()
    data = {"all": [X, X + 1]}

    def one(_: int) -> Tensor:
        model = copy.deepcopy(base)
        scores = taylor(FilterAttributor(model), target, squared, data["all"])
        masking = Masking(model, base, target, squared, data)
        return torch.cat([scores.flat(), torch.tensor([masking.loss_base["all"], masking.loss_target["all"]])])

    before = Fingerprint(base)
    alone = one(0)
    assert all(torch.equal(found, alone) for found in in_threads(one))
    assert before.changes(base) == []


@pytest.mark.parametrize(("p", "at_once"), [(0.0, 2), (0.5, 1)])
def test_losses_without_draws_run_side_by_side(p, at_once):
    inside: list[int] = []
    together = [0]

    def one(number: int) -> None:
        def loss(model: nn.Module) -> Tensor:
            inside.append(number)
            together.append(len(set(inside)))
            time.sleep(0.005)
            inside.remove(number)
            return squared(model)

        FilterAttributor(copy.deepcopy(base)).attribute(base, target, loss)

    base, target = ends(p)
    in_threads(one, number=2, calls=2)
    assert max(together) == at_once


def test_a_call_inside_the_loss_of_a_call_goes_on_in_its_turn():
    base, target = ends()

    def one(_: int) -> Tensor:
        inner = FilterAttributor(copy.deepcopy(base))

        def loss(model: nn.Module) -> Tensor:
            inner.attribute(base, target, squared, n_steps=6)
            return squared(model)

        attributor = FilterAttributor(copy.deepcopy(base), unit="weight")
        return attributor.attribute(base, target, loss, n_steps=8).scores("sum").flat()

    alone = one(0)
    assert all(torch.equal(found, alone) for found in in_threads(one, calls=4))


def test_nobody_waits_for_ever(monkeypatch):
    """A loss that waits for a thread that needs its turn."""
    monkeypatch.setattr(randomness, "_LONGEST_TURN", 0.3)
    base, target = ends()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            model = copy.deepcopy(base)
            FilterAttributor(model).attribute(base, target, squared, n_steps=2)
        except ModelChangedError as error:
            errors.append(error)

    def loss(model: nn.Module) -> Tensor:
        if not errors:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return squared(model)

    found = FilterAttributor(base).attribute(base, target, loss, n_steps=8)
    assert "one thread at a time can draw random numbers" in str(errors[0])
    assert found.completeness_error < 1e-3


def test_an_error_in_one_thread_lets_the_others_go_on():
    base, target = ends()

    def one(number: int) -> Any:
        def loss(model: nn.Module) -> Tensor:
            if number % 2:
                raise KeyError("mine")
            return squared(model)

        try:
            return FilterAttributor(copy.deepcopy(base)).attribute(base, target, loss).completeness_error < 1e-3
        except KeyError:
            return "mine"

    assert in_threads(one, calls=8) == [True, "mine"] * 4
    turn = Turn()
    assert turn.take(wait=False)
    turn.release()


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    first, order = Turn(), []
    first.take()

    def wait(number: int) -> None:
        turn = Turn()
        turn.take()
        order.append(number)
        turn.release()

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while len(randomness._WAITING) < number + 1:
            pass
    first.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_of_two_threads_that_leave_at_once_one_sets_the_generators_back():
    """Neither may think that the other one goes on."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = CallersRandomness(), CallersRandomness()
    first.enter()
    second.enter()
    second._thread = -1  # as if another thread had made it
    torch.rand(3)
    known = first._turn.take

    def take(*, wait: bool = True) -> bool:
        second.leave()  # in between
        return known(wait=wait)

    first._turn.take = take
    first.leave()
    second.leave()
    assert torch.equal(torch.get_rng_state(), before)

    first, second = CallersRandomness(), CallersRandomness()
    first.enter()
    second.enter()
    second._thread = -1
    torch.rand(3)
    first._is_leaving = True  # has looked for others, and seen the second
    second.leave()
    first.leave()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("comes", ["before", "meanwhile"])
def test_a_call_that_leaves_while_another_one_begins_does_not_hand_its_draws_on(comes, monkeypatch):
    """The other call has seeded when this one looks at the generators, and is gone when it looks for others."""
    other, state = CallersRandomness(), randomness.RandomState()

    def in_thread(work: Callable[[], Any]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def begin() -> None:
        other._thread = threading.get_ident()
        other.enter()
        randomness.seed_all(7)

    class Looked(randomness.RandomState):
        def __init__(self) -> None:
            monkeypatch.undo()
            if comes == "meanwhile":
                in_thread(begin)
            super().__init__()
            in_thread(other.leave)

    if comes == "before":
        in_thread(begin)
    monkeypatch.setattr(randomness, "RandomState", Looked)
    caller = CallersRandomness()
    try:
        caller.enter()
        randomness.seed_all(8)
    finally:
        caller.leave()
    assert state.is_untouched()
