"""Pictures of results; matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from filterattr.result import FilterAttribution, FilterSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def short_name(name: str) -> str:
    """Shorten a parameter name for an axis.

    Args:
        name: A parameter name.

    Returns:
        The name without a trailing ``.weight``.

    Example:
        >>> short_name("body.3.conv1.weight")
        'body.3.conv1'
    """
    return re.sub(r"\.weight$", "", name)


def plot_layers(selections: Mapping[str, FilterSelection], axis: Axes) -> None:
    """Draw which share of every layer's units was selected, one colour a selection.

    Args:
        selections: Label to selection; all with the same units.
        axis: Where to draw. The dashed line is the share of a uniform spread.
    """
    names = list(next(iter(selections.values())))
    width = 0.8 / len(selections)
    for place, (label, selection) in enumerate(selections.items()):
        shares = [100 * float(selection[name].float().mean()) for name in names]
        offsets = [index + (place + 0.5) * width - 0.4 for index in range(len(names))]
        axis.bar(offsets, shares, width, label=label, color=COLOURS[place % len(COLOURS)])
        uniform = 100 * selection.count / selection.n_units
    axis.axhline(uniform, color="0.4", ls="--", lw=1)
    axis.set_xticks(range(len(names)), [short_name(name) for name in names], rotation=90, fontsize=8)
    axis.set(ylabel="selected units of a layer (%)", xlim=(-0.6, len(names) - 0.4))
    # small layers are often taken whole while large ones hold most of the units: both must be seen
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 100)
    axis.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def plot_path(attributions: Mapping[str, FilterAttribution], axis: Axes) -> None:
    """Draw the loss along the path from base to target, relative to base.

    A hump means that the end points are separated by a barrier, and that the attribution means little.

    Args:
        attributions: Label to attribution.
        axis: Where to draw.
    """
    for place, (label, attribution) in enumerate(attributions.items()):
        losses = [value / attribution.loss_base for value in attribution.path_losses]
        colour = COLOURS[place % len(COLOURS)]
        axis.plot(attribution.path_places, losses, marker="o", ms=3, label=label, color=colour)
    axis.set(xlabel="place on the path t (0 base, 1 target)", ylabel="loss / loss of base")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
