"""End points as people have them: files of other trainers, their prefixes and names, averaged models."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from filterattr import FilterAttributor, StateMismatchError, StorageError, load_state
from filterattr.model.state_dict import plain_state


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_lightning_checkpoint_gives_the_network_alone(tmp_path: Path) -> None:
    state = network().state_dict()
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": {f"model.{name}": value for name, value in state.items()} | {"vgg.weight": torch.zeros(2)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        "hyper_parameters": {"lr": 1e-4},
    }
    torch.save({**content, "optimizer_states": []}, tmp_path / "last.ckpt")
    assert same(load_state(tmp_path / "last.ckpt", prefix="model."), state)


def test_basicsr_checkpoint_gives_the_averaged_weights_unless_told_otherwise(tmp_path: Path) -> None:
    raw, averaged = network().state_dict(), network().state_dict()
    torch.save({"params": raw, "params_ema": averaged}, tmp_path / "net_g.pth")
    assert same(load_state(tmp_path / "net_g.pth"), averaged)
    assert same(load_state(tmp_path / "net_g.pth", key="params"), raw)


def test_safetensors_file_is_known_by_its_content(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in network().state_dict().items()}
    save_file(state, tmp_path / "weights.bin")
    found = load_state(tmp_path / "weights.bin")
    assert same({name: found[name] for name in state}, state)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:-4])
    with pytest.raises(StorageError, match="it is damaged"):
        load_state(tmp_path / "weights.bin")


def test_nested_keys_and_names_of_another_code_base(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"models": {"ema": {f"enc.{name}": value for name, value in state.items()}}}, tmp_path / "a.pt")
    assert same(load_state(tmp_path / "a.pt", key="models.ema", rename={"enc.": ""}), state)
    swapped = load_state(
        tmp_path / "a.pt", key="models.ema", rename=lambda name: name[4:] if "weight" in name else None
    )
    assert list(swapped) == ["0.weight", "2.weight"]
    with pytest.raises(StateMismatchError, match=r"holds nothing under 'models\.raw': 'raw' is missing beside 'ema'"):
        load_state(tmp_path / "a.pt", key="models.raw")
    with pytest.raises(StateMismatchError, match=r"begins with 'net\.'; they are 'enc\.0\.weight'"):
        load_state(tmp_path / "a.pt", key="models.ema", prefix="net.")
    with pytest.raises(StateMismatchError, match=r"makes 'w' of both 'enc\.0\.weight' and 'enc\.0\.bias'"):
        load_state(tmp_path / "a.pt", key="models.ema", rename=lambda name: "w")


def test_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "was here",))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(StorageError, match="would run code of its own"):
        load_state(tmp_path / "bad.pth")
    assert not (tmp_path / "was here").exists()


def test_averaged_models_are_looked_through() -> None:
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    averaged.update_parameters(model)
    assert list(plain_state(averaged, "target")) == list(model.state_dict())
    assert list(plain_state(averaged.state_dict(), "target")) == list(model.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    result = FilterAttributor(model, unit="filter").attribute(
        averaged, model, lambda network: network(torch.ones(3)).square().sum(), progress=False
    )
    assert result.scores().n_units == 6
    assert result.scores()["0.weight"].any()
