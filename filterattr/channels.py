r"""What every channel of every layer contributes along a straight line of inputs, in one sweep over that line.

.. math:: x(t) = x' + t\,(x - x'), \qquad
   C_y = \int_0^1 \frac{\partial F(x(t))}{\partial y} \frac{dy(x(t))}{dt}\, dt

With :math:`y` the output of a layer that is the conductance of it; the other methods are in `ChannelAttributor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from filterattr.engine.claim import Claim
from filterattr.engine.modes import GradientMode
from filterattr.engine.pathsums import KernelProduct, StepSum, single
from filterattr.engine.quadrature import Quadrature
from filterattr.engine.randomness import RandomState, seed_all
from filterattr.engine.slots import Slots
from filterattr.engine.states import unwrap_model
from filterattr.engine.taps import Call, Recall, Taps, cuts_graph
from filterattr.engine.units import unit_of
from filterattr.errors import (
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
    UnsupportedModelError,
    name_some,
)
from filterattr.result import REDUCTIONS, FilterScores, Reduction, ScoredParameter

Tensors: TypeAlias = Tensor | Sequence[Tensor]
Layers: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool]
Output: TypeAlias = Callable[[Any], Tensor]
Forward: TypeAlias = Callable[..., Any]
Method: TypeAlias = Literal["conductance", "internal_influence", "integrated_gradients", "gradient_x_activation"]
See: TypeAlias = Callable[[Call, Tensor, Tensor | None], None]
METHODS: tuple[Method, ...] = get_args(Method)

_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding)


class ChannelAttributor:
    r"""Attribute a change of a network's output to the channels of all its layers at once.

    One sweep along the input path serves every layer: forward hooks see all layers in each pass, and one backward pass
    gives all derivatives. Captum's layer methods, whose numbers these are, take one call and so one sweep per layer.
    With :math:`F` the output, :math:`y` what a layer puts out, :math:`x(t) = x' + t\,(x - x')` and nodes :math:`t_j`
    with coefficients :math:`c_j`, the methods are, for every element of :math:`y`:

    ``"conductance"``
        :math:`\sum_j \partial_y F(x(t_j))\,[y(x(t_{j+1})) - y(x(t_j))]` over ``n_steps + 1`` nodes. It sums to
        :math:`F(x) - F(x')` over a layer through which everything passes. This is Captum's left rule: its error
        falls with ``1 / n_steps``, and Gauss nodes leave out both ends. With ``quadrature="riemann_trapezoid"`` it is
        the trapezoid rule with the mean of both derivatives, whose error falls with ``1 / n_steps**2`` (Captum uses its
        left rule there too).
    ``"internal_influence"``
        :math:`\sum_j c_j\, \partial_y F(x(t_j))`, the mean derivative.
    ``"integrated_gradients"``
        :math:`[y(x) - y(x')] \sum_j c_j\, \partial_y F(x \,|\, y = y(x') + t_j\,[y(x) - y(x')])`: the line is drawn
        between the activations of the layer, and everything that does not pass through the layer stays at :math:`x`.
        Each layer has a line of its own, so **no sweep can serve two layers**: it costs ``n_steps`` passes per layer,
        from which only the convolutions and matrix products in front of the layer are saved.
    ``"gradient_x_activation"``
        :math:`y(x)\, \partial_y F(x)`, a single pass.

    The model is untouched afterwards, whatever happens: it computes with its own weights, which get no gradients, and
    buffers that it writes to are copies. Dropout draws the same at every node. A layer that runs several times in one
    forward pass gets the sum over its calls (Captum reports the last call only). Activations may work in place.

    Args:
        model: Any module. Data-parallel wrappers and `torch.compile` are looked through.
        layers: Which layers: a module name or glob, several, or a predicate on name and module. The default is all
            convolutions and `torch.nn.Linear`. Each must put out one floating tensor whose first axis is the samples.

    Raises:
        SettingError: A name or glob fits no module, or no layer is left.
        UnsupportedModelError: The model is scripted, sharded, quantized or has no weights yet.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3))
        >>> clean, degraded, reference = torch.rand(3, 1, 1, 12, 12)
        >>> attribution = ChannelAttributor(model).attribute(
        ...     degraded, clean, lambda restored: (restored - reference[..., 2:-2, 2:-2]).square().sum((1, 2, 3))
        ... )
        >>> attribution
        ChannelAttribution(conductance of 2 layers, 1 samples, 51 passes)
        >>> attribution["0"].shape, attribution.channels()["0"].shape
        (torch.Size([1, 4, 10, 10]), torch.Size([4]))

    References:
        Dhamdhere, Sundararajan and Yan, "How Important Is a Neuron?", ICLR 2019 (conductance); Leino et al.,
        "Influence-Directed Explanations for Deep Convolutional Networks", ITC 2018 (internal influence); Sundararajan,
        Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (integrated gradients).
    """

    def __init__(self, model: nn.Module, layers: Layers | None = None) -> None:
        self.model = unwrap_model(model)
        Slots(self.model)
        self.layers = _select_layers(self.model, layers)

    def attribute(
        self,
        inputs: Tensors,
        baselines: Tensors | None,
        output: Output,
        *,
        method: Method = "conductance",
        n_steps: int = 50,
        quadrature: str = "gausslegendre",
        kernels: bool = False,
        batch_nodes: int = 1,
        forward: Forward | None = None,
    ) -> ChannelAttribution:
        """Attribute the output at ``inputs``, against that at ``baselines``, to the channels of all layers.

        Args:
            inputs: What the model is given: a tensor, or several for several arguments; the first axis is the samples.
            baselines: Where the path starts, in the shapes of ``inputs``. An argument that stays the same, such as a
                condition or an index, is given twice. ``"gradient_x_activation"`` has no path: ``None``.
            output: A function of what the model returns, to one number per sample, shape ``(N,)``, or to one number for
                all: a logit (``lambda logits: logits[:, 3]``), or a loss of an image (``lambda restored: (restored -
                reference).square().sum((1, 2, 3))``). Prefer sums over samples to means: attributions are linear in
                the output.
            method: ``"conductance"``, ``"internal_influence"``, ``"integrated_gradients"`` or
                ``"gradient_x_activation"``.
            n_steps: Steps on the path, each one forward-backward pass (conductance needs one more).
            quadrature: Rule for the nodes, as in `FilterAttributor.attribute`.
            kernels: Also split the channels of convolutions and linear layers over their input channels; costs a
                gradient of the weights per layer and node. Internal influence has no such split.
            batch_nodes: How many nodes to compute in one pass. More use a GPU better with small images, and need as
                much more memory. All outputs must have the samples first; dropout and batch statistics then differ.
            forward: How to call the model where ``model(*inputs)`` is not enough: ``forward(model, *inputs)`` returns
                what ``output`` is given, for example ``lambda model, image: model(image, scale=2)["restored"]``.

        Returns:
            The attribution.

        Raises:
            SettingError: A method, a number, the inputs or baselines cannot be used.
            UnsupportedModelError: A layer did not run, puts out something else than one floating tensor, or has no
                kernels; all of them are named.
            LossError: The output is no real number per sample, or no gradient of it reaches a layer.
            NonFiniteError: An output or attribution is infinite or not a number.
            ModelChangedError: The forward pass replaces weights, or runs its layers differently from node to node.

        Example:
            >>> layer = nn.Linear(3, 2)
            >>> found = ChannelAttributor(layer).attribute(
            ...     torch.ones(1, 3),
            ...     torch.zeros(1, 3),
            ...     lambda scores: scores[:, 1],
            ...     quadrature="riemann_trapezoid",
            ...     kernels=True,
            ... )
            >>> torch.testing.assert_close(found.kernels("sum")["weight"][1].float(), layer.weight[1].detach())
        """
        _check_call(method, output, forward, batch_nodes)
        if baselines is None and method != "gradient_x_activation":
            raise SettingError(f"method={method!r} needs baselines, where its path starts; got None.")
        line = _Line(inputs, baselines)
        if batch_nodes > 1 and any(argument.shape[:1] != (line.n_samples,) for argument in line.inputs):
            raise SettingError(
                f"batch_nodes above 1 needs {line.n_samples} samples first in all inputs; got shapes "
                f"{name_some(tuple(argument.shape) for argument in line.inputs)}. Use batch_nodes=1."
            )
        if kernels:
            self._check_kernels(method)
        rule = _rule(method, quadrature, n_steps)
        sweep = _Sweep(self, line, output, forward or _call, batch_nodes, method=method, kernels=kernels)
        # threads that Python starts would otherwise split the work differently than the main thread does
        torch.set_num_threads(torch.get_num_threads())
        try:
            try:  # an interrupt in the first finally leaves the second one to do its work
                sweep.enter()
                return _result(sweep, _COMPUTE[method](sweep, rule), quadrature, n_steps)
            finally:
                sweep.leave()
        finally:
            sweep.leave()

    def _check_kernels(self, method: Method) -> None:
        if method == "internal_influence":
            raise SettingError(
                "kernels=True needs a method that multiplies with activations; internal_influence does not."
            )
        if not any(map(KernelProduct.fits, self.layers.values())):
            raise SettingError(
                f"kernels=True needs convolutions or linear layers; got {name_some(self.layers)}, without kernels."
            )


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
    """What `ChannelAttribution` knows of one layer.

    Attributes:
        calls: The attribution of each call in a forward pass, in the shape of what it put out, float64.
        channel_axis: Which axis of it the channels are.
        completeness_error: See `ChannelAttribution.completeness_errors`.
        kernels: Signed attribution per sample and kernel, shape ``(N, out, in)``, or ``None``.
        filter_parameter: How the layer's weight is scored per output channel; ``None`` for other than convolutions and
            linear layers.
        kernel_parameter: The same per kernel.
    """

    calls: tuple[Tensor, ...]
    channel_axis: int
    completeness_error: float | None
    kernels: Tensor | None
    filter_parameter: ScoredParameter | None
    kernel_parameter: ScoredParameter | None


@dataclass(frozen=True, eq=False, repr=False)
class ChannelAttribution(Mapping[str, Tensor]):
    """The result of `ChannelAttributor.attribute`: layer name to attribution; it cannot be changed.

    ``attribution[layer]`` is a float64 tensor in the shape of the layer's output, summed over the layer's calls, on the
    layer's device.

    Attributes:
        method: Name of the method.
        quadrature: Name of the rule for the nodes.
        n_steps: Number of steps on the path; ``"gradient_x_activation"`` has no path.
        n_samples: Number of samples N.
        n_passes: Number of forward-backward passes.
        output_inputs: The output at the inputs, float64, shape ``(N,)`` or ``()``.
        output_baselines: The output at the baselines; ``None`` where the method does not need it.
        layers: Layer name to what is known of it.
    """

    method: Method
    quadrature: str
    n_steps: int
    n_samples: int
    n_passes: int
    output_inputs: Tensor
    output_baselines: Tensor | None
    layers: Mapping[str, LayerAttribution]

    def __repr__(self) -> str:
        return (
            f"ChannelAttribution({self.method} of {len(self)} layers, {self.n_samples} samples, {self.n_passes} passes)"
        )

    def __getitem__(self, layer: str) -> Tensor:
        first, *others = self.layers[layer].calls
        shapes = sorted({tuple(call.shape) for call in (first, *others)})
        if len(shapes) > 1:
            raise SettingError(
                f"the calls of a layer must have one shape to be summed; '{layer}' puts out {name_some(shapes)}. "
                f"Look at layers['{layer}'].calls, or at channels()."
            )
        return torch.stack((first, *others)).sum(0) if others else first

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

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
            SettingError: The reduction is unknown, or the first axis of a layer is not the samples.
        """
        _check_choice("reduction", reduction, REDUCTIONS)
        mixed = [name for name, layer in self.layers.items() if any(len(call) % self.n_samples for call in layer.calls)]
        if mixed:
            raise SettingError(
                f"the first axis of a layer's output must be the {self.n_samples} samples; it is not for "
                f"{name_some(mixed)}. Reduce these tensors yourself."
            )
        scores = {}
        for name, layer in self.layers.items():
            calls = [call.abs() for call in layer.calls] if reduction == "sum_of_abs" else layer.calls
            values = _by_channel(calls, layer.channel_axis, self.n_samples)
            scores[name] = (values.abs() if reduction == "abs_of_sum" else values).mean(0).cpu()
        return scores

    def filters(self, reduction: Reduction = "abs_of_sum") -> FilterScores:
        """The scores of `channels`, as scores of filters: to select from, or to compare with `FilterAttributor`.

        Args:
            reduction: As in `channels`.

        Returns:
            Scores per output channel of the weights of convolutions and linear layers; other layers have no filters.

        Raises:
            SettingError: The reduction is unknown, or no layer has filters.
        """
        channels = self.channels(reduction)
        parameters = {
            name: layer.filter_parameter for name, layer in self.layers.items() if layer.filter_parameter is not None
        }
        if not parameters:
            raise SettingError(
                f"filters need a convolution or linear layer; got {name_some(self.layers)}. Use channels()."
            )
        return _filter_scores({name: channels[name] for name in parameters}, parameters)

    def kernels(self, reduction: Literal["abs_of_sum", "sum"] = "abs_of_sum") -> FilterScores:
        r"""Split the scores of `channels` over the input channels: one score per kernel.

        As :math:`y_o = \sum_i W_{oi} * x_i + b_o`, the signed scores of the kernels of an output channel sum to the
        channel's, but for the part of the bias, which only ``"gradient_x_activation"`` has.

        Args:
            reduction: ``"abs_of_sum"`` or ``"sum"``, taken for every sample before the mean over samples. The single
                places that ``"sum_of_abs"`` would need are never computed.

        Returns:
            Scores per kernel, at ``[o, i]`` with input channels counted inside their group.

        Raises:
            SettingError: ``attribute`` was not asked for kernels, or the reduction is unknown.
        """
        _check_choice("reduction", reduction, ("abs_of_sum", "sum"))
        scores, parameters = {}, {}
        for name, layer in self.layers.items():
            if layer.kernels is not None and layer.kernel_parameter is not None:
                signed = layer.kernels
                scores[name] = (signed if reduction == "sum" else signed.abs()).mean(0).cpu()
                parameters[name] = layer.kernel_parameter
        if not scores:
            raise SettingError("kernels must be asked for: attribute(..., kernels=True); this attribution has none.")
        return _filter_scores(scores, parameters)

    def per_layer(self) -> list[ChannelSummary]:
        """Summarise every layer.

        Returns:
            One row a layer, in the order of the network.
        """
        return [
            ChannelSummary(
                name,
                scores.numel(),
                len(self.layers[name].calls),
                float(scores.sum()),
                self.layers[name].completeness_error,
            )
            for name, scores in self.channels("sum").items()
        ]


