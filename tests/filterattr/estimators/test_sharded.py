"""Models that fully_shard has split over processes: scores of one process, and the model as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from filterattr import FilterAttribution
from tests.filterattr.estimators.shard_worker import (
    HEADS,
    TIMEOUT,
    attribute,
    both,
    columns,
    network,
    shifted,
)  # fmt: skip
from tests.memory import needs_glibc

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-6  # of the largest score of a parameter

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
    pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.errors.FilterAttrWarning"),
]

SAME = {
    "all": lambda: attribute(network(0)),
    "signed": lambda: attribute(network(0), keep="signed"),
    "heads": lambda: attribute(network(0), unit=HEADS),
    "heads signed": lambda: attribute(network(0), unit=HEADS, keep="signed"),
    "layers": lambda: attribute(network(0), unit="layer", keep="signed"),
    "inputs": lambda: attribute(network(0), unit="input"),
    "weights": lambda: attribute(network(0), unit="weight"),
    "corner": lambda: attribute(network(0), waypoints=[network(3)]),
    "corner signed": lambda: attribute(network(0), waypoints=[network(3)], keep="signed"),
    "columns": lambda: attribute(
        columns(0), columns(1), columns(2), data=[torch.ones(1, 8)], unit={"0.*": "input", "*": "kernel"}
    ),
    "one part moves": lambda: attribute(network(0), network(1), shifted(), keep="signed"),
    "from the model": lambda: attribute(network(0), network(0), network(2)),
    "from its state": lambda: attribute(network(0), network(0), network(2)),
    "from sharded": lambda: attribute(network(0), keep="signed"),
    "from files": lambda: attribute(network(0), keep="signed"),
    "in one group": lambda: attribute(network(0)),
    "on a mesh": lambda: attribute(network(0)),
    "twice": lambda: attribute(network(0), loss=both, keep="signed"),
    "twice all": lambda: attribute(network(0), loss=both),
    "after an error": lambda: attribute(network(0)),
    "after an error in backward": lambda: attribute(network(0)),
}
REFUSED = {
    "no scalar": ("LossError", "loss must return one scalar"),
    "infinite": ("NonFiniteError", "the loss must be finite along the whole path"),
    "bad gradient": ("NonFiniteError", "must be finite; got nan at t = 0.06943"),
    "used by itself": ("LossError", "through its modules, but it takes 'heads.o.bias' by itself"),
    "unused": ("LossError", "base and target differ in 'conv2.weight', 'conv2.bias'"),
    "bad shape": ("StateMismatchError", "base lacks 10 of 10: 'conv1.weight'"),
    "bad layout": ("StateMismatchError", "base is sharded in another way than the model in 'conv1.weight' (Replicate"),
    "bad data": ("DistributedError", "rank 1 has another number of samples than rank 0"),
    "bad steps": ("DistributedError", "rank 1 has another n_steps than rank 0"),
    "pooled": ("SettingError", 'leave out aggregate="pooled"'),
    "adaptive": ("SettingError", 'method="adaptive"'),
    "together": ("SettingError", "internal_batch_size"),
    "distributed": ("SettingError", "leave out distributed=True and checkpoint="),
    "checkpoint": ("SettingError", "keeps no checkpoint"),
    "frozen": ("UnsupportedModelError", "differ in 'heads.q.weight', 'heads.q.bias', which require no gradient"),
    "half sharded": ("UnsupportedModelError", "'norm.weight' is not sharded, although others are"),
    "two dimensions": (
        "UnsupportedModelError",
        "'conv1.weight' is split as (Replicate(), Shard(dim=0)) over a mesh of 2",
    ),
    "swapped": ("UnsupportedModelError", "is sharded (FSDPNet): gather its full weights first"),
    "blend": ("StateMismatchError", "are quantized or sharded. Pass the floating model, or a state dict of its full"),
    "train only": ("UnsupportedModelError", "is sharded (FSDPNet): gather its full weights first"),
}


def start(folder: Path, size: int, names: list[str]) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.filterattr.estimators.shard_worker", str(folder)]
    return [
        subprocess.Popen(
            [*command, str(rank), str(size), *names], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def launch(folder: Path, size: int, names: list[str]) -> None:
    for process in start(folder, size, names):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def report(folder: Path, name: str, rank: int) -> dict[str, object]:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All cases that leave the processes alive, one after the other in the same process group."""
    folder = tmp_path_factory.mktemp("shards")
    launch(folder, 2, [*SAME, "taught", "bad on one", *REFUSED, "signed"])
    return folder


