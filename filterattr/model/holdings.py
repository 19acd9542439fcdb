"""What modules hold beside their slots: found by one search, exchanged for a while, and given back by identity.

Attributes, containers however deep, helper objects and modules that are not registered can hold weights of the model
once more, and tensors that a forward pass writes to. The weights are exchanged there, too, and the tensors are replaced
by copies.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import is_
from types import BuiltinMethodType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_LIMIT = 50_000  # entries; what holds more is a data set
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size))
_SLOTS = ("_parameters", "_buffers", "_modules")
_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy"}
_METHODS = (BuiltinMethodType, MethodType)
_FUNCTIONS = (FunctionType, *_METHODS, partial)
_CONTAINERS = (dict, list, deque, set)
_WALKED = (UserDict, UserList, SimpleNamespace)
_Container = dict[Any, Any] | list[Any] | deque[Any] | set[Any]


class Contents:
    """The content of dictionaries, lists and sets; `restore` puts the same objects back in the same order.

    Example:
        >>> names, contents = ["a"], Contents()
        >>> contents.keep(names)
        >>> names.clear()
        >>> contents.restore()
        >>> names
        ['a']
    """

    def __init__(self) -> None:
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._empty: list[_Container] = []

    def keep(self, container: _Container) -> None:
        """Remember what a container holds.

        Args:
            container: The container; it stays the user's.
        """
        if not container:  # most are: hooks that nobody has registered
            self._empty.append(container)
        elif isinstance(container, dict):
            self._dicts.append((container, dict(container)))
        elif isinstance(container, set):
            self._sets.append((container, set(container)))
        else:
            self._lists.append((container, list(container)))

    def restore(self) -> None:
        """Write back only what differs, so that nothing but identities ever changes."""
        if any(self._empty):
            for container in self._empty:
                if container:
                    _empty_again(container)
        for entries, own_entries in self._dicts:
            restore_dict(entries, own_entries)
        for items, own_items in self._lists:
            if len(items) != len(own_items) or not all(map(is_, items, own_items)):
                items.clear()
                items.extend(own_items)
        for members, own_members in self._sets:
            if members != own_members:
                members.clear()
                members.update(own_members)


class ModuleSnapshot:
    """The class and the attributes of one object.

    Args:
        owner: A module, or any other object with a ``__dict__``.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self._kind = type(owner)
        self._attributes = dict(owner.__dict__)

    def is_as_it_was(self) -> bool:
        """Whether nothing has to be given back."""
        return type(self.owner) is self._kind and _same(self.owner.__dict__, self._attributes)

    def restore(self) -> None:
        """Give the object its own back; doing it twice does no harm."""
        if type(self.owner) is not self._kind:
            self.owner.__class__ = self._kind
        restore_dict(self.owner.__dict__, self._attributes)


class _Place(NamedTuple):
    """Where a value lies: ``holder[key]`` can be assigned to."""

    holder: Any
    key: Any
    value: Any


class _Setter:
    """Lets what cannot be indexed be assigned to anyway: cells, ``__slots__``, arguments of partial functions."""

    def __init__(self, assign: Callable[[Any, Any], object]) -> None:
        self._assign = assign

    def __setitem__(self, key: Any, value: Any) -> None:
        self._assign(key, value)


