"""New weights in the layout of the input: whoever read the old checkpoint reads the new one, with the new values."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import StateMismatchError, StorageError, load_state
from filterattr.export import write_checkpoint
from filterattr.files import read_tensors, write_tensors
from filterattr.files.layout import read_header, write_layout
from tests.filterattr.files.test_lazy import headed, sharded

OLD = {"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4, dtype=torch.bfloat16), "steps": torch.tensor(7)}
NEW = {"a.weight": torch.rand(4, 3), "a.bias": torch.rand(4).bfloat16(), "steps": torch.tensor(9)}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in second
    )


def test_shards_index_and_files_beside_are_kept(tmp_path: Path) -> None:
    like = sharded(tmp_path / "like", OLD)
    (like / "config.json").write_text('{"a": 1}')
    (like / "1_Pooling").mkdir()
    (like / "1_Pooling" / "model.safetensors").write_bytes(b"another part")
    (like / "pytorch_model.bin").write_bytes(b"old weights in another format")
    (like / ".cache").mkdir()
    (like / ".cache" / "lock").write_text("")
    out = write_checkpoint(NEW, like, tmp_path / "out")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    shards = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert names == {*shards, "model.safetensors.index.json", "config.json", "1_Pooling/model.safetensors"}
    assert same(load_state(out), NEW)
    for shard in shards:  # header, metadata and order are those of the old file
        contents = [(folder / shard).read_bytes() for folder in (like, out)]
        headers = [read_header(io.BytesIO(content), len(content)) for content in contents]
        assert headers[0] == headers[1]
    assert same(load_state(like), OLD)


def test_links_of_a_cache_become_files(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    headed(tmp_path / "blobs" / "1", OLD)
    (tmp_path / "blobs" / "2").write_text("{}")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "1")
    (tmp_path / "snapshot" / "config.json").symlink_to(tmp_path / "blobs" / "2")
    out = write_checkpoint(NEW, tmp_path / "snapshot", tmp_path / "out")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert same(load_state(out), NEW)
    assert (out / "config.json").read_text() == "{}"


def test_the_place_in_files_of_trainers_is_kept(tmp_path: Path) -> None:
    like = tmp_path / "net_g.pth"
    old = {f"module.{name}": value for name, value in OLD.items()}
    torch.save({"params": old, "params_ema": old, "iter": 5, "optimizer": {"state": torch.ones(3)}}, like)
    out = write_checkpoint(NEW, like, tmp_path / "out.pth")
    content = torch.load(out)
    assert set(content) == {"params_ema", "iter"}  # raw weights and optimizer would be those of another network
    assert content["iter"] == 5
    assert same(content["params_ema"], {f"module.{name}": value for name, value in NEW.items()})


def test_a_key_says_where(tmp_path: Path) -> None:
    like = tmp_path / "both.ckpt"
    torch.save({"nets": {"g": OLD, "name": "both"}, "epoch": 2}, like)
    content = torch.load(write_checkpoint(NEW, like, tmp_path / "out.ckpt", key="nets.g"))
    assert same(content["nets"]["g"], NEW)
    assert (content["nets"]["name"], content["epoch"]) == ("both", 2)


def test_files_of_this_library_get_a_new_digest(tmp_path: Path) -> None:
    write_tensors(tmp_path / "net", "network", OLD, {"architecture": "srresnet"})
    tensors, description = read_tensors(write_checkpoint(NEW, tmp_path / "net", tmp_path / "out"), "network")
    assert same(tensors, NEW)
    assert description == {"architecture": "srresnet"}


def test_types_are_those_of_the_file(tmp_path: Path) -> None:
    headed(tmp_path / "old.safetensors", {"w": torch.zeros(5, dtype=torch.bfloat16)})
    values = torch.rand(5)
    write_checkpoint({"w": values}, tmp_path / "old.safetensors", tmp_path / "out.safetensors")
    assert same(load_state(tmp_path / "out.safetensors"), {"w": values.bfloat16()})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_need_one_place_only(tmp_path: Path) -> None:
    model = Tied()
    headed(tmp_path / "one.safetensors", {"embed.weight": torch.zeros(5, 3)})
    write_checkpoint(model, tmp_path / "one.safetensors", tmp_path / "out.safetensors")
    assert same(load_state(tmp_path / "out.safetensors"), {"embed.weight": model.embed.weight.detach()})
    torch.save(Tied().state_dict(), tmp_path / "both.pt")
    content = torch.load(write_checkpoint(model, tmp_path / "both.pt", tmp_path / "out.pt"))
    assert content["embed.weight"].data_ptr() == content["head.weight"].data_ptr()
    assert torch.equal(content["head.weight"], model.head.weight)


def test_what_is_not_given_stays(tmp_path: Path) -> None:
    headed(tmp_path / "old.safetensors", OLD)
    write_checkpoint({"a.weight": NEW["a.weight"]}, tmp_path / "old.safetensors", tmp_path / "out.safetensors")
    assert same(load_state(tmp_path / "out.safetensors"), OLD | {"a.weight": NEW["a.weight"]})


class Computed(Mapping[str, Tensor]):
    """Tensors that exist one at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return NEW[name]

    def __iter__(self) -> Iterator[str]:
        return iter(NEW)

    def __len__(self) -> int:
        return len(NEW)

    def __contains__(self, name: object) -> bool:
        return name in NEW


