"""A model computes with other weights for a while and gets its own back, bit for bit.

A slot is an entry of a module's ``_parameters`` or ``_buffers``. Other tensors are put into the slots; the user's own
objects are never written to, and go back in by identity. That keeps their values, layout, flags, hooks, ``.grad`` and
version counters without copying any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from filterattr.errors import LossError, ModelChangedError, UnsupportedModelError, gathered, name_some
from filterattr.model.holdings import Holdings
from filterattr.model.state_dict import without_compiled

Answer = TypeVar("Answer")

_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


@dataclass(frozen=True)
class Owner:
    """Where a parameter lives: the module, the module's name, and the parameter's name inside it."""

    module: nn.Module
    path: str
    local: str


class WriteGuard:
    """Finds out that something has written to tensors; those made in inference mode do not tell.

    Args:
        tensors: Names and tensors.

    Example:
        >>> weight = torch.zeros(2)
        >>> guard = WriteGuard([("w", weight)])
        >>> _ = weight.add_(1)
        >>> guard.written()
        ['w']
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = [(name, tensor) for name, tensor in tensors if not tensor.is_inference()]
        self.begin()

    def begin(self) -> None:
        """Forget what was written before."""
        self._versions = [tensor._version for _, tensor in self._tensors]

    def written(self) -> list[str]:
        """Name what was written to since the beginning."""
        if [tensor._version for _, tensor in self._tensors] == self._versions:
            return []
        both = zip(self._tensors, self._versions, strict=True)
        return [name for (name, tensor), before in both if tensor._version != before]