class Holdings:
    """Everything that the modules of a model hold beside their slots.

    Functions (hooks, closures, partial functions) are searched for weights of the model alone: what else they refer to
    may be where the user collects things on purpose.

    Args:
        modules: The modules of the model.
        registered: The model's own parameters and buffers, by name.

    Attributes:
        places: Where something is exchanged; nothing is to be put anywhere if there are none.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.tied = [layer.weight]
        >>> holdings = Holdings([layer], {"weight": layer.weight})
        >>> leaf = nn.Parameter(torch.zeros(1, 1))
        >>> holdings.put({"weight": leaf})
        >>> layer.tied[0] is leaf
        True
        >>> holdings.restore()
        >>> layer.tied[0] is layer.weight
        True
    """

    def __init__(self, modules: Iterable[nn.Module], registered: Mapping[str, Tensor]) -> None:
        self._registered = registered
        self._names = {id(tensor): name for name, tensor in registered.items()}
        self._snapshots: list[ModuleSnapshot] = []
        self._contents = Contents()
        self.places: list[_Place] = []
        self._restored: list[_Place] = []  # those that neither a snapshot nor the contents give back
        self._copied: dict[int, Any] = {}
        self._views: dict[int, tuple[str, Tensor]] = {}
        self._generators: list[tuple[Callable[[Any], object], Any]] = []
        self._memories: dict[int, list[str]] | None = None
        self._seen: set[int] = set()
        self._kept: set[int] = set()
        self._walk(list(modules))

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Exchange the model's own tensors, and replace others by copies.

        Args:
            tensors: Name to what is put in the place of the own tensor.
        """
        new: dict[int, Any] = {
            key: tensors[name] for key, name in self._names.items() if name in tensors and key in self._seen
        }
        new |= _copies(self._copied)
        for key, (name, view) in self._views.items():
            new[key] = _same_view(view, self._registered[name], tensors.get(name))
        for holder, key, value in self.places:
            holder[key] = _rebuilt(value, new)

    def restore(self) -> None:
        """Give every holder its own objects back; doing it twice does no harm."""
        for snapshot in self._snapshots:
            if not snapshot.is_as_it_was():
                snapshot.restore()
        self._contents.restore()
        for holder, key, value in self._restored:
            holder[key] = value
        for assign, state in self._generators:
            assign(state)

    def _walk(self, modules: list[nn.Module]) -> None:
        """Look at everything that can be reached, what is looked after first."""
        self._seen.update(map(id, modules))
        waiting: deque[_Place] = deque()
        for module in modules:
            self._snapshots.append(ModuleSnapshot(module))
            attributes = module.__dict__
            for name, value in attributes.items():
                if type(value) in _PLAIN:
                    continue
                if isinstance(value, _CONTAINERS):
                    self._keep(value)
                    if not value or name in _SLOTS:  # most are empty: hooks that nobody has registered
                        continue
                waiting.append(_Place(attributes, name, value))
        functions: list[_Place] = []
        for _ in range(_LIMIT):
            if not waiting:
                break
            place = waiting.popleft()
            functions += self._look(place, waiting)
        waiting.extend(functions)
        for _ in range(_LIMIT):
            if not waiting:
                break
            self._look_into_function(waiting.popleft(), waiting)
        self._memories = None

    def _look(self, place: _Place, waiting: deque[_Place]) -> Iterator[_Place]:
        """Look at one value; yield it if functions are in it."""
        is_exchanged = False
        for part in _parts(place.value):
            kind = type(part)
            if kind in _PLAIN:
                continue
            if isinstance(part, Tensor):
                is_exchanged |= self._is_exchanged(part)
            elif kind is np.ndarray:
                if part.flags.writeable:
                    self._copied[id(part)] = part
                    is_exchanged = True
            elif isinstance(part, _FUNCTIONS):
                yield _Place(place.holder, place.key, part)
            elif id(part) not in self._seen:
                self._seen.add(id(part))
                waiting.extend(self._inside(part))
        if is_exchanged:
            self.places.append(place)
            if isinstance(place.holder, _Setter):
                self._restored.append(place)

    def _inside(self, value: Any) -> Iterator[_Place]:
        """Yield what lies in a container or an object of the user, and remember it."""
        if isinstance(value, _CONTAINERS):
            self._keep(value)
            yield from _entries(value)
        elif (state := _state_of(value)) is not None:
            self._generators.append(state)
        elif isinstance(value, nn.Module) or _is_users(value):
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                self._snapshots.append(ModuleSnapshot(value))
                yield from _entries(attributes)
            setter = _Setter(partial(object.__setattr__, value))
            for name, part in _slotted(value):
                self._restored.append(_Place(setter, name, part))
                yield _Place(setter, name, part)

    def _keep(self, container: _Container) -> None:
        if id(container) not in self._kept:
            self._kept.add(id(container))
            self._contents.keep(container)

    def _is_exchanged(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the model's own, or a plain one, which is replaced by a copy."""
        if id(tensor) in self._names:
            self._seen.add(id(tensor))
            return True
        if type(tensor) is not Tensor:
            return False
        name = self._owner_of(tensor)
        if name is None:
            self._copied[id(tensor)] = tensor
        else:
            self._views[id(tensor)] = name, tensor
        return True

    def _owner_of(self, tensor: Tensor) -> str | None:
        """The parameter that a plain tensor is a view of."""
        if self._memories is None:
            self._memories = {}
            for name, parameter in self._registered.items():
                if isinstance(parameter, nn.Parameter):
                    self._memories.setdefault(_memory(parameter), []).append(name)
        memory = _memory(tensor)
        for name in self._memories.get(memory, ()) if memory else ():
            parameter = self._registered[name]
            if 0 <= tensor.storage_offset() - parameter.storage_offset() < parameter.numel():
                return name
        return None

    def _look_into_function(self, place: _Place, waiting: deque[_Place]) -> None:
        """Look at one value that a function refers to, for weights of the model alone."""
        is_exchanged = False
        for part in _parts(place.value):
            if type(part) in _PLAIN:
                continue
            if isinstance(part, Tensor):
                is_exchanged |= id(part) in self._names
            elif id(part) not in self._seen:
                self._seen.add(id(part))
                waiting.extend(_referred(part))
        if is_exchanged:
            self._seen.update(map(id, _parts(place.value)))
            self.places.append(place)
            self._restored.append(place)


