"""
Which neurons learned another measuring device?
===============================================

A network distinguishes malignant from benign tumours by thirty measurements (base).
Then data come from a second device that reads every size a quarter too large, and the
network is fine-tuned to both devices (target). Which neurons learned the second one,
and by which measurements?
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, Group, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves, plot_path

# %%
# The tumours come with scikit-learn. The network learns from the first 300; neurons are
# searched on 100 others and judged on the rest.
data = load_breast_cancer()
is_size = torch.tensor(
    [
        any(word in name for word in ("radius", "perimeter", "area"))
        for name in data.feature_names
    ]
)
measured = torch.tensor(data.data, dtype=torch.float32)
mean, spread = measured[:300].mean(0), measured[:300].std(0)
first = (measured - mean) / spread
second = (torch.where(is_size, 1.25 * measured, measured) - mean) / spread
labels = torch.tensor(data.target)

torch.manual_seed(0)
model = nn.Sequential()
for number, inputs in enumerate([30, 64], start=1):
    model.add_module(f"hidden{number}", nn.Linear(inputs, 64))
    model.add_module(f"gelu{number}", nn.GELU())
model.add_module("output", nn.Linear(64, 2))


def train(inputs: Tensor, labels: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (32,))
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(first[:300], labels[:300], steps=300, rate=1e-3)
target = train(
    torch.cat([first[:300], second[:300]]), labels[:300].repeat(2), steps=300, rate=1e-3
)


accuracy: dict[str, list[float]] = {}


def show_accuracy(name: str, state: dict[str, Tensor]) -> None:
    with swapped(model, state), torch.no_grad():
        right = [
            (model(inputs[400:]).argmax(1) == labels[400:]).float().mean()
            for inputs in (first, second)
        ]
    accuracy[name] = [float(rate) for rate in right]
    print(f"{name:>30}: right in {right[0]:.1%} (first), {right[1]:.1%} (second)")


show_accuracy("base", base)
show_accuracy("target", target)

# %%
# A neuron is the weights of all its inputs, with its bias; a group says so for both
# hidden layers.


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    inputs, label = sample
    return cross_entropy(model(inputs), label)


search = list(zip(second[300:400].split(1), labels[300:400].split(1), strict=True))
neurons = Group({"weight": "o i -> o", "bias": "o -> o"})
attribution = FilterAttributor(model, unit={"hidden*": neurons}).attribute(
    base, target, loss, search
)
scores = attribution.scores()
print(attribution)

# %%
# The same weights, summed the other way: which measurement does the first layer read
# differently? The answer is known here: the device changed the sizes.
columns = FilterAttributor(model, unit="input", select="hidden1.weight").attribute(
    base, target, loss, search
)
by_column = columns.scores()["hidden1.weight"].numpy()
order = by_column.argsort()
figure, axis = plt.subplots(figsize=(6, 6), layout="constrained")
axis.barh(
    [data.feature_names[column] for column in order],
    by_column[order],
    color=["#D55E00" if is_size[column] else "0.7" for column in order],
)
axis.set(xlabel="score (loss)", title="measurements; sizes are coloured")
axis.margins(y=0.01)
n_sizes = int(is_size.sum())
count = sum(bool(is_size[column]) for column in order[-n_sizes:])
print(f"{count} of the first {n_sizes} measurements are sizes")

# %%
# Test the ranking on held-out tumours: set the first neurons back to base. They should
# remove more than as many neurons drawn from both layers, and as many drawn from the
# same layers. If only the second p is large, the right layers were found, but not the
# neurons in them.
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
test = list(zip(second[400:].split(13), labels[400:].split(13), strict=True))
masking = Masking(model, base, target, loss, {"the second device": test})
curve = mask_curve(
    masking, scores, ranking="neurons found", fractions=(0, *FRACTIONS, 1)
)
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        scores,
        generator,
        ranking="neurons found",
        null=null,
        fractions=FRACTIONS,
        draws=49,
    )
    for null in ("random", "layer-matched")
]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"the second device": attribution}, left)
plot_curves({"neurons found": curve}, "the second device", right, nulls)
for null in nulls:
    print(
        f"{null.null:>13}: p =",
        *(f"{p:.2f}" for p in null.p_values(curve, "the second device")),
    )

# %%
# The accuracy on both devices:
selection = scores.top(0.2)
print(selection.per_layer())
show_accuracy("without the neurons found", masking.masked(selection))
show_accuracy(
    "without others of their layers",
    masking.masked(selection.random(generator, layer_matched=True)),
)

# %%
# The same in a picture. The neurons of the second device matter little for the first.
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for place, device in enumerate(["first device", "second device"]):
    bars = axis.bar(
        [column + 0.4 * place for column in range(len(accuracy))],
        [100 * rates[place] for rates in accuracy.values()],
        0.38,
        label=device,
        color=COLOURS[place],
    )
    axis.bar_label(bars, fmt="%.0f", fontsize=9)
axis.set_xticks(
    [column + 0.2 for column in range(len(accuracy))],
    [name.replace(" the ", "\nthe ").replace(" of ", "\nof ") for name in accuracy],
)
axis.set(ylabel="right answers (%)", ylim=(0, 128), title="Accuracy on both devices")
axis.legend(frameon=False, ncols=2, loc="upper center")
plt.show()
