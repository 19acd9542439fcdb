"""Pictures of results; matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from filterattr.analysis.results import Curve, NullCurve
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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from filterattr import Unit
        >>> from filterattr.result import ScoredParameter
        >>> like = {"conv.weight": ScoredParameter(Unit("o i -> o i"), (2, 2))}
        >>> selection = FilterSelection({"conv.weight": torch.tensor([[True, False], [False, False]])}, like)
        >>> axis = Figure().subplots()
        >>> plot_layers({"blur": selection}, axis)
        >>> axis.get_ylabel()
        'selected units of a layer (%)'
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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> loss = lambda model: (model(torch.ones(2)) - 3).square().sum()
        >>> attribution = FilterAttributor(base).attribute(base, target, loss, n_steps=4)
        >>> axis = Figure().subplots()
        >>> plot_path({"reaching 3": attribution}, axis)
        >>> len(axis.lines[0].get_xdata())  # four nodes and both ends
        6
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


def plot_masking(curve: Curve, nulls: Mapping[str, NullCurve], function: str, axis: Axes) -> None:
    """Draw what a ranking's first units remove of a function (or bring, for grafts), against random units.

    Args:
        curve: What the ranked units do; the bars are its intervals over the samples.
        nulls: Label to what as many random units do: the mean, and a band that holds 95 % of the draws.
        function: Which function.
        axis: Where to draw. The scale of the fractions is logarithmic, so a fraction of 0 is left out.
    """
    for place, (label, null) in enumerate(nulls.items(), start=1):
        bands = null.bands(function)
        percents = [100 * fraction for fraction in null.fractions]
        colour = COLOURS[place % len(COLOURS)]
        axis.plot(percents, [band.mean for band in bands], marker="o", ms=3, label=label, color=colour)
        lows, highs = [band.low for band in bands], [band.high for band in bands]
        axis.fill_between(percents, lows, highs, color=colour, alpha=0.2, lw=0)
    drawn = [pair for pair in zip(curve.fractions, curve.shares[function], strict=True) if pair[0] > 0]
    axis.errorbar(
        [100 * fraction for fraction, _ in drawn],
        [share.value for _, share in drawn],
        yerr=[[share.value - share.low for _, share in drawn], [share.high - share.value for _, share in drawn]],
        marker="o",
        ms=4,
        capsize=2,
        label=curve.ranking,
        color=COLOURS[0],
    )
    verb = {"mask": "removed", "graft": "brought"}[curve.intervention]
    axis.set(xscale="log", xlabel="units (%)", ylabel=f"{verb} of {function}")
    ticks = [100 * fraction for fraction, _ in drawn]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
