r"""What one scored "filter" is: an einops reduction of a parameter, such as ``o i ... -> o i`` for kernels.

A unit maps a tensor of the parameter's shape to one number per unit by summation, :math:`s_u = \sum_{k \in u} a_k`,
and a choice of units back to the weights that belong to them.
"""

from __future__ import annotations

from collections.abc import Mapping
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


UnitLike: TypeAlias = str | Unit | Mapping[str, "str | Unit"]


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
            matches counts; ``"*"`` as the last key catches the rest).

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
            if fnmatchcase(name, glob):
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
