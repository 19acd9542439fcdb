"""The contest of channel rankings: areas, nulls, passes, and a network in which the right channels are known."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterScores
from filterattr.activations.attributor import ChannelAttributor
from filterattr.analysis.evaluation import mask_curve
from filterattr.analysis.masking import Masking
from filterattr.analysis.rankings import weight_change
from filterattr.analysis.results import area_under
from filterattr.units.builders import output_channels
from sr_zoo.degradations import Quantize, degradations_from
from sr_zoo.models import SRResNet
from sr_zoo.study import Settings, StudyError, Subject, quick_settings, run_study
from sr_zoo.study.contest import Contest, ContestTable, Entrant, MaskedLosses, shuffled_inside_layers
from sr_zoo.study.page import write_report
from sr_zoo.study.samples import Sample
from sr_zoo.study.stages.channels import (
    ATTRIBUTION,
    CAPTUM,
    CHANNELS,
    CONTRAST,
    LAYER_METHODS,
    PLAIN,
    ChannelRanker,
    Job,
    contest_table,
    entrants_of,
    jobs_of,
)
from sr_zoo.study.stages.search import strict_scores

FUNCTIONS = ("left", "right")


def planted() -> tuple[nn.Module, nn.Module]:
    """Target passes each input through a channel of its own; two more channels change more, and nobody reads them."""
    base = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()
        base[1].weight[0, 0] = base[1].weight[1, 1] = 1.0
        target = copy.deepcopy(base)
        target[0].weight[0, 0] = target[0].weight[1, 1] = 0.9
        target[0].weight[2:] = 5.0
    return base, target


def planted_samples(count: int = 3, *, equal: bool = False) -> dict[str, list[Sample]]:
    """What shall be passed through is on one of two input channels; without it there is nothing."""
    generator = torch.Generator().manual_seed(0)
    samples: dict[str, list[Sample]] = {}
    for place, name in enumerate(FUNCTIONS):
        samples[name] = []
        for _ in range(count):
            degraded = torch.zeros(1, 2, 3, 3)
            degraded[:, place] = 1.0 if equal else torch.rand(1, 3, 3, generator=generator)
            samples[name].append((degraded, degraded.clone(), torch.zeros(1, 2, 3, 3)))
    return samples


def subject_of(base: nn.Module, target: nn.Module) -> Subject:
    return Subject(base, target, dict.fromkeys(FUNCTIONS, Quantize()), [], [], "planted", {})


def row_losses(model: nn.Module, sample: Sample) -> Tensor:
    restored: Tensor = model(sample[0])
    return (restored - sample[1]).square().sum((1, 2, 3))


def contest_of(fractions: tuple[float, ...], count: int = 3) -> Contest:
    base, target = planted()
    return Contest(Masking(target, base, target, row_losses, planted_samples(count)), fractions)


class TestPlantedChannels:
    @pytest.mark.parametrize(
        "job",
        [
            Job(ATTRIBUTION, 4),
            *(Job(method, 4) for method in LAYER_METHODS if method != "gradient x activation"),
            Job("gradient x activation", 0),
            Job("gradient x change at target", 0),
            Job("input path x change", 4),
        ],
        ids=lambda job: job.key,
    )
    def test_the_channel_of_a_function_is_ranked_first(self, job: Job) -> None:
        ranker = ChannelRanker(subject_of(*planted()))
        found = {name: ranker.scores(job, some) for name, some in planted_samples(2).items()}
        for reduction in next(iter(found.values())):
            plain = {name: one[reduction] for name, one in found.items()}
            for place, name in enumerate(FUNCTIONS):
                scores = strict_scores(plain, name)
                assert float(scores["0"][place]) == pytest.approx(float(scores.flat().max()))
                # the layer behind it passes the same on; nothing else comes near
                others = [*scores["0"][torch.arange(4) != place].tolist(), float(scores["1"][1 - place])]
                assert max(others) < 0.5 * float(scores["0"][place])

    def test_the_change_of_weights_is_taken_in(self) -> None:
        scores = ChannelRanker(subject_of(*planted())).scores(Job("weight change", 0), [])["abs_of_sum"]
        assert int(scores.flat().argmax()) in (2, 3)

    @pytest.mark.parametrize("method", LAYER_METHODS)
    def test_layer_scores_are_those_of_the_attributor_and_passes_those_it_counts(self, method: str) -> None:
        base, target = planted()
        samples = planted_samples(2)["left"]
        job = Job(method, 0 if method == "gradient x activation" else 3)
        scores = ChannelRanker(subject_of(base, target)).scores(job, samples)["abs_of_sum"]
        expected = []
        for degraded, reference, clean in samples:
            found = ChannelAttributor(target).attribute(
                degraded,
                clean,
                lambda out, reference=reference: (out - reference).square().sum((1, 2, 3)),
                attribution=LAYER_METHODS[method],
                n_steps=3,
                method="riemann_trapezoid" if method == "conductance" else "gausslegendre",
            )
            assert found.n_passes == job.n_passes(2)
            expected.append(torch.cat([found.channels()[name] for name in ("0", "1")]))
        torch.testing.assert_close(scores.flat(), torch.stack(expected).mean(0))

    def test_the_usual_call_knows_neither_reference_nor_clean_image(self) -> None:
        ranker = ChannelRanker(subject_of(*planted()))
        degraded, reference, clean = planted_samples(1)["left"][0]
        found, again = (
            ranker.scores(Job("conductance", 2, usual=True), [(degraded, one, other)])["abs_of_sum"]
            for one, other in ((reference, clean), (reference + 7, clean + 3))
        )
        torch.testing.assert_close(found.flat(), again.flat())
        expected = ChannelAttributor(ranker.subject.target).attribute(
            degraded, 0 * degraded, lambda out: out.sum((1, 2, 3)), n_steps=2
        )
        torch.testing.assert_close(found["0"], expected.channels()["0"])


class TestContest:
    def test_curves_are_those_of_the_library(self) -> None:
        contest = contest_of((0.2, 0.5, 1.0))
        base, target = planted()
        scores = weight_change(FilterAttributor(target, unit=output_channels(target)), base, target)
        own = contest.curve(contest.masked(scores), "change")
        expected = mask_curve(contest.masking, scores, ranking="change", fractions=(0.2, 0.5, 1.0), progress=False)
        assert own.counts == expected.counts
        for name in FUNCTIONS:
            for one, other in zip(own.shares[name], expected.shares[name], strict=True):
                assert one.value == pytest.approx(other.value)
                assert (one.low, one.high) == pytest.approx((other.low, other.high))

    def test_areas_and_their_intervals_are_those_of_a_literal_loop(self) -> None:
        contest = contest_of((0.1, 0.2, 1.0), count=4)
        generator = np.random.default_rng(0)
        losses = {name: tuple(tuple(generator.uniform(0, 9, 4)) for _ in range(3)) for name in FUNCTIONS}
        areas = contest.areas(MaskedLosses((1, 1, 6), losses), "left")

        def area(name: str, draw: np.ndarray) -> float:
            low, high = (float(one[name] @ draw) for one in (masking.samples_target, masking.samples_base))
            shares = [(float(np.array(one) @ draw) - low) / (high - low) for one in losses[name]]
            return area_under((0.1, 0.2, 1.0), shares)

        masking = contest.masking
        assert float(areas.own) == pytest.approx(area("left", np.full(4, 0.25)))
        assert float(areas.other) == pytest.approx(area("right", np.full(4, 0.25)))
        for place, draw in enumerate(contest.bootstrap._shares["left"][:20]):
            assert areas.own_drawn[place] == pytest.approx(area("left", draw))
            assert areas.other_drawn[place] == pytest.approx(area("right", draw))

    def test_the_planted_ranking_wins_and_its_reverse_does_not(self) -> None:
        contest = contest_of((1 / 6, 2 / 6, 3 / 6))
        base, target = planted()
        like = weight_change(FilterAttributor(target, unit=output_channels(target)), base, target)
        first_layer = {"left": [4.0, 0.0, 3.0, 2.0], "right": [0.0, 4.0, 3.0, 2.0]}
        right = {
            name: FilterScores(
                {"0": torch.tensor(scores).double(), "1": torch.full((2,), -1.0).double()}, like.parameters
            )
            for name, scores in first_layer.items()
        }
        own = Entrant(ATTRIBUTION, CONTRAST, 4, 4)
        other = Entrant("reverse", CONTRAST, 0, 0)
        masked = {
            own: {name: contest.masked(one) for name, one in right.items()},
            other: {name: contest.masked(-one) for name, one in right.items()},
        }
        nulls = {("random", ""): contest.null(like, "random", "random", torch.Generator().manual_seed(0), 30, False)}
        for name in FUNCTIONS:
            nulls[own.name, name] = contest.null(
                right[name], "layer-matched", name, torch.Generator().manual_seed(1), 30, False
            )
        table = contest_table(contest, masked, nulls, like.n_units, 30)
        assert table.reference == own.name
        first = {(row.method, row.function): row for row in table.entries}
        for name in FUNCTIONS:
            row, reverse = first[ATTRIBUTION, name], first["reverse", name]
            assert row.removed == pytest.approx((1.0, 1.0, 1.0))
            assert row.margin.value == pytest.approx(1.0)
            assert row.advantage.value == 0
            assert row.p_own < 0.5
            assert row.p_margin_in_layers < 0.3  # a twelfth of the shuffled ones are as good
            assert reverse.margin.value < 0.2
            assert reverse.advantage.is_negative
            assert math.isnan(reverse.p_own_in_layers)
        assert ContestTable.from_json(table.to_json()).to_json() == table.to_json()
        assert len({tuple(row) for row in table.rows()}) == 1

    def test_a_random_ranking_is_one_ranking_at_all_sizes(self) -> None:
        contest = contest_of((0.2, 0.4, 0.6, 0.8, 1.0))
        base, target = planted()
        like = weight_change(FilterAttributor(target, unit=output_channels(target)), base, target)
        null = contest.null(like, "random", "random", torch.Generator().manual_seed(0), 12, False)
        assert null.n_draws == 12
        assert len(set(null.shares["left"][1])) > 1
        for name in FUNCTIONS:
            drawn = np.array(null.shares[name])
            assert (np.diff(drawn, axis=0) >= -1e-9).all()  # more channels back at base never help here

    def test_shuffled_sets_have_as_many_units_in_every_layer_at_every_size(self) -> None:
        base, target = planted()
        like = weight_change(FilterAttributor(target, unit=output_channels(target)), base, target)
        generator = torch.Generator().manual_seed(0)
        scores = FilterScores({name: torch.rand(one.shape, generator=generator).double() for name, one in like.items()},
                              like.parameters)  # fmt: skip
        shuffled = [shuffled_inside_layers(scores, generator) for _ in range(5)]
        for count in range(1, 7):
            assert all(one.top(count).per_layer() == scores.top(count).per_layer() for one in shuffled)
        assert any(one.top(3) != scores.top(3) for one in shuffled)


class TestEntrants:
    def test_every_method_takes_part_in_its_fair_form_and_layer_methods_in_their_usual_one(self) -> None:
        settings = quick_settings(channel_steps=(1, 2, 8))
        ranker = ChannelRanker(subject_of(*planted()))
        samples = planted_samples(1)
        jobs = jobs_of(settings)
        found = {}
        for job in jobs:
            scores = {name: ranker.scores(job, some) for name, some in samples.items()}
            found[job] = {kind: {n: one[kind] for n, one in scores.items()} for kind in scores["left"]}
        entrants = entrants_of(found, 8, 2)
        assert len({one.name for one in entrants}) == len(entrants)
        fair = {(one.method, one.steps) for one in entrants if one.form == CONTRAST}
        assert {(method, 8) for method in (ATTRIBUTION, "conductance", "internal influence")} <= fair
        assert ("layer integrated gradients", 1) in fair
        assert ("layer integrated gradients", 2) not in fair  # more than an eighth of the steps
        for method in LAYER_METHODS:
            assert {CAPTUM, PLAIN} <= {one.form for one in entrants if one.method == method}
        own = next(one for one in entrants if one.form == "equation 7")
        assert own.method == "attribution, sum_of_abs"

    def test_what_makes_no_sense_is_named(self) -> None:
        with pytest.raises(StudyError, match=r"channel_fractions must be at least two.*channel_steps must ascend"):
            Settings(channel_fractions=(0.0, 0.1), channel_steps=(4, 2))


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    arguments = {"num_feat": 4, "num_block": 1}
    base = SRResNet(**arguments).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    coarse = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=(90, 90), mode="bicubic").clamp(0, 1)
    images = list((smooth * 255).to(torch.uint8))
    names = {"base": "a", "target": "b", "photographs searched": "2", "photographs tested": "2"}
    degradations = degradations_from(["blur", "noise"])
    return Subject(base, target, degradations, images[:2], images[2:], "srresnet", arguments, names)


def small() -> Settings:
    return quick_settings(
        crop=32, test_crops=4, channel_crops=1, channel_steps=(1,), channel_fractions=(0.1, 0.5), null_draws=2
    )


class TestStage:
    @pytest.mark.filterwarnings("ignore:.* selected units have score 0:filterattr.FilterAttrWarning")  # of 35 channels
    def test_an_interrupted_stage_goes_on_and_its_page_needs_no_search(
        self, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        whole = ChannelRanker.scores

        def stopping(self: ChannelRanker, job: Job, samples: list[Sample]) -> dict[str, FilterScores]:
            if job.method == "weight change" and done.count(job.key) == 0:
                done.append(job.key)
                raise KeyboardInterrupt("stopped")
            done.append(job.key)
            return whole(self, job, samples)

        monkeypatch.setattr(ChannelRanker, "scores", stopping)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            run_study(subject, small(), tmp_path, stages=(CHANNELS,), progress=False)
        before = len(done)
        archive = run_study(subject, small(), tmp_path, stages=(CHANNELS,), progress=False)
        assert done[before:] == ["weight_change-0"] * 2  # once a function; nothing else is computed again
        assert not list((tmp_path / ".work").glob("*/*/*"))
        page, text = (path.read_text(encoding="utf-8") for path in write_report(archive))
        assert "quality for the passes spent" in page
        assert "Which channels? Against Captum" in text
        table = archive.load("channels")["table"]
        assert {row.function for row in table.entries} == {"blur", "noise"}
        curves = sum(name.startswith("curve") for name in archive.load("channels"))
        assert curves == len(table.entries)

    def test_the_cost_counts_what_is_done(self, subject: Subject) -> None:
        settings = small()
        cost = CHANNELS.cost(subject, settings)
        layers = len(output_channels(subject.target)[""])
        by_hand = sum(
            job.n_passes(layers) * (0.5 if job.method == "layer integrated gradients" else 1)
            for job in jobs_of(settings)
        )
        assert cost.passes == 2 * by_hand
        assert cost.forwards > 0
