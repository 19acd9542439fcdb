"""
Reading the numbers
===================

An attribution always returns scores. Whether they mean something is another question,
and it has four parts: was the integral resolved, does the path make sense, does the
selection beat chance, and would other samples have given the same? This page answers
them for one attribution, in that order.

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
# What speaks against believing it is listed there, and in ``attribution.concerns``: here
# nothing does. What these concerns are about comes now, one after the other.
print(attribution.concerns)

# %%
# 1. Was the integral resolved? Completeness
# ------------------------------------------
# The attributions of all parameters must sum to the change of the loss: that is a
# theorem, so what is missing is the error of the quadrature. It shrinks with more
# nodes. Above 1% the library warns.
for count in (1, 2, 4, 8, 16):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we know, that is the point
        coarse = attributor.attribute(
            base, target, squared_error, samples[:2], n_steps=count
        )
    print(f"{count:>2} nodes: completeness error {coarse.completeness_error:.2%}")

# %%
# **What it does not say:** that the right kernels are at the top. Give every kernel
# an equal share of the loss change, and completeness is perfect. A tiny error is
# necessary, not sufficient; do not compare methods by it.
#
# The remainder is the part of weights that are not scored, such as biases. If it is
# large, the story is not in the kernels.
# Signs would cancel, so absolute attributions are compared.
share = path_health(attribution).remainder_share
print(f"not scored (biases): {share:.1%} of all absolute attributions")

# %%
# 2. Does the path make sense? Barrier and cosine
# -----------------------------------------------
# Let us build a path that makes no sense: from a network that is target with its
# channels *permuted*. It computes exactly the same function, so the loss at both ends
# is equal, yet the straight line between the two leads through networks that are worse
# than base, which never learned to deblur.
permuted = {name: value.clone() for name, value in target.state_dict().items()}
order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
for block in range(8):
    permuted[f"body.{block}.conv1.weight"] = permuted[f"body.{block}.conv1.weight"][order]
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
# Completeness holds on the senseless path, too. Only the barrier gives it away. The
# cosine between all weights is a hint that costs nothing: fine-tuned pairs above .9
# were specific in our experiments, pairs at .6 were damaged by masking.
#
# 3. Does it beat chance? Nulls
# -----------------------------
# Mask the selection on photographs that were not searched, and compare with sets
# drawn at random. There are two kinds of chance. *Random* sets may lie anywhere.
# *Layer-matched* sets have as many kernels in every layer as ours: who beats random
# sets but not these has found the right layers and nothing more.
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
# A selection also needs to be *specific*: what does masking it do to the functions
# that it is not about? That is shown in :doc:`which_filters_remove_blur`.
#
# 4. Would other samples say the same? Uncertainty
# ------------------------------------------------
# Scores are means over samples, and come with standard errors:
scores, errors = attribution.scores(), attribution.standard_errors()
best = scores.order()[:5]
for place in best.tolist():
    print(f"kernel {place:>5}: {scores.flat()[place]:.3f} +- {errors.flat()[place]:.3f}")

# %%
# What matters in the end is the *set*. Attribute every sample by itself, draw samples
# with replacement, and see how often a kernel makes it into the top 1%.
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
# A steep step would mean that the set is settled; the slope around the dashed line is
# made of kernels whose membership is a matter of these eight samples. More samples
# make it steeper. Report the set with its size, its nulls, and this.
