"""
Give back what fine-tuning broke
================================

Fine-tuning gains a skill and often costs an old ability. This page takes a classifier
that forgot upright digits when it learned to read digits on their side. It finds the
weights to put back towards base, so that most of the old ability returns for at most 5%
of the skill. Nothing is trained.

It needs ``pip install "./filterattr[plot]" scikit-learn``.
"""

import warnings

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from filterattr import FilterAttributor, blend, swapped
from filterattr.analysis import Masking, repair

# %%
# The pair. Base reads upright digits. Target is base, fine-tuned on lying digits alone.
# With two checkpoints of your own, skip this part.
digits = load_digits()
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
labels = torch.tensor(digits.target)[order]
upright = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
images = {"upright": upright, "lying": upright.rot90(dims=(2, 3))}

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)


def train(name, steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        batch = torch.randint(1000, (64,))
        optimizer.zero_grad()
        cross_entropy(model(images[name][batch]), labels[batch]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train("upright", steps=500, rate=4e-3)
target = train("lying", steps=300, rate=1e-3)


def accuracy(state, name):
    with swapped(model, state), torch.no_grad():
        said = model(images[name][1300:]).argmax(1)
    return (said == labels[1300:]).float().mean().item()


def show(label, state):
    read = [f"{accuracy(state, name):.0%} of the {name} digits" for name in images]
    print(f"{label}: reads {read[0]} and {read[1]}")


show("base", base)
show("target", target)

# %%
# What is measured
# ----------------
#
# A repair measures networks on samples of the skill and of each lost ability: here 300
# digits that neither training saw. The others are for the test. ``Masking`` takes a
# loss, which says how much 5% of the skill is. Base is so sure of its wrong answers
# that 5% of the cross-entropy would be a third of the correct answers. So the loss is
# the probability of a wrong answer, one number per digit.


def errors(model, sample):
    return 1 - model(sample[0]).softmax(1).gather(1, sample[1][:, None])[:, 0]


def samples(first, last):
    return {
        name: [(each[first:last], labels[first:last])] for name, each in images.items()
    }


search = Masking(model, base, target, errors, samples(1000, 1300))
test = Masking(model, base, target, errors, samples(1300, 1797))

# %%
# The simplest repair mixes all weights of target and base. It shows how much there is
# to gain, and how near target the answer lies.


def interpolated(way):
    return {name: torch.lerp(target[name], base[name], way) for name in target}


def shares(masking, state):
    """Share of the skill that is lost, and of the ability that is recovered."""
    found = masking.losses_of(state)
    return [masking.share_removed(name, found[name]) for name in ("lying", "upright")]


ways = [place / 40 for place in range(25)]
line = {way: shares(search, interpolated(way)) for way in ways}
reach = max(way for way in ways if line[way][0] <= 0.05)
print(f"interpolation: {reach:.0%} of the way, {line[reach][1]:.0%} recovered")

# %%
# Attribute the skill and the ability
# -----------------------------------
#
# Two things make the scores better than those of the loss from base to target:
#
# - The *outputs* say more than the labels. The skill is what target says to its inputs,
#   and the ability is what base says to the others. The loss is the distance to that.
#   It needs no labels, and training digits do: the 300 others stay fresh for measuring.
# - The answer lies *near target*, so the path begins there: at twice the way that
#   interpolation can go.
#
# The library points out that target is worse than base for the ability. That is what is
# to be repaired.


def apart(model, sample):
    """Divergence of what the network says from what it should say."""
    said = model(sample[0]).log_softmax(1)
    return kl_div(said, sample[1], reduction="batchmean", log_target=True)


near = interpolated(2 * reach)
attributor = FilterAttributor(model, unit="kernel")
attributions = {}
for name, teacher in {"lying": target, "upright": base}.items():
    batches = images[name][:300].split(25)
    with swapped(model, teacher), torch.no_grad():
        answers = [(batch, model(batch).log_softmax(1)) for batch in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attributions[name] = attributor.attribute(
            near, target, apart, answers, n_steps=4
        )

# %%
# Repair
# ------
#
# :func:`~filterattr.analysis.repairing.repair` tries several prices of the skill. Each
# price gives a set of kernels: those that are worth more to the ability than they cost
# of the skill. A few forward passes find how far the set can go back within the limit.
repaired = repair(search, attributions, keep="lying", at_most=0.05)
print(repaired)
print(f"{1 - repaired.strength:.0%} of the way back, at a price of {repaired.price:g}")
repaired.history.to_frame().round(3)

# %%
# Every network that was measured, beside the line of interpolation:
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.plot(
    *zip(*line.values(), strict=True), color="0.5", label="all weights, interpolated"
)
for step in repaired.history.steps:
    axis.plot(step.lost["lying"], step.recovered["upright"], "o", color="#0072B2", ms=4)
axis.plot(
    repaired.lost["lying"],
    repaired.recovered["upright"],
    "*",
    color="#D55E00",
    ms=14,
    label="the repair",
)
axis.axvline(0.05, color="0.5", ls="--", lw=1)
axis.set(
    title="What a network costs and gives back",
    xlabel="share of the skill lost (dashed: the limit)",
    ylabel="share of the ability recovered",
    xlim=(-0.01, 0.3),
    ylim=(-0.1, 1.1),
)
axis.legend(frameon=False, loc="lower right")
plt.show()

# %%
# Test it
# -------
#
# The repaired checkpoint is a state dict. The limit was kept on the samples of the
# search; on others the loss of the skill may be a little more, or less.
fixed = blend(target, base, repaired.selection, repaired.strength)
for label, state in {"interpolation": interpolated(reach), "repair": fixed}.items():
    lost, recovered = shares(test, state)
    print(f"{label}: {lost:.1%} of the skill lost, {recovered:.0%} recovered")
    show(label, state)

# %%
# Then
# ----
#
# - Several skills: ``keep=["first", "second"]``; each loses at most ``at_most``. Every
#   other attribution is an ability.
# - ``partly=False`` puts kernels all the way back, or not at all. Then fewer go back.
# - Many units and few samples: what is recovered on the samples of the search is not
#   recovered on others. Compare ``"kernel"`` with ``"filter"`` on samples of neither.
# - :doc:`/explanation/repairs` compares repairs with simpler ways on other networks.
