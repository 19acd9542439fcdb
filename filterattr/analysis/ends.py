"""Base and target of one network, held-out samples of its functions, and mixtures of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from filterattr.analysis.resampling import Bootstrap
from filterattr.analysis.results import Intervention
from filterattr.errors import SettingError, name_some
from filterattr.intervention import EditableState, blend, check_selection
from filterattr.jobs.samples import series
from filterattr.model.fitting import Side
from filterattr.model.state_dict import StateLike, copied, state_for, unwrap_model
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import ScoredParameter, read_only


class Ends:
    """A network, its weights before and after fine-tuning, and samples to evaluate both on.

    Args:
        model: The network of both checkpoints.
        base: Weights before the fine-tuning.
        target: Weights after it.
        data: Name of a function (a degradation, a task) to its samples. The samples are kept in memory.
        buffers: ``"base"`` or ``"target"``: whose buffers (running statistics) both use; by default each uses its own.

    Raises:
        SettingError: A function has no samples, or ``buffers`` is unknown.

    Example:
        >>> import torch
        >>> base, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> ends = Ends(base, base, target, {"copying": torch.rand(8, 2)})
        >>> len(ends.data["copying"]), list(ends.target)
        (8, ['weight', 'bias'])
    """

    n_samples: Mapping[str, int]  # function to number of samples, set by those who measure them

    def __init__(
        self,
        model: nn.Module,
        base: StateLike,
        target: StateLike,
        data: Mapping[str, Sequence[Any]],
        *,
        buffers: Side | None = None,
    ) -> None:
        empty = [name for name, samples in data.items() if len(samples) == 0]
        if empty or not data:
            raise SettingError(f"every function needs samples; {name_some(empty) or 'data'} holds none.")
        self.model = unwrap_model(model)
        self._base = copied(state_for(self.model, base, "base"))
        self._target = copied(state_for(self.model, target, "target"))
        if buffers is not None:
            self._share_buffers(buffers)
        self.data = read_only({name: list(series(samples)) for name, samples in data.items()})

    @property
    def base(self) -> dict[str, Tensor]:
        """A copy of the weights of base."""
        return copied(self._base)

    @property
    def target(self) -> dict[str, Tensor]:
        """A copy of the weights of target."""
        return copied(self._target)

    def _share_buffers(self, side: Side) -> None:
        """Give both ends the buffers of one of them."""
        if side not in ("base", "target"):
            raise SettingError(f'buffers must be None, "base" or "target"; got {side!r}.')
        giver, taker = (self._base, self._target) if side == "base" else (self._target, self._base)
        for name, _ in self.model.named_buffers(remove_duplicate=False):
            if name in giver:
                taker[name] = giver[name].clone()

    def masked(self, selection: FilterSelection, strength: float = 0.0) -> dict[str, Tensor]:
        """Weights of target with the selected units set back to base.

        Args:
            selection: The units.
            strength: 0 sets them to base, 1 leaves them at target; see `filterattr.blend`.

        Returns:
            A state dict.
        """
        return blend(self._target, self._base, selection, strength)

    def grafted(self, selection: FilterSelection) -> dict[str, Tensor]:
        """Weights of base with the selected units set to target.

        Args:
            selection: The units.

        Returns:
            A state dict.
        """
        return blend(self._base, self._target, selection)

    def bootstrap(
        self, *, draws: int = 1000, confidence: float = 0.95, seed: int = 0, paired: bool = True
    ) -> Bootstrap:
        """Make bootstrap draws of the samples, for intervals.

        Args:
            draws: Number of draws.
            confidence: Share of the draws inside an interval.
            seed: Seed of the draws.
            paired: Draw sample i of all functions together.

        Returns:
            The bootstrap.
        """
        return Bootstrap(self.n_samples, draws=draws, confidence=confidence, seed=seed, paired=paired)


class ChangingState:
    """Weights for many selections: from one selection to the next, only the units that differ are written.

    A new state dict for every selection would cost several passes over all weights.

    Args:
        ends: Base and target.
        intervention: ``"mask"`` sets the selected units of target back to base; ``"graft"`` sets the selected units of
            base to target.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit, swapped
        >>> base, target = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> state = ChangingState(Ends(base, base, target, {"copying": torch.rand(8, 2)}))
        >>> like = {"weight": ScoredParameter(Unit("... -> ..."), (1, 2))}
        >>> with swapped(base, state.with_units(FilterSelection({"weight": torch.tensor([[True, False]])}, like))):
        ...     (base.weight == target.weight).tolist()
        [[False, True]]
    """

    def __init__(self, ends: Ends, intervention: Intervention = "mask") -> None:
        self._ends = {"target": ends._target, "base": ends._base}
        sources = self._ends["target"], self._ends["base"]
        self._outside, self._inside = sources if intervention == "mask" else reversed(sources)
        self._state = EditableState(ends.model, self._outside)
        self._last: FilterSelection | None = None

    def with_units(self, selection: FilterSelection) -> EditableState:
        """Return the weights with these units changed.

        Args:
            selection: The units; every call needs the same kind of units.

        Returns:
            The weights, for `filterattr.swapped`. Every call returns the same object.

        Raises:
            StateMismatchError: A selected parameter is missing or has another shape.
            SettingError: The kind of units differs from that of the previous call.
        """
        if self._last is None:
            check_selection(selection, self._ends)
            self._last = selection - selection
        entering, leaving = selection - self._last, self._last - selection
        for units, source in ((entering, self._inside), (leaving, self._outside)):
            for name, scored in units.parameters.items():
                if bool(units[scored.key(name)].any()):
                    self._state.write(name, _places(scored, units[scored.key(name)]), source[name])
        self._last = selection
        return self._state


def _places(scored: ScoredParameter, units: Tensor) -> Tensor:
    """Places of the weights of some units: flat indices if every weight is a unit, else a boolean mask."""
    if _is_per_weight(scored):
        return units.reshape(-1).nonzero().reshape(-1)
    return scored.unit.expand(units, scored.shape)


def _is_per_weight(scored: ScoredParameter) -> bool:
    """Whether every weight is a unit, at the same place in the scores as in the parameter."""
    before, after = (side.split() for side in scored.unit.pattern.split("->"))
    names = [axis for axis in before if axis != "..."]
    return before == after or (names == after and len(names) == len(scored.shape))