class _Line:
    """The straight line of inputs from the baselines to the inputs; arguments that stay the same are only copied."""

    def __init__(self, inputs: Tensors, baselines: Tensors | None) -> None:
        self.inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        whole = self.inputs if baselines is None else baselines
        self.baselines = (whole,) if isinstance(whole, Tensor) else tuple(whole)
        findings = list(_line_problems(self.inputs, self.baselines))
        if findings:
            raise SettingError(
                "inputs and baselines must be the same number of tensors, of equal shapes: "
                + "; ".join(findings)
                + ". Use expand_as, or give an argument that stays the same twice."
            )
        self.moves = tuple(not _equal(*pair) for pair in zip(self.inputs, self.baselines, strict=True))
        self.n_samples = len(self.inputs[0])

    def points(self, places: Sequence[float]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return what the model is given at some places, one after the other along the first axis, and the leaves."""
        arguments, leaves = [], []
        for start, end, moves in zip(self.baselines, self.inputs, self.moves, strict=True):
            rows = [_between(start, end, t) for t in places]
            argument = torch.cat(rows) if len(rows) > 1 else rows[0]
            if moves:
                leaves.append(argument.requires_grad_())
                argument = argument.clone()  # models may work in place on what they are given
            arguments.append(argument)
        return tuple(arguments), leaves


class _Sweep:
    """One call of `ChannelAttributor.attribute`: what it works with, and how it runs the model."""

    def __init__(
        self,
        attributor: ChannelAttributor,
        line: _Line,
        output: Output,
        forward: Forward,
        batch_nodes: int,
        *,
        method: Method,
        kernels: bool,
    ) -> None:
        self.model = attributor.model
        self.layers = attributor.layers
        self.line = line
        self.output = output
        self.forward = forward
        self.batch_nodes = batch_nodes
        self.method = method
        self.split = {name for name, layer in self.layers.items() if kernels and KernelProduct.fits(layer)}
        self.taps = Taps(self.layers, with_arguments=bool(self.split))
        self.recall: Recall | None = None
        self.slots: Slots | None = None
        self.claim, self.mode, self.random = Claim(self.model), GradientMode(), RandomState()
        self.seed = self.random.derive_seed()
        # hooks do not fire in compiled submodules, unless these are told to run as they are
        self.has_compiled = any("_orig_mod" in module._modules for module in self.model.modules())
        self.frozen: dict[str, Tensor] = {}
        self.calls: dict[Call, tuple[int, ...]] = {}
        self.reached: set[str] = set()
        self.cutting: set[str] | None = None
        self.values: list[tuple[float, Tensor]] = []
        self.n_checked = 0
        self.n_passes = 0

    def enter(self) -> None:
        """Take hold of the model; `leave` ends what is begun here."""
        self.claim.take()
        self.mode.enter()
        self.slots = Slots(self.model)
        # the same memory, but no gradient of the weights is ever computed, nor kept for
        self.frozen = {
            name: nn.Parameter(_usable(parameter), requires_grad=False)
            for name, parameter in self.slots.parameters.items()
        }
        self.slots.put(self.frozen)
        self.taps.attach()

    def leave(self) -> None:
        """Give the model back; doing it twice does no harm."""
        self.forget()
        self.taps.remove()
        if self.slots is not None:
            self.slots.restore()
        self.random.restore()
        self.mode.restore()
        self.claim.release()

    def check_values(self) -> None:
        """Make sure that the outputs since the last check are finite; nobody waits for a device inside the sweep."""
        for t, value in self.values[self.n_checked :]:
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"the output must be finite along the whole path; got {value.tolist()} at t = {t:.4g}."
                )
        self.n_checked = len(self.values)

    def chunks(self, rule: Quadrature) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
        """Nodes that share a pass, and their coefficients."""
        for start in range(0, len(rule.nodes), self.batch_nodes):
            chosen = slice(start, start + self.batch_nodes)
            yield rule.nodes[chosen], rule.coefficients[chosen]

    def look(self, t: float, *, replaced: Call | None = None, replacement: Tensor | None = None) -> Tensor:
        """Return the output at one place, without derivatives: shape ``(N,)`` or ``()``."""
        with torch.no_grad():
            value = self._forward((t,), replaced=replaced, replacement=replacement)[0][0].to(torch.float64)
        self.check_values()  # before the long way, not after it
        return value

    def differentiate(self, places: Sequence[float], see: See = lambda *_: None) -> Iterator[tuple[Call, Tensor]]:
        """Run the model at some places; yield each call and the derivatives of what it puts out, one row a place.

        Args:
            places: Where.
            see: Called with each call, what it put out and what it was given, one row a place, before any derivative.
        """

        def seen(call: Call) -> None:
            argument = self.taps.arguments.get(call)
            rows = None if argument is None else _rows(argument, len(places))
            see(call, _rows(self.taps.outputs[call].detach(), len(places)), rows)

        values, leaves = self._forward(places, seen)
        if self.cutting is None and self.method == "conductance":
            self.cutting = self._find_cutting(values, leaves)
        yield from self._backward(values, len(places))

    def remember(self, count: int) -> dict[Call, int]:
        """Run the model at the inputs and remember what is costly; return how much of it comes before each call."""
        self.forget()
        self.recall = recall = Recall(self.model)
        recall.attach()
        before: dict[Call, int] = {}
        with torch.no_grad():
            self._forward((1.0,) * count, lambda call: before.__setitem__(call, recall.count))
        return before

    def recall_before(self, count: int) -> None:
        """Let the next pass return what is remembered of so many costly functions, instead of computing it."""
        if self.recall is not None:
            self.recall.rewind(skipped=count)

    def forget(self) -> None:
        """Compute everything again; doing it twice does no harm."""
        if self.recall is not None:
            self.recall.remove()

    def kernel_products(self) -> dict[Call, KernelProduct]:
        """The products that split the calls of the last pass, if kernels are wanted and the layers have them."""
        products: dict[Call, KernelProduct] = {}
        foreign: list[str] = []
        for call in self.calls:
            if call.layer not in self.split:
                continue
            products[call] = product = KernelProduct(self.layers[call.layer], self.line.n_samples)
            argument = self.taps.arguments.get(call)
            if argument is None or not product.explains(argument, self.taps.outputs[call].detach()):
                foreign.append(call.layer)
        if foreign:
            raise UnsupportedModelError(
                "kernels=True needs layers that put out what their weight and bias make of their first argument; "
                f"{name_some(dict.fromkeys(foreign))} put out something else. Leave these layers out."
            )
        return products

    def replace(self, call: Call, places: Sequence[float], replacement: Tensor) -> Tensor:
        """Let one call put out something else at the inputs; return the derivatives, one row a place."""
        values, _ = self._forward(places, replaced=call, replacement=replacement)
        return next(derivatives for _, derivatives in self._backward(values, len(places)))

    def _forward(
        self,
        places: Sequence[float],
        seen: Callable[[Call], None] = lambda _: None,
        *,
        replaced: Call | None = None,
        replacement: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the model; return the output, shape ``(places, N)`` or ``(places,)``, and the leaves."""
        if self.slots is None:
            raise RuntimeError("enter() comes first.")
        arguments, leaves = self.line.points((1.0,) * len(places) if replaced else places)
        self.slots.put({**self.frozen, **{name: buffer.clone() for name, buffer in self.slots.buffers.items()}})
        seed_all(self.seed)
        self.taps.listen(seen, replaced=replaced, replacement=replacement)
        with torch.compiler.set_stance("force_eager") if self.has_compiled else nullcontext():
            returned = self.forward(self.model, *arguments)
        self.taps.stop()
        self.taps.check()
        self.slots.check()
        self._check_calls(len(places), replaced)
        parts = [returned] if len(places) == 1 else _parts(returned, len(places))
        values = torch.stack([_checked_output(self.output(part), self.line.n_samples) for part in parts])
        self.values.extend(zip(places, values.detach(), strict=True))
        if torch.is_grad_enabled() and replaced is None:
            self._check_attached(values)
        return values, leaves

    def _check_attached(self, values: Tensor) -> None:
        detached = [call.layer for call, output in self.taps.outputs.items() if not output.requires_grad]
        if detached or not values.requires_grad:
            raise LossError(
                f"the output must depend on the layers; no derivative leads to {name_some(detached or self.layers)}. "
                "The model and output() must work without no_grad, inference_mode, detach or reentrant checkpointing."
            )

    def _backward(self, values: Tensor, count: int) -> Iterator[tuple[Call, Tensor]]:
        outputs = self.taps.outputs
        self.n_passes += count
        derivatives: Sequence[Tensor | None] = [None] * len(outputs)
        if values.requires_grad:
            derivatives = torch.autograd.grad(
                values, list(outputs.values()), torch.ones_like(values), allow_unused=True
            )
        for (call, output), derivative in zip(outputs.items(), derivatives, strict=True):
            if derivative is not None:
                self.reached.add(call.layer)
            yield call, _rows(torch.zeros_like(output) if derivative is None else derivative, count)

    def _find_cutting(self, values: Tensor, leaves: list[Tensor]) -> set[str]:
        by_layer: dict[str, list[Tensor]] = {}
        for call, output in self.taps.outputs.items():
            by_layer.setdefault(call.layer, []).append(output)
        return {name for name, outputs in by_layer.items() if cuts_graph(values, leaves, outputs)}

    def _check_calls(self, count: int, replaced: Call | None) -> None:
        """Every pass must run the same layers as often as the first one did, and with the same shapes."""
        found = {call: tuple(output.shape) for call, output in self.taps.outputs.items()}
        self.calls = self.calls or found
        expected = {
            call: (count * rows, *others)
            for call, (rows, *others) in self.calls.items()
            if replaced is None or call == replaced
        }
        if found != expected:
            layers = [call.layer for call in {**expected, **found} if found.get(call) != expected.get(call)]
            raise ModelChangedError(
                "the model must run its layers in the same way at every place of the path; it does not for "
                f"{name_some(dict.fromkeys(layers))}. Choose other layers"
                + (
                    ", or batch_nodes=1: nodes in one pass need layers that put out the samples first."
                    if count > 1
                    else "."
                )
            )


@dataclass
class _Found:
    """What a method found by call, and the changes of the output that layers should sum to."""

    at_inputs: Tensor
    at_baselines: Tensor | None
    totals: dict[Call, Tensor]
    kernels: dict[Call, Tensor]
    changes: dict[str, Tensor] = field(default_factory=dict)


def _conductance(sweep: _Sweep, rule: Quadrature) -> _Found:
    """Derivatives times steps of the activations."""
    at_baselines, at_inputs = sweep.look(0.0), sweep.look(1.0)
    late = 0.5 if rule.method == "riemann_trapezoid" else 0.0
    sums = {call: StepSum(torch.mul, late) for call in sweep.calls}
    splits = {call: StepSum(product, late) for call, product in sweep.kernel_products().items()}

    def see(call: Call, output: Tensor, argument: Tensor | None) -> None:
        sums[call].see(output)
        if call in splits and argument is not None:
            splits[call].see(argument)

    for places, _ in sweep.chunks(rule):
        for call, derivatives in sweep.differentiate(places, see):
            sums[call].take(derivatives)
            if call in splits:
                splits[call].take(derivatives)
    changes = dict.fromkeys(sweep.cutting or (), at_inputs - at_baselines)
    totals, kernels = ({call: each.total for call, each in group.items()} for group in (sums, splits))
    return _Found(at_inputs, at_baselines, totals, kernels, changes)


def _internal_influence(sweep: _Sweep, rule: Quadrature) -> _Found:
    """The mean derivative."""
    at_inputs = sweep.look(1.0)
    totals: dict[Call, Tensor] = {}
    for places, coefficients in sweep.chunks(rule):
        for call, derivatives in sweep.differentiate(places):
            _add_weighted(totals, call, derivatives, coefficients)
    return _Found(at_inputs, None, totals, {})


def _integrated_gradients(sweep: _Sweep, rule: Quadrature) -> _Found:
    """Derivatives along a line of activations, one layer after the other."""
    at_baselines, starts, start_arguments = sweep.look(0.0), sweep.taps.outputs, sweep.taps.arguments
    at_inputs, ends, end_arguments = sweep.look(1.0), sweep.taps.outputs, sweep.taps.arguments
    products = sweep.kernel_products()
    changes: dict[str, Tensor] = {}
    before, remembered = sweep.remember(1), 1
    for call in sweep.calls:
        sweep.recall_before(before[call])
        change = at_inputs - sweep.look(0.0, replaced=call, replacement=starts[call])
        changes[call.layer] = changes.get(call.layer, torch.zeros_like(change)) + change
    means: dict[Call, Tensor] = {}
    for places, coefficients in sweep.chunks(rule):
        if len(places) != remembered:
            before, remembered = sweep.remember(len(places)), len(places)
        for call in sweep.calls:
            sweep.recall_before(before[call])
            points = torch.cat([_between(starts[call], ends[call], t) for t in places]).requires_grad_()
            _add_weighted(means, call, sweep.replace(call, places, points), coefficients)
    totals = {call: mean * (ends[call].double() - starts[call].double()) for call, mean in means.items()}
    kernels = {
        call: product(means[call], end_arguments[call].double() - start_arguments[call].double())
        for call, product in products.items()
    }
    return _Found(at_inputs, at_baselines, totals, kernels, changes)


def _gradient_x_activation(sweep: _Sweep, _rule: Quadrature) -> _Found:
    """One pass at the inputs."""
    totals: dict[Call, Tensor] = {}
    kernels: dict[Call, Tensor] = {}
    derivatives = {call: single(rows[0]) for call, rows in sweep.differentiate((1.0,))}
    products = sweep.kernel_products()
    for call, derivative in derivatives.items():
        totals[call] = derivative.double() * sweep.taps.outputs[call].detach().double()
        if call in products:
            kernels[call] = products[call](derivative, single(sweep.taps.arguments[call]))
    return _Found(sweep.values[0][1].double(), None, totals, kernels)


_COMPUTE: dict[Method, Callable[[_Sweep, Quadrature], _Found]] = {
    "conductance": _conductance,
    "internal_influence": _internal_influence,
    "integrated_gradients": _integrated_gradients,
    "gradient_x_activation": _gradient_x_activation,
}


def _result(sweep: _Sweep, found: _Found, quadrature: str, n_steps: int) -> ChannelAttribution:
    """Check what was found and put it together by layer."""
    sweep.check_values()
    _check_finite(found)
    silent = [name for name in sweep.layers if name not in sweep.reached]
    if silent:
        raise LossError(
            f"a gradient of the output must reach every layer; none reaches {name_some(silent)}. Choose other layers, "
            "or an output that depends on them."
        )
    layers = {}
    for name, module in sweep.layers.items():
        calls = tuple(total for call, total in found.totals.items() if call.layer == name)
        kernels = [kernels for call, kernels in found.kernels.items() if call.layer == name]
        layers[name] = LayerAttribution(
            calls=calls,
            channel_axis=_channel_axis(module),
            completeness_error=_completeness_error(calls, found.changes.get(name), sweep.line.n_samples),
            kernels=torch.stack(kernels).sum(0) if kernels else None,
            filter_parameter=_scored(name, module, "filter"),
            kernel_parameter=_scored(name, module, "kernel"),
        )
    return ChannelAttribution(
        method=sweep.method,
        quadrature=quadrature,
        n_steps=n_steps,
        n_samples=sweep.line.n_samples,
        n_passes=sweep.n_passes,
        output_inputs=found.at_inputs.cpu(),
        output_baselines=None if found.at_baselines is None else found.at_baselines.cpu(),
        layers=layers,
    )


def _check_finite(found: _Found) -> None:
    infinite = [
        call.layer
        for group in (found.totals, found.kernels)
        for call, total in group.items()
        if not bool(torch.isfinite(total).all())
    ]
    if infinite:
        raise NonFiniteError(
            "the activations and their derivatives must be finite; they are not for "
            f"{name_some(dict.fromkeys(infinite))}."
        )


def _completeness_error(calls: Sequence[Tensor], change: Tensor | None, n_samples: int) -> float | None:
    """Compare the sums of the attributions with what they should be, per sample if that is known."""
    if change is None:
        return None
    if change.ndim and all(len(call) % n_samples == 0 for call in calls):
        rows = [call.reshape(n_samples, -1) for call in calls]
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


def _by_channel(calls: Sequence[Tensor], axis: int, n_samples: int) -> Tensor:
    """Sum over everything but samples and channels, and over the calls: shape ``(N, channels)``."""
    parts = []
    for call in calls:
        values = call.movedim(axis, 1) if call.ndim > 1 else call.unsqueeze(1)
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


def _scored(name: str, module: nn.Module, unit: str) -> ScoredParameter | None:
    """How the weight of a layer is scored; ``None`` if it has no filters."""
    if not KernelProduct.fits(module):
        return None
    weight: Tensor = module.weight  # type: ignore[assignment]
    return ScoredParameter(unit_of(f"{name}.weight", weight, module, unit), tuple(weight.shape))


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, _CHANNELS_LAST) else 1


