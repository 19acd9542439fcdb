"""
Coming from Captum
==================

`Captum <https://captum.ai>`_ :footcite:p:`kokhlikyan2020` attributes an output to the
*inputs* or to *activations*. This library attributes a change of the loss to the
*change of the weights*. Both use integrated gradients :footcite:p:`sundararajan2017`,
and many of the same names. This page runs the same computations in both libraries and
compares the results. It needs ``pip install captum "./filterattr[plot]"``.

.. list-table::
   :header-rows: 1

   * - Captum
     - filterattr
     -
   * - ``forward_func``
     - ``loss(model, sample)``
     - one scalar, not one for each output
   * - ``inputs``, ``baselines``
     - ``target``, ``base``
     - two sets of weights; note the order
   * - ``additional_forward_args``
     - ``data``
     - an iterable; one integral for each sample
   * - ``target=3``
     - the loss picks it: ``model(x)[:, 3].sum()``
     - any output, images too
   * - ``n_steps``, ``method``
     - the same, by the same names
     - 16 nodes by default, not 50
   * - ``internal_batch_size``
     - not needed
     - memory does not grow with ``n_steps``
   * - ``return_convergence_delta``
     - ``attribution.completeness_error``
     - always there; relative
   * - attribution tensors
     - ``scores()``, ``top()``, ``blend()``
     - per kernel, filter, head, layer
   * - ``LayerConductance`` etc.
     - `ChannelAttributor`
     - all layers in one call
"""

import matplotlib.pyplot as plt
import torch
from captum.attr import IntegratedGradients, LayerConductance
from torch import nn

from filterattr import ChannelAttributor, FilterAttributor

torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )


base, target = network(), network()
target.load_state_dict(
    {
        name: value + 0.05 * torch.randn_like(value)
        for name, value in base.state_dict().items()
    }
)
degraded = torch.rand(1, 1, 16, 16)
reference = target(degraded).detach()

# %%
# Attribute a change of the loss to the weights
# ---------------------------------------------
# Captum has no attributor for weights, but you can make one: pass the weights as
# inputs, and the network as a function of them. Captum puts the steps of the path on a
# leading axis; the network takes one set of weights at a time, so the function loops
# over it.
names = list(base.state_dict())


def loss_of_weights(*weights: torch.Tensor) -> torch.Tensor:
    losses = []
    for row in zip(*weights, strict=True):
        restored = torch.func.functional_call(
            base, dict(zip(names, row, strict=True)), (degraded,)
        )
        losses.append((restored - reference).square().sum())
    return torch.stack(losses)


with_captum, delta = IntegratedGradients(loss_of_weights).attribute(
    tuple(value[None] for value in target.state_dict().values()),
    tuple(value[None] for value in base.state_dict().values()),
    n_steps=16,
    method="gausslegendre",
    internal_batch_size=1,
    return_convergence_delta=True,
)

# %%
# The same with `FilterAttributor`:


def loss(model: nn.Module) -> torch.Tensor:
    return (model(degraded) - reference).square().sum()


attribution = FilterAttributor(target, unit="weight", select="*").attribute(
    base, target, loss, n_steps=16
)

# %%
# The results are equal:
ours = attribution.scores("sum")
figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
for name, value in zip(names, with_captum, strict=True):
    axis.scatter(value.detach().flatten(), ours[name].flatten(), s=8, label=name)
axis.set(title="Attributions of all weights", xlabel="Captum", ylabel="filterattr")
axis.legend(frameon=False, fontsize=7)
plt.show()
largest = max(
    float((ours[name] - value[0]).abs().max())
    for name, value in zip(names, with_captum, strict=True)
)
print(f"largest difference {largest:.1e}, of up to {ours.flat().abs().max():.2f}")
print(f"convergence delta  {float(delta):.1e}")
print(f"completeness error {attribution.completeness_error:.1e}")

# %%
# The differences:
#
# - With Captum, memory grows with the steps unless you batch them yourself.
# - With Captum, you handle batch normalization, dropout, tied weights and modules with
#   two names. (`torch.func.functional_call` damages modules with two names.)
# - `filterattr` adds units, samples, selections and tests.
#
# Attribute a change of the input to channels
# -------------------------------------------
# Captum's layer methods follow the activations while the *input* moves from a baseline
# to the image. `ChannelAttributor` does this with Captum's definitions. Captum takes
# one layer per call:
clean = reference


def output(restored: torch.Tensor) -> torch.Tensor:
    return (restored - reference).square().sum((1, 2, 3))


layers = ["0", "2", "4"]
by_layer = {}
for name in layers:
    conductance = LayerConductance(
        lambda image: output(target(image)), target.get_submodule(name)
    )
    by_layer[name] = conductance.attribute(
        degraded, clean, n_steps=20, method="riemann_right"
    )

# %%
# `ChannelAttributor` computes all layers in the same passes:
channels = ChannelAttributor(target).attribute(
    degraded, clean, output, n_steps=20, method="riemann_right"
)
for name in layers:
    difference = (by_layer[name] - channels[name]).abs().max() / channels[
        name
    ].abs().max()
    print(f"layer {name}: largest relative difference {difference.item():.0e}")
count = f"for each of {len(layers)} layers"
print(f"{channels.n_passes} passes for all; Captum needs as many {count}")

# %%
# Which one to use
# ----------------
# - The pixels that made the network say "cat": Captum, on inputs.
# - The channels that respond between two inputs: Captum's layer methods, or
#   `ChannelAttributor` for all layers. :doc:`/explanation/findings` measures whether
#   these are the channels that carry what fine-tuning taught.
# - The units that carry what fine-tuning taught: `FilterAttributor`. You need the
#   checkpoint from before.
#
# .. footbibliography::
