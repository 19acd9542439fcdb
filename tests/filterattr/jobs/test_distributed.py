"""distributed=True: ranks share the samples, get the same bits, and all raise if one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from filterattr import FilterAttribution, SettingError
from filterattr.jobs.distributed import ProcessGroup
from tests.filterattr.jobs.rank_worker import SHORT_TIMEOUT, TIMEOUT, attribute, pooled, samples, squared, together

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
    pytest.mark.filterwarnings(
        "ignore:the attributions should sum:filterattr.errors.FilterAttrWarning",
        "ignore:.* in train mode:filterattr.errors.FilterAttrWarning",
    ),
]


def start(folder: Path, size: int, names: list[str]) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.filterattr.jobs.rank_worker", str(folder)]
    return [
        subprocess.Popen(
            [*command, str(rank), str(size), *names],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def launch(folder: Path, size: int, names: list[str]) -> None:
    for process in start(folder, size, names):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]


def report(folder: Path, name: str, size: int = 2) -> list[dict[str, object]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(size)]


def assert_raised(folder: Path, name: str, *expected: tuple[str, str], clean: bool = True) -> None:
    for found, (error, text) in zip(report(folder, name), expected, strict=True):
        assert found["error"] == error, found
        assert text in str(found["text"])
        assert found["clean"] is clean


def assert_close_to_one_process(folder: Path, name: str, single: FilterAttribution, size: int = 2) -> None:
    contents = {(folder / f"{name}.{rank}").read_bytes() for rank in range(size)}
    assert len(contents) == 1, "the ranks differ"
    shared = FilterAttribution.load(folder / f"{name}.0")
    assert (shared.n_samples, shared.n_passes) == (single.n_samples, single.n_passes)
    torch.testing.assert_close(shared.path_losses, single.path_losses, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        (shared.total, shared.remainder, shared.completeness_error),
        (single.total, single.remainder, single.completeness_error), rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    for reduction in ("sum_of_abs", "abs_of_sum", "sum"):
        torch.testing.assert_close(
            dict(shared.scores(reduction)), dict(single.scores(reduction)), rtol=1e-10, atol=1e-10
        )
    assert all(entry["clean"] for entry in report(folder, name, size))


NORMAL = [
    "uneven", "few", "alone", "empty", "iterator", "wrapped", "shuffled", "raising", "all raising", "bad base",
    "bad steps", "bad setting", "bad order", "bad number", "bad share", "bad sample", "one checkpoint", "kept",
    "kept again", "kept other", "adaptive", "pooled", "pooled stopped", "pooled kept", "bad until", "together",
    "together few", "together kept", "bad together", "even",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All cases that leave the processes alive, one after the other in the same process group."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(folder, 2, NORMAL)
    return folder


class TestTwoRanks:
    @pytest.mark.parametrize("name", ["uneven", "iterator", "wrapped"])
    def test_uneven_shares(self, folder, name):
        assert_close_to_one_process(folder, name, attribute(samples(5), distributed=False))

    def test_fewer_samples_than_ranks(self, folder):
        assert_close_to_one_process(folder, "few", attribute(samples(1), distributed=False))

    def test_without_data(self, folder):
        single = attribute(None, lambda model: squared(model, samples(1)[0]), distributed=False)
        assert_close_to_one_process(folder, "alone", single)

    def test_a_group_is_still_usable_after_all_these_errors(self, folder):
        assert_close_to_one_process(folder, "even", attribute(samples(6), distributed=False))

    def test_shuffled_data_follow_the_first_rank(self, folder):
        assert report(folder, "shuffled")[0]["error"] is None
        assert FilterAttribution.load(folder / "shuffled.0").n_samples == 5
        assert (folder / "shuffled.0").read_bytes() == (folder / "shuffled.1").read_bytes()

    def test_no_data_is_the_same_error_everywhere(self, folder):
        assert_raised(folder, "empty", *[("SettingError", "data must hold at least one sample; it is empty.")] * 2)

    def test_a_rank_that_raises_stops_all(self, folder):
        assert_raised(
            folder, "raising",
            ("DistributedError", "1 of 2 ranks failed, so that all of them stop: rank 1: ValueError: sample 3"),
            ("ValueError", "sample 3 is bad on rank 1"),
        )  # fmt: skip
        assert_raised(folder, "all raising", *[("LossError", "loss must return one scalar")] * 2)
        assert all(entry["seconds"] < TIMEOUT / 2 for entry in report(folder, "raising"))

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("bad base", "a shared job must be the same on all ranks; rank 1 has another base than rank 0"),
            ("bad steps", "rank 1 has another n_steps than rank 0"),
            ("bad order", "data must be the same on all ranks; rank 1 has another sample than rank 0"),
            ("bad number", "rank 1 has another number of samples than rank 0"),
            ("bad share", "rank 1 has another sample than rank 0"),
            ("one checkpoint", "rank 1 has another checkpoint than rank 0"),
        ],
    )
    def test_what_differs_between_the_ranks_is_refused_on_all(self, folder, name, reason):
        assert_raised(folder, name, *[("DistributedError", reason)] * 2)

    def test_a_setting_that_is_wrong_on_one_rank(self, folder):
        assert_raised(
            folder, "bad setting",
            ("DistributedError", "rank 1: SettingError: method must be one of"),
            ("SettingError", "method must be one of"),
        )  # fmt: skip

    def test_samples_must_be_comparable(self, folder):
        assert_raised(folder, "bad sample", *[("SettingError", "sample 0 is an object, whose content")] * 2)

    def test_a_checkpoint_for_each_rank(self, folder):
        single = attribute(samples(6), distributed=False)
        assert_close_to_one_process(folder, "kept", single)
        assert_close_to_one_process(folder, "kept again", single)
        assert sorted(path.name for path in folder.glob("kept.rank*")) == [
            "kept.rank0.safetensors",
            "kept.rank1.safetensors",
        ]
        assert (folder / "kept.0").read_bytes() == (folder / "even.0").read_bytes()
        assert_raised(folder, "kept other", *[("StorageError", "belongs to another job: it has n_steps 3, here 4")] * 2)


class TestRefinedAndPooled:
    def test_refinement_is_that_of_one_process(self, folder):
        single = attribute(samples(5), distributed=False, method="adaptive", n_steps=63, tolerance=1e-5)
        assert_close_to_one_process(folder, "adaptive", single)
        shared = FilterAttribution.load(folder / "adaptive.0")
        assert (shared.n_steps, shared.n_unsettled) == (single.n_steps, single.n_unsettled)

    @pytest.mark.parametrize(
        ("name", "count", "used"), [("pooled", 21, 21), ("pooled stopped", 40, 24), ("pooled kept", 80, 48)]
    )
    def test_pooled_scores_are_those_of_one_process(self, folder, name, count, used):
        assert all(entry["error"] is None and entry["clean"] for entry in report(folder, name)), report(folder, name)
        assert (folder / f"{name}.0").read_bytes() == (folder / f"{name}.1").read_bytes()
        shared = FilterAttribution.load(folder / f"{name}.0")
        single = pooled(samples(count)[:used], distributed=False)
        assert shared.n_samples == used
        for reduction in ("sum_of_abs", "abs_of_sum", "sum"):
            torch.testing.assert_close(
                dict(shared.scores(reduction)), dict(single.scores(reduction)), rtol=1e-10, atol=1e-10
            )
        assert (shared.total, shared.remainder) == pytest.approx((single.total, single.remainder), rel=1e-10)
        assert shared.agreement == single.agreement

    @pytest.mark.parametrize(("name", "count"), [("together", 11), ("together few", 3), ("together kept", 9)])
    def test_samples_that_share_passes(self, folder, name, count):
        assert_close_to_one_process(folder, name, together(samples(count), 1, distributed=False))

    def test_as_many_must_share_a_pass_on_all_ranks(self, folder):
        assert_raised(folder, "bad together", *2 * [("DistributedError", "internal_batch_size")])

    def test_all_ranks_must_be_able_to_stop(self, folder):
        assert_raised(folder, "bad until", *[("DistributedError", "rank 1 has another until than rank 0")] * 2)


class TestDeath:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["killed", "exiting"])
    def test_a_rank_that_dies_makes_the_others_raise(self, tmp_path, name):
        processes = start(tmp_path, 2, [name])
        for process in processes:
            process.communicate(timeout=100)
        found = json.loads((tmp_path / f"{name}.0.json").read_text())
        assert found["error"] == "DistributedError"
        assert "the other ranks do not answer" in found["text"]
        assert found["clean"]
        assert found["seconds"] < TIMEOUT

    @pytest.mark.slow
    def test_a_rank_that_hangs_makes_the_others_raise_after_the_timeout(self, tmp_path):
        processes = start(tmp_path, 2, ["hanging"])
        processes[0].communicate(timeout=100)
        processes[1].kill()
        processes[1].communicate()
        found = json.loads((tmp_path / "hanging.0.json").read_text())
        assert found["error"] == "DistributedError"
        assert found["clean"]
        assert SHORT_TIMEOUT - 1 < found["seconds"] < SHORT_TIMEOUT + 10


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks(tmp_path, size):
    launch(tmp_path, size, ["uneven", "few", "even"])
    for name, count in (("uneven", 5), ("few", 1), ("even", 6)):
        assert_close_to_one_process(tmp_path, name, attribute(samples(count), distributed=False), size)


SCRIPT = """
import sys, time
import torch
import torch.distributed as dist
from torch import nn
from filterattr import FilterAttributor
dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
base, target = (nn.Sequential(nn.Conv2d(1, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(),
                nn.Conv2d(48, 1, 3, padding=1)) for _ in range(2))
data = [torch.rand(1, 1, 64, 64) for _ in range(16)]
attributor = FilterAttributor(base)
run = lambda data: attributor.attribute(base, target, lambda model, x: model(x).square().sum(), data, n_steps=8,
                                        distributed=True, progress=False)
run(data[:2])
dist.barrier()
wall, busy = time.perf_counter(), time.process_time()
result = run(data)
spent = torch.tensor([time.perf_counter() - wall, time.process_time() - busy])
dist.all_reduce(spent, dist.ReduceOp.MAX)
if dist.get_rank() == 0:
    print(*spent.tolist(), result.total)
dist.destroy_process_group()
"""


def torchrun(folder: Path, size: int) -> tuple[float, float, float]:
    """Run `SCRIPT` as users do; return wall time, processor time of the busiest rank, and a number of the result."""
    (folder / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder / "script.py")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wall, busy, total = map(float, done.stdout.split())
    return wall, busy, total


@pytest.mark.slow
def test_two_ranks_take_at_most_six_tenths_of_the_time(tmp_path):
    """Sixteen samples, one thread for each rank, as `torchrun` starts them; the best of interleaved runs.

    Wall time says something only where two processors are idle; processor time of the busiest rank always does.
    """
    found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
    spare = spare_processors()
    for _ in range(3):
        for size, runs in found.items():
            runs.append(torchrun(tmp_path, size))
    spare = min(spare, spare_processors())
    wall, busy = (min(run[kind] for run in found[2]) / min(run[kind] for run in found[1]) for kind in (0, 1))
    print(f"two ranks to one: wall time {wall:.2f}, processor time {busy:.2f}, {spare:.1f} processors idle")
    totals = torch.tensor([run[2] for runs in found.values() for run in runs], dtype=torch.float64)
    torch.testing.assert_close(totals, totals[:1].expand(6), rtol=1e-10, atol=0)
    assert busy <= 0.6
    assert wall <= 0.6 or spare < 1.8, "with two idle processors"


def spare_processors() -> float:
    """How many processors two busy processes really get, up to 2."""
    work = "import time; t = time.process_time();\nwhile time.process_time() - t < 1: pass"
    begin = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(2)]
    for process in processes:
        process.wait()
    return 2 / (time.perf_counter() - begin)


class TestOneProcess:
    def test_without_a_process_group_is_refused(self):
        with pytest.raises(
            SettingError, match=r"distributed=True needs a process group: start the script with torchrun"
        ):
            attribute(samples(1))

    def test_errors_pass_unchanged_without_a_group(self):
        def work():
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            ProcessGroup().run_on_all(work)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nccl_moves_what_it_sends(tmp_path):
    code = f"""
import torch, torch.distributed as dist
from torch import nn
from filterattr import FilterAttributor
dist.init_process_group("nccl", init_method="file://{tmp_path}/store", rank=0, world_size=1)
torch.manual_seed(0)
base, target = nn.Conv2d(1, 4, 3).cuda(), nn.Conv2d(1, 4, 3).cuda()
data = [torch.rand(1, 1, 8, 8, device="cuda") for _ in range(3)]
loss = lambda model, x: model(x).square().sum()
from filterattr.jobs.distributed import ProcessGroup
ranks = ProcessGroup.joined()
ranks.size = 2  # makes it really send; the group of one answers for both
sent = ranks.from_rank(0, torch.arange(3.0))
assert sent.device.type == "cpu" and sent.tolist() == [0, 1, 2]
alone = FilterAttributor(base).attribute(base, target, loss, data)
shared = FilterAttributor(base).attribute(base, target, loss, data, distributed=True)
torch.testing.assert_close(dict(shared.scores()), dict(alone.scores()), rtol=1e-10, atol=1e-10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