def _add_weighted(totals: dict[Call, Tensor], call: Call, derivatives: Tensor, coefficients: Sequence[float]) -> None:
    """Add a few terms of the quadrature, in float64."""
    if call not in totals:
        totals[call] = torch.zeros_like(derivatives[0], dtype=torch.float64)
    for derivative, coefficient in zip(derivatives, coefficients, strict=True):
        totals[call].add_(derivative, alpha=coefficient)


def _rows(tensor: Tensor, count: int) -> Tensor:
    """Tell the nodes of a pass apart: shape ``(count, ...)``."""
    if len(tensor) % count:
        raise SettingError(
            f"batch_nodes above 1 needs layers that are given and put out the samples first; got shape "
            f"{tuple(tensor.shape)} for {count} nodes. Use batch_nodes=1."
        )
    return tensor.reshape(count, -1, *tensor.shape[1:])


def _between(start: Tensor, end: Tensor, t: float) -> Tensor:
    """A new tensor on the line: exact copies at 0 and 1, and at least single precision in between.

    In single and double precision it is rounded as in Captum. Where an activation has a kink, the last bit decides on
    which side of it a node lies, and single numbers could not be compared otherwise.
    """
    if t in (0.0, 1.0) or not end.is_floating_point():
        return (start if t == 0.0 else end).detach().clone()
    near, far = single(start.detach()), single(end.detach())
    return (near + t * (far - near)).to(end.dtype)


