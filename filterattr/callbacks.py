"""Callbacks of trainers: record waypoints of a training, and attribute the changes of each part of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError
from filterattr.model.state_dict import copied, plain_state, unwrap_model
from filterattr.recorder import PathRecorder
from filterattr.results.attribution import FilterAttribution


class TrainingWatch:
    """Record waypoints of a training, and attribute the changes since the last attribution every few steps.

    `for_transformers` and `for_lightning` make callbacks. In your own training loop, call `begin`, then `step` after
    every step of the optimizer, then `end`. An attribution computes with copies in evaluation mode. It does not change
    weights, gradients, train flags or random numbers of the training.

    Args:
        loss: As for `FilterAttributor.attribute`, a function of the watched module; ``None`` records only.
        data: Samples of the loss; every attribution uses all of them.
        every: Number of optimizer steps between attributions; the last attribution covers the remaining steps.
        record_every: Number of steps between waypoints, at first; see `PathRecorder`.
        limit: Largest number of waypoints.
        part: Name of the submodule to watch; the complete model by default.
        attributor: A function that makes the attributor of the watched module.
        **settings: Further arguments of `FilterAttributor.attribute`.

    Attributes:
        recorder: The waypoints; ``None`` before the training begins.
        attributions: Step to the attribution of the changes between the previous entry and this step.

    Raises:
        SettingError: A number is too small.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> watch = TrainingWatch(lambda model: model(torch.ones(2)).square().sum(), every=2)
        >>> watch.begin(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(1, 6):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2)).square().sum().backward()
        ...     optimizer.step()
        ...     watch.step(step)
        >>> watch.end(step)
        >>> list(watch.attributions), watch.recorder.places
        ([2, 4, 5], (1, 2, 3, 4, 5))
    """

    def __init__(
        self,
        loss: Callable[..., Tensor] | None = None,
        data: Iterable[Any] | None = None,
        *,
        every: int = 100,
        record_every: int = 1,
        limit: int | None = 32,
        part: str = "",
        attributor: Callable[[nn.Module], FilterAttributor] = FilterAttributor,
        **settings: Any,
    ) -> None:
        if every < 1:
            raise SettingError(f"every must be at least 1; got {every}.")
        self.recorder: PathRecorder | None = None
        self.attributions: dict[int, FilterAttribution] = {}
        self._loss, self._data, self._every, self._part = loss, data, every, part
        self._record_every, self._limit = record_every, limit
        self._attributor = attributor
        self._settings: dict[str, Any] = {"progress": False, "buffers": "target", **settings}
        self._model: nn.Module | None = None
        self._seen = self._last = 0
        self._state: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, step: int = 0) -> None:
        """Begin the training with the present weights. During a training, the call has no effect.

        Args:
            model: The model in training; wrappers are unwrapped.
            step: Number of steps before.

        Raises:
            SettingError: The model has no such part.
        """
        try:
            watched = unwrap_model(model).get_submodule(self._part)
        except AttributeError as error:
            raise SettingError(f"part must name a module of the trained one; got '{self._part}': {error}.") from error
        if self._model is watched:
            return
        self._model = watched
        self.recorder = PathRecorder(watched, every=self._record_every, limit=self._limit)
        self._seen = self._last = step
        self._state = copied(plain_state(watched, "model"))

    def step(self, step: int) -> None:
        """Report a step of the optimizer. A step that was reported before is ignored.

        Args:
            step: Number of steps so far.

        Raises:
            SettingError: The training has not begun.
        """
        if self.recorder is None:
            raise SettingError("begin(model) must come before the first step.")
        if step <= self._seen:
            return
        self._seen = step
        self.recorder()
        if step - self._last >= self._every:
            self._attribute(step)

    def end(self, step: int) -> None:
        """Attribute the changes since the last attribution.

        Args:
            step: Number of steps so far.

        Raises:
            SettingError: The training has not begun.
        """
        self.step(step)
        if step > self._last:
            self._attribute(step)

    def for_transformers(self) -> Any:
        """Make a ``transformers.TrainerCallback``, for ``Trainer(callbacks=[...])``.

        Returns:
            The callback.
        """
        base = importlib.import_module("transformers").TrainerCallback
        hooks = {
            "on_train_begin": lambda _, __, state, *___, model, **____: self.begin(model, state.global_step),
            "on_step_end": lambda _, __, state, *___, **____: self.step(state.global_step),
            "on_train_end": lambda _, __, state, *___, **____: self.end(state.global_step),
        }
        return type("WatchCallback", (base,), hooks)()

    def for_lightning(self) -> Any:
        """Make a callback of Lightning, for ``Trainer(callbacks=[...])``.

        Returns:
            The callback.
        """
        base = importlib.import_module("lightning.pytorch").Callback
        hooks = {
            "on_train_start": lambda _, trainer, module: self.begin(module, trainer.global_step),
            # called after every batch, also while gradients are gathered: the number of steps is the same then
            "on_train_batch_end": lambda _, trainer, *__, **___: self.step(trainer.global_step),
            "on_train_end": lambda _, trainer, *__: self.end(trainer.global_step),
        }
        return type("WatchCallback", (base,), hooks)()

    def _attribute(self, step: int) -> None:
        if self._model is None or self._loss is None:
            return
        state = copied(plain_state(self._model, "model"))
        training = [(module, module.training) for module in self._model.modules()]
        try:
            try:
                for module, _ in training:
                    module.training = False
                attributor = self._attributor(self._model)
                self.attributions[step] = attributor.attribute(
                    self._state, state, self._loss, self._data, **self._settings
                )
            finally:
                _set_back(training)
        finally:
            _set_back(training)
        self._last, self._state = step, state


def _set_back(training: list[tuple[nn.Module, bool]]) -> None:
    for module, was_training in training:
        module.training = was_training
