"""
Ship one per cent
=================

The receiver has base. How much of target must you send? This page sends 1% of the
weights: those with the highest scores. It measures the file, checks that base plus
patch is exactly what was meant, and tests what is left of the skill on held-out data.

It needs ``pip install "./filterattr[files]" scikit-learn``.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, blend, load_state, swapped
from filterattr.analysis import weight_change
from filterattr.export import apply_patch, export_patch

# %%
# Two checkpoints
# ---------------
#
# Base reads handwritten digits. Target was fine-tuned to read them on their side, too.

digits = load_digits()
upright = torch.tensor(digits.images, dtype=torch.float32) / 16
lying, labels = upright.rot90(dims=(1, 2)), torch.tensor(digits.target)
model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(64, 256),
    nn.ReLU(),
    nn.Linear(256, 256),
    nn.ReLU(),
    nn.Linear(256, 256),
    nn.ReLU(),
    nn.Linear(256, 10),
)


def loss(model, sample):
    images, answers = sample
    return cross_entropy(model(images), answers)


def train(images, answers, steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        loss(model, (images[rows], answers[rows])).backward()
        optimizer.step()


torch.manual_seed(0)
folder = Path(mkdtemp())
train(upright[:900], labels[:900], steps=300, rate=1e-3)
save_file(model.state_dict(), folder / "base.safetensors")
both = torch.cat([upright[:900], lying[:900]])
train(both, labels[:900].repeat(2), steps=300, rate=1e-3)
save_file(model.state_dict(), folder / "target.safetensors")

# %%
# Choose
# ------
#
# A unit is a single weight. What a weight contributes to the *fall* of the loss is its
# signed score: a weight that was moved for nothing, or to the harm of the task, is not
# sent.

ends = folder / "base.safetensors", folder / "target.safetensors"
samples = list(zip(lying[900:1000].split(4), labels[900:1000].split(4), strict=True))
attributor = FilterAttributor(model, unit="weight")
attribution = attributor.attribute(*ends, loss, samples, n_steps=16)
scores = -attribution.scores("sum")
selection = scores.top(0.01)
print(selection.per_layer())

# %%
# Send
# ----
#
# The patch holds places and values, and a digest of the base that it belongs to.

base, target = map(load_state, ends)
export_patch(selection, base, target, folder / "patch.safetensors")
sent = (folder / "patch.safetensors").stat().st_size
everything = (folder / "target.safetensors").stat().st_size
print(f"{sent} of {everything} bytes: {sent / everything:.1%}")

# %%
# Receive
# -------
#
# Base plus patch is what ``blend`` makes of the two checkpoints, bit for bit.

patched = apply_patch(base, folder / "patch.safetensors")
expected = blend(base, target, selection)
print(all(torch.equal(patched[name], value) for name, value in expected.items()))

# %%
# What is left of the skill
# -------------------------
#
# Digits that nobody has seen, lying and upright, and the loss on the lying ones. Two
# other patches are as large: the weights that changed most, and random ones. Larger
# patches tell what more bytes would buy.

drawn = selection.random(torch.Generator().manual_seed(0))
change = weight_change(attributor, base, target).top(0.01)
networks = {
    "base": base,
    "patch of 1%": patched,
    "1% that changed most": blend(base, target, change),
    "random 1%": blend(base, target, drawn),
    "patch of 5%": blend(base, target, scores.top(0.05)),
    "patch of 20%": blend(base, target, scores.top(0.2)),
    "target": target,
}
read = {}
for name, state in networks.items():
    with swapped(model, state), torch.no_grad():
        right = [
            (model(images[1000:]).argmax(1) == labels[1000:]).float().mean()
            for images in (lying, upright)
        ]
        value = loss(model, (lying[1000:], labels[1000:]))
    read[name] = float(right[0])
    print(f"{name:>21}: {right[0]:.0%} lying, {right[1]:.0%} upright, loss {value:.2f}")

axis = plt.figure(figsize=(7, 3.2), layout="constrained").subplots()
bars = axis.barh(list(read), list(read.values()), color="#0072B2")
axis.bar_label(bars, [f"{share:.0%}" for share in read.values()], padding=4)
axis.set(xlim=(0, 1), xlabel="lying digits that are read")
axis.invert_yaxis()
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The 1% with the highest scores takes away about half of the loss, and other weights
# take nothing. But a reader wants the right answers, and of these it brings few: the
# skill is spread over the network. More of the same list is not better without end. The
# weights depend on each other, and 20% of them overshoot. So test a patch before you
# ship it.
#
# - :doc:`/howto/ship_a_patch` has the form that inference servers take.
# - ``filterattr export patch`` does the same on the command line.
