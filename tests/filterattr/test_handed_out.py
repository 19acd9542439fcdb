"""What a result hands out cannot change it: every public member of every class of results is tried."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import pickle
import types
import warnings
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import filterattr
from filterattr import (
    ChannelAttributor,
    FilterAttrError,
    FilterAttribution,
    FilterAttributor,
    FilterScores,
    FilterSelection,
    PathRecorder,
    ScoredParameter,
    Unit,
    analysis,
    signed_contrast,
)
from filterattr.analysis import Calibration, FunctionPredictor, KnockOutJob, Masking, Outputs, SampleScores, Signals
from filterattr.units.unit import FixedDict, Immutable, read_only

FUNCTIONS = ("first", "second")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


BASE, TARGET = network(0), network(1)
DATA = {name: list(torch.rand(6, 3, dtype=torch.float64)) for name in FUNCTIONS}
BATCH = torch.rand(2, 3, dtype=torch.float64)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - TARGET(x).detach()).square().sum()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def recorder(**settings: Any) -> PathRecorder:
    model = network(0)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    seen = PathRecorder(model, **settings)
    optimizer.register_step_post_hook(seen)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, BATCH).backward()
        optimizer.step()
    return seen


def repaired_network(skill: FilterAttribution) -> analysis.Repaired:
    before = network(0)

    def old(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - before(x).detach()).square().sum()

    ability = FilterAttributor(BASE, unit="filter").attribute(BASE, TARGET, old, DATA["second"], n_steps=2)
    masking = Masking(BASE, BASE, TARGET, {"first": loss, "second": old}, DATA)
    return analysis.repair(masking, {"first": skill, "second": ability}, "first")


def results() -> Iterator[object]:
    """At least one of every class of results."""
    attributor, single = FilterAttributor(BASE, unit="filter"), FilterAttributor(BASE, unit="weight")
    found = {name: attributor.attribute(BASE, TARGET, loss, DATA[name], n_steps=2) for name in FUNCTIONS}
    yield found["first"]
    yield attributor.attribute(BASE, TARGET, loss, DATA["first"], aggregate="pooled")
    yield single.attribute(BASE, TARGET, loss, DATA["first"], n_steps=2)
    scores = {name: one.scores() for name, one in found.items()}
    sets = {name: one.top(2) for name, one in scores.items()}
    signed = signed_contrast({"first": found["first"]}, "first")
    rankings = analysis.weight_change(single, BASE, TARGET), analysis.magnitude(single, TARGET, square=True)
    yield from (scores["first"], signed, sets["first"], single.attribute(BASE, TARGET, loss, n_steps=2, data=[BATCH]))
    yield from (*rankings, analysis.taylor(single, TARGET, loss, [BATCH]))
    for layer in (None, ["0"]):
        channels = ChannelAttributor(TARGET, layer).attribute(
            BATCH, torch.zeros_like(BATCH), lambda y: y[:, 0], kernels=layer is None
        )
        yield from (channels, channels.layers["0"])
    yield from (recorder(), recorder(dtype=torch.bfloat16))
    samples = {name: analysis.per_sample_scores(attributor, BASE, TARGET, loss, DATA[name]) for name in FUNCTIONS}
    yield samples["first"]
    rank: analysis.Rank = lambda by_function: by_function["first"]  # noqa: E731
    yield from (analysis.stability(samples, rank, 2, draws=5, splits=2), analysis.differences(samples, *FUNCTIONS))
    masking = Masking(BASE, BASE, TARGET, loss, DATA)
    outputs = Outputs(BASE, BASE, TARGET, lambda model, x: model(x), DATA)
    yield from (masking, outputs, masking.bootstrap(draws=10))
    yield analysis.mask_curve(masking, scores["first"], ranking="first", fractions=[0.2, 0.5])
    yield analysis.null_curve(masking, scores["first"], generator(), ranking="first", fractions=[0.2], draws=3)
    yield analysis.specificity(masking, sets)
    yield analysis.modulation(masking, sets["first"], function="first", strengths=[0.0, 1.0])
    table = analysis.compare_rankings(masking, {"it": scores}, reference="it", fractions=[0.2])
    yield from (table, table.entries[0])
    yield analysis.reversion(outputs, sets["first"], "first", generator=generator(), draws=2)
    yield analysis.output_curve(outputs, scores["first"], "first", ranking="it", fractions=[0.2, 0.5])
    yield analysis.output_matrix(outputs, sets)
    searched = analysis.search(outputs, scores["first"], "first", amount=2, greedy_steps=1, steps=1)
    yield from (searched, searched.history, searched.history.steps[0])
    yield analysis.MaskObjective(outputs, scores["first"], "first")
    repaired = repaired_network(found["first"])
    yield from (repaired, repaired.history, repaired.history.steps[0])
    chosen = analysis.choose(outputs, found, "first", until=0.1, amount=2, prices=(0.0,))
    yield from (chosen, chosen.candidates)
    predictor = FunctionPredictor(attributor, BASE, TARGET, sets)
    signals = predictor.signals_of(DATA)
    calibration = Calibration.fit(signals)
    yield from (predictor, signals["first"][0], calibration, calibration.predict(signals["first"][0]))
    yield analysis.confusion(signals, calibration.predict, method="calibrated")
    yield analysis.path_health(found["first"])
    yield analysis.sanity_checks(attributor, BASE, TARGET, loss, DATA["first"])
    knocked_out = KnockOutJob(attributor, BASE, TARGET, loss, DATA["first"][:2]).run(progress=False)
    yield knocked_out
    yield analysis.agreement(knocked_out.scores, scores, knocked_out.units, function="first", draws=5)
    yield analysis.lora_ranks(found["first"], 2)
    yield analysis.CheckpointDifference((), ("a",), (), {"w": "(1,) and (2,)"}, 0.5, 8)
    yield analysis.all_rankings(attributor, BASE, TARGET, loss, DATA["first"][:1], generator(), n_steps=2).popitem()[1]


with warnings.catch_warnings(action="ignore"):
    RESULTS = list(results())
CHOSEN = next(one for one in RESULTS if isinstance(one, FilterSelection))
SCORES = next(one for one in RESULTS if isinstance(one, FilterScores))
SIGNALS = next(one for one in RESULTS if isinstance(one, Signals))

# the arguments of members that need some, by name or by class and name
ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "check_same_units": lambda own: (own,),
    "from_index": lambda own: (own.to_index(), own),
    "only": lambda _: ("*",),
    "top": lambda _: (0.5,),
    "tops": lambda _: ([1, 2],),
    "select": lambda own: ({next(iter(own)): [0]},),
    "get": lambda own: (next(iter(own)),),
    "overlap": lambda own: (own,),
    "jaccard": lambda own: (own,),
    "random": lambda _: (generator(),),
    "weighted": lambda own: (torch.full((2, len(own)), 0.5),),
    "inclusion": lambda _: (SCORES,),
    "reproduction": lambda _: (SCORES,),
    "core": lambda _: (SCORES, 0.6),
    "Differences.selection": lambda _: (SCORES,),
    "masked": lambda _: (CHOSEN,),
    "grafted": lambda _: (CHOSEN,),
    "sample_losses": lambda own: (own.base,),
    "losses_of": lambda own: (own.base,),
    "sample_distances": lambda own: (own.base,),
    "removed": lambda _: (CHOSEN,),
    "Outputs.shares": lambda _: (CHOSEN,),
    "share_removed": lambda _: ("first", 0.5),
    "reverted": lambda _: (CHOSEN,),
    "moved": lambda _: (CHOSEN,),
    "measure": lambda own: (CHOSEN, own.bootstrap(draws=5)),
    "area": lambda _: ("first",),
    "distance_from": lambda own: (own.ends_at("first", 0)[0], TARGET, "first", 0),
    "ends_at": lambda _: ("first", 0),
    "worth": lambda _: (torch.full((CHOSEN.n_units,), 0.5).double(),),
    "weights": lambda own: () if isinstance(own, FilterSelection) else (CHOSEN.flat().double(),),
    "derivatives": lambda own: (CHOSEN.flat().double(), own.everything),
    "smallest": lambda _: (0.5,),
    "bands": lambda _: ("first",),
    "flatness": lambda _: ("first",),
    "p_values": lambda _: (next(one for one in RESULTS if isinstance(one, analysis.Curve)), "first"),
    "predict": lambda _: (SIGNALS,),
    "signals": lambda _: (DATA["first"][0],),
    "signals_of": lambda _: (DATA,),
    "fit": lambda _: ({name: [SIGNALS] for name in FUNCTIONS},),
    "means": lambda _: ("first", [1.0] * 6),
    "estimate": lambda own: (0.5, np.zeros(own.draws)),
}
# not handed out by the result: what the user gave, files, what is meant for those who only read, and an old name
LEFT_OUT = {"model", "attributor", "loss", "output", "data", "save", "load", "from_json", "quadrature"}


def handed_out(result: object) -> dict[str, Any]:
    """Public member to what it gives; a member that needs arguments and has none above is an error."""
    if isinstance(result, tuple):
        return dict(enumerate(result))  # type: ignore[arg-type]
    given = {}
    for name in sorted(set(dir(result)) - LEFT_OUT):
        if name.startswith(("_", "kept")):
            continue
        value = getattr(result, name)
        if inspect.isroutine(value):
            arguments = ARGUMENTS.get(f"{type(result).__name__}.{name}", ARGUMENTS.get(name, lambda _: ()))(result)
            try:
                value = value(*arguments)
            except FilterAttrError as error:  # kernels that were not asked for, places of calls of several shapes
                value = str(error)
        given[name] = list(value) if isinstance(value, types.GeneratorType) else value
    return given


def written_to(value: object) -> int:
    """Write into everything that can be written to, however deep; count what there was."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and not value.requires_grad:
            value.numpy()[...] = 1  # no version counter sees this
        value.detach().zero_()
        return 1
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = 1
        return 1
    if isinstance(value, dict):
        count = sum(map(written_to, value.values()))
        with contextlib.suppress(TypeError):  # a FixedDict
            value.clear()
        return count + 1
    if isinstance(value, list):
        count = sum(map(written_to, value))
        value.clear()
        return count + 1
    if isinstance(value, Mapping | KeysView | ValuesView | ItemsView | tuple):
        return sum(map(written_to, value.values() if isinstance(value, Mapping) else value))
    if is_dataclass(value):
        return sum(written_to(one) for name, one in vars(value).items() if not name.startswith("kept"))
    return 0