def _usable(parameter: Tensor) -> Tensor:
    """The same memory, unless it was made in inference mode: autograd cannot keep that."""
    return parameter.detach().clone() if parameter.is_inference() else parameter.detach()


def _call(model: nn.Module, *inputs: Tensor) -> Any:
    return model(*inputs)


def _parts(returned: Any, count: int) -> list[Any]:
    """Split what a model returned for several nodes into what it would return for each."""
    if isinstance(returned, Tensor) and returned.ndim and len(returned) % count == 0:
        size = len(returned) // count
        return [returned[j * size : (j + 1) * size] for j in range(count)]
    if isinstance(returned, tuple | list):
        return [type(returned)(part) for part in zip(*(_parts(value, count) for value in returned), strict=True)]
    if type(returned) is dict:
        by_name = {name: _parts(value, count) for name, value in returned.items()}
        return [{name: parts[j] for name, parts in by_name.items()} for j in range(count)]
    found = f"shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise SettingError(
        f"batch_nodes above 1 needs a model that returns tensors with the samples first, or tuples, lists or dicts of "
        f"them; got {found} for {count} nodes. Use batch_nodes=1, or return a tensor with forward=."
    )


def _checked_output(value: object, n_samples: int) -> Tensor:
    """Refuse everything but one real number per sample, or one for all."""
    if not isinstance(value, Tensor):
        raise LossError(
            f"output must return a tensor; got {type(value).__name__}. Return the tensor itself, not .item()."
        )
    if tuple(value.shape) not in ((), (n_samples,)):
        raise LossError(
            f"output must return one number per sample, shape ({n_samples},), or one for all, shape (); got shape "
            f"{tuple(value.shape)}. Choose a class, or sum over the other axes."
        )
    if not value.is_floating_point():
        raise LossError(f"output must be real and floating; got {value.dtype}.")
    return value


