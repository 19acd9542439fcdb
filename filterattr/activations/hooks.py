"""What layers put out while a model runs, ready to take derivatives with respect to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from filterattr.activations.parts import activations_in, with_activations
from filterattr.errors import UnsupportedModelError, gathered, name_some


class Call(NamedTuple):
    """One of the times that a layer runs in a forward pass.

    Attributes:
        layer: Name of the layer.
        number: 0 for its first call.
    """

    layer: str
    number: int


class ActivationHooks:
    """Forward hooks on layers that keep what every call puts out.

    The model goes on with a clone of it. So an in-place activation behind the layer changes the clone only, and the
    derivative with respect to the kept tensor is that of the layer's own output. An output that does not depend on
    anything that moves becomes the start of a graph of its own. If a layer puts out several things, as a block of a
    transformer does, the first floating tensor counts.

    Args:
        layers: Name to module.
        with_arguments: Also keep the first positional argument of every call, detached.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
        >>> hooks = ActivationHooks({"0": model[0]})
        >>> try:
        ...     hooks.attach()
        ...     hooks.record()
        ...     value = model(torch.ones(1, 2)).sum()
        ... finally:
        ...     hooks.remove()
        >>> list(hooks.outputs)
        [Call(layer='0', number=0)]
        >>> torch.autograd.grad(value, list(hooks.outputs.values()))[0].shape
        torch.Size([1, 2])
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, with_arguments: bool = False) -> None:
        self.outputs: dict[Call, Tensor] = {}
        self.arguments: dict[Call, Tensor] = {}
        self._layers = layers
        self._with_arguments = with_arguments
        self._hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._is_recording = False
        self._counts: dict[str, int] = {}
        self._unfit: dict[str, str] = {}
        self._replaced: Call | None = None
        self._replacement: Tensor | None = None
        self._seen: Callable[[Call], None] = lambda _: None

    def attach(self) -> None:
        """Put the hooks on the layers; call it inside two nested ``try``, each with `remove` in its ``finally``."""
        for name, layer in self._layers.items():
            hook = self._hook(name)
            self._hooks.append((layer, hook))  # before it is there: an interrupt may come in between
            layer.register_forward_hook(hook)

    def remove(self) -> None:
        """Take the hooks off; doing it twice does no harm."""
        self._is_recording = False
        for layer, hook in self._hooks:
            for key in [key for key, known in layer._forward_hooks.items() if known is hook]:
                del layer._forward_hooks[key]
        self._hooks = []  # hooks refer to this object: it would not be freed at once

    def record(
        self,
        seen: Callable[[Call], None] = lambda _: None,
        *,
        replaced: Call | None = None,
        replacement: Tensor | None = None,
    ) -> None:
        """Keep what the next forward pass puts out, and drop that of the last one.

        Args:
            seen: Called whenever an output was kept, while the forward pass runs.
            replaced: Keep the output of this call only, and let the model go on with something else than it.
            replacement: What the model goes on with.
        """
        self.outputs, self.arguments = {}, {}
        self._counts = dict.fromkeys(self._layers, 0)
        self._unfit = {}
        self._seen, self._replaced, self._replacement = seen, replaced, replacement
        self._is_recording = True

    def stop(self) -> None:
        """Record no more: activation checkpointing runs layers again during the backward pass."""
        self._is_recording = False
        self._seen = lambda _: None

    def check(self) -> None:
        """Make sure that every layer ran and put out a floating tensor.

        Raises:
            UnsupportedModelError: Some did not; all of them are named.
        """
        idle = [name for name, count in self._counts.items() if count == 0]
        findings = [f"{name_some(idle)} did not run in the forward pass"] if idle else []
        findings += [f"'{name}' {problem}" for name, problem in self._unfit.items()]
        if findings:
            raise UnsupportedModelError(
                f"every layer must run and put out a floating tensor: {gathered(findings)}. Choose "
                "other layers, by name or with layers=lambda name, module: ...; hooks do not reach into compiled "
                "submodules, nor into layers whose forward() is bypassed."
            )

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def observe(_module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            if not self._is_recording:
                if self._replaced is not None and self._replaced.layer == name:
                    raise UnsupportedModelError(
                        f"the output of '{name}' cannot be replaced: activation checkpointing computes it again during "
                        "the backward pass. Switch checkpointing off, or choose another method."
                    )
                return None
            call = Call(name, self._counts[name])
            self._counts[name] += 1
            if self._replaced not in (None, call):
                return None
            activations = activations_in(output)
            if activations is None:
                self._unfit.setdefault(name, _problem_of(output))
                return None
            kept = activations if self._replacement is None else self._replacement
            if torch.is_grad_enabled() and not kept.requires_grad:
                kept = kept.detach().requires_grad_()
            self.outputs[call] = kept
            if self._with_arguments and arguments and isinstance(arguments[0], Tensor):
                self.arguments[call] = arguments[0].detach().clone()
            self._seen(call)
            return with_activations(output, kept.clone())

        return observe


class ActivationCache:
    """Keep what convolutions and linear layers put out, and let them put it out again instead of computing it.

    Everything that runs before the output of a layer is replaced does so on the same input every time. The first
    forward pass is remembered; in later ones the first ``skipped`` calls of these layers repeat it.

    Args:
        model: The model.

    Attributes:
        count: Number of such calls in this forward pass so far.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> cache = ActivationCache(layer)
        >>> try:
        ...     cache.attach()
        ...     first = layer(torch.ones(1, 1))
        ...     cache.rewind(skipped=1)
        ...     bool(layer(torch.zeros(1, 1)) == first)
        ... finally:
        ...     cache.remove()
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._skipped = 0
        self._kept: list[Tensor] = []
        self._recording = True
        self._layers = [module for module in model.modules() if isinstance(module, _COSTLY)]
        self._dicts = [dict(layer.__dict__) for layer in self._layers]

    def attach(self) -> None:
        """Wrap ``forward`` of the layers; call it inside two nested ``try``, each with `remove` in its ``finally``."""
        for layer in self._layers:
            layer.__dict__["forward"] = self._wrap(layer.forward)

    def remove(self) -> None:
        """Give the layers their own ``forward`` back; doing it twice does no harm."""
        for layer, entries in zip(self._layers, self._dicts, strict=True):
            if "forward" in entries:
                layer.__dict__["forward"] = entries["forward"]
            else:
                layer.__dict__.pop("forward", None)

    def rewind(self, skipped: int) -> None:
        """Get ready for the next forward pass.

        Args:
            skipped: How many calls, from the first one on, put out what is remembered.
        """
        self.count, self._skipped, self._recording = 0, skipped, False

    def _wrap(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def repeat(*arguments: Any, **keywords: Any) -> Tensor:
            place = self.count
            self.count += 1
            if place < self._skipped:
                return self._kept[place].clone()  # an in-place activation must not reach what is remembered
            output = forward(*arguments, **keywords)
            if self._recording:
                self._kept.append(output.detach().clone())
            return output

        return repeat


_COSTLY = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def cutting(value: Tensor, leaves: Iterable[Tensor], outputs: Mapping[str, Sequence[Tensor]]) -> set[str]:
    """Find the layers that cut the graph in two: every way from the value to a leaf passes exactly one of their hooks.

    Then whatever the leaves do to the value, each of the outputs passes a part of it on, and no part twice. One pass
    over the graph finds all layers. Every edge of it gets a random factor, and a way the product of its factors. The
    weight of the ways through an output is the weight of the ways to it times that of the ways from it. A layer cuts
    the graph if the ways through its outputs weigh as much as all ways. The weights are residues of a large prime:
    another layer passes this test with a probability below 1e-14 for a graph of 10,000 nodes.

    Args:
        value: Scalar or vector that was computed from the leaves.
        leaves: Tensors that require a gradient.
        outputs: Name of a layer to the tensors that it put out, on the way.

    Returns:
        The names of those layers.

    Example:
        >>> leaf = torch.ones((), requires_grad=True)
        >>> first = 2 * leaf
        >>> second = 3 * first
        >>> cutting(second.exp(), [leaf], {"first": [first], "second": [second], "both": [first, second]}) == {
        ...     "first",
        ...     "second",
        ... }
        True
        >>> cutting(second + leaf, [leaf], {"second": [second]})
        set()
    """
    ways = _Ways(_edge_of(value), {_edge_of(leaf) for leaf in leaves})
    edges = {name: {_edge_of(tensor) for tensor in tensors} for name, tensors in outputs.items()}
    return {name for name, of_layer in edges.items() if ways.all_pass(of_layer)}


_Edge = tuple[Any, int]
_PRIME = 2**61 - 1


def _edge_of(tensor: Tensor) -> _Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


class _Ways:
    """How much all ways weigh from a value to each place of its graph, and from there to the leaves."""

    def __init__(self, start: _Edge, leaves: set[_Edge]) -> None:
        draw = random.Random(0)  # a generator of its own: the same factors in every call
        following: dict[_Edge, list[tuple[_Edge, int]]] = {}
        for edge in _sorted_edges(start):
            following[edge] = [(later, draw.randrange(1, _PRIME)) for later in _following(edge)]
        self._to = dict.fromkeys(following, 0)
        self._to[start] = 1
        for edge, steps in following.items():
            for later, factor in steps:
                self._to[later] = (self._to[later] + self._to[edge] * factor) % _PRIME
        self._onwards: dict[_Edge, int] = {}
        for edge in reversed(following):
            weight = sum(self._onwards[later] * factor for later, factor in following[edge])
            self._onwards[edge] = (weight + (edge in leaves)) % _PRIME
        self._all = self._onwards[start]

    def all_pass(self, edges: set[_Edge]) -> bool:
        """Whether every way passes exactly one of some places, and each of them can be reached."""
        if not edges <= self._to.keys():
            return False
        return (sum(self._to[edge] * self._onwards[edge] for edge in edges) - self._all) % _PRIME == 0


def _following(edge: _Edge) -> list[_Edge]:
    return [later for later in edge[0].next_functions if later[0] is not None]


def _sorted_edges(start: _Edge) -> list[_Edge]:
    """Everything behind a place of the graph, each before what follows it."""
    done: list[_Edge] = []
    begun = {start}
    waiting = [(start, iter(_following(start)))]
    while waiting:
        edge, later = waiting[-1]
        fresh = next((other for other in later if other not in begun), None)
        if fresh is None:
            done.append(edge)
            waiting.pop()
        else:
            begun.add(fresh)
            waiting.append((fresh, iter(_following(fresh))))
    return done[::-1]


def _problem_of(output: object) -> str:
    """Say why a layer's output cannot be attributed to."""
    if not isinstance(output, Tensor):
        return f"puts out a {type(output).__name__} without a floating tensor"
    return f"puts out {output.dtype}" if output.ndim else "puts out a single number"
