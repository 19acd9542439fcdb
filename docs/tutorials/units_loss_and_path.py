"""
Choosing units, loss and path
=============================

The call needs two end points and a loss. Everything else has a default that follows
the paper. This page changes one choice at a time, on one small pair of networks, and
shows what it does to the answer. It needs ``pip install "./filterattr[plot]"``.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, blend, swapped

# %%
# The pair: a denoiser of little pictures (base) that learned to sharpen them, too
# (target).


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
            (model(degrade(images)) - images).square().mean() for degrade in degradations
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
# The unit: what is a "filter"?
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
# A unit should be something that you could take out. Kernels are the finest that has
# a meaning in a convolutional network; channels are what pruning removes; for
# `torch.nn.Linear`, where a kernel is a single weight, choose ``"filter"`` or a
# pattern.
#
# The reduction: how do weights become one score?
# -----------------------------------------------
# ``sum_of_abs`` (the paper) counts every weight for what it did, up or down.
# ``abs_of_sum`` lets weights of one kernel cancel. ``sum`` keeps the sign: below 0,
# the kernel's change lowered the loss. All three come from one call.
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
# Above 1 is not better, it is damage: the most negative sums are the kernels that
# help, taken away from those that make up for their side effects. Which reduction
# serves best depends on the network; look at what masking does to *other* functions,
# too.
#
# The loss: which question?
# -------------------------
# The loss *is* the question. Any real scalar of the model will do; scores are linear
# in it. The squared error against a reference asks "what made it right?". The
# distance to target's own output needs no reference and asks "what made it
# different?".
reference_free = {}
with torch.no_grad():
    wanted = [target(degraded) for degraded, _ in samples]


def squared_distance(model: nn.Module, pair) -> torch.Tensor:
    degraded, own = pair
    return (model(degraded) - own).square().sum()


def absolute_error(model: nn.Module, pair) -> torch.Tensor:
    return (model(pair[0]) - pair[1]).abs().sum()


attributor = FilterAttributor(target)
own = [(degraded, output) for (degraded, _), output in zip(samples, wanted, strict=True)]
for name, loss, data in (
    ("absolute error", absolute_error, samples),
    ("distance to target's output", squared_distance, own),
):
    other = attributor.attribute(base, target, loss, data, n_steps=64).scores().top(0.05)
    overlap = other.overlap(top["sum_of_abs"])
    print(f"{name:<28} removes {removed(other):.2f}, overlap {overlap:.2f}")

# %%
# A loss that adds what is to be told apart, such as the errors on blurred *and* on
# noisy pictures, cannot tell it apart afterwards. Attribute each by itself, then use
# `contrast`.
#
# The path: which rule, how many nodes?
# -------------------------------------
# Each node costs one forward and one backward pass for every sample. Gauss-Legendre
# nodes reach with 8 what the published Riemann sum needs 100 for.
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
# completeness error tells without a reference solution whether the nodes were enough;
# :doc:`reading_the_numbers` shows what it can and cannot tell.
#
# More than one path leads from base to target. A straight line is the default because
# it needs nothing more than the end points; if the loss has a barrier on it, the two
# are not related closely enough for this method.
