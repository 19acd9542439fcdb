"""What users name by texts: keys of units, `select=`, layers; and what is scored if they name nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from fnmatch import translate
from glob import escape
from typing import Any

import pytest
import torch
from torch import nn

from filterattr import (
    FilterAttributor,
    FilterAttrWarning,
    FilterScores,
    Group,
    LossError,
    SettingError,
    Unit,
    UnitError,
    output_channels,
)
from filterattr.activations.attributor import _select_layers
from filterattr.analysis.rankings import magnitude
from filterattr.model.swap import ParameterSwap
from filterattr.units.groups import UnitLike
from filterattr.units.select import scored_parameters


def scored(model: nn.Module, **settings: Any) -> dict[str, tuple[int, ...]]:
    """Names of the scored parameters, and the shapes of their scores."""
    parameters = FilterAttributor(model, **settings).scored_parameters()
    return {name: tuple(one.units_shape) for name, one in parameters.items()}


def network() -> nn.ModuleDict:
    """Names with brackets, and a tied weight."""
    model = nn.ModuleDict({"conv[3x3]": nn.Conv2d(2, 4, 3), "conv3": nn.Conv2d(2, 4, 3), "head": nn.Conv2d(4, 3, 1)})
    model["tied"] = nn.Conv2d(4, 3, 1)
    model["tied"].weight = model["head"].weight
    return model


def test_mapping_takes_the_first_key_that_matches() -> None:
    wanted = {"head.*": "layer", "conv3.*": "filter", "*": "kernel"}
    assert scored(network(), unit=wanted) == {"conv[3x3].weight": (4, 2), "conv3.weight": (4,), "head.weight": ()}
    with pytest.raises(UnitError, match=r"no glob of 'head\.\*' matches 'conv3\.weight'"):
        FilterAttributor(network(), unit={"head.*": "layer"})


def test_keys_of_a_mapping_mean_names_with_brackets_and_second_names() -> None:
    assert scored(network(), unit={"conv[3x3].weight": "layer", "*": "kernel"})["conv[3x3].weight"] == ()
    assert scored(network(), unit={"conv[3x3].weight": "layer", "*": "kernel"})["conv3.weight"] == (4, 2)
    assert scored(network(), unit={escape("conv[3x3].weight"): "layer", "*": "kernel"})["conv[3x3].weight"] == ()
    assert scored(network(), unit={"tied.weight": "layer", "*": "kernel"})["head.weight"] == ()
    assert scored(network(), unit={"tied*": "filter", "*": "kernel"})["head.weight"] == (3,)
    group = {"conv[3x3]": Group({"*": "o ... -> o"}), "*": "kernel"}
    assert scored(network(), unit=group)["conv[3x3].bias"] == (4,)
    assert scored(network(), unit=group)["conv3.weight"] == (4, 2)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ({"haed.weight": "layer", "*": "kernel"}, r"no parameter has a name like 'haed\.weight' \(nearest: 'head\.we"),
        ({"conv4*": "layer", "*": "kernel"}, r"no parameter has a name like 'conv4\*' \(nearest: "),
        ({"*": "kernel", "head*": "layer"}, r"an earlier key takes all that 'head\*' matches; put 'head\*' before"),
        ({"conv[5x5].weight": "layer", "*": "kernel"}, r"'conv\[5x5\]\.weight' \(nearest: 'conv\[3x3\]\.weight'"),
        ({"haed": Group({"*": "o ... -> o"})}, r"no module with parameters has a name like 'haed' \(nearest: 'head'"),
    ],
)
def test_keys_that_mean_nothing_are_refused_with_the_nearest_names(unit: UnitLike, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        FilterAttributor(network(), unit=unit)


def test_all_keys_that_mean_nothing_are_in_one_message() -> None:
    with pytest.raises(UnitError, match=r"'haed\.\*'.*; .*'bdoy\.\*'"):
        FilterAttributor(network(), unit={"haed.*": "layer", "bdoy.*": "layer", "*": "kernel"})


def test_a_key_may_mean_what_is_not_selected_and_the_rest_may_be_nothing() -> None:
    assert scored(network(), unit={"*bias": "layer", "*": "kernel"})["head.weight"] == (3, 4)
    assert scored(nn.Linear(2, 3), unit={"weight": "filter", "*": "kernel"}) == {"weight": (3,)}


def test_select_means_names_with_brackets_and_second_names() -> None:
    assert list(scored(network(), select="conv[3x3].weight")) == ["conv[3x3].weight"]
    assert list(scored(network(), select=["tied.weight", "conv3.bias"])) == ["conv3.bias", "head.weight"]
    assert list(scored(network(), select="tied.*")) == ["head.weight", "tied.bias"]


def test_names_in_select_that_mean_nothing_are_refused_with_the_nearest_names() -> None:
    message = (
        r"select=\['head\.weight', 'haed\.weight'\] must name .* nothing is like 'haed\.weight' \(nearest: 'head\.we"
    )
    with pytest.raises(UnitError, match=message):
        FilterAttributor(network(), select=["head.weight", "haed.weight"])


def test_allow_unused_means_second_names_too() -> None:
    base, target = network().double(), network().double()
    image = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    loss = lambda model: model["conv3"](image).square().sum()  # noqa: E731
    rest = ["conv[3x3].weight", "conv[3x3].bias", "head.bias", "tied.*"]  # head.weight is meant by its second name
    assert FilterAttributor(base).attribute(base, target, loss, allow_unused=rest).completeness_error < 1e-10
    with pytest.raises(LossError, match=r"differ in 'tied\.bias', but no gradient"):
        FilterAttributor(base).attribute(base, target, loss, allow_unused=[*rest[:-1], "tied.weight", "tide.bias"])


def test_scores_are_narrowed_by_names_with_brackets() -> None:
    scores = magnitude(FilterAttributor(network()), network())
    assert list(scores.only("conv[3x3].weight")) == ["conv[3x3].weight"]
    with pytest.raises(SettingError, match=r"got 'haed\.weight' \(nearest: 'head\.weight'"):
        scores.only("haed.weight")
    with pytest.raises(SettingError, match=r"there is no 'haed\.weight' \(nearest: 'head\.weight'"):
        scores.select({"haed.weight": [0]})


def test_layers_are_meant_by_names_with_brackets() -> None:
    model = network()
    assert list(_select_layers(model, "conv[3x3]")) == ["conv[3x3]"]
    assert list(_select_layers(model, ["conv*"])) == ["conv[3x3]", "conv3"]
    with pytest.raises(SettingError, match=r"'haed' \(nearest: 'head'\) fit none of"):
        _select_layers(model, ["haed", "conv3"])


def test_a_glob_is_compiled_once_and_an_exact_name_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, as seconds depend on the machine; the seconds are in tests/benchmarks."""
    translated = []
    monkeypatch.setattr("filterattr.names.translate", lambda text: translated.append(text) or translate(text))
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(300)])
    every = [f"{number}.weight" for number in range(300)]
    FilterAttributor(model, unit=dict.fromkeys(every, "filter"))
    FilterAttributor(model, unit=output_channels(model))
    parameters = FilterAttributor(model, select=every).scored_parameters()
    FilterScores({name: torch.zeros(1, 1) for name in every}, parameters).only(*every)
    assert not translated
    FilterAttributor(model, unit={f"{number}.w*": "filter" for number in range(300)})
    assert len(translated) == 300


