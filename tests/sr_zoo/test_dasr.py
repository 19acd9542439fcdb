"""The contrastive two-branch network: its cost, its arithmetic, and that it learns degradations without labels."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from sr_zoo.cost import cost
from sr_zoo.degradations import GaussianBlur, GaussianNoise, blind_inputs
from sr_zoo.models import DASR, SRResNet
from sr_zoo.models.dasr import DegradationAwareConvolution
from sr_zoo.pretrained import build, load_network, save_network
from sr_zoo.training import Objective, Processes, Recipe, Trainer, TrainingError, read_log

TINY = {"num_feat": 6, "num_block": 1, "hidden": 3, "condition": 4, "predictor_feat": 8}


def tiny(seed: int = 0, **changes) -> DASR:
    torch.manual_seed(seed)
    return DASR(**{**TINY, **changes})


@pytest.mark.parametrize("sizes", [(32, 8), (64, 16)])
def test_it_has_the_parameters_of_the_one_branch_network_and_fewer_operations(sizes):
    with torch.device("meta"):
        one, two = cost(SRResNet(num_feat=sizes[0], num_block=sizes[1])), cost(DASR(**DASR.matched_arguments(*sizes)))
    assert two[0] / one[0] == pytest.approx(1, abs=0.003)
    assert 0.90 < two[1] / one[1] < 0.93


def test_sizes_without_a_match_are_refused():
    with pytest.raises(
        ValueError, match=r"DASR has sizes .* for features and blocks 32 and 8, 64 and 16; got 48 and 8"
    ):
        DASR.matched_arguments(48, 8)


def test_every_image_is_convolved_with_kernels_of_its_own(rng):
    layer = DegradationAwareConvolution(3, 4, 5).double()
    features = torch.randn(2, 3, 5, 7, generator=rng).double()
    condition = torch.randn(2, 4, generator=rng).double()
    made = layer(features, condition)
    padded = functional.pad(features, (1, 1, 1, 1))
    for image in range(2):
        kernels = layer.kernels(condition[image]).reshape(3, 3, 3)
        spread = torch.zeros(3, 5, 7, dtype=torch.float64)
        for row in range(3):
            for column in range(3):
                part = padded[image, :, row : row + 5, column : column + 7]
                spread += kernels[:, row, column, None, None] * part
        mixed = torch.einsum("oc,chw->ohw", layer.pointwise.weight[:, :, 0, 0], functional.leaky_relu(spread, 0.1))
        expected = mixed + layer.pointwise.bias[:, None, None]
        expected = expected + features[image] * layer.attention(condition[image])[:, None, None]
        assert_close(made[image], expected, rtol=0, atol=1e-12)


def test_the_contrast_is_that_of_its_formula(rng):
    network = tiny().double()
    degraded = torch.rand(3, 3, 8, 10, generator=rng).double()
    left, right = (
        functional.normalize(network.project(network.predictor(half)), dim=1)
        for half in (degraded[..., :5], degraded[..., 5:])
    )
    expected = 0.0
    for one, other in ((left, right), (right, left)):
        for i in range(3):
            alike = [math.exp((one[i] @ other[j]).item() / 0.07) for j in range(3)]
            expected -= math.log(alike[i] / sum(alike)) / 6
    assert_close(network.contrast(degraded).item(), expected, rtol=1e-5, atol=0)


def test_images_that_are_described_alike_cost_the_logarithm_of_their_number():
    assert_close(tiny().contrast(torch.ones(5, 3, 8, 8)).item(), math.log(5), rtol=1e-5, atol=0)


def test_a_contrast_needs_two_images():
    with pytest.raises(ValueError, match=r"at least two images, of at least two columns; got shape \(1, 3, 8, 8\)"):
        tiny().contrast(torch.rand(1, 3, 8, 8))


def test_labels_teach_the_probe_and_nothing_else(rng):
    network = tiny()
    degraded = torch.rand(4, 3, 8, 8, generator=rng)
    network.restore_and_estimate(degraded)[1].sum().backward()
    assert {name for name, one in network.named_parameters() if one.grad is not None} == {
        "estimate.weight",
        "estimate.bias",
    }


def test_the_parts_of_the_loss_add_up(rng):
    network = tiny()
    degraded, reference = torch.rand(4, 3, 8, 8, generator=rng), torch.rand(4, 3, 16, 16, generator=rng)
    strengths = {"noise": torch.tensor([0.1, 0.0, 0.1, 0.0])}
    total, parts = Objective(network, "fp32", 0.25)(degraded, reference, strengths)
    assert list(parts) == ["loss", "prediction", "contrast"]
    assert_close(total, parts["loss"] + parts["prediction"] + 0.25 * parts["contrast"])
    assert_close(parts["contrast"], network.contrast(degraded))
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_contrast_alone_makes_noise_and_blur_readable(rng):
    """A linear read-out of an untrained predictor is the control; no label is used before the read-out."""
    photographs = torch.rand(48, 3, 12, 12, generator=rng)
    photographs = functional.interpolate(photographs, size=(40, 40), mode="bicubic").clamp(0, 1)
    half = len(photographs) // 2
    blurred = GaussianBlur(2.0)(photographs[:half], rng)
    noisy = GaussianNoise(0.1)(photographs[half:], rng)
    degraded = torch.cat([blurred, noisy])[torch.randperm(48, generator=rng)]
    network = tiny()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = network.contrast(degraded).item()
    for _ in range(40):
        batch = degraded[torch.randperm(48, generator=rng)[:16]]
        optimizer.zero_grad()
        network.contrast(batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(network.contrast(degraded)) < before - 0.5
        first, second = (network.predictor(images).double() for images in (blurred, noisy))
    gap = (first.mean(0) - second.mean(0)).norm()
    assert gap > 3 * (first.std(0).norm() + second.std(0).norm()) / 2


def test_a_training_writes_the_contrast_and_goes_back_to_the_same_weights(photographs, tmp_path):
    plan = Recipe(GaussianNoise(0.1).config(), iterations=4, batch_size=4, patch_size=32)

    def run(name, stop_after=None):
        made = Trainer(tiny(upscale=2), photographs, photographs[:1], _blind(plan), tmp_path / name, progress=False)
        return made.run(stop_after)

    expected = run("whole")
    run("killed", 2)
    again = run("killed")
    for name, value in expected.items():
        assert torch.equal(again[name], value)
    assert {"loss", "prediction", "contrast"} <= read_log(tmp_path / "whole")[-1].keys()


def _blind(plan: Recipe) -> Recipe:
    return replace(plan, degradation=blind_inputs().config())


@pytest.mark.parametrize(("processes", "batch"), [(Processes(0, 2), 4), (Processes(), 1)])
def test_what_cannot_be_compared_is_refused(photographs, tmp_path, processes, batch):
    plan = _blind(Recipe(GaussianNoise(0.1).config(), iterations=4, batch_size=batch, patch_size=32))
    with pytest.raises(TrainingError, match="in one process, with a batch of at least 2; got"):
        Trainer(tiny(), photographs, photographs[:1], plan, tmp_path, processes=processes, progress=False)


def test_a_file_gives_the_same_network_back(tmp_path, rng):
    arguments = {**TINY, "predicts": ["noise"]}
    torch.manual_seed(3)
    network = build("dasr", arguments).eval()
    save_network(tmp_path / "a.safetensors", "dasr", arguments, network.state_dict(), {})
    degraded = torch.rand(1, 3, 8, 8, generator=rng)
    loaded = load_network(tmp_path / "a.safetensors")
    assert isinstance(loaded, DASR)
    assert torch.equal(loaded(degraded), network(degraded))
