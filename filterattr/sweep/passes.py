"""The passes of a sweep: the model runs at places of the line, and every layer is seen in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.engine.claim import Claim
from filterattr.engine.modes import GradientMode
from filterattr.engine.pathsums import KernelProduct
from filterattr.engine.quadrature import Quadrature
from filterattr.engine.randomness import RandomState, seed_all
from filterattr.engine.slots import Slots
from filterattr.engine.taps import Call, Recall, Taps, cuts_graph
from filterattr.errors import (
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
    UnsupportedModelError,
    name_some,
)
from filterattr.sweep.line import Line
from filterattr.sweep.result import Method

Output: TypeAlias = Callable[[Any], Tensor]
Forward: TypeAlias = Callable[..., Any]
See: TypeAlias = Callable[[Call, Tensor, Tensor | None], None]


class Sweep:
    """One call of `ChannelAttributor.attribute`: what it works with, and how it runs the model."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        line: Line,
        output: Output,
        forward: Forward,
        batch_nodes: int,
        *,
        method: Method,
        kernels: bool,
    ) -> None:
        self.model = model
        self.layers = layers
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
            rows = None if argument is None else rows_of(argument, len(places))
            see(call, rows_of(self.taps.outputs[call].detach(), len(places)), rows)

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
            yield call, rows_of(torch.zeros_like(output) if derivative is None else derivative, count)

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


def rows_of(tensor: Tensor, count: int) -> Tensor:
    """Tell the nodes of a pass apart: shape ``(count, ...)``."""
    if len(tensor) % count:
        raise SettingError(
            f"batch_nodes above 1 needs layers that are given and put out the samples first; got shape "
            f"{tuple(tensor.shape)} for {count} nodes. Use batch_nodes=1."
        )
    return tensor.reshape(count, -1, *tensor.shape[1:])


def _usable(parameter: Tensor) -> Tensor:
    """The same memory, unless it was made in inference mode: autograd cannot keep that."""
    return parameter.detach().clone() if parameter.is_inference() else parameter.detach()


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
