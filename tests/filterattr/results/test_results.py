"""Scores, selections, contrast: ordering, ties, sets, index files, files."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    ChannelAttributor,
    FilterAttribution,
    FilterAttributor,
    FilterAttrWarning,
    FilterScores,
    SettingError,
    StorageError,
    Unit,
    contrast,
)
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import ScoredParameter, kept_by
from tests.networks import smooth_network, squared_sum

PARAMETERS = {
    "a.weight": ScoredParameter(Unit("o i ... -> o i"), (2, 3, 3, 3)),
    "b.weight": ScoredParameter(Unit("o i ... -> o i"), (2, 2)),
}


def make_scores(values: list[float]) -> FilterScores:
    flat = torch.tensor(values, dtype=torch.float64)
    return FilterScores({"a.weight": flat[:6].reshape(2, 3), "b.weight": flat[6:].reshape(2, 2)}, PARAMETERS)


@pytest.fixture
def scores() -> FilterScores:
    return make_scores([5, 1, 4, 1, 9, 2, 6, 4, 3, 0])


class TestTop:
    @pytest.mark.parametrize("kinds", [1, 2, 7, 10_000])
    def test_takes_what_a_stable_sort_takes(self, kinds: int) -> None:
        generator = torch.Generator().manual_seed(kinds)
        values = torch.randint(-kinds, kinds, (2000,), generator=generator).double() + 0.5
        values[::7] *= -0.0  # both zeros are one score
        scores = FilterScores({"w": values}, {"w": ScoredParameter(Unit("... -> ..."), (2000,))})
        order = torch.sort(values, descending=True, stable=True).indices
        for count in (0, 1, 19, 1000, 1999, 2000):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                chosen = scores.top(count)["w"]
            assert torch.equal(chosen.nonzero().flatten(), order[:count].sort().values)

    def test_a_fraction_is_rounded_to_the_nearest_number(self, scores: FilterScores) -> None:
        assert [scores.top(fraction).count for fraction in (0.0, 0.04, 0.05, 0.1, 0.26, 1.0)] == [0, 0, 1, 1, 3, 10]

    def test_a_whole_number_counts_units(self, scores: FilterScores) -> None:
        assert scores.top(1).count == 1
        assert scores.top(10).count == 10
        assert bool(scores.top(1)["a.weight"][1, 1])

    def test_ties_go_to_the_earlier_parameter_output_and_input(self) -> None:
        tied = make_scores([1.0] * 10)
        chosen = tied.top(7)
        assert chosen["a.weight"].all()
        assert chosen["b.weight"].tolist() == [[True, False], [False, False]]

    @pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan"), 50.0])
    def test_fractions_outside_zero_and_one_are_refused(self, scores: FilterScores, fraction: float) -> None:
        with pytest.raises(SettingError, match=r"a fraction of units must lie in \[0, 1\]"):
            scores.top(fraction)

    @pytest.mark.parametrize("number", [-1, 11])
    def test_numbers_outside_the_units_are_refused(self, scores: FilterScores, number: int) -> None:
        with pytest.raises(SettingError, match=rf"number of units must lie in \[0, 10\]; got {number}"):
            scores.top(number)

    @pytest.mark.parametrize("amount", [True, "1%"])
    def test_other_types_are_refused(self, scores: FilterScores, amount: object) -> None:
        with pytest.raises(SettingError, match="must be a fraction"):
            scores.top(amount)  # type: ignore[arg-type]


class TestTopAndZeros:
    def test_units_that_are_taken_for_their_place_are_told(self) -> None:
        scores = make_scores([0, 0, 3, 0, 1, 0, 0, 0, 2, 0])
        with pytest.warns(FilterAttrWarning, match=r"2 of the 5 selected .* 3 of all have more\. .* top\(3\)"):
            assert scores.top(5).count == 5
        with pytest.warns(FilterAttrWarning, match=r"4 of the 4 selected .* There is nothing to select\."):
            make_scores([0] * 10).top(0.4)

    def test_nothing_is_said_where_the_scores_decide(self) -> None:
        zeros = make_scores([0, 0, 3, 0, 1, 0, 0, 0, 2, 0])
        assert [zeros.top(amount).count for amount in (0, 3, 1.0)] == [0, 3, 10]  # all of them are asked for
        assert make_scores([-1, 0, 3, -2, 1, 5, -3, -4, 2, 6]).top(6).count == 6  # one 0 among signed scores
        assert make_scores([-1, -1, 3, -1, 1, 5, -3, -4, 2, 6]).top(6).count == 6  # a tie of other numbers
        assert FilterScores.from_index(list(range(10)), zeros).top(9).count == 9

    def test_the_least_of_a_reversed_ranking_may_be_zero(self) -> None:
        assert (-make_scores([0, 0, 3, 0, 1, 0, 0, 0, 2, 0])).top(4).count == 4

    def test_numbers_that_are_none_are_refused(self) -> None:
        with pytest.raises(SettingError, match="2 are NaN"):
            make_scores([1, 2, float("nan"), 3, 4, 5, 6, float("nan"), 8, 9]).top(2)


class TestOnly:
    def test_a_fraction_is_one_of_what_is_left(self, scores: FilterScores) -> None:
        left = scores.only("b.*")
        assert list(left) == ["b.weight"]
        assert left.top(0.5)["b.weight"].tolist() == [[True, True], [False, False]]

    def test_order_is_that_of_the_network_and_not_of_the_globs(self, scores: FilterScores) -> None:
        assert list(scores.only("b.weight", "a.*", "*")) == ["a.weight", "b.weight"]

    def test_selections_are_narrowed_too(self, scores: FilterScores) -> None:
        assert scores.top(5).only("b.*") == scores.only("b.*").select({"b.weight": [(0, 0), (0, 1)]})

    def test_a_group_stays_with_all_its_members(self) -> None:
        half = ScoredParameter(Unit("o i -> o"), (2, 3), "both")
        parameters = {"a": half, "other": ScoredParameter(Unit("... -> ..."), (2,)), "b": half}
        scores = FilterScores({"both": torch.ones(2), "other": torch.ones(2)}, parameters)
        assert list(scores.only("both").parameters) == ["a", "b"]
        with pytest.raises(SettingError, match=r"match a name of 'both', 'other'; got 'a'"):
            scores.only("a")

    def test_globs_that_match_nothing_are_named(self, scores: FilterScores) -> None:
        with pytest.raises(SettingError, match=r"globs that each match a name of .*; got 'c\.\*', 'A\.\*'"):
            scores.only("a.*", "c.*", "A.*")
        with pytest.raises(SettingError, match="got none"):
            scores.only()

    def test_what_was_narrowed_does_not_mix_with_the_whole(self, scores: FilterScores) -> None:
        with pytest.raises(SettingError, match=r"they differ in 'a\.weight'"):
            scores.top(3) - scores.top(3).only("b.*")


class TestSelect:
    def test_units_rows_and_places_from_the_end(self, scores: FilterScores) -> None:
        chosen = scores.select({"a.weight": [(1, 2), (0, 0)], "b.weight": [-1]})
        assert chosen["a.weight"].tolist() == [[True, False, False], [False, False, True]]
        assert chosen["b.weight"].tolist() == [[False, False], [True, True]]

    def test_takes_the_places_of_the_table(self, scores: FilterScores) -> None:
        first = scores.to_frame().head(4)
        places = {name: list(rows["unit"]) for name, rows in first.groupby("parameter")}
        assert scores.select(places) == scores.top(4)

    def test_takes_the_one_unit_of_a_layer(self) -> None:
        scores = FilterScores({"w": torch.tensor(1.0)}, {"w": ScoredParameter(Unit("... ->"), (4,))})
        assert scores.select({"w": [()]}).count == 1

    def test_nothing_is_nothing(self, scores: FilterScores) -> None:
        assert scores.select({}).count == 0

    def test_all_that_does_not_exist_is_in_one_error(self, scores: FilterScores) -> None:
        with pytest.raises(SettingError, match=r"no 'c', only 'a.weight', 'b.weight'; 'b.weight' .* none at \(0, 2\)"):
            scores.select({"a.weight": [0], "c": [0], "b.weight": [(0, 2)]})

    @pytest.mark.parametrize("place", [2, -3, (0, 3), (0, 0, 0), 0.0, True, "0", slice(1)])
    def test_places_outside_or_of_other_types_are_refused(self, scores: FilterScores, place: object) -> None:
        with pytest.raises(SettingError, match=r"'a.weight' has units of shape \(2, 3\) and none at"):
            scores.select({"a.weight": [place]})  # type: ignore[list-item]


class TestIndexFiles:
    def test_round_trip_through_a_published_index_file(self, scores: FilterScores, tmp_path: Path) -> None:
        path = tmp_path / "blur_index.txt"
        np.savetxt(path, scores.to_index(), fmt="%d")
        again = FilterScores.from_index(path, scores)
        np.testing.assert_array_equal(again.to_index(), scores.to_index())
        for amount in (1, 3, 0.5):
            assert again.top(amount) == scores.top(amount)

    def test_order_is_parameter_output_input(self, scores: FilterScores) -> None:
        assert scores.to_index().tolist() == [4, 6, 0, 2, 7, 8, 5, 1, 3, 9]

    @pytest.mark.parametrize("index", [[0, 1, 2], [0] * 10, [*range(1, 11)]])
    def test_what_is_no_permutation_is_refused(self, scores: FilterScores, index: list[int]) -> None:
        with pytest.raises(SettingError, match="an index must name each of the 10 units once"):
            FilterScores.from_index(index, scores)

    def test_a_file_without_numbers_is_refused(self, scores: FilterScores, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("conv1\n")
        with pytest.raises(SettingError, match="one whole number a line"):
            FilterScores.from_index(path, scores)


class TestArithmetic:
    def test_sums_differences_and_multiples(self, scores: FilterScores) -> None:
        torch.testing.assert_close((scores - scores).flat(), torch.zeros(10, dtype=torch.float64))
        torch.testing.assert_close((scores + scores).flat(), (2 * scores).flat())
        torch.testing.assert_close((-scores).flat(), -scores.flat())

    def test_other_units_are_refused_by_name(self, scores: FilterScores) -> None:
        other = FilterScores({"c.weight": torch.zeros(2)}, {"c.weight": ScoredParameter(Unit("o i -> o"), (2, 2))})
        with pytest.raises(SettingError, match=r"differ in 'a\.weight', 'b\.weight', 'c\.weight'"):
            scores - other

    def test_contrast_of_two_is_their_difference_and_of_three_against_the_mean(self, scores: FilterScores) -> None:
        named = {"blur": scores, "noise": 2 * scores, "jpeg": 6 * scores}
        torch.testing.assert_close(contrast({"blur": scores, "noise": 3 * scores}, "blur").flat(), -2 * scores.flat())
        torch.testing.assert_close(contrast(named, "blur").flat(), -3 * scores.flat())
        torch.testing.assert_close(contrast(named, "jpeg", against="noise").flat(), 4 * scores.flat())

    def test_shares_do_not_depend_on_the_size_of_the_losses(self, scores: FilterScores) -> None:
        other = make_scores([0, 1, 0, 3, 0, 2, 0, 4, 0, 10])
        plain = contrast({"blur": scores, "noise": other}, "blur", scale="share")
        louder = contrast({"blur": scores, "noise": 0.01 * other}, "blur", scale="share")
        torch.testing.assert_close(plain.flat(), louder.flat())
        torch.testing.assert_close(plain.flat(), scores.flat() - 35 / 20 * other.flat())
        silent = contrast({"blur": scores, "noise": 0 * other}, "blur", scale="share")
        torch.testing.assert_close(silent.flat(), scores.flat())

    def test_strict_is_the_smaller_of_both_scales(self, scores: FilterScores) -> None:
        named = {"blur": scores, "noise": make_scores([0, 1, 0, 3, 0, 2, 0, 4, 0, 10])}
        for of in named:
            both = [contrast(named, of, scale=scale).flat() for scale in ("loss", "share")]
            torch.testing.assert_close(contrast(named, of, scale="strict").flat(), torch.minimum(*both))

    def test_unknown_scale_is_refused(self, scores: FilterScores) -> None:
        with pytest.raises(SettingError, match="scale must be one of loss, share, strict; got 'sum'"):
            contrast({"blur": scores, "noise": scores}, "blur", scale="sum")  # type: ignore[arg-type]

    @pytest.mark.parametrize(("of", "against"), [("rain", None), ("blur", "rain"), ("blur", "blur")])
    def test_contrast_refuses_unknown_names(self, scores: FilterScores, of: str, against: str | None) -> None:
        with pytest.raises(SettingError, match="contrast needs a function and another one"):
            contrast({"blur": scores, "noise": scores}, of, against)

    def test_contrast_needs_something_to_compare_with(self, scores: FilterScores) -> None:
        with pytest.raises(SettingError, match="contrast needs a function and another one"):
            contrast({"blur": scores}, "blur")


class TestSelections:
    def test_set_operations_equal_those_of_python_sets(self, scores: FilterScores) -> None:
        first, second = scores.top(4), (-scores).top(8)
        a, b = ({int(i) for i in s.flat().nonzero()} for s in (first, second))
        for result, expected in (
            (first | second, a | b),
            (first & second, a & b),
            (first - second, a - b),
            (~first, set(range(10)) - a),
        ):
            assert {int(i) for i in result.flat().nonzero()} == expected
            assert result.count == len(expected)
        assert first.jaccard(second) == pytest.approx(len(a & b) / len(a | b))
        assert first.overlap(second) == pytest.approx(len(a & b) / min(len(a), len(b)))

    def test_equality(self, scores: FilterScores) -> None:
        assert scores.top(3) == (2 * scores).top(3)
        assert scores.top(3) != scores.top(4)
        assert scores.top(3) != "a selection"

    def test_weights_mark_whole_kernels(self, scores: FilterScores) -> None:
        marked = scores.top(1).weights()["a.weight"]
        assert marked.shape == (2, 3, 3, 3)
        assert marked[1, 1].all()
        assert int(marked.sum()) == 9

    def test_random_draws_as_many_units_and_repeats_with_its_seed(self, scores: FilterScores) -> None:
        draws = [scores.top(4).random(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert [draw.count for draw in draws] == [4, 4, 4]
        assert draws[0] == draws[1]
        assert draws[0] != draws[2]

    def test_layer_matched_random_keeps_the_count_of_every_layer(self, scores: FilterScores) -> None:
        chosen = scores.top(4)
        draw = chosen.random(torch.Generator().manual_seed(3), layer_matched=True)
        assert draw.per_layer() == chosen.per_layer() == {"a.weight": 3, "b.weight": 1}

    def test_random_draws_are_uniform(self) -> None:
        self.check_uniform(torch.Generator().manual_seed(0), 1)

    def test_the_sets_of_small_networks_are_those_of_all_versions(self) -> None:
        every = FilterSelection({"w": torch.arange(1000) < 30}, {"w": ScoredParameter(Unit("... -> ..."), (1000,))})
        expected = torch.randperm(1000, generator=torch.Generator().manual_seed(5))[:30].sort().values
        assert torch.equal(every.random(torch.Generator().manual_seed(5))["w"].nonzero().flatten(), expected)

    @pytest.mark.parametrize("count", [1, 3])
    def test_draws_of_large_networks_are_uniform_and_repeat(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        monkeypatch.setattr("filterattr.results.scores._MANY", 2)
        self.check_uniform(torch.Generator().manual_seed(0), count)
        every = FilterSelection({"w": torch.arange(1000) < 30}, {"w": ScoredParameter(Unit("... -> ..."), (1000,))})
        draws = [every.random(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]
        generator = torch.Generator().manual_seed(1)
        assert every.random(generator) != every.random(generator)
        assert [(~every).random(generator).count, every.random(generator).count] == [970, 30]

    def test_layers_of_a_large_network_are_drawn_without_permuting_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether a set is drawn in the fast way is a matter of the whole network, not of its layers."""
        like = {name: ScoredParameter(Unit("... -> ..."), (100,)) for name in ("a", "b")}
        every = FilterSelection({"a": torch.arange(100) < 7, "b": torch.arange(100) < 90}, like)
        before = every.random(torch.Generator().manual_seed(3), layer_matched=True)
        generator = torch.Generator().manual_seed(3)
        for name, count in (("a", 7), ("b", 90)):  # as in all versions
            places = torch.randperm(100, generator=generator)[:count].sort().values
            assert torch.equal(before[name].nonzero().flatten(), places)
        monkeypatch.setattr("filterattr.results.scores._MANY", 150)  # more than a layer has, fewer than all
        monkeypatch.setattr(torch, "randperm", None)
        drawn = every.random(torch.Generator().manual_seed(3), layer_matched=True)
        assert drawn.per_layer() == every.per_layer() == before.per_layer()
        assert drawn == every.random(torch.Generator().manual_seed(3), layer_matched=True)

    @staticmethod
    def check_uniform(generator: torch.Generator, count: int) -> None:
        one = FilterSelection({"w": torch.arange(4) < count}, {"w": ScoredParameter(Unit("... -> ..."), (4,))})
        hits = sum(one.random(generator)["w"].long() for _ in range(2000))
        assert int(hits.sum()) == 2000 * count
        assert int(hits.min()) > 500 * count - 70
        assert int(hits.max()) < 500 * count + 70


