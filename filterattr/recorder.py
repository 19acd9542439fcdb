"""Checkpoints of a training, kept in memory as it runs: the way from base to target that was really taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from filterattr.errors import SettingError
from filterattr.model.state_dict import copied, unwrap_model
from filterattr.model.swap import ParameterSwap


class PathRecorder:
    """Keep weights every few steps of a training, as ``waypoints`` for `FilterAttributor.attribute`.

    Call it after every step of the optimizer, or let the optimizer do that:
    ``optimizer.register_step_post_hook(recorder)``. When it is full, every second waypoint is dropped and the interval
    doubles, so that a training of any length leaves between half of ``limit`` and ``limit`` waypoints, evenly spread
    over its steps. Recording copies the parameters to the CPU and changes nothing else; parameters that have not moved
    cost no memory.

    Args:
        model: The model that is trained; wrappers are unwrapped. Its present weights become ``base``.
        every: Steps from one waypoint to the next, at first.
        limit: Largest number of waypoints; ``None`` keeps all of them, for loss change allocation.
        dtype: Type in which the changes since base are kept. ``None`` keeps exact copies; `torch.bfloat16` halves the
            memory of a float32 model and moves each waypoint by at most 2^-8 of its distance from base. The
            attribution stays complete: the path merely goes through slightly other points.

    Attributes:
        every: Steps from one waypoint to the next, now.
        steps: Steps so far.

    Raises:
        SettingError: A number is too small, or the type is not floating.
        UnsupportedModelError: The model has weights that cannot be read.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> recorder = PathRecorder(model, limit=4)
        >>> _ = optimizer.register_step_post_hook(recorder)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2)).square().sum().backward()
        ...     optimizer.step()
        >>> recorder.every, recorder.places, len(recorder.waypoints)
        (4, (4, 8), 2)
    """

    def __init__(
        self, model: nn.Module, *, every: int = 1, limit: int | None = 32, dtype: torch.dtype | None = None
    ) -> None:
        if every < 1 or (limit is not None and limit < 2):
            raise SettingError(f"every must be at least 1 and limit at least 2; got {every} and {limit}.")
        if dtype is not None and not dtype.is_floating_point:
            raise SettingError(f"changes can only be kept in a floating type; got {dtype}.")
        self.every = every
        self.steps = 0
        self._limit = limit
        self._dtype = dtype
        self._model = unwrap_model(model)
        self._base = {name: _copy(parameter) for name, parameter in ParameterSwap(self._model).parameters.items()}
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __repr__(self) -> str:
        return f"PathRecorder({len(self._kept)} waypoints, one every {self.every} of {self.steps} steps)"

    def __call__(self, *_: object) -> None:
        """Count one step, and keep the weights if it is their turn; arguments, which hooks get, are ignored."""
        self.steps += 1
        if self.steps % self.every == 0:
            self._kept[self.steps] = self._changes()
            if self._limit is not None and len(self._kept) > self._limit:
                self.every *= 2
                self._kept = {step: kept for step, kept in self._kept.items() if step % self.every == 0}

    @property
    def places(self) -> tuple[int, ...]:
        """The steps after which the waypoints were taken."""
        return tuple(self._kept)

    @property
    def base(self) -> dict[str, Tensor]:
        """A copy of the state dict from before the training, parameters only."""
        return copied(self._base)

    @property
    def waypoints(self) -> list[dict[str, Tensor]]:
        """Copies of the state dicts of the parameters, in the order of the training; they share what has not moved."""
        base = self.base
        return [
            {name: self._restored(name, kept[name]) if name in kept else value for name, value in base.items()}
            for kept in self._kept.values()
        ]

    @torch.no_grad()
    def _changes(self) -> dict[str, Tensor]:
        kept = {}
        for name, parameter in ParameterSwap(self._model).parameters.items():
            now, before = parameter.detach().cpu(), self._base[name]
            if torch.equal(now, before):
                continue
            narrow = self._dtype is not None and now.is_floating_point()
            kept[name] = (now - before).to(self._dtype) if narrow else _copy(parameter)
        return kept

    def _restored(self, name: str, kept: Tensor) -> Tensor:
        before = self._base[name]
        narrow = self._dtype is not None and before.is_floating_point()
        return before + kept.to(before.dtype) if narrow else kept.clone()


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", copy=True)
