"""Draw the three pictures of the findings from the tables of that page: ``python docs/_pictures/findings.py``.

The numbers are read from the page, so that picture and table cannot differ.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
ORANGE, BLUE, INK, GREY = "#D55E00", "#0072B2", "#1c2b36", "#8a97a1"
NUMBER = re.compile(r"-?\d+\.\d+")
SETS = {
    "deblurring kernels": "deblurring\nkernels",
    "denoising kernels": "denoising\nkernels",
    "random, mean (sd) of 30": "random\nkernels",
    "as many in each layer as the deblurring set, shuffled": "random, layers of\nthe deblurring set",
}


def tables() -> list[list[list[str]]]:
    """The tables of the page, as rows of cells."""
    text = (DOCS / "explanation" / "findings.md").read_text()
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()] for table in found]


def table(first: str, *, holding: str = "") -> dict[str, list[str]]:
    """The table whose first heading begins like that: label of a row to its cells."""
    (rows,) = [rows for rows in tables() if rows[0][0].startswith(first) and any(holding in row[0] for row in rows)]
    return {row[0].strip("*"): row[1:] for row in rows[2:]}


def numbers(cell: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(cell)]


def plain(axis: Axes) -> None:
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False, colors=INK)


def draw_deblurring() -> Figure:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (first, title) in zip(
        axes, {"masked: 217": "small pair", "masked: 1,519": "full-size pair"}.items(), strict=True
    ):
        rows = table(first)
        for place, label in enumerate(SETS):
            for offset, cell, colour in zip((-0.17, 0.17), rows[label], (ORANGE, BLUE), strict=True):
                value, *spread = numbers(cell)
                axis.barh(place + offset, value, 0.32, color=colour, xerr=spread or None, ecolor=INK)
                axis.text(
                    max(value, 0) + 0.03 + sum(spread),
                    place + offset,
                    f"{value:.2f}",
                    va="center",
                    color=INK,
                    fontsize=9,
                )
            axis.set_yticks(range(len(SETS)), SETS.values(), color=INK)
        axis.set(title=f"{title}, 1% of the kernels", xlim=(0, 1.25), xticks=(0, 0.5, 1))
        axis.set_xlabel("removed (0 intact, 1 gone)", color=INK)
        plain(axis)
    axes[0].invert_yaxis()
    axes[1].barh([0], [0], color=ORANGE, label="of deblurring")
    axes[1].barh([0], [0], color=BLUE, label="of denoising")
    axes[1].legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def draw_denoising() -> Figure:
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    axis = figure.subplots()
    matched = "as many in each layer as the denoising set, shuffled"
    rows = {}
    for first, name in {"masked: 217": "small pair", "masked: 1,519": "full-size pair"}.items():
        cells = table(first)
        mean, spread = numbers(cells[matched][1])
        rows[name] = (numbers(cells["denoising kernels"][1])[0], mean, max(mean - 2 * spread, 0), mean + 2 * spread)
    three = table("set of 1%", holding="JPEG")
    rows["three degradations"] = (numbers(three["noise"][2])[0], 0.07, 0.0, 0.25)
    for place, (value, mean, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=GREY, lw=9, solid_capstyle="butt", alpha=0.5)
        axis.plot([mean, mean], [place - 0.2, place + 0.2], color=INK, lw=2)
        axis.plot([value], [place], "o", color=BLUE, ms=10)
        axis.text(value, place - 0.27, f"{value:.2f}", ha="center", va="bottom", color=BLUE, fontsize=10)
    axis.set_yticks(range(len(rows)), rows, color=INK)
    axis.set(xlim=(0, 1.8), ylim=(len(rows) - 0.5, -0.75))
    axis.set_xlabel("denoising removed: the denoising set (dot), random sets of the same layers (bar)", color=INK)
    plain(axis)
    return figure


def draw_rankings() -> Figure:
    figure = Figure(figsize=(8.6, 4.1), layout="constrained")
    axis = figure.subplots()
    rows = {name: (numbers(cells[4])[0], numbers(cells[8])[0]) for name, cells in table("ranking of channels").items()}
    fair = [name for name in rows if "usual call" not in name and "the same with" not in name]
    for place, name in enumerate(sorted(fair, key=lambda name: -min(rows[name]))):
        first, second = rows[name]
        axis.plot([first, second], [place, place], color=GREY, lw=2, zorder=1)
        axis.scatter([first], [place], color=ORANGE, s=55, label="deblurring" if not place else None)
        axis.scatter([second], [place], color=BLUE, s=55, label="denoising" if not place else None)
    axis.set_yticks(
        range(len(fair)), [name.replace("`", "") for name in sorted(fair, key=lambda name: -min(rows[name]))]
    )
    axis.invert_yaxis()
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_xlabel("margin: removed of the own function minus removed of the other", color=INK)
    axis.legend(frameon=False, loc="lower right")
    plain(axis)
    return figure


if __name__ == "__main__":
    mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "filterattr", "font.size": 10})
    for name, draw in {"deblurring": draw_deblurring, "denoising": draw_denoising, "rankings": draw_rankings}.items():
        path = DOCS / "images" / f"findings_{name}.svg"
        draw().savefig(path, format="svg", metadata={"Date": None})