class TestFrame:
    def test_rows_are_units_from_the_highest_score(self, scores: FilterScores) -> None:
        frame = scores.to_frame()
        assert list(frame.columns) == ["parameter", "unit", "score"]
        assert frame.iloc[0].tolist() == ["a.weight", (1, 1), 9.0]
        assert len(frame) == 10


class TestSingleWeights:
    """Where every weight is a unit, the absolute value of its sum is the sum of its absolute values."""

    @pytest.mark.parametrize(
        "settings", [{}, {"internal_batch_size": 2}, {"method": "adaptive"}, {"aggregate": "pooled"}]
    )
    def test_equal_numbers_are_kept_once_and_are_right(self, settings: dict[str, object], tmp_path: Path) -> None:
        torch.manual_seed(0)
        base, target = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
        samples = [torch.randn(4, 3, dtype=torch.float64) for _ in range(4)]
        loss = lambda model, x: model(x).square().sum()  # noqa: E731
        unit = {"weight": "weight", "bias": "layer"}
        attributor = FilterAttributor(base, unit=unit, select="*")
        found = attributor.attribute(base, target, loss, samples, **settings)
        found.save(tmp_path / "result")
        if not settings:  # by hand: single samples, one after the other
            each = [attributor.attribute(base, target, loss, [sample]).scores("sum")["weight"] for sample in samples]
            expected = torch.stack([one.abs() for one in each]).mean(0)
            torch.testing.assert_close(found.scores("abs_of_sum")["weight"], expected, rtol=1e-13, atol=0)
            squares = torch.stack(each).square().mean(0)
            torch.testing.assert_close(found.mean_squares["sum"]["weight"], squares, rtol=1e-13, atol=0)
        for result in (found, FilterAttribution.load(tmp_path / "result")):
            means = {reduction: kept_by(kept_by(result.means)[reduction]) for reduction in result.means}
            assert means["abs_of_sum"]["weight"] is means["sum_of_abs"]["weight"]
            assert means["sum"]["weight"] is not means["sum_of_abs"]["weight"]
            assert means["abs_of_sum"]["bias"] is not means["sum_of_abs"]["bias"]
            assert not torch.equal(result.scores("abs_of_sum")["bias"], result.scores("sum_of_abs")["bias"])
            assert (result.scores("sum")["weight"] < 0).any()

    def test_a_checkpoint_that_holds_them_twice_is_taken_up(self, tmp_path: Path) -> None:
        from filterattr.estimators.fixed import PerSampleEstimator
        from filterattr.units.unit import STATISTICS

        torch.manual_seed(0)
        base, target = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
        samples = [torch.randn(4, 3, dtype=torch.float64) for _ in range(4)]
        loss = lambda model, x: model(x).square().sum()  # noqa: E731
        attributor = FilterAttributor(base, unit="weight")
        whole = attributor.attribute(base, target, loss, samples)

        def as_before(_run: PerSampleEstimator, name: str) -> dict[tuple[str, str], str]:
            return {
                (kind, reduction): f"{kind}/{reduction}/{name}" for kind in STATISTICS for reduction in STATISTICS[kind]
            }

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PerSampleEstimator, "_keys_of", as_before)
            attributor.attribute(base, target, loss, samples[:2], checkpoint=tmp_path / "job")
        resumed = attributor.attribute(base, target, loss, samples, checkpoint=tmp_path / "job")
        for reduction in whole.means:
            assert torch.equal(resumed.scores(reduction)["weight"], whole.scores(reduction)["weight"])


