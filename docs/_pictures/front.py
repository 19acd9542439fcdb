"""Draw the picture of the front page and the card of links to the site: ``python docs/_pictures/front.py`` (a minute).

Both show what the shipped networks make of a photograph inside of scikit-image; `sr_zoo.demo.find_and_mask` finds the
kernels, as in ``make demo``. The library has to be installed.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from filterattr import blend, swapped
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs, find_and_mask
from sr_zoo.images import to_float
from sr_zoo.metrics import psnr
from sr_zoo.pretrained import load_network

DOCS = Path(__file__).parents[1]
ORANGE, INK, GREY = "#D55E00", "#1c2b36", "#5b6b78"
PLACE = (slice(30, 190), slice(150, 310))
ROWS = {"blur": "blurred", "noise": "noisy"}


def restorations() -> tuple[dict[str, dict[str, Tensor]], Tensor, list[int]]:
    """Input to label to picture, the original, and the numbers of kernels in the sets."""
    base, target = (load_network(f"srresnet_x2_f32b8_{name}") for name in ("base", "target"))
    search, test = bundled_photographs()
    result = find_and_mask(base, target, search, test, draws=2, progress=False)
    counts = [result.selections[name].count for name in ROWS]
    states = {
        "the network": target.state_dict(),
        f"without {counts[0]}\ndeblurring kernels": blend(target, base, result.selections["blur"]),
        f"without {counts[1]}\ndenoising kernels": blend(target, base, result.selections["noise"]),
    }
    reference = to_float(test[0][None, :, *PLACE])
    shown = {}
    for name in ROWS:
        degraded = evaluation_inputs(2)[name](reference, torch.Generator().manual_seed(0))
        shown[name] = {"input": nn.functional.interpolate(degraded, scale_factor=2, mode="nearest")}
        for label, state in states.items():
            with swapped(target, state) as network, torch.no_grad():
                shown[name][label] = network(degraded).clamp(0, 1)
    return shown, reference, counts


def show(axis: Axes, picture: Tensor, *, is_lost: bool) -> None:
    axis.imshow(picture[0].permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    for edge in axis.spines.values():
        edge.set(visible=is_lost, color=ORANGE, linewidth=5)


def draw_front(shown: dict[str, dict[str, Tensor]], reference: Tensor) -> None:
    figure = Figure(figsize=(8.6, 4.95), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # type: ignore[union-attr]
    for line, (name, pictures) in zip(figure.subplots(2, 4), shown.items(), strict=True):
        for place, (axis, (label, picture)) in enumerate(zip(line, pictures.items(), strict=True)):
            is_lost = place == 2 + list(ROWS).index(name)
            show(axis, picture, is_lost=is_lost)
            if name == "blur":
                axis.set_title(label, fontsize=13, color=INK, fontweight="bold" if place else None)
            quality = psnr(picture, reference, border=2).item()
            text = f"{quality:.1f} dB" + (f", {ROWS[name]} again" if is_lost else "")
            axis.set_xlabel(text, fontsize=12, color=ORANGE if is_lost else GREY)
        line[0].set_ylabel(ROWS[name], fontsize=13, color=INK)
    figure.savefig(DOCS / "images" / "front.webp", dpi=150, pil_kwargs={"quality": 88})


def draw_card(shown: dict[str, dict[str, Tensor]], counts: list[int]) -> None:
    figure = Figure(figsize=(12, 6.3), facecolor="white")
    logo = figure.add_axes((0.05, 0.72, 0.1, 0.19))
    logo.imshow(matplotlib.image.imread(DOCS / "_static" / "logo.png"))
    logo.set_axis_off()
    figure.text(0.165, 0.795, "filterattr", fontsize=44, color=INK, fontweight="bold")
    figure.text(0.165, 0.725, "Which filters carry a function?", fontsize=27, color=GREY)
    labels = ("input", "the network", f"without {counts[0]} kernels", f"without {counts[1]} others")
    for place, (label, picture) in enumerate(zip(labels, shown["blur"].values(), strict=True)):
        axis = figure.add_axes((0.05 + 0.2305 * place, 0.1, 0.2085, 0.397))
        show(axis, picture, is_lost=place == 2)
        axis.set_title(label, fontsize=19, color=ORANGE if place == 2 else INK, pad=12)
    figure.savefig(DOCS / "_static" / "card.jpg", dpi=100, pil_kwargs={"quality": 90})


if __name__ == "__main__":
    found, original, sizes = restorations()
    draw_front(found, original)
    draw_card(found, sizes)
    print(sizes)  # noqa: T201 - a script