class ParameterSwap:
    """The parameter and buffer slots of one model.

    One object that sits in several slots (tied weights, a module under two names) counts once, under its first name;
    `aliases` leads from every name to that first one. The level that `torch.compile` puts between a module and its
    parameters is left out of the names.

    Attributes:
        parameters: First name to the model's own parameter, in the order of ``named_parameters()``.
        buffers: First name to the model's own buffer.
        owners: First name to where the parameter lives.
        aliases: Every name of a parameter or buffer to its first name.

    Args:
        model: The model, not wrapped.

    Raises:
        UnsupportedModelError: A parameter is lazy, on the meta device, distributed or no plain tensor, or a module is
            scripted, sharded or quantized; every one of them is named.
    """

    def __init__(self, model: nn.Module) -> None:
        self._refuse_unsupported(model)
        self.parameters: dict[str, nn.Parameter] = {}
        self.buffers: dict[str, Tensor] = {}
        self.owners: dict[str, Owner] = {}
        self.aliases: dict[str, str] = {}
        self._modules: dict[int, nn.Module] = {}
        self._holdings: Holdings | None = None
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self._held: dict[str, Tensor] = {}
        self._kinds: dict[str, _Kind] = {}
        self._marks: dict[str, dict[str, Any]] = {}  # that people leave on their parameters
        self._resting = WriteGuard(())
        self._dirty = False
        first_names: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            seen = id(module) in self._modules
            prefix = without_compiled(path)
            self._modules[id(module)] = module
            for local, tensor, is_parameter in _entries(module):
                name = f"{prefix}.{local}" if prefix else local
                first = first_names.setdefault(id(tensor), name)
                self.aliases[name] = first
                if first == name:
                    known: dict[str, Any] = self.parameters if is_parameter else self.buffers
                    known[name] = tensor
                    self.owners[name] = Owner(module, path, local)
                if not seen:
                    entries = module._parameters if is_parameter else module._buffers
                    self._places.setdefault(first, []).append((entries, local))

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into the slots; call it inside two nested ``try``, each with `restore` in its ``finally``.

        Whatever else the modules hold, however deep, holds the same tensors; other tensors and arrays are replaced by
        copies, so that a forward pass that writes into them writes into copies.

        Args:
            tensors: First name to tensor; for a parameter, an `torch.nn.Parameter`.
        """
        holdings = self._holdings or self._look_around()
        self._dirty = True
        self._held = dict(tensors)
        self._resting.begin()
        for name, tensor in tensors.items():
            if name in self._marks:
                tensor.__dict__.update(self._marks[name])
            for entries, local in self._places[name]:
                entries[local] = tensor
        if holdings.places:
            holdings.put(tensors)

    def holding(self, tensors: Mapping[str, Tensor]) -> Holding:
        """Put tensors into the slots, and find at the end of the ``with`` block that they are still there.

        Nothing is undone: the block belongs into the work of `restoring`, with `restore`.

        Args:
            tensors: As for `put`.
        """
        return Holding(self, tensors)

    def check(self) -> None:
        """Make sure that every slot still holds what was put there, and that the model's own tensors rest.

        Raises:
            ModelChangedError: The loss, or another thread, replaced, converted or wrote to parameters; they are named.
        """
        replaced = [
            name
            for name, kind in self._kinds.items()
            if name in self._held
            for tensor in (self._held[name],)
            if (tensor.dtype, tensor.device, tensor.shape) != kind
            or [local for entries, local in self._places[name] if entries.get(local) is not tensor]
        ]
        if replaced:
            raise ModelChangedError(
                f"a parameter was replaced while the loss ran: {name_some(replaced)}. The loss must not assign, "
                "convert (.half(), .to()) or load weights, and one model must not be used by two calls at once."
            )
        written = self._resting.written()
        if written:
            raise ModelChangedError(
                f"the model's own weights were written to while the loss ran: {name_some(written)}. The loss must only "
                "compute, with the model it is given; what it wrote elsewhere cannot be undone."
            )

    def check_graph(self, value: Tensor) -> None:
        """Make sure that a loss was computed without the model's own parameters, while others were in their slots.

        Args:
            value: The loss, with its graph.

        Raises:
            LossError: It was computed with some of them; they are named.
        """
        refuse_behind(value, self.parameters)

    def restore(self) -> None:
        """Give the model its own objects back; doing it twice does no harm."""
        if self._holdings is None or not self._dirty:
            return
        self._holdings.restore()
        self._held = {}
        self._dirty = False

    def _refuse_unsupported(self, model: nn.Module) -> None:
        """Gather everything that cannot be swapped into one error."""
        findings = []
        for path, module in model.named_modules():
            problem = _module_problem(module)
            if problem:
                findings.append((f"module '{path}' " if path else "the model ") + problem)
            for local, tensor, _ in _entries(module):
                problem = _tensor_problem(module, local, tensor)
                if problem:
                    findings.append(f"'{path}.{local}' {problem}" if path else f"'{local}' {problem}")
        if findings:
            raise UnsupportedModelError(f"the weights of the model must be exchangeable: {gathered(findings)}.")

    def _look_around(self) -> Holdings:
        """Find once, before anything is exchanged, what every exchange needs."""
        registered = {**self.parameters, **self.buffers}
        self._resting = WriteGuard(registered.items())
        self._kinds = {name: (value.dtype, value.device, value.shape) for name, value in self.parameters.items()}
        self._marks = {name: value.__dict__ for name, value in self.parameters.items() if value.__dict__}
        self._holdings = Holdings(self._modules.values(), registered)
        return self._holdings


def restoring(work: Callable[[], Answer], *give_back: Callable[[], object]) -> Answer:
    """Do something, and give everything back afterwards, twice.

    An interrupt can arrive at any instruction. One in the first ``finally`` leaves the second one to do its work, so
    that every step of giving back must be one that does no harm when it is done again. No ``with`` block can do this:
    an interrupt between its ``__enter__`` and its body skips its ``__exit__``.

    Args:
        work: What is done; all that must be given back is changed in here.
        give_back: What gives it back, in order; each does no harm twice, nor if nothing was changed.

    Returns:
        What ``work`` returns.

    Example:
        >>> given_back = []
        >>> restoring(lambda: "done", lambda: given_back.append("a"), lambda: given_back.append("b"))
        'done'
        >>> given_back
        ['a', 'b', 'a', 'b']
    """
    try:
        try:
            return work()
        finally:
            for give in give_back:
                give()
    finally:
        for give in give_back:
            give()


class Holding:
    """The block of `ParameterSwap.holding`."""

    def __init__(self, swap: ParameterSwap, tensors: Mapping[str, Tensor]) -> None:
        self._swap, self._tensors = swap, tensors

    def __enter__(self) -> None:
        self._swap.put(self._tensors)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._swap.check()
        elif isinstance(error, Exception):
            try:
                self._swap.check()
            except ModelChangedError as cause:
                raise cause from error  # what went wrong afterwards is a mere consequence


def is_sharded_kind(kind: type[nn.Module]) -> bool:
    """Whether `fully_shard` has made a class of modules."""
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` has split the parameters of some module.

    Args:
        model: The model.

    Example:
        >>> is_sharded(nn.Linear(1, 1))
        False
    """
    return any(map(is_sharded_kind, set(map(type, model.modules()))))


