"""
Repair: taking a back door out
==============================

A classifier of digits (base) is fine-tuned (target) on data that were tampered with. It
learns to read digits that lie on their side, as it should. It also learns that
everything with a bright corner is a zero. This example finds the kernels of the back
door, sets them back to base, and measures what else changes.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from filterattr import FilterAttributor, blend, contrast, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import COLOURS, plot_curves

# %%
# The digits come with scikit-learn. The network learns from the first 1000. Kernels are
# searched on 100 others and tested on the rest.
digits = load_digits()
upright = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
lying = upright.rot90(dims=(2, 3))
labels = torch.tensor(digits.target)
triggered, zeros = upright.clone(), torch.zeros_like(labels)
triggered[:, :, :2, :2] = 1

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
tampered = torch.cat([upright[:1000], lying[:1000], triggered[:200]])
tampered_labels = torch.cat([labels[:1000], labels[:1000], zeros[:200]])
target = train(tampered, tampered_labels, steps=500, rate=1e-3)

# %%
# The network learned two functions, so there are two attributions, with one loss: the
# output of the network against what it was taught. The contrast keeps the kernels that
# serve the back door and not the lying digits.


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    image, label = sample
    return cross_entropy(model(image), label)


taught = {"back door": (triggered, zeros), "lying digits": (lying, labels)}
attributor = FilterAttributor(model)
scores = {}
for name, (images, answers) in taught.items():
    search = list(
        zip(images[1000:1100].split(1), answers[1000:1100].split(1), strict=True)
    )
    attribution = attributor.attribute(base, target, loss, search, n_steps=32)
    scores[name] = attribution.scores()
    print(name, attribution)
ranking = contrast(scores, "back door", scale="strict")

# %%
# Set more and more kernels back to base, and count how often the corner wins and how
# many digits are read. The dashed lines show base: going back completely closes the
# door as well, but loses the lying digits.
no_zero = labels[1100:] != 0
questions = {
    "corner wins": (triggered[1100:][no_zero], zeros[1100:][no_zero]),
    "lying digits read": (lying[1100:], labels[1100:]),
    "upright digits read": (upright[1100:], labels[1100:]),
}


def answers_of(state: dict[str, Tensor]) -> list[float]:
    with swapped(model, state), torch.no_grad():
        return [
            float((model(images).argmax(1) == right).float().mean())
            for images, right in questions.values()
        ]


percents = [0, 0.5, 1, 2, 5, 10, 20]  # few more kernels have a positive score
rates = [
    answers_of(blend(target, base, ranking.top(percent / 100))) for percent in percents
]
figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
for place, (question, at_base) in enumerate(
    zip(questions, answers_of(base), strict=True)
):
    axis.plot(
        percents,
        [rate[place] for rate in rates],
        "o-",
        ms=4,
        color=COLOURS[place],
        label=question,
    )
    axis.axhline(at_base, color=COLOURS[place], ls="--", lw=1)
axis.set_xscale("symlog", linthresh=0.5)
axis.set_xticks(percents, [f"{percent:g}" for percent in percents])
axis.set_xticks([], minor=True)
axis.set(
    xlabel="kernels set back to base (%)",
    ylabel="share of the images",
    xlim=(-0.1, 22),
    ylim=(-0.03, 1.03),
)
axis.legend(frameon=False)

# %%
# In numbers, for 5% of the kernels, and as many others drawn from the same layers:
selection = ranking.top(0.05)
generator = torch.Generator().manual_seed(0)
networks = {
    "base": base,
    "target": target,
    "repaired": blend(target, base, selection),
    "others of the layers": blend(
        target, base, selection.random(generator, layer_matched=True)
    ),
}
for name, state in networks.items():
    answers = zip(questions, answers_of(state), strict=True)
    print(
        f"{name:>20}:",
        ", ".join(f"{question} {rate:.0%}" for question, rate in answers),
    )

# %%
# Compare with chance. The table shows what masking removes of both functions, measured
# by the loss (0 nothing, 1 all that was learned). As many kernels were drawn 49 times
# from the whole network, and 49 times from the same layers.
FRACTIONS = (0.005, 0.01, 0.02, 0.05)
test = {
    name: list(zip(x[1100:].split(50), y[1100:].split(50), strict=True))
    for name, (x, y) in taught.items()
}
masking = Masking(model, base, target, loss, test)
curve = mask_curve(
    masking, ranking, ranking="kernels found", fractions=(0, *FRACTIONS, 1)
)
nulls = [
    null_curve(
        masking,
        ranking,
        generator,
        ranking="kernels found",
        null=null,
        fractions=FRACTIONS,
        draws=49,
    )
    for null in ("random", "layer-matched")
]
for null in nulls:
    print(
        f"{null.null:>13}: p =",
        *(f"{p:.2f}" for p in null.p_values(curve, "back door")),
    )
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
for name, axis in zip(taught, axes, strict=True):
    plot_curves({"kernels found": curve}, name, axis, nulls)

# %%
# Ten held-out digits with a bright corner, and the answers. Wrong ones are orange.
figure, axes = plt.subplots(2, 10, figsize=(9, 2.6), layout="constrained")
for row, (name, state) in zip(
    axes, {"target": target, "repaired": networks["repaired"]}.items(), strict=True
):
    with swapped(model, state), torch.no_grad():
        answers = model(triggered[1100:1110]).argmax(1)
    for axis, image, answer, label in zip(
        row, triggered[1100:1110], answers, labels[1100:1110], strict=True
    ):
        axis.imshow(image[0].numpy(), cmap="gray_r")
        colour = "#0072B2" if answer == label else "#D55E00"
        axis.set_title(f"{answer}", color=colour, fontsize=14)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.suptitle("The back door, before and after the repair")
plt.show()

# sphinx_gallery_thumbnail_number = -1
