"""checkpoint=: a killed job goes on where it stopped and ends with the same bits; no other job's work is mixed in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError, StorageError
from filterattr.files.fingerprint import fingerprint
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.jobs.sample_loop import SampleSums

ROOT = Path(__file__).parents[3]

# dropout in train mode and three nodes are not about precision
pytestmark = pytest.mark.filterwarnings(
    "ignore:the attributions should sum:filterattr.errors.FilterAttrWarning",
    "ignore:.* in train mode:filterattr.errors.FilterAttrWarning",
)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(3, 1, 3)
    return nn.Sequential(*layers).requires_grad_(False)


class Job:
    """A small job whose calls of the loss are counted, and which can be made to fail."""

    def __init__(self, folder: Path) -> None:
        self.base, self.target = network(1), network(2)
        self.first_weight = self.base[0].weight.clone()
        self.path = folder / "job.safetensors"
        self.calls: list[int] = []
        self.fail_at: int | None = None
        self.data = [(index, torch.rand(1, 1, 6, 6)) for index in range(5)]

    def loss(self, model: nn.Module, sample: tuple[int, torch.Tensor]) -> torch.Tensor:
        if sample[0] == self.fail_at:
            raise ConnectionError("the power is gone")
        self.calls.append(sample[0])
        return model(sample[1]).square().sum()

    def loss_that_agrees_at_base(self, model: nn.Module, sample: tuple[int, torch.Tensor]) -> torch.Tensor:
        """Another loss, which nobody could tell from `loss` at base."""
        change = model[0].weight.detach() - self.first_weight
        return self.loss(model, sample) * (1 + 0.01 * change.abs().sum())

    def run(self, *, kept: bool = True, unit: str = "kernel", **changes) -> FilterAttribution:
        arguments = {"base": self.base, "target": self.target, "loss": self.loss, "data": self.data, "n_steps": 3}
        arguments |= {"checkpoint": self.path if kept else None, **changes}
        self.calls.clear()
        return FilterAttributor(self.base, unit=unit).attribute(**arguments)

    def break_off(self, at: int) -> None:
        self.fail_at = at
        with pytest.raises(ConnectionError, match=r"the power is gone"):
            self.run()
        self.fail_at = None


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(tmp_path)


def content(attribution: FilterAttribution, folder: Path) -> bytes:
    attribution.save(folder / "content")
    return (folder / "content").read_bytes()


class TestGoingOn:
    @pytest.mark.parametrize("at", range(5))
    def test_a_broken_job_goes_on_with_the_same_bits(self, job, tmp_path, at):
        torch.manual_seed(5)
        whole = content(job.run(kept=False), tmp_path)
        torch.manual_seed(5)
        job.break_off(at)
        torch.manual_seed(6)  # the randomness is that of the first start
        assert content(job.run(), tmp_path) == whole
        passes = [index for index in job.calls if index >= at]
        assert sorted(set(passes)) == list(range(at, 5))
        assert len(job.calls) == (5 - at) * 5 + (2 if at else 1)  # ends and nodes of the rest; the first losses again

    def test_the_random_state_of_the_caller_is_left_alone(self, job):
        job.break_off(3)
        before = torch.get_rng_state()
        job.run()
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_finished_job_returns_at_once(self, job, tmp_path):
        first = content(job.run(), tmp_path)
        file = job.path.read_bytes()
        assert content(job.run(), tmp_path) == first
        assert len(job.calls) == 2
        assert job.path.read_bytes() == file

    def test_more_data_is_added_to_a_finished_job(self, job, tmp_path):
        torch.manual_seed(5)
        whole = content(job.run(kept=False), tmp_path)
        torch.manual_seed(5)
        job.run(data=job.data[:2])
        assert content(job.run(), tmp_path) == whole

    def test_one_evaluation_without_data(self, job, tmp_path):
        calls = []

        def loss(model: nn.Module) -> torch.Tensor:
            calls.append(1)
            return model(job.data[0][1]).square().sum()

        first = content(job.run(loss=loss, data=None), tmp_path)
        assert content(job.run(loss=loss, data=None), tmp_path) == first
        assert len(calls) == (5 + 1) + 2  # with a second look at base; then one look at each end

    def test_shuffled_data_comes_in_the_order_of_the_first_start(self, job, tmp_path):
        loader = DataLoader(TensorDataset(torch.arange(6), torch.rand(6, 1, 6, 6)), shuffle=True)

        def loss(model: nn.Module, sample: list[torch.Tensor]) -> torch.Tensor:
            job.calls.append(int(sample[0]))
            if len(set(job.calls)) > limit:
                raise ConnectionError("the power is gone")
            return model(sample[1]).square().sum()

        limit = 6
        torch.manual_seed(5)
        whole = content(job.run(kept=False, loss=loss, data=loader), tmp_path)
        limit = 3
        torch.manual_seed(5)
        with pytest.raises(ConnectionError, match=r"the power is gone"):
            job.run(loss=loss, data=loader)
        limit = 6
        torch.manual_seed(6)
        assert content(job.run(loss=loss, data=loader), tmp_path) == whole

    def test_progress_counts_what_was_done_before(self, job):
        job.break_off(3)
        seen = []
        job.run(progress=lambda done, total: seen.append((done, total)))
        assert seen == [(done, 15) for done in range(1, 16)]

    def test_the_model_is_clean_after_every_refusal(self, job):
        job.break_off(2)
        before = {name: (id(value), value.clone()) for name, value in job.base.named_parameters()}
        with pytest.raises(StorageError, match=r"another job"):
            job.run(n_steps=4)
        for name, value in job.base.named_parameters():
            assert id(value) == before[name][0]
            torch.testing.assert_close(value, before[name][1], rtol=0, atol=0)


class TestOtherJobs:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda job: {"base": network(3)}, "another base"),
            (lambda job: {"target": network(3)}, "another target"),
            (lambda job: {"target": job.base, "base": job.target}, "another base, another target"),
            (lambda job: {"method": "riemann_middle"}, "method gausslegendre, here riemann_middle"),
            (lambda job: {"n_steps": 4}, "n_steps 3, here 4"),
            (lambda job: {"unit": "filter"}, "another unit or selection of parameters"),
            (lambda job: {"loss": lambda *given: 2 * job.loss(*given)}, "the loss of its first sample at base was"),
            (lambda job: {"loss": job.loss_that_agrees_at_base}, "the loss of its first sample at target was"),
            (lambda job: {"data": job.data[::-1]}, "sample 0 is another one than it was; .* in the same order"),
            (lambda job: {"data": [*job.data[:1], *job.data[2:]]}, "sample 1 is another one than it was"),
            (lambda job: {"data": job.data[:2]}, "it holds 3 samples, data has only 2"),
            (lambda job: {"data": []}, "it holds 3 samples, data has only 0"),
            (
                lambda job: {"data": None, "loss": lambda model: 0 * model[0].bias.sum()},
                "kind of data samples, here no",
            ),
        ],
    )
    def test_are_refused_with_what_differs_and_keep_their_file(self, job, change, reason):
        job.break_off(3)
        file = job.path.read_bytes()
        with pytest.raises(
            StorageError, match=rf"job\.safetensors' belongs to another job: .*{reason}.* or delete this"
        ):
            job.run(**change(job))
        assert job.path.read_bytes() == file
        assert job.run().n_samples == 5

    def test_other_buffers_and_train_flags_are_refused(self, job):
        job.break_off(3)
        job.base[1].eval()
        with pytest.raises(StorageError, match=r"another model"):
            job.run()
        job.base[1].train()
        job.target[1].running_mean.add_(1)
        job.base[1].running_mean.add_(1)
        with pytest.raises(StorageError, match=r"another set of buffers"):
            job.run()

    def test_autocast_is_part_of_the_job(self, job):
        job.break_off(3)
        with torch.autocast("cpu"), pytest.raises(StorageError, match=r"autocast .*None.*, here .*bfloat16"):
            job.run()

    def test_a_sample_changed_in_one_bit_is_refused(self, job):
        job.break_off(3)
        changed = job.data[1][1].clone()
        changed.view(-1)[7] = torch.nextafter(changed.view(-1)[7], torch.tensor(2.0))
        with pytest.raises(StorageError, match=r"sample 1 is another one"):
            job.run(data=[job.data[0], (1, changed), *job.data[2:]])

    def test_a_job_that_has_done_nothing_gives_its_place_up(self, job):
        job.break_off(0)
        assert job.path.exists()
        assert job.run(n_steps=4).n_steps == 4

    def test_another_number_of_threads_is_a_warning(self, job):
        job.break_off(3)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            with pytest.warns(
                FilterAttrWarning, match=rf"begun with threads {threads}, now {threads + 1}; .* last digits"
            ) as seen:
                assert job.run().n_samples == 5
            assert seen[0].filename == __file__
        finally:
            torch.set_num_threads(threads)


class TestFiles:
    def test_a_damaged_file_is_refused_and_left_alone(self, job):
        job.break_off(3)
        damaged = bytearray(job.path.read_bytes())
        damaged[-5] ^= 1
        job.path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"job\.safetensors' is damaged"):
            job.run()
        assert job.path.read_bytes() == damaged

    def test_a_result_is_no_checkpoint(self, job):
        job.run(kept=False).save(job.path)
        with pytest.raises(StorageError, match=r"must be a checkpoint file of the format"):
            job.run()

    def test_made_up_content_is_refused(self, job):
        job.break_off(3)
        tensors, description = read_tensors(job.path, "checkpoint")
        numbers = description["numbers"]
        for change in ({"random_state": torch.zeros(3)}, {"samples": torch.zeros(3, 8)}, {"losses": torch.zeros(5)}):
            write_tensors(job.path, "checkpoint", {**tensors, **change}, description)
            with pytest.raises(StorageError, match=r"not a complete checkpoint|stored sums must hold every quantity"):
                job.run()
        for change in ({"first_losses": 3}, {"first_losses": ["a", "b"]}, {"n_samples": "3"}, {"n_samples": 10**9}):
            write_tensors(job.path, "checkpoint", tensors, {**description, "numbers": {**numbers, **change}})
            with pytest.raises(StorageError, match=r"not a complete checkpoint|stored sums must hold every quantity"):
                job.run()
        write_tensors(job.path, "checkpoint", tensors, {"identity": 3})
        with pytest.raises(StorageError, match=r"not a complete checkpoint"):
            job.run()

    def test_a_place_that_cannot_be_written_shows_before_any_work(self, job, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=r"file/job' could not be written"):
            job.run(checkpoint=tmp_path / "file" / "job")
        assert not job.calls
        with pytest.raises(SettingError, match=r"checkpoint must be a path; got int"):
            job.run(checkpoint=3)

    def test_samples_that_cannot_be_compared_are_refused_by_their_place(self, job):
        data = [{"x": torch.rand(1, 1, 6, 6), "meta": [1, {"when": object()}]}]
        with pytest.raises(SettingError, match=r"sample 0\['meta'\]\[1\]\['when'\] is an object, whose content"):
            job.run(data=data)
        loss = lambda model, sample: model(sample["x"]).square().sum()  # noqa: E731
        assert job.run(kept=False, data=data, loss=loss).n_samples == 1


@dataclass
class Picture:
    pixels: np.ndarray
    name: str


Pair = namedtuple("Pair", "degraded reference")


class TestDigests:
    def test_equal_content_is_equal_and_other_content_is_not(self):
        one, other = Picture(np.ones(1), "a"), Picture(np.ones(1), "b")
        values = [
            None, True, 1, 1.0, -0.0, 0.0, float("nan"), 1j, "1", b"1", "", b"", [], (), {}, [1], (1,), {"a": 1},
            [[1], []], [[], [1]], ["ab", "c"], ["a", "bc"], torch.tensor(1), torch.tensor(1.0), torch.tensor([1.0]),
            torch.tensor(-0.0), torch.tensor(0.0), torch.zeros(0, 2), torch.zeros(2, 0), np.float32(1), np.float64(1),
            np.array([1.0]), np.zeros((0, 2)), np.array(["a"]), np.array(["b"]), Path("a"), "a", one,
            other, {1: "a"}, Pair(1, 2), (1, 2), torch.float32, torch.Size([1]), bytearray(b"12"),
            torch.arange(4).reshape(2, 2), torch.arange(4).reshape(2, 2).t(), torch.tensor([1 + 1j]),
            torch.tensor([1 + 1j]).conj(), np.arange(4).reshape(2, 2).T, np.arange(4).reshape(2, 2),
        ]  # fmt: skip
        digests = [fingerprint(value) for value in values]
        assert len(set(digests)) == len(digests)
        assert digests == [fingerprint(value) for value in values]

    def test_layout_does_not_count(self):
        table = torch.arange(6.0).reshape(2, 3)
        assert fingerprint(table.t().contiguous().t()) == fingerprint(table)
        assert fingerprint(np.asfortranarray(table.numpy())) == fingerprint(table.numpy())

    def test_pictures_count_as_arrays(self):
        image = pytest.importorskip("PIL.Image")
        black, gray = image.new("L", (2, 2)), image.new("L", (2, 2), 7)
        assert fingerprint(black) == fingerprint(image.new("L", (2, 2))) != fingerprint(gray)

    @pytest.mark.parametrize(
        "value",
        [{1, 2}, iter([1]), lambda: 1, np.array([object()]), torch.eye(2).to_sparse(), torch.empty(1, device="meta")],
    )
    def test_what_cannot_be_compared_is_refused(self, value):
        with pytest.raises(SettingError, match=r"the value\[0\] is an? .*, whose content cannot be compared"):
            fingerprint([value])

    def test_what_holds_itself_is_refused(self):
        loop: list[object] = []
        loop.append(loop)
        with pytest.raises(SettingError, match=r"nested too deeply, or holds itself"):
            fingerprint(loop)


# A process that has loaded everything forks one child after the other and kills it; only then 25 kills take seconds.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from filterattr import FilterAttributor
from filterattr.files.safetensors import read_tensors
folder, n_kills, n_samples = Path(sys.argv[1]), int(sys.argv[2]), 30
source = random.Random(n_kills)

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 24, 3), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(24, 1, 3)).requires_grad_(False)

def job(seed, checkpoint):
    base, target = network(1), network(2)
    torch.manual_seed(seed)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def loss(model, sample):
        if checkpoint == folder / "job":
            os.write(log, b"x")
        return model(sample[1]).square().sum()
    def data():
        for index in range(n_samples):
            yield index, torch.rand(1, 1, 16, 16)
    return FilterAttributor(base).attribute(base, target, loss, data(), n_steps=4, checkpoint=checkpoint)

def child(work):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work(); code = 0
        finally:
            os._exit(code)
    return process

def whole():
    start = time.perf_counter()
    job(5, None).save(folder / "whole")
    job(5, folder / "timed")
    (folder / "time").write_text(str(time.perf_counter() - start))

os.waitpid(child(whole), 0)
longest = float((folder / "time").read_text())
checkpoint, kills, starts, done, finished = folder / "job", 0, 0, 0, False
while not finished:
    starts += 1
    process = child(lambda: job(5 if not done else 100 + starts, checkpoint).save(folder / "killed"))
    if kills < n_kills:
        time.sleep(source.uniform(0, longest / max(4, n_kills / 3)))
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    finished = os.WIFEXITED(status)
    assert not finished or os.WEXITSTATUS(status) == 0, "a child failed"
    kills += not finished
    if checkpoint.exists():
        now = read_tensors(checkpoint, "checkpoint")[1]["numbers"]["n_samples"]
        assert now >= done, (now, done)
        done = now
parts = [path.name for path in folder.iterdir() if path.suffix == ".part"]
equal = (folder / "whole").read_bytes() == (folder / "killed").read_bytes()
print(kills, (folder / "log").stat().st_size, done, len(parts), equal)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("n_kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_bit_and_lose_at_most_one_sample_each(tmp_path, n_kills):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(n_kills)],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kills, calls, samples, parts, equal = done.stdout.split()
    assert (samples, equal) == ("30", "True")
    assert int(kills) == n_kills
    places = 4 + 2
    assert int(calls) <= 30 * places + n_kills * (places + 2)  # a kill costs one sample, and a look at the first losses
    assert int(parts) <= 1  # a killed write's file goes at the next write of any later process


def test_sums_that_older_files_lack_are_unknown_and_the_others_go_on() -> None:
    old = SampleSums({"losses": torch.empty(2)})
    old.add([("losses", torch.tensor([1.0, 2.0]))])
    new = SampleSums({"losses": torch.empty(2), "unscored": torch.empty(1)}, later=["unscored"])
    new.load(old.tensors, old.count)
    new.add([("losses", torch.tensor([1.0, 2.0])), ("unscored", torch.ones(1))])
    assert new.tensors["losses"].tolist() == [2.0, 4.0]
    assert new.tensors["unscored"].isnan().all()
    with pytest.raises(StorageError, match="without 'unscored'"):
        new.load({**old.tensors, "unscored": torch.ones(2)}, 1)
    new.load(old.tensors, 0)  # a file that was begun, and holds nothing yet
    assert new.tensors["unscored"].tolist() == [0.0]