def refuse_behind(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse a loss that was computed with a model's own parameters while others were in its slots.

    Args:
        value: The loss, with its graph.
        parameters: The model's own parameters.

    Raises:
        LossError: It was computed with some of them; they are named.
    """
    used = parameters_behind(value, parameters)
    if used:
        raise LossError(
            "the loss must compute with the weights that the model holds while it runs, but it uses the model's own "
            f"{name_some(used)}. Something keeps {'it' if len(used) == 1 else 'them'} where nothing can be put in its "
            "place, such as a global, a class or a weak reference. Take the weight from the model whenever it is "
            "needed; what is meant as a constant must be a copy, weight.detach().clone()."
        )


def parameters_behind(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Find the parameters that a value was computed from; those that require no gradient are in no graph.

    Args:
        value: A tensor with its graph.
        parameters: Where to look.

    Returns:
        The names of those that the graph leads to.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> parameters_behind(layer.weight.exp().sum(), dict(layer.named_parameters()))
        ['weight']
    """
    seen: set[Any] = {value.grad_fn}
    waiting = [value.grad_fn]
    reached = {id(value)}
    while waiting:
        node: Any = waiting.pop()
        if node is None:
            continue
        reached.add(id(getattr(node, "variable", None)))
        following = {edge[0] for edge in node.next_functions} - seen
        seen |= following
        waiting.extend(following)
    return [name for name, parameter in parameters.items() if id(parameter) in reached]


_Kind = tuple[torch.dtype, torch.device, torch.Size]  # what `torch.nn.Module.to` changes without replacing it


def _entries(module: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Yield local name, tensor and whether it is a parameter, for everything a module itself holds."""
    for local, parameter in module._parameters.items():
        if parameter is not None:
            yield local, parameter, True
    for local, buffer in module._buffers.items():
        if buffer is not None:
            yield local, buffer, False


def _module_problem(module: nn.Module) -> str | None:
    """Say why the weights of a kind of module cannot be exchanged."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"is scripted or traced ({kind.__name__}): pass the eager module"
    if any(base.__name__ in _SHARDED for base in kind.__mro__):
        return f"is sharded ({kind.__name__}): gather its full weights first"
    if ".quantized" in kind.__module__:
        return f"is quantized ({kind.__name__}): use the floating model"
    return None


def _tensor_problem(module: nn.Module, local: str, tensor: Tensor) -> str | None:
    """Say why one parameter or buffer cannot be exchanged."""
    if is_lazy(tensor):
        return "has no shape yet: run one forward pass first"
    if hasattr(tensor, "placements"):
        return "is a distributed tensor: gather it first"
    if tensor.device.type == "meta":
        return "is on the meta device: load its weights first"
    if tensor.is_quantized:
        return "is quantized: use the floating model"
    if tensor.layout != torch.strided or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"is no plain dense tensor ({type(tensor).__name__}, {tensor.layout}): convert it first"
    if local in module.__dict__:
        return "is shadowed by an attribute of the same name: delete the attribute"
    return None
