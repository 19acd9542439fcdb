"""
First attribution in ten minutes
================================

A network had been trained. Then it was trained a little more and learned something
new. **Where in the network did the new thing go?** That is the question `filterattr`
answers. You need three things to ask it:

``base``
    the weights from before,
``target``
    the weights from after, of the same network,
``loss``
    a function of the model that returns one number, small if the network does the new
    thing well.

Everything on this page runs in seconds. To follow it, start from an empty folder with
a copy of the project in it and ``pip install "./filterattr[plot]"``.
"""

# %%
# Two sets of weights
# -------------------
# Our network is three little convolutions on black-and-white pictures. Base learned
# to remove noise. Target started as a copy of base and learned, gently, to sharpen
# blurred pictures as well.
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
            (model(degrade(images)) - images).square().mean() for degrade in degradations
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
# The loss gets the model and one sample; here a sample is a pair of a blurred picture
# and the sharp one. Do not worry which of the two networks it is called with: while
# the call runs, the model computes with weights from base, from target, and from
# everywhere on the straight line between them.


def loss(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    degraded, reference = pair
    return (model(degraded) - reference).square().sum()


samples = [(blurred(image), image) for image in draw_pictures(8).split(1)]
attribution = FilterAttributor(target).attribute(base, target, loss, samples)
print(attribution)

# %%
# The network has 168 *kernels*, one for each pair of an input and an output channel.
# Each got a score: the part of the loss change that is due to its change.
#
# The model is what it was before the call, bit for bit. The library puts copies of
# its own into it and takes them out again.
#
# Believe it or not
# -----------------
# Two numbers come before all scores:
#
# **completeness**
#     The attributions of *all* parameters must sum to the change of the loss. If the
#     relative error is large, the integral was too coarse: raise ``n_steps``. Above 1%
#     there is a warning.
# **barrier**
#     The loss should go down from base to target. If it rises above both ends first, the
#     line leads through networks that can do neither task, and the attribution describes
#     those.
print(f"completeness error {attribution.completeness_error:.3%}")
print(
    f"barrier            {attribution.barrier / attribution.loss_base:.1%} of base's loss"
)

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
# Both are fine. The attribution can be read.
#
# Which kernels?
# --------------
# `scores()` holds one number for every kernel, and `top` selects the highest: a
# fraction (``0.05``) or a number (``8``).
scores = attribution.scores()
selection = scores.top(0.05)
print(selection, selection.per_layer())

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
# Is it true?
# -----------
# A score is a claim. Test it: put the selected kernels back to their weights in base,
# and see what is lost. `blend` mixes the weights, `swapped` lets the network compute
# with them for a while.
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
print(
    f"{selection.count} random ones, 30 draws:    {drawn.mean():.2f} +- {drawn.std():.2f}"
)

figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
shown = {
    "blurred": blurred(test),
    "target": sharpened_with(target),
    f"without {selection.count} kernels": sharpened_with(blend(target, base, selection)),
    "sharp": test,
}
for axis, (label, images) in zip(axes, shown.items(), strict=True):
    axis.imshow(images[0, 0].detach(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(label, fontsize=10)
    axis.set_axis_off()
plt.show()

# %%
# We looked at pictures that the search did not see, and compared with thirty random
# sets instead of one. Both matter: a single draw is no null distribution.
#
# Next
# ----
# - :doc:`which_filters_remove_blur`: the same on photographs, with two functions in
#   one network.
# - :doc:`your_own_network`: checkpoints on the disk, data loaders, attention heads.
# - :doc:`reading_the_numbers`: what else can be said about a score.
