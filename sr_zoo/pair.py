"""Pairs of networks: whether their weights differ, and reasons to doubt an attribution between them."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from filterattr import FilterAttribution, FilterAttrWarning

_WIDTH = 80


def same_weights(base: nn.Module, target: nn.Module) -> bool:
    """Whether two networks hold the same weights.

    Args:
        base: The first network.
        target: The second network.

    Returns:
        Whether names, shapes and values are equal.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> same_weights(layer, layer), same_weights(layer, nn.Linear(2, 2))
        (True, False)
    """
    first, second = base.state_dict(), target.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def concern_lines(attribution: FilterAttribution, indent: str = "") -> list[str]:
    r"""Reasons to doubt an attribution, in words.

    Args:
        attribution: The attribution.
        indent: The beginning of every line.

    Returns:
        Lines of at most 80 columns; none without reasons.

    Example:
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.fill_(1.0), target.weight.fill_(2.0)
        >>> risen = FilterAttributor(base).attribute(base, target, lambda model: model(torch.ones(1)).square().sum())
        >>> print("\n".join(concern_lines(risen)))
        reasons to doubt this attribution:
        - Target is not better than base on these samples (loss 1 -> 4). This is as
          expected if they are not those of the function, or if more is better; if the
          ends are swapped, exchange base and target.
    """
    if not attribution.concerns:
        return []
    lines = [f"{indent}reasons to doubt this attribution:"]
    for concern in attribution.concerns:
        lines += textwrap.wrap(concern, _WIDTH, initial_indent=f"{indent}- ", subsequent_indent=f"{indent}  ")
    return lines


@contextmanager
def concerns_are_shown() -> Iterator[None]:
    """Suppress warnings that are printed as text anyway: those of `concern_lines`, and sets that remove too little.

    Yields:
        Nothing.

    Example:
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.fill_(1.0), target.weight.fill_(2.0)
        >>> with concerns_are_shown():
        ...     risen = FilterAttributor(base).attribute(base, target, lambda model: model.weight.sum())
        >>> len(risen.concerns)
        1
    """
    with warnings.catch_warnings():
        for beginning in ("reasons to doubt this", "the attributions should sum to", "no set of"):
            warnings.filterwarnings("ignore", beginning, FilterAttrWarning)
        yield
