"""A model that `fully_shard` has split over processes computes with other weights, and gets its own values back.

The parameters of such a model cannot be exchanged: the hooks of FSDP2 know them. Other values are written into the part
that this process holds, and the values of before are written back, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filterattr.errors import LossError, StateMismatchError, UnsupportedModelError, gathered, listed, name_some
from filterattr.model.fitting import by_first_name, is_number
from filterattr.model.holdings import Holdings
from filterattr.model.state_dict import StateLike, inner_key, plain_state, unwrap_model
from filterattr.model.swap import ParameterSwap, WriteGuard, is_sharded, is_sharded_kind, parameters_behind

TakeGradient = Callable[[str, Tensor], None]

_CURE = "Call fully_shard on the whole model, with one mesh of one dimension"


class Shard(NamedTuple):
    """The part of a parameter that this process holds: entries ``begin`` to ``begin + length`` of one axis.

    Attributes:
        shape: Shape of the whole parameter.
        axis: The axis that is split.
        begin: First entry.
        length: Number of entries; 0 if there are more processes than entries.
    """

    shape: tuple[int, ...]
    axis: int
    begin: int
    length: int

    def of(self, value: Tensor) -> Tensor:
        """The same part of another tensor, without a copy.

        Args:
            value: Of the shape of the parameter.

        Example:
            >>> Shard((4, 2), 0, 2, 2).of(torch.arange(8).reshape(4, 2))
            tensor([[4, 5],
                    [6, 7]])
        """
        return value.narrow(self.axis, self.begin, self.length)


class ShardedSwap(ParameterSwap):
    """The parameters and buffers of a model whose parameters `fully_shard` has split over a mesh of one dimension.

    Buffers are exchanged, as in any model. Values of parameters are written into the part that this process holds. That
    part is copied once, before anything is written.

    Attributes:
        shards: First name to which part of the parameter this process holds.

    Args:
        model: The model, not wrapped.

    Raises:
        UnsupportedModelError: Some parameter is not sharded, sharded over several dimensions or meshes, offloaded, or
            neither floating nor complex; every one of them is named.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._gather_again()
        super().__init__(model)
        self.shards = {name: _shard(parameter) for name, parameter in self.parameters.items()}
        self._saved: dict[str, Tensor] = {}
        self._write: Callable[[Mapping[str, Tensor]], object] = lambda _: None
        self._gradients: list[tuple[nn.Parameter, Tensor | None, Any]] = []
        self._others: list[tuple[Tensor, Tensor | None]] = []

    @property
    def process_group(self) -> Any:
        """The processes that hold the parts."""
        return _mesh_of(next(iter(self.parameters.values()))).get_group()

    @property
    def held(self) -> Mapping[str, Tensor]:
        """First name to the part of the parameter that this process holds."""
        return {name: _local(parameter) for name, parameter in self.parameters.items()}

    @property
    def saved(self) -> dict[str, Tensor]:
        """The model's own values, of this process: copied when they are asked for first."""
        if not self._saved:
            self._saved = {name: _local(parameter).clone() for name, parameter in self.parameters.items()}
        return self._saved

    def turn_to(self, write: Callable[[Mapping[str, Tensor]], object]) -> None:
        """Choose the values that `put` writes.

        Args:
            write: Writes to first name to the part of this process, all of them.
        """
        self._write = write

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write values into the parameters, and put tensors into the slots of buffers; see `ParameterSwap.put`.

        Args:
            tensors: First name of a buffer to tensor.
        """
        self.saved  # noqa: B018 - before anything is written
        self._gather_again()
        if not self._dirty:
            self._gradients = [
                (parameter, parameter.grad, parameter._post_accumulate_grad_hooks)
                for parameter in self.parameters.values()
            ]
        super().put(tensors)
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter._post_accumulate_grad_hooks = OrderedDict({0: _drop})
        self._write(self.held)

    def take_gradients(self, value: Tensor, names: list[str], take: TakeGradient) -> None:
        """Run the backward pass of a loss and hand over what this process gets of every gradient; none of them stays.

        What else the loss was computed from, such as a network that it compares with, keeps the gradients it had.

        Args:
            value: The loss, with its graph.
            names: First names of the parameters.
            take: Gets a name and the part of this process, as soon as it is complete.
        """
        for name in names:
            self.parameters[name]._post_accumulate_grad_hooks = OrderedDict({0: _taker(name, take)})
        self._others = [(leaf, leaf.grad) for leaf in _leaves_behind(value)]
        for leaf, _ in self._others:
            leaf.grad = None  # it would be added to
        value.backward()  # type: ignore[no-untyped-call]

    def check_graph(self, value: Tensor) -> None:
        """Make sure that a loss computes with weights through the modules that gather them.

        Args:
            value: The loss, with its graph.

        Raises:
            LossError: It takes parameters by themselves; they are named.
        """
        used = parameters_behind(value, self.parameters)
        if used:
            raise LossError(
                f"the loss must use the weights of a sharded model through its modules, but it takes {name_some(used)} "
                "by itself, of which every process holds a part. Compute it in the forward of the module."
            )

    def restore(self) -> None:
        """Give the model its own values, gradients, hooks and buffers back; doing it twice does no harm."""
        if not self._dirty:
            return
        for name, value in self._saved.items():
            _local(self.parameters[name]).copy_(value)
        for leaf, gradient in self._others:
            leaf.grad = gradient
        for parameter, gradient, hooks in self._gradients:
            parameter.grad, parameter._post_accumulate_grad_hooks = gradient, hooks
        try:
            self._gather_again()
        finally:
            super().restore()
        self._gradients, self._others = [], []

    def _look_around(self) -> Holdings:
        self._resting = WriteGuard(self.buffers.items())
        self._holdings = Holdings(self._modules.values(), self.buffers)
        return self._holdings

    def _gather_again(self) -> None:
        """Have every module gather its parameters when it computes next, and forget a pass that was broken off."""
        for module in self._model.modules():
            if not is_sharded_kind(type(module)):
                continue
            reset = getattr(module, "reset_iter_state", None)  # newer than torch 2.6
            try:
                (reset or module.reshard)()  # type: ignore[operator]
            except (AttributeError, RuntimeError):  # it has not computed yet, is no root, or a process is gone
                module.reshard()  # type: ignore[operator]

    def _refuse_unsupported(self, model: nn.Module) -> None:
        """See `ParameterSwap`."""
        findings = [
            f"'{name}' {problem}"
            for name, value in model.named_parameters()
            if (problem := _problem(value)) is not None
        ]
        meshes = {_mesh_of(value) for value in model.parameters() if hasattr(value, "placements")}
        if not findings and len(meshes) > 1:
            findings.append(f"its parameters are split over {len(meshes)} meshes")
        if findings:
            raise UnsupportedModelError(
                f"the parameters of a sharded model must all be split in one way: {gathered(findings)}. {_CURE}."
            )

    def local_states(self, states: Mapping[str, StateLike]) -> dict[str, dict[str, Tensor]]:
        """Cut the part of this process out of weights; nothing is sent, and what lies elsewhere is not read.

        Args:
            states: What they are called in messages, to weights: modules and state dicts, sharded like the model or
                not.

        Returns:
            The same names to first name to the part of this process; buffers as a whole.

        Raises:
            StateMismatchError: Names or shapes do not fit, or parameters are sharded in another way.
        """
        findings: list[str] = []
        parts: dict[str, dict[str, Tensor]] = {}
        for role, state in states.items():
            shapes, parts[role], wrong = self._cut(state, role)
            hollow = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            findings += by_first_name(role, hollow, self.parameters, self.buffers, self.aliases)[1] + wrong
        if findings:
            raise StateMismatchError(
                f"base and target must both fit the model: {'; '.join(findings)}. Load both from the same architecture."
            )
        return parts

    def _cut(self, state: StateLike, role: str) -> tuple[dict[str, torch.Size], dict[str, Tensor], list[str]]:
        """The shapes of a state, its parts for this process, and the names that are sharded in another way."""
        content, distributed = _plain_parts(state, role)
        shapes, parts, other = {}, {}, []
        for name, value in plain_state(content, role, self.aliases).items():
            known = distributed.get(id(value))
            shapes[name] = value.shape if known is None else known.shape
            first = self.aliases.get(name, name)
            if first not in self.parameters or shapes[name] != self.parameters[first].shape:
                parts[name] = value
            elif known is None:
                parts[name] = self.shards[first].of(value)
            else:
                parts[name] = value
                if _layout(known) != _layout(self.parameters[first]):
                    other.append(f"'{name}' {tuple(known.placements)}")  # type: ignore[attr-defined]
            if first in self.parameters and _is_same_memory(parts[name], _local(self.parameters[first])):
                parts[name] = self.saved[first]  # is written to during the call
        if not other:
            return shapes, parts, []
        return (
            shapes,
            parts,
            [f"{role} is sharded in another way than the model in {listed(other)}; give full tensors, .full_tensor()"],
        )


def _state_of(model: nn.Module) -> dict[str, Any]:
    """The parameters and persistent buffers of a sharded module."""
    swap = ShardedSwap(model)
    tensors = {**swap.parameters, **swap.buffers}
    hidden = {
        f"{path}.{local}" if path else local
        for path, module in model.named_modules()
        for local in module._non_persistent_buffers_set
    }
    return {name: tensors[first] for name, first in swap.aliases.items() if name not in hidden}


def _plain_parts(state: StateLike, role: str) -> tuple[StateLike, dict[int, Tensor]]:
    """Weights with the part of this process in the place of every distributed tensor; and these tensors by part."""
    if isinstance(state, nn.Module):
        module = unwrap_model(state)
        if not is_sharded(module):
            return module, {}
        tensors = _state_of(module)
    else:
        content: Any = state
        for key in inner_key(state, None, role):
            content = content[key]
        if not isinstance(content, Mapping):
            return state, {}  # which is refused with all others
        tensors = dict(content)
    distributed: dict[int, Tensor] = {}
    plain = dict(tensors)
    parts: dict[int, Tensor] = {}  # tied names stay one tensor
    for name, value in tensors.items():
        if hasattr(value, "placements"):
            plain[name] = parts.setdefault(id(value), _local(value))
            distributed[id(plain[name])] = value
    return plain, distributed


def _problem(parameter: Tensor) -> str | None:
    """Say why values cannot be written into a parameter."""
    if not hasattr(parameter, "placements"):
        return "is not sharded, although others are"
    mesh = _mesh_of(parameter)
    if mesh.ndim != 1 or not parameter.placements[0].is_shard():
        return f"is split as {tuple(parameter.placements)} over a mesh of {mesh.ndim} dimensions"
    if not is_number(parameter):
        return f"is {parameter.dtype}, neither floating nor complex"
    if parameter.device.type == "meta":
        return "is on the meta device: load its weights first"
    if parameter.device.type != mesh.device_type:
        return f"is kept on {parameter.device.type} (an offload policy)"
    return None


def _mesh_of(parameter: Any) -> Any:
    return parameter.device_mesh


def _layout(value: Any) -> tuple[Any, ...]:
    return value.device_mesh, tuple(value.placements)


def _local(value: Any) -> Tensor:
    """The memory of this process's part, without a graph."""
    part: Tensor = value.detach().to_local().detach()
    return part


