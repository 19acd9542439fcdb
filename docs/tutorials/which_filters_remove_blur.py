"""
Which filters remove blur?
==========================

The story of the paper :footcite:p:`xie2021` in five pictures, with weights that come
with the project.

A super-resolution network (``base``) was trained to enlarge clean photographs. Then
it was fine-tuned (``target``) on photographs that may also be blurred or noisy, and
it learned to remove both, without ever being told which of the two it is looking at.
Do *the same* kernels remove blur and noise? Or does each function have its own?

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
# The photographs come inside of scikit-image. Search and test photographs are
# different ones: what is found on some has to hold on others.
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
# One attribution for each function: the same networks, the same loss (the squared
# error, summed over pixels and channels), other inputs. Sixteen nodes on the path are
# enough here.
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
# The completeness errors are small. The losses go down, the one on noise after a
# barrier of 3% of the loss of base: the scores may be read. See
# :doc:`reading_the_numbers`.
#
# Tell the functions apart
# ------------------------
# A kernel that serves everything has a high score for blur *and* for noise.
# `contrast` asks for more: what does a kernel do for one function beyond what it does
# for the other (equation 7 of the paper)? ``scale="strict"`` demands that in the unit
# of the loss and as a share of all scores, because noise has larger scores
# altogether.
scores = {name: attribution.scores() for name, attribution in attributions.items()}
selections = {name: contrast(scores, name, scale="strict").top(0.01) for name in scores}
print(selections["blur"], "in common:", (selections["blur"] & selections["noise"]).count)

figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
axis.set_title("Where the kernels of each function sit")
plot_layers(selections, axis)
plt.show()

# %%
# Take them away
# --------------
# The proof: put these 217 of 21,696 kernels back to what they were in base. If they
# carry deblurring, the network should forget how to deblur, *and only that*.
masked = {name: blend(target, base, selection) for name, selection in selections.items()}
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
# And is it chance?
# -----------------
# `Masking` measures on the test photographs which share of a function is gone: 0
# intact, 1 all of it. Thirty random sets of the same size, and thirty *layer-matched*
# ones with as many kernels in every layer, say what chance would do.
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
    print(
        f"    deblurring removed {removed['blur']:.2f}, denoising {removed['noise']:.2f}"
    )
    for label, matched in (("random", False), ("layer-matched", True)):
        null = [
            masking.removed(selection.random(generator, layer_matched=matched))[name]
            for _ in range(30)
        ]
        spread = torch.tensor(null)
        p = p_value(removed[name], null)
        print(f"    {label:<13} {spread.mean():.2f} +- {spread.std():.2f}, p = {p:.3f}")

# %%
# Read the last lines with care. Deblurring sits in these kernels: no set drawn at
# random does anything like it. Denoising is found in the right *layers*, but shuffled
# sets inside the same layers can do as much: here the method has found layers rather
# than kernels. Four crops are few; :doc:`/explanation/findings` has the same with
# thirty.
#
# A dial
# ------
# Instead of all or nothing, `blend` mixes. Strength 0 is base, 1 is target, and
# beyond 1 the selected kernels do more of what they do.
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
# The whole study on your own photographs is one command: ``python -m sr_zoo demo
# --search FOLDER --test OTHER_FOLDER``.
#
# .. footbibliography::
