"""
Which layers of a LoRA adapter earn their rank?
===============================================

A network that reads digits (base) is adapted to digits that lie on their side (target),
by low-rank updates of its layers. Every layer has the same rank; the scores show which
layers need it.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from filterattr import FilterAttributor, Group, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves, plot_path

RANK = 8


class LoRA(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Parameter(
            torch.randn(RANK, layer.in_features) / layer.in_features**0.5
        )
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


# %%
# The digits come with scikit-learn. The network learns from the first 1000; the adapter
# is searched on 100 others and judged on the rest.
digits = load_digits()
upright = torch.tensor(digits.data, dtype=torch.float32) / 16
lying = upright.reshape(-1, 8, 8).rot90(dims=(1, 2)).reshape(-1, 64)
labels = torch.tensor(digits.target)

torch.manual_seed(0)
layers = [
    layer
    for width in (64, 128, 128, 128)
    for layer in (nn.Linear(width, 128), nn.GELU())
]
model = nn.Sequential(*layers, nn.Linear(128, 10))


def train(
    parameters: list[nn.Parameter],
    images: Tensor,
    labels: Tensor,
    steps: int,
    rate: float,
) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(parameters, rate)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


train(list(model.parameters()), upright[:1000], labels[:1000], steps=300, rate=1e-3)
linears = [layer for layer in model if isinstance(layer, nn.Linear)]
adapters = [LoRA(layer) for layer in linears]
for layer, adapter in zip(linears, adapters, strict=True):
    register_parametrization(layer, "weight", adapter)

base = {name: value.clone() for name, value in model.state_dict().items()}
adapted = [parameter for adapter in adapters for parameter in adapter.parameters()]
target = train(
    adapted,
    torch.cat([upright[:1000], lying[:1000]]),
    labels[:1000].repeat(2),
    steps=500,
    rate=3e-3,
)


def show_accuracy(network: str, state: dict[str, Tensor]) -> None:
    with swapped(model, state), torch.no_grad():
        right = [
            (model(images[1100:]).argmax(1) == labels[1100:]).float().mean()
            for images in (upright, lying)
        ]
    shares = f"{right[0]:.0%} of the upright and {right[1]:.0%} of the lying digits"
    print(f"{network:>26}: {shares} are read")


show_accuracy("base", base)
show_accuracy("target", target)

# %%
# A unit is a direction of an adapter: a row of ``down`` with its column of ``up``.
# Nothing else was trained, so the scores are complete: what is not scored is zero.


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    image, label = sample
    return cross_entropy(model(image), label)


direction = Group({"up": "o rank -> rank", "down": "rank i -> rank"})
attributor = FilterAttributor(model, unit={"*.parametrizations.weight.0": direction})
search = list(zip(lying[1000:1100].split(1), labels[1000:1100].split(1), strict=True))
attribution = attributor.attribute(base, target, loss, search, n_steps=32)
scores = attribution.scores()
print(attribution)

# %%
# The scores of the layers, next to the effect of removing the adapter of one layer.
test = list(zip(lying[1100:].split(50), labels[1100:].split(50), strict=True))
masking = Masking(model, base, target, loss, {"lying digits": test})
names = list(scores)
shares = [float(scores[name].sum() / scores.flat().sum()) for name in names]
removed = []
for name in names:
    adapter = {
        key: base[key] if key.startswith(name) else value
        for key, value in target.items()
    }
    removed.append(
        masking.share_removed(
            "lying digits", masking.losses_of(adapter)["lying digits"]
        )
    )
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"lying digits": attribution}, left)
for place, (label, values) in enumerate(
    {"share of the scores": shares, "removed without it": removed}.items()
):
    right.bar(
        [x + 0.4 * place for x in range(len(names))],
        values,
        0.4,
        label=label,
        color=COLOURS[place],
    )
right.set_xticks(
    [x + 0.2 for x in range(len(names))],
    [f"layer {name.split('.')[0]}" for name in names],
)
right.legend(frameon=False)
for name, share, worth in zip(names, shares, removed, strict=True):
    layer = f"layer {name.split('.')[0]}: {share:4.0%} of the scores"
    print(f"{layer}; without its adapter {worth:.2f} is removed")

# %%
# Test the directions inside the layers: set the first ones back to base. If only the
# second p is large, rank is wasted in some layers, but inside a layer one direction is
# as good as another.
FRACTIONS = (0.1, 0.2, 0.4)
curve = mask_curve(
    masking, scores, ranking="directions found", fractions=(0, *FRACTIONS, 1)
)
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        scores,
        generator,
        ranking="directions found",
        null=null,
        fractions=FRACTIONS,
        draws=49,
    )
    for null in ("random", "layer-matched")
]
for null in nulls:
    print(
        f"{null.null:>13}: p =",
        *(f"{p:.2f}" for p in null.p_values(curve, "lying digits")),
    )
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_curves({"directions found": curve}, "lying digits", axis, nulls)

# %%
# The reverse: keep only the upper half of the directions, or only the lower half.
half = scores.top(0.5)
print(half.per_layer())
show_accuracy(f"{half.count} best directions", masking.masked(~half))
show_accuracy(f"{half.count} other directions", masking.masked(half))

# %%
# All directions, from the highest score of a layer to the lowest. The marked half was
# kept first.
figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
orders = [scores[name].argsort(descending=True) for name in names]
sorted_scores = [scores[name][order] for name, order in zip(names, orders, strict=True)]
picture = axis.imshow(
    torch.stack(sorted_scores).numpy(), cmap="Blues", vmin=0, aspect="auto"
)
for row, (name, order) in enumerate(zip(names, orders, strict=True)):
    for column, chosen in enumerate(half[name][order]):
        if chosen:
            axis.plot(column, row, "o", color=COLOURS[1], ms=7)
axis.set_yticks(range(len(names)), [f"layer {name.split('.')[0]}" for name in names])
axis.set(
    xlabel="direction of the layer, from the highest score to the lowest",
    title=f"The {half.count} directions that an adapter of half the size keeps",
)
figure.colorbar(picture, label="score")
plt.show()

# sphinx_gallery_thumbnail_number = -1
