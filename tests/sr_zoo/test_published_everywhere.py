"""A checkpoint of BasicSR goes wherever a command takes weights, and does there what a file of ours does."""

import json

import pytest
import torch

from sr_zoo.cli import main
from sr_zoo.images import read_image, write_image
from sr_zoo.models import SRResNet
from sr_zoo.pretrained import describe_network, load_network, save_network

SIZES = {"num_feat": 4, "num_block": 1, "upscale": 2}


@pytest.fixture
def pair(tmp_path, photographs):
    """Two networks, as BasicSR writes them and as this package does, and photographs."""
    for index, photograph in enumerate(photographs):
        write_image(tmp_path / "photos" / f"{index}.png", photograph)
    for seed, name in enumerate(("base", "target")):
        torch.manual_seed(seed)
        state = SRResNet(**SIZES).state_dict()
        torch.save({"params_ema": {f"module.{key}": value for key, value in state.items()}}, tmp_path / f"{name}.pth")
        save_network(tmp_path / f"{name}.safetensors", "srresnet", SIZES, state, {})
    return tmp_path


def test_restore(pair):
    for kind in ("pth", "safetensors"):
        words = ["restore", str(pair / "photos" / "0.png"), "--weights", str(pair / f"target.{kind}")]
        assert main([*words, "--out", str(pair / f"{kind}.png")]) == 0
    assert torch.equal(read_image(pair / "pth.png"), read_image(pair / "safetensors.png"))


def test_card(pair, capsys):
    cards = []
    for kind in ("pth", "safetensors"):
        assert main(["card", str(pair / f"target.{kind}"), "--images", str(pair / "photos"), "--data", "some"]) == 0
        cards.append(capsys.readouterr().out.splitlines())
    assert [line for line in cards[0] if line.startswith("|")] == [line for line in cards[1] if line.startswith("|")]
    assert "- trained on: some; the file does not say how" in cards[0]


def test_card_of_half_precision(pair, capsys):
    words = ["card", str(pair / "target.pth"), "--images", str(pair / "photos"), "--data", "some"]
    assert main([*words, "--half", str(pair / "half.safetensors")]) == 0
    assert "stored in half precision" in capsys.readouterr().out
    assert load_network(pair / "half.safetensors").upscale == 2


def test_compare(pair):
    words = ["compare", "--images", str(pair / "photos"), "--device", "cpu", "--out", str(pair / "table.md")]
    for kind in ("pth", "safetensors"):
        words += ["--network", kind, str(pair / f"target.{kind}")]
    assert main(words) == 0
    rows = json.loads((pair / "table.json").read_text())["rows"]
    assert rows["pth"] == rows["safetensors"]


def test_train_from_it(pair):
    words = ["train", "target", "--from", str(pair / "base.pth"), "--images", str(pair / "photos"), "--iterations", "1"]
    words += ["--batch-size", "1", "--patch-size", "16", "--device", "cpu", "--precision", "fp32"]
    assert main([*words, "--out", str(pair / "run")]) == 0
    described = describe_network(pair / "run" / "target.safetensors")
    assert described["architecture"] == "srresnet"
    assert described["arguments"] == {"num_in_ch": 3, "num_out_ch": 3, **SIZES}


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # untrained networks are no sound pair
def test_attribute(pair):
    words = ["--images", str(pair / "photos"), "--crops", "1", "--size", "32", "--steps", "8", "--device", "cpu"]
    for kind in ("pth", "safetensors"):
        ends = [str(pair / f"{name}.{kind}") for name in ("base", "target")]
        assert main(["attribute", *ends, *words, "--out", str(pair / kind)]) == 0
    files = [(pair / kind / "attribution.safetensors").read_bytes() for kind in ("pth", "safetensors")]
    assert files[0] == files[1]


def test_demo(pair, monkeypatch):
    """Which networks arrive; what the demo does with them is tested elsewhere."""
    arrived = []

    def find_and_mask(base, target, *_, **__):
        arrived.extend((base, target))
        raise KeyboardInterrupt

    monkeypatch.setattr("sr_zoo.cli.demo.find_and_mask", find_and_mask)
    for folder in ("photos", "others"):
        (pair / folder).mkdir(exist_ok=True)
        write_image(pair / folder / "large.png", torch.zeros(3, 200, 200, dtype=torch.uint8))
    words = [
        "demo",
        "--out",
        str(pair / "demo"),
        "--base",
        str(pair / "base.pth"),
        "--target",
        str(pair / "target.pth"),
    ]
    assert main([*words, "--search", str(pair / "photos"), "--test", str(pair / "others")]) == 130
    for network, name in zip(arrived, ("base", "target"), strict=True):
        expected = load_network(pair / f"{name}.safetensors").state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
