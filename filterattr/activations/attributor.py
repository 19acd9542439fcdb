r"""What every channel of every layer contributes along a straight line of inputs, in one sweep over that line.

.. math:: x(t) = x' + t\,(x - x'), \qquad
   C_y = \int_0^1 \frac{\partial F(x(t))}{\partial y} \frac{dy(x(t))}{dt}\, dt

With :math:`y` the output of a layer that is the conductance of it; the other methods are in `ChannelAttributor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.activations.conductance import KernelSplit
from filterattr.activations.line import Baselines, Line, Tensors
from filterattr.activations.methods import COMPUTE, assembled
from filterattr.activations.passes import Forward, LinePasses, Output
from filterattr.activations.result import METHODS, check_choice
from filterattr.activations.result import ChannelAttribution as ChannelAttribution
from filterattr.activations.result import ChannelMethod as ChannelMethod
from filterattr.activations.result import ChannelSummary as ChannelSummary
from filterattr.activations.result import LayerAttribution as LayerAttribution
from filterattr.errors import LossError, SettingError, name_some
from filterattr.integral.quadrature import Quadrature
from filterattr.model.state_dict import unwrap_model, without_compiled
from filterattr.model.swap import ParameterSwap, restoring
from filterattr.names import Names
from filterattr.renamed import renamed
from filterattr.units.layouts import is_linear_map

Layers: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool]


class ChannelAttributor:
    r"""Attribute a change of a network's output to the channels of all its layers at once.

    All layers share the passes along the input path: forward hooks record all layers in each pass, and one backward
    pass gives all derivatives. Captum's layer methods, which define the same numbers, go along the path once per layer.
    With :math:`F` the output, :math:`y` what a layer puts out, :math:`x(t) = x' + t\,(x - x')` and nodes :math:`t_j`
    with coefficients :math:`c_j`, the methods are, for every element of :math:`y`:

    ``"conductance"``
        :math:`\sum_j \partial_y F(x(t_j))\,[y(x(t_{j+1})) - y(x(t_j))]` over ``n_steps + 1`` nodes. It sums to
        :math:`F(x) - F(x')` over a layer through which everything passes. This is Captum's left rule: its error
        falls with ``1 / n_steps``, and Gauss nodes leave out both ends. With ``method="riemann_trapezoid"`` it is
        the trapezoid rule with the mean of both derivatives, whose error falls with ``1 / n_steps**2`` (Captum uses its
        left rule there too).
    ``"internal_influence"``
        :math:`\sum_j c_j\, \partial_y F(x(t_j))`, the mean derivative.
    ``"integrated_gradients"``
        :math:`[y(x) - y(x')] \sum_j c_j\, \partial_y F(x \,|\, y = y(x') + t_j\,[y(x) - y(x')])`: the line is drawn
        between the activations of the layer, and everything that does not pass through the layer stays at :math:`x`.
        Each layer has its own line, so **no pass can serve two layers**: it costs ``n_steps`` passes per layer. Only
        the convolutions and matrix products before the layer are saved.
    ``"gradient_x_activation"``
        :math:`y(x)\, \partial_y F(x)`, a single pass.

    The model is unchanged afterwards, even if the call raises: it computes with its own weights, which get no
    gradients, and buffers that it writes to are copies. Dropout draws the same at every node. A layer that runs several
    times in one forward pass gets the sum over its calls (Captum reports the last call only). Activations may work in
    place.

    Args:
        model: Any module. Data-parallel wrappers and `torch.compile` are unwrapped.
        layers: Which layers: a module name or glob, several, or a predicate on name and module. The default is all
            convolutions, `torch.nn.Linear`, `torch.nn.MultiheadAttention`, and layers of other libraries that
            `register_layout` knows. Each must put out a floating tensor whose first axis is the samples; of a tuple,
            mapping or dataclass, as blocks of transformers return, the first floating tensor counts.

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
        Dhamdhere, Sundararajan and Yan, "How Important Is a Neuron?", ICLR 2019 (conductance). Leino et al.,
        "Influence-Directed Explanations for Deep Convolutional Networks", ITC 2018 (internal influence). Sundararajan,
        Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (integrated gradients).
    """

    def __init__(self, model: nn.Module, layers: Layers | None = None) -> None:
        self.model = unwrap_model(model)
        ParameterSwap(self.model)
        self.layers = _select_layers(self.model, layers)

    def attribute(
        self,
        inputs: Tensors,
        baselines: Baselines,
        output: Output,
        *,
        attribution: ChannelMethod | None = None,
        n_steps: int = 50,
        method: str | None = None,
        kernels: bool = False,
        internal_batch_size: int | None = None,
        forward: Forward | None = None,
        quadrature: str | None = None,
        batch_nodes: int | None = None,
    ) -> ChannelAttribution:
        """Attribute the output at ``inputs``, against that at ``baselines``, to the channels of all layers.

        Args:
            inputs: What the model is given: a tensor, or several for several arguments; the first axis is the samples.
            baselines: Where the path starts, in the shapes of ``inputs`` (or with a first axis of length 1). A number
                stands for a tensor full of it. An argument that stays the same, such as a condition or an index, is
                given twice, or ``None`` in its place. Token ids can only move with ``"integrated_gradients"``, whose
                line is between activations. ``"gradient_x_activation"`` has no path: ``None``.
            output: A function of what the model returns, to one number per sample, shape ``(N,)``, or to one number for
                all: a logit (``lambda logits: logits[:, 3]``), or a loss of an image (``lambda restored: (restored -
                reference).square().sum((1, 2, 3))``). Prefer sums over samples to means: attributions are linear in
                the output.
            attribution: ``"conductance"`` (the default), ``"internal_influence"``, ``"integrated_gradients"`` or
                ``"gradient_x_activation"``.
            n_steps: Steps on the path, each one forward-backward pass (conductance needs one more).
            method: Rule of the integral, as in `FilterAttributor.attribute`: ``"gausslegendre"`` (the default),
                ``"riemann_trapezoid"`` and so on.
            kernels: Also split the channels of convolutions and linear layers over their input channels; costs a
                gradient of the weights per layer and node. Internal influence has no such split.
            internal_batch_size: How many points may share a pass, as in Captum: a point is one sample at one node, and
                all samples of a node go together. The default is one node, N points. More use a GPU better with small
                images, and need as much more memory. All outputs must have the samples first; dropout and batch
                statistics then differ.
            forward: How to call the model where ``model(*inputs)`` is not enough: ``forward(model, *inputs)`` returns
                what ``output`` is given, for example ``lambda model, image: model(image, scale=2)["restored"]``.
            quadrature: Old name of ``method``; works until version 0.3, as ``method="conductance"`` does.
            batch_nodes: Old way to say ``internal_batch_size``, in nodes; works until version 0.3.

        Returns:
            The attribution.

        Raises:
            SettingError: A method, a number, the inputs or baselines cannot be used.
            UnsupportedModelError: A layer did not run, puts out no floating tensor, or has no
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
            ...     method="riemann_trapezoid",
            ...     kernels=True,
            ... )
            >>> torch.testing.assert_close(found.kernels("sum")["weight"][1].float(), layer.weight[1].detach())
        """
        chosen, rule_name = chosen_method(attribution, method, quadrature)
        _check_call(chosen, output, forward)
        if baselines is None and chosen != "gradient_x_activation":
            raise SettingError(
                f"attribution={chosen!r} needs baselines, where its path starts; got None. Say baselines=0 for zeros."
            )
        line = Line(inputs, baselines, only_ends=chosen in ("integrated_gradients", "gradient_x_activation"))
        nodes_per_pass = _nodes_per_pass(_points(internal_batch_size, batch_nodes, line.n_samples), line)
        if kernels:
            self._check_kernels(chosen)
        rule = _rule(chosen, rule_name, n_steps)
        passes = LinePasses(
            self.model,
            self.layers,
            line,
            output,
            forward or _call,
            nodes_per_pass,
            attribution=chosen,
            kernels=kernels,
        )
        # threads that Python starts would otherwise split the work differently than the main thread does
        torch.set_num_threads(torch.get_num_threads())

        def compute() -> ChannelAttribution:
            passes.enter()
            return assembled(passes, COMPUTE[chosen](passes, rule), rule_name, n_steps)

        return restoring(compute, passes.leave)

    def _check_kernels(self, attribution: ChannelMethod) -> None:
        if attribution == "internal_influence":
            raise SettingError(
                "kernels=True needs an attribution that multiplies with activations; internal_influence does not."
            )
        if not any(map(KernelSplit.fits, self.layers.values())):
            raise SettingError(
                f"kernels=True needs convolutions or linear layers; got {name_some(self.layers)}, without kernels."
            )


def _call(model: nn.Module, *inputs: Tensor) -> Any:
    return model(*inputs)


def chosen_method(
    attribution: ChannelMethod | None, method: str | None, quadrature: str | None
) -> tuple[ChannelMethod, str]:
    """Take attribution method and rule as they are spelled now, and as they were in version 0.1.

    Args:
        attribution: What is computed; ``None`` is conductance.
        method: The rule; ``None`` is Gauss-Legendre. In version 0.1, what is computed.
        quadrature: Old name of the rule.

    Returns:
        Both.

    Raises:
        SettingError: Something is given under two names.
    """
    old = next((known for known in METHODS if known == method), None)
    if old is not None:
        attribution, method = renamed("method", old, "attribution", attribution, stacklevel=4), None
    rule = renamed("quadrature", quadrature, "method", method, stacklevel=4)
    return attribution or "conductance", rule or "gausslegendre"


def _points(internal_batch_size: int | None, batch_nodes: int | None, n_samples: int) -> int | None:
    """How many points share a pass, under the old name too, which counts nodes."""
    old = batch_nodes if batch_nodes is None else _whole("batch_nodes", batch_nodes) * n_samples
    points = renamed("batch_nodes", old, "internal_batch_size", internal_batch_size, stacklevel=4)
    return None if points is None else _whole("internal_batch_size", points)


def _nodes_per_pass(points: int | None, line: Line) -> int:
    """How many nodes share a pass."""
    if points is None:
        return 1
    if points < line.n_samples:
        raise SettingError(
            f"internal_batch_size must hold all samples of a node, as one pass gives them together; got {points} for "
            f"{line.n_samples} samples. Attribute fewer samples at once, or leave it out."
        )
    nodes = points // line.n_samples
    if nodes > 1 and any(argument.shape[:1] != (line.n_samples,) for argument in line.inputs):
        raise SettingError(
            f"several nodes in a pass need {line.n_samples} samples first in all inputs; got shapes "
            f"{name_some(tuple(argument.shape) for argument in line.inputs)}. Leave internal_batch_size out."
        )
    return nodes


def _whole(name: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SettingError(f"{name} must be a whole number of at least 1; got {number!r}.")
    return number


def _check_call(attribution: str, output: object, forward: object) -> None:
    """Check before any work what can be checked."""
    check_choice("attribution", attribution, METHODS)
    if not callable(output):
        raise LossError(f"output must be a function of what the model returns; got {type(output).__name__}.")
    if forward is not None and not callable(forward):
        raise SettingError(f"forward must be a function of the model and its inputs; got {type(forward).__name__}.")


def _rule(attribution: ChannelMethod, method: str, n_steps: int) -> Quadrature:
    """The nodes; conductance needs one more than it has steps."""
    extra = attribution == "conductance" and isinstance(n_steps, int) and n_steps > 0
    return Quadrature.rule(method, n_steps + 1 if extra else n_steps)


def _select_layers(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """Find the chosen layers, each under its first name, in the order of the network."""
    modules = {without_compiled(path): module for path, module in model.named_modules(remove_duplicate=False)}
    names = Names(name for name in modules if name)
    globs = (layers,) if isinstance(layers, str) else () if layers is None or callable(layers) else tuple(layers)
    unmatched = names.unknown(globs)
    if unmatched:
        raise SettingError(
            f"every name in layers must fit a module; {names.describe_some(unmatched)} fit none of {name_some(names)}."
        )
    named = names.first_of(globs)
    first_names: dict[int, str] = {}
    chosen: dict[str, nn.Module] = {}
    for name, module in modules.items():
        first = first_names.setdefault(id(module), name)
        if layers is None:
            wanted = _is_default(module) and not isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
        else:
            wanted = bool(layers(name, module)) if callable(layers) else name in named
        if wanted:
            chosen.setdefault(first, module)
    if not chosen:
        raise SettingError(f"at least one layer is needed; layers={layers!r} leaves none of {type(model).__name__}.")
    return chosen


def _is_default(module: nn.Module) -> bool:
    """Whether a layer computes a linear map or attention; the parts of an attention layer do not run by themselves."""
    return KernelSplit.fits(module) or isinstance(module, nn.MultiheadAttention) or is_linear_map(module)
