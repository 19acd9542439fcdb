"""What makes two things the same for a computation: digests of values, whatever process made them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from filterattr.errors import SettingError

_Digest: TypeAlias = "hashlib._Hash"


def fingerprint(value: object, place: str = "the value") -> str:
    """SHA-256 of a value's content: equal content gives equal digests, also in another process.

    Tensors count with type, shape and bytes, wherever they live; so do arrays and everything that turns itself into an
    array, such as pictures. Numbers, texts, bytes, paths and ``None`` count by value; tuples, lists, mappings and
    dataclasses with their type, order and content.

    Args:
        value: The value.
        place: What it is called in messages.

    Returns:
        64 hexadecimal digits.

    Raises:
        SettingError: The value, or something in it, is none of these; its place is named.

    Example:
        >>> fingerprint({"a": torch.ones(2)}) == fingerprint({"a": torch.ones(2)})
        True
        >>> fingerprint(torch.tensor(0.0)) == fingerprint(torch.tensor(-0.0))
        False
        >>> fingerprint([object()], "sample 3")
        Traceback (most recent call last):
        ...
        filterattr.errors.SettingError: sample 3[0] is an object, whose content cannot be compared. ...
    """
    digest = hashlib.sha256()
    try:
        _feed(digest, value, place)
    except RecursionError as error:
        raise SettingError(f"{place} is nested too deeply, or holds itself.") from error
    return digest.hexdigest()


def _feed(digest: _Digest, value: object, place: str) -> None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise _incomparable(value, place)
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        _feed_text(digest, "tensor", str(plain.dtype), str(tuple(plain.shape)))
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic) or _is_array_like(value):
        array: np.ndarray[Any, Any] = np.asarray(value)
        if array.dtype.hasobject:
            raise _incomparable(value, place)
        _feed_text(digest, type(value).__qualname__, str(array.dtype.descr), str(array.shape))
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    elif value is None or isinstance(value, bool | int | float | complex | str | torch.dtype | torch.device):
        _feed_text(digest, type(value).__qualname__, value.hex() if isinstance(value, float) else str(value))
    elif isinstance(value, bytes | bytearray):
        _feed_text(digest, "bytes", str(len(value)))
        digest.update(value)
    elif isinstance(value, os.PathLike):
        _feed_text(digest, "path", str(os.fspath(value)))
    else:
        _feed_parts(digest, value, place)


def _feed_parts(digest: _Digest, value: object, place: str) -> None:
    """Feed what holds other values."""
    parts: Iterator[tuple[str, Any]]
    if isinstance(value, tuple | list):
        parts = ((f"{place}[{index}]", part) for index, part in enumerate(value))
        count = len(value)
    elif isinstance(value, Mapping):
        parts = (
            pair for key, part in value.items() for pair in ((f"a key of {place}", key), (f"{place}[{key!r}]", part))
        )
        count = len(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        parts = ((f"{place}.{item.name}", getattr(value, item.name)) for item in fields)
        count = len(fields)
    else:
        raise _incomparable(value, place)
    _feed_text(digest, type(value).__qualname__, str(count))
    for inner, part in parts:
        _feed(digest, part, inner)


def _feed_text(digest: _Digest, *texts: str) -> None:
    """Feed texts with their lengths, so that no two rows of texts look the same."""
    for text in texts:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)


def _is_array_like(value: object) -> bool:
    return not isinstance(value, type) and (hasattr(value, "__array__") or hasattr(value, "__array_interface__"))


def _incomparable(value: object, place: str) -> SettingError:
    kind = type(value).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    return SettingError(
        f"{place} is {article} {kind}, whose content cannot be compared. Use tensors, arrays, numbers, texts, or "
        "tuples, lists, mappings and dataclasses of these."
    )
