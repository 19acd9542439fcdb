"""
Twenty lines on a network of your own
=====================================

Two checkpoints of one network, a loss, and the call: which kernels learned the new
task?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from filterattr import FilterAttributor, blend, swapped

torch.manual_seed(0)
base = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
)
target = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
)
target.load_state_dict(base.state_dict())
images = torch.rand(64, 1, 16, 16)
optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
for _ in range(300):  # fine-tune: learn to turn images upside down in brightness
    optimizer.zero_grad()
    (target(images) - (1 - images)).square().mean().backward()
    optimizer.step()


def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return (model(image) - (1 - image)).square().sum()


attribution = FilterAttributor(target).attribute(
    base, target, loss, data=images[:8, None], n_steps=32
)
print(attribution)
selection = attribution.scores().top(0.1)
with swapped(target, blend(target, base, selection)), torch.no_grad():
    masked = float(loss(target, images[:8]) / 8)
print(
    f"loss with {selection.count} of {selection.n_units} kernels at base: {masked:.1f}"
)

# %%
# One image, its negative, and the answer of the network with and without these kernels:
states = {
    "target": target.state_dict(),
    f"without {selection.count} kernels": blend(target, base, selection),
}
pictures = {"image": images[0, 0], "wanted": 1 - images[0, 0]}
for name, state in states.items():
    with swapped(target, state), torch.no_grad():
        pictures[name] = target(images[:1])[0, 0]
figure, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(name)
    axis.set_axis_off()
plt.show()

# sphinx_gallery_thumbnail_number = -1
