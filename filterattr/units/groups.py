"""Units that span several parameters, and the unit of each parameter of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from filterattr.errors import UnitError, gathered, name_some
from filterattr.names import Names
from filterattr.units.unit import Unit


@dataclass(frozen=True, init=False)
class Group:
    """Units that span several parameters of one module, such as an attention head.

    A group is a value of the mapping that `FilterAttributor` takes as ``unit``. Its key is a glob of module names; the
    empty text is the model itself. Each outermost module that matches gets units, under its name in the scores. The
    attribution of a unit is the sum over its weights in all members.

    The key ``"*"`` matches the empty text, too, so it makes one group of the complete model. For one group per module,
    write the common part of their names, such as ``"*.attention"``. ``"?*"`` takes the outermost modules below the
    model.

    Args:
        members: Glob of parameter names inside the module to an einops pattern or a `Unit`; the first glob that matches
            counts. All members must have the same axes of units.
        label: Text after the name of the module in the scores, to distinguish several groups of one module.
        **sizes: Lengths of axes that the shapes do not determine; each pattern uses those that it names.

    Attributes:
        members: Glob to unit.
        label: Text after the name of the module in the scores.

    Example:
        >>> heads = Group({"[qkv].*": "(heads d) ... -> heads", "out.weight": "o (heads d) -> heads"}, heads=4)
        >>> heads.members["out.weight"]
        Unit(pattern='o (heads d) -> heads', sizes={'heads': 4})
    """

    members: Mapping[str, Unit]
    label: str

    def __init__(self, members: Mapping[str, str | Unit], *, label: str = "", **sizes: int) -> None:
        made = {
            glob: unit if isinstance(unit, Unit) else Unit(unit, _used_sizes(unit, sizes))
            for glob, unit in members.items()
        }
        unused = [axis for axis in sizes if not any(axis in unit.sizes for unit in made.values())]
        if unused or not made:
            raise UnitError(
                f"a group needs members, and every size an axis in one of their patterns; {name_some(unused) or 'none'}"
                f" in {name_some(unit.pattern for unit in made.values()) or 'no pattern'}."
            )
        object.__setattr__(self, "members", made)
        object.__setattr__(self, "label", label)


@dataclass(frozen=True)
class Member:
    """A parameter's part in a group.

    Attributes:
        group: Name of the group in the scores.
        unit: How the parameter's weights are spread over the units of the group.
    """

    group: str
    unit: Unit


UnitLike: TypeAlias = "str | Unit | Mapping[str, str | Unit | Group | tuple[Group, ...]]"


@dataclass(frozen=True)
class Assigned:
    """The unit of each parameter of a model.

    Attributes:
        members: First name of a parameter to its part in a group.
        choices: First name of every other parameter to its unit; parameters that no key matches are left out.
    """

    members: dict[str, Member]
    choices: dict[str, str | Unit]


def assigned(wanted: UnitLike, parameters: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Assigned:
    """Find the unit of each parameter. Keys match any name of a parameter, and the first key that matches counts.

    Args:
        wanted: The argument ``unit`` of the user.
        parameters: First name to parameter of the model.
        aliases: Every name of a parameter or buffer to its first name.

    Returns:
        The members of groups, and the units of the others.

    Raises:
        UnitError: A key other than ``"*"`` matches no parameter, or only parameters of earlier keys. Or members do not
            fit, have different units, or belong to two groups. One message holds all findings.

    Example:
        >>> import torch
        >>> parameters = {"att.q.weight": torch.ones(4, 3), "att.out.weight": torch.ones(3, 4)}
        >>> head = Group({"q.*": "(heads d) i -> heads", "out.*": "o (heads d) -> heads"}, heads=2)
        >>> assigned({"*att": head}, parameters, {name: name for name in parameters}).members["att.out.weight"]
        Member(group='att', unit=Unit(pattern='o (heads d) -> heads', sizes={'heads': 2}))
    """
    if not isinstance(wanted, Mapping):
        return Assigned({}, dict.fromkeys(parameters, wanted))
    known = {name: first for name, first in aliases.items() if first in parameters}
    names, paths = Names(known), _paths(known)
    modules = Names(paths)
    members: dict[str, Member] = {}
    choices: dict[str, str | Unit] = {}
    findings: list[str] = []
    for key, choice in wanted.items():
        groups = _groups_in(choice)
        if groups:
            inside = {path: _free(paths[path], known, choices) for path in _outermost(modules.like(key))}
            for name, member in _members(key, groups, inside, modules, findings):
                earlier = members.setdefault(known[name], member)
                if earlier != member:
                    findings.append(f"'{name}' belongs to two groups, '{earlier.group}' and '{member.group}'")
            continue
        hits = dict.fromkeys(known[name] for name in names.like(key))
        left = [name for name in hits if name not in choices and name not in members]
        if not left and key.strip("*"):
            findings.append(
                f"an earlier key takes all that {key!r} matches; put {key!r} before it"
                if hits
                else f"no parameter has a name like {names.describe(key)}"
            )
        choices |= dict.fromkeys(left, choice)  # type: ignore[arg-type]
    findings += _misfits(members, parameters)
    if findings:
        raise UnitError(f"every key of unit= must fit the model: {gathered(findings)}.")
    return Assigned(members, choices)


def has_only_groups(wanted: UnitLike) -> bool:
    """Whether all units are groups; parameters outside of the groups then have no scores."""
    return isinstance(wanted, Mapping) and bool(wanted) and all(map(_groups_in, wanted.values()))


def _groups_in(choice: object) -> tuple[Group, ...]:
    if isinstance(choice, Group):
        return (choice,)
    return choice if isinstance(choice, tuple) and all(isinstance(group, Group) for group in choice) else ()


def _paths(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Path of every module to the parameters inside: their names there, and their names in the model."""
    paths: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            paths.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = name
    return paths


