"""PyTorch's gradient modes: on while we work, whatever the caller chose, and the caller's own afterwards."""

from __future__ import annotations

import torch


class GradientMode:
    """The caller's gradient modes; `enter` makes derivatives possible, `restore` brings the caller's modes back.

    ``enable_grad()`` alone does nothing inside ``inference_mode``. Both methods are plain calls and no ``with`` block,
    because an interrupt between a block's ``__enter__`` and its body would skip its ``__exit__``.

    Example:
        >>> with torch.no_grad():
        ...     mode = GradientMode()
        ...     mode.enter()
        ...     inside = torch.is_grad_enabled()
        ...     mode.restore()
        ...     inside, torch.is_grad_enabled()
        (True, False)
    """

    def __init__(self) -> None:
        self._enabled = torch.is_grad_enabled()
        self._normal = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None

    def enter(self) -> None:
        """Leave inference mode and switch gradients on."""
        if self._normal is not None:
            self._normal.__enter__()
        torch.set_grad_enabled(True)

    def restore(self) -> None:
        """Bring the caller's modes back; doing it twice, or without having entered, does no harm."""
        if self._normal is not None and not torch.is_inference_mode_enabled():
            self._normal.__exit__(None, None, None)
        torch.set_grad_enabled(self._enabled)
