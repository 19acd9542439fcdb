"""
A GPT learns to write code: which heads, which neurons?
=======================================================

A small GPT learns English prose (base) and is fine-tuned on Python code (target), as
the LSTM of :doc:`plot_character_lm` is. Which attention heads and which neurons took up
the code? The model is written by hand, so PyTorch
does not know its heads: two groups define the units.
"""

import argparse
import ast
import email.message
import inspect
import json.decoder
import textwrap
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from filterattr import FilterAttributor, Group
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves, plot_path

# %%
# The network learns from the first four fifths of both texts. Units are searched in the
# next tenth and tested in the last.
prose = "\n".join(topics[name] for name in sorted(topics))
code = "\n".join(
    map(inspect.getsource, (argparse, ast, textwrap, json.decoder, email.message))
)
LENGTH, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2


def rows(text: str, start: float, end: float) -> Tensor:
    """Cut a part of a text to rows of characters; `?` stands for all but ASCII."""
    characters = torch.tensor(list(text.encode("ascii", "replace")))
    part = characters[int(start * len(text)) : int(end * len(text))]
    return part[: len(part) // LENGTH * LENGTH].reshape(-1, LENGTH)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.output(
            scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .flatten(2)
        )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attention = Attention()
        self.expand, self.contract = (
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.contract(gelu(self.expand(self.norms[1](x))))


class CharacterGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = (
            nn.Embedding(128, WIDTH),
            nn.Embedding(LENGTH, WIDTH),
        )
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.output = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.places.weight[: characters.shape[1]]
        return self.output(self.norm(self.blocks(x)))


def loss(model: nn.Module, characters: Tensor) -> Tensor:
    """Nats per character."""
    return cross_entropy(
        model(characters[:, :-1]).flatten(0, 1), characters[:, 1:].flatten()
    )


torch.manual_seed(0)
model = CharacterGPT()


def train(characters: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, characters[torch.randint(len(characters), (32,))]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(rows(prose, 0, 0.8), steps=500, rate=3e-3)
target = train(
    torch.cat([rows(code, 0, 0.8), rows(prose, 0, 0.4)]), steps=300, rate=1e-3
)

# %%
# A head has rows of the query, key and value projections, which are stacked in one
# matrix, and columns of the output projection. A neuron has input weights, a bias and
# output weights.
head = Group(
    {"qkv.*": "(qkv head d) ... -> head", "output.weight": "o (head d) -> head"},
    qkv=3,
    head=HEADS,
)
neuron = Group(
    {"expand.*": "neuron ... -> neuron", "contract.weight": "o neuron -> neuron"},
    label="mlp",
)
search = rows(code, 0.8, 0.9).split(8)
attributor = FilterAttributor(
    model, unit={"blocks.*.attention": head, "blocks.?": neuron}
)
attribution = attributor.attribute(base, target, loss, search, n_steps=5)
print(attribution)

# %%
# A head has thirty times the weights of a neuron, so each kind is ranked separately.
# There are few heads: set each back to base alone, and compare the effect on held-out
# texts with the attribution. Both are shares of what fine-tuning gained on code.
test = {
    name: rows(text, 0.9, 1)[:240].split(24)
    for name, text in {"code": code, "prose": prose}.items()
}
masking = Masking(model, base, target, loss, {"code": test["code"]})
heads = attribution.scores("sum").only("*.attention") * (
    1 / (attribution.loss_target - attribution.loss_base)
)
table = heads.to_frame().rename(columns={"score": "attributed"})
places = zip(table["parameter"], table["unit"], strict=True)
table["removed"] = [
    masking.removed(heads.select({name: [place]}))["code"] for name, place in places
]
print(table.round(3).to_string())
print(
    f"rank correlation {table[['attributed', 'removed']].rank().corr().iloc[0, 1]:.2f}"
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"Python code": attribution}, left)
right.scatter(100 * table["attributed"], 100 * table["removed"], color=COLOURS[0])
right.set(xlabel="attributed to a head (%)", ylabel="removed without this head (%)")

# %%
# There are many neurons: set the first ones back to base, and compare with random sets
# of the same size, and of the same size in each block.
FRACTIONS = (0.05, 0.15, 0.4)
neurons = attribution.scores().only("*.mlp")
curve = mask_curve(masking, neurons, ranking="neurons found", fractions=(0, *FRACTIONS))
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        neurons,
        generator,
        ranking="neurons found",
        null=null,
        fractions=FRACTIONS,
        draws=29,
    )
    for null in ("random", "layer-matched")
]
for null in nulls:
    print(f"{null.null:>13}: p =", *(f"{p:.3f}" for p in null.p_values(curve, "code")))
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_curves({"neurons found": curve}, "code", axis, nulls)

# %%
# The losses on both texts, in nats per character. Fine-tuning used prose, too, so
# target is better at both:
masking = Masking(model, base, target, loss, test)
found = neurons.top(0.4)
networks = {
    "base": base,
    "target": target,
    "without the first 2 heads": masking.masked(heads.top(2)),
    f"without {found.count} neurons found": masking.masked(found),
    f"without {found.count} random neurons": masking.masked(
        found.random(generator, layer_matched=True)
    ),
}
losses = {name: masking.losses_of(state) for name, state in networks.items()}
for name, values in losses.items():
    line = ", ".join(f"{text} {value:.3f}" for text, value in values.items())
    print(f"{name:>28}:", line)

# %%
# The same in a picture. Fewer nats per character are better.
figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
for place, text in enumerate(test):
    bars = axis.barh(
        [row + 0.4 * place for row in range(len(losses))],
        [values[text] for values in losses.values()],
        0.38,
        label=text,
        color=COLOURS[place],
    )
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
axis.set_yticks([row + 0.2 for row in range(len(losses))], list(losses))
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set(xlabel="nats per character", title="The loss on code and on prose")
axis.legend(frameon=False, loc="lower right")
plt.show()

# sphinx_gallery_thumbnail_number = -1
