"""
Which filters remove blur?
==========================

The experiment of the paper :footcite:p:`xie2021` in five pictures, with weights that
come with the project.

A super-resolution network (``base``) was trained to enlarge clean photographs. It was
then fine-tuned (``target``) on photographs that may also be blurred or noisy, and
learned to remove both, without labels. This page shows that each function has kernels
of its own.

It needs ``pip install "./filterattr[demo]"``, which brings the photographs.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, blend, contrast, swapped
from filterattr.analysis import Masking, p_value
from filterattr.display import plot_layers, plot_path
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.images import to_float
from sr_zoo.metrics import psnr
from sr_zoo.pretrained import load_network
from sr_zoo.samples import draw_pairs, squared_error

base = load_network("srresnet_x2_f32b8_base")
target = load_network("srresnet_x2_f32b8_target")

# %%
# What the two networks do
# ------------------------
# The photographs come with scikit-image. Different photographs are used for the search
# and for the test.
search_photographs, test_photographs = bundled_photographs()
inputs = evaluation_inputs(
    scale=2
)  # clean, blur (sigma 2 pixels), noise (sigma 0.1) and both
reference = to_float(test_photographs[0][None, :, 48:208, 150:310])
degraded = {
    name: inputs[name](reference, torch.Generator().manual_seed(0))
    for name in ("blur", "noise")
}


def restored_with(state, image):
    with swapped(target, state) as network, torch.no_grad():
        return network(image).clamp(0, 1)


def show(rows, title):
    figure, axes = plt.subplots(
        len(rows), len(rows[0][1]), figsize=(9, 3.2 * len(rows)), layout="constrained"
    )
    figure.suptitle(title)
    for line, (_, pictures) in zip(axes, rows, strict=True):
        for axis, (label, picture) in zip(line, pictures.items(), strict=True):
            quality = (
                ""
                if picture.shape != reference.shape
                else f", {psnr(picture, reference, border=2).item():.1f} dB"
            )
            axis.imshow(picture[0].permute(1, 2, 0))
            axis.set_title(f"{label}{quality}", fontsize=9)
            axis.set_axis_off()
    plt.show()


show(
    [
        (
            name,
            {
                name: nn.functional.interpolate(image, scale_factor=2),
                "base": restored_with(base, image),
                "target": restored_with(target, image),
            },
        )
        for name, image in degraded.items()
    ],
    "Base leaves blur and noise where they are, target removes them",
)

# %%
# Attribute
# ---------
# Attribute each function separately, with the same networks, the same loss (the squared
# error, summed over pixels and channels) and different inputs. Sixteen nodes on the
# path are enough here.
samples = draw_pairs(search_photographs, inputs, count=4, size=96, scale=2, seed=0)
attributor = FilterAttributor(target)
attributions = {
    name: attributor.attribute(base, target, squared_error, samples[name], n_steps=16)
    for name in ("blur", "noise")
}
for name, attribution in attributions.items():
    print(f"{name}: {attribution}\n")

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.set_title("The loss on the way from base to target")
plot_path(attributions, axis)
plt.show()

# %%
# The completeness errors are small. Both losses fall, the one on noise after a barrier
# of 3% of the loss of base. So the scores can be read; see :doc:`reading_the_numbers`.
#
# Separate the functions
# ----------------------
# A kernel that both functions use has a high score for blur *and* for noise. `contrast`
# subtracts the score for the other function (equation 7 of the paper). Noise has larger
# scores in total, so ``scale="strict"`` subtracts in the unit of the loss and as a
# share of all scores, and takes the smaller difference.
scores = {name: attribution.scores() for name, attribution in attributions.items()}
selections = {name: contrast(scores, name, scale="strict").top(0.01) for name in scores}
print(
    selections["blur"], "in common:", (selections["blur"] & selections["noise"]).count
)

figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
axis.set_title("Where the kernels of each function sit")
plot_layers(selections, axis)
plt.show()

# %%
# Set the kernels back
# --------------------
# Now the test: set these 217 of 21,696 kernels back to their weights in base. If they
# carry deblurring, the network no longer deblurs, *and does everything else as before*.
masked = {
    name: blend(target, base, selection) for name, selection in selections.items()
}
show(
    [
        (
            name,
            {
                "target": restored_with(target, image),
                "without blur kernels": restored_with(masked["blur"], image),
                "without noise kernels": restored_with(masked["noise"], image),
            },
        )
        for name, image in degraded.items()
    ],
    "Above: the blurred input. Below: the noisy one",
)

# %%
# Compare with chance
# -------------------
# `Masking` measures on the test photographs which share of a function is removed: 0
# intact, 1 gone. Thirty random sets of the same size, and thirty *layer-matched* ones
# with as many kernels in every layer, show what chance would do.
tested = draw_pairs(test_photographs, inputs, count=4, size=96, scale=2, seed=1)
batches = {
    name: [tuple(map(torch.cat, zip(*tested[name], strict=True)))]
    for name in ("blur", "noise")
}
masking = Masking(target, base, target, squared_error, batches)
generator = torch.Generator().manual_seed(0)
for name, selection in selections.items():
    removed = masking.removed(selection)
    print(f"{name} kernels masked")
    shares = f"deblurring {removed['blur']:.2f}, denoising {removed['noise']:.2f}"
    print(f"    removed: {shares}")
    for label, matched in (("random", False), ("layer-matched", True)):
        null = [
            masking.removed(selection.random(generator, layer_matched=matched))[name]
            for _ in range(30)
        ]
        spread = torch.tensor(null)
        p = p_value(removed[name], null)
        print(f"    {label:<13} {spread.mean():.2f} +- {spread.std():.2f}, p = {p:.3f}")

# %%
# These kernels carry deblurring: no random set has a similar effect. For denoising, the
# method found the right *layers*; random sets of the same layers remove as much. Four
# crops are few. :doc:`/explanation/findings` has the same measurement with thirty.
#
# Change the strength
# -------------------
# `blend` also takes a strength. 0 is base, 1 is target, and larger values continue
# beyond target.
strengths = (0.0, 0.5, 1.0, 1.5)
figure, axes = plt.subplots(1, len(strengths), figsize=(9, 2.7), layout="constrained")
figure.suptitle("The strength of deblurring, dialled in 1% of the kernels")
for axis, strength in zip(axes, strengths, strict=True):
    picture = restored_with(
        blend(target, base, selections["blur"], strength), degraded["blur"]
    )
    axis.imshow(picture[0].permute(1, 2, 0))
    axis.set_title(f"strength {strength}", fontsize=9)
    axis.set_axis_off()
plt.show()

# %%
# ``python -m sr_zoo demo --search FOLDER --test OTHER_FOLDER`` does all of this on your
# own photographs.
#
# .. footbibliography::
