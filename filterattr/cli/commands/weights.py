"""Weights of checkpoints for the commands."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from filterattr.files.checkpoints import load_state
from filterattr.files.lazy import mapped_state


def weights_of(path: Path, key: str | None) -> dict[str, Tensor]:
    """Map the weights of a safetensors file into memory, or read those of any other file.

    Args:
        path: A file, or a folder as Hugging Face libraries write it.
        key: The entry of a `torch.save` file that holds the weights.

    Returns:
        Name to tensor.

    Raises:
        StorageError: The file cannot be read.
        StateMismatchError: The file has no such entry.
    """
    return mapped_state(path) if key is None else load_state(path, key=key)
