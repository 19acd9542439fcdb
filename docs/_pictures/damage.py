"""Draw ``docs/images/damage.svg``, why the share of a loss rewards damage: ``python docs/_pictures/damage.py``.

Sets of the small pair, found on three photographs inside of scikit-image and measured on two others: the denoising sets
of several scores, and random sets of the same layers.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from filterattr import FilterAttributor, contrast, signed_contrast
from filterattr.analysis import Masking, Outputs, search
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.pretrained import load_network
from sr_zoo.samples import draw_pairs, restored, squared_error

ORANGE, BLUE, GREEN, INK, GREY = "#D55E00", "#0072B2", "#007A5A", "#1c2b36", "#8a97a1"
CROPS, FRACTION, DRAWS = 8, 0.01, 40
LOWEST = -1.5


def measured() -> dict[str, list[tuple[float, float]]]:
    """What every set removes and reverts of denoising."""
    base, target = (load_network(f"srresnet_x2_f32b8_{role}") for role in ("base", "target"))
    inputs = {name: one for name, one in evaluation_inputs(2).items() if name != "both"}
    searched, tested = (
        draw_pairs(photographs, inputs, count=CROPS, size=96, scale=2, seed=seed, margin=16)
        for seed, photographs in enumerate(bundled_photographs())
    )
    attributor = FilterAttributor(target)
    attributions = {
        name: attributor.attribute(base, target, squared_error, searched[name], n_steps=8) for name in inputs
    }
    scores = {name: attributions[name].scores() for name in ("blur", "noise")}
    strict = contrast(scores, "noise", scale="strict").top(FRACTION)
    signed = signed_contrast(attributions, "noise")

    generator = torch.Generator().manual_seed(0)
    sets = {
        "random sets of the same layers": [strict.random(generator, layer_matched=True) for _ in range(DRAWS)],
        "paper's score, strict contrast": [strict],
        "signed scores": [signed.top(FRACTION)],
        "searched": [
            search(Outputs(target, base, target, restored, searched), signed, "noise", amount=FRACTION).selection
        ],
    }
    masking = Masking(target, base, target, squared_error, {"noise": tested["noise"]})
    outputs = Outputs(target, base, target, restored, {"noise": tested["noise"]})
    return {
        label: [(masking.removed(chosen)["noise"], outputs.reverted(chosen)["noise"]) for chosen in some]
        for label, some in sets.items()
    }


def draw(points: dict[str, list[tuple[float, float]]]) -> Figure:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    styles = {
        label: (colour, 26 if colour == GREY else 70)
        for label, colour in zip(points, (GREY, BLUE, ORANGE, GREEN), strict=True)
    }
    for label, (colour, size) in styles.items():
        x, y = zip(*points[label], strict=True)
        axis.scatter(x, [max(value, LOWEST) for value in y], s=size, color=colour, label=label, zorder=3)
    below = sum(y < LOWEST for _, y in points["random sets of the same layers"])
    if below:
        axis.text(0.02, 0.02, f"{below} further below", transform=axis.transAxes, color=GREY, fontsize=9)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xlabel("removed: share of the loss of denoising that is gone", color=INK)
    axis.set_ylabel("reverted: way of the outputs back to base", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.63))
    return figure


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "damage"
    path = Path(__file__).parents[1] / "images" / "damage.svg"
    found = measured()
    draw(found).savefig(path, metadata={"Date": None})
    for label, some in found.items():
        print(label, [(round(x, 2), round(y, 2)) for x, y in some])  # noqa: T201 - a script
