"""The adaptive restorer: patches, choice, one file, and what the study measures of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttrError, FilterAttributor, FilterSelection, SettingError, StorageError, blend
from filterattr.analysis.prediction import Calibration, Signals
from filterattr.analysis.record import Estimate
from filterattr.files.safetensors import read_tensors, write_tensors
from sr_zoo.adaptive import AdaptiveRestorer, Patch
from sr_zoo.models import SRResNet
from sr_zoo.study.stages.adaptive import RestorerRow, RestorerTable, qualities

TINY = {"num_feat": 4, "num_block": 1}


@pytest.fixture(scope="module")
def ends() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = SRResNet(**TINY).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base, target


@pytest.fixture(scope="module")
def sets(ends: tuple[nn.Module, nn.Module]) -> dict[str, FilterSelection]:
    base, target = ends
    scores = (
        FilterAttributor(base)
        .attribute(base, target, lambda model: model(torch.ones(1, 3, 8, 8)).sum(), n_steps=1, progress=False)
        .scores()
    )
    return {"blur": scores.top(0.05), "noise": (-scores).top(0.05)}


@pytest.fixture
def restorer(ends: tuple[nn.Module, nn.Module], sets: dict[str, FilterSelection]) -> AdaptiveRestorer:
    base, target = ends
    patches = {name: Patch.of(target.state_dict(), chosen) for name, chosen in sets.items()}
    plans = {"clean": (), "blur": ("blur",), "noise": ("noise",), "both": ("blur", "noise")}
    near, far = {"blur": 0.9, "noise": 0.1}, {"blur": 0.1, "noise": 0.9}
    labelled = {"blur": [Signals(near, near, near)] * 3, "noise": [Signals(far, far, far)] * 3}
    return AdaptiveRestorer(base, patches, plans=plans, calibration=Calibration.fit(labelled), n_steps=2)


def image(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_patched_weights_are_those_of_a_graft(
    ends: tuple[nn.Module, nn.Module], sets: dict[str, FilterSelection], restorer: AdaptiveRestorer
) -> None:
    base, target = ends
    for names, chosen in (((), None), (("blur",), sets["blur"]), (("blur", "noise"), sets["blur"] | sets["noise"])):
        expected = base.state_dict() if chosen is None else blend(base, target, chosen)
        torch.testing.assert_close(restorer.weights(names), dict(expected), rtol=0, atol=0)


def test_an_image_is_restored_by_the_network_of_its_plan(
    ends: tuple[nn.Module, nn.Module], sets: dict[str, FilterSelection], restorer: AdaptiveRestorer
) -> None:
    base, target = ends
    network = copy.deepcopy(base)
    network.load_state_dict(blend(base, target, sets["noise"]))
    restored = restorer.restore(image(), "noise")
    with torch.no_grad():
        torch.testing.assert_close(restored.image, network(image()).clamp(0, 1))
    assert restored.patches == ("noise",)
    assert restorer.restore(image(), "both").patches == ("blur", "noise")
    assert restorer.restore(image(), "unsure").patches == ("blur", "noise")


def test_the_choice_is_that_of_the_calibration(restorer: AdaptiveRestorer) -> None:
    answer = restorer.judge(restorer.signals(image())).answer
    restored = restorer.restore(image())
    assert restored.answer == answer
    assert restored.patches == restorer.plans["both" if answer == "unsure" else answer]


def test_the_users_network_is_left_alone(ends: tuple[nn.Module, nn.Module], restorer: AdaptiveRestorer) -> None:
    before = {name: value.clone() for name, value in ends[0].state_dict().items()}
    restorer.restore(image())
    torch.testing.assert_close(dict(ends[0].state_dict()), before, rtol=0, atol=0)


def test_one_file_gives_an_equal_restorer_and_is_smaller_than_two_networks(
    restorer: AdaptiveRestorer, tmp_path: Path
) -> None:
    path = tmp_path / "restorer.safetensors"
    restorer.save(path, "srresnet", TINY)
    loaded = AdaptiveRestorer.load(path)
    assert loaded.plans == restorer.plans
    assert loaded.calibration == restorer.calibration
    assert loaded.n_extra == restorer.n_extra
    torch.testing.assert_close(loaded.weights(("noise",)), restorer.weights(("noise",)), rtol=0, atol=0)
    assert loaded.judge(loaded.signals(image())) == restorer.judge(restorer.signals(image()))


def test_extra_weights_are_those_of_the_patches(sets: dict[str, FilterSelection], restorer: AdaptiveRestorer) -> None:
    assert restorer.n_extra == 9 * sum(chosen.count for chosen in sets.values())
    assert restorer.n_shared == sum(parameter.numel() for parameter in restorer.network.parameters())


def test_what_does_not_fit_together_is_gathered(ends: tuple[nn.Module, nn.Module], restorer: AdaptiveRestorer) -> None:
    one = {"blur": restorer.patches["blur"]}
    with pytest.raises(SettingError, match=r"'haze', which is no patch; at least two patches.*fallback.*'blur'"):
        AdaptiveRestorer(ends[0], one, plans={"haze": ("haze",)}, fallback="rain")


def test_several_images_and_unknown_answers_are_refused(restorer: AdaptiveRestorer) -> None:
    with pytest.raises(SettingError, match=r"one image of shape .* got \(2, 3, 8, 8\)"):
        restorer.restore(torch.rand(2, 3, 8, 8))
    with pytest.raises(SettingError, match="plan for the answer 'haze'"):
        restorer.restore(image(), "haze")


def test_a_file_without_its_patches_is_refused(restorer: AdaptiveRestorer, tmp_path: Path) -> None:
    path = tmp_path / "restorer.safetensors"
    restorer.save(path, "srresnet", TINY)
    tensors, description = read_tensors(path, "adaptive restorer")
    kept = {name: value for name, value in tensors.items() if not name.startswith("patch/noise/values")}
    write_tensors(path, "adaptive restorer", kept, description)
    with pytest.raises(StorageError, match="not a complete adaptive restorer"):
        AdaptiveRestorer.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_steps", 10**9, "n_steps must be a whole number from 1 to 1000; got 1000000000"),
        ("n_steps", True, "n_steps must be a whole number"),
        ("n_steps", "6", "n_steps must be a whole number"),
        ("plans", ["blur"], "is not a complete adaptive restorer"),
        ("plans", {"clean": ["snow"]}, "needs 'snow', which is no patch"),
        ("patches", 3, "is not a complete adaptive restorer"),
        ("parameters", [["a", 3]], "is not a complete adaptive restorer"),
        ("arguments", {"num_feat": 10**9}, "sizes must be positive whole numbers"),
        ("architecture", "edsr", "the architecture must be one of"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(
    restorer: AdaptiveRestorer, tmp_path: Path, name: str, value: object, message: str
) -> None:
    path = tmp_path / "restorer.safetensors"
    restorer.save(path, "srresnet", TINY)
    tensors, description = read_tensors(path, "adaptive restorer")
    write_tensors(path, "adaptive restorer", tensors, {**description, name: value})
    with pytest.raises(FilterAttrError, match=message):
        AdaptiveRestorer.load(path)


def test_qualities_are_those_of_every_sample() -> None:
    white, gray = torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.9)
    found = qualities(lambda name, place, degraded: degraded, {"clean": [(gray, white, gray)] * 2}, 1)
    assert found["clean"].tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_near_enough_means_every_function_and_few_weights() -> None:
    def row(name: str, fraction: float, extra: float, blur: float, noise: float) -> RestorerRow:
        minus = {"blur": Estimate(blur), "noise": Estimate(noise)}
        return RestorerRow(name, fraction, extra, 1, minus, minus)

    rows = (
        row("good", 0.05, 0.1, -0.2, 0.1),
        row("one is far", 0.05, 0.1, -0.2, -0.4),
        row("large", 0.1, 0.2, 0.0, 0.0),
        row("no patches", 0.0, 0.0, 0.0, 0.0),
    )
    table = RestorerTable(("blur", "noise"), rows)
    assert table.within() == ("good",)
    assert RestorerTable.from_json(table.to_json()) == table
