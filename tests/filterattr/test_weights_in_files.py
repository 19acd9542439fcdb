"""Base and target as paths: mapped into memory, read where they are used, and refused by their headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from filterattr import FilterAttributor, StateMismatchError, StorageError
from filterattr.model import fitting
from tests.memory import allocated, needs_glibc, peak_of

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")

LAYERS, WIDTH = 4, 300


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def squared_sum(model: nn.Module, sample: Tensor) -> Tensor:
    return model(sample).square().sum()


def in_one_file(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def in_a_folder(state: dict[str, Tensor], folder: Path) -> Path:
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def in_a_torch_file(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"params_ema": {f"module.{name}": value for name, value in state.items()}}, folder / "net.pth")
    return folder / "net.pth"


@pytest.mark.parametrize("keep", ["all", "signed"])
@pytest.mark.parametrize("write", [in_one_file, in_a_folder, in_a_torch_file])
def test_scores_have_the_bits_of_state_dicts(write, keep: str, tmp_path: Path) -> None:
    ends = [network().state_dict() for _ in range(2)]
    paths = []
    for number, state in enumerate(ends):
        (tmp_path / str(number)).mkdir()
        paths.append(write(state, tmp_path / str(number)))
    before = [{file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} for path in paths]
    attributor, data = FilterAttributor(network(), unit="filter"), [torch.rand(WIDTH)]
    expected = attributor.attribute(*ends, squared_sum, data, n_steps=3, keep=keep)
    found = attributor.attribute(paths[0], str(paths[1]), squared_sum, data, n_steps=3, keep=keep)
    assert torch.equal(found.scores("sum").flat(), expected.scores("sum").flat())
    assert found.cosine == expected.cosine
    for known in before:
        assert all(file.read_bytes() == content for file, content in known.items())


@pytest.mark.slow
@needs_glibc
def test_files_are_not_held(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        paths.append(in_a_folder(network().state_dict(), tmp_path / str(number)))
    attributor, data = FilterAttributor(network(), unit="filter"), [torch.rand(WIDTH)]
    call = lambda: attributor.attribute(*paths, squared_sum, data, n_steps=3, keep="signed", progress=False)  # noqa: E731
    call()
    before = allocated()
    # a point, and a layer's change, gradient and product
    assert peak_of(call) - before <= 1.9 * LAYERS * WIDTH * WIDTH * 4


def test_a_mismatch_is_found_without_a_look_at_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise AssertionError("values were read")

    monkeypatch.setattr(fitting, "_is_finite", refuse)
    monkeypatch.setattr(fitting, "_clone_like", refuse)
    state = network().state_dict()
    state["3.bias"] = torch.zeros(7)
    del state["1.weight"]
    path = in_one_file(state, tmp_path)
    with pytest.raises(StateMismatchError, match=r"base lacks 1 of 8: '1\.weight'.*'3\.bias' has shape \(7,\)"):
        FilterAttributor(network()).attribute(path, network(), squared_sum, [torch.rand(WIDTH)])


def test_narrow_files_are_widened_to_the_model(tmp_path: Path) -> None:
    ends = [network().state_dict() for _ in range(2)]
    narrow = [{name: value.to(torch.bfloat16) for name, value in state.items()} for state in ends]
    paths = []
    for number, state in enumerate(narrow):
        (tmp_path / str(number)).mkdir()
        paths.append(in_one_file(state, tmp_path / str(number)))
    attributor, data = FilterAttributor(network(), unit="filter"), [torch.rand(WIDTH)]
    expected = attributor.attribute(*narrow, squared_sum, data, n_steps=2)
    found = attributor.attribute(*paths, squared_sum, data, n_steps=2)
    assert torch.equal(found.scores().flat(), expected.scores().flat())


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("not weights")
    for path in (tmp_path / "notes.safetensors", tmp_path / "nowhere.safetensors"):
        with pytest.raises(StorageError, match=path.name):
            FilterAttributor(network()).attribute(path, network(), squared_sum, [torch.rand(WIDTH)])
