"""
Two checkpoints of a language model
===================================

You have a language model before and after fine-tuning, as two files. This page finds
the heads, the neurons and the layers that learned the task. It tells you the cost
before you pay it. It needs no memory for single weights, so the same lines work for
large models.

The model here is small enough for a laptop. It is a GPT with two blocks that read
English prose and was then fine-tuned on Python code.

It needs ``pip install "./filterattr[plot]"`` and nothing else.
"""

import argparse
import textwrap
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from filterattr import FilterAttributor, Group, blend, load_state, swapped

WIDTH, HEADS = 64, 4


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.characters, self.places = nn.Embedding(128, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, tokens):
        x = self.characters(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


# %%
# The data and the two trainings. Skip this part with a model of your own.


def rows(text, start, end):
    """Cut a part of a text into rows of 64 characters."""
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    part = tokens[int(start * len(text)) : int(end * len(text))]
    return part[: len(part) // 64 * 64].reshape(-1, 64)


def loss(model, tokens):
    """Nats per character."""
    said = model(tokens[:, :-1])
    return cross_entropy(said.flatten(0, 1), tokens[:, 1:].flatten())


def train(model, data, steps):
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, data[torch.randint(len(data), (32,))]).backward()
        optimizer.step()


torch.manual_seed(0)
prose = "\n".join(topics[name] for name in sorted(topics))
code = "\n".join(Path(module.__file__).read_text() for module in (argparse, textwrap))
folder = Path(mkdtemp())
model = GPT()
train(model, rows(prose, 0, 0.8), steps=300)
save_file(model.state_dict(), folder / "base.safetensors")
train(model, rows(code, 0, 0.8), steps=150)
save_file(model.state_dict(), folder / "target.safetensors")

# %%
# What is scored
# --------------
#
# A head has rows of the query, key and value projections and columns of the output
# projection. A neuron has input weights, a bias and output weights. For models of
# ``transformers``, :func:`filterattr.attention_heads` finds the heads.

head = Group(
    {"qkv.*": "(qkv head d) ... -> head", "output.weight": "o (head d) -> head"},
    qkv=3,
    head=HEADS,
)
neuron = Group(
    {"up.*": "neuron ... -> neuron", "down.weight": "o neuron -> neuron"}, label="mlp"
)
units = {"blocks.*.attention": head, "blocks.?": neuron}
attributor = FilterAttributor(model, unit=units)

# %%
# What it costs
# -------------
#
# ``estimate`` takes the arguments of ``attribute``. It times a few passes of the first
# sample and counts the rest. ``keep="signed"`` leaves out the scores that need a number
# for every weight.

batches = rows(code, 0.8, 0.9).split(8)
ends = folder / "base.safetensors", folder / "target.safetensors"
print(attributor.estimate(*ends, loss, batches, n_steps=8, keep="signed"))

# %%
# The call
# --------
#
# The files are mapped into memory and read where they are needed. A folder with several
# ``*.safetensors`` and an index works as well. Each sample is a batch of eight rows,
# and its loss is their mean.

attribution = attributor.attribute(*ends, loss, batches, n_steps=8, keep="signed")
print(attribution)

# %%
# Which heads, which neurons, which layers
# ----------------------------------------
#
# Signed scores add up: the score of a layer is the sum of its units. A unit that
# carries the task makes the loss *fall*, so the most negative scores matter most.

scores = attribution.scores("sum")
print((-scores).only("*.attention").to_frame().head(4).to_string(index=False))
print((-scores).only("*.mlp").to_frame().head(4).to_string(index=False))

figure, axis = plt.subplots(figsize=(7, 2.5), layout="constrained")
layers = attribution.per_layer()
totals = {}
for row in layers:
    totals[row.name] = totals.get(row.name, 0.0) - row.sum
axis.barh(list(totals)[::-1], list(totals.values())[::-1])
axis.set_xlabel("share of the gain (nats per character)")

# %%
# Check it
# --------
#
# Set the 10% of the neurons with the highest scores back to base, then as many random
# ones. Compare the loss on code that was not searched.

neurons = (-scores).only("*.mlp")
found = neurons.top(0.1)
generator = torch.Generator().manual_seed(0)
test = rows(code, 0.9, 1)
base, target = map(load_state, ends)
networks = {
    "base": base,
    "target": target,
    "without the neurons found": blend(target, base, found),
    "without random neurons": blend(target, base, found.random(generator)),
}
for name, state in networks.items():
    with swapped(model, state), torch.no_grad():
        print(f"{name:>26}: {loss(model, test).item():.3f} nats per character")

# %%
# Larger models
# -------------
#
# - Build the model in its own type on your device, and pass the two folders as
#   ``base=`` and ``target=``. With ``keep="signed"`` the call holds the weights of one
#   node beside the model, and the change of one parameter.
# - ``checkpoint="job.safetensors"`` resumes a job that was stopped.
#   ``distributed=True`` divides the samples among the ranks of ``torchrun``.
# - ``attribution.completeness_error`` says whether eight nodes were enough.
