"""A lack of memory passes through as PyTorch's own error, with a note that says what would help."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, memory
from filterattr.memory import available_bytes
from tests.reliability.fingerprint import Fingerprint

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError("numpy could not"),
]


def failing(error: BaseException, limit: int):
    def loss(model: nn.Module, sample: dict[str, Tensor]) -> Tensor:
        output = model(sample["image"])
        if len(sample["image"]) > limit:
            raise error
        return output.float().square().sum()

    return loss


def sample(rows: int) -> dict[str, Tensor]:
    return {"image": torch.rand(rows, 1, 8, 8), "mask": torch.rand(8, 8)}


@pytest.mark.parametrize("aggregate", ["per_sample", "pooled"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_note_names_sample_place_and_what_helps(error: BaseException, aggregate: str) -> None:
    base, target, data = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), [sample(4), sample(12)]
    before = Fingerprint(base)
    error = type(error)(*error.args)
    with pytest.raises(type(error)) as caught:
        FilterAttributor(base).attribute(base, target, failing(error, 4), data, n_steps=2, aggregate=aggregate)
    assert caught.value is error
    (note,) = error.__notes__
    assert "one pass at t = " in note
    assert "(sample 1), which holds tensors of shapes (12, 1, 8, 8), (8, 8)." in note
    assert "make the sample smaller (smaller crops, fewer rows)" in note
    assert "the largest sample that fitted in this call has shapes (4, 1, 8, 8), (8, 8)" in note
    assert 'precision="bf16" halves the activations' in note
    assert before.changes(base) == []


def test_advice_that_does_not_apply_is_not_given() -> None:
    base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        FilterAttributor(base).attribute(base, target, failing(error, 0), [sample(1)], precision="bf16")
    (note,) = error.__notes__
    assert "t = 0 (sample 0)" in note
    assert not any(text in note for text in ("fitted", "bf16"))


def test_other_errors_get_no_note() -> None:
    base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError, match="mine"):
        FilterAttributor(base).attribute(base, target, failing(error, 0), [sample(1)])
    assert not hasattr(error, "__notes__")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_lack_of_memory_on_cuda_leaves_the_model_as_it_was() -> None:
    base, target = nn.Conv2d(1, 2, 3).cuda(), nn.Conv2d(1, 2, 3).cuda()
    images = [torch.rand(2, 1, 8, 8).cuda()]
    before = Fingerprint(base)

    def loss(model: nn.Module, image: Tensor) -> Tensor:
        return model(image).square().sum() + torch.empty(2**46, device="cuda").sum()

    with pytest.raises(torch.OutOfMemoryError) as caught:
        FilterAttributor(base).attribute(base, target, loss, images)
    assert "(sample 0), which holds tensors of shape (2, 1, 8, 8)." in caught.value.__notes__[0]
    assert before.changes(base) == []


def test_the_loss_is_not_run_again_and_what_the_failed_pass_held_is_given_back() -> None:
    base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    held: list[weakref.ref[Tensor]] = []

    def loss(model: nn.Module, sample: dict[str, Tensor]) -> Tensor:
        output = model(sample["image"])
        held.append(weakref.ref(output))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        FilterAttributor(base).attribute(base, target, loss, [sample(5)])
    assert caught.value.__notes__
    assert [ref() for ref in held] == [None]


class TestAvailableBytes:
    def test_the_processor_has_some(self) -> None:
        assert (available_bytes(torch.device("cpu")) or 0) > 2**20

    def test_the_smaller_of_system_and_container_counts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
        monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "_GROUP", tmp_path)
        assert available_bytes(torch.device("cpu")) == 1000 * 1024
        (tmp_path / "memory.max").write_text("50000\n")
        (tmp_path / "memory.current").write_text("20000\n")
        assert available_bytes(torch.device("cpu")) == 30000
        (tmp_path / "memory.max").write_text("max\n")
        assert available_bytes(torch.device("cpu")) == 1000 * 1024

    def test_other_devices_do_not_tell(self) -> None:
        assert available_bytes(torch.device("meta")) is None


LIMITED = """
import resource, sys, warnings
from pathlib import Path
import torch
from torch import nn
from filterattr import FilterAttributor

torch.set_num_threads(1)
torch.manual_seed(0)
base, target = (nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Conv2d(8, 1, 3)) for _ in range(2))
loss = lambda model, image: model(image).square().sum()
attribute = lambda data, **more: FilterAttributor(base).attribute(base, target, loss, data, n_steps=2, **more)
attribute(torch.rand(4, 1, 1, 8, 8), internal_batch_size=2)  # what is loaded at first use
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 130 * 2**20, -1))
try:
    attribute([torch.rand(64, 1, 128, 128)])
except RuntimeError as error:
    (note,) = error.__notes__
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = attribute(torch.rand(64, 1, 1, 128, 128), internal_batch_size=64)
named = 'holds tensors of shape (64, 1, 128, 128)' in note
print(named, found.n_samples, *(str(one.message) for one in seen if "going on" in str(one.message)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux does")
def test_a_real_lack_of_memory_on_the_processor() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    named, count, warning = done.stdout.strip().split(" ", 2)
    assert named == "True"
    assert int(count) == 64
    assert 1 < int(warning.partition("going on with internal_batch_size=")[2].partition(".")[0]) < 64