class TestFiles:
    @pytest.fixture
    def attribution(self) -> FilterAttribution:
        base, target = smooth_network(), smooth_network()
        images = [torch.rand(1, 1, 6, 6, dtype=torch.float64) for _ in range(3)]
        return FilterAttributor(base).attribute(base, target, squared_sum, images, progress=False)

    def test_saved_and_loaded_results_are_equal(self, attribution: FilterAttribution, tmp_path: Path) -> None:
        path = tmp_path / "attribution.safetensors"
        attribution.save(path)
        again = FilterAttribution.load(path)
        assert repr(again) == repr(attribution)
        assert again.path_losses == attribution.path_losses
        assert again.per_layer() == attribution.per_layer()
        for reduction in ("sum_of_abs", "abs_of_sum", "sum"):
            assert torch.equal(again.scores(reduction).flat(), attribution.scores(reduction).flat())
            assert again.scores(reduction).top(3) == attribution.scores(reduction).top(3)

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "attribution.safetensors"
        path.write_bytes(b"<html>")
        with pytest.raises(StorageError, match="is not a readable safetensors file"):
            FilterAttribution.load(path)

    def test_standard_errors_equal_those_of_single_samples(self) -> None:
        base, target = smooth_network(), smooth_network()
        images = [torch.rand(1, 1, 6, 6, dtype=torch.float64) for _ in range(4)]
        attributor = FilterAttributor(base)
        whole = attributor.attribute(base, target, squared_sum, images, progress=False)
        single = torch.stack([attributor.attribute(base, target, squared_sum, [x]).scores().flat() for x in images])
        torch.testing.assert_close(whole.scores().flat(), single.mean(0))
        expected = single.std(0) / 2
        torch.testing.assert_close(whole.standard_errors().flat(), expected, rtol=1e-6, atol=1e-12)

    def test_one_sample_has_no_standard_error(self) -> None:
        base, target = nn.Linear(2, 2), nn.Linear(2, 2)
        attribution = FilterAttributor(base).attribute(base, target, lambda model: model(torch.ones(2)).sum())
        with pytest.raises(SettingError, match="at least two samples"):
            attribution.standard_errors()

    def test_results_do_not_share_memory_with_the_model(self, attribution: FilterAttribution) -> None:
        before = copy.deepcopy(dict(attribution.scores()))
        attribution.scores().top(0.5)
        for name, value in attribution.scores().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def attribution_of(**options: object) -> FilterAttribution:
    base, target = smooth_network(), smooth_network()
    data = list(torch.rand(3, 1, 1, 12, 12, dtype=torch.float64))
    return FilterAttributor(base).attribute(base, target, squared_sum, data, **options)


