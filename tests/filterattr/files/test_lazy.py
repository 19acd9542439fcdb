"""Folders and files are known from their headers; parts are the whole; folders that do not fit together are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from filterattr import StateMismatchError, StorageError, load_state
from filterattr.files import write_tensors
from filterattr.files.layout import write_layout
from filterattr.files.lazy import stored_weights

STATE = {
    "a.weight": torch.arange(35.0).reshape(5, 7),
    "a.bias": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "steps": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}


def headed(path: Path, state: dict[str, Tensor]) -> None:
    with path.open("wb") as stream:
        write_layout(stream, state, {"format": "pt"})


def sharded(folder: Path, state: dict[str, Tensor], count: int = 2) -> Path:
    """A folder as Hugging Face libraries write it."""
    folder.mkdir()
    files = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    weight_map = {name: files[place % count] for place, name in enumerate(state)}
    for file in files:
        headed(folder / file, {name: value for name, value in state.items() if weight_map[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in second
    )


def made(kind: str, folder: Path) -> Path:
    path = folder / "file"
    if kind == "safetensors":
        headed(path, STATE)
    elif kind == "torch":
        torch.save({"params": {f"module.{name}": value for name, value in STATE.items()}, "iter": 3}, path)
    elif kind == "own":
        write_tensors(path, "network", STATE, {})
    elif kind == "shards":
        return sharded(path, STATE)
    else:
        path.mkdir()
        torch.save(STATE, path / "pytorch_model.bin")
        (path / "config.json").write_text("{}")
    return path


KINDS = ["safetensors", "torch", "own", "shards", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    tensors = stored_weights(made(kind, tmp_path))
    assert same({name: tensor.read() for name, tensor in tensors.items()}, STATE)
    assert all((tensors[name].shape, tensors[name].dtype) == (v.shape, v.dtype) for name, v in STATE.items())
    assert same(load_state(tmp_path / "file"), STATE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 35, 100])
def test_parts_are_the_whole(kind: str, count: int, tmp_path: Path) -> None:
    for name, tensor in stored_weights(made(kind, tmp_path)).items():
        parts = [part.clone() for part in tensor.parts(count)]
        assert all(len(part) == count for part in parts[:-1])
        assert torch.equal(torch.cat([torch.empty(0, dtype=tensor.dtype), *parts]), STATE[name].reshape(-1))


def test_of_safetensors_the_header_alone_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filterattr.files.lazy as lazy

    sharded(tmp_path / "file", STATE)
    monkeypatch.setattr(lazy, "fill", lambda *_: pytest.fail("a tensor was read"))
    assert stored_weights(tmp_path / "file")["a.weight"].nbytes == 140


def test_safetensors_come_before_others(tmp_path: Path) -> None:
    headed(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert load_state(tmp_path)["a"].tolist() == [1.0]


def test_a_folder_of_several_checkpoints_is_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        headed(tmp_path / f"{name}.safetensors", STATE)
    with pytest.raises(StorageError, match=r"must hold one checkpoint; it holds 'first\.safetensors', 'second"):
        load_state(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StorageError, match=r"must hold weights.*it holds 'config\.json'"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../secret.safetensors"}, r"names '\.\./secret\.safetensors'"),
        ({"a": "nowhere.safetensors"}, r"names 'nowhere\.safetensors'"),
        ({}, "names none"),
        ([1], "must be JSON that maps names to files"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "must agree; 'c', 'b' are in no file"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, "must agree; 'a', 'b' are"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    (tmp_path / "model").mkdir()
    headed(tmp_path / "secret.safetensors", {"a": torch.ones(1)})
    headed(tmp_path / "model" / "one.safetensors", {"a": torch.ones(1)})
    headed(tmp_path / "model" / "two.safetensors", {"b": torch.ones(1)})
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(StorageError, match=message):
        stored_weights(tmp_path / "model")


def test_two_shards_with_one_name_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path / "model", {"a": torch.ones(1), "b": torch.ones(1)})
    headed(tmp_path / "model" / "model-00002-of-00002.safetensors", {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(StorageError, match="both hold 'a'"):
        stored_weights(tmp_path / "model")


def test_a_file_that_is_cut_meanwhile_is_refused(tmp_path: Path) -> None:
    headed(tmp_path / "model.safetensors", STATE)
    tensors = stored_weights(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(StorageError, match="was cut while it was read"):
        tensors["a.weight"].read()


def test_keys_are_of_files_of_torch_save(tmp_path: Path) -> None:
    torch.save({"net_g": {"params_ema": {"a": torch.ones(1)}}, "net_d": {"b": torch.ones(1)}}, tmp_path / "both.pth")
    assert list(load_state(tmp_path / "both.pth", key="net_g")) == ["a"]
    headed(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(StateMismatchError, match="holds nothing under 'net_g'"):
        load_state(tmp_path / "model.safetensors", key="net_g")
    with pytest.raises(StateMismatchError, match="must hold names of tensors"):
        load_state(tmp_path / "model.safetensors", key="a")
