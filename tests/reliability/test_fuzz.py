"""Random jobs against the literal reference; and that they find each of the faults that they are there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from filterattr import attribution
from filterattr.activations import passes, samples
from filterattr.activations.samples import Place
from filterattr.integral import node
from filterattr.loss.sample_watch import SampleWatch
from filterattr.model.holdings import Holdings
from filterattr.model.random_state import Turn
from filterattr.model.swap import ParameterSwap
from tests.reliability.fuzzing import channel_differences, differences

QUICK, ALL, PART = 50, 2_000, 100


def test_fifty_seeds() -> None:
    assert [problem for seed in range(QUICK) for problem in differences(seed)] == []


def test_fifty_seeds_of_channels() -> None:
    assert [problem for seed in range(QUICK) for problem in channel_differences(seed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, ALL, PART))
def test_two_thousand_seeds(start: int) -> None:
    seeds = range(start, start + PART)
    assert [problem for seed in seeds for problem in differences(seed) + channel_differences(seed)] == []


Patch = tuple[Any, str, Any]


def nothing(*_: object) -> None:
    """Do nothing."""


def at_once(*_: object, **__: object) -> bool:
    """Wait for no other thread."""
    return True


def in_front(outputs: dict[Any, Any], *_: object, **__: object) -> dict[Any, Place]:
    """Believe that all layers have the samples in front."""
    return dict.fromkeys(outputs, Place())


# the fault, what takes its fix out, what finds it, and a word of the story of the job that does
FAULTS: dict[str, tuple[list[Patch], Callable[[int], list[str]], str]] = {
    "weights that modules also hold outside their slots": (
        [(Holdings, "put", nothing), (ParameterSwap, "check_graph", nothing)],
        differences,
        "held in",
    ),
    "weights of the user in the graph of the loss": (
        [(ParameterSwap, "check_graph", nothing)],
        differences,
        "held in global",
    ),
    "tensors in containers that forward passes write to": (
        [(Holdings, "put", nothing), (Holdings, "restore", nothing)],
        differences,
        "written in",
    ),
    "activations without the samples in front": (
        [(passes, "find_places", in_front)],
        channel_differences,
        "time first",
    ),
    "images without an axis of the samples": (
        [(samples, "_refuse_single_samples", nothing)],
        channel_differences,
        "image without samples",
    ),
    "a loss that writes to its sample": (
        [(SampleWatch, "check", nothing), (node.PathNode, "check_repeats", nothing)],
        differences,
        "loss writes",
    ),
    "a loss that counts": ([(node.PathNode, "check_repeats", nothing)], differences, "loss counts"),
    "a loss that takes things out of its sample": (
        [(node, "fresh", lambda arguments: arguments)],
        differences,
        "loss pops",
    ),
    "random numbers that threads draw": ([(Turn, "take", at_once)], differences, "threads"),
    "changes that the type of the model rounds away": (
        [(attribution, "rounding_warning", nothing)],
        differences,
        "changes that round away",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_when_its_fix_is_taken_out(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, look, word = FAULTS[fault]
    for holder, name, instead in patches:
        monkeypatch.setattr(holder, name, instead)
    found = next((problems for problems in map(look, range(400)) if problems and word in problems[0]), None)
    assert found is not None, f"400 seeds do not find {fault}"
