"""
Heads and neurons that learned a new class
==========================================

A small transformer distinguishes English prose from Python code (base). It is
fine-tuned to know C++ as a third class (target). Which attention heads and which
neurons of its MLPs carry the new class? It is a ``torch.nn.TransformerEncoder`` that
reads characters and is trained on the spot, not a pretrained language model; the call
is the same for one.
"""

import argparse
import ast
import email.message
import inspect
import json.decoder
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, Group, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves, plot_path

# %%
# The texts come with Python (its language reference and standard library) and with
# PyTorch (the headers of its C++ part). The first two thirds of each are learned; units
# are searched in the next part and judged in the last.
headers = sorted(
    (Path(torch.__file__).parent / "include" / "ATen" / "core").glob("*.h")
)
texts = {
    "prose": "\n".join(topics[name] for name in sorted(topics)),
    "Python": "\n".join(
        map(inspect.getsource, (argparse, ast, json.decoder, email.message))
    ),
    "C++": "\n".join(path.read_text() for path in headers)[:200_000],
}
LENGTH = 64


def rows(name: str, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Cut a part of a text to rows of characters, with the index of the text."""
    characters = torch.tensor(list(texts[name].encode("ascii", "replace")))
    part = characters[int(start * len(characters)) : int(end * len(characters))]
    cut = part[: len(part) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return cut, torch.full((len(cut),), list(texts).index(name))


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, 64)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, 64))
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classes = nn.Linear(64, 3)

    def forward(self, characters: Tensor) -> Tensor:
        return self.classes(
            self.encoder(self.characters(characters) + self.places).mean(1)
        )


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    characters, labels = sample
    return cross_entropy(model(characters), labels)


torch.manual_seed(0)
model = TextClassifier()


def train(names: list[str], steps: int, rate: float) -> dict[str, Tensor]:
    learned = [rows(name, 0, 0.66) for name in names]
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        picked = [
            (x[chosen], y[chosen])
            for x, y in learned
            for chosen in [torch.randint(len(x), (16,))]
        ]
        optimizer.zero_grad()
        loss(model, tuple(map(torch.cat, zip(*picked, strict=True)))).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(["prose", "Python"], steps=200, rate=2e-3)
target = train(["prose", "Python", "C++"], steps=200, rate=5e-4)
test = {
    name: list(zip(*(part[:160].split(32) for part in rows(name, 0.8, 1)), strict=True))
    for name in texts
}


accuracy: dict[str, list[float]] = {}


def show_accuracy(network: str, state: dict[str, Tensor]) -> None:
    with swapped(model, state), torch.no_grad():
        right = {
            name: torch.cat(
                [model(characters).argmax(1) == label for characters, label in samples]
            )
            .float()
            .mean()
            for name, samples in test.items()
        }
    accuracy[network] = [float(rate) for rate in right.values()]
    line = ", ".join(f"{rate:.0%} of {name}" for name, rate in right.items())
    print(f"{network:>24}: {line} recognised")


show_accuracy("base", base)
show_accuracy("target", target)

# %%
# Units are groups of weights. A head is its part of the query, key and value
# projections (one matrix in PyTorch) and of the output projection; a neuron is its
# weights in, its bias, and its weights out. One call scores both.
head = Group(
    {"in_proj_*": "(qkv head d) ... -> head", "out_proj.weight": "o (head d) -> head"},
    qkv=3,
    head=4,
)
neuron = Group(
    {"linear1.*": "neuron ... -> neuron", "linear2.weight": "o neuron -> neuron"},
    label="mlp",
)
search = list(
    zip(*(part[:40].split(1) for part in rows("C++", 0.66, 0.8)), strict=True)
)
attributor = FilterAttributor(
    model, unit={"*.self_attn": head, "encoder.layers.?": neuron}
)
attribution = attributor.attribute(base, target, loss, search, n_steps=8)
print(attribution)

# %%
# Heads and neurons are so different in size that each kind is ranked apart, with
# ``only``. There are few heads, so each can be put back to base by itself. Both numbers
# are parts of the same change of the loss: what the attribution says a head brought
# along the path, and what is lost without it. The rank correlation says how far one
# tells the other; heads that stand in for each other pull them apart: a score alone is
# no proof.
masking = Masking(model, base, target, loss, {"C++": test["C++"]})
signed = attribution.scores("sum").only("*.self_attn") * (
    1 / (attribution.loss_target - attribution.loss_base)
)
table = signed.to_frame().rename(columns={"score": "attributed"})
places = zip(table["parameter"], table["unit"], strict=True)
table["removed"] = [
    masking.removed(signed.select({name: [place]}))["C++"] for name, place in places
]
print(table.round(3).to_string())
print(
    f"rank correlation {table[['attributed', 'removed']].rank().corr().iloc[0, 1]:.2f}"
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"C++": attribution}, left)
right.scatter(100 * table["attributed"], 100 * table["removed"], color=COLOURS[0])
right.set(xlabel="attributed to a head (%)", ylabel="removed without this head (%)")

# %%
# There are many neurons: set the first ones back to base, and compare with random sets
# of the same size, and of the same size in each layer. If only the second p is large,
# the method found the right layers, but not the neurons in them.
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
scores = attribution.scores().only("*.mlp")
curve = mask_curve(masking, scores, ranking="neurons found", fractions=(0, *FRACTIONS))
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        scores,
        generator,
        ranking="neurons found",
        null=null,
        fractions=FRACTIONS,
        draws=39,
    )
    for null in ("random", "layer-matched")
]
for null in nulls:
    print(f"{null.null:>13}: p =", *(f"{p:.3f}" for p in null.p_values(curve, "C++")))
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_curves({"neurons found": curve}, "C++", axis, nulls)

# %%
# And in accuracy, for all three classes:
show_accuracy("without 2 heads found", masking.masked(signed.top(2)))
show_accuracy("without 40% of neurons", masking.masked(scores.top(0.4)))
show_accuracy(
    "without 40% at random", masking.masked(scores.top(0.4).random(generator))
)

# %%
# The same in a picture: each network, and the share of each class that it recognises.
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
axis.imshow(list(accuracy.values()), cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
for row, rates in enumerate(accuracy.values()):
    for column, rate in enumerate(rates):
        axis.text(column, row, f"{rate:.0%}", ha="center", va="center")
axis.set_xticks(range(len(test)), list(test))
axis.set_yticks(range(len(accuracy)), list(accuracy))
axis.set_title("Recognised rows of held-out text")
plt.show()

# sphinx_gallery_thumbnail_number = -1