def _empty_again(container: _Container) -> None:
    if isinstance(container, dict):
        restore_dict(container, {})
    else:
        container.clear()


def restore_dict(entries: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Make a dictionary hold the same objects in the same order as before.

    Args:
        entries: The dictionary.
        kept: What it held.
    """
    if _same(entries, kept):
        return
    for key in [key for key in entries if key not in kept]:
        del entries[key]
    _fill(entries, kept)
    if not _same(entries, kept):  # deleted and added again: the order is another
        for key in list(entries):
            del entries[key]
        _fill(entries, kept)


def _fill(entries: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Assign one by one: ``update`` of a counter would add."""
    for key, value in kept.items():
        entries[key] = value  # noqa: PERF403 - see above


def _same(entries: dict[Any, Any], kept: dict[Any, Any]) -> bool:
    return len(entries) == len(kept) and all(map(is_, entries, kept)) and all(map(is_, entries.values(), kept.values()))


def _parts(value: Any) -> Iterator[Any]:
    """The value itself, or what lies in it if it cannot be changed."""
    if _is_frozen(value):
        for part in value:
            yield from _parts(part)
    elif type(value) in _METHODS and isinstance(value.__self__, Tensor):
        yield value.__self__
    else:
        yield value


def _rebuilt(value: Any, new: Mapping[int, Any]) -> Any:
    """The value with other tensors in it; itself if there are none."""
    if id(value) in new:
        return new[id(value)]
    if _is_frozen(value):
        parts = [_rebuilt(part, new) for part in value]
        if all(map(is_, parts, value)):
            return value
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if type(value) in _METHODS and id(value.__self__) in new:
        return getattr(new[id(value.__self__)], value.__name__)
    return value


def _is_frozen(value: Any) -> bool:
    """Whether it is a plain or named tuple, or a frozen set: it has to be made again to hold something else."""
    return type(value) in (tuple, frozenset) or (isinstance(value, tuple) and hasattr(value, "_make"))


def _is_users(value: Any) -> bool:
    """Whether an object is of a class of the user, and not of Python, PyTorch or NumPy."""
    if isinstance(value, torch.optim.Optimizer | type):
        return False
    return isinstance(value, _WALKED) or type(value).__module__.partition(".")[0] not in _FOREIGN


def _entries(value: _Container) -> Iterator[_Place]:
    """Where the entries of a container lie."""
    if isinstance(value, Counter) or len(value) > _LIMIT:
        return
    if isinstance(value, dict):
        for key, part in value.items():
            if type(part) not in _PLAIN:
                yield _Place(value, key, part)
    elif isinstance(value, set):
        setter = _Setter(partial(_exchange, value))
        for part in value:
            if type(part) not in _PLAIN:
                yield _Place(setter, part, part)
    else:
        for place, part in enumerate(value):
            if type(part) not in _PLAIN:
                yield _Place(value, place, part)


def _exchange(members: set[Any], old: Any, new: Any) -> None:
    members.discard(old)
    members.add(new)


def _slotted(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that lie in ``__slots__``."""
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _referred(value: Any) -> Iterator[_Place]:
    """What a function refers to, and what lies in that."""
    if isinstance(value, FunctionType):
        if value.__module__ and value.__module__.partition(".")[0] == "torch":
            return
        for cell in value.__closure__ or ():
            try:
                yield _Place(_Setter(partial(setattr, cell)), "cell_contents", cell.cell_contents)
            except ValueError:  # an empty cell
                continue
        yield _Place(_Setter(partial(setattr, value)), "__defaults__", value.__defaults__)
        yield from _entries(value.__kwdefaults__ or {})
    elif isinstance(value, MethodType):
        yield _Place(None, None, value.__self__)
        yield _Place(None, None, value.__func__)
    elif isinstance(value, partial):
        yield _Place(None, None, value.func)
        yield _Place(_Setter(partial(_set_arguments, value)), "args", value.args)
        yield from _entries(value.keywords)
    elif isinstance(value, dict | list | deque):
        yield from _entries(value)
    elif _is_users(value):
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            yield from _entries(attributes)


def _set_arguments(function: partial[Any], _key: str, arguments: tuple[Any, ...]) -> None:
    function.__setstate__((function.func, arguments, function.keywords, function.__dict__ or None))  # type: ignore[attr-defined]


def _state_of(value: Any) -> tuple[Callable[[Any], object], Any] | None:
    """What sets a generator of random numbers, and its present state."""
    if isinstance(value, torch.Generator):
        return value.set_state, value.get_state()
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.setstate, value.getstate()
    if isinstance(value, np.random.RandomState):
        return value.set_state, value.get_state()
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state"), value.bit_generator.state
    return None


def _memory(tensor: Tensor) -> int:
    """The memory that a tensor shows, or 0 if it has none of its own."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and tensor.numel() else 0


def _copies(values: Mapping[int, Any]) -> dict[int, Any]:
    """Copy tensors and arrays; tensors that share memory share it in their copies, too."""
    copies: dict[int, Any] = {}
    shared = Counter(_memory(value) for value in values.values() if isinstance(value, Tensor))
    storages: dict[int, Tensor] = {}
    for key, value in values.items():
        if not isinstance(value, Tensor):
            copies[key] = value.copy(order="K")
            continue
        memory, tensor = _memory(value), value.detach()  # inside of torch.func only the value itself has a memory
        if memory and shared[memory] > 1:
            if memory not in storages:
                memory_bytes = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
                storages[memory] = memory_bytes.clone()
            storage = storages[memory].untyped_storage()
            copies[key] = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                storage, tensor.storage_offset(), tensor.shape, tensor.stride()
            )
        else:
            copies[key] = tensor.clone()
    return copies


def _same_view(view: Tensor, registered: Tensor, leaf: Tensor | None) -> Tensor:
    """What a view of the model's own parameter is of the leaf in its place; a copy where there is no such view."""
    if leaf is None:
        return view.detach().clone()
    offset = view.storage_offset() - registered.storage_offset() + leaf.storage_offset()
    reach = offset + sum(stride * (length - 1) for stride, length in zip(view.stride(), view.shape, strict=True))
    fits = (view.dtype, registered.stride(), registered.shape) == (leaf.dtype, leaf.stride(), leaf.shape)
    size = leaf.untyped_storage().nbytes() // leaf.itemsize
    if not fits or _memory(leaf) == _memory(registered) or offset < 0 or reach >= size:
        return view.detach().clone()
    shown = leaf.as_strided(view.shape, view.stride(), offset)
    # a view of a frozen weight cannot tell whether it was meant to pass gradients on
    return shown if view.requires_grad or not registered.requires_grad else shown.detach()
