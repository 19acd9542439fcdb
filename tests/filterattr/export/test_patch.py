"""Base and patch make the blend, bit for bit; another base is refused; the file is small and others can read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    FilterAttributor,
    FilterScores,
    FilterSelection,
    Group,
    ScoredParameter,
    StateMismatchError,
    StorageError,
    Unit,
    blend,
    load_state,
)
from filterattr.export import SparseWeights, apply_patch, export_patch, read_patch
from filterattr.files import write_tensors
from filterattr.units.groups import UnitLike

WEIGHTS = Unit("... -> ...")


def drawn(network: nn.Module, share: float, unit: UnitLike = "kernel", select: str | None = "*") -> FilterSelection:
    """Units at random."""
    generator = torch.Generator().manual_seed(3)
    parameters = FilterAttributor(network, unit=unit, select=select).scored_parameters()
    shapes = {one.key(name): one.units_shape for name, one in parameters.items()}
    scores = FilterScores({name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}, parameters)
    return scores.top(share)


def chosen(name: str, marks: list[bool] | Tensor) -> FilterSelection:
    marks = torch.as_tensor(marks)
    return FilterSelection({name: marks}, {name: ScoredParameter(WEIGHTS, tuple(marks.shape))})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 3, groups=2), nn.Linear(5, 7))


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype
        and torch.equal(
            first[name].contiguous().reshape(-1).view(torch.uint8),
            second[name].contiguous().reshape(-1).view(torch.uint8),
        )
        for name in first
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unit", ["kernel", "filter", "weight", "layer"])
def test_base_and_patch_are_the_blend(tmp_path: Path, dtype: torch.dtype, unit: str) -> None:
    base, target = network().to(dtype), network().to(dtype)
    selection = drawn(base, 0.3, unit)
    assert 0 < selection.count < selection.n_units
    export_patch(selection, base, target, tmp_path / "patch.safetensors")
    patched = apply_patch(base, tmp_path / "patch.safetensors")
    assert same_bits(patched, blend(base, target, selection))
    assert not same_bits(patched, dict(base.state_dict()))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float8_e5m2, torch.float8_e4m3fn])
def test_it_is_the_blend_for_rare_types(tmp_path: Path, dtype: torch.dtype) -> None:
    base, target = ({"w": torch.randn(5, 6).to(dtype)} for _ in range(2))
    selection = chosen("w", torch.rand(5, 6) < 0.5)
    export_patch(selection, base, target, tmp_path / "p")
    assert same_bits(apply_patch(base, tmp_path / "p"), blend(base, target, selection))


def test_values_that_comparisons_get_wrong_are_told_apart(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    base = {"w": torch.tensor([0.0, nan, nan, inf, 1.0])}
    target = {"w": torch.tensor([-0.0, nan, 2.0, inf, 1.0])}
    patch = export_patch(chosen("w", [True] * 5), base, target, tmp_path / "p")
    assert patch.weights[0].indices.tolist() == [0, 2]  # -0 is another value than 0; the same NaN is none
    assert same_bits(apply_patch(base, patch), target)


def test_the_type_is_that_of_base_as_in_a_blend(tmp_path: Path) -> None:
    base, target = {"w": torch.randn(50).bfloat16()}, {"w": torch.randn(50)}
    selection = chosen("w", [True] * 50)
    patch = export_patch(selection, base, target, tmp_path / "p")
    assert patch.weights[0].values.dtype == torch.bfloat16
    assert same_bits(apply_patch(base, patch), blend(base, target, selection))


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_layouts_in_memory_do_not_matter(tmp_path: Path, layout: str) -> None:
    base, target = ({"w": torch.randn(3, 4, 5, 6)} for _ in range(2))
    selection = chosen("w", torch.rand(3, 4, 5, 6) < 0.3)
    expected = blend(base, target, selection)
    other = {
        "channels_last": base["w"].to(memory_format=torch.channels_last),
        "transposed": base["w"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }[layout]
    export_patch(selection, {"w": other}, target, tmp_path / "p")
    torch.testing.assert_close(apply_patch(base, tmp_path / "p"), expected, rtol=0, atol=0)
    torch.testing.assert_close(apply_patch({"w": other}, tmp_path / "p"), expected, rtol=0, atol=0)


def test_units_over_several_parameters(tmp_path: Path) -> None:
    base, target = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    group = Group({"0.weight": "h i -> h", "0.bias": "h -> h", "1.weight": "o h -> h"})
    selection = drawn(base, 0.5, {"": group}, None)
    assert selection.count == 3
    patch = export_patch(selection, base, target, tmp_path / "p")
    assert {part.name for part in patch.weights} == {"0.weight", "0.bias", "1.weight"}
    assert same_bits(apply_patch(base, patch), blend(base, target, selection))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_stay_tied_also_in_a_file_that_holds_them_twice(tmp_path: Path) -> None:
    base, target = Tied(), Tied()
    selection = chosen("embed.weight", torch.rand(5, 3) < 0.5)
    export_patch(selection, base, target, tmp_path / "p")
    expected = blend(base, target, selection)
    patched = apply_patch(base, tmp_path / "p")
    assert patched["embed.weight"].data_ptr() == patched["head.weight"].data_ptr()
    assert same_bits(patched, expected)
    copies = {name: value.clone() for name, value in base.state_dict().items()}
    assert same_bits(apply_patch(copies, tmp_path / "p"), expected)


def test_names_of_trainers_are_looked_through(tmp_path: Path) -> None:
    base, target = nn.Linear(3, 3), nn.Linear(3, 3)
    selection = chosen("weight", torch.rand(3, 3) < 0.5)
    export_patch(selection, base, {"params_ema": target.state_dict()}, tmp_path / "p")
    wrapped = {"state_dict": {f"module.{name}": value for name, value in base.state_dict().items()}}
    assert same_bits(apply_patch(wrapped, tmp_path / "p"), blend(base, target, selection))


def test_nothing_of_the_callers_is_written_to(tmp_path: Path) -> None:
    base, target = network(), network()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    patch = export_patch(drawn(base, 0.5), base, target, tmp_path / "p")
    patched = apply_patch(base, patch)
    for value in patched.values():
        value.zero_()
    assert same_bits(dict(base.state_dict()), before)
    assert not same_bits(apply_patch(base, patch), patched)


def changed(base: nn.Module, how: str) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in base.state_dict().items()}
    if how == "bit":
        state["0.bias"].view(torch.int32)[3] += 1
    elif how == "type":
        state["3.weight"] = state["3.weight"].double()
    elif how == "missing":
        del state["1.running_mean"]
    elif how == "unknown":
        state["5.weight"] = torch.zeros(2)
    else:
        state["0.weight"] = state["0.weight"].reshape(3, 8, 3, 3)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bit", r"'0\.bias' hold other values"),
        ("type", r"'3\.weight' hold other values, or are of another type"),
        ("missing", r"'1\.running_mean' are missing"),
        ("unknown", r"'5\.weight' were not in it"),
        ("shape", r"'0\.weight' hold other values"),
    ],
)
def test_another_base_is_refused_by_name(tmp_path: Path, how: str, message: str) -> None:
    base, target = network(), network()
    patch = export_patch(drawn(base, 0.1), base, target, tmp_path / "p")
    with pytest.raises(StateMismatchError, match=f"base must be the one that the patch was made from: {message}"):
        apply_patch(changed(base, how), patch)


def test_selected_parameters_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"base has no 'w'.*target has 'w' of shape"):
        export_patch(chosen("w", [True]), {"v": torch.ones(1)}, {"w": torch.ones(2)}, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["kernel", "weight", "filter"])
def test_one_per_cent_takes_at_most_three_and_a_half_per_cent_of_the_bytes(
    tmp_path: Path, dtype: torch.dtype, unit: str
) -> None:
    layers = [nn.Conv2d(128, 128, 3) for _ in range(5)]
    base, target = nn.Sequential(*layers).to(dtype), nn.Sequential(*(nn.Conv2d(128, 128, 3) for _ in layers)).to(dtype)
    selection = drawn(base, 0.01, unit)
    export_patch(selection, base, target, tmp_path / "p")
    whole = sum(value.nbytes for value in base.state_dict().values())
    assert (tmp_path / "p").stat().st_size <= 0.035 * whole


def test_any_safetensors_tool_reads_it_and_inference_servers_take_the_entries(tmp_path: Path) -> None:
    """The fields and rules of vLLM's checkpoint-coordinate sparse updates: see docs/howto/ship_a_patch.md."""
    safetensors = pytest.importorskip("safetensors.torch")
    base, target = {"w": torch.zeros(3, 2)}, {"w": torch.arange(6.0).reshape(3, 2)}
    marks = torch.tensor([[False, True], [False, False], [True, True]])
    export_patch(chosen("w", marks), base, target, tmp_path / "p.safetensors")
    held = safetensors.load_file(tmp_path / "p.safetensors")
    assert held["w.indices"].tolist() == [1, 4, 5]
    assert held["w.indices"].dtype == torch.int32
    assert held["w.values"].tolist() == [1.0, 4.0, 5.0]
    (part,) = read_patch(tmp_path / "p.safetensors").weights
    assert SparseWeights._fields == ("name", "indices", "values", "full_shape")
    assert part.full_shape == (3, 2)
    assert part.indices.is_contiguous()
    dense = torch.full(part.full_shape, torch.nan).flatten().index_copy_(0, part.indices.long(), part.values)
    received = torch.where(dense.isnan(), base["w"].flatten(), dense).reshape(3, 2)  # as the loader there merges it
    assert same_bits({"w": received}, blend(base, target, chosen("w", marks)))


