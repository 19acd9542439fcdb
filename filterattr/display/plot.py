"""Plots of results. matplotlib is imported at the first plot."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can distinguish
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


def short_names(names: Sequence[str], width: int = 28) -> list[str]:
    """Shorten the parameter names of one network for an axis, and keep them different.

    Args:
        names: Names of parameters or groups.
        width: Largest number of characters; the middle of a longer name is left out.

    Returns:
        The names without a trailing ``.weight`` and without their common first modules. Longer names have an ellipsis,
        unless this would make two names equal.

    Example:
        >>> short_names(["bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.weight"], width=20)
        ['encoder.l…self.query', 'pooler']
    """
    parts = [short_name(name).split(".") for name in names]
    levels = zip(*(steps[:-1] for steps in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, levels))) if len(parts) > 1 else 0
    full = [".".join(steps[common:]) for steps in parts]
    head = (width - 1) // 2
    elided = [name if len(name) <= width else f"{name[:head]}…{name[head + 1 - width :]}" for name in full]
    seen = Counter(elided)
    return [short if seen[short] == 1 else long for short, long in zip(elided, full, strict=True)]


def join_layers(names: Sequence[str], limit: int = 60) -> dict[str, list[str]]:
    """Join the layers of a deep network into blocks, few enough to be read on one axis.

    Args:
        names: Names of parameters or groups, in the order of the network.
        limit: Largest number of blocks.

    Returns:
        Block to the names in it. With at most ``limit`` names, every name is a block. Otherwise names are cut after the
        deepest level of modules that keeps the number within the limit. If this leaves fewer blocks than a fifth of the
        limit, neighbouring names are joined instead.

    Example:
        >>> join_layers(["a.0.q", "a.0.k", "a.1.q", "a.1.k"], limit=3)
        {'a.0': ['a.0.q', 'a.0.k'], 'a.1': ['a.1.q', 'a.1.k']}
        >>> list(join_layers([f"layer{index}" for index in range(100)], limit=3))
        ['layer0 … layer33', 'layer34 … layer67', 'layer68 … layer99']
    """
    if len(names) <= limit:
        return {name: [name] for name in names}
    parts = [short_name(name).split(".") for name in names]
    for depth in range(max(map(len, parts)), 0, -1):
        blocks: dict[str, list[str]] = {}
        for name, steps in zip(names, parts, strict=True):
            blocks.setdefault(".".join(steps[:depth]), []).append(name)
        if len(blocks) <= limit:
            break
    if limit / 5 <= len(blocks) <= limit:
        return blocks
    size = math.ceil(len(names) / limit)
    runs = [list(names[begin : begin + size]) for begin in range(0, len(names), size)]
    labels = [short_names([run[0], run[-1]]) if len(run) > 1 else [short_name(run[0])] for run in runs]
    return {" … ".join(label): run for label, run in zip(labels, runs, strict=True)}


def axes_for(axis: Axes | None, size: tuple[float, float] = (7, 3.8)) -> Axes:
    """Return the given axes, or make new ones.

    Args:
        axis: Axes, or ``None``.
        size: Width and height of a new figure in inches.

    Returns:
        The axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> axes_for(axis) is axis
        True
    """
    if axis is not None:
        return axis
    import matplotlib.pyplot as plt  # noqa: PLC0415 - slow to import, and only here a figure is made

    return plt.subplots(figsize=size, layout="constrained")[1]


def plot_layers(selections: Mapping[str, FilterSelection], axis: Axes | None = None) -> Axes:
    """Draw the share of selected units of every layer, in one colour per selection.

    More than 60 layers are joined into blocks by `join_layers`.

    Args:
        selections: Label to selection; all with the same units.
        axis: Axes to draw on; a new figure of pyplot by default. The dashed line is the share of a uniform spread.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {"conv.weight": ScoredParameter(Unit("o i -> o i"), (2, 2))}
        >>> selection = FilterSelection({"conv.weight": torch.tensor([[True, False], [False, False]])}, like)
        >>> axis = Figure().subplots()
        >>> _ = plot_layers({"blur": selection}, axis)
        >>> axis.get_ylabel()
        'selected units of a layer (%)'
    """
    axis = axes_for(axis)
    blocks = join_layers(list(next(iter(selections.values()))))
    shares = {}
    for label, selection in selections.items():
        counts = [sum(int(selection[name].sum()) for name in names) for names in blocks.values()]
        sizes = [sum(selection[name].numel() for name in names) for names in blocks.values()]
        shares[label] = [100 * count / size for count, size in zip(counts, sizes, strict=True)]
        uniform = 100 * selection.count / selection.n_units
    _draw_bars(blocks, shares, axis)
    axis.axhline(uniform, color="0.4", ls="--", lw=1)
    axis.set_ylabel("selected units of a layer (%)")
    # small layers are often taken whole while large ones hold most of the units: both must be seen
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 100)
    axis.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def plot_shares(attributions: Mapping[str, FilterAttribution], axis: Axes | None = None) -> Axes:
    """Draw the share of every layer in all scores, in one colour per attribution, on a logarithmic scale.

    More than 60 layers are joined into blocks by `join_layers`.

    Args:
        attributions: Label to attribution; all with the same units.
        axis: Axes to draw on; a new figure of pyplot by default. They span at most four decades and leave out smaller
            shares.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> loss = lambda model: model(torch.ones(2)).square().sum()
        >>> axis = Figure().subplots()
        >>> _ = plot_shares({"task": FilterAttributor(base).attribute(base, target, loss)}, axis)
        >>> axis.get_yscale()
        'log'
    """
    axis = axes_for(axis)
    rows = {
        label: {row.name: row.share for row in attribution.per_layer()} for label, attribution in attributions.items()
    }
    blocks = join_layers(list(next(iter(rows.values()))))
    shares = {
        label: [100 * math.fsum(row[name] for name in names) for names in blocks.values()]
        for label, row in rows.items()
    }
    _draw_bars(blocks, shares, axis)
    axis.set_yscale("log")
    seen = [value for values in shares.values() for value in values if value > 0] or [100.0]
    axis.set_ylim(max(min(seen) / 2, max(seen) * 1e-4), max(seen) * 2)
    axis.set_ylabel("share of all scores (%)")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _draw_bars(blocks: Mapping[str, Sequence[str]], heights: Mapping[str, Sequence[float]], axis: Axes) -> None:
    """Draw a cluster of bars for every block, with readable names below."""
    width = 0.8 / len(heights)
    for place, (label, values) in enumerate(heights.items()):
        offsets = [index + (place + 0.5) * width - 0.4 for index in range(len(blocks))]
        axis.bar(offsets, values, width, label=label, color=COLOURS[place % len(COLOURS)])
    fontsize = 8 if len(blocks) <= 30 else 6
    axis.set_xticks(range(len(blocks)), short_names(list(blocks)), rotation=90, fontsize=fontsize)
    axis.set_xlim(-0.6, len(blocks) - 0.4)


def plot_path(attributions: Mapping[str, FilterAttribution], axis: Axes | None = None) -> Axes:
    """Draw the loss along the path from base to target, relative to base.

    A hump is a barrier between base and target; the attribution then means little. Thin lines mark the waypoints of the
    path.

    Args:
        attributions: Label to attribution.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> loss = lambda model: (model(torch.ones(2)) - 3).square().sum()
        >>> attribution = FilterAttributor(base).attribute(base, target, loss, n_steps=4)
        >>> axis = Figure().subplots()
        >>> _ = plot_path({"reaching 3": attribution}, axis)
        >>> len(axis.lines[0].get_xdata())  # four nodes and both ends
        6
    """
    axis = axes_for(axis)
    for place, (label, attribution) in enumerate(attributions.items()):
        losses = [value / attribution.loss_base for value in attribution.path_losses]
        colour = COLOURS[place % len(COLOURS)]
        axis.plot(attribution.path_places, losses, marker="o", ms=3, label=label, color=colour)
        for index in range(1, attribution.n_segments):
            axis.axvline(index / attribution.n_segments, color=colour, lw=0.5, alpha=0.5)
    axis.set(xlabel="place on the path t (0 base, 1 target)", ylabel="loss / loss of base")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return axis