def picture(value: object) -> object:
    """All that a value says, in memory of its own, to be compared."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(key, picture(one)) for key, one in value.items()]
    if isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
        return [picture(one) for one in value]
    if is_dataclass(value):
        return type(value).__name__, [(name, picture(one)) for name, one in vars(value).items()]
    if hasattr(value, "to_numpy"):  # a table of pandas
        return value.to_string()
    return repr(value) if isinstance(value, float | int | str | type(None)) else type(value).__name__


def says(result: object) -> object:
    return picture(handed_out(result))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("result", RESULTS, ids=lambda one: type(one).__name__)
def test_nothing_that_a_result_hands_out_can_change_it(result: object) -> None:
    ends = picture([BASE.state_dict(), TARGET.state_dict(), DATA])
    before = says(result)
    for name, value in handed_out(result).items():
        written_to(value)
        assert says(result) == before, name
    assert picture([BASE.state_dict(), TARGET.state_dict(), DATA]) == ends


# classes that say what to do, or do it; rows of numbers; distances, which are the caller's and kept by nobody
NO_RESULTS = {
    "ChannelAttributor", "FilterAttributor", "Group", "ScoredParameter", "Unit",
    "SampleDistances", "Worth", "Candidate", "ParameterChange", "CostEstimate",
    "Band", "Estimate", "AgreementRow", "LayerBudget", "SanityRow", "KnockOutCost", "KnockOutJob", "Record",
}  # fmt: skip


def test_every_public_class_of_results_is_tried() -> None:
    classes = {
        name
        for package in (filterattr, analysis)
        for name in package.__all__
        if inspect.isclass(one := getattr(package, name)) and not issubclass(one, Exception)
    }
    tried = {type(one).__name__ for one in RESULTS}
    assert classes - tried == NO_RESULTS


class Careless:
    """Hands out its own tensor."""

    def __init__(self) -> None:
        self.scores = {"w": torch.rand(2)}


def test_a_result_that_hands_out_its_own_tensors_is_found() -> None:
    careless = Careless()
    before = says(careless)
    assert written_to(handed_out(careless)["scores"]) == 2
    assert says(careless) != before


def test_an_attribution_along_recorded_waypoints_stays_what_it_is() -> None:
    seen = recorder()
    model = network(0)
    again = FilterAttributor(model).attribute(seen.base, TARGET, loss, [BATCH], n_steps=2, waypoints=seen.waypoints)
    for state in (seen.base, *seen.waypoints):
        written_to(state)
    once_more = FilterAttributor(model).attribute(seen.base, TARGET, loss, [BATCH], n_steps=2, waypoints=seen.waypoints)
    assert picture(once_more.scores()) == picture(again.scores())


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.__setitem__("a", 1),
        lambda held: held.__delitem__("a"),
        lambda held: held.__ior__({"a": 1}),
        lambda held: held.update(a=1),
        lambda held: held.pop("a"),
        lambda held: held.popitem(),
        lambda held: held.clear(),
        lambda held: held.setdefault("b", 1),
    ],
)
def test_a_fixed_dictionary_refuses_every_change(change: Callable[[dict[str, int]], object]) -> None:
    held = FixedDict({"a": 0})
    with pytest.raises(TypeError, match="change a copy of it"):
        change(held)
    assert held == {"a": 0}


def test_a_fixed_dictionary_is_otherwise_as_any_other() -> None:
    held = read_only({"a": {"b": [1.0]}})
    for again in (copy.copy(held), copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert again == {"a": {"b": (1.0,)}}
        assert type(again) is type(again["a"]) is FixedDict
    assert json.loads(json.dumps(held)) == {"a": {"b": [1.0]}}
    assert asdict(next(one for one in RESULTS if isinstance(one, Signals)))["overlap"].keys() == set(FUNCTIONS)
    assert held | {"c": 1} == {**held, "c": 1}


def test_mappings_and_lists_of_frozen_dataclasses_are_fixed_however_deep() -> None:
    @dataclass(frozen=True)
    class Losses(Immutable):
        of: Mapping[str, Any]

    given: dict[str, Any] = {"blur": {"at": [1.0, [2.0]], "drawn": np.zeros(2)}}
    losses = Losses(given)
    given["blur"]["at"].append(3.0)
    assert losses.of["blur"]["at"] == (1.0, (2.0,))
    with pytest.raises(TypeError, match="change a copy of it"):
        losses.of["blur"]["at"] = ()
    with pytest.raises(ValueError, match="read-only"):
        losses.of["blur"]["drawn"][0] = 1.0
    assert read_only(losses.of) is losses.of


def test_the_sizes_of_a_unit_do_not_follow_the_dictionary_that_was_given() -> None:
    sizes = {"heads": 2}
    unit = Unit("(heads d) i -> heads", sizes)
    sizes["heads"] = 4
    assert ScoredParameter(unit, (4, 3)).units_shape == (2,)
    with pytest.raises(TypeError, match="change a copy of it"):
        unit.sizes["heads"] = 4  # type: ignore[index]


def test_samples_scores_do_not_follow_the_tensor_that_was_given() -> None:
    values = torch.rand(3, CHOSEN.n_units)
    samples = SampleScores(values, CHOSEN)
    before = says(samples)
    values.zero_()
    assert says(samples) == before
