"""Draw ``docs/images/integral.svg``, the integral node by node: ``python docs/_pictures/integral.py``.

Two weights move on the line from base to target over a real loss surface. The numbers in the picture are computed here.
"""

from __future__ import annotations

from pathlib import Path

import contourpy
import numpy as np

BASE, TARGET = np.array([-0.95, -0.7]), np.array([0.85, 0.75])
COUNT, SECONDS, HOLD = 8, 1.1, 3.0
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#667788"
SIZE, LEFT, TOP = 230.0, 20.0, 46.0
PLOT_LEFT, PLOT_WIDTH, ROW = 330.0, 250.0, 100.0


def loss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.45 * (x - 1.1) ** 2 + 0.12 * y**2 + 0.55 * np.sin(3.4 * y + 0.9) - 0.12 * x * y


def gradient(point: np.ndarray) -> np.ndarray:
    step = 1e-5
    shifts = np.eye(2) * step
    return np.array([(loss(*(point + one)) - loss(*(point - one))) / (2 * step) for one in shifts])


def place(point: np.ndarray) -> tuple[float, float]:
    """From weights in [-1.3, 1.3] to the picture."""
    x, y = (point + 1.3) / 2.6
    return LEFT + SIZE * x, TOP + SIZE * (1 - y)


def contours() -> list[str]:
    axis = np.linspace(-1.3, 1.3, 61)
    heights = loss(*np.meshgrid(axis, axis))
    generator = contourpy.contour_generator(axis, axis, heights)
    parts = []
    for level in np.linspace(heights.min(), heights.max(), 16)[1:-1]:
        for line in generator.lines(level):
            points = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in line[::2])
            parts.append(f'<polyline class="contour" points="{points}"/>')
    return parts


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def main() -> None:
    nodes, coefficients = np.polynomial.legendre.leggauss(COUNT)
    nodes, coefficients = (nodes + 1) / 2, coefficients / 2
    change = TARGET - BASE
    products = np.array([gradient(BASE + t * change) * change for t in nodes])
    sums = np.cumsum(products * coefficients[:, None], axis=0)
    fine = np.linspace(0, 1, 60)
    curves = np.array([gradient(BASE + t * change) * change for t in fine])
    scale = 0.42 * ROW / np.abs(curves).max()
    whole = loss(*TARGET) - loss(*BASE)
    cycle = COUNT * SECONDS + HOLD

    parts = [text(LEFT, 24, "the loss over two weights", "head"), *contours()]
    (x0, y0), (x1, y1) = place(BASE), place(TARGET)
    parts += [
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="way"/>',
        f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="5" class="end"/>',
        f'<circle cx="{x1:.1f}" cy="{y1:.1f}" r="5" class="end"/>',
        text(x0, y0 + 20, "base", "label", "middle"),
        text(x1, y1 - 12, "target", "label", "middle"),
        text(PLOT_LEFT, 24, "gradient times change along the way", "head"),
    ]
    edges = np.concatenate([[0], np.cumsum(coefficients)])
    for weight, colour in enumerate((BLUE, ORANGE)):
        middle = TOP + ROW * (0.5 + 1.2 * weight)
        line = " ".join(
            f"{PLOT_LEFT + PLOT_WIDTH * t:.1f},{middle - scale * value:.1f}"
            for t, value in zip(fine, curves[:, weight], strict=True)
        )
        parts += [
            f'<line x1="{PLOT_LEFT}" y1="{middle:.1f}" x2="{PLOT_LEFT + PLOT_WIDTH}" y2="{middle:.1f}" class="axis"/>',
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            text(PLOT_LEFT - 8, middle + 4, "ab"[weight], "label", "end"),
        ]
        for step in range(COUNT):
            height = scale * products[step, weight]
            parts.append(
                f'<rect class="from s{step}" x="{PLOT_LEFT + PLOT_WIDTH * edges[step]:.1f}" '
                f'y="{middle - max(height, 0):.1f}" width="{PLOT_WIDTH * coefficients[step]:.1f}" '
                f'height="{abs(height):.1f}" fill="{colour}" fill-opacity=".45"/>'
            )
            parts.append(
                f'<g class="only o{step}">'
                + text(PLOT_LEFT + PLOT_WIDTH + 12, middle + 5, f"{sums[step, weight]:+.2f}", "number")
                + "</g>"
            )
    bottom = TOP + SIZE + 22
    parts += [
        text(PLOT_LEFT, TOP + 2.25 * ROW, "t = 0", "label"),
        text(PLOT_LEFT + PLOT_WIDTH, TOP + 2.25 * ROW, "t = 1", "label", "end"),
    ]
    for step, t in enumerate(nodes):
        x, y = place(BASE + t * change)
        parts.append(f'<circle class="only o{step}" cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{GREY}"/>')
        total = sums[step].sum()
        words = f"node {step + 1} of {COUNT}: a + b = {total:+.3f}"
        if step == COUNT - 1:
            words = f"a + b = {total:+.3f}; the loss changed by {whole:+.3f}"
        parts.append(f'<g class="only o{step}">' + text(PLOT_LEFT, bottom, words, "number") + "</g>")

    rules = []
    for step in range(COUNT):
        begin = 100 * step * SECONDS / cycle
        end = 100 if step == COUNT - 1 else 100 * (step + 1) * SECONDS / cycle
        before = f"0%,{begin:.2f}%{{opacity:0}}" if step else ""
        after = "" if step == COUNT - 1 else f"{end + 0.01:.2f}%,100%{{opacity:0}}"
        rules.append(f"@keyframes f{step}{{{before}{begin + 0.01:.2f}%,100%{{opacity:1}}}}")
        rules.append(f"@keyframes g{step}{{{before}{begin + 0.01:.2f}%,{end:.2f}%{{opacity:1}}{after}}}")
        rules.append(f".s{step}{{animation:f{step} {cycle:.1f}s 3 step-end both}}")
        rules.append(f".o{step}{{animation:g{step} {cycle:.1f}s 3 step-end both}}")
    still = "".join(f".o{step}{{opacity:0}}" for step in range(COUNT - 1))
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}.head{font-weight:600;font-size:14px}.label{fill:#556}"
        ".number{font-weight:600;font-variant-numeric:tabular-nums}"
        f".contour{{fill:none;stroke:{GREY};stroke-width:.7;opacity:.45}}.way{{stroke:#222;stroke-width:1.5;"
        "stroke-dasharray:5 4}.end{fill:#222}.axis{stroke:#999}"
        + "".join(rules)
        + f"@media (prefers-reduced-motion:reduce){{*{{animation:none!important}}{still}}}"
    )
    words = (
        "The integral node by node. Left, contour lines of a loss over two weights and the straight line from base to "
        "target. Right, gradient times change of both weights along the line; the areas under the curves are the "
        "attributions, and their sum is the change of the loss."
    )
    body = "\n".join(parts)
    Path(__file__).parents[1].joinpath("images", "integral.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 684 312" role="img" aria-label="{words}">\n'
        f'<style>{style}</style>\n<rect width="684" height="312" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
