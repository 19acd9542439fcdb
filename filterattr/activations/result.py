"""What the passes along the line gave: the attribution of every layer, by channel, by filter and by kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from filterattr.activations.samples import Place
from filterattr.errors import SettingError, gathered, name_some
from filterattr.results.scores import FilterScores
from filterattr.units.unit import REDUCTIONS, Immutable, Reduction, ScoredParameter

ChannelMethod: TypeAlias = Literal["conductance", "internal_influence", "integrated_gradients", "gradient_x_activation"]
METHODS: tuple[ChannelMethod, ...] = get_args(ChannelMethod)


class ChannelSummary(NamedTuple):
    """One row of `ChannelAttribution.per_layer`.

    Attributes:
        name: The layer.
        n_channels: Its number of output channels.
        n_calls: How often it runs in one forward pass.
        sum: Signed attribution of the whole layer, mean over the samples.
        completeness_error: What `ChannelAttribution.completeness_errors` says of it.
    """

    name: str
    n_channels: int
    n_calls: int
    sum: float
    completeness_error: float | None


@dataclass(frozen=True, eq=False, repr=False)
class LayerAttribution:
    """What `ChannelAttribution` holds of one layer; the tensors that it returns are copies.

    Attributes:
        kept_calls: `calls` themselves, for those who only read.
        channel_axis: Which axis of it the channels are.
        places: Where the samples stand in each of them; ``None`` where that could not be found.
        completeness_error: See `ChannelAttribution.completeness_errors`.
        kept_kernels: `kernels` themselves.
        filter_parameter: How the layer's weight is scored per output channel; ``None`` for other than convolutions and
            linear layers.
        kernel_parameter: The same per kernel.
    """

    kept_calls: tuple[Tensor, ...]
    channel_axis: int
    places: tuple[Place | None, ...]
    completeness_error: float | None
    kept_kernels: Tensor | None
    filter_parameter: ScoredParameter | None
    kernel_parameter: ScoredParameter | None

    @property
    def calls(self) -> tuple[Tensor, ...]:
        """The attribution of each call in a forward pass, in the shape of what it put out, float64."""
        return tuple(call.clone() for call in self.kept_calls)

    @property
    def kernels(self) -> Tensor | None:
        """Signed attribution per sample and kernel, shape ``(N, out, in)``, or ``None``."""
        return None if self.kept_kernels is None else self.kept_kernels.clone()

    @property
    def is_clear(self) -> bool:
        """Whether it is known which numbers belong to which sample and channel."""
        return all(
            place is not None and (call.ndim == 1 or place.axis != self.channel_axis % call.ndim)
            for call, place in zip(self.kept_calls, self.places, strict=True)
        )


@dataclass(frozen=True, eq=False, repr=False)
class ChannelAttribution(Mapping[str, Tensor], Immutable):
    """The result of `ChannelAttributor.attribute`: layer name to attribution; it cannot be changed.

    ``attribution[layer]`` is a float64 tensor in the shape of the layer's output, summed over the layer's calls, on the
    layer's device. All tensors that it hands out are copies.

    Attributes:
        attribution: Name of what was computed.
        method: Name of the rule of the integral.
        n_steps: Number of steps on the path; ``"gradient_x_activation"`` has no path.
        n_samples: Number of samples N.
        n_passes: Number of forward-backward passes.
        kept_inputs: `output_inputs` itself, for those who only read.
        kept_baselines: `output_baselines` itself.
        layers: Layer name to what is known of it.
    """

    attribution: ChannelMethod
    method: str
    n_steps: int
    n_samples: int
    n_passes: int
    kept_inputs: Tensor
    kept_baselines: Tensor | None
    layers: Mapping[str, LayerAttribution]

    def __repr__(self) -> str:
        samples = f"{self.n_samples} samples, {self.n_passes} passes"
        return f"ChannelAttribution({self.attribution} of {len(self)} layers, {samples})"

    def __getitem__(self, layer: str) -> Tensor:
        first, *others = self.layers[layer].kept_calls
        shapes = sorted({tuple(call.shape) for call in (first, *others)})
        if len(shapes) > 1:
            raise SettingError(
                f"the calls of a layer must have one shape to be summed; '{layer}' puts out {name_some(shapes)}. "
                f"Look at layers['{layer}'].calls, or at channels()."
            )
        return torch.stack((first, *others)).sum(0) if others else first.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def output_inputs(self) -> Tensor:
        """The output at the inputs, float64, shape ``(N,)`` or ``()``."""
        return self.kept_inputs.clone()

    @property
    def output_baselines(self) -> Tensor | None:
        """The output at the baselines; ``None`` where the method does not need it."""
        return None if self.kept_baselines is None else self.kept_baselines.clone()

    @property
    def quadrature(self) -> str:
        """Old name of ``method``; works until version 0.3."""
        warnings.warn("quadrature is called method since version 0.2.", FutureWarning, stacklevel=2)
        return self.method

    @property
    def completeness_errors(self) -> dict[str, float | None]:
        """How far every layer is from summing to the change that it should sum to, relative to that change.

        ``|sum - change| / max(|change|, 1e-3 sum |a|)``, numerator and denominator summed over the samples. Conductance
        sums to the output at the inputs minus that at the baselines, if the layer cuts the network: nothing passes
        around it, as it does around the layers of a residual branch. Integrated gradients sum to what the output
        changes when the layer alone goes from its baseline activation to its own. ``None`` where nothing is known.
        """
        return {name: layer.completeness_error for name, layer in self.layers.items()}

    def channels(self, reduction: Reduction = "abs_of_sum") -> dict[str, Tensor]:
        r"""Reduce every layer to one score per output channel.

        Args:
            reduction: How the places :math:`p` of a channel become one number, for every sample before the mean over
                samples: ``"abs_of_sum"`` is :math:`|\sum_p a_p|`, ``"sum_of_abs"`` is :math:`\sum_p |a_p|`, ``"sum"``
                is :math:`\sum_p a_p`, which is signed.

        Returns:
            Layer name to float64 scores on the CPU, shape ``(channels,)``. Channels are the last axis of linear,
            normalisation and embedding layers, and the second axis of all others.

        Raises:
            SettingError: The reduction is unknown; or a layer has no axis of the samples, or none of the channels.
        """
        check_choice("reduction", reduction, REDUCTIONS)
        unknown = [
            f"'{name}', shape {tuple(layer.kept_calls[0].shape)}"
            for name, layer in self.layers.items()
            if not layer.is_clear
        ]
        if unknown:
            raise SettingError(
                f"the output of a layer must have an axis of the {self.n_samples} samples, the first one as a rule, "
                f"and another one of the channels; none were found for {gathered(unknown)}. Reduce these "
                "tensors yourself, choose other layers, or attribute one sample at a time."
            )
        scores = {}
        for name, layer in self.layers.items():
            values = _by_channel(layer, self.n_samples, reduction)
            scores[name] = (values.abs() if reduction == "abs_of_sum" else values).mean(0).cpu()
        return scores

    def filters(self, reduction: Reduction = "abs_of_sum") -> FilterScores:
        """The scores of `channels`, as scores of filters: to select from, or to compare with `FilterAttributor`.

        Args:
            reduction: As in `channels`.

        Returns:
            Scores per output channel of the weights of convolutions and linear layers; other layers have no filters.

        Raises:
            SettingError: The reduction is unknown, no layer has filters, or one puts out other channels than those.
        """
        channels = self.channels(reduction)
        parameters = {
            name: layer.filter_parameter for name, layer in self.layers.items() if layer.filter_parameter is not None
        }
        if not parameters:
            raise SettingError(
                f"filters need a convolution or linear layer; got {name_some(self.layers)}. Use channels()."
            )
        odd = [name for name, parameter in parameters.items() if channels[name].shape != parameter.units_shape]
        if odd:
            raise SettingError(
                f"a filter is scored by the channel that it puts out; {name_some(odd)} put out another number of "
                "channels than their weights have filters. Use channels(), or choose other layers."
            )
        return _filter_scores({name: channels[name] for name in parameters}, parameters)

    def kernels(self, reduction: Literal["abs_of_sum", "sum"] = "abs_of_sum") -> FilterScores:
        r"""Split the scores of `channels` over the input channels: one score per kernel.

        As :math:`y_o = \sum_i W_{oi} * x_i + b_o`, the signed scores of the kernels of an output channel sum to the
        channel's, except for the part of the bias, which only ``"gradient_x_activation"`` has.

        Args:
            reduction: ``"abs_of_sum"`` or ``"sum"``, taken for every sample before the mean over samples. The single
                places that ``"sum_of_abs"`` would need are never computed.

        Returns:
            Scores per kernel, at ``[o, i]`` with input channels counted inside their group.

        Raises:
            SettingError: ``attribute`` was not asked for kernels, or the reduction is unknown.
        """
        check_choice("reduction", reduction, ("abs_of_sum", "sum"))
        scores, parameters = {}, {}
        for name, layer in self.layers.items():
            if layer.kept_kernels is not None and layer.kernel_parameter is not None:
                signed = layer.kept_kernels
                scores[name] = (signed if reduction == "sum" else signed.abs()).mean(0).cpu()
                parameters[name] = layer.kernel_parameter
        if not scores:
            raise SettingError("kernels must be asked for: attribute(..., kernels=True); this attribution has none.")
        return _filter_scores(scores, parameters)

    def per_layer(self) -> list[ChannelSummary]:
        """Summarise every layer.

        Returns:
            One row per layer, in the order of the network.
        """
        return [
            ChannelSummary(
                name,
                scores.numel(),
                len(self.layers[name].kept_calls),
                float(scores.sum()),
                self.layers[name].completeness_error,
            )
            for name, scores in self.channels("sum").items()
        ]


def _by_channel(layer: LayerAttribution, n_samples: int, reduction: Reduction) -> Tensor:
    """Sum over everything but samples and channels, and over the calls: shape ``(N, channels)``."""
    parts = []
    for call, place in zip(layer.kept_calls, layer.places, strict=True):
        moved = (place or Place()).samples_first(call.abs() if reduction == "sum_of_abs" else call, n_samples)
        axis = (place or Place()).moved(layer.channel_axis)
        values = moved.movedim(axis, 1) if moved.ndim > 1 else moved.unsqueeze(1)
        by_row = values.flatten(2).sum(2) if values.ndim > 2 else values
        parts.append(by_row.reshape(n_samples, -1, by_row.shape[1]).sum(1))
    return torch.stack(parts).sum(0)


def _filter_scores(scores: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> FilterScores:
    """Name scores after the weights they belong to."""
    names = {layer: f"{layer}.weight" if layer else "weight" for layer in scores}
    return FilterScores(
        {names[layer]: tensor for layer, tensor in scores.items()},
        {names[layer]: parameters[layer] for layer in scores},
    )


def check_choice(what: str, chosen: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of those that are known."""
    if chosen not in choices:
        raise SettingError(f"{what} must be one of {', '.join(choices)}; got {chosen!r}.")
