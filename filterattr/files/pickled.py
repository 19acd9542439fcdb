"""The pickles of `torch.save`, read without running anything: tensors and plain containers are built here, by name.

Nothing that a pickle names is imported or called. What it would take to read a class is skipped, and its name is kept.
A tensor is built if its storage is known to lie in the file and to hold all that the tensor shows.
"""

from __future__ import annotations

import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.errors import is_out_of_memory

_MOST_DIMENSIONS = 64
_MOST_KEY_PARTS = 64
_MOST_COPIED = 2**26
_SCALARS = (str, int, float, complex, bool, bytes, type(None), torch.dtype, torch.device)
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class PickledError(Exception):
    """A pickle is not one that `torch.save` writes; the message says why."""


class NotPlain(NamedTuple):
    """Stands for a tensor that has no plain values.

    Attributes:
        what: What it is.
    """

    what: str


class Global(NamedTuple):
    """A name that a pickle refers to; it stands for nothing else."""

    name: str


class Foreign(NamedTuple):
    """Stands for an object of a class that is not read."""

    name: str


class StorageClaim(NamedTuple):
    """What a pickle says of a storage.

    Attributes:
        key: Its name.
        dtype: Type of its elements.
        numel: Number of its elements.
    """

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return self.numel * self.dtype.itemsize


class Storage(NamedTuple):
    """Memory that a record of the file will be read into.

    Attributes:
        memory: All of its bytes.
        dtype: Type of its elements.
        begin: Place of the first byte that counts; storages of old files can be parts of others.
        size: Number of bytes that count.
    """

    memory: Tensor
    dtype: torch.dtype
    begin: int
    size: int


Allocate: TypeAlias = Callable[[StorageClaim], Tensor]


def read_pickle(stream: BinaryIO, allocate: Allocate, foreign: set[str]) -> Any:
    """Read one pickle; the stream is then behind it.

    Args:
        stream: At the beginning of the pickle.
        allocate: Gives the memory of a storage, as a row of bytes, or raises `PickledError`; it is called once for
            every mention.
        foreign: Gets the names of the classes and functions that were skipped.

    Returns:
        What the pickle holds: tensors and plain values, and `NotPlain`, `Foreign` and `Global` in the place of others.

    Raises:
        PickledError: It is damaged, or does what `torch.save` does not.

    Example:
        >>> import io, pickle, datetime
        >>> foreign = set()
        >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5], "b": datetime.date(2021, 1, 1)})), None, foreign)
        {'a': [1, 2.5], 'b': Foreign(name='datetime.date')}
        >>> foreign
        {'datetime.date'}
    """
    machine = _Machine(allocate, foreign)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name != "STOP":
                machine.do(opcode.name, argument)
        (value,) = machine.stack
    except PickledError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _odd(error) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _odd(error) from error
    return value


def _odd(error: Exception) -> PickledError:
    return PickledError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


