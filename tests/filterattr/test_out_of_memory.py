"""A lack of memory passes through as PyTorch's own error, with a note that says what would help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor
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
def test_the_note_names_sample_place_and_what_fits(error: BaseException, aggregate: str) -> None:
    base, target, data = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), [sample(4), sample(12)]
    before = Fingerprint(base)
    error = type(error)(*error.args)
    with pytest.raises(type(error)) as caught:
        FilterAttributor(base).attribute(base, target, failing(error, 4), data, n_steps=2, aggregate=aggregate)
    assert caught.value is error
    (note,) = error.__notes__
    assert "one pass at t = " in note
    assert "(sample 1), which holds tensors of shapes (12, 1, 8, 8), (8, 8)." in note
    assert "a first dimension of at most 4 (its first dimension is 12; the first 4 have just fitted)" in note
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
    assert not any(text in note for text in ("first dimension", "fitted", "bf16"))


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
    assert "not even the first row of the sample fits by itself (its first dimension is 2)" in caught.value.__notes__[0]
    assert before.changes(base) == []
