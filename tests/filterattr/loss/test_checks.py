"""Whether a loss can be called as it will be is known before any work, whatever kind of callable it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from filterattr import LossError
from filterattr.loss.checks import check_call


def with_one(model: object) -> object:
    return model


def with_two(model: object, sample: object) -> tuple[object, object]:
    return model, sample


def with_default(model: object, sample: object = None) -> tuple[object, object]:
    return model, sample


def with_any(*arguments: object) -> tuple[object, ...]:
    return arguments


def with_keyword(model: object, *, weight: float) -> tuple[object, float]:
    return model, weight


def with_optional_keyword(model: object, *, weight: float = 1.0) -> tuple[object, float]:
    return model, weight


def positional(model: object, sample: object, /) -> tuple[object, object]:
    return model, sample


class Callee:
    def __call__(self, model: object) -> object:
        return model

    def method(self, model: object, sample: object) -> tuple[object, object]:
        return model, sample


@functools.wraps(with_two)
def decorated(*arguments: Any) -> object:
    return with_two(*arguments)


@functools.wraps(with_any)
def narrower_than_it_says(model: object) -> object:
    return model


@functools.wraps(with_two)
def wider_than_it_takes(model: object) -> object:
    return model


KINDS: dict[str, tuple[Callable[..., object], set[int]]] = {
    "one": (with_one, {1}),
    "two": (with_two, {2}),
    "a default": (with_default, {1, 2}),
    "any number": (with_any, {1, 2}),
    "a keyword": (with_keyword, set()),
    "an optional keyword": (with_optional_keyword, {1}),
    "positional": (positional, {2}),
    "lambda without": (lambda: None, set()),
    "an object": (Callee(), {1}),
    "a method": (Callee().method, {2}),
    "a partial function": (functools.partial(with_two, sample=1), {1}),
    "a decorated function": (decorated, {2}),
    "a decorated function that says less than it takes": (narrower_than_it_says, {1, 2}),
    "a decorated function that says more than it takes": (wider_than_it_takes, {2}),
    "a class": (int, {1, 2}),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_called_with_the_model_and_a_sample_if_there_is_data(kind: str, count: int) -> None:
    loss, counts = KINDS[kind]
    if count in counts:
        check_call(loss, with_data=count == 2)
        return
    expected = r"loss\(model, sample\), because data" if count == 2 else r"loss\(model\), because no data"
    with pytest.raises(LossError, match=f"loss must be callable as {expected} was given"):
        check_call(loss, with_data=count == 2)