def test_a_mapping_is_asked_once_for_each(tmp_path: Path) -> None:
    computed = Computed()
    out = write_checkpoint(computed, sharded(tmp_path / "like", OLD), tmp_path / "out")
    assert sorted(computed.asked) == sorted(NEW)
    assert same(load_state(out), NEW)


def test_other_names_and_shapes_are_refused_together(tmp_path: Path) -> None:
    headed(tmp_path / "old.safetensors", OLD)
    with pytest.raises(StateMismatchError, match=r"'b' have no place in it; 'a.weight' has shape \(3,\), not \(4, 3\)"):
        write_checkpoint(
            {"b": torch.ones(1), "a.weight": torch.ones(3)}, tmp_path / "old.safetensors", tmp_path / "out"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    like = sharded(tmp_path / "like", OLD)
    with pytest.raises(StorageError, match="already exists"):
        write_checkpoint(NEW, like, like)
    assert same(load_state(like), OLD)


def test_nothing_is_left_of_a_folder_that_fails(tmp_path: Path) -> None:
    class Failing(Computed):
        def __getitem__(self, name: str) -> Tensor:
            if name == "steps":
                raise RuntimeError("as a full disk would")
            return super().__getitem__(name)

    like = sharded(tmp_path / "like", OLD)
    with pytest.raises(RuntimeError, match="as a full disk would"):
        write_checkpoint(Failing(), like, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


def test_counters_and_extra_states_pass_through(tmp_path: Path) -> None:
    held = {"n_averaged": torch.tensor(4), **{f"module.{name}": value for name, value in OLD.items()}}
    with (tmp_path / "swa.safetensors").open("wb") as stream:
        write_layout(stream, held, {})
    write_checkpoint(NEW, tmp_path / "swa.safetensors", tmp_path / "out.safetensors")
    with (tmp_path / "out.safetensors").open("rb") as stream:
        entries, _ = read_header(stream, (tmp_path / "out.safetensors").stat().st_size)
    assert {entry.name for entry in entries} == set(held)
    assert same(load_state(tmp_path / "out.safetensors"), NEW)


def test_transformers_opens_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=31, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    base, target = (transformers.GPT2LMHeadModel(config).eval() for _ in range(2))
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    out = write_checkpoint(target, tmp_path / "base", tmp_path / "out")
    opened = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = torch.arange(6)[None]
    assert torch.equal(opened(tokens).logits, target(tokens).logits)
