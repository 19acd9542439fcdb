"""How much memory is there, who ran out of it, and how much of the work would fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from filterattr.errors import is_out_of_memory

_ATTEMPTS = 8
_MEMINFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_GROUP = Path("/sys/fs/cgroup")


def may_be_out_of_memory(error: BaseException) -> bool:
    """Whether fewer samples or rows might do: oneDNN names no reason when it gets no memory.

    Args:
        error: What was raised.
    """
    return is_out_of_memory(error) or "could not create a" in str(error)


def available_bytes(device: torch.device) -> int | None:
    """Memory that could still be had, to the system's knowledge.

    Args:
        device: Whose memory.

    Returns:
        Bytes, or ``None`` if nobody can tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = (_of_the_system(), _of_the_group(), _of_the_process())
    return min((bytes_ for bytes_ in known if bytes_ is not None), default=None)


def _of_the_system() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_the_group() -> int | None:
    """What the limit of a container leaves."""
    try:
        limit, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # there is none, or it is "max"
        return None


def _of_the_process() -> int | None:
    """What a limit of the address space leaves."""
    try:
        import resource  # noqa: PLC0415 - Unix alone has it

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(_OWN_PAGES.read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - used


class SavedBytes:
    """Count what a forward pass keeps for its backward pass; a lower bound of what the pass needs.

    Example:
        >>> weight, saved = torch.ones(4, requires_grad=True), SavedBytes()
        >>> with saved.counting([weight]):
        ...     value = (weight.exp() * 2).sum()
        >>> saved.count
        16
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.count = 0

    def counting(self, apart: list[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
        """The block in which the forward pass runs.

        Args:
            apart: Tensors that do not count, such as weights and inputs.
        """
        self.count = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in apart}
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.count += storage.nbytes()
        return tensor


def most_that_fits(fits: Callable[[int], bool], too_many: int) -> int:
    """Search the largest number of rows that fits, by trying; a few attempts must do.

    Args:
        fits: Tries a number of rows; one row fits.
        too_many: A number that does not fit, at least 2.

    Returns:
        A number that fitted when it was tried (or 1), at most an eighth below the largest that does.

    Example:
        >>> most_that_fits(lambda rows: rows <= 5, 12)
        5
    """
    low, high = 1, too_many
    for _ in range(_ATTEMPTS):
        if high - low <= max(1, low // 8):
            break
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
