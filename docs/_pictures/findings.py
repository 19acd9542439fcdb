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


def draw_sets() -> Figure:
    pairs = [rows for rows in tables() if any("**signed, chosen**" in row[0] for row in rows)]
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axis = figure.subplots()
    labels = []
    for pair, rows in zip(("small pair", "full-size pair", "three degradations"), pairs, strict=True):
        by_set = {row[0].replace("*", ""): row[1:] for row in rows[2:]}
        for function in dict.fromkeys(label.split(",")[0] for label in by_set):
            place = len(labels)
            chosen, searched = by_set[f"{function}, signed, chosen"], by_set[f"{function}, searched"]
            mean, most = numbers(chosen[5])
            first = not place
            axis.plot(
                [mean, most],
                [place, place],
                color=GREY,
                lw=8,
                solid_capstyle="butt",
                alpha=0.6,
                label="random sets of the same layers" if first else None,
            )
            axis.plot(
                [max(numbers(chosen[3]))],
                [place],
                "x",
                color=INK,
                ms=7,
                mew=2,
                label="others moved, at most" if first else None,
            )
            axis.plot(
                [numbers(searched[2])[0]],
                [place],
                "o",
                mfc="none",
                color=ORANGE,
                ms=12,
                mew=2,
                label="searched set reverts" if first else None,
            )
            axis.plot(
                [numbers(chosen[2])[0]], [place], "o", color=BLUE, ms=7, label="signed set reverts" if first else None
            )
            labels.append(f"{function}, {pair} ({chosen[0]})")
    axis.set_yticks(range(len(labels)), labels, color=INK)
    axis.invert_yaxis()
    axis.set(xlim=(-0.03, 1.05), xticks=(0, 0.25, 0.5, 0.75, 1))
    axis.set_xlabel("share of the way of the outputs (number of kernels in the signed set)", color=INK)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    plain(axis)
    return figure


def draw_denoising() -> Figure:
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    axis = figure.subplots()
    rows = {}
    for label, cells in table("pair and set").items():
        if label.endswith(", denoising"):
            value, mean = (numbers(cells[place])[0] for place in (0, 3))
            rows[label.removesuffix(", denoising")] = (value, mean, *numbers(cells[4]))
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
    for name, draw in {"sets": draw_sets, "denoising": draw_denoising, "rankings": draw_rankings}.items():
        path = DOCS / "images" / f"findings_{name}.svg"
        draw().savefig(path, format="svg", metadata={"Date": None})
