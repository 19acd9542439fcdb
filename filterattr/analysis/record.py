"""Records: immutable results that are saved as JSON, read back, and shown as a table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Union, get_args, get_origin, get_type_hints

from filterattr.errors import StorageError
from filterattr.files.reading import reading
from filterattr.files.writing import replace_file
from filterattr.units.unit import Immutable

if TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = dict[str, Any]

_KIND, _DIGEST = "record", "digest"  # beside the fields; no field has these names
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Record(Immutable, ABC):
    """Base class of all results of `filterattr.analysis`: frozen dataclasses of numbers, texts, tuples and mappings.

    `to_json` writes strict JSON, which browsers can read: NaN is ``null``, and infinities are the texts ``"inf"`` and
    ``"-inf"``. `from_json` returns an equal result. Files also hold a digest of the fields, so a damaged number is an
    error.
    """

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the result as rows: one dictionary of numbers and texts per row, all with the same keys."""

    def to_frame(self) -> pd.DataFrame:
        """Return `rows` as a table; needs pandas.

        Returns:
            One column per key of `rows`.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        return pd.DataFrame(self.rows())

    def to_json(self) -> str:
        """Write the result as strict JSON.

        Returns:
            One line of text.
        """
        return json.dumps({_KIND: type(self).__name__, **_encoded_fields(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            An equal result.

        Raises:
            StorageError: The text is no JSON, holds another kind of result, or does not match its digest (files from
                before version 0.2 have none); or a field is missing, unknown or of another type.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"a {cls.__name__} must be JSON: {error}.") from error
        kind = content.pop(_KIND, None) if isinstance(content, dict) else None
        if kind != cls.__name__:
            raise StorageError(f"the JSON must hold a {cls.__name__}; it holds {kind!r}.")
        digest = content.pop(_DIGEST, None)
        if digest not in (None, _digest(kind, content)):
            raise StorageError(
                f"the {kind} is damaged: its content does not match its digest. Restore a backup or compute it again."
            )
        decoded: Self = _decoded(content, cls, cls.__name__)
        return decoded

    def save(self, path: str | Path) -> None:
        """Write the result as a JSON file with a digest, in one atomic step.

        Args:
            path: The file to write.

        Raises:
            StorageError: The file cannot be written.
        """
        content = json.loads(self.to_json())
        kind = content.pop(_KIND)
        signed = {_KIND: kind, **content, _DIGEST: _digest(kind, content)}
        replace_file(path, [f"{json.dumps(signed, allow_nan=False)}\n".encode()])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a result that `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal result.

        Raises:
            StorageError: The file is missing or damaged, or holds another kind of result.
        """
        with reading(path) as (stream, _):
            content = stream.read()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise StorageError(f"'{path}' cannot be read: {error}.") from error
        try:
            return cls.from_json(text)
        except StorageError as error:
            raise StorageError(f"'{path}': {error}") from error


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The number.
        low: Lower end of the interval; NaN if the spread is not known (a single sample).
        high: Upper end of the interval.

    Example:
        >>> Estimate(0.5, 0.4, 0.7).is_positive, Estimate(0.5, -0.1, 0.7).is_positive
        (True, False)
        >>> print(Estimate(0.5, 0.4, 0.7))
        0.50 [0.40, 0.70]
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_positive(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the interval lies below 0."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _digest(kind: str, content: Mapping[str, Any]) -> str:
    """SHA-256 of the fields of a file; white space does not matter."""
    return hashlib.sha256(json.dumps([kind, content], sort_keys=True).encode()).hexdigest()


def _encoded_fields(value: Any) -> dict[str, Any]:
    return {field.name: _encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _encoded(value: Any) -> Any:
    """Convert a field to types that strict JSON can hold."""
    if dataclasses.is_dataclass(value):
        return _encoded_fields(value)
    if isinstance(value, Mapping):
        return {key: _encoded(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_encoded(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _decoded(value: Any, kind: Any, place: str) -> Any:
    """Undo `_encoded` for a field of some type, or report what does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decoded_dataclass(value, kind, place)
    if origin is tuple:
        entries = _checked(value, list, place)
        return tuple(_decoded(entry, arguments[0], f"{place}[{index}]") for index, entry in enumerate(entries))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        entries = _checked(value, dict, place)
        return {key: _decoded(entry, arguments[1], f"{place}[{key!r}]") for key, entry in entries.items()}
    if origin in (Union, types.UnionType):  # something or None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _decoded(value, inner, place)
    if origin is Literal:
        if value not in arguments:
            raise StorageError(f"{place} must be one of {', '.join(map(repr, arguments))}; it is {value!r}.")
        return value
    return _decoded_float(value, place) if kind is float else _checked(value, kind, place)


def _decoded_dataclass(value: Any, kind: Any, place: str) -> Any:
    entries = _checked(value, dict, place)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if set(entries) != set(names):
        raise StorageError(
            f"{place} must hold the fields {', '.join(names)}; it holds {', '.join(entries) or 'nothing'}. It was "
            "written by another version."
        )
    build: Callable[..., Any] = kind
    try:
        return build(**{name: _decoded(entries[name], hints[name], f"{place}.{name}") for name in names})
    except (ArithmeticError, LookupError, TypeError) as error:
        raise StorageError(f"the fields of {place} do not fit together: {error!r}.") from error


def _decoded_float(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StorageError(f"{place} must be a number; it is {value!r}.")
    return float(value)


def _checked(value: Any, kind: type, place: str) -> Any:
    if type(value) is not kind:
        raise StorageError(f"{place} must be {kind.__name__}; it is {type(value).__name__}.")
    return value
