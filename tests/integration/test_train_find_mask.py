"""From photographs to masked networks through the command line and the library, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from filterattr import FilterAttributor, contrast
from filterattr.analysis import Masking
from sr_zoo.cli import main
from sr_zoo.data import load_photographs
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.images import write_image
from sr_zoo.pretrained import load_network
from sr_zoo.samples import draw_pairs, squared_error
from tests.sr_zoo.test_demo import photograph


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for seed in range(3):
        write_image(folder / "photos" / f"{seed}.png", photograph(seed))
    shared = ["--images", str(folder / "photos"), "--iterations", "20", "--batch-size", "2", "--precision", "fp32"]
    network = ["--features", "4", "--blocks", "1"]
    assert main(["train", "base", *shared, *network, "--out", str(folder / "base")]) == 0
    start = ["--from", str(folder / "base" / "base.safetensors"), "--learning-rate", "1e-3"]
    assert main(["train", "target", *shared, *start, "--out", str(folder / "target")]) == 0
    return folder


def test_trained_networks_can_be_attributed_and_masked(run: Path) -> None:
    base = load_network(run / "base" / "base.safetensors")
    target = load_network(run / "target" / "target.safetensors")
    assert not torch.equal(base.conv_first.weight, target.conv_first.weight)
    pairs = draw_pairs(
        load_photographs(run / "photos", progress=False), evaluation_inputs(2), count=2, size=48, scale=2, seed=0
    )
    attributor = FilterAttributor(target)
    attributions = {
        name: attributor.attribute(base, target, squared_error, pairs[name], n_steps=8, progress=False)
        for name in ("blur", "noise")
    }
    for attribution in attributions.values():
        assert attribution.completeness_error < 1e-2
        assert attribution.cosine > 0.9
    scores = {name: attribution.scores() for name, attribution in attributions.items()}
    masking = Masking(target, base, target, squared_error, {name: pairs[name] for name in scores})
    removed = masking.removed(contrast(scores, "noise").top(0.2))
    assert set(removed) == {"blur", "noise"}


def test_starting_a_finished_run_again_changes_nothing(run: Path) -> None:
    before = load_network(run / "base" / "base.safetensors").state_dict()
    photos = str(run / "photos")
    again = ["train", "base", "--images", photos, "--iterations", "20", "--batch-size", "2", "--precision", "fp32"]
    assert main([*again, "--features", "4", "--blocks", "1", "--out", str(run / "base")]) == 0
    after = load_network(run / "base" / "base.safetensors").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
