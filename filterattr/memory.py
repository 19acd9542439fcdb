"""How much memory is left: on a GPU, in the system, in a container, in the process."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_GROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int | None:
    """Memory that could still be had, to the system's knowledge.

    Args:
        device: Whose memory.

    Returns:
        Bytes, or ``None`` if the system does not say.

    Example:
        >>> free = available_bytes(torch.device("cpu"))
        >>> free is None or free > 0
        True
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
