"""Private tensors live where they must, whatever PyTorch's default device is; ``meta`` holds no values at all."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    ChannelAttributor,
    FilterAttribution,
    FilterAttributor,
    FilterScores,
    FilterSelection,
    PathRecorder,
    blend,
    contrast,
    report,
    swapped,
    train_only,
)
from filterattr.analysis.controls import scrambled, shuffled_edges
from filterattr.analysis.evaluation import mask_curve
from filterattr.analysis.gradients import fisher, input_path, taylor
from filterattr.analysis.health import path_health, sanity_checks
from filterattr.analysis.knockout import KnockOutJob
from filterattr.analysis.masking import Masking
from filterattr.analysis.rankings import gradient_times_change, magnitude, random_ranking, weight_change

with torch.random.fork_rng():
    torch.manual_seed(2)
    BASE, TARGET = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 1, 3), nn.Flatten()).double() for _ in range(2)
    )
    DATA = list(torch.rand(4, 1, 1, 8, 8, dtype=torch.float64))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


@pytest.fixture(autouse=True)
def nowhere():
    """Everything that names no device is made without values."""
    with torch.device("meta"):
        yield


@pytest.fixture
def attributor() -> FilterAttributor:
    return FilterAttributor(copy.deepcopy(BASE))


@pytest.fixture
def attribution(attributor: FilterAttributor) -> FilterAttribution:
    return attributor.attribute(BASE, TARGET, loss, DATA)


MODES = [
    {},
    {"method": "adaptive"},
    {"method": "riemann_trapezoid", "n_steps": 65},
    {"aggregate": "pooled", "n_steps": 2},
    {"internal_batch_size": 2},
    {"waypoints": [{name: value.lerp(TARGET.state_dict()[name], 0.3) for name, value in BASE.state_dict().items()}]},
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: next(iter(options), "default"))
def test_every_mode_gives_the_same_bits(attributor: FilterAttributor, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    there = attributor.attribute(BASE, TARGET, loss, DATA, **options)
    with torch.device("cpu"):
        torch.manual_seed(0)
        here = attributor.attribute(BASE, TARGET, loss, DATA, **options)
    assert torch.equal(there.scores().flat(), here.scores().flat())
    assert there.total == here.total


def test_jobs_and_files(attributor: FilterAttributor, attribution: FilterAttribution, tmp_path: Path) -> None:
    first = attributor.attribute(BASE, TARGET, loss, DATA, checkpoint=tmp_path / "job")
    again = attributor.attribute(BASE, TARGET, loss, DATA, checkpoint=tmp_path / "job")
    assert torch.equal(first.scores().flat(), again.scores().flat())
    attribution.save(tmp_path / "attribution")
    scores = FilterAttribution.load(tmp_path / "attribution").scores()
    scores.top(2).save(tmp_path / "selection")
    assert FilterSelection.load(tmp_path / "selection") == attribution.scores().top(2)


def test_scores_and_selections(attribution: FilterAttribution) -> None:
    scores = attribution.scores()
    chosen = scores.top(0.5)
    assert chosen.count == 4
    assert chosen.random(torch.Generator().manual_seed(0)).count == 4
    assert chosen.random(torch.Generator().manual_seed(0), layer_matched=True).per_layer() == chosen.per_layer()
    assert scores.select({"0.weight": [0]}).count == 1
    assert (chosen | ~chosen).count == 8
    assert FilterScores.from_index(scores.to_index().tolist(), scores).top(0.5) == chosen
    assert contrast({"a": scores, "b": scores * 2}, "b").top(0.5) == chosen
    assert attribution.standard_errors().flat().device.type == "cpu"
    assert chosen.weights()["0.weight"].device.type == "cpu"


def test_interventions(attribution: FilterAttribution) -> None:
    chosen = attribution.scores().top(0.5)
    model = copy.deepcopy(BASE)
    with swapped(model, blend(TARGET, BASE, chosen, 0.5)):
        assert model[0].weight.device.type == "cpu"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = PathRecorder(model, dtype=torch.bfloat16)
    with train_only(model, chosen, optimizer):
        loss(model, DATA[0]).backward()
        optimizer.step()
    recorder()
    assert recorder.waypoints[0]["0.weight"].device.type == "cpu"


def test_evaluations(attributor: FilterAttributor, attribution: FilterAttribution) -> None:
    scores = attribution.scores()
    chosen = scores.top(3)
    masking = Masking(attributor.model, BASE, TARGET, loss, {"all": DATA})
    curve = mask_curve(masking, random_ranking(scores, torch.Generator()), ranking="random", fractions=[0.25, 0.5])
    assert len(curve.rows()) == 2
    removed = masking.removed(chosen)
    with torch.device("cpu"):
        assert Masking(attributor.model, BASE, TARGET, loss, {"all": DATA}).removed(chosen) == removed
    assert path_health(attribution).losses == attribution.path_losses
    sanity_checks(attributor, BASE, TARGET, loss, DATA, amount=2)
    assert KnockOutJob(attributor, BASE, TARGET, loss, DATA).run().scores.flat().device.type == "cpu"
    assert scrambled(TARGET, chosen, "flip", torch.Generator().manual_seed(0))["0.weight"].device.type == "cpu"
    assert shuffled_edges(chosen, torch.Generator().manual_seed(0)).count == 3


def test_rankings(attributor: FilterAttributor, attribution: FilterAttribution) -> None:
    for scores in (
        random_ranking(attribution.scores(), torch.Generator().manual_seed(0)),
        weight_change(attributor, BASE, TARGET),
        magnitude(attributor, TARGET),
        gradient_times_change(attributor, BASE, TARGET, loss, DATA),
        taylor(attributor, TARGET, loss, DATA),
        fisher(attributor, TARGET, loss, DATA),
        input_path(attributor, TARGET, loss, DATA, along=lambda x, t: x * t, n_steps=2),
    ):
        assert scores.top(2).count == 2


def test_channels() -> None:
    model = copy.deepcopy(BASE)
    found = ChannelAttributor(model).attribute(torch.cat(DATA), 0 * torch.cat(DATA), lambda y: y.square().sum(1))
    assert all(scores.device.type == "cpu" for scores in found.channels().values())
    assert found.filters().top(2).count == 2


def test_pages(attribution: FilterAttribution, tmp_path: Path) -> None:
    page = report(tmp_path / "page.html", "Title", attributions={"a": attribution})
    assert page.stat().st_size > 1000
