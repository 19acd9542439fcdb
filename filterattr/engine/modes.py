"""PyTorch's gradient modes, autocast and what a graph keeps: as the work needs it, and the caller's own afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

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


class Autocast:
    """Autocast to one type on some kinds of devices; `restore` brings back what the caller had.

    Plain calls for the same reason as in `GradientMode`.

    Args:
        devices: Kinds of devices, such as ``"cpu"``; none leaves everything as it is.
        dtype: What to compute in.

    Example:
        >>> mode = Autocast(["cpu"], torch.bfloat16)
        >>> mode.enter()
        >>> inside = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        >>> mode.restore()
        >>> inside, torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        (torch.bfloat16, torch.float32)
    """

    def __init__(self, devices: Iterable[str] = (), dtype: torch.dtype = torch.bfloat16) -> None:
        self._devices = tuple(devices)
        self._dtype = dtype
        self._own: list[tuple[str, bool, torch.dtype]] = []

    @property
    def is_used(self) -> bool:
        """Whether anything is switched on at all."""
        return bool(self._devices)

    def enter(self) -> None:
        """Switch autocast on."""
        self._own = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in self._devices
        ]
        for device in self._devices:
            torch.set_autocast_dtype(device, self._dtype)
            torch.set_autocast_enabled(device, True)

    def restore(self) -> None:
        """Bring the caller's settings back; doing it twice, or without having entered, does no harm."""
        for device, enabled, dtype in self._own:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        self._own = []


class Forgetting:
    """Gradients are on, but the graph keeps no tensors: for a loss without a backward pass.

    Under ``no_grad`` some modules compute in another way, and a loss may want derivatives of its own; here everything
    is as ever, until somebody asks for what was not kept. Activations give their memory back at once, which saves an
    eighth of a forward pass. The first time the tensors are kept all the same, to see whether anybody asks for them.
    Plain calls for the same reason as in `GradientMode`.

    Attributes:
        is_in_the_way: Whether something did ask, or refused to work like this, so that this must not be used again.

    Example:
        >>> mode, x = Forgetting(), torch.ones((), requires_grad=True)
        >>> for _ in range(2):
        ...     mode.enter()
        ...     y = x.square()
        ...     mode.restore()
        >>> y.requires_grad, mode.is_in_the_way
        (True, False)
        >>> y.backward()
        Traceback (most recent call last):
        ...
        RuntimeError: the graph kept no tensors.
    """

    def __init__(self) -> None:
        self.is_in_the_way = False
        self._is_trial = True
        self._was_refused = False
        self._probe: list[bool] | None = None
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None

    def enter(self) -> None:
        """Keep nothing from now on; the first time, keep everything and watch."""
        self._was_refused = False
        # hooks are made anew, as what holds itself in a circle would live until the garbage collector comes; what is
        # called for every tensor is no Python, which torch.compile would try to compile
        pack = torch.Tensor.detach if self._is_trial else deque[torch.Tensor](maxlen=0).append
        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, self._unpack)
        try:
            self._hooks.__enter__()
        except RuntimeError:  # they can be forbidden
            self.is_in_the_way = True

    def restore(self) -> None:
        """Let graphs keep tensors again; doing it twice, or without having entered, does no harm."""
        if self._hooks is None:
            return
        if self._is_on():
            self._hooks.__exit__()
            self._is_trial = False
        self._hooks = None

    def caused(self, error: BaseException) -> bool:
        """Whether it would not have come to an error without this; then it is in the way.

        Args:
            error: What was raised since `enter`.
        """
        is_culprit = self._was_refused or "saved tensor hooks" in str(error)  # what torch.func says to any
        self.is_in_the_way |= is_culprit
        return is_culprit

    def _is_on(self) -> bool:
        """Whether it is this that a new graph asks: an interrupt may have come at any moment."""
        self._probe = []
        with torch.enable_grad():
            torch.ones((), requires_grad=True, device="cpu").square().grad_fn._saved_self  # type: ignore[union-attr]  # noqa: B018
        asked, self._probe = bool(self._probe), None
        return asked

    def _unpack(self, kept: torch.Tensor | None) -> torch.Tensor:
        if self._probe is not None:
            self._probe.append(True)
            return torch.ones((), device="cpu")
        self.is_in_the_way = True
        if kept is None:
            self._was_refused = True
            raise RuntimeError("the graph kept no tensors.")
        return kept