def _shard(parameter: Any) -> Shard:
    """Which entries of a parameter are here: all parts are of one length, except for the last ones."""
    (placement,), mesh = parameter.placements, parameter.device_mesh
    size = parameter.shape[placement.dim]
    each = -(-size // mesh.size())
    begin = min(mesh.get_local_rank() * each, size)
    return Shard(tuple(parameter.shape), placement.dim, begin, min(each, size - begin))


def _is_same_memory(first: Tensor, second: Tensor) -> bool:
    return first.numel() > 0 and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _leaves_behind(value: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a backward pass leaves gradients in."""
    seen: set[Any] = {value.grad_fn}
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            yield node.variable
        following = {edge[0] for edge in node.next_functions} - seen
        seen |= following
        waiting.extend(following)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _taker(name: str, take: TakeGradient) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        gradient: Any = parameter.grad
        parameter.grad = None
        if gradient is not None:
            take(name, _local(gradient))

    return hook


def refuse_frozen(parameters: Mapping[str, nn.Parameter], moved: list[str]) -> None:
    """Refuse parameters that move along the path and require no gradient: FSDP2 computes none for them.

    Args:
        parameters: First name to parameter.
        moved: First names of those that move.

    Raises:
        UnsupportedModelError: There are some; they are named.
    """
    without = [name for name in moved if not parameters[name].requires_grad]
    if without:
        raise UnsupportedModelError(
            f"base and target differ in {name_some(without)}, which require no gradient in a sharded model. Call "
            "model.requires_grad_(True) before fully_shard."
        )