class _Machine:
    """A stack, a memo, and what each opcode does to them."""

    def __init__(self, allocate: Allocate, foreign: set[str]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._allocate = allocate
        self._foreign = foreign
        self._copied = 0

    def do(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        else:
            action = _ACTIONS.get(name)
            if action is None:
                raise PickledError(f"it uses {name}, which torch.save never does")
            action(self, argument)

    def pop_mark(self) -> list[Any]:
        """Everything since the last mark."""
        items = self.stack
        self.stack = self._below.pop()
        return items

    def mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def get(self, place: Any) -> None:
        self.stack.append(self._memo[place])

    def drop(self, _: Any) -> None:
        self.stack.pop()

    def drop_mark(self, _: Any) -> None:
        self.pop_mark()

    def make_frozen(self, _: Any) -> None:
        items = frozenset(map(_checked_key, self.pop_mark()))
        self.stack.append(items)

    def make_tuple(self, _: Any) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def make_short_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise PickledError("its stack is empty")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def make_list(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def extend(self, _: Any) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        if type(holder) is list:
            holder += items
        elif type(holder) is set:
            holder.update(map(_checked_key, items))
        elif type(holder) is not Foreign:
            raise PickledError(f"it appends to a {type(holder).__name__}")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        if type(holder) is Foreign:
            return
        if type(holder) not in (dict, OrderedDict, Counter):
            raise PickledError(f"it sets items of a {type(holder).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            holder[_checked_key(key)] = value

    def find(self, name: Any) -> None:
        """A name of a module and one in it, separated by a space."""
        module, _, inner = str(name).partition(" ")
        self._push_global(module, inner)

    def find_on_stack(self, _: Any) -> None:
        inner, module = self.stack.pop(), self.stack.pop()
        self._push_global(str(module), str(inner))

    def _push_global(self, module: str, inner: str) -> None:
        name = f"{'builtins' if module == '__builtin__' else module}.{inner}"
        if name in _DTYPES:
            self.stack.append(_DTYPES[name])
        elif name in _BUILDERS or name in _KNOWN or (module.startswith("torch") and inner in _STORAGES):
            self.stack.append(Global(name))
        else:
            self._foreign.add(name)
            self.stack.append(Foreign(name))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._called(function, arguments))

    def _called(self, function: Any, arguments: Any) -> Any:
        if type(function) is Foreign:
            return function
        if type(function) is not Global or type(arguments) is not tuple:
            raise PickledError(f"it calls a {type(function).__name__}")
        if function.name == _RETYPE:  # a tensor with attributes, which are not read, or of a class, which is skipped
            inner, _, arguments, _ = arguments
            return self._called(inner, arguments)
        if function.name not in _BUILDERS:
            raise PickledError(f"it calls {function.name}")
        self._copied += sum(len(given) for given in arguments if isinstance(given, list | str | bytes | dict))
        if self._copied > _MOST_COPIED:
            raise PickledError("it copies its parts too often")
        return _BUILDERS[function.name](*arguments)

    def call_with_names(self, _: Any) -> None:
        self.stack.pop()
        self.call(None)

    def build(self, _: Any) -> None:
        """Attributes of containers and of skipped objects are not read; a tensor has none that are set like this."""
        self.stack.pop()
        if type(self.stack[-1]) not in (OrderedDict, Foreign):
            raise PickledError(f"it sets the state of a {type(self.stack[-1]).__name__}")

    def storage(self, _: Any) -> None:
        given = self.stack.pop()
        if type(given) is tuple and given[:1] == ("module",):  # old files tell the source of a class
            self.stack.append(given[1])
            return
        if type(given) is not tuple or len(given) not in (5, 6) or given[0] != "storage":
            raise PickledError("it refers to something else than a storage")
        _, kind, key, _, numel, *view = given
        dtype = _STORAGES.get(kind.name.rpartition(".")[2]) if type(kind) is Global else None
        if dtype is None or not kind.name.startswith("torch.") or type(key) is not str or not _is_size(numel):
            raise PickledError(f"it refers to the storage {given[1:]!r:.200}")
        claimed = StorageClaim(key, dtype, numel)
        memory = self._allocate(claimed)
        begin, size = _view(claimed, view[0]) if view and view[0] is not None else (0, claimed.size)
        self.stack.append(Storage(memory, dtype, begin, size))

    def nothing(self, _: Any) -> None:
        pass


def _view(claimed: StorageClaim, view: Any) -> tuple[int, int]:
    """Where a part of a storage lies in it, in files of before version 0.4."""
    _, offset, numel = view
    if not _is_size(offset) or not _is_size(numel) or offset + numel > claimed.numel:
        raise PickledError(f"a part of the storage '{claimed.key}' does not lie in it")
    return offset * claimed.dtype.itemsize, numel * claimed.dtype.itemsize


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _checked_key(key: Any) -> Any:
    """Keys are hashed, which nested ones could make endless."""
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _MOST_KEY_PARTS or not all(isinstance(part, (*_SCALARS, Global, Foreign)) for part in parts):
        raise PickledError(f"it has a {type(key).__name__} as a key")
    return key


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype, needs_grad: Any) -> Tensor:
    """Show a storage as a tensor, if it holds all of it."""
    if type(storage) is not Storage:
        raise PickledError(f"a tensor stands on a {type(storage).__name__} instead of a storage")
    sizes = (*shape, *strides, offset)
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, sizes)):
        raise PickledError(f"a tensor has the shape {shape!r:.100}, strides {strides!r:.100} and offset {offset!r:.20}")
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device="cpu").requires_grad_(bool(needs_grad))
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > storage.size:
        raise PickledError(
            f"a tensor of the shape {tuple(shape)} needs {(last + 1) * dtype.itemsize} bytes of a storage of "
            f"{storage.size}"
        )
    if storage.begin % dtype.itemsize:
        raise PickledError("a tensor begins inside of a number")
    start = storage.begin // dtype.itemsize + offset
    tensor = torch.empty(0, dtype=dtype, device="cpu")
    return tensor.set_(storage.memory.untyped_storage(), start, shape, strides).requires_grad_(bool(needs_grad))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return _tensor(storage, offset, shape, strides, storage.dtype, needs_grad=False)