def test_an_empty_patch_changes_nothing(tmp_path: Path) -> None:
    base = {"w": torch.ones(3)}
    export_patch(chosen("w", [False] * 3), base, {"w": torch.zeros(3)}, tmp_path / "p")
    assert same_bits(apply_patch(base, tmp_path / "p"), base)


DESCRIPTION = {"shapes": {"w": [4]}, "aliases": {}, "base": {"w": "0" * 16}}


@pytest.mark.parametrize(
    ("places", "description"),
    [
        (torch.tensor([1, 4]), DESCRIPTION),
        (torch.tensor([-1, 2]), DESCRIPTION),
        (torch.tensor([2, 1]), DESCRIPTION),
        (torch.tensor([1, 1]), DESCRIPTION),
        (torch.tensor([1]), DESCRIPTION),
        (torch.tensor([1.0, 2.0]), DESCRIPTION),
        (torch.tensor([1, 2]), DESCRIPTION | {"base": {}}),
        (torch.tensor([1, 2]), DESCRIPTION | {"base": {"w": 3}}),
        (torch.tensor([1, 2]), DESCRIPTION | {"aliases": {"w": ["v"]}}),
        (torch.tensor([1, 2]), DESCRIPTION | {"shapes": {"v": [4]}}),
        (torch.tensor([1, 2]), {}),
    ],
)
def test_what_was_made_up_is_refused(tmp_path: Path, places: Tensor, description: dict[str, object]) -> None:
    tensors = {"w.indices": places, "w.values": torch.ones(2)}
    write_tensors(tmp_path / "p", "patch", tensors, json.loads(json.dumps(description)))
    with pytest.raises(StorageError, match="is not a complete patch"):
        read_patch(tmp_path / "p")


def test_damage_and_other_files_are_refused(tmp_path: Path) -> None:
    export_patch(chosen("w", [True]), {"w": torch.zeros(1)}, {"w": torch.ones(1)}, tmp_path / "p")
    content = bytearray((tmp_path / "p").read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        apply_patch({"w": torch.zeros(1)}, tmp_path / "damaged")
    chosen("w", [True]).save(tmp_path / "selection")
    with pytest.raises(StorageError, match="must be a patch file"):
        read_patch(tmp_path / "selection")


def test_it_fits_files_that_were_loaded(tmp_path: Path) -> None:
    base, target = network(), network()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save({"params": target.state_dict()}, tmp_path / "target.pth")
    ends = load_state(tmp_path / "base.pt"), load_state(tmp_path / "target.pth")
    selection = drawn(base, 0.2)
    export_patch(selection, *ends, tmp_path / "p")
    assert same_bits(apply_patch(base, tmp_path / "p"), blend(base, target, selection))
