"""
A diffusion model learns a new shape: which neurons?
====================================================

A small diffusion model draws points on a ring (base) and is fine-tuned to draw three
spots (target). Which layers and which neurons carry the change? A sample of the loss is
a point, a time step and a noise, so that the score does not depend on chance. Setting a
fifth of the neurons back brings the ring halfway back.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, Group, blend, swapped
from filterattr.display import COLOURS

# %%
# The network sees a noisy point and the time step, and says which noise was added.
STEPS, WIDTH = 40, 96
signal = torch.cos(torch.linspace(0.02, 1.55, STEPS))  # share of the point that is left


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            [nn.Linear(18, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
        )
        self.output = nn.Linear(WIDTH, 2)

    def forward(self, points: Tensor, steps: Tensor) -> Tensor:
        angles = steps[:, None] / STEPS * torch.pi * 2.0 ** torch.arange(-2.0, 6.0)
        x = torch.cat([points, angles.sin(), angles.cos()], 1)
        for layer in self.hidden:
            x = nn.functional.silu(layer(x))
        return self.output(x)


def ring(count: int) -> Tensor:
    angle = 2 * torch.pi * torch.rand(count)
    points = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.07 * torch.randn(count, 2)


def spots(count: int) -> Tensor:
    angle = 2 * torch.pi * (torch.randint(3, (count,)) / 3 + 0.25)
    points = 0.9 * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.12 * torch.randn(count, 2)


def loss(model: nn.Module, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The squared error of the noise, at given time steps and for given noises."""
    points, steps, noise = sample
    left = signal[steps][:, None]
    noisy = left * points + (1 - left**2).sqrt() * noise
    return (model(noisy, steps) - noise).square().mean()


def drawn(shape, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, time steps and noises."""
    return shape(count), torch.randint(STEPS, (count,)), torch.randn(count, 2)


torch.manual_seed(0)
model = Denoiser()


def train(shape, steps: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, drawn(shape, 192)).backward()
        optimizer.step()
        schedule.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


base = train(ring, steps=1500, rate=3e-3)
target = train(spots, steps=1000, rate=2e-3)

# %%
# Every network draws from the same noise, step by step and without further chance
# (DDIM). The energy distance tells how far two sets of points are apart.
start = torch.randn(500, 2)


@torch.no_grad()
def samples(state: dict[str, Tensor]) -> Tensor:
    x = start
    with swapped(model, state):
        for step in range(STEPS - 1, -1, -1):
            left = signal[step]
            noise = model(x, torch.full((len(x),), step))
            points = ((x - (1 - left**2).sqrt() * noise) / left).clamp(-3, 3)
            before = signal[step - 1] if step else torch.tensor(1.0)
            x = before * points + (1 - before**2).sqrt() * noise
    return x


def distance(first: Tensor, second: Tensor) -> float:
    between = 2 * torch.cdist(first, second).mean()
    inside = torch.cdist(first, first).mean() + torch.cdist(second, second).mean()
    return (between - inside).clamp_min(0).sqrt().item()


old, new = samples(base), samples(target)
print(f"from ring to spots: {distance(old, new):.2f}")

# %%
# Attribute the loss on the spots. A unit is a neuron: its weights and its bias. What a
# neuron contributes to the *fall* of the loss is what it carries of the new shape.
neuron = Group({"weight": "neuron ... -> neuron", "bias": "neuron -> neuron"})
search = [drawn(spots, 32) for _ in range(24)]
attributor = FilterAttributor(model, unit={"hidden.*": neuron, "output": neuron})
attribution = attributor.attribute(base, target, loss, search, n_steps=16)
carried = -attribution.scores("sum")
print(attribution)
for name, values in carried.items():
    share = float(values.sum()) / (attribution.loss_base - attribution.loss_target)
    print(f"{name:>10} carries {share:.0%} of the gain")

# %%
# Set a layer back, and draw. The layers that carry the gain bring the samples near to
# those of base, and the others do not.
for name in ("hidden.0", "hidden.1", "hidden.2", "output"):
    layer = carried.only(name).top(1.0)
    left = distance(samples(blend(target, base, layer)), old) / distance(new, old)
    print(f"without {name}: {left:.2f} of the distance from the ring is left")

# %%
# Set neurons back, the first ones or random ones, and draw. The first tenth goes almost
# half of the way back, where random neurons hardly move. Neurons with a low score carry
# nothing of the spots: setting them back as well damages the ring that was regained.
generator = torch.Generator().manual_seed(0)
fractions = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
left_to_go: dict[str, list[float]] = {"neurons found": [], "random neurons": []}
for fraction in fractions:
    chosen = carried.top(fraction)
    for name, selection in zip(
        left_to_go, (chosen, chosen.random(generator)), strict=True
    ):
        points = samples(blend(target, base, selection))
        left_to_go[name].append(distance(points, old) / distance(new, old))
for name, values in left_to_go.items():
    print(f"{name:>15}:", *(f"{value:.2f}" for value in values))

# %%
# The picture for a slide: the same noise, drawn by four networks, and the way back.
chosen = carried.top(0.2)
pictures = {
    "base": old,
    "target": new,
    "20% of the neurons\nset back: found": samples(blend(target, base, chosen)),
    "20% of the neurons\nset back: random": samples(
        blend(target, base, chosen.random(generator))
    ),
}
figure, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained")
for axis, (name, points) in zip(axes, pictures.items(), strict=False):
    axis.scatter(*points.T, s=2, color=COLOURS[0])
    axis.set(title=name, xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[])
    axis.set_aspect("equal")
for colour, (name, values) in zip(COLOURS, left_to_go.items(), strict=False):
    axes[4].plot([100 * x for x in fractions], values, "o-", color=colour, label=name)
axes[4].set(xlabel="neurons set back (%)", ylabel="distance to base (target: 1)")
axes[4].legend(frameon=False)
figure.suptitle("Which neurons draw the spots? Without them, the ring is halfway back")
plt.show()

# sphinx_gallery_thumbnail_number = -1
