"""The file of a job: what it has added up, and which job it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from filterattr.errors import StorageError
from filterattr.files.safetensors import read_tensors, write_tensors


class StoredJob(NamedTuple):
    """What a `JobFile` held.

    Attributes:
        tensors: Name to tensor, on the CPU.
        numbers: Everything else of the job's state.
        environment: Where it was computed.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    environment: dict[str, Any]


class JobFile:
    """The state of one job on disk, which no other job can take for its own.

    Args:
        path: The file.
        identity: What makes the job this one: name to a digest, number or text. Any difference refuses the file.
        environment: What the job should have in common with its former part, but need not.

    Example:
        >>> import tempfile, pathlib
        >>> import torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "job.safetensors"
        >>> JobFile(path, {"n_steps": 16}, {}).write({"sums": torch.ones(2)}, {"n_samples": 3})
        >>> JobFile(path, {"n_steps": 16}, {}).read().numbers
        {'n_samples': 3}
        >>> JobFile(path, {"n_steps": 8}, {}).read()
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: '...' belongs to another job: it has n_steps 16, here 8. Give every job ...
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self.environment = dict(environment)

    def read(self) -> StoredJob | None:
        """Read the state of this job.

        Returns:
            The state, or ``None`` if there is no file yet, or one of another job with ``n_samples`` 0.

        Raises:
            StorageError: The file is damaged or belongs to another job; what differs is named.
        """
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            pass  # reading says what it is
        tensors, description = read_tensors(self.path, "checkpoint")
        try:
            identity, environment = dict(description["identity"]), dict(description["environment"])
            numbers = dict(description["numbers"])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"'{self.path}' is not a complete checkpoint: {error!r}.") from error
        different = [
            _difference(name, identity.get(name), self.identity.get(name))
            for name in {**self.identity, **identity}
            if identity.get(name) != self.identity.get(name)
        ]
        if different and not numbers.get("n_samples"):
            return None  # nothing was done yet that could be mixed up
        if different:
            raise StorageError(
                f"'{self.path}' belongs to another job: it has {', '.join(different)}. Give every job a file of its "
                "own, or delete this one."
            )
        return StoredJob(tensors, numbers, environment)

    def write(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Replace the state in one step.

        Args:
            tensors: Name to tensor.
            numbers: Anything that JSON can hold.

        Raises:
            StorageError: The disk refuses; the former state is unharmed.
        """
        description = {"identity": self.identity, "environment": self.environment, "numbers": dict(numbers)}
        write_tensors(self.path, "checkpoint", tensors, description)


def _difference(name: str, stored: object, present: object) -> str:
    """Say in what two jobs differ; digests say nothing to a reader."""
    is_digest = any(
        isinstance(value, str) and len(value) == 2 * hashlib.sha256().digest_size for value in (stored, present)
    )
    return f"another {name}" if is_digest else f"{name} {stored}, here {present}"
