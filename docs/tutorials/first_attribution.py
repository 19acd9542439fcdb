"""
First attribution in ten minutes
================================

A network was trained, and then fine-tuned on something new. This page finds the
kernels that carry what it learned, and tests the result. You need three things:

``base``
    the weights before fine-tuning,
``target``
    the weights after fine-tuning, of the same network,
``loss``
    a function of the model that returns one number. It is small if the network does
    the new task well.

Everything on this page runs in seconds. To follow it, put a copy of the project into an
empty folder and run ``pip install "./filterattr[plot]"``.
"""

# %%
# Two sets of weights
# -------------------
# The network has three small convolutions and works on black-and-white images. Base
# learns to remove noise. Target starts as a copy of base and learns, at a low learning
# rate, to sharpen blurred images as well.
import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, blend, swapped


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 1, 3, padding=1),
    )


def draw_pictures(count: int) -> torch.Tensor:
    blobs = nn.functional.interpolate(
        torch.rand(count, 1, 5, 5), size=20, mode="bicubic", align_corners=False
    )
    return blobs.clamp(0, 1).round()


def noisy(images: torch.Tensor) -> torch.Tensor:
    return images + 0.3 * torch.randn_like(images)


def blurred(images: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(images, 3, stride=1, padding=1)


def train(model: nn.Module, degradations, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(400):
        images = draw_pictures(16)
        optimizer.zero_grad()
        sum(
            (model(degrade(images)) - images).square().mean()
            for degrade in degradations
        ).backward()
        optimizer.step()


torch.manual_seed(0)
base, target = network(), network()
train(base, [noisy], rate=3e-3)
target.load_state_dict(base.state_dict())
train(target, [noisy, blurred], rate=5e-4)

# %%
# The call
# --------
# The loss takes the model and one sample. Here a sample is a pair of a blurred image
# and the sharp one. During the call, the model computes with the weights of base, of
# target, and of points on the straight line between them.


def loss(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    degraded, reference = pair
    return (model(degraded) - reference).square().sum()


samples = [(blurred(image), image) for image in draw_pictures(8).split(1)]
attribution = FilterAttributor(target).attribute(base, target, loss, samples)
print(attribution)

# %%
# The network has 168 *kernels*, one for each pair of an input and an output channel.
# Each has a score now: the part of the change of the loss that is due to its change.
#
# After the call, the model is what it was before, bit for bit.
#
# Check the attribution
# ---------------------
# Look at two numbers before you look at a score:
#
# **completeness**
#     The attributions of *all* parameters must sum to the change of the loss. If the
#     relative error is above 1%, there is a warning: raise ``n_steps``.
# **barrier**
#     The loss should fall from base to target. If it first rises above both ends, the
#     networks on the line can do neither task, and the scores describe those networks.
print(f"completeness error {attribution.completeness_error:.3%}")
barrier = attribution.barrier / attribution.loss_base
print(f"barrier            {barrier:.1%} of base's loss")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(attribution.path_places, attribution.path_losses, marker="o", ms=3)
axis.set(
    title="The loss on the way from base to target",
    xlabel="t (0 base, 1 target)",
    ylabel="loss",
    ylim=(0, None),
)
plt.show()

# %%
# Both are small, so the scores can be read.
#
# Select kernels
# --------------
# `scores()` returns one number per kernel. `top` selects the highest ones: a fraction
# (``0.05``) or a number (``8``).
scores = attribution.scores()
selection = scores.top(0.05)
print(selection)

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
colours = ["#D55E00" if chosen else "#9ec9e2" for chosen in selection.flat()]
axis.bar(range(scores.n_units), scores.flat(), color=colours, width=1)
axis.set(
    title="Scores of all kernels, the top 5% in orange",
    xlabel="kernel, in the order of the network",
    ylabel="score",
)
plt.show()

# %%
# Test the selection
# ------------------
# A score is no proof. Set the selected kernels back to their weights in base, and
# measure what is lost. `blend` mixes the weights of two checkpoints; inside `swapped`,
# the network computes with the result.
test = draw_pictures(64)


@torch.no_grad()
def sharpened_with(state) -> torch.Tensor:
    with swapped(target, state) as model:
        return model(blurred(test))


def removed(chosen) -> float:
    """Share of the function that masking removes: 0 nothing, 1 all of it."""
    errors = [
        float((sharpened_with(state) - test).square().sum())
        for state in (base, target, blend(target, base, chosen))
    ]
    return (errors[2] - errors[1]) / (errors[0] - errors[1])


generator = torch.Generator().manual_seed(0)
drawn = torch.tensor([removed(selection.random(generator)) for _ in range(30)])
print("share of the sharpening that masking removes")
print(f"the {selection.count} kernels that were found: {removed(selection):.2f}")
spread = f"{drawn.mean():.2f} +- {drawn.std():.2f}"
print(f"{selection.count} random ones, 30 draws:    {spread}")

figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
shown = {
    "blurred": blurred(test),
    "target": sharpened_with(target),
    f"without {selection.count} kernels": sharpened_with(
        blend(target, base, selection)
    ),
    "sharp": test,
}
for axis, (label, images) in zip(axes, shown.items(), strict=True):
    axis.imshow(images[0, 0].detach(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(label, fontsize=10)
    axis.set_axis_off()
plt.show()

# %%
# The test used images that were not searched, and thirty random sets. Both matter: the
# thirty sets are a null distribution, a single one is not.
#
# Next
# ----
# - :doc:`which_filters_remove_blur`: the same on photographs, with two functions in
#   one network.
# - :doc:`your_own_network`: checkpoints on the disk, data loaders, attention heads.
# - :doc:`reading_the_numbers`: four checks for every attribution.
# - :doc:`/howto/choose`: which score, which measure, which size.

# sphinx_gallery_thumbnail_number = -1
