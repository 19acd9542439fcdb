"""
A language model learns to write code: which cells, which gates?
================================================================

A character model, an LSTM, learns English prose (base) and is then fine-tuned on Python
code (target). Which of its cells took up the code, and in which of their gates? Both
texts come with Python itself: the language reference behind ``help("yield")``, and
sources of the standard library. :doc:`plot_character_gpt` asks the same of a
transformer.
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
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, Group
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves, plot_path

# %%
# The network learns from the first four fifths of both texts. Cells are searched in the
# next tenth and tested in the last.
prose = "\n".join(topics[name] for name in sorted(topics))
code = "\n".join(
    map(inspect.getsource, (argparse, ast, textwrap, json.decoder, email.message))
)
LENGTH = 64


def rows(text: str, start: float, end: float) -> Tensor:
    """Cut a part of a text to rows of characters; `?` stands for all but ASCII."""
    characters = torch.tensor(list(text.encode("ascii", "replace")))
    part = characters[int(start * len(text)) : int(end * len(text))]
    return part[: len(part) // LENGTH * LENGTH].reshape(-1, LENGTH)


class CharacterModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.lstm = nn.LSTM(32, 96, batch_first=True)
        self.output = nn.Linear(96, 128)

    def forward(self, characters: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(characters))[0])


def loss(model: nn.Module, characters: Tensor) -> Tensor:
    """Nats per character."""
    return cross_entropy(
        model(characters[:, :-1]).flatten(0, 1), characters[:, 1:].flatten()
    )


torch.manual_seed(0)
model = CharacterModel()


def train(characters: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, characters[torch.randint(len(characters), (32,))]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(rows(prose, 0, 0.8), steps=400, rate=8e-3)
target = train(
    torch.cat([rows(code, 0, 0.8), rows(prose, 0, 0.4)]), steps=300, rate=3e-3
)

# %%
# PyTorch keeps the four gates of all cells below each other in one matrix. A group
# takes them apart: a unit is a cell with all its gates, in the weights of the input, of
# the state, and in both biases. The group is put on the module
# ``lstm``, so that the embedding and the output layer move with the rest but are not
# scored.
cells = Group({"*": "(gate cell) ... -> cell"}, gate=4)
search = rows(code, 0.8, 0.9).split(8)
attribution = FilterAttributor(model, unit={"lstm": cells}).attribute(
    base, target, loss, search, n_steps=8
)
scores = attribution.scores()
print(attribution)

# %%
# The same with one unit for every gate of every cell: which gates changed what?
gates = Group({"*": "(gate cell) ... -> gate cell"}, gate=4)
by_gate = FilterAttributor(model, unit={"lstm": gates}).attribute(
    base, target, loss, search, n_steps=8
)
shares = by_gate.scores()["lstm"].sum(1).numpy()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"Python code": attribution}, left)
right.bar(
    ["input", "forget", "candidate", "output"],
    100 * shares / shares.sum(),
    color=COLOURS[0],
)
right.set(xlabel="gate", ylabel="share of all scores (%)")

# %%
# Test the ranking on held-out texts: set the first cells back to base. There is one
# layer only, so cells drawn at random are layer-matched as well.
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
test = {
    name: rows(text, 0.9, 1)[:240].split(8)
    for name, text in {"code": code, "prose": prose}.items()
}
masking = Masking(model, base, target, loss, {"code": test["code"]})
curve = mask_curve(masking, scores, ranking="cells found", fractions=(0, *FRACTIONS))
generator = torch.Generator().manual_seed(0)
null = null_curve(
    masking, scores, generator, ranking="cells found", fractions=FRACTIONS, draws=49
)
print("p =", *(f"{p:.2f}" for p in null.p_values(curve, "code")))
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_curves({"cells found": curve}, "code", axis, [null])

# %%
# The losses on both texts, in nats per character:
masking = Masking(model, base, target, loss, test)
found = scores.top(0.2)
networks = {
    "base": base,
    "target": target,
    f"without {found.count} cells found": masking.masked(found),
    f"without {found.count} random cells": masking.masked(found.random(generator)),
}
for name, state in networks.items():
    losses = masking.losses_of(state)
    line = ", ".join(f"{text} {value:.3f}" for text, value in losses.items())
    print(f"{name:>24}:", line)

# %%
# The scores of all cells, by gate. The cells that were masked are on the left.
order = scores.flat().argsort(descending=True)
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
picture = axis.imshow(
    by_gate.scores()["lstm"][:, order].numpy(), cmap="Blues", vmin=0, aspect="auto"
)
axis.axvline(found.count - 0.5, color=COLOURS[1], lw=2)
axis.set(
    title=f"Left of the line: the {found.count} cells that carry code",
    xlabel="cell, from the highest score to the lowest",
    yticks=range(4),
    yticklabels=["input", "forget", "candidate", "output"],
)
figure.colorbar(picture, label="score")
plt.show()

# sphinx_gallery_thumbnail_number = -1