@pytest.mark.skipif(torch.__version__ < (2, 8), reason="einops imports torch._dynamo on PyTorch before 2.8")
def test_the_first_attributor_imports_nothing_heavy() -> None:
    code = (
        "import sys, torch; from torch import nn; from filterattr import FilterAttributor, attention_heads; "
        "model = nn.MultiheadAttention(4, 2); FilterAttributor(model, unit=attention_heads(model)); "
        "FilterAttributor(nn.Conv2d(1, 2, 3)); print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_default_of_a_large_network_is_no_single_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3), "point": nn.Conv2d(3, 9, 1), "head": nn.Linear(9, 30)})
    kernels = {"conv.weight": (3, 2), "point.weight": (9, 3), "head.weight": (30, 9)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scored(model) == kernels
        assert FilterAttributor(model).unit == "kernel"
    monkeypatch.setattr("filterattr.units.select._MANY_UNITS", 290)  # 297 kernels are single weights
    with pytest.warns(FilterAttrWarning, match=r"unit= was not given.*'point\.weight', 'head\.weight' .* 297 in all"):
        assert scored(model) == {"conv.weight": (3, 2), "point.weight": (9,), "head.weight": (30,)}
    assert scored_silently(model, unit="filter") == {"conv.weight": (3,), "point.weight": (9,), "head.weight": (30,)}
    with pytest.warns(FilterAttrWarning, match=r"303 units for 351 weights: their scores take 0\.0 GiB, 7\.0 times"):
        assert scored(model, unit="kernel") == kernels
    monkeypatch.setattr("filterattr.units.select._MANY_UNITS", 303)
    assert scored_silently(model, unit="kernel") == kernels


def scored_silently(model: nn.Module, **settings: Any) -> dict[str, tuple[int, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return scored(model, **settings)


class Stored(nn.Module):
    """A layer that says by a flag how it stores its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features, self.fan_in_fan_out = 4, 4, False
        self.weight = nn.Parameter(torch.zeros(4, 4))


def layers() -> nn.ModuleDict:
    return nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1), "flagged": Stored(), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})


def in_other_groups(model: nn.ModuleDict) -> None:
    model["conv"].groups = 2


def in_other_groups_and_shapes(model: nn.ModuleDict) -> None:
    model["conv"].groups, model["conv"].weight.data = 2, torch.zeros(4, 2, 1, 1)


def stored_otherwise(model: nn.ModuleDict) -> None:
    model["flagged"].fan_in_fan_out = True


def of_another_class(model: nn.ModuleDict) -> None:
    model["conv"].__class__ = nn.ConvTranspose2d


def replaced(model: nn.ModuleDict) -> None:
    model["a"] = nn.Conv1d(4, 2, 1, groups=2)


def tied(model: nn.ModuleDict) -> None:
    model["b"].weight = model["a"].weight


def parametrized(model: nn.ModuleDict) -> None:
    nn.utils.parametrizations.weight_norm(model["a"])


def in_another_type(model: nn.ModuleDict) -> None:
    model["a"].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


def outcome(attributor: FilterAttributor) -> Any:
    """What is scored, or why nothing can be."""
    try:
        return attributor.scored_parameters()
    except UnitError as error:
        return str(error)


def outcome_of_a_new_one(attributor: FilterAttributor) -> Any:
    fresh = FilterAttributor(layers())
    fresh.model, fresh.unit, fresh.select = attributor.model, attributor.unit, attributor.select
    return outcome(fresh)


@pytest.mark.parametrize("unit", ["kernel", "filter", "input"])
@pytest.mark.parametrize(
    "change",
    [
        in_other_groups,
        in_other_groups_and_shapes,
        stored_otherwise,
        of_another_class,
        replaced,
        tied,
        parametrized,
        in_another_type,
    ],
)
def test_what_is_scored_follows_every_change_of_the_model(change: Any, unit: str) -> None:
    attributor = FilterAttributor(layers(), unit=unit)
    before = outcome(attributor)
    change(attributor.model)
    after = outcome(attributor)
    assert after == outcome_of_a_new_one(attributor)
    assert after != before or (change, unit) in NO_CHANGE


# what a filter of a grouped layer is does not depend on the groups
NO_CHANGE = {(in_other_groups, "kernel"), (in_other_groups, "filter"), (in_other_groups_and_shapes, "filter")}


def test_what_is_scored_follows_a_weight_that_gets_a_further_name() -> None:
    attributor = FilterAttributor(layers(), select="b.*")
    before = outcome(attributor)
    attributor.model["b"].second = attributor.model["a"].weight
    assert set(outcome(attributor)) == {"a.weight", *before}
    assert outcome(attributor) == outcome_of_a_new_one(attributor)


def test_what_is_scored_follows_the_layer_of_a_parametrized_weight() -> None:
    model = layers()
    nn.utils.parametrize.register_parametrization(model["flagged"], "weight", nn.Identity())
    attributor = FilterAttributor(model, unit="filter")
    before = outcome(attributor)
    stored_otherwise(model)
    assert outcome(attributor) != before
    assert outcome(attributor) == outcome_of_a_new_one(attributor)


def test_what_is_scored_follows_lists_and_mappings_that_are_changed_in_place() -> None:
    wanted, chosen = {"*": "input"}, ["a.weight"]
    attributor = FilterAttributor(layers(), unit=wanted, select=chosen)
    assert list(outcome(attributor)) == ["a.weight"]
    chosen.append("b.weight")
    assert list(outcome(attributor)) == ["a.weight", "b.weight"]
    wanted["*"] = "layer"
    assert outcome(attributor)["b.weight"].units_shape == ()


def test_a_predicate_selects_by_name_module_and_parameter() -> None:
    model, seen = layers(), []

    def select(name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
        seen.append((name, module, parameter))
        return name == "a.bias" or isinstance(module, nn.Conv2d)

    assert list(scored(model, select=select)) == ["conv.weight", "conv.bias", "a.bias"]
    assert seen[0] == ("conv.weight", model["conv"], model["conv"].weight)
    assert {name for name, _, _ in seen} == set(dict(model.named_parameters()))


def test_a_selection_of_nothing_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(
        UnitError, match=r"at least one parameter must be scored; select=.* leaves none of 'conv\.weight'"
    ):
        FilterAttributor(layers(), select=lambda *_: False)
    with pytest.raises(UnitError, match=r"select=None leaves none of 'weight'"):
        FilterAttributor(nn.LayerNorm(3, bias=False))
    with pytest.raises(UnitError, match=r"select=None leaves none of no parameters"):
        FilterAttributor(nn.ReLU())


@pytest.mark.parametrize(("count", "more"), [(4, []), (5, []), (6, ["1"]), (8, ["3"])])
def test_five_misfits_are_spelt_out_and_the_others_counted(count: int, more: list[str]) -> None:
    model = nn.Sequential(*(nn.Linear(size + 1, 3) for size in range(count)))
    with pytest.raises(UnitError) as caught:
        FilterAttributor(model, unit=Unit("(h d) i -> h", {"h": 2}))
    named = re.findall(r"'(\d)\.weight': the pattern '\(h d\) i -> h' .*? shape \(3, (\d)\): ", str(caught.value))
    assert named == [(str(place), str(place + 1)) for place in range(min(count, 5))]
    assert re.findall(r"chunks of 2(?: \(and (\d) more\))?$", str(caught.value)) == (more or [""])


def test_what_the_scores_of_kernels_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filterattr.units.select._MANY_UNITS", 5)
    message = r"6 units for 18 weights: their scores take 0\.0 GiB, 4\.0 times"  # 6 float64 numbers a unit
    with pytest.warns(FilterAttrWarning, match=message):
        FilterAttributor(nn.Conv1d(2, 3, 3, bias=False), unit="kernel")
    monkeypatch.setattr("filterattr.units.select._MANY_UNITS", 6)
    assert scored_silently(nn.Conv1d(2, 3, 3, bias=False), unit="kernel") == {"weight": (3, 2)}


def test_layouts_are_guessed_in_silence_without_a_list_for_them() -> None:
    model = nn.Module()
    model.up = nn.Parameter(torch.ones(3, 4, 5))
    guesses: list[str] = []
    parameters = scored_parameters(model, ParameterSwap(model), "kernel", None, guesses)
    assert parameters == scored_parameters(model, ParameterSwap(model), "kernel", None)
    assert guesses == ["up (3, 4, 5) of Module"]


def test_complex_parameters_are_scored_and_whole_numbers_are_not() -> None:
    model = nn.Module()
    model.spectrum = nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    model.table = nn.Parameter(torch.zeros(2, 3, dtype=torch.int32), requires_grad=False)
    assert scored(model) == {"spectrum": (2, 3)}
    assert scored(model, select="*") == {"spectrum": (2, 3)}
    assert scored(model, select=lambda *_: True) == {"spectrum": (2, 3)}


def test_the_default_of_many_single_weights_leaves_biases_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filterattr.units.select._MANY_UNITS", 11)
    with pytest.warns(FilterAttrWarning, match=r"kernels of 'weight' are single weights, 12 in all"):
        assert scored(nn.Linear(3, 4), select="*") == {"weight": (4,), "bias": (4,)}
