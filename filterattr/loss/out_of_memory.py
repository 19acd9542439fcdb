"""How much memory is there, and which errors mean that it did not suffice."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any, TypeAlias

import torch

from filterattr.errors import is_out_of_memory, listed
from filterattr.loss.checks import tensors_in

_MEMINFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_GROUP = Path("/sys/fs/cgroup")


def may_be_out_of_memory(error: BaseException) -> bool:
    """Whether fewer samples might do: oneDNN names no reason when it gets no memory.

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


Sizes: TypeAlias = list[tuple[int, ...]]


def advice(
    error: BaseException, where: str, arguments: tuple[Any, ...], device: torch.device, fitted: Sizes, *, narrow: bool
) -> str:
    """What happened, and what would help.

    Args:
        error: What was raised; the frames below it are cleared, as they hold what did not fit.
        where: Place and sample.
        arguments: What the loss got after the model.
        device: Where the model is.
        fitted: Sizes of the largest sample that fitted before, if any.
        narrow: Whether a lower precision is chosen already.
    """
    traceback.clear_frames(error.__traceback__)
    sizes = sizes_of(arguments)
    cures = ["make the sample smaller (smaller crops, fewer rows)"] if sizes else []
    if fitted:
        cures.append(f"the largest sample that fitted in this call has {_listed(fitted)}")
    if not narrow:
        cures.append('precision="bf16" halves the activations')
    cures.append("activation checkpointing (use_reentrant=False) needs less")
    holds = f", which holds tensors of {_listed(sizes)}" if sizes else ""
    free = available_bytes(device)
    left = "" if free is None else f" About {free / 2**30:.2f} GiB are free now."
    return (
        f"filterattr: the memory did not suffice for one pass at {where}{holds}.{left} More nodes or samples need no "
        f"more memory, so that only a smaller pass helps: {'; '.join(cures)}. The model has got its own weights back."
    )


def sizes_of(arguments: tuple[Any, ...]) -> Sizes:
    """The shapes of all tensors in a sample.

    Args:
        arguments: What the loss gets after the model.

    Example:
        >>> sizes_of(({"image": torch.zeros(2, 3), "name": "a"},))
        [(2, 3)]
    """
    return [tuple(tensor.shape) for tensor in tensors_in(arguments)]


def _listed(sizes: Sizes) -> str:
    return ("shape " if len(sizes) == 1 else "shapes ") + listed(map(str, sizes))
