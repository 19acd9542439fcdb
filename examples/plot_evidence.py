"""
The evidence, picture by picture
================================

A small network that copied images (base) learned to remove noise and to sharpen
(target). Two sets of kernels were found for these functions. Each picture below tests
them in one way. In so small a network, they do not pass every test.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, contrast
from filterattr.analysis import (
    FunctionPredictor,
    Masking,
    all_rankings,
    compare_rankings,
    confusion,
    differences,
    largest_wins,
    mask_curve,
    modulation,
    null_curve,
    per_sample_scores,
    specificity,
    stability,
)
from filterattr.display import (
    plot_confusion,
    plot_curves,
    plot_modulation,
    plot_rankings,
    plot_specificity,
    plot_stability,
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 1, 3, padding=1),
    )


def draw_pictures(count: int) -> torch.Tensor:
    blobs = nn.functional.interpolate(
        torch.rand(count, 1, 5, 5), size=20, mode="bicubic", align_corners=False
    )
    return blobs.clamp(0, 1).round()


degradations = {
    "sharpening": lambda images: nn.functional.avg_pool2d(
        images, 3, stride=1, padding=1
    ),
    "denoising": lambda images: images + 0.3 * torch.randn_like(images),
}


def train(model: nn.Module, kinds, steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        images = draw_pictures(16)
        optimizer.zero_grad()
        sum((model(kind(images)) - images).square().mean() for kind in kinds).backward()
        optimizer.step()


torch.manual_seed(0)
base, target = network(), network()
train(base, [nn.Identity()], steps=400, rate=3e-3)
target.load_state_dict(base.state_dict())
train(target, degradations.values(), steps=400, rate=5e-4)


def squared_error(model: nn.Module, pair) -> torch.Tensor:
    return (model(pair[0]) - pair[1]).square().sum()


def pairs(count: int):
    images = draw_pictures(count).split(1)
    return {
        name: [(kind(image), image) for image in images]
        for name, kind in degradations.items()
    }


# %%
# The sets are searched on some images and tested on others.
search, test = pairs(16), pairs(24)
attributor = FilterAttributor(target)
samples = {
    name: per_sample_scores(
        attributor, base, target, squared_error, search[name], n_steps=8, progress=False
    )
    for name in search
}
scores = {name: one.scores() for name, one in samples.items()}
rankings = {name: contrast(scores, name, scale="share") for name in scores}
selections = {name: ranking.top(0.05) for name, ranking in rankings.items()}
masking = Masking(target, base, target, squared_error, test)

# %%
# **Masking curve.** The share of sharpening that is removed when more and more kernels
# are set back to base. The bands are random kernels, and random kernels of the same
# layers. Above 1 the network is worse than base, which is damage.
fractions = (0.01, 0.02, 0.05, 0.1, 0.2)
generator = torch.Generator().manual_seed(0)
curve = mask_curve(
    masking,
    rankings["sharpening"],
    ranking="sharpening",
    fractions=fractions,
    progress=False,
)
nulls = [
    null_curve(
        masking,
        rankings["sharpening"],
        generator,
        ranking="sharpening",
        null=null,
        fractions=fractions,
        draws=20,
        progress=False,
    )
    for null in ("random", "layer-matched")
]
figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
plot_curves({"sharpening": curve}, "sharpening", axis, nulls)
axis.set_title("Masking more and more kernels")
plt.show()

# %%
# **Specificity.** Rows are the masked sets, columns the functions. A set is specific if
# its diagonal entry is the largest of its row and column. The set for denoising is not
# specific: it removes more of sharpening than of denoising.
figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
plot_specificity(specificity(masking, selections), axis)
axis.set_title("Who loses what")
plt.show()

# %%
# **Modulation.** The share of each function over the strength of the set.
figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
plot_modulation(
    modulation(masking, selections["sharpening"], function="sharpening"), axis
)
axis.set_title("The strength of 5% of the kernels")
plt.show()

# %%
# **Cheaper rankings.** The same number of kernels by every ranking. Far to the right of
# 1, the network is damaged, and more of the other function (rings) is lost.
found = {
    name: all_rankings(
        attributor, base, target, squared_error, search[name], generator, n_steps=8
    )
    for name in search
}
labels = list(found["sharpening"])
by_ranking = {
    label: {name: found[name][label].scores for name in found} for label in labels
}
table = compare_rankings(
    masking, by_ranking, reference=labels[0], fractions=(0.05,), progress=False
)
figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
plot_rankings(table, "sharpening", 0.05, axis)
axis.set_title("What the top 5% of every ranking remove")
plt.show()

# %%
# **Stability.** The agreement of the sets from two disjoint groups of images.
settled = stability(
    samples, lambda mean: contrast(mean, "sharpening", scale="share"), 0.05
)
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
plot_stability(settled, axis)
axis.set_title("How far the set depends on the pictures")
plt.show()
different = differences(samples, "sharpening", "denoising", scale="share")
count = f"{len(different.units)} of {different.n_units}"
print(f"{count} kernels differ between the two functions")

# %%
# **Prediction.** Which function an input needs, from the scores of the kernels alone.
# In this small network nearly all kernels serve both functions, and the prediction is
# little better than chance.
predictor = FunctionPredictor(
    attributor, base, target, selections, respond=lambda model, pair: model(pair[0])
)
signals = {name: [predictor.signals(pair) for pair in test[name][:12]] for name in test}
figure, axis = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
answers = confusion(signals, largest_wins, method="overlap")
plot_confusion(answers, axis)
axis.set_title("Told from the kernels alone")
plt.show()
print(f"accuracy {answers.accuracy}")

# sphinx_gallery_thumbnail_number = 4
