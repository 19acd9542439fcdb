"""The weights of a checkpoint, as the commands take them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from filterattr.files.checkpoints import load_state
from filterattr.files.lazy import mapped_state


def weights_of(path: Path, key: str | None) -> dict[str, Tensor]:
    """Map the weights of safetensors into memory, and read those of other files.

    Args:
        path: A file, or a folder as Hugging Face libraries write it.
        key: Where in a file of `torch.save` the weights are.

    Returns:
        Name to tensor.

    Raises:
        StorageError: It cannot be read.
        StateMismatchError: There is nothing under the key.
    """
    return mapped_state(path) if key is None else load_state(path, key=key)
