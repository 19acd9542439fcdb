"""Why a function returns another value each time: what it refers to is looked at before and after a call."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIMIT = 5_000  # values
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def changed_by(call: Callable[[], object], roots: dict[str, Any]) -> list[str]:
    """Find what a call changes.

    Args:
        call: What is called, once.
        roots: Name to a value where to look: functions with all that they refer to, containers, objects, tensors.

    Returns:
        The names of what is another value afterwards, in words.

    Example:
        >>> calls = []
        >>> changed_by(lambda: calls.append(1), {"loss": lambda: len(calls)})
        ["'calls' of loss (a list)"]
    """
    before = {name: digest for name, _, digest in _states(roots)}
    call()
    return [f"{name} ({kind})" for name, kind, digest in _states(roots) if before.get(name, digest) != digest]


def roots_of(loss: Any, model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Where a loss can keep something from one call to the next.

    Args:
        loss: The loss.
        model: Its model; what the modules hold themselves is given back after every call, their classes are not.
        arguments: What it gets after the model.

    Returns:
        What `changed_by` takes.
    """
    roots = {"the loss": loss, "the sample": arguments[0] if arguments else None}
    for kind in {type(module) for module in model.modules()}:
        if not kind.__module__.startswith("torch."):
            roots[f"class {kind.__name__}"] = {
                name: value for name, value in vars(kind).items() if not name.startswith("__") or name == "__call__"
            }
    return roots


def _states(roots: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the name, the class and a digest of every value that can be reached and can change."""
    waiting: deque[tuple[str, str, Any]] = deque((name, "", value) for name, value in roots.items())
    seen: set[int] = set()
    for _ in range(_LIMIT):
        if not waiting:
            return
        root, name, value = waiting.popleft()
        if isinstance(value, _PLAIN):
            yield _told(root, name), "a number" if isinstance(value, int | float) else "a value", repr(value).encode()
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        content = _content(value)
        if content is not None:
            yield _told(root, name), f"a {type(value).__name__}", hashlib.sha256(content).digest()
        waiting.extend((root, f"{name}{key}" if name else key.lstrip("."), part) for key, part in _inside(value))


def _told(root: str, name: str) -> str:
    return f"'{name}' of {root}" if name else root


def _content(value: Any) -> bytes | None:
    """What a value holds itself, without what it refers to."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or hasattr(value, "placements"):
            return None
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value.tobytes()
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().numpy().tobytes())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return repr(value.getstate()).encode()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state).encode()
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False)).encode()
    if isinstance(value, dict | list | set | deque):
        return str(len(value)).encode()
    return None


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value refers to, with what leads to it."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items())[:_LIMIT])
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{place}]", part) for place, part in enumerate(list(value)[:_LIMIT]))
    elif isinstance(value, FunctionType):
        yield from _referred(value)
    elif isinstance(value, MethodType):
        yield from (("", value.__func__), ("", value.__self__))
    elif isinstance(value, partial):
        yield from (("", value.func), (".args", value.args), (".keywords", value.keywords))
    elif not isinstance(value, type | Tensor | np.ndarray) and not _is_foreign(value):
        yield from _attributes(value)


def _referred(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to: variables around it, globals and default arguments."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    yield from ((f".{name}", function.__globals__[name]) for name in code.co_names if name in function.__globals__)
    yield from ((f".default {place}", part) for place, part in enumerate(function.__defaults__ or ()))
    yield from ((f".{name}", part) for name, part in (function.__kwdefaults__ or {}).items())


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, the children of a module without the level between."""
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for name, part in attributes.items():
            if isinstance(value, nn.Module) and name in ("_modules", "_parameters", "_buffers"):
                yield from ((f".{local}", inner) for local, inner in part.items())
            else:
                yield f".{name}", part
    if not isinstance(value, nn.Module) and "__call__" in vars(type(value)):
        yield "", vars(type(value))["__call__"]


def _is_foreign(value: Any) -> bool:
    """Whether it is an object of Python, PyTorch or NumPy that holds nothing of the user's."""
    top = type(value).__module__.partition(".")[0]
    return top in ("builtins", "torch", "numpy") and not isinstance(value, nn.Module)
