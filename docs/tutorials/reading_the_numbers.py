"""
Reading the numbers
===================

An attribution always returns scores. This page shows four checks that tell whether the
scores mean something:

1. The integral was resolved: completeness error.
2. The path makes sense: barrier and cosine.
3. The selection is better than chance: null distributions.
4. Other samples give the same selection: standard errors and bootstrap.

It needs ``pip install "./filterattr[demo]"``, which brings photographs and weights.
"""

import warnings

import matplotlib.pyplot as plt
import torch

from filterattr import FilterAttributor
from filterattr.analysis import Masking, p_value, path_health
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.pretrained import load_network
from sr_zoo.samples import draw_pairs, squared_error

base = load_network("srresnet_x2_f32b8_base")
target = load_network("srresnet_x2_f32b8_target")
search_photographs, test_photographs = bundled_photographs()
inputs = {"blur": evaluation_inputs(scale=2)["blur"]}
samples = draw_pairs(search_photographs, inputs, count=8, size=64, scale=2, seed=0)[
    "blur"
]
attributor = FilterAttributor(target)
attribution = attributor.attribute(base, target, squared_error, samples, n_steps=16)
print(attribution)

# %%
# Reasons to doubt the attribution would be listed there, and in
# ``attribution.concerns``. Here there are none.
print(attribution.concerns)

# %%
# 1. Completeness: the integral was resolved
# ------------------------------------------
# By a theorem, the attributions of all parameters sum to the change of the loss. What
# is missing is the error of the quadrature. It falls with more nodes. Above 1% there is
# a warning.
for count in (1, 2, 4, 8, 16):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we know, that is the point
        coarse = attributor.attribute(
            base, target, squared_error, samples[:2], n_steps=count
        )
    print(f"{count:>2} nodes: completeness error {coarse.completeness_error:.2%}")

# %%
# A small error does not show that the right kernels have the highest scores. If every
# kernel got an equal share of the change of the loss, the error would be zero. Do not
# compare methods by it.
#
# The remainder is the part of the weights that are not scored, such as biases. If it is
# large, what the network learned is not in the kernels. Absolute attributions are
# compared, because signed ones would cancel.
share = path_health(attribution).remainder_share
print(f"not scored (biases): {share:.1%} of all absolute attributions")

# %%
# 2. Barrier and cosine: the path makes sense
# -------------------------------------------
# Here is a path that makes no sense. It begins at a copy of target whose channels are
# *permuted*. The copy computes exactly the same function, so the loss is equal at both
# ends. But the networks on the straight line between them are worse than base, which
# never learned to deblur.
permuted = {name: value.clone() for name, value in target.state_dict().items()}
order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
for block in range(8):
    permuted[f"body.{block}.conv1.weight"] = permuted[f"body.{block}.conv1.weight"][
        order
    ]
    permuted[f"body.{block}.conv1.bias"] = permuted[f"body.{block}.conv1.bias"][order]
    permuted[f"body.{block}.conv2.weight"] = permuted[f"body.{block}.conv2.weight"][
        :, order
    ]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    senseless = attributor.attribute(
        permuted, target, squared_error, samples[:2], n_steps=16
    )

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for label, one in (
    ("fine-tuned from base", attribution),
    ("the same function, permuted", senseless),
):
    relative = [value / attribution.loss_base for value in one.path_losses]
    axis.plot(one.path_places, relative, marker="o", ms=3, label=label)
axis.set(
    title="The loss along two paths",
    xlabel="t (0 base, 1 target)",
    ylabel="loss / loss of base",
    ylim=(0, None),
)
axis.legend(frameon=False)
plt.show()
for label, one in (("fine-tuned", attribution), ("permuted", senseless)):
    height = one.barrier / attribution.loss_base
    print(f"{label:<10} barrier {height:6.1%} of base's loss, cosine {one.cosine:.3f}")

# %%
# Completeness holds on this path, too. Only the barrier shows that it makes no sense.
# The cosine between all weights is a cheap hint: in our experiments, sets of fine-tuned
# pairs above 0.9 were specific, and masking damaged pairs at 0.6.
#
# 3. Null distributions: the selection is better than chance
# ----------------------------------------------------------
# Mask the selection on held-out photographs, and compare with random sets of the same
# size. *Plain* random sets may lie anywhere. *Layer-matched* sets have as many kernels
# in every layer as the selection. A selection that beats plain sets only has found the
# right layers, but not the right kernels.
tested = draw_pairs(test_photographs, inputs, count=4, size=64, scale=2, seed=1)["blur"]
batch = tuple(map(torch.cat, zip(*tested, strict=True)))
masking = Masking(target, base, target, squared_error, {"blur": [batch]})
selection = attribution.scores().top(0.01)
observed = masking.removed(selection)["blur"]
generator = torch.Generator().manual_seed(0)
nulls = {
    name: [
        masking.removed(selection.random(generator, layer_matched=matched))["blur"]
        for _ in range(40)
    ]
    for name, matched in (("random", False), ("layer-matched", True))
}

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.hist(nulls.values(), bins=20, label=list(nulls), color=["#56B4E9", "#0072B2"])
axis.axvline(observed, color="#D55E00", lw=2, label="the selection")
axis.set(
    title="Function removed by masking 1% of the kernels",
    xlabel="share of deblurring removed",
    ylabel="draws",
)
axis.legend(frameon=False)
plt.show()
for name, values in nulls.items():
    print(f"p = {p_value(observed, values):.3f} against {name} sets")
print(f"(the smallest p that 40 draws can give is {1 / 41:.3f})")

# %%
# A selection should also be *specific*: masking it should leave other functions intact.
# :doc:`which_filters_remove_blur` shows how to measure this.
#
# 4. Uncertainty: other samples give the same selection
# -----------------------------------------------------
# Scores are means over samples and have standard errors:
scores, errors = attribution.scores(), attribution.standard_errors()
best = scores.order()[:5]
for place in best.tolist():
    print(
        f"kernel {place:>5}: {scores.flat()[place]:.3f} +- {errors.flat()[place]:.3f}"
    )

# %%
# In the end the *set* matters. Attribute every sample alone, draw samples with
# replacement, and count how often each kernel is in the top 1%.
each = torch.stack(
    [
        attributor.attribute(base, target, squared_error, [sample], n_steps=8)
        .scores()
        .flat()
        for sample in samples
    ]
)
count = selection.count
draws = torch.randint(len(samples), (200, len(samples)), generator=generator)
inclusion = torch.zeros(scores.n_units)
for drawn in draws:
    inclusion[each[drawn].mean(0).topk(count).indices] += 1 / len(draws)
chosen = inclusion[selection.flat()]
settled = float((chosen > 0.95).float().mean())
print(f"{settled:.0%} of the selected kernels are selected in 95% of the draws")

figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.plot(inclusion.sort(descending=True).values[: 3 * count])
axis.axvline(count, color="0.4", ls="--", lw=1)
axis.set(
    title="How often each kernel is in the top 1%",
    xlabel="kernels, sorted (dashed: size of the set)",
    ylabel="share of draws",
    ylim=(0, 1.02),
)
plt.show()

# %%
# A steep step would mean that the set does not depend on the samples. The kernels on
# the slope around the dashed line are in the set only because of these eight samples.
# More samples make the step steeper. Report the set with its size, its null
# distributions, and this curve.
