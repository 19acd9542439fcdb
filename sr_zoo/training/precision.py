"""Which precision a device computes fast: without instructions for bf16 a processor takes 18 to 30 times as long."""

from __future__ import annotations

from pathlib import Path

import torch

# what Linux calls the instructions: of x86 in 512-bit and tile registers, of ARM
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_PROCESSOR = Path("/proc/cpuinfo")


def fast_precision(device: torch.device | str | None = None) -> str:
    """Choose the precision of a training by what the device has instructions for.

    Args:
        device: Where to train; the GPU if there is one, otherwise the processor, if not given.

    Returns:
        ``"bf16"`` where it is fast, otherwise ``"fp32"``.

    Example:
        >>> fast_precision("cpu") in ("bf16", "fp32")
        True
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if kind == "cpu" and _processor_has_bf16() else "fp32"


def _processor_has_bf16() -> bool:
    try:
        lines = _PROCESSOR.read_text(errors="replace").splitlines()
    except OSError:  # not Linux; older releases of PyTorch do not say
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return any(
        not _FLAGS.isdisjoint(line.partition(":")[2].split())
        for line in lines
        if line.lower().startswith(("flags", "features"))
    )
