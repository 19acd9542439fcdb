"""
Choosing units, loss and path
=============================

The call needs two checkpoints and a loss. Everything else has a default that follows
the paper. This page changes one argument at a time, on one small pair of networks, and
shows the effect on the result. It needs ``pip install "./filterattr[plot]"``.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, blend, swapped

# %%
# Base removes noise from small images. Target also learned to sharpen them.


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 1, 3, padding=1),
    )


def pictures(count: int) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5)
    return (
        nn.functional.interpolate(coarse, size=20, mode="bicubic", align_corners=False)
        .clamp(0, 1)
        .round()
    )


def blurred(images: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(images, 3, stride=1, padding=1)


def train(model: nn.Module, degradations, steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        images = pictures(16)
        optimizer.zero_grad()
        sum(
            (model(degrade(images)) - images).square().mean()
            for degrade in degradations
        ).backward()
        optimizer.step()


def noisy(images: torch.Tensor) -> torch.Tensor:
    return images + 0.3 * torch.randn_like(images)


torch.manual_seed(0)
base, target = network(), network()
train(base, [noisy], steps=400, rate=3e-3)
target.load_state_dict(base.state_dict())
train(target, [noisy, blurred], steps=400, rate=5e-4)

found = pictures(8)
samples = [(blurred(image), image) for image in found.split(1)]


def squared_error(model: nn.Module, pair) -> torch.Tensor:
    return (model(pair[0]) - pair[1]).square().sum()


# %%
# The unit: what gets one score
# -----------------------------
# .. list-table::
#    :header-rows: 1
#
#    * - unit
#      - one score for
#      - shape, convolution ``(o, i, h, w)``
#    * - ``"weight"``
#      - every single weight
#      - ``(o, i, h, w)``
#    * - ``"kernel"``
#      - every pair of output and input channel (the paper)
#      - ``(o, i)``
#    * - ``"filter"``
#      - every output channel
#      - ``(o,)``
#    * - ``"input"``
#      - every input channel
#      - ``(i,)``
#    * - ``"layer"``
#      - the whole parameter
#      - ``()``
#    * - a pattern
#      - whatever einops can write
#      - what its right side says
for unit in ("layer", "filter", "kernel", "weight"):
    scores = (
        FilterAttributor(target, unit=unit)
        .attribute(base, target, squared_error, samples)
        .scores()
    )
    shape = tuple(scores["2.weight"].shape)
    print(f"{unit:<7} {scores.n_units:>5} units, scores of the second layer {shape}")

# %%
# Choose a unit that you could remove from the network. Kernels are the smallest units
# with a meaning in a convolutional network. Pruning removes channels. In a
# `torch.nn.Linear`, a kernel is a single weight: choose ``"filter"`` or a pattern.
#
# The reduction: how weights become one score
# -------------------------------------------
# ``sum_of_abs`` (the paper) adds the absolute attributions of all weights.
# ``abs_of_sum`` lets weights of one kernel cancel. ``sum`` keeps the sign: below 0, the
# change of the kernel lowered the loss. One call computes all three.
attribution = FilterAttributor(target).attribute(base, target, squared_error, samples)
test = pictures(64)


@torch.no_grad()
def loss_of(state) -> float:
    with swapped(target, state) as model:
        return float((model(blurred(test)) - test).square().sum())


def removed(selection) -> float:
    """Share that masking removes: 0 nothing, 1 all, above 1 the network is damaged."""
    whole = loss_of(base) - loss_of(target)
    return (loss_of(blend(target, base, selection)) - loss_of(target)) / whole


top = {
    reduction: attribution.scores(reduction).top(0.05)
    for reduction in ("sum_of_abs", "abs_of_sum")
}
top["sum, most negative"] = (-attribution.scores("sum")).top(0.05)
for name, selection in top.items():
    overlap = selection.overlap(top["sum_of_abs"])
    print(f"{name:<20} removes {removed(selection):.2f}, overlap {overlap:.2f}")

# %%
# Values above 1 are damage, not success. The kernels with the most negative sums help
# most; without them, the kernels that compensate for their side effects do harm. Which
# reduction is best depends on the network. Measure the effect of masking on *other*
# functions, too.
#
# The loss: which change to attribute
# -----------------------------------
# The loss can be any real scalar of the model, and scores are linear in it. The squared
# error against a reference scores what made the output better. The distance to the
# output of target needs no reference, and scores what made the output different.
reference_free = {}
with torch.no_grad():
    wanted = [target(degraded) for degraded, _ in samples]


def squared_distance(model: nn.Module, pair) -> torch.Tensor:
    degraded, own = pair
    return (model(degraded) - own).square().sum()


def absolute_error(model: nn.Module, pair) -> torch.Tensor:
    return (model(pair[0]) - pair[1]).abs().sum()


attributor = FilterAttributor(target)
own = [
    (degraded, output) for (degraded, _), output in zip(samples, wanted, strict=True)
]
for name, loss, data in (
    ("absolute error", absolute_error, samples),
    ("distance to target's output", squared_distance, own),
):
    other = (
        attributor.attribute(base, target, loss, data, n_steps=64).scores().top(0.05)
    )
    overlap = other.overlap(top["sum_of_abs"])
    print(f"{name:<28} removes {removed(other):.2f}, overlap {overlap:.2f}")

# %%
# Do not add losses of functions that you want to distinguish, such as the errors on
# blurred *and* on noisy images. Attribute each function separately, and use `contrast`.
#
# The path: rule and number of nodes
# ----------------------------------
# Each node costs one forward and one backward pass per sample. Eight Gauss-Legendre
# nodes are as good as 100 steps of the published Riemann sum.
exact = (
    attributor.attribute(base, target, squared_error, samples, n_steps=128)
    .scores()
    .flat()
)
counts = (2, 4, 8, 16, 32)
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for method, marker in (
    ("gausslegendre", "o"),
    ("riemann_middle", "s"),
    ("riemann_right", "^"),
):
    errors = []
    for count in counts:
        scores = (
            attributor.attribute(
                base, target, squared_error, samples[:8], method=method, n_steps=count
            )
            .scores()
            .flat()
        )
        errors.append(float((scores - exact).abs().sum() / exact.abs().sum()))
    axis.loglog(counts, errors, marker=marker, label=method)
axis.set(
    title="How far the scores are from the converged ones",
    xlabel="nodes on the path",
    ylabel="relative error",
    xticks=counts,
)
axis.set_xticks(counts, map(str, counts))
axis.minorticks_off()
axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.75, 0.12))
plt.show()

# %%
# Networks with kinks (ReLU) converge more slowly than this one with SiLU. The
# completeness error shows whether there were enough nodes, without a reference
# solution. :doc:`reading_the_numbers` says what else it shows.
#
# The default path is the straight line, which needs only base and target. If the loss
# has a barrier on it, the two networks are too far apart for this method.
