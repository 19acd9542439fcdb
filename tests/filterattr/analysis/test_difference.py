"""Differences of checkpoints against plain arithmetic, for every type, layout, and oddity of numbers."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from filterattr import StateMismatchError, StorageError
from filterattr.analysis import CheckpointDifference, compare_checkpoints, difference
from tests.filterattr.files.test_lazy import headed, sharded


def compared(
    folder: Path, first: dict[str, Tensor], second: dict[str, Tensor], depth: int | None = None
) -> CheckpointDifference:
    torch.save(first, folder / "first.pt")
    headed(folder / "second.safetensors", second)
    return compare_checkpoints(folder / "first.pt", folder / "second.safetensors", depth=depth)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_numbers_are_those_of_plain_arithmetic(dtype: torch.dtype, tmp_path: Path) -> None:
    first = {"a": (50 * torch.rand(700, 900)).to(dtype), "b": (50 * torch.rand(3)).to(dtype)}
    second = {name: value.clone() for name, value in first.items()}
    second["a"][:, ::3] = (50 * torch.rand(700, 300)).to(dtype)
    found = compared(tmp_path, first, second)
    difference = second["a"].double() - first["a"].double()
    entries = {entry.name: entry for entry in found.entries}
    assert entries["a"].changed == pytest.approx(float((difference != 0).double().mean()), abs=1e-12)
    relative = float(difference.norm() / first["a"].double().norm())
    assert entries["a"].relative == pytest.approx(relative, rel=1e-4)
    assert entries["a"].largest == pytest.approx(float(difference.abs().max()), rel=1e-6)
    assert (entries["a"].share, entries["b"].share, entries["b"].changed) == (1.0, 0.0, 0.0)
    whole = math.sqrt(sum(float(value.double().square().sum()) for value in first.values()))
    assert found.relative == pytest.approx(float(difference.norm()) / whole, rel=1e-4)
    assert found.n_bytes == 2 * sum(value.nbytes for value in first.values())
    assert not found.is_equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("number", [255, 256, 1000, 1001, 5003])
def test_parts_and_threads_leave_no_weight_out(
    dtype: torch.dtype, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_SPAN", 1000), ("_PART", 256), ("_ROW", 32)):
        monkeypatch.setattr(difference, name, size)
    first, second = (torch.randn(number).to(dtype) for _ in range(2))
    kept = torch.rand(number) < 0.5
    second[kept] = first[kept]
    second[-1] = first[-1] + 100  # the last one counts
    states = [{"before": end[:1].clone(), "a": end, "empty": end[:0].clone()} for end in (first, second)]
    paths = [tmp_path / f"{end}.pt" for end in ("first", "second")]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    found = compare_checkpoints(*paths)
    if not dtype.is_complex:  # which safetensors lack
        headed(tmp_path / "first.safetensors", states[0])
        assert compare_checkpoints(tmp_path / "first.safetensors", paths[1]) == found  # to the bit
    numbers = [torch.view_as_real(end).double() if dtype.is_complex else end.double() for end in (first, second)]
    change = numbers[1] - numbers[0]
    (entry,) = [entry for entry in found.entries if entry.name == "a"]
    assert entry.n_weights == number
    assert entry.changed == pytest.approx(float((first != second).sum()) / number)
    assert entry.largest == pytest.approx(float(change.abs().max()), rel=1e-6)
    assert entry.relative == pytest.approx(float(change.norm() / numbers[0].norm()), rel=1e-5)


def test_a_file_that_is_cut_meanwhile_is_named_and_no_thread_stays(tmp_path: Path) -> None:
    state = {name: torch.rand(2**21) for name in "abcdef"}
    headed(tmp_path / "first.safetensors", state)
    headed(tmp_path / "second.safetensors", state)
    before = threading.active_count()

    def cut(done: int, _: int | None) -> None:
        if done == 1:
            os.truncate(tmp_path / "second.safetensors", 5 * 2**23)

    with pytest.raises(StorageError, match=r"second\.safetensors' was cut while it was read"):
        compare_checkpoints(tmp_path / "first.safetensors", tmp_path / "second.safetensors", progress=cut)
    assert threading.active_count() == before


def test_infinities_and_nan_are_values_like_others(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    first = {"a": torch.tensor([nan, inf, -0.0, 1.0, nan, inf]), "b": torch.tensor([1e30, 0.0])}
    second = {"a": torch.tensor([nan, inf, 0.0, 1.5, 2.0, -inf]), "b": torch.tensor([2e30, 0.0])}
    entries = {entry.name: entry for entry in compared(tmp_path, first, second).entries}
    assert entries["a"].changed == 3 / 6
    assert entries["a"].largest == inf
    assert entries["a"].relative == 0.5
    assert entries["b"].relative == pytest.approx(1.0)
    assert compared(tmp_path, {"a": first["a"]}, {"a": first["a"]}).is_equal


def test_changes_too_small_to_be_squared_are_seen(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": torch.zeros(4)}, {"a": torch.tensor([0.0, 1e-30, 0.0, 0.0])})
    assert found.entries[0].changed == 0.25
    assert found.entries[0].largest == pytest.approx(1e-30)
    assert not found.is_equal


def test_types_may_differ(tmp_path: Path) -> None:
    values = torch.rand(1000)
    found = compared(tmp_path, {"a": values}, {"a": values.bfloat16()})
    expected = float((values.bfloat16().float() - values).norm() / values.norm())
    assert found.entries[0].relative == pytest.approx(expected, rel=1e-4)


def test_what_begins_alike_can_be_put_together(tmp_path: Path) -> None:
    first = {f"layers.{layer}.{name}": torch.ones(4) for layer in range(2) for name in ("weight", "bias")}
    second = {name: value + (1 if name.startswith("layers.1") else 0) for name, value in first.items()}
    found = compared(tmp_path, first, second, depth=2)
    assert [(entry.name, entry.n_weights, entry.changed, entry.share) for entry in found.entries] == [
        ("layers.1", 8, 1.0, 1.0),
        ("layers.0", 8, 0.0, 0.0),
    ]


def test_what_only_one_has_is_listed(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        {"a": torch.ones(1), "first": torch.ones(2), "b": torch.ones(2, 3)},
        {"a": torch.ones(1), "second": torch.ones(2), "b": torch.ones(3, 2)},
    )
    assert (found.only_first, found.only_second) == (("first",), ("second",))
    assert found.other_shapes == {"b": "(2, 3) and (3, 2)"}
    assert not found.is_equal
    with pytest.raises(StateMismatchError, match="must have parameters in common"):
        compared(tmp_path, {"a": torch.ones(1)}, {"b": torch.ones(1)})


def test_shards_are_one_checkpoint_and_results_can_be_kept(tmp_path: Path) -> None:
    state = {name: torch.rand(5, 5) for name in "abc"}
    sharded(tmp_path / "folder", state)
    headed(tmp_path / "file.safetensors", {name: value * 2 for name, value in state.items()})
    found = compare_checkpoints(tmp_path / "folder", tmp_path / "file.safetensors")
    assert found.relative == pytest.approx(1.0)
    found.save(tmp_path / "found.json")
    assert CheckpointDifference.load(tmp_path / "found.json") == found
    steps: list[tuple[int, int | None]] = []
    compare_checkpoints(
        tmp_path / "folder", tmp_path / "folder", progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