def numbers_of(result: object) -> list[Tensor]:
    """Everything that a result says, in new memory."""
    if isinstance(result, FilterAttribution):
        scores = [result.scores(reduction) for reduction in ("sum", "sum_of_abs", "abs_of_sum")]
        return [one.flat().nan_to_num() for one in (*scores, result.standard_errors())] + [
            torch.tensor(result.per_layer()[0][1:])
        ]
    if isinstance(result, FilterScores):
        return [result.flat(), result.order(), (result * 2).flat(), result.top(3).flat()]
    if isinstance(result, FilterSelection):
        marks = [one.reshape(-1) for one in result.weights().values()]
        return [result.flat(), *marks, torch.tensor(result.count), torch.tensor(list(result.per_layer().values()))]
    return [one.clone() for one in (*result.channels().values(), result.filters().flat(), *result.values())]


def results() -> list[object]:
    attribution = attribution_of()
    scores = attribution.scores()
    channels = ChannelAttributor(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))).attribute(
        torch.rand(2, 3), torch.zeros(2, 3), lambda y: y.sum(1)
    )
    return [attribution, attribution_of(aggregate="pooled"), scores, scores.only("*"), scores.top(3), channels]


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
class TestOneResult:
    @pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_it_can_be_copied_and_sent_to_other_processes(
        self, result: object, way: Callable[[object], object]
    ) -> None:
        again = way(result)
        assert type(again) is type(result)
        assert repr(again) == repr(result)
        assert all(map(torch.equal, numbers_of(again), numbers_of(result)))
        if isinstance(result, FilterScores):
            assert float((again - result).flat().abs().max()) == 0.0  # the same units


def test_mappings_of_a_result_cannot_be_assigned_to() -> None:
    attribution = attribution_of()
    for mapping in (attribution.means, attribution.means["sum"], attribution.parameters, attribution.scores()):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["x"] = torch.zeros(1)  # type: ignore[index]


def test_scores_are_not_copied_for_who_only_ranks() -> None:
    attribution = attribution_of()
    first, second = attribution.scores(), attribution.scores()
    assert all(first.kept[name] is second.kept[name] for name in first)


def test_nested_sets_are_those_of_top_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    like = {"a": ScoredParameter(Unit("... -> ..."), (50,)), "b": ScoredParameter(Unit("... -> ..."), (7, 10))}
    tensors = {name: torch.randint(1, 9, one.shape, generator=generator).double() for name, one in like.items()}
    scores = FilterScores(tensors, like)
    amounts = (0.0, 3, 17, 17, 0.5, 1.0)
    assert list(scores.tops(amounts)) == [scores.top(amount) for amount in amounts]
    with pytest.raises(SettingError, match="ascend"):
        next(scores.tops([3, 2]))
