"""
Which kernels clean a sensor?
=============================

A one-dimensional convolutional network removes hum from a recording of brain waves
(base) and is fine-tuned to remove white noise as well (target). Which of its kernels do
the new job, and does hum removal survive without them?
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from torch import Tensor, nn

from filterattr import FilterAttributor, blend, swapped
from filterattr.analysis import Masking, mask_curve, null_curve
from filterattr.display import plot_curves, plot_path

# %%
# The recording comes with matplotlib: four electrodes, 800 points in time. The first
# 480 are learned; kernels are searched in the next 160 and judged in the last.
with get_sample_data("eeg.dat") as file:
    recording = torch.tensor(
        np.frombuffer(file.read()).reshape(800, 4).T, dtype=torch.float32
    )
windows = recording.unfold(1, 80, 8).flatten(0, 1)[
    :, None
]  # (windows, 1, 80), of electrode after electrode
starts = torch.arange(0, 721, 8).repeat(4)
learned, search, test = (
    windows[starts <= 400],
    windows[(starts >= 480) & (starts <= 560)],
    windows[starts >= 640],
)


def hum(signals: Tensor) -> Tensor:
    phases = 2 * torch.pi * torch.rand(len(signals), 1, 1)
    return signals + torch.sin(2 * torch.pi * torch.arange(80) / 10 + phases)


def noise(signals: Tensor) -> Tensor:
    return signals + 0.7 * torch.randn_like(signals)


class Cleaner(nn.Module):
    """Estimates the disturbance of a signal, and subtracts it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 9, padding=4)
        self.second = nn.Conv1d(width, width, 9, padding=4)
        self.third = nn.Conv1d(width, width, 9, padding=4)
        self.last = nn.Conv1d(width, 1, 9, padding=4)

    def forward(self, signals: Tensor) -> Tensor:
        hidden = torch.relu(
            self.third(torch.relu(self.second(torch.relu(self.first(signals)))))
        )
        return signals - self.last(hidden)


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    disturbed, clean = sample
    return (model(disturbed) - clean).square().mean()


torch.manual_seed(0)
model = Cleaner()


def train(steps: int, rate: float, *, with_noise: bool) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        clean = learned[torch.randint(len(learned), (16,))]
        disturbed = torch.cat(
            [hum(clean[:8]), noise(clean[8:]) if with_noise else hum(clean[8:])]
        )
        optimizer.zero_grad()
        loss(model, (disturbed, clean)).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(steps=500, rate=2e-3, with_noise=False)
target = train(steps=500, rate=7e-4, with_noise=True)

# %%
# The call. Kernels are the default unit: one for every pair of an input and an output
# channel, in any convolution.
samples = list(zip(noise(search).split(1), search.split(1), strict=True))
attribution = FilterAttributor(model).attribute(base, target, loss, samples, n_steps=32)
scores = attribution.scores()
print(attribution)

# %%
# Test the ranking on a held-out part of the recording: set the first kernels back to
# base, and compare with as many drawn from the whole network, and from the same layers.
# If only the second p is large, the right layers were found, but not the kernels in
# them.
FRACTIONS = (0.01, 0.02, 0.05, 0.1)
tasks = {"white noise": noise(test), "hum": hum(test)}
data = {
    name: list(zip(disturbed.split(11), test.split(11), strict=True))
    for name, disturbed in tasks.items()
}
masking = Masking(model, base, target, loss, {"white noise": data["white noise"]})
curve = mask_curve(
    masking, scores, ranking="kernels found", fractions=(0, *FRACTIONS, 1)
)
generator = torch.Generator().manual_seed(0)
nulls = [
    null_curve(
        masking,
        scores,
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
        *(f"{p:.2f}" for p in null.p_values(curve, "white noise")),
    )
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_path({"white noise": attribution}, left)
plot_curves({"kernels found": curve}, "white noise", right, nulls)

# %%
# The mean squared error of both jobs, and of the signals as they come:
found = scores.top(0.1)
networks = {
    "base": base,
    "target": target,
    f"without {found.count} kernels found": blend(target, base, found),
    f"without {found.count} of their layers": blend(
        target, base, found.random(generator, layer_matched=True)
    ),
}
errors = {
    name: float((disturbed - test).square().mean()) for name, disturbed in tasks.items()
}
print(
    f"{'disturbed':>28}:",
    ", ".join(f"{task} {error:.3f}" for task, error in errors.items()),
)
both = Masking(model, base, target, loss, data)
for name, state in networks.items():
    print(
        f"{name:>28}:",
        ", ".join(
            f"{task} {error:.3f}" for task, error in both.losses_of(state).items()
        ),
    )

# %%
# The signals of the calmest window:
calm = int(test.abs().amax(2).argmin())
disturbed = tasks["white noise"][calm : calm + 1]
figure, axes = plt.subplots(
    2, 2, figsize=(9, 4.5), layout="constrained", sharex=True, sharey=True
)
for axis, (name, state) in zip(axes.flat, networks.items(), strict=True):
    with swapped(model, state), torch.no_grad():
        cleaned = model(disturbed)
    axis.plot(disturbed.flatten().numpy(), color="0.8", label="disturbed")
    axis.plot(test[calm].flatten().numpy(), color="0.3", label="recorded")
    axis.plot(cleaned.flatten().numpy(), color="#0072B2", label="cleaned")
    axis.set_title(name)
axes[0, 0].legend(frameon=False, fontsize=8, ncols=3, loc="lower right")
plt.show()

# sphinx_gallery_thumbnail_number = -1