def _rebuild_2(
    storage: Any, offset: Any, shape: Any, strides: Any, needs_grad: Any, _hooks: Any, metadata: Any = None
) -> Tensor | NotPlain:
    return _seen(_tensor(storage, offset, shape, strides, storage.dtype, needs_grad), metadata)


def _rebuild_3(
    storage: Any, offset: Any, shape: Any, strides: Any, needs_grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor | NotPlain:
    if not isinstance(dtype, torch.dtype):
        raise PickledError(f"a tensor has the type {dtype!r:.100}")
    return _seen(_tensor(storage, offset, shape, strides, dtype, needs_grad), metadata)


def _seen(tensor: Tensor, metadata: Any) -> Tensor | NotPlain:
    """A tensor may stand for the conjugate of what is stored."""
    if not metadata:
        return tensor
    if type(metadata) is not dict or metadata.get("neg"):
        return NotPlain("a negated view")
    return tensor.conj() if metadata.get("conj") else tensor


def _rebuild_parameter(tensor: Any, needs_grad: Any, _hooks: Any, _state: Any = None) -> Any:
    """A parameter; what is no tensor stays what it is."""
    return nn.Parameter(tensor, bool(needs_grad)) if isinstance(tensor, Tensor) else tensor


def _rebuild_sparse(layout: Any, data: Any) -> NotPlain:
    values = data[1] if layout == "torch.sparse_coo" else data[2]
    return NotPlain(f"{layout} of {getattr(values, 'dtype', 'no type')} on cpu")


def _rebuild_quantized(storage: Any, *_: Any) -> NotPlain:
    return NotPlain(f"torch.strided of {storage.dtype} on cpu")


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((_checked_key(key), value) for key, value in items)


def _count(counts: Any = None) -> Counter[Any]:
    return Counter({_checked_key(key): value for key, value in dict(counts or {}).items()})


def _set(items: Any = ()) -> set[Any]:
    return set(map(_checked_key, items))


def _encoded(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise PickledError(f"bytes are encoded as {encoding!r:.20}")
    return bytes(text.encode("latin1"))


def _byte_array(content: Any = b"") -> bytearray:
    if type(content) is not bytes:  # a number would be a length
        raise PickledError("a row of bytes is made of something else")
    return bytearray(content)


def _layout(name: Any) -> str:
    return str(name)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild_2,
    "torch._utils._rebuild_tensor_v3": _rebuild_3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_qtensor": _rebuild_quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, *_: NotPlain(f"torch.strided of {dtype} on meta"),
    "torch._utils._rebuild_nested_tensor": lambda *_: NotPlain("a nested tensor"),
    "torch.serialization._get_layout": _layout,
    "torch.Size": tuple,
    "torch.device": lambda kind, index=None: f"{kind}" if index is None else f"{kind}:{index}",
    "collections.OrderedDict": _ordered,
    "collections.Counter": _count,
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    "builtins.frozenset": lambda items=(): frozenset(_set(items)),
    "builtins.bytearray": _byte_array,
    "builtins.complex": lambda real, imaginary=0.0: complex(float(real), float(imaginary)),
}
_RETYPE = "torch._tensor._rebuild_from_type_v2"
_KNOWN = (_RETYPE, "torch.Tensor", "torch.nn.parameter.Parameter")
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING")
_PUSHED = frozenset((*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_mark,
    "FROZENSET": _Machine.make_frozen,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "LIST": _Machine.make_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}