def _check_call(method: str, output: object, forward: object, batch_nodes: object) -> None:
    """Check before any work what can be checked."""
    _check_choice("method", method, METHODS)
    if not callable(output):
        raise LossError(f"output must be a function of what the model returns; got {type(output).__name__}.")
    if forward is not None and not callable(forward):
        raise SettingError(f"forward must be a function of the model and its inputs; got {type(forward).__name__}.")
    if isinstance(batch_nodes, bool) or not isinstance(batch_nodes, int) or batch_nodes < 1:
        raise SettingError(f"batch_nodes must be a whole number of at least 1; got {batch_nodes!r}.")


def _check_choice(what: str, chosen: str, choices: Sequence[str]) -> None:
    if chosen not in choices:
        raise SettingError(f"{what} must be one of {', '.join(choices)}; got {chosen!r}.")


def _rule(method: Method, quadrature: str, n_steps: int) -> Quadrature:
    """The nodes; conductance needs one more than it has steps."""
    extra = method == "conductance" and isinstance(n_steps, int) and n_steps > 0
    return Quadrature.rule(quadrature, n_steps + 1 if extra else n_steps)


def _line_problems(inputs: Sequence[object], baselines: Sequence[object]) -> Iterator[str]:
    """Find everything that is wrong with the ends of the path."""
    if len(inputs) != len(baselines) or not inputs:
        yield f"there are {len(inputs)} inputs and {len(baselines)} baselines"
        return
    for place, (end, start) in enumerate(zip(inputs, baselines, strict=True)):
        if not isinstance(end, Tensor) or not isinstance(start, Tensor):
            yield f"number {place} is {type(end).__name__} and {type(start).__name__}"
        elif end.shape != start.shape or end.dtype != start.dtype or end.device != start.device:
            yield (
                f"number {place} has shape {tuple(end.shape)} ({end.dtype}, {end.device}) and "
                f"{tuple(start.shape)} ({start.dtype}, {start.device})"
            )
        elif not end.is_floating_point() and not torch.equal(end, start):
            yield f"number {place} is {end.dtype} and would have to move"
        elif place == 0 and (end.ndim == 0 or len(end) == 0):
            yield f"number 0 has shape {tuple(end.shape)}, without samples"


def _select_layers(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """Find the chosen layers, each under its first name, in the order of the network."""
    globs = (layers,) if isinstance(layers, str) else () if layers is None or callable(layers) else tuple(layers)
    unmatched = dict.fromkeys(globs)
    first_names: dict[int, str] = {}
    chosen: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = ".".join(part for part in path.split(".") if part != "_orig_mod")
        first = first_names.setdefault(id(module), name)
        if layers is None:
            wanted = KernelProduct.fits(module)
        elif callable(layers):
            wanted = bool(layers(name, module))
        else:
            hits = [glob for glob in globs if name and fnmatchcase(name, glob)]
            wanted = bool(hits)
            for glob in hits:
                unmatched.pop(glob, None)
        if wanted:
            chosen.setdefault(first, module)
    if unmatched:
        raise SettingError(
            f"every name in layers must fit a module; {name_some(unmatched)} fit none of "
            f"{name_some(name for name in first_names.values() if name)}."
        )
    if not chosen:
        raise SettingError(f"at least one layer is needed; layers={layers!r} leaves none of {type(model).__name__}.")
    return chosen


def _equal(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first, second)
