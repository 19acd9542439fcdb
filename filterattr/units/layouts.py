"""A registry of the output and input axes of weights, and the named units that follow from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor, nn

from filterattr.errors import UnitError
from filterattr.units.unit import Unit

NAMED_UNITS = ("weight", "kernel", "filter", "input", "layer")
Layer: TypeAlias = "type[nn.Module] | str | Callable[[nn.Module], bool]"
Pattern: TypeAlias = tuple[str, Mapping[str, int]]

_AXIS = re.compile(r"[A-Za-z_]\w*")
_COUNTS_OF_EXPERTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts", "n_shared_experts")


@dataclass(frozen=True)
class Layout:
    """The einops patterns that the outputs, inputs and pairs of a weight have, with the sizes of their axes.

    Attributes:
        kernel: One unit a pair of an output and an input.
        filter: One unit an output.
        input: One unit an input; ``None`` for what has none, such as a bias.
        is_guess: Whether the layer gave no sign of what its axes are.
    """

    kernel: Pattern
    filter: Pattern
    input: Pattern | None
    is_guess: bool = False


@dataclass(frozen=True)
class _Entry:
    """What was registered."""

    layer: Layer
    axes: Mapping[str, str]
    sizes: Mapping[str, int | str]

    def fits(self, module: nn.Module) -> bool:
        if isinstance(self.layer, str):
            return any(base.__name__ == self.layer for base in type(module).__mro__)
        return isinstance(module, self.layer) if isinstance(self.layer, type) else bool(self.layer(module))


REGISTERED: list[_Entry] = []


def register_layout(layer: Layer, axes: Mapping[str, str], **sizes: int | str) -> None:
    """Register which axes of the weights of a layer are outputs and inputs, for the units kernel, filter and input.

    Known layers need no registration: those of `torch.nn`, ``Conv1D`` and the experts of transformers, and layers whose
    ``in_features`` and ``out_features`` fit the shape. The last registration counts first.

    Args:
        layer: A class, the name of a class (its library need not be imported), or a predicate on the module.
        axes: Name of a parameter inside the layer (or a glob) to its axes, as einops writes them. Axes that begin with
            ``o`` are outputs, those with ``i`` inputs, and those with ``g`` groups (experts) with outputs and inputs
            of their own. Other axes are summed over. ``"i o"`` is a transposed linear layer, ``"g o i"`` a layer of
            experts, ``"(g o) i ..."`` a grouped convolution.
        **sizes: Lengths of axes that the shape does not determine: a number, or the name of an attribute of the layer.

    Raises:
        UnitError: No axis is an output, or no axis has the name of a size.

    Example:
        >>> import torch
        >>> from filterattr import FilterAttributor
        >>> class Transposed(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.table = nn.Parameter(torch.ones(2, 5))  # two inputs, five outputs
        ...
        ...     def forward(self, x):
        ...         return x @ self.table
        >>> register_layout(Transposed, {"table": "i o"})
        >>> FilterAttributor(Transposed(), unit="filter").scored_parameters()["table"].units_shape
        torch.Size([5])
    """
    used = {axis for written in axes.values() for axis in _AXIS.findall(written)}
    bad = [name for name, written in axes.items() if not any(axis[0] == "o" for axis in _AXIS.findall(written))]
    unused = sorted(set(sizes) - used)
    if bad or unused or not axes:
        raise UnitError(
            "a layout needs axes for each parameter, some of which begin with 'o' (outputs), and sizes of these axes; "
            f"got axes={dict(axes)!r}, sizes={sizes!r}."
        )
    REGISTERED.insert(0, _Entry(layer, MappingProxyType(dict(axes)), MappingProxyType(dict(sizes))))


def layout_of(module: nn.Module, local: str, parameter: Tensor) -> Layout:
    """Ask a layer for the layout of one of its weights.

    Args:
        module: The module that computes with it.
        local: Name of the parameter inside the module.
        parameter: The parameter, of two dimensions or more.

    Returns:
        Its layout; output and input are the first two axes unless the layer gives a sign.

    Example:
        >>> layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
        >>> layout_of(layer, "weight", layer.weight).kernel
        ('(g i) o ... -> (g o) i', {'g': 2})
    """
    for entry in REGISTERED:
        if entry.fits(module):
            written = next((axes for name, axes in entry.axes.items() if fnmatchcase(local, name)), None)
            if written is not None and _has_as_many_axes(written, parameter):
                return _spelled(written, _sizes(entry, module, written))
    if isinstance(module, _TRANSPOSED):
        return Layout(
            ("(g i) o ... -> (g o) i", {"g": module.groups}),
            ("(g i) o ... -> (g o)", {"g": module.groups}),
            ("i o ... -> i", {}),
        )
    if isinstance(module, _CONVOLUTIONS):
        return _outputs_first(module.groups)
    if _is_transposed(module, local, parameter):
        return _spelled("i o", {})
    if parameter.ndim == 3 and any(getattr(module, name, None) == parameter.shape[0] for name in _COUNTS_OF_EXPERTS):
        return _spelled("g o i", {}, is_guess=True)
    return _outputs_first(1, is_guess=parameter.ndim == 3 and parameter.shape[0] > 1 and not _is_of_torch(module))


def is_linear_map(module: nn.Module) -> bool:
    """Whether a layer of another library is known to compute a linear map with its ``weight``.

    Args:
        module: The layer.

    Returns:
        Whether its layout is registered, or the layer itself says it, as the ``Conv1D`` of transformers does.
    """
    weight = module._parameters.get("weight")
    if any(entry.fits(module) for entry in REGISTERED):
        return True
    return weight is not None and weight.ndim == 2 and _is_transposed(module, "weight", weight)


def unit_of(name: str, parameter: Tensor, module: nn.Module, wanted: str | Unit) -> Unit:
    """Find the unit of one parameter.

    Output channels come first and input channels second in the scores, in whatever order the module stores them. The
    score of a kernel of any convolution, grouped or transposed, is at ``[o, i]``. Here ``o`` is the output channel and
    ``i`` the input channel inside its group.

    Args:
        name: Name of the parameter.
        parameter: The parameter.
        module: The module that computes with it (for a parametrized weight, the module that was parametrized).
        wanted: A named unit, an einops pattern or a `Unit`.

    Returns:
        The unit, checked against the parameter's shape.

    Raises:
        UnitError: The name is unknown, or the pattern does not fit.

    Example:
        >>> conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
        >>> unit_of("up.weight", conv.weight, conv, "kernel").reduce(conv.weight).shape
        torch.Size([6, 2])
    """
    if isinstance(wanted, str):
        wanted = Unit(wanted) if "->" in wanted else _named(name, parameter, module, wanted)
    try:
        wanted.units_shape(parameter.shape)
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
    layout = layout_of(module, _local(name), parameter)
    pattern = {"kernel": layout.kernel, "filter": layout.filter, "input": layout.input}[unit]
    if pattern is None:
        raise UnitError(f"'{name}' of {type(module).__name__} has no input axis; score it by weight, kernel or filter.")
    return Unit(*pattern)


def is_guess(name: str, parameter: Tensor, module: nn.Module, wanted: str | Unit) -> bool:
    """Whether a unit is made of outputs or inputs, and the layer gives no sign which axes these are.

    Args:
        name: Name of the parameter.
        parameter: The parameter.
        module: The module that computes with it.
        wanted: As for `unit_of`.
    """
    names_axes = wanted in ("kernel", "filter", "input") and parameter.ndim >= 2
    return names_axes and layout_of(module, _local(name), parameter).is_guess


def _local(name: str) -> str:
    """Name of a parameter inside the module that computes with it; a parametrized one stands deeper."""
    _, is_parametrized, after = name.rpartition("parametrizations.")
    return after.partition(".")[0] if is_parametrized else name.rpartition(".")[2]


def _spelled(axes: str, sizes: Mapping[str, int], *, is_guess: bool = False) -> Layout:
    """Write the patterns out.

    Example:
        >>> _spelled("(g i) o", {"g": 2}).kernel
        ('(g i) o -> (g o) i', {'g': 2})
    """
    groups, outputs, inputs = ([axis for axis in _AXIS.findall(axes) if axis[0] == kind] for kind in "goi")
    inside = re.search(r"\([^)]*\bg\w*", axes) is not None

    def joined(*names: str) -> str:
        together = " ".join((*groups, *names))
        return f"({together})" if inside else together

    return Layout(
        (f"{axes} -> {' '.join((joined(*outputs), *inputs))}", sizes),
        (f"{axes} -> {joined(*outputs)}", sizes),
        (f"{axes} -> {joined(*inputs)}", sizes) if inputs else None,
        is_guess,
    )


def _outputs_first(groups: int, *, is_guess: bool = False) -> Layout:
    """The layout of most layers; written like this it stands in the files of all versions."""
    return Layout(("o i ... -> o i", {}), ("o ... -> o", {}), ("(g o) i ... -> (g i)", {"g": groups}), is_guess)


def _sizes(entry: _Entry, module: nn.Module, written: str) -> dict[str, int]:
    """Lengths of the axes that are named, where need be asked of the layer."""
    axes = _AXIS.findall(written)
    return {
        axis: getattr(module, size) if isinstance(size, str) else size
        for axis, size in entry.sizes.items()
        if axis in axes
    }


def _has_as_many_axes(axes: str, parameter: Tensor) -> bool:
    count = len(re.sub(r"\([^)]*\)", "x", axes).replace("...", "").split())
    return count == parameter.ndim or ("..." in axes and count < parameter.ndim)


def _is_transposed(module: nn.Module, local: str, parameter: Tensor) -> bool:
    """Whether a layer says by its sizes, or by a flag, that inputs come first."""
    sizes = tuple(getattr(module, name, None) for name in ("in_features", "out_features"))
    if local != "weight" or tuple(parameter.shape) != sizes:
        return False
    return sizes[0] != sizes[1] or getattr(module, "fan_in_fan_out", False) is True


def _is_of_torch(module: nn.Module) -> bool:
    return any(base.__module__.startswith("torch.") and base is not nn.Module for base in _layers(type(module)))


def _layers(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if issubclass(base, nn.Module))


def _are_experts(is_transposed: bool) -> Callable[[nn.Module], bool]:
    """Experts of transformers carry how they are stored."""

    def fits(module: nn.Module) -> bool:
        return hasattr(module, "has_gate") and getattr(module, "is_transposed", None) is is_transposed

    return fits


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

register_layout("Conv1D", {"weight": "i o"})  # of transformers; that of torch is called Conv1d
register_layout(_are_experts(is_transposed=False), {"*_bias": "g o", "*": "g o i"})
register_layout(_are_experts(is_transposed=True), {"*_bias": "g o", "*": "g i o"})
register_layout("Llama4TextExperts", {"*": "g i o"})
register_layout("InklingSharedExperts", {"*": "g o i"})
for _kind in ("JetMoeParallelExperts", "GraniteMoeParallelExperts"):
    register_layout(_kind, {"weight": "g o i"})
register_layout("DbrxExpertGLU", {"[wv]1": "(g o) i", "w2": "(g i) o"}, g="moe_num_experts")
register_layout("XLNetRelativeAttention", {"[qkvr]": "i o1 o2", "o": "o i1 i2"})
