"""
Which layers deserve rank
=========================

LoRA gives every layer an adapter of one rank. A short fine-tuning of all weights shows
which layers learn the task, and this page turns it into a rank for each layer: from two
checkpoints to a ``LoraConfig`` of PEFT, and to a training with it. Then it asks whether
such ranks are better than equal ones. In our benchmark they are not.

It needs ``pip install "./filterattr[files,ranks]"``.
"""

import copy
import itertools
import warnings
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, load_state
from filterattr.analysis import lora_ranks
from filterattr.export import lora_arguments

with warnings.catch_warnings(action="ignore"):  # of PEFT about its neighbours
    from peft import LoraConfig, get_peft_model

# %%
# Two checkpoints
# ---------------
#
# A small network reads handwritten digits (base). A short fine-tuning of all weights
# shows it digits that lie on their side (target). Skip this part with your own files.

digits = load_digits()
upright = torch.tensor(digits.images, dtype=torch.float32) / 16
lying, labels = upright.rot90(dims=(1, 2)), torch.tensor(digits.target)


def network():
    sizes = [64, 128, 128, 128, 10]
    model = nn.Sequential(nn.Flatten())
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        model.add_module(f"layer{number}", nn.Linear(inputs, outputs))
        model.add_module(f"relu{number}", nn.ReLU())
    return model[:-1]


def loss(model, sample):
    images, answers = sample
    return cross_entropy(model(images), answers)


def train(model, images, steps, rate):
    torch.manual_seed(0)
    learning = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(learning, rate)
    for _ in range(steps):
        rows = torch.randint(900, (64,))
        optimizer.zero_grad()
        loss(model, (images[rows], labels[rows])).backward()
        optimizer.step()


torch.manual_seed(0)
folder, model = Path(mkdtemp()), network()
train(model, upright, steps=400, rate=2e-3)
save_file(model.state_dict(), folder / "base.safetensors")
train(model, lying, steps=50, rate=1e-3)
save_file(model.state_dict(), folder / "target.safetensors")

# %%
# From the attribution to ranks
# -----------------------------
#
# Ranks belong to weight matrices, so that only these are scored. A uniform rank of 2
# says how many parameters there are; they are divided by contribution.

ends = folder / "base.safetensors", folder / "target.safetensors"
samples = list(zip(lying[900:960].split(1), labels[900:960].split(1), strict=True))
attributor = FilterAttributor(model, select="*.weight")
attribution = attributor.attribute(*ends, loss, samples, n_steps=8)
budget = lora_ranks(attribution, uniform_rank=2)
for entry in budget.entries:
    print(f"{entry.name:>15}: {entry.share:4.0%}, rank {entry.amount}")
print(f"{budget.total} parameters, {budget.uniform_total} with equal ranks")

axis = plt.figure(figsize=(7, 3), layout="constrained").subplots()
names = [entry.name for entry in budget.entries]
bars = axis.barh(names, [entry.share for entry in budget.entries], color="#0072B2")
axis.bar_label(bars, [f"rank {entry.amount}" for entry in budget.entries], padding=4)
axis.set_xlabel("share of all contributions (equal ranks would be 2 each)")
axis.margins(x=0.15)
axis.invert_yaxis()
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# From ranks to PEFT
# ------------------
#
# The arguments have PEFT's own names of modules. Layers of rank 0 get no adapter.

model.load_state_dict(load_state(ends[0]))
arguments = lora_arguments(budget, model, scaling=2.0)
print(arguments)

layers = [name.removesuffix(".weight") for name in budget.amounts()]
configs = {
    "by contribution": LoraConfig(**arguments),
    "equal": LoraConfig(r=2, lora_alpha=4, target_modules=layers),
}
for name, config in configs.items():
    with warnings.catch_warnings(action="ignore"):
        adapted = get_peft_model(copy.deepcopy(model), config)
    train(adapted, lying, steps=200, rate=1e-2)
    with torch.no_grad():
        right = (adapted(lying[1000:]).argmax(1) == labels[1000:]).float().mean()
    print(f"{name:>15}: {right:.1%} of 797 other digits are read")

# %%
# Are they better?
# ----------------
#
# Here equal ranks read a little more, and one training says little.
# ``python -m filterattr.benchmarks.ranks`` compares on three tasks, with five seeds, at
# equal numbers of parameters. These are differences of the loss from equal ranks, with
# intervals of 95%; a negative number is a gain:
#
# ===================  =================  ===============  ================
# ranks                characters (nats)  digits (nats)    photographs (dB)
# ===================  =================  ===============  ================
# attribution          +0.005 ± 0.005     +0.016 ± 0.193   +0.007 ± 0.019
# attribution, signed  +0.003 ± 0.011     +0.022 ± 0.181   +0.013 ± 0.022
# weight change        +0.001 ± 0.004     +0.066 ± 0.146   -0.005 ± 0.008
# Fisher               +0.005 ± 0.008     +0.191 ± 0.083   -0.004 ± 0.023
# random               +0.007 ± 0.013     +0.041 ± 0.194   -0.003 ± 0.013
# EVA                  -0.001 ± 0.007     +0.045 ± 0.064   the same ranks
# EVA, with its start  +0.002 ± 0.003     +0.029 ± 0.131
# ===================  =================  ===============  ================
#
# No criterion is better than equal ranks by more than its interval, and the attribution
# is not either. So the export is a tool without a promise. Take it if you want ranks of
# your choice, and compare with equal ones. :doc:`/howto/train_adapters` says how the
# comparison was made.