def assert_that_of_one_process(folder: Path, name: str, single: FilterAttribution, size: int) -> None:
    for rank in range(size):
        found = report(folder, name, rank)
        assert found["error"] is None, found
        assert found["clean"], "the model has changed"
    assert len({(folder / f"{name}.{rank}").read_bytes() for rank in range(size)}) == 1, "the ranks differ"
    shared = FilterAttribution.load(folder / f"{name}.0")
    assert (shared.n_samples, shared.n_passes, shared.is_signed) == (
        single.n_samples, single.n_passes, single.is_signed,
    )  # fmt: skip
    torch.testing.assert_close(shared.path_losses, single.path_losses, rtol=TOLERANCE, atol=0)
    assert (shared.cosine, shared.total) == pytest.approx((single.cosine, single.total), rel=TOLERANCE)
    for reduction in single.means:
        scores = shared.scores(reduction)
        assert scores.keys() == single.scores(reduction).keys()
        for key, expected in single.scores(reduction).items():
            assert scores[key].shape == expected.shape
            off = (scores[key] - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
            assert off <= TOLERANCE, f"{reduction} of {key} is off by {off:.1e}"


class TestTwoRanks:
    @pytest.mark.parametrize("name", SAME)
    def test_scores_are_those_of_one_process_and_the_model_is_as_it_was(self, folder, name):
        assert_that_of_one_process(folder, name, SAME[name](), 2)

    def test_a_network_that_the_loss_compares_with_keeps_its_gradient(self, folder):
        assert report(folder, "taught", 0)["error"] is None, report(folder, "taught", 0)

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_is_refused_is_refused_on_all_ranks_by_name(self, folder, name):
        kind, text = REFUSED[name]
        for rank in range(2):
            found = report(folder, name, rank)
            assert (found["error"], text in str(found["text"]), found["clean"]) == (kind, True, True), found

    def test_weights_that_are_wrong_on_one_rank_stop_all(self, folder):
        assert report(folder, "bad on one", 0)["error"] == "StateMismatchError"
        assert report(folder, "bad on one", 1)["error"] == "DistributedError"
        assert "rank 0: StateMismatchError: base and target must both" in str(report(folder, "bad on one", 1)["text"])


@pytest.mark.slow
def test_four_ranks_some_of_which_hold_nothing_of_a_parameter(tmp_path):
    names = ["all", "heads", "heads signed", "inputs", "weights", "layers", "columns"]
    launch(tmp_path, 4, names)
    for name in names:
        assert_that_of_one_process(tmp_path, name, SAME[name](), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed", "killed in backward", "interrupted", "interrupted in backward"])
def test_a_rank_that_dies_or_is_interrupted_in_a_pass_makes_the_other_raise(tmp_path, name):
    for process in start(tmp_path, 2, [name]):
        process.communicate(timeout=100)
    found = report(tmp_path, name, 0)
    assert found["error"] == "DistributedError", found
    assert "the other ranks do not answer" in str(found["text"])
    assert found["clean"], "the model has changed"
    assert found["seconds"] < TIMEOUT + 5
    if name.startswith("interrupted"):
        assert report(tmp_path, name, 1)["error"] == "KeyboardInterrupt"
        assert report(tmp_path, name, 1)["clean"], "the model has changed"


@pytest.mark.slow
def test_an_interrupt_at_any_instruction_leaves_the_model_as_it_was(tmp_path):
    launch(tmp_path, 1, ["interrupted anywhere"])
    assert_that_of_one_process(tmp_path, "interrupted anywhere", attribute(network(0)), 1)


@needs_glibc
@pytest.mark.slow
def test_each_of_two_ranks_holds_half_of_the_bytes(tmp_path):
    for size in (1, 2):
        launch(tmp_path, size, ["memory all", "memory signed"])
    for keep in ("all", "signed"):
        whole = int((tmp_path / f"bytes {keep} 1 0").read_text())
        parts = [int((tmp_path / f"bytes {keep} 2 {rank}").read_text()) / whole for rank in range(2)]
        print(f"{keep}: {whole / 1e6:.0f} MB in one process, {parts} of it in each of two")
        assert all(0.45 < part <= 0.55 for part in parts), parts
