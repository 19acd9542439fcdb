"""
Which filters learned a new domain?
===================================

A small classifier of handwritten digits (base) is fine-tuned until it also reads digits
that lie on their side (target). Which of its filters learned that? This example ranks
them, sets the first ones back to base, and compares with random filters.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, Group, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import plot_curves, plot_path

# %%
# The digits come with scikit-learn: 1797 scans of 8x8 pixels. The network learns from
# the first 1000. Filters are searched on 100 others and tested on the rest.
digits = load_digits()
upright = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
lying = upright.rot90(dims=(2, 3))
labels = torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential()
for number, (inputs, outputs) in enumerate([(1, 16), (16, 32), (32, 64)], start=1):
    model.add_module(
        f"conv{number}",
        nn.Conv2d(inputs, outputs, 3, padding=1, stride=1 if number == 1 else 2),
    )
    model.add_module(f"relu{number}", nn.ReLU())
model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(64, 10))


def train(images: Tensor, labels: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(upright[:1000], labels[:1000], steps=500, rate=4e-3)
target = train(
    torch.cat([upright[:1000], lying[:1000]]),
    labels[:1000].repeat(2),
    steps=400,
    rate=1e-3,
)


def show_accuracy(name: str, state: dict[str, Tensor]) -> None:
    with swapped(model, state), torch.no_grad():
        right = [
            (model(images[1100:]).argmax(1) == labels[1100:]).float().mean()
            for images in (upright, lying)
        ]
    shares = f"{right[0]:.0%} of the upright and {right[1]:.0%} of the lying digits"
    print(f"{name:>30}: {shares} are read")


show_accuracy("base", base)
show_accuracy("target", target)

# %%
# Now the call: two sets of weights, a loss, and samples of the new domain. A unit is a
# filter with its bias.


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    image, label = sample
    return cross_entropy(model(image), label)


search = list(zip(lying[1000:1100].split(1), labels[1000:1100].split(1), strict=True))
attributor = FilterAttributor(
    model, unit={"conv*": Group({"weight": "o ... -> o", "bias": "o -> o"})}
)
attribution = attributor.attribute(base, target, loss, search, n_steps=32)
scores = attribution.scores()
print(attribution)

# %%
# The attributions sum to the change of the loss (completeness), and there is no barrier
# on the path. Only the last, linear layer is not scored.
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_path({"lying digits": attribution}, axis)

# %%
# Test the ranking: set the first 5, 10 and 20% of the filters back to base. They should
# remove more than as many filters drawn from the whole network, and as many drawn from
# the same layers. If only the second p is large, the right layers were found, but not
# the filters in them.
FRACTIONS = (0.05, 0.1, 0.2)
test = list(zip(lying[1100:].split(50), labels[1100:].split(50), strict=True))
masking = Masking(model, base, target, loss, {"reading lying digits": test})
curve = mask_curve(
    masking, scores, ranking="filters found", fractions=(0, *FRACTIONS, 1)
)
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        scores,
        generator,
        ranking="filters found",
        null=null,
        fractions=FRACTIONS,
        draws=49,
    )
    for null in ("random", "layer-matched")
]
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_curves({"filters found": curve}, "reading lying digits", axis, nulls)
for null in nulls:
    print(
        f"{null.null:>13}: p =",
        *(f"{p:.2f}" for p in null.p_values(curve, "reading lying digits")),
    )

# %%
# So far the measure was the loss. Here is the accuracy, on lying and on upright digits.
selection = scores.top(0.2)
print(selection.per_layer())
show_accuracy("without the filters found", masking.masked(selection))
show_accuracy(
    "without others of their layers",
    masking.masked(selection.random(generator, layer_matched=True)),
)

# %%
# Ten held-out digits that lie on their side, and the answers. Wrong ones are orange.
figure, axes = plt.subplots(2, 10, figsize=(9, 2.6), layout="constrained")
for row, (name, state) in zip(
    axes, {"target": target, "without": masking.masked(selection)}.items(), strict=True
):
    with swapped(model, state), torch.no_grad():
        answers = model(lying[1100:1110]).argmax(1)
    for axis, image, answer, label in zip(
        row, lying[1100:1110], answers, labels[1100:1110], strict=True
    ):
        axis.imshow(image[0].numpy(), cmap="gray_r")
        colour = "#0072B2" if answer == label else "#D55E00"
        axis.set_title(f"{answer}", color=colour, fontsize=14)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.suptitle("With and without the filters that learned lying digits")
plt.show()

# sphinx_gallery_thumbnail_number = -1
