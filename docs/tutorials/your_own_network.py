"""
Your own network
================

`filterattr` works on any network, not only on images. This page starts from two
checkpoints on the disk, reads data from a loader, and scores layers that are not
convolutions. It ends with a test of the 1% of the weights with the highest scores.

The example is a small transformer. It classified sequences by their *sum*, and was then
fine-tuned to classify them by their *maximum* as well. The first token says which.

It needs ``pip install "./filterattr[plot]"`` and nothing else.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from filterattr import FilterAttributor, Unit, blend, load_state, swapped


class Classifier(nn.Module):
    """One block of attention over twelve digits; the first place gives the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 32)
        self.place = nn.Parameter(torch.randn(13, 32) * 0.1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.feed = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        )
        self.answer = nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values = self.embedding(tokens) + self.place
        values = values + self.attention(values, values, values, need_weights=False)[0]
        return self.answer((values + self.feed(values))[:, 0])


def sequences(count: int, *, task: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token 10 asks for a large sum, token 11 whether the largest digit comes twice."""
    digits = torch.randint(0, 10, (count, 12))
    largest = (digits == digits.amax(1, keepdim=True)).sum(1) > 1
    labels = torch.where(torch.tensor(task == 0), digits.sum(1) > 54, largest)
    return torch.cat([torch.full((count, 1), 10 + task), digits], 1), labels.long()


def train(model: nn.Module, tasks: tuple[int, ...], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(
            nn.functional.cross_entropy(model(tokens), labels)
            for tokens, labels in map(batch, tasks)
        ).backward()
        optimizer.step()


def batch(task: int) -> tuple[torch.Tensor, torch.Tensor]:
    return sequences(128, task=task)


# %%
# The checkpoints
# ---------------
# You have two checkpoints already. Here we make them first.
torch.manual_seed(0)
folder = Path(mkdtemp())
model = Classifier()
train(model, (0,), steps=300, rate=3e-3)
torch.save(model.state_dict(), folder / "before.pt")
train(model, (0, 1), steps=500, rate=1e-3)
torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "after.pt")

# %%
# Start here. Base and target can be modules or state dicts. `load_state` reads state
# dicts from files and runs no code of the file. It unwraps entries such as
# ``state_dict`` and ``params_ema`` and the prefixes of data-parallel and compiled
# models; ``key=`` names other entries (:doc:`/howto/load_checkpoints`).
#
# The model provides the architecture only; its own weights do not matter. Call
# ``eval()``, so that dropout is off as it is when you use the model.
base = load_state(folder / "before.pt")
target = load_state(folder / "after.pt")
model = Classifier().eval()

# %%
# Two networks in memory work as well. If you train a model further *in place*, copy its
# weights first: ``base = copy.deepcopy(model.state_dict())``.

# %%
# The loss and the data
# ---------------------
# The loss takes the model and one sample. A sample is whatever your data yields. Each
# sample is integrated alone, and the scores are averaged. Memory does not grow with the
# number of samples.


def loss(model: nn.Module, sample: list[torch.Tensor]) -> torch.Tensor:
    tokens, labels = sample
    return nn.functional.cross_entropy(model(tokens), labels)


torch.manual_seed(1)
search = DataLoader(TensorDataset(*sequences(256, task=1)), batch_size=32)
test = {
    name: list(DataLoader(TensorDataset(*sequences(512, task=place)), batch_size=512))
    for place, name in ((0, "sum"), (1, "largest"))
}

attribution = FilterAttributor(model).attribute(base, target, loss, search, n_steps=32)
print(attribution)

# %%
# If your network has batch normalization, add ``buffers="target"``: running statistics
# are not weights, so you choose whose to use.
#
# Look at two numbers before you look at a score:
#
# **completeness**, printed as a relative error
#     The attributions of all parameters must sum to the change of the loss. Below 1%
#     the integral was resolved. Above 1% there is a warning: raise ``n_steps``.
# **barrier**
#     How far the loss rises above *both* checkpoints on the line between them. Near 0,
#     as here, the networks on the line work. If it is high, the scores describe
#     networks that do nothing well, and a larger ``n_steps`` does not help.
#
# The *cosine* between the weights says how far the fine-tuning went. Below 0.9, masking
# tends to damage networks. `path_health <filterattr.analysis.health.path_health>`
# reports all of this in words.
#
# Now look at the scores. These layers carry the new function:
for row in attribution.per_layer():
    print(f"{row.name:<26} {row.n_units:>5} units, {row.share:6.1%} of all scores")

# %%
# Score attention heads
# ---------------------
# In a `torch.nn.Linear`, a "kernel" is a single weight. Heads are more useful. ``unit``
# takes an einops pattern, here one for each kind of parameter, and ``select`` chooses
# the parameters that are scored. All parameters move along the path, whatever is
# selected; ``attribution.remainder`` holds the part that is not scored.
attributor = FilterAttributor(
    model,
    select=["attention.*proj*weight", "feed.*.weight"],
    unit={
        "attention.in_proj_weight": Unit(
            "(qkv heads d) i -> qkv heads", {"qkv": 3, "heads": 4}
        ),
        "attention.out_proj.weight": Unit("o (heads d) -> heads", {"heads": 4}),
        "*": "filter",
    },
)
by_head = attributor.attribute(base, target, loss, search, n_steps=32).scores()
heads = by_head["attention.in_proj_weight"]
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
picture = axis.imshow(heads, cmap="Blues", vmin=0)
axis.set(
    title="Scores of the attention heads",
    xlabel="head",
    xticks=range(4),
    yticks=range(3),
    yticklabels=["query", "key", "value"],
)
figure.colorbar(picture, label="part of the loss")
plt.show()

# %%
# Mask the top 1%
# ----------------
# Test the scores on data that was not searched. Set 1% of the single weights back to
# base:
selection = attribution.scores().top(0.01)


@torch.no_grad()
def losses(state) -> dict[str, float]:
    with swapped(model, state):
        return {
            name: float(sum(loss(model, sample) for sample in samples) / len(samples))
            for name, samples in test.items()
        }


generator = torch.Generator().manual_seed(0)
states = {
    "base": base,
    "target": target,
    "without the top 1%": blend(target, base, selection),
    "without a random 1%": blend(target, base, selection.random(generator)),
}
for name, state in states.items():
    found = losses(state)
    print(
        f"{name:<22} loss on sums {found['sum']:.3f}, on largest {found['largest']:.3f}"
    )

# %%
# Next
# ----
# - :doc:`/howto/choose`: which score, which measure, which size.
# - :doc:`reading_the_numbers`: four checks for every attribution.
# - :doc:`Mask </howto/mask>`, :doc:`modulate </howto/modulate>` or :doc:`retrain
#   </howto/retrain_only>` the selected units.
