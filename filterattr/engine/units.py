r"""What one scored "filter" is: an einops reduction of a parameter, such as ``o i ... -> o i`` for kernels.

A unit maps a tensor of the parameter's shape to one number per unit by summation, :math:`s_u = \sum_{k \in u} a_k`,
and a choice of units back to the weights that belong to them. A group lets units span several parameters of a module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

import einops
import torch
from torch import Tensor, nn

from filterattr.errors import UnitError, name_some

NAMED_UNITS = ("weight", "kernel", "filter", "input", "layer")

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class Unit:
    """How the weights of one parameter form units.

    Attributes:
        pattern: An einops pattern from the parameter's axes to the axes of its scores.
        sizes: Lengths of axes that the shape alone does not tell.

    Example:
        >>> heads = Unit("(heads d) i -> heads", {"heads": 2})
        >>> heads.reduce(torch.ones(4, 3))
        tensor([6., 6.])
        >>> heads.expand(torch.tensor([True, False]), (4, 3)).sum(1)
        tensor([3, 3, 0, 0])
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor of the parameter's shape over the weights of every unit.

        Args:
            values: Floating tensor of the parameter's shape.

        Returns:
            One number per unit.

        Raises:
            UnitError: The pattern does not fit the shape.
        """
        try:
            return einops.reduce(values, self.pattern, "sum", **self.sizes)
        except einops.EinopsError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            sizes = f" with {dict(self.sizes)}" if self.sizes else ""
            raise UnitError(
                f"the pattern '{self.pattern}'{sizes} does not fit a parameter of shape {tuple(values.shape)}: {reason}"
            ) from error

    def expand(self, chosen: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Mark the weights that belong to the chosen units: the transpose of `reduce`.

        Args:
            chosen: Boolean, one entry per unit.
            shape: Shape of the parameter.

        Returns:
            Boolean tensor of that shape, on the device of ``chosen``.
        """
        with torch.inference_mode(False), torch.enable_grad():
            weights = torch.zeros(shape, device=chosen.device, requires_grad=True)
            units = self.reduce(weights)
            (marked,) = torch.autograd.grad(units, weights, chosen.to(units.dtype))
        return marked != 0


@dataclass(frozen=True, init=False)
class Group:
    """Units that span several parameters of one module, such as an attention head.

    A group is a value of the mapping that `FilterAttributor` takes as ``unit``. Its key is a glob of module names (the
    empty text is the model itself): every module that matches, and lies inside no other that does, gets units of its
    own, under its name in the scores. The attributions of a unit's weights in all members are one sum.

    The key ``"*"`` matches the empty text, too: it is one group of the whole model. For one group a module write what
    their names have in common, such as ``"*.attention"``; ``"?*"`` takes the outermost modules below the model.

    Args:
        members: Glob of parameter names inside the module to an einops pattern or a `Unit`; the first that matches
            counts. All members must come to the same axes of units.
        label: Appended to the module's name in the scores; tells several groups of one module apart.
        **sizes: Lengths of axes that the shapes alone do not tell; each pattern takes those that it names.

    Attributes:
        members: Glob to unit.
        label: What is appended to the module's name.

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


def group_members(wanted: UnitLike, parameters: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Member]:
    """Find the parameters that belong to groups.

    Args:
        wanted: What the user wants to be scored.
        parameters: First name to parameter of the model.
        aliases: Every name of a parameter or buffer to its first name; globs see all names.

    Returns:
        First name to membership; a parameter that an earlier glob of the mapping names is left out.

    Raises:
        UnitError: A glob matches nothing, members do not fit, come to different units, or belong to two groups; all
            findings are in one message.

    Example:
        >>> parameters = {"att.q.weight": torch.ones(4, 3), "att.out.weight": torch.ones(3, 4)}
        >>> head = Group({"q.*": "(heads d) i -> heads", "out.*": "o (heads d) -> heads"}, heads=2)
        >>> group_members({"*att": head}, parameters, {name: name for name in parameters})["att.out.weight"]
        Member(group='att', unit=Unit(pattern='o (heads d) -> heads', sizes={'heads': 2}))
    """
    if not isinstance(wanted, Mapping):
        return {}
    found: dict[str, Member] = {}
    findings: list[str] = []
    earlier: list[str] = []
    names = [name for name, first in aliases.items() if first in parameters]
    for glob, choice in wanted.items():
        groups = _groups_in(choice)
        if not groups:
            earlier.append(glob)
        free = [name for name in names if not any(fnmatchcase(name, other) for other in earlier)]
        for group in groups:
            for name, member in _members(glob, group, free, findings):
                known = found.setdefault(aliases[name], member)
                if known != member:
                    findings.append(f"'{name}' belongs to two groups, '{known.group}' and '{member.group}'")
    findings += _misfits(found, parameters)
    if findings:
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise UnitError("every group must fit the model: " + "; ".join(findings[:5]) + more + ".")
    return found


def has_only_groups(wanted: UnitLike) -> bool:
    """Whether nothing but groups is wanted, so that what belongs to none is not scored."""
    return isinstance(wanted, Mapping) and bool(wanted) and all(map(_groups_in, wanted.values()))


def _groups_in(choice: object) -> tuple[Group, ...]:
    if isinstance(choice, Group):
        return (choice,)
    return choice if isinstance(choice, tuple) and all(isinstance(one, Group) for one in choice) else ()


def _members(glob: str, group: Group, names: Iterable[str], findings: list[str]) -> Iterator[tuple[str, Member]]:
    """Yield the members of a group in every module that the glob matches."""
    matched: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(len(parts)))
        path = next((path for path in paths if fnmatchcase(path, glob)), None)  # the outermost
        if path is not None:
            matched.setdefault(path, []).append(name)
    if not matched:
        findings.append(f"no module with parameters has a name like '{glob}'")
    met: set[str] = set()
    for path, inside in matched.items():
        label = ".".join(part for part in (path, group.label) if part) or "model"
        empty = True
        for name in inside:
            inner = name.removeprefix(f"{path}.") if path else name
            own = next((member for member in group.members if fnmatchcase(inner, member)), None)
            if own is not None:
                met.add(own)
                empty = False
                yield name, Member(label, group.members[own])
        if empty:
            findings.append(
                f"'{path}' has no parameter like {name_some(group.members)}, only "
                f"{name_some(name.removeprefix(f'{path}.') for name in inside)}"
            )
    findings += [
        f"no parameter in '{glob}' is like '{member}'" for member in group.members if matched and member not in met
    ]


def _misfits(found: Mapping[str, Member], parameters: Mapping[str, Tensor]) -> Iterator[str]:
    """Describe the members whose pattern does not fit, and the groups whose members disagree."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, member in found.items():
        try:
            units = member.unit.reduce(torch.empty(parameters[name].shape, device="meta"))
        except UnitError as error:
            yield f"'{name}': {error}"
            continue
        shapes.setdefault(member.group, {})[name] = tuple(units.shape)
    for group, members in shapes.items():
        if len(set(members.values())) > 1:
            listed = ", ".join(f"'{name}' {shape}" for name, shape in list(members.items())[:5])
            yield f"the members of '{group}' must come to the same units, not {listed}"


