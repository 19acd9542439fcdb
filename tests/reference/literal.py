"""Attribution as its definition reads: at every node a new network loads a state dict, and gradients are added up.

It shares no code with the library, and nothing with a copy of the user's model either: a network is built anew for
every evaluation, so that whatever a forward pass leaves behind is left behind in a network that is thrown away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

Values = dict[str, Tensor]
Nodes = Sequence[tuple[float, float]]
State = dict[str, Tensor]


@dataclass
class Literal:
    """Means over the samples."""

    scores: dict[str, Values] = field(default_factory=lambda: {"sum_of_abs": {}, "abs_of_sum": {}, "sum": {}})
    loss_base: float = 0.0
    loss_target: float = 0.0
    total: float = 0.0
    gap: float = 0.0
    scale: float = 0.0

    @property
    def completeness_error(self) -> float:
        return self.gap / self.scale if self.scale else 0.0

    def add_sums(self, signed: Values, first: float, last: float, share: float) -> None:
        """Add the sums of one sample."""
        total = float(sum(values.sum() for values in signed.values()))
        absolute = float(sum(values.abs().sum() for values in signed.values()))
        self.loss_base += share * first
        self.loss_target += share * last
        self.total += share * total
        self.gap += abs(total - (last - first))
        self.scale += max(abs(last - first), 1e-3 * absolute, 1e-12 * max(abs(first), abs(last)))

    def add(self, name: str, values: Tensor, to_units: Callable[[Tensor], Tensor], share: float) -> None:
        """Add the scores of one sample."""
        for kind, units in (
            ("sum_of_abs", to_units(values.abs())),
            ("abs_of_sum", to_units(values).abs()),
            ("sum", to_units(values)),
        ):
            known = self.scores[kind]
            known[name] = known[name] + share * units if name in known else share * units


def literal_attribution(
    build: Callable[[], nn.Module],
    corners: Sequence[State],
    loss: Callable[..., Tensor],
    samples: Sequence[Any],
    nodes: Sequence[Nodes],
    reduce: dict[str, Callable[[Tensor], Tensor]],
    *,
    buffers: str = "base",
    states: Sequence[Tensor] = (),
    is_pooled: bool = False,
) -> Literal:
    """Integrate every sample by itself.

    Args:
        build: Makes the network.
        corners: State dicts of base, of waypoints if there are any, and of target.
        loss: Of a network and a sample.
        samples: The samples.
        nodes: Places in a segment with their coefficients, for every sample.
        reduce: Name of each scored parameter to how its weights are summed to units.
        buffers: Which end's.
        states: The state of the random generator at the start of every evaluation, one a sample.
        is_pooled: Whether absolute values are taken after the mean over the samples.

    Returns:
        The numbers.
    """
    result = Literal()
    share = 1 / len(samples)
    line = _Line(build, corners, buffers, loss, samples, states)
    means: Values = {}
    for index in range(len(samples)):
        first, last = (line.at(*end, index)[0].item() for end in ((0, 0.0), (len(corners) - 2, 1.0)))
        signed = line.integrated(index, nodes[index])
        result.add_sums(signed, first, last, share)
        for name, values in signed.items():
            means[name] = means.get(name, torch.zeros_like(values)) + share * values
            if name in reduce and not is_pooled:
                result.add(name, values, reduce[name], share)
    if is_pooled:
        for name, to_units in reduce.items():
            result.add(name, means[name], to_units, 1.0)
    return result


class _Line:
    """The loss of every sample, and its derivatives, along straight segments."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        corners: Sequence[State],
        buffers: str,
        loss: Callable[..., Tensor],
        samples: Sequence[Any],
        states: Sequence[Tensor],
    ) -> None:
        self.build, self.loss, self.samples, self.states = build, loss, samples, states
        self.state = corners[0] if buffers == "base" else corners[-1]
        self.points = [_parameters(build, corner) for corner in corners]

    def at(self, segment: int, t: float, index: int) -> tuple[Tensor, dict[str, nn.Parameter]]:
        """The loss at one place, and the parameters that it was computed with."""
        network = self.build()
        network.load_state_dict(self.state)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                ends = [_wide(point[name]) for point in self.points[segment : segment + 2]]
                parameter.copy_(ends[int(t)] if t in (0.0, 1.0) else ends[0] + t * (ends[1] - ends[0]))
        if self.states:
            torch.set_rng_state(self.states[index])
        return self.loss(network, copy.deepcopy(self.samples[index])), dict(network.named_parameters())

    def integrated(self, index: int, nodes: Nodes) -> Values:
        """Signed attribution of every weight."""
        signed = {name: torch.zeros_like(_wide(value).real) for name, value in self.points[0].items()}
        for segment, (t, coefficient) in product(range(len(self.points) - 1), nodes):
            value, parameters = self.at(segment, t, index)
            gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    first, second = (_wide(point[name]) for point in self.points[segment : segment + 2])
                    signed[name] = signed[name] + coefficient * (_wide(gradient).conj() * (second - first)).real
        return signed


def unit_sums(module: nn.Module, unit: str) -> Callable[[Tensor], Tensor]:
    """How the weights of a convolution or linear layer are summed to units; any parameter by weight and by layer."""
    if unit == "weight":
        return lambda values: values
    if unit == "layer":
        return lambda values: values.sum()
    groups = getattr(module, "groups", 1)
    is_transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)

    def pairs(values: Tensor) -> Tensor:
        """Shape (groups, outputs, inputs), both inside their group."""
        summed = values.flatten(2).sum(2) if values.ndim > 2 else values
        by_group = summed.unflatten(0, (groups, -1))
        return by_group.transpose(1, 2) if is_transposed else by_group

    return {
        "kernel": lambda values: pairs(values).flatten(0, 1),
        "filter": lambda values: pairs(values).sum(2).flatten(),
        "input": lambda values: pairs(values).sum(1).flatten(),
    }[unit]


def literal_influence(
    model: nn.Module,
    layer: nn.Module,
    ends: tuple[Tensor, Tensor],
    output: Callable[[Tensor], Tensor],
    nodes: Nodes,
    channel_axis: int,
) -> Tensor:
    """Mean over the samples of ``|sum over places of the mean derivative|`` of a layer, each sample by itself."""
    total: Tensor | float = 0.0
    for number in range(len(ends[0])):
        mean: Tensor | float = 0.0
        for t, coefficient in nodes:
            kept: list[Tensor] = []
            handle = layer.register_forward_hook(lambda _module, _arguments, put_out, kept=kept: kept.append(put_out))
            point = torch.lerp(ends[1][number : number + 1], ends[0][number : number + 1], t)
            value = output(model(point.requires_grad_())).sum()
            handle.remove()
            mean = mean + coefficient * torch.autograd.grad(value, kept[0])[0]
        rest = [axis for axis in range(mean.ndim) if axis != channel_axis % mean.ndim]
        total = total + mean.sum(rest).abs()
    return total / len(ends[0])


def _parameters(build: Callable[[], nn.Module], state: State) -> Values:
    """What a network makes of a state dict, in its own types."""
    network = build()
    network.load_state_dict(state)
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
