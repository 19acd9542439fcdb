"""The passes of a call: the model runs at places of the line, and every layer is seen in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from filterattr.activations.conductance import KernelSplit
from filterattr.activations.hooks import ActivationCache, ActivationHooks, Call, cutting
from filterattr.activations.line import Line
from filterattr.activations.parts import parts_of
from filterattr.activations.result import ChannelMethod
from filterattr.activations.samples import Arguments, Place, Places, agree, channel_axis, find_places
from filterattr.errors import (
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
    UnsupportedModelError,
    name_some,
)
from filterattr.integral.quadrature import Quadrature
from filterattr.model.context import GradientMode, ModelLock
from filterattr.model.random_state import CallersRandomness, Turn, derive_seed, has_drawn, seed_all
from filterattr.model.swap import ParameterSwap

Output: TypeAlias = Callable[[Any], Tensor]
Forward: TypeAlias = Callable[..., Any]
See: TypeAlias = Callable[[Call, Tensor, Tensor | None], None]


class LinePasses:
    """One call of `ChannelAttributor.attribute`: what it works with, and how it runs the model."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        line: Line,
        output: Output,
        forward: Forward,
        nodes_per_pass: int,
        *,
        attribution: ChannelMethod,
        kernels: bool,
    ) -> None:
        self.model = model
        self.layers = layers
        self.line = line
        self.output = output
        self.forward = forward
        self.nodes_per_pass = nodes_per_pass
        self.attribution = attribution
        self.split = {name for name, layer in self.layers.items() if kernels and KernelSplit.fits(layer)}
        self.hooks = ActivationHooks(self.layers, with_arguments=bool(self.split))
        self.cache: ActivationCache | None = None
        self.swap: ParameterSwap | None = None
        self.lock, self.mode = ModelLock(self.model), GradientMode()
        self.random, self.turn = CallersRandomness(), Turn()
        self.seed = 0
        # hooks do not fire in compiled submodules, unless these are told to run as they are
        self.has_compiled = any("_orig_mod" in module._modules for module in self.model.modules())
        self.frozen: dict[str, Tensor] = {}
        self.calls: dict[Call, tuple[int, ...]] = {}
        self.places: Places = {}
        self.reached: set[str] = set()
        self.cutting: set[str] | None = None
        self.values: list[tuple[float, Tensor]] = []
        self.n_checked = 0
        self.n_passes = 0

    def enter(self) -> None:
        """Take hold of the model; `leave` ends what is begun here."""
        self.lock.take()
        self.mode.enter()
        self.random.enter()
        self.seed = derive_seed(self.random.state.of_processor())
        self.swap = ParameterSwap(self.model)
        # the same memory, but no gradient of the weights is ever computed, nor kept for
        self.frozen = {
            name: nn.Parameter(_usable(parameter), requires_grad=False)
            for name, parameter in self.swap.parameters.items()
        }
        self.hooks.attach()  # first: what the swap gives back before every pass then has the hooks
        self.swap.put(self.frozen)

    def leave(self) -> None:
        """Give the model back; doing it twice does no harm."""
        self.forget()
        if self.swap is not None:
            self.swap.restore()
        self.hooks.remove()
        self.turn.release()
        self.random.leave()
        self.mode.restore()
        self.lock.release()

    def check_values(self) -> None:
        """Make sure that the outputs since the last check are finite; inside the passes nothing waits for a device."""
        for t, value in self.values[self.n_checked :]:
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"the output must be finite along the whole path; got {value.tolist()} at t = {t:.4g}."
                )
        self.n_checked = len(self.values)

    def find_places(self, at_inputs: Tensor) -> None:
        """Find where the samples stand in what the layers put out, after a pass at the inputs.

        Args:
            at_inputs: The output there.
        """
        outputs, arguments = self.hooks.outputs, self.hooks.arguments
        is_random = has_drawn(self.seed)
        with torch.no_grad():
            self.places = find_places(outputs, self.layers, self.line, self._put_out, is_random=is_random)
            if self.nodes_per_pass > 1:
                self._check_batches(outputs, at_inputs, is_alike=not is_random and not self._has_batch_statistics())
        self.hooks.outputs, self.hooks.arguments = outputs, arguments

    def check_function(self, at_inputs: Tensor) -> None:
        """Make sure that all outputs are finite, and that the output at the inputs is still what it was.

        Raises:
            NonFiniteError: An output is not finite.
            LossError: The function is another one each time.
        """
        self.check_values()
        if self.attribution == "gradient_x_activation":
            return
        self.forget()
        again = self.look(1.0)
        if not agree(at_inputs, again, self.values[-1][1].dtype, power=0.5):
            raise LossError(
                "the output must be the same function at every place of the path; at the inputs it was "
                f"{_listed(at_inputs)} at first and {_listed(again)} at the end. Something that output(), forward() or "
                "the model keeps is another one each time: a tensor written in place, a counter, a cache, or random "
                "numbers of a generator of its own. Copy what is written to, and seed the generator in each call."
            )

    def chunks(self, rule: Quadrature) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
        """Nodes that share a pass, and their coefficients."""
        for start in range(0, len(rule.nodes), self.nodes_per_pass):
            chosen = slice(start, start + self.nodes_per_pass)
            yield rule.nodes[chosen], rule.coefficients[chosen]

    def look(self, t: float, *, replaced: Call | None = None, replacement: Tensor | None = None) -> Tensor:
        """Return the output at one place, without derivatives: shape ``(N,)`` or ``()``."""
        with torch.no_grad():
            value = self._forward((t,), replaced=replaced, replacement=replacement)[0][0].to(torch.float64)
        self.check_values()  # before the long way, not after it
        return value

    def differentiate(self, places: Sequence[float], see: See = lambda *_: None) -> Iterator[tuple[Call, Tensor]]:
        """Run the model at some places; yield each call and the derivatives of what it puts out, one row per place.

        Args:
            places: Where.
            see: Called with each call, what it put out and what it was given, one row per place, before any derivative.
        """

        def seen(call: Call) -> None:
            argument = self.hooks.arguments.get(call)
            rows = None if argument is None else rows_of(argument, len(places))
            see(call, rows_of(self.hooks.outputs[call].detach(), len(places)), rows)

        values, leaves = self._forward(places, seen)
        if self.cutting is None and self.attribution == "conductance":
            self.cutting = self._find_cutting(values, leaves)
        yield from self._backward(values, len(places))

    def remember(self, count: int) -> dict[Call, int]:
        """Run the model at the inputs and remember what is costly; return how much of it comes before each call."""
        self.forget()
        self.cache = cache = ActivationCache(self.model)
        before: dict[Call, int] = {}
        with torch.no_grad():
            self._forward((1.0,) * count, lambda call: before.__setitem__(call, cache.count))
        return before

    def recall_before(self, count: int) -> None:
        """Let the next pass return what is remembered of so many costly functions, instead of computing it."""
        if self.cache is not None:
            self.cache.rewind(skipped=count)

    def forget(self) -> None:
        """Compute everything again; doing it twice does no harm."""
        if self.cache is not None:
            self.cache.remove()
        self.cache = None

    def kernel_products(self) -> dict[Call, KernelSplit]:
        """The products that split the calls of the last pass, if kernels are wanted and the layers have them."""
        products: dict[Call, KernelSplit] = {}
        foreign: list[str] = []
        for call in self.calls:
            if call.layer not in self.split:
                continue
            products[call] = product = KernelSplit(
                self.layers[call.layer], self.line.n_samples, self._arrangement(call)
            )
            argument = self.hooks.arguments.get(call)
            if argument is None or not product.explains(argument, self.hooks.outputs[call].detach()):
                foreign.append(call.layer)
        if foreign:
            raise UnsupportedModelError(
                "kernels=True needs layers that put out what their weight and bias make of their first argument; "
                f"{name_some(dict.fromkeys(foreign))} put out something else. Leave these layers out."
            )
        return products

    def replace(self, call: Call, places: Sequence[float], replacement: Tensor) -> Tensor:
        """Let one call put out something else at the inputs; return the derivatives, one row per place."""
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
        arguments, leaves = self.line.points((1.0,) * len(places) if replaced else places)
        self.hooks.record(seen, replaced=replaced, replacement=replacement)
        returned = self._run(arguments)
        self._check_calls(len(places), replaced)
        parts = [returned] if len(places) == 1 else parts_of(returned, len(places))
        values = torch.stack([_checked_output(self.output(part), self.line.n_samples) for part in parts])
        self.values.extend(zip(places, values.detach(), strict=True))
        if torch.is_grad_enabled() and replaced is None:
            self._check_attached(values)
        return values, leaves

    def _run(self, arguments: Arguments) -> Any:
        """Run the model with its own weights and copies of whatever else it holds, with the hooks on."""
        if self.swap is None:
            raise RuntimeError("enter() comes first.")
        self.swap.restore()  # what the last pass left in caches
        if self.cache is not None:
            self.cache.attach()
        self.swap.put({**self.frozen, **{name: buffer.clone() for name, buffer in self.swap.buffers.items()}})
        self.turn.take()  # `leave` ends it if the model raises
        seed_all(self.seed)
        with torch.compiler.set_stance("force_eager") if self.has_compiled else nullcontext():
            returned = self.forward(self.model, *arguments)
        self.turn.release()
        self.hooks.stop()
        self.hooks.check()
        self.swap.check()
        return returned

    def _put_out(self, arguments: Arguments) -> dict[Call, Tensor]:
        """Run the model on something else than the path; return what every call puts out."""
        self.hooks.record()
        self._run(arguments)
        return self.hooks.outputs

    def _has_batch_statistics(self) -> bool:
        return any(isinstance(module, _BatchNorm) and module.training for module in self.model.modules())

    def _check_batches(self, outputs: Mapping[Call, Tensor], at_inputs: Tensor, *, is_alike: bool) -> None:
        """Make sure that nodes in one pass get what each gets alone, unless random numbers or statistics differ."""
        values, _ = self._forward((1.0, 0.0))
        together = {call: rows_of(output, 2)[0] for call, output in self.hooks.outputs.items()}
        if not is_alike:
            return
        wrong = [call.layer for call, output in outputs.items() if not agree(output, together[call], output.dtype)]
        if wrong or not agree(at_inputs, values[0], values.dtype):
            raise SettingError(
                "several nodes in a pass need a model that treats each sample by itself, with the samples first in all "
                f"layers and in what it returns; {name_some(dict.fromkeys(wrong)) if wrong else 'its output'} "
                f"{'are' if len(set(wrong)) > 1 else 'is'} another for two nodes at once. Leave "
                "internal_batch_size out."
            )

    def _arrangement(self, call: Call) -> Callable[[Tensor], Tensor] | None:
        """How the rows of a call get into blocks, one for each sample; ``None`` where they are."""
        place = self.places[call]
        if place is None or (place.axis and place.axis == channel_axis(self.layers[call.layer])):
            raise UnsupportedModelError(
                f"kernels=True needs to know which numbers belong to which sample; '{call.layer}' puts out shape "
                f"{self.calls[call]} for {self.line.n_samples} samples. Leave this layer out, or attribute one sample "
                "at a time."
            )
        return None if place == Place() else lambda tensor: place.samples_first(tensor, self.line.n_samples)

    def _check_attached(self, values: Tensor) -> None:
        detached = [call.layer for call, output in self.hooks.outputs.items() if not output.requires_grad]
        if detached or not values.requires_grad:
            raise LossError(
                f"the output must depend on the layers; no derivative leads to {name_some(detached or self.layers)}. "
                "The model and output() must work without no_grad, inference_mode, detach or reentrant checkpointing."
            )

    def _backward(self, values: Tensor, count: int) -> Iterator[tuple[Call, Tensor]]:
        outputs = self.hooks.outputs
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
        for call, output in self.hooks.outputs.items():
            by_layer.setdefault(call.layer, []).append(output)
        return cutting(values, leaves, by_layer)

    def _check_calls(self, count: int, replaced: Call | None) -> None:
        """Every pass must run the same layers as often as the first one did, and with the same shapes."""
        shapes = {call: tuple(output.shape) for call, output in self.hooks.outputs.items()}
        self.calls = self.calls or shapes
        expected = {
            call: (count * rows, *others)
            for call, (rows, *others) in self.calls.items()
            if replaced is None or call == replaced
        }
        if shapes != expected:
            layers = [call.layer for call in {**expected, **shapes} if shapes.get(call) != expected.get(call)]
            raise ModelChangedError(
                "the model must run its layers in the same way at every place of the path; it does not for "
                f"{name_some(dict.fromkeys(layers))}. Choose other layers"
                + (
                    ", or leave internal_batch_size out: nodes in one pass need layers that put out the samples first."
                    if count > 1
                    else "."
                )
            )


def rows_of(tensor: Tensor, count: int) -> Tensor:
    """Tell the nodes of a pass apart: shape ``(count, ...)``."""
    if len(tensor) % count:
        raise SettingError(
            f"several nodes in a pass need layers that are given and put out the samples first; got shape "
            f"{tuple(tensor.shape)} for {count} nodes. Leave internal_batch_size out."
        )
    return tensor.reshape(count, -1, *tensor.shape[1:])


def _listed(values: Tensor) -> str:
    """A few numbers, as text."""
    numbers = values.reshape(-1).tolist()
    return ", ".join(f"{number:.6g}" for number in numbers[:5]) + (", ..." if len(numbers) > 5 else "")


def _usable(parameter: Tensor) -> Tensor:
    """The same memory, unless it was made in inference mode: autograd cannot keep that."""
    return parameter.detach().clone() if parameter.is_inference() else parameter.detach()


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
