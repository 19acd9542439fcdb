"""The four methods: what each adds up while the passes run, and the result that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from filterattr.activations.conductance import ConductanceSum, KernelSplit, single
from filterattr.activations.hooks import Call
from filterattr.activations.line import between
from filterattr.activations.passes import LinePasses
from filterattr.activations.result import ChannelAttribution, ChannelMethod, LayerAttribution
from filterattr.activations.samples import Place, channel_axis
from filterattr.errors import LossError, NonFiniteError, name_some
from filterattr.integral.quadrature import Quadrature
from filterattr.units.layouts import unit_of
from filterattr.units.unit import ScoredParameter


@dataclass
class MethodSums:
    """What a method found by call, and the changes of the output that layers should sum to."""

    at_inputs: Tensor
    at_baselines: Tensor | None
    totals: dict[Call, Tensor]
    kernels: dict[Call, Tensor]
    changes: dict[str, Tensor] = field(default_factory=dict)


def _conductance(passes: LinePasses, rule: Quadrature) -> MethodSums:
    """Derivatives times steps of the activations."""
    at_baselines, at_inputs = passes.look(0.0), passes.look(1.0)
    passes.find_places(at_inputs)
    late = 0.5 if rule.method == "riemann_trapezoid" else 0.0
    sums = {call: ConductanceSum(torch.mul, late) for call in passes.calls}
    splits = {call: ConductanceSum(product, late) for call, product in passes.kernel_products().items()}

    def see(call: Call, output: Tensor, argument: Tensor | None) -> None:
        sums[call].see(output)
        if call in splits and argument is not None:
            splits[call].see(argument)

    for places, _ in passes.chunks(rule):
        for call, derivatives in passes.differentiate(places, see):
            sums[call].take(derivatives)
            if call in splits:
                splits[call].take(derivatives)
    changes = dict.fromkeys(passes.cutting or (), at_inputs - at_baselines)
    totals, kernels = ({call: each.total for call, each in group.items()} for group in (sums, splits))
    return MethodSums(at_inputs, at_baselines, totals, kernels, changes)


def _internal_influence(passes: LinePasses, rule: Quadrature) -> MethodSums:
    """The mean derivative."""
    at_inputs = passes.look(1.0)
    passes.find_places(at_inputs)
    totals: dict[Call, Tensor] = {}
    for places, coefficients in passes.chunks(rule):
        for call, derivatives in passes.differentiate(places):
            _add_weighted(totals, call, derivatives, coefficients)
    return MethodSums(at_inputs, None, totals, {})


def _integrated_gradients(passes: LinePasses, rule: Quadrature) -> MethodSums:
    """Derivatives along a line of activations, one layer after the other."""
    at_baselines, starts, start_arguments = passes.look(0.0), passes.hooks.outputs, passes.hooks.arguments
    at_inputs, ends, end_arguments = passes.look(1.0), passes.hooks.outputs, passes.hooks.arguments
    passes.find_places(at_inputs)
    products = passes.kernel_products()
    changes: dict[str, Tensor] = {}
    before, remembered = passes.remember(1), 1
    for call in passes.calls:
        passes.recall_before(before[call])
        change = at_inputs - passes.look(0.0, replaced=call, replacement=starts[call])
        changes[call.layer] = changes.get(call.layer, torch.zeros_like(change)) + change
    means: dict[Call, Tensor] = {}
    for places, coefficients in passes.chunks(rule):
        if len(places) != remembered:
            before, remembered = passes.remember(len(places)), len(places)
        for call in passes.calls:
            passes.recall_before(before[call])
            points = torch.cat([between(starts[call], ends[call], t) for t in places]).requires_grad_()
            _add_weighted(means, call, passes.replace(call, places, points), coefficients)
    totals = {call: mean * (ends[call].double() - starts[call].double()) for call, mean in means.items()}
    kernels = {
        call: product(means[call], end_arguments[call].double() - start_arguments[call].double())
        for call, product in products.items()
    }
    return MethodSums(at_inputs, at_baselines, totals, kernels, changes)


def _gradient_x_activation(passes: LinePasses, _rule: Quadrature) -> MethodSums:
    """One pass at the inputs."""
    totals: dict[Call, Tensor] = {}
    kernels: dict[Call, Tensor] = {}
    derivatives = {call: single(rows[0]) for call, rows in passes.differentiate((1.0,))}
    passes.find_places(passes.values[0][1])
    products = passes.kernel_products()
    for call, derivative in derivatives.items():
        totals[call] = derivative.double() * passes.hooks.outputs[call].detach().double()
        if call in products:
            kernels[call] = products[call](derivative, single(passes.hooks.arguments[call]))
    return MethodSums(passes.values[0][1].double(), None, totals, kernels)


def assembled(passes: LinePasses, sums: MethodSums, method: str, n_steps: int) -> ChannelAttribution:
    """Check what was found and put it together by layer."""
    passes.check_function(sums.at_inputs)
    _check_finite(sums)
    silent = [name for name in passes.layers if name not in passes.reached]
    if silent:
        raise LossError(
            f"a gradient of the output must reach every layer; none reaches {name_some(silent)}. Choose other layers, "
            "or an output that depends on them."
        )
    calls: dict[str, list[Call]] = {name: [] for name in passes.layers}
    for call in sums.totals:
        calls[call.layer].append(call)
    layers = {}
    for name, module in passes.layers.items():
        totals = tuple(sums.totals[call] for call in calls[name])
        places = tuple(passes.places[call] for call in calls[name])
        kernels = [sums.kernels[call] for call in calls[name] if call in sums.kernels]
        layers[name] = LayerAttribution(
            kept_calls=totals,
            channel_axis=channel_axis(module),
            places=places,
            completeness_error=_completeness_error(totals, places, sums.changes.get(name), passes.line.n_samples),
            kept_kernels=torch.stack(kernels).sum(0) if kernels else None,
            filter_parameter=_scored(name, module, "filter"),
            kernel_parameter=_scored(name, module, "kernel"),
        )
    return ChannelAttribution(
        attribution=passes.attribution,
        method=method,
        n_steps=n_steps,
        n_samples=passes.line.n_samples,
        n_passes=passes.n_passes,
        kept_inputs=sums.at_inputs.cpu(),
        kept_baselines=None if sums.at_baselines is None else sums.at_baselines.cpu(),
        layers=layers,
    )


def _check_finite(sums: MethodSums) -> None:
    infinite = [
        call.layer
        for group in (sums.totals, sums.kernels)
        for call, total in group.items()
        if not bool(torch.isfinite(total).all())
    ]
    if infinite:
        raise NonFiniteError(
            "the activations and their derivatives must be finite; they are not for "
            f"{name_some(dict.fromkeys(infinite))}."
        )


def _completeness_error(
    calls: Sequence[Tensor], places: Sequence[Place | None], change: Tensor | None, n_samples: int
) -> float | None:
    """Compare the sums of the attributions with what they should be, per sample if that is known."""
    if change is None:
        return None
    known = [place for place in places if place is not None]
    if change.ndim and len(known) == len(calls):
        rows = [
            place.samples_first(call, n_samples).reshape(n_samples, -1)
            for call, place in zip(calls, known, strict=True)
        ]
        total = torch.stack([row.sum(1) for row in rows]).sum(0)
        absolute = torch.stack([row.abs().sum(1) for row in rows]).sum(0)
    else:
        change = change.sum()
        total = torch.stack([call.sum() for call in calls]).sum()
        absolute = torch.stack([call.abs().sum() for call in calls]).sum()
    change = change.to(total.device)
    gap = float((total - change).abs().sum())
    scale = float(torch.maximum(change.abs(), 1e-3 * absolute).sum())
    return gap / scale if scale else 0.0


def _scored(name: str, module: nn.Module, unit: str) -> ScoredParameter | None:
    """How the weight of a layer is scored; ``None`` if it has no filters."""
    if not KernelSplit.fits(module):
        return None
    weight: Tensor = module.weight  # type: ignore[assignment]
    return ScoredParameter(unit_of(f"{name}.weight", weight, module, unit), tuple(weight.shape))


def _add_weighted(totals: dict[Call, Tensor], call: Call, derivatives: Tensor, coefficients: Sequence[float]) -> None:
    """Add a few terms of the quadrature, in float64."""
    if call not in totals:
        totals[call] = torch.zeros_like(derivatives[0], dtype=torch.float64)
    for derivative, coefficient in zip(derivatives, coefficients, strict=True):
        totals[call].add_(derivative, alpha=coefficient)


COMPUTE: dict[ChannelMethod, Callable[[LinePasses, Quadrature], MethodSums]] = {
    "conductance": _conductance,
    "internal_influence": _internal_influence,
    "integrated_gradients": _integrated_gradients,
    "gradient_x_activation": _gradient_x_activation,
}
