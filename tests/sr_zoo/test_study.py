"""The study on networks that were made in a moment: what its stages compute, the archive, the commands, the page."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterScores, FilterSelection, StorageError, blend, contrast
from filterattr.analysis.masking import Masking
from filterattr.analysis.record import Estimate
from filterattr.analysis.stability import SampleScores
from filterattr.units.unit import ScoredParameter, Unit
from sr_zoo.cli import main
from sr_zoo.degradations import PoissonNoise, clean_inputs, degradations_from, evaluation_inputs, second_order
from sr_zoo.images import write_image
from sr_zoo.models import SRCNNStyle, SRResNet
from sr_zoo.pretrained import build, save_network
from sr_zoo.study import (
    STAGES,
    Settings,
    Sources,
    StudyError,
    Subject,
    make_plan,
    open_archive,
    open_subject,
    quick_settings,
    run_study,
)
from sr_zoo.study.archive import Archive
from sr_zoo.study.page import write_report
from sr_zoo.study.pipeline import _seconds_per_pass, stage_digests
from sr_zoo.study.samples import batches_of, draw_samples, restoration_error, row_errors, towards_degraded
from sr_zoo.study.stages.depth import depths, mean_depth
from sr_zoo.study.stages.gradient_maps import gradient_change, gradient_map
from sr_zoo.study.stages.masking import CURVES, SPECIFICITY
from sr_zoo.study.stages.pictures import Pictures
from sr_zoo.study.stages.places import places_rows
from sr_zoo.study.stages.ranking import RANKINGS, contrasted, random_units
from sr_zoo.study.stages.retraining import mean_over_seeds, places_of, retrain
from sr_zoo.study.stages.reversion import REVERSION
from sr_zoo.study.stages.rivals import RIVALS
from sr_zoo.study.stages.search import SEARCH
from sr_zoo.study.summary import summary
from sr_zoo.training import fast_precision

TINY = {"num_feat": 4, "num_block": 1}


def photograph(seed: int, size: tuple[int, int] = (110, 120)) -> Tensor:
    """Smooth random shapes."""
    coarse = torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).to(torch.uint8)


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    base = SRResNet(**TINY).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return base, target


def small(**changes: object) -> Settings:
    settings = {
        "fraction": 0.1,
        "crop": 32,
        "search_crops": 4,
        "test_crops": 4,
        "steps": 3,
        "ranking_crops": 1,
        "ranking_steps": 1,
        "layer_steps": 1,
        "channel_crops": 1,
        "channel_steps": (1,),
        "channel_fractions": (0.1, 0.5),
        "oracle_units": 6,
        "oracle_crops": 1,
        "calibration_crops": 2,
        "prediction_steps": 1,
        "null_draws": 2,
        "reversion_draws": 2,
        "place_draws": 2,
        "bootstrap_draws": 4,
        "retrain_iterations": 1,
        "retrain_batch": 1,
        "adaptive_iterations": 1,
        "precision": "fp32",
        "sanity_crops": 1,
        "ranking_fractions": (0.1,),
        "curve_fractions": (0.0, 0.1, 1.0),
    }
    return quick_settings(**{**settings, **changes})


@pytest.fixture(scope="module")
def subject() -> Subject:
    base, target = pair()
    return Subject(
        base=base,
        target=target,
        degradations=degradations_from(["blur", "noise"]),
        search=[photograph(seed) for seed in range(3)],
        test=[photograph(seed) for seed in range(10, 13)],
        architecture="srresnet",
        arguments=TINY,
        names={"base": "a", "target": "b", "photographs searched": "3", "photographs tested": "3"},
    )


def scores_of(*tensors: Tensor) -> FilterScores:
    parameters = {
        f"layer{place}": ScoredParameter(Unit("o i -> o i"), tuple(t.shape)) for place, t in enumerate(tensors)
    }
    return FilterScores({f"layer{place}": t.double() for place, t in enumerate(tensors)}, parameters)


def selection_of(*tensors: list[list[bool]]) -> FilterSelection:
    held = {f"layer{place}": torch.tensor(t) for place, t in enumerate(tensors)}
    return FilterSelection(
        held, {name: ScoredParameter(Unit("o i -> o i"), tuple(t.shape)) for name, t in held.items()}
    )


class TestSettings:
    def test_everything_that_makes_no_sense_is_named_at_once(self) -> None:
        with pytest.raises(
            StudyError, match=r"fraction must lie.*null_draws must be at least 2.*ascend.*ranking_crops"
        ):
            Settings(fraction=0.0, null_draws=1, curve_fractions=(0.5, 0.1), ranking_crops=99)

    def test_the_quick_preset_is_cheaper_than_the_full_one(self, subject: Subject) -> None:
        quick, full = quick_settings(), Settings()
        for stage in STAGES:
            few, many = stage.cost(subject, quick), stage.cost(subject, full)
            assert few.forwards * quick.crop**2 <= many.forwards * full.crop**2
            assert few.passes * quick.crop**2 <= many.passes * full.crop**2

    def test_the_full_study_retrains_with_at_least_three_seeds(self) -> None:
        assert Settings().retrain_seeds >= 3


class TestSamples:
    def test_crops_are_of_different_photographs_as_long_as_there_are_enough(self) -> None:
        photographs = [torch.full((3, 80, 80), 40 * place, dtype=torch.uint8) for place in range(4)]
        drawn = draw_samples(photographs, evaluation_inputs(2), count=4, size=32, scale=2, seed=3)["clean"]
        assert sorted(round(float(sample[1].mean()) * 255) for sample in drawn) == [0, 40, 80, 120]

    def test_every_input_shows_the_same_crops(self) -> None:
        drawn = draw_samples([photograph(0)], evaluation_inputs(2), count=2, size=32, scale=2, seed=0)
        for name in ("blur", "noise", "both"):
            torch.testing.assert_close(drawn[name][1][1], drawn["clean"][1][1])
            torch.testing.assert_close(drawn[name][1][2], drawn["clean"][1][0])
            assert not torch.equal(drawn[name][1][0], drawn["clean"][1][0])

    def test_losses_of_a_batch_are_those_of_its_rows(self) -> None:
        drawn = draw_samples([photograph(0)], evaluation_inputs(2), count=3, size=32, scale=2, seed=0)["blur"]
        network = pair()[0]
        with torch.no_grad():
            one_by_one = torch.stack([restoration_error(network, sample) for sample in drawn])
            together = torch.cat([row_errors(network, batch) for batch in batches_of(drawn, 2)])
        torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)

    def test_the_path_of_the_input_ends_at_the_degraded_crop(self) -> None:
        degraded, reference, clean = torch.rand(3, 1, 3, 4, 4)
        torch.testing.assert_close(towards_degraded((degraded, reference, clean), 0.0)[0], clean)
        torch.testing.assert_close(towards_degraded((degraded, reference, clean), 1.0)[0], degraded)


class TestArchive:
    def test_a_stage_is_there_only_with_the_same_inputs_and_all_its_files(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path)
        chosen = selection_of([[True, False]])
        archive.store("stage", "1", {"set": chosen}, {"seconds": 2.0})
        assert archive.is_done("stage", "1")
        assert not archive.is_done("stage", "2")
        assert archive.load("stage")["set"] == chosen
        assert archive.notes("stage") == {"digest": "1", "seconds": 2.0}
        (tmp_path / "stage" / "set.safetensors").unlink()
        assert not archive.is_done("stage", "1")

    def test_what_was_killed_before_its_end_does_not_count(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path)

        class Dying:
            def save(self, _: Path) -> None:
                raise KeyboardInterrupt("power cut")

        Dying.__name__ = "FilterSelection"
        archive.store("stage", "1", {"set": selection_of([[True]])}, {})
        with pytest.raises(KeyboardInterrupt, match="power cut"):
            archive.store("stage", "2", {"set": Dying()}, {})
        assert not archive.is_done("stage")

    def test_a_damaged_note_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "stage").mkdir()
        (tmp_path / "stage" / "done.json").write_text("{")
        with pytest.raises(StorageError, match=r"done\.json' cannot be read"):
            Archive(tmp_path).is_done("stage")

    def test_foreign_results_and_names_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"a/b \(FilterSelection\), n \(int\)"):
            Archive(tmp_path).store("stage", "1", {"a/b": selection_of([[True]]), "n": 3}, {})

    def test_missing_results_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="holds no results of the stage 'search'"):
            Archive(tmp_path).load("search")

    def test_pictures_keep_their_order(self, tmp_path: Path) -> None:
        images = {name: torch.full((3, 2, 2), place, dtype=torch.uint8) for place, name in enumerate("zab")}
        Pictures(images).save(tmp_path / "p.safetensors")
        loaded = Pictures.load(tmp_path / "p.safetensors").images
        assert list(loaded) == list("zab")
        torch.testing.assert_close(loaded["b"], images["b"])


class TestDepth:
    def test_depth_is_that_of_a_literal_loop(self) -> None:
        generator = torch.Generator().manual_seed(0)
        like = scores_of(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(1, 5))
        samples = {
            name: SampleScores(torch.rand(5, like.n_units, generator=generator), like) for name in ("blur", "noise")
        }
        found = depths(samples, 0.4, draws=7, seed=1)
        random = np.random.default_rng(1)
        means = []
        for draw in range(8):
            places = list(range(5)) if draw == 0 else random.integers(5, size=5).tolist()
            drawn = {name: one.scores(places) for name, one in samples.items()}
            chosen = contrast(drawn, "blur", scale="strict").top(0.4)
            total = sum(0.5 * place * int(tensor.sum()) for place, tensor in enumerate(chosen.values()))
            means.append(total / chosen.count)
        assert found["blur"].mean.value == pytest.approx(means[0])
        assert found["blur"].mean.low == pytest.approx(float(np.quantile(means[1:], 0.025)))
        assert found["blur"].uniform == pytest.approx((0 * 4 + 0.5 * 6 + 1 * 5) / 15)
        assert found["blur"].minus["noise"].value == pytest.approx(found["blur"].mean.value - found["noise"].mean.value)

    def test_no_kernels_have_no_depth(self) -> None:
        assert np.isnan(mean_depth(selection_of([[False]], [[False]])))


class TestGradientMaps:
    def test_the_map_is_that_of_a_literal_loop(self) -> None:
        image = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gray = 0.299 * image[0, 0] + 0.587 * image[0, 1] + 0.114 * image[0, 2]

        def at(row: int, column: int) -> float:
            return float(gray[row, column]) if 0 <= row < 5 and 0 <= column < 6 else 0.0

        expected = [
            [((at(r + 1, c) - at(r - 1, c)) ** 2 + (at(r, c + 1) - at(r, c - 1)) ** 2 + 1e-6) ** 0.5 for c in range(6)]
            for r in range(5)
        ]
        torch.testing.assert_close(
            gradient_map(image)[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4
        )

    def test_the_metric_sees_structure_and_not_brightness_inside(self) -> None:
        flat = torch.full((1, 3, 20, 20), 0.4)
        striped = flat.clone()
        striped[..., ::4] = 0.8
        assert float(gradient_change(flat, striped)) > 10 * float(gradient_change(flat, flat + 0.02))


class TestPlaces:
    def test_the_first_row_is_masking_and_moved_places_are_counted(self, subject: Subject) -> None:
        drawn = draw_samples(subject.test, subject.inputs, count=2, size=32, scale=2, seed=0)
        data = {name: drawn[name] for name in subject.functions}
        masking = Masking(subject.target, subject.base, subject.target, restoration_error, data)
        units = subject.attributor.attribute(
            subject.base, subject.target, restoration_error, drawn["blur"][:1], n_steps=2, progress=False
        )
        chosen = units.scores().top(0.1)
        rows = {row.what: row for row in places_rows(masking, "blur", chosen, draws=2, seed=0)}
        assert rows["back to base"].removed == pytest.approx(masking.removed(chosen))
        assert rows["back to base"].moved == 0
        assert rows["same layers, back to base"].moved > 0
        assert rows["weights permuted inside layers"].draws == 2

    def test_retraining_moves_the_places_and_nothing_else(self, subject: Subject, tmp_path: Path) -> None:
        like = subject.attributor.attribute(
            subject.base,
            subject.target,
            lambda model: model(torch.ones(1, 3, 8, 8)).sum(),
            n_steps=1,
            progress=False,
        )
        chosen = like.scores().top(3)
        start = dict(subject.base.state_dict())
        state = retrain(
            subject,
            start,
            chosen,
            clean_inputs(2),
            tmp_path,
            iterations=2,
            batch=1,
            rate=1e-2,
            precision="fp32",
            seed=0,
        )
        marked = chosen.weights()
        for name, value in state.items():
            moved = value != start[name]
            assert not bool((moved & ~marked.get(name, torch.zeros(()).bool())).any())
        assert any(bool((state[name] != start[name]).any()) for name in marked)

    def test_kinds_of_places_have_the_size_of_the_discovered_ones(self) -> None:
        chosen = selection_of([[True, False, False]], [[True, True, False, False]])
        assert places_of(chosen, "discovered", 0) == chosen
        assert places_of(chosen, "random", 1).count == 3
        assert places_of(chosen, "layer-matched", 1).per_layer() == chosen.per_layer()
        assert places_of(chosen, "everything", 0).count == 7

    def test_one_seed_has_no_interval(self) -> None:
        assert mean_over_seeds([0.5]).value == 0.5
        assert np.isnan(mean_over_seeds([0.5]).low)


class TestRankings:
    def test_only_rankings_that_see_inputs_are_contrasted(self) -> None:
        seen = {"blur": scores_of(torch.tensor([[3.0, 1.0]])), "noise": scores_of(torch.tensor([[1.0, 4.0]]))}
        blind = {name: scores_of(torch.tensor([[5.0, 6.0]])) for name in seen}
        scores, passes = contrasted(
            {"attribution": seen, "magnitude": blind, "Fisher": seen}, {"attribution": 8, "magnitude": 0, "Fisher": 2}
        )
        assert list(scores) == [
            "attribution",
            "attribution, no contrast",
            "attribution, equation 7",
            "magnitude",
            "Fisher",
            "Fisher, no contrast",
        ]
        torch.testing.assert_close(scores["magnitude"]["blur"].flat(), blind["blur"].flat())
        expected = contrast(seen, "blur", scale="strict")
        torch.testing.assert_close(scores["Fisher"]["blur"].flat(), expected.flat())
        assert passes["attribution, equation 7"] == 8
        fewer, _ = contrasted({"Fisher": seen}, {"Fisher": 2}, with_plain=False)
        assert list(fewer) == ["Fisher"]

    def test_units_of_the_oracle_hold_discovered_and_other_ones(self) -> None:
        chosen = FilterSelection(
            {"w": torch.arange(40).reshape(4, 10) < 8}, {"w": ScoredParameter(Unit("o i -> o i"), (4, 10))}
        )
        units = random_units(chosen, 10, 0)
        assert units.count == 10
        assert (units & chosen).count == 5
        assert random_units(chosen, 30, 0).count == 30


@pytest.fixture(scope="module")
def learnt(subject: Subject) -> Subject:
    """Ends exchanged: on these photographs the one that was disturbed is the worse."""
    return dataclasses.replace(subject, base=subject.target, target=subject.base)


@pytest.fixture(scope="module")
def reverted(learnt: Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("study")
    archive = run_study(learnt, small(), folder, stages=(SEARCH, REVERSION), progress=False)
    text = summary(archive)
    assert "paper's score, equation 7" in text
    assert "smallest set that reverts 0.8" in text
    write_report(archive)
    return {**archive.load("search"), **archive.load("reversion")}


class TestReversion:
    def test_every_kind_of_set_is_measured_with_clean_inputs(self, learnt: Subject, reverted: dict[str, Any]) -> None:
        samples = learnt.test_samples(small())
        for kind in ("strict", "published", "signed", "chosen", "searched"):
            matrix = reverted[f"outputs_{kind}"]
            assert set(matrix.counts) == {"blur", "noise"}, kind
            for name in matrix.counts:
                chosen = reverted[f"set_{kind}_{name}"]
                masked = copy.deepcopy(learnt.target)
                masked.load_state_dict(blend(learnt.target, learnt.base, chosen))
                with torch.no_grad():
                    said = {
                        role: [network(one[0]) for one in samples["clean"]]
                        for role, network in (("masked", masked), ("base", learnt.base), ("target", learnt.target))
                    }
                whole = sum((a - b).square().sum() for a, b in zip(said["base"], said["target"], strict=True))
                moved = sum((a - b).square().sum() for a, b in zip(said["masked"], said["target"], strict=True))
                assert matrix.moved[name]["clean"].value == pytest.approx(float(moved / whole), rel=1e-3, abs=1e-6)
        assert reverted["set_strict_blur"] == reverted["set_blur"]
        assert reverted["set_published_blur"] == reverted["published_blur"]
        assert reverted["set_signed_noise"] == reverted["scores_noise"].top(small().fraction)

    def test_a_searched_set_reverts_more_than_the_paper_s(self, reverted: dict[str, Any]) -> None:
        for name in ("blur", "noise"):
            assert reverted["outputs_searched"].reverted[name].value > reverted["outputs_strict"].reverted[name].value
            judged = reverted[f"reversion_searched_{name}"]
            assert judged.reverted.value == reverted["outputs_searched"].reverted[name].value
            assert len(judged.null_reverted["layer-matched"]) == 2

    def test_what_target_has_not_learnt_is_left_out(self, subject: Subject, tmp_path: Path) -> None:
        archive = run_study(subject, small(), tmp_path, stages=(SEARCH, REVERSION), progress=False)
        assert not any(name.startswith("set_") for name in archive.load("reversion"))
        assert "Target is better than base at none of the functions." in summary(archive)


class TestPipeline:
    def test_what_is_done_is_skipped_and_a_change_computes_again(self, subject: Subject, tmp_path: Path) -> None:
        said: list[str] = []
        stages = (SEARCH, SPECIFICITY)
        settings = small()
        run_study(subject, settings, tmp_path, stages=stages, progress=False, report=said.append)
        before = open_archive(tmp_path).load("search")["set_blur"]
        run_study(subject, settings, tmp_path, stages=stages, progress=False, report=said.append)
        assert [line.endswith("(done)") for line in said] == [False, False, True, True]
        archive = open_archive(tmp_path)
        assert archive.load("search")["set_blur"] == before
        plan = make_plan(subject, small(test_crops=5), archive, stages)
        assert [one.is_done for one in plan.stages] == [True, False]
        plan = make_plan(subject, small(steps=4), archive, stages)
        assert [one.is_done for one in plan.stages] == [False, False]
        assert plan.minutes > 0
        assert max(map(len, str(plan).splitlines())) <= 80
        assert not list((tmp_path / ".work").glob("*/*/*"))

    def test_another_study_in_the_folder_is_kept(self, subject: Subject, tmp_path: Path) -> None:
        stages = (SEARCH, SPECIFICITY)
        run_study(subject, small(), tmp_path, stages=stages, progress=False)
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        others: list[tuple[Subject, Settings, str]] = [
            (subject, small(steps=4), "steps was 3 and is 4"),
            (subject, small(curve_fractions=(0.0, 1.0), seed=7), "seed was 0 and is 7"),
            (
                dataclasses.replace(subject, names={**subject.names, "base": "c"}, base=pair(3)[0]),
                small(),
                "base was a",
            ),
            (
                dataclasses.replace(subject, base=pair(3)[0]),
                small(),
                "the weights, the photographs or the degradations",
            ),
        ]
        for other, settings, message in others:
            for more in ((), (SEARCH,), (CURVES,)):
                with pytest.raises(StudyError, match=f"holds another study: .*{message}.*--overwrite"):
                    run_study(other, settings, tmp_path, stages=more or stages, progress=False)
            with pytest.raises(StudyError, match="specificity would be left of it"):
                run_study(other, settings, tmp_path, stages=(SEARCH,), overwrite=True, progress=False)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
        run_study(subject, small(test_crops=5), tmp_path, stages=stages, overwrite=True, progress=False)
        changed = {path.parent.name for path, content in kept.items() if path.read_bytes() != content}
        assert changed == {"specificity"}

    def test_a_setting_that_no_stored_stage_uses_may_change(self, subject: Subject, tmp_path: Path) -> None:
        run_study(subject, small(), tmp_path, stages=(SEARCH,), progress=False)
        said: list[str] = []
        run_study(
            subject, small(null_draws=3), tmp_path, stages=(SEARCH, SPECIFICITY), progress=False, report=said.append
        )
        assert [line.endswith("(done)") for line in said] == [True, False]

    def test_a_network_that_is_slow_is_timed_once(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[float] = []
        clock = iter(range(0, 10_000, 100))

        def count(*words: object) -> Tensor:
            calls.append(0.0)
            return restoration_error(*words)  # type: ignore[arg-type]

        monkeypatch.setattr("sr_zoo.study.pipeline.restoration_error", count)
        monkeypatch.setattr("sr_zoo.study.pipeline.time.perf_counter", lambda: float(next(clock)))
        _seconds_per_pass(subject, small())
        assert len(calls) == 2

    def test_other_weights_or_photographs_are_another_study(self, subject: Subject) -> None:
        settings = small()
        digests = stage_digests(subject, settings)
        others = [
            dataclasses.replace(subject, target=pair(3)[1]),
            dataclasses.replace(subject, test=list(subject.search)),
        ]
        for other in others:
            assert not set(stage_digests(other, settings).values()) & set(digests.values())

    def test_a_stage_without_those_before_it_is_refused(self, subject: Subject, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="specificity needs search"):
            run_study(subject, small(), tmp_path, stages=(SPECIFICITY,), progress=False)

    def test_discovered_sets_are_those_of_a_plain_call(self, subject: Subject, tmp_path: Path) -> None:
        settings = small()
        archive = run_study(subject, settings, tmp_path, stages=(SEARCH,), progress=False)
        drawn = draw_samples(subject.search, subject.inputs, count=4, size=32, scale=2, seed=0)
        scores = {
            name: FilterAttributor(subject.target)
            .attribute(subject.base, subject.target, restoration_error, drawn[name], n_steps=3, progress=False)
            .scores()
            for name in ("blur", "noise")
        }
        found = archive.load("search")
        for name in scores:
            assert found[f"set_{name}"] == contrast(scores, name, scale="strict").top(0.1)
            assert found[f"published_{name}"] == contrast(scores, name).top(0.1)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    base, target = pair()
    for name, network in (("base", base), ("target", target)):
        save_network(tmp_path / f"{name}.safetensors", "srresnet", TINY, network.state_dict(), {})
        torch.save({"params_ema": network.state_dict()}, tmp_path / f"{name}.pth")
    for seed in range(4):
        write_image(tmp_path / "photos" / f"{seed}.png", photograph(seed))
    return tmp_path


class TestSources:
    def test_everything_wrong_is_gathered(self, folders: Path) -> None:
        save_network(folders / "other.safetensors", "srcnn_style", {}, SRCNNStyle().state_dict(), {})
        (folders / "empty").mkdir()
        sources = Sources(
            base=str(folders / "base.safetensors"),
            target=str(folders / "other.safetensors"),
            search=folders / "empty",
            test=folders / "photos",
            degradations=("blur",),
        )
        with pytest.raises(StudyError) as caught:
            open_subject(sources, small(crop=33))
        for part in (
            "must be weights of the same network",
            "must hold at least one image",
            "at least two degradations",
            "multiple of the scale",
        ):
            assert part in str(caught.value)

    def test_the_same_weights_twice_are_no_pair(self, folders: Path) -> None:
        path = str(folders / "base.safetensors")
        with pytest.raises(StudyError, match="they hold the same weights"):
            open_subject(Sources(base=path, target=path, images=folders / "photos"), small())

    def test_small_photographs_are_named(self, folders: Path) -> None:
        names = {name: str(folders / f"{name}.safetensors") for name in ("base", "target")}
        with pytest.raises(StudyError, match=r"photographs to search on: 0 of 2 are at least 160x160"):
            open_subject(Sources(**names, images=folders / "photos"), small(crop=128))

    def test_what_a_second_branch_says_of_the_degradation_does_not_move(self, folders: Path) -> None:
        arguments = {"num_feat": 4, "num_block": 1, "hidden": 2, "condition": 2, "predictor_feat": 2}
        for seed, role in enumerate(("one", "other")):
            torch.manual_seed(seed)
            state = build("two_branch", arguments).state_dict()
            save_network(folders / f"{role}.safetensors", "two_branch", arguments, state, {})
        names = {"base": str(folders / "one.safetensors"), "target": str(folders / "other.safetensors")}
        subject = open_subject(Sources(**names, images=folders / "photos"), small())
        assert subject.unused == ("estimate.*",)
        scored = subject.attributor.scored_parameters()
        assert "predictor.convolutions.0.weight" in scored
        assert not any(name.startswith("estimate") for name in scored)
        labels = [group.label for group in subject.channels]
        assert "predictor.convolutions.0" in labels
        assert "estimate" not in labels
        torch.testing.assert_close(subject.base.estimate.weight, subject.target.estimate.weight, rtol=0, atol=0)
        assert not torch.equal(subject.base.conv_last.weight, subject.target.conv_last.weight)

    def test_degradations_are_those_that_are_spelled(self, folders: Path) -> None:
        names = {name: str(folders / f"{name}.safetensors") for name in ("base", "target")}
        (folders / "web.json").write_text(json.dumps(second_order(2).config()))
        spelled = ("noise:0.2", str(folders / "web.json"))
        subject = open_subject(Sources(**names, images=folders / "photos", degradations=spelled), small())
        assert subject.functions == ("noise", "web")
        assert list(subject.inputs) == ["clean", "noise", "web"]
        drawn = subject.search_samples(small(crop=48))
        assert {tuple(sample[0].shape) for samples in drawn.values() for sample in samples} == {(1, 3, 24, 24)}
        other = open_subject(Sources(**names, images=folders / "photos", degradations=("noise", spelled[1])), small())
        assert other.digest != subject.digest

    def test_degradations_that_cannot_be_read_are_gathered_with_the_rest(self, folders: Path) -> None:
        path = str(folders / "base.safetensors")
        sources = Sources(base=path, target=path, images=folders / "photos", degradations=("rain", "noise:9"))
        with pytest.raises(StudyError) as caught:
            open_subject(sources, small())
        for part in ("'rain'", "in [0, 1]; got 9", "they hold the same weights"):
            assert part in str(caught.value)

    def test_one_folder_is_split_in_halves(self, folders: Path) -> None:
        names = {name: str(folders / f"{name}.safetensors") for name in ("base", "target")}
        subject = open_subject(Sources(**names, images=folders / "photos"), small())
        torch.testing.assert_close(subject.search[1], photograph(2))
        torch.testing.assert_close(subject.test[1], photograph(3))

    @pytest.mark.parametrize("model", [None, "srresnet"])
    def test_checkpoints_of_basicsr_open(self, folders: Path, model: str | None) -> None:
        names = {name: str(folders / f"{name}.pth") for name in ("base", "target")}
        arguments = TINY if model else {}
        sources = Sources(**names, model=model, arguments=arguments, images=folders / "photos")
        subject = open_subject(sources, small())
        torch.testing.assert_close(subject.target.conv_last.weight, pair()[1].conv_last.weight)
        assert subject.architecture == "srresnet"


class TestCommandLine:
    def test_the_cost_is_said_and_nothing_is_written(self, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["study", "--base", str(folders / "base.pth"), "--target", str(folders / "target.pth")]
        words += ["--images", str(folders / "photos"), "--quick", "--crop", "32", "--dry-run", "--out"]
        assert main([*words, str(folders / "out")]) == 0
        printed = capsys.readouterr().out
        assert "in total" in printed
        assert all(stage.name in printed for stage in STAGES)
        assert not (folders / "out").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--search", "x"], "belong together"),
            (["--search", "x", "--test", "x"], "must be different folders"),
            (["--images", "x", "--test", "y"], "takes the place of"),
            (["--model-arguments", "num_feat=4"], "name it with --model"),
            (["--model", "srresnet", "--model-arguments", "num_feat"], "must be NAME=VALUE"),
            (["--crop", "5"], "--crop must be a whole number from 32"),
        ],
    )
    def test_wrong_words_are_explained(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main(["study", "--quick", "--out", str(tmp_path / "out"), *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("preset", [["--quick"], []])
    @pytest.mark.parametrize(
        "words",
        [
            ["--crop", "32"],
            ["--search-crops", "4"],
            ["--search-crops", "5", "--crop", "34"],
            ["--test-crops", "4"],
            ["--null-draws", "2"],
            ["--steps", "1"],
            ["--retrain-seeds", "1", "--retrain-iterations", "1"],
            ["--adaptive-iterations", "0"],
            ["--seed", "2147483647"],
            ["--precision", "fp32"],
        ],
        ids=" ".join,
    )
    def test_the_smallest_number_of_every_option_goes_with_the_presets(
        self, words: list[str], preset: list[str], folders: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fixed = ["study", "--base", str(folders / "base.safetensors"), "--target", str(folders / "target.safetensors")]
        fixed += ["--images", str(folders / "photos"), "--dry-run", "--out", str(folders / "out"), "--crop", "32"]
        assert main([*fixed, *preset, *words]) == 0, capsys.readouterr().err

    def test_trainings_of_an_old_study_keep_their_precision(
        self, folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sr_zoo.cli.study as command

        seen: list[str] = []

        def settings(**changes: Any) -> Settings:
            seen.append(changes.get("precision", "chosen"))
            return small(**{"precision": "fp32", **changes})

        monkeypatch.setattr(command, "quick_settings", settings)
        words = ["study", "--base", str(folders / "base.safetensors"), "--target", str(folders / "target.safetensors")]
        words += ["--images", str(folders / "photos"), "--quick", "--out", str(folders / "out")]
        assert main([*words, "--precision", "bf16", "--stages", "search", "retraining"]) == 0
        assert main([*words, "--stages", "search", "retraining"]) == 0
        assert capsys.readouterr().err.count("(done)") == 2
        assert main([*words, "--precision", "fp32", "--stages", "search", "retraining"]) == 2
        assert "precision was bf16 and is fp32" in capsys.readouterr().err
        assert seen == ["bf16", "bf16", "fp32"]

    def test_the_precision_is_one_that_the_processor_has(self) -> None:
        assert Settings().precision == fast_precision("cpu")
        with pytest.raises(StudyError, match="precision must be one of fp32, bf16; got 'fp8'"):
            Settings(precision="fp8")

    def test_another_study_is_refused_before_anything_is_timed(
        self, folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sr_zoo.cli.study as command

        monkeypatch.setattr(command, "quick_settings", lambda **changes: small(**changes))
        words = ["study", "--base", str(folders / "base.safetensors"), "--target", str(folders / "target.safetensors")]
        words += ["--images", str(folders / "photos"), "--quick", "--stages", "search", "--out", str(folders / "out")]
        assert main(words) == 0
        page = (folders / "out" / "report.html").read_bytes()
        monkeypatch.setattr(command, "make_plan", lambda *_: pytest.fail("this is work"))
        assert main([*words, "--seed", "5"]) == 2
        assert "seed was 0 and is 5. Name another folder, or write over it with --overwrite" in capsys.readouterr().err
        assert (folders / "out" / "report.html").read_bytes() == page

    def test_a_report_needs_a_study(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(tmp_path / "nowhere")]) == 2
        assert "a study is a folder" in capsys.readouterr().err
        assert main(["report", str(tmp_path)]) == 2
        assert "of which a stage is done" in capsys.readouterr().err


def test_a_page_is_written_from_the_search_alone(subject: Subject, tmp_path: Path) -> None:
    archive = run_study(subject, small(), tmp_path, stages=(SEARCH,), progress=False)
    page, text = write_report(archive)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "Checks of the path" in text.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_whole_study_of_three_degradations_from_two_checkpoints(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sr_zoo.cli.study as command

    monkeypatch.setattr(command, "quick_settings", lambda **changes: small(**changes))
    words = ["study", "--base", str(folders / "base.pth"), "--target", str(folders / "target.pth"), "--quick"]
    (folders / "grain.json").write_text(json.dumps(PoissonNoise(2.0).config()))
    words += ["--images", str(folders / "photos"), "--degradations", "blur", "jpeg:10", str(folders / "grain.json")]
    out = folders / "out"
    assert main([*words, "--out", str(out)]) == 0
    assert open_archive(out).stages() == sorted(stage.name for stage in STAGES)
    matrix = open_archive(out).load("specificity")["strict"]
    assert list(matrix.shares) == ["blur", "jpeg", "grain"]
    assert list(matrix.shares["jpeg"]) == ["clean", "blur", "jpeg", "grain", "all"]
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == len(STAGES) - 2  # pictures and rankings have no words of their own
    capsys.readouterr()
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("(done)") == len(STAGES)
    done = json.loads((out / "search" / "done.json").read_text())
    assert done["environment"]["torch"] == torch.__version__
    assert isinstance(matrix.shares["blur"]["blur"], Estimate)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two_branch", "dasr"])
def test_a_whole_study_of_a_network_with_two_branches(
    kind: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sr_zoo.cli.study as command

    monkeypatch.setattr(command, "quick_settings", lambda **changes: small(retrain_batch=2, **changes))
    arguments = {"num_feat": 4, "num_block": 1, "hidden": 2, "condition": 2, "predictor_feat": 2}
    torch.manual_seed(0)
    state = build(kind, arguments).state_dict()
    for role in ("one", "other"):
        save_network(folders / f"{role}.safetensors", kind, arguments, state, {})
        state = {
            name: value + 0.05 * torch.randn_like(value) if value.is_floating_point() else value
            for name, value in state.items()
        }
    words = ["study", "--base", str(folders / "one.safetensors"), "--target", str(folders / "other.safetensors")]
    assert main([*words, "--quick", "--images", str(folders / "photos"), "--out", str(folders / "out")]) == 0
    assert open_archive(folders / "out").stages() == sorted(stage.name for stage in STAGES)


@pytest.fixture(scope="module")
def ranked(learnt: Subject, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    stages = (SEARCH, REVERSION, RANKINGS, RIVALS)
    return run_study(learnt, small(), tmp_path_factory.mktemp("study"), stages=stages, progress=False)


class TestRivals:
    def test_every_ranking_is_measured_like_the_sets_that_it_is_compared_with(
        self, learnt: Subject, ranked: Archive
    ) -> None:
        reversion = ranked.load("reversion")
        for name, rivals in ((name, ranked.load("rivals")[f"rivals_{name}"]) for name in learnt.functions):
            by_ranking = {entry.ranking: entry for entry in rivals.entries}
            assert {"attribution", "attribution, equation 7", "Fisher", "weight change", "random"} <= set(by_ranking)
            assert not any(label.endswith("no contrast") and "attribution" not in label for label in by_ranking)
            shares = [entry.reverted.value for entry in rivals.entries]
            assert shares == sorted(shares, reverse=True)
            assert rivals.others == tuple(other for other in learnt.functions if other != name)
            for entry in rivals.entries:
                for kind, gain in entry.gain.items():
                    better = reversion[f"outputs_{kind}"].reverted[name].value
                    assert gain.value == pytest.approx(better - entry.reverted.value, abs=1e-9), (entry.ranking, kind)
                    assert gain.low <= gain.value <= gain.high

    def test_the_summary_holds_them(self, ranked: Archive) -> None:
        assert "Do other rankings put a function back?" in summary(ranked)