def _outermost(paths: list[str]) -> list[str]:
    """Leave out the modules that lie inside of another one."""
    known = set(paths)

    def is_inside(path: str) -> bool:
        parts = path.split(".") if path else []
        return any(".".join(parts[:depth]) in known for depth in range(len(parts)))

    return [path for path in paths if not is_inside(path)]


def _free(inside: dict[str, str], aliases: Mapping[str, str], taken: Mapping[str, object]) -> dict[str, str]:
    """Leave out the parameters that an earlier key has taken."""
    return {inner: name for inner, name in inside.items() if aliases[name] not in taken} if taken else inside


def _members(
    key: str, groups: tuple[Group, ...], inside: Mapping[str, dict[str, str]], modules: Names, findings: list[str]
) -> Iterator[tuple[str, Member]]:
    """Yield the members of groups in every module that a key means."""
    inside = {path: names for path, names in inside.items() if names}
    if not inside:
        findings.append(f"no module with parameters has a name like {modules.describe(key)}")
        return
    names = {path: Names(inner) for path, inner in inside.items()}
    for group in groups:
        met: set[str] = set()
        for path, inner in inside.items():
            label = ".".join(part for part in (path, group.label) if part) or "model"
            chosen = names[path].first_of(group.members)
            met |= set(chosen.values())
            for name, glob in chosen.items():
                yield inner[name], Member(label, group.members[glob])
            if not chosen:
                findings.append(f"'{path}' has no parameter like {name_some(group.members)}, only {name_some(inner)}")
        findings += [f"no parameter in '{key}' is like '{glob}'" for glob in group.members if glob not in met]


def _misfits(members: Mapping[str, Member], parameters: Mapping[str, Tensor]) -> Iterator[str]:
    """Describe the members whose pattern does not fit, and the groups whose members disagree."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, member in members.items():
        try:
            shapes.setdefault(member.group, {})[name] = tuple(member.unit.units_shape(parameters[name].shape))
        except UnitError as error:
            yield f"'{name}': {error}"
    for group, by_name in shapes.items():
        if len(set(by_name.values())) > 1:
            listed = ", ".join(f"'{name}' {shape}" for name, shape in list(by_name.items())[:5])
            yield f"the members of '{group}' must come to the same units, not {listed}"


def _used_sizes(pattern: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the axes that a pattern names: einops refuses others."""
    axes = set(re.findall(r"[A-Za-z_]\w*", pattern))
    return {axis: size for axis, size in sizes.items() if axis in axes}