def _used_sizes(pattern: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the axes that a pattern names: einops refuses others."""
    axes = set(re.findall(r"[A-Za-z_]\w*", pattern))
    return {axis: size for axis, size in sizes.items() if axis in axes}


def unit_of(name: str, parameter: Tensor, module: nn.Module, wanted: UnitLike) -> Unit:
    """Find the unit of one parameter.

    Output channels come first and input channels second in the scores, whatever order the module stores them in:
    a kernel of any convolution, grouped or transposed, is scored at ``[o, i]`` with ``o`` the output channel and
    ``i`` the input channel inside its group.

    Args:
        name: Name of the parameter.
        parameter: The parameter.
        module: The module that computes with it (for a parametrized weight, the module that was parametrized).
        wanted: A named unit, an einops pattern, a `Unit`, or a mapping from name globs to these (the first that
            matches counts; ``"*"`` as the last key catches the rest); groups in it are passed over.

    Returns:
        The unit, checked against the parameter's shape.

    Raises:
        UnitError: The name is unknown, no glob matches, or the pattern does not fit.

    Example:
        >>> conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
        >>> unit_of("up.weight", conv.weight, conv, "kernel").reduce(conv.weight).shape
        torch.Size([6, 2])
    """
    if isinstance(wanted, Mapping):
        for glob, choice in wanted.items():
            if isinstance(choice, str | Unit) and fnmatchcase(name, glob):
                return unit_of(name, parameter, module, choice)
        raise UnitError(
            f"every scored parameter needs a unit; no glob of {name_some(wanted)} matches '{name}'. Add '*' as the "
            "last key, or leave the parameter out with select=."
        )
    if isinstance(wanted, str):
        wanted = Unit(wanted) if "->" in wanted else _named(name, parameter, module, wanted)
    try:
        wanted.reduce(torch.empty(parameter.shape, device="meta"))
    except UnitError as error:
        raise UnitError(f"'{name}': {error}") from error
    return wanted


def _named(name: str, parameter: Tensor, module: nn.Module, unit: str) -> Unit:
    """Spell a named unit out as a pattern."""
    if unit not in NAMED_UNITS:
        raise UnitError(
            f"unit must be one of {', '.join(NAMED_UNITS)}, an einops pattern with '->', or a mapping from name globs "
            f"to these; got {unit!r}."
        )
    if unit == "weight":
        return Unit("... -> ...")
    if unit == "layer":
        return Unit("... ->")
    if parameter.ndim < 2:
        if unit == "input":
            raise UnitError(
                f"'{name}' has shape {tuple(parameter.shape)} and no input axis; score it by weight, kernel or filter."
            )
        return Unit("... -> ...")
    groups = module.groups if isinstance(module, _CONVOLUTIONS) else 1
    if isinstance(module, _TRANSPOSED):
        pattern = {
            "kernel": "(g i) o ... -> (g o) i",
            "filter": "(g i) o ... -> (g o)",
            "input": "i o ... -> i",
        }
        return Unit(pattern[unit], {} if unit == "input" else {"g": groups})
    if unit == "input":
        return Unit("(g o) i ... -> (g i)", {"g": groups})
    return Unit({"kernel": "o i ... -> o i", "filter": "o ... -> o"}[unit])
