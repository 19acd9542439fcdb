"""
Which kernels remove blur, which remove noise?
==============================================

The steps of ``python -m sr_zoo demo`` in code. A network was trained on clean images
(base) and fine-tuned on blurred and noisy ones (target). This example finds the 1% of
its kernels that carry each new function, and sets them back to base.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, contrast, swapped
from filterattr.analysis import Masking
from filterattr.display import plot_layers, plot_path
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.metrics import psnr
from sr_zoo.pretrained import load_network
from sr_zoo.samples import draw_pairs, squared_error

# %%
# Two checkpoints of one network, and crops of real photographs: every crop comes clean,
# blurred, noisy and both. The kernels are searched on some photographs and judged on
# others.
base = load_network("srresnet_x2_f32b8_base")
target = load_network("srresnet_x2_f32b8_target")
search_photographs, test_photographs = bundled_photographs()
inputs = evaluation_inputs(scale=2)
search = draw_pairs(search_photographs, inputs, count=4, size=96, scale=2, seed=0)
test = draw_pairs(test_photographs, inputs, count=6, size=96, scale=2, seed=1)

# %%
# One attribution for each function. The loss is the paper's: the squared error, summed
# over pixels and channels.
attributor = FilterAttributor(target)
attributions = {
    name: attributor.attribute(base, target, squared_error, search[name], n_steps=16)
    for name in ("blur", "noise")
}
print(attributions["blur"])

# %%
# The scores can be read: the completeness error is small, and there is no barrier on
# the path.
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_path(attributions, axis)

# %%
# The discriminative score of a kernel is its score for one function less that for the
# other (equation 7 of the paper). The scores on noisy inputs are larger in total; the
# strict scale compares shares as well.
scores = {name: attribution.scores() for name, attribution in attributions.items()}
selections = {name: contrast(scores, name, scale="strict").top(0.01) for name in scores}
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
plot_layers(selections, axis)

# %%
# Set each set back to base and measure what is removed: 0 means that a function is
# intact, 1 that it is gone. A set should remove more than a random set of the same
# size.
batches = {
    name: [tuple(map(torch.cat, zip(*test[name], strict=True)))]
    for name in ("blur", "noise")
}
masking = Masking(target, base, target, squared_error, batches)
generator = torch.Generator().manual_seed(0)
for name, selection in {
    **selections,
    "random": selections["blur"].random(generator),
}.items():
    removed = masking.removed(selection)
    shares = f"deblurring {removed['blur']:.2f}, denoising {removed['noise']:.2f}"
    print(f"without the {name:>6} kernels: {shares} removed")

# %%
# A crop that was not searched. Without the deblurring kernels it stays blurred; without
# the denoising kernels, noise is left.
networks = {
    "target": target.state_dict(),
    "without deblurring": masking.masked(selections["blur"]),
    "without denoising": masking.masked(selections["noise"]),
}
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
pairs = {"blurred": test["blur"][0], "noisy": test["noise"][0]}
for row, (label, (degraded, reference)) in zip(axes, pairs.items(), strict=True):
    shown = {label: nn.functional.interpolate(degraded, scale_factor=2)}
    for name, state in networks.items():
        with swapped(target, state), torch.no_grad():
            shown[name] = target(degraded).clamp(0, 1)
    for axis, (name, image) in zip(row, shown.items(), strict=True):
        axis.imshow(image[0].permute(1, 2, 0).numpy())
        axis.set_title(f"{name}\n{float(psnr(image, reference)):.1f} dB", fontsize=10)
        axis.set_axis_off()
plt.show()

# sphinx_gallery_thumbnail_number = -1
