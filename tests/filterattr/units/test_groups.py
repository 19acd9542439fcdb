"""What each parameter is scored by, as keys of names and of modules say: the members, the choices, and the findings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, Group, Unit, UnitError
from filterattr.units.groups import Assigned, Member, assigned, has_only_groups

HEADS = Group({"q.weight": "(heads d) i -> heads", "scale": "... -> ..."}, heads=2)


def parameters(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2) if name.endswith("scale") else torch.zeros(4, 3) for name in names}


def assign(wanted: Any, *names: str, **aliases: str) -> Assigned:
    return assigned(wanted, parameters(*names), {**{name: name for name in names}, **aliases})


def test_a_size_belongs_to_the_patterns_that_name_it() -> None:
    assert HEADS.members == {"q.weight": Unit("(heads d) i -> heads", {"heads": 2}), "scale": Unit("... -> ...", {})}
    with pytest.raises(
        UnitError, match=r"every size an axis in one of their patterns; 'gates' in '\(heads d\) i -> heads'"
    ):
        Group({"q.weight": "(heads d) i -> heads"}, heads=2, gates=4)
    with pytest.raises(UnitError, match=r"a group needs members, .*; none in no pattern"):
        Group({})


def test_members_of_a_group_are_no_choices_of_later_keys() -> None:
    result = assign({"att": HEADS, "*": "kernel"}, "att.q.weight", "att.scale", "att.k.weight", "head.weight")
    assert result.members == {
        "att.q.weight": Member("att", HEADS.members["q.weight"]),
        "att.scale": Member("att", HEADS.members["scale"]),
    }
    assert result.choices == {"att.k.weight": "kernel", "head.weight": "kernel"}


def test_what_an_earlier_key_has_taken_is_no_member() -> None:
    result = assign({"att.scale": "layer", "att": Group({"*": "o ... -> o"})}, "att.scale", "att.q.weight")
    assert result.choices == {"att.scale": "layer"}
    assert result.members == {"att.q.weight": Member("att", Unit("o ... -> o"))}


def test_a_module_whose_parameters_are_all_taken_is_no_group() -> None:
    result = assign({"a.*": "layer", "[ab]": Group({"*": "o ... -> o"})}, "a.weight", "b.weight")
    assert result == Assigned({"b.weight": Member("b", Unit("o ... -> o"))}, {"a.weight": "layer"})


@pytest.mark.parametrize("rest", ["*", "**"])
def test_the_key_for_the_rest_may_catch_nothing(rest: str) -> None:
    assert assign({"a.*": "filter", rest: "kernel"}, "a.weight") == Assigned({}, {"a.weight": "filter"})


def test_only_the_outermost_modules_that_a_key_means_are_groups() -> None:
    names = "att.q.weight", "att.inner.att.q.weight", "other.att.q.weight"
    result = assign({"*att": Group({"*q.weight": "o i -> o"})}, *names)
    assert {name: member.group for name, member in result.members.items()} == {
        "att.q.weight": "att",
        "att.inner.att.q.weight": "att",
        "other.att.q.weight": "other.att",
    }


def test_the_whole_model_is_one_group_under_its_name_or_label() -> None:
    result = assign(
        {"": (Group({"a.*": "o i -> o"}), Group({"b.*": "o i -> o"}, label="late"))}, "a.weight", "b.weight"
    )
    assert {name: member.group for name, member in result.members.items()} == {"a.weight": "model", "b.weight": "late"}


@pytest.mark.parametrize("choice", ["kernel", Unit("o i -> o")])
def test_a_choice_stands_as_it_was_given(choice: str | Unit) -> None:
    assert assign({"a.*": choice}, "a.weight", "b.weight") == Assigned({}, {"a.weight": choice})
    assert assign(choice, "a.weight", "b.weight") == Assigned({}, {"a.weight": choice, "b.weight": choice})


def test_units_are_all_groups_or_not() -> None:
    assert has_only_groups({"a": HEADS, "b": (HEADS, HEADS)})
    assert not has_only_groups({"a": HEADS, "*": "kernel"})
    assert not has_only_groups({"a": HEADS, "*": Unit("o i -> o")})
    assert not has_only_groups({"a": (HEADS, "kernel")})  # type: ignore[dict-item]
    assert not has_only_groups({})
    assert not has_only_groups("kernel")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"att": (HEADS, "kernel")}, r"no parameter has a name like 'att' \(nearest: 'att\.scale'"),
        ({"norm.running_mean": "layer", "*": "kernel"}, r"no parameter has a name like 'norm\.running_mean'"),
        ({"head": HEADS}, r"'head' has no parameter like 'q\.weight', 'scale', only 'weight'"),
        (
            {"att": Group({"q.weight": "o i -> o", "k.weight": "o i -> i"})},
            r"the members of 'att' must come to the same units, not 'att\.q\.weight' \(4,\), 'att\.k\.weight' \(3,\)\.",
        ),
        ({"att": Group({"q.*": "o i -> o", "z.*": "o i -> o"})}, r"no parameter in 'att' is like 'z\.\*'"),
        (
            {"att": Group({"q.*": "o i -> o"}), "*tt": Group({"q.*": "o i -> o"}, label="b")},
            r"'att\.q\.weight' belongs to two groups, 'att' and 'att\.b'",
        ),
        ({"att": Group({"q.*": "(h d) i -> h"}, h=3)}, r"'att\.q\.weight': the pattern .* does not fit .* \(4, 3\)"),
    ],
)
def test_findings_name_what_does_not_fit(wanted: Any, message: str) -> None:
    names = "att.q.weight", "att.scale", "att.k.weight", "head.weight"
    aliases = {name: name for name in (*names, "norm.running_mean")}  # buffers have names, too
    with pytest.raises(UnitError, match=message):
        assigned(wanted, parameters(*names), aliases)


def test_at_most_five_members_that_disagree_are_named() -> None:
    names = [f"att.{place}.weight" for place in range(7)]
    group = Group({"0.*": "o i -> i", "*": "o i -> o"})
    with pytest.raises(UnitError) as caught:
        assign({"att": group}, *names)
    assert re.findall(r"'att\.(\d)\.weight' \((\d),\)", str(caught.value)) == [
        ("0", "3"),
        *[(str(n), "4") for n in range(1, 5)],
    ]


def test_units_and_patterns_of_a_mapping_reach_the_scores() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(3, 4)})
    attributor = FilterAttributor(model, unit={"a.*": Unit("o i -> i"), "b.*": "o i -> i o", "*": "filter"})
    shapes = {name: tuple(scored.units_shape) for name, scored in attributor.scored_parameters().items()}
    assert shapes == {"a.weight": (3,), "b.weight": (3, 4), "c.weight": (4,)}
