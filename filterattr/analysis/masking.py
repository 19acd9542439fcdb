r"""Networks with some units set back to base, or set to target, and their losses on held-out samples.

.. math:: \mathrm{rem}_d(S) =
   \frac{L_d(\mathrm{masked}) - L_d(\mathrm{target})}{L_d(\mathrm{base}) - L_d(\mathrm{target})}

0: function d is intact; 1: it is gone; above 1: the network is damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis.ends import ChangingState, Ends
from filterattr.analysis.record import Estimate
from filterattr.analysis.resampling import Array, Bootstrap
from filterattr.analysis.results import Intervention
from filterattr.errors import LossError, SettingError, name_some
from filterattr.intervention import EditableState, swapped
from filterattr.loss.checks import Loss
from filterattr.model.fitting import Side
from filterattr.model.random_state import seed_all
from filterattr.model.state_dict import StateLike
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import read_only


class Masking(Ends):
    """Losses of masked networks on several functions, relative to those of base and target.

    Args:
        model: The network of both checkpoints.
        base: Weights before the fine-tuning.
        target: Weights after it.
        loss: ``loss(model, sample)``, the loss of the attribution. It returns one scalar. If the samples are batches,
            it may return one number per row, shape ``(N,)``; each row then counts as a sample. All networks see the
            same random numbers, and the caller's generators are not changed. If the functions have different losses:
            name of a function to its loss.
        data: Name of a function (a degradation, a task) to its samples, which are kept in memory. Use held-out samples.
            The intervals are over the samples, and a batch with a scalar loss is one sample. If sample i of every
            function comes from one source, such as one photograph, differences of functions are paired.
        buffers: ``"base"`` or ``"target"``: whose buffers (running statistics) all networks use, as in
            `FilterAttributor.attribute`. By default base and target use their own.

    Attributes:
        loss_base: Function to mean loss of base.
        loss_target: Function to mean loss of target.
        samples_base: Function to the loss of base on every sample, shape ``(n_samples,)``.
        samples_target: Function to the loss of target on every sample.
        n_samples: Function to number of samples.

    Raises:
        SettingError: A function has no samples, or no loss in a mapping of losses.
        LossError: The loss returns neither a number nor one per row.

    Example:
        >>> from filterattr import FilterAttributor
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> samples = [torch.rand(8, 4)]
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> selection = FilterAttributor(base, unit="filter").attribute(base, target, loss, samples).scores().top(1.0)
        >>> masking = Masking(base, base, target, loss, {"copying": samples})
        >>> masking.removed(selection)["copying"]  # everything is back at base
        1.0

    References:
        Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution", NeurIPS 2021,
        section 4.1, with a bounded measure.
    """

    def __init__(
        self,
        model: nn.Module,
        base: StateLike,
        target: StateLike,
        loss: Loss | Mapping[str, Loss],
        data: Mapping[str, Sequence[Any]],
        *,
        buffers: Side | None = None,
    ) -> None:
        super().__init__(model, base, target, data, buffers=buffers)
        self.loss = loss
        self._losses = _loss_of_each(loss, self.data)
        self.samples_base = read_only(self.sample_losses(self._base))
        self.samples_target = read_only(self.sample_losses(self._target))
        self.loss_base = read_only(_means(self.samples_base))
        self.loss_target = read_only(_means(self.samples_target))
        self.n_samples = read_only({name: len(losses) for name, losses in self.samples_base.items()})

    @torch.no_grad()
    def sample_losses(self, state: Mapping[str, Tensor] | EditableState) -> dict[str, Array]:
        """Compute the loss of any weights on every sample.

        Args:
            state: The weights.

        Returns:
            Function to one loss per sample, float64.
        """
        with swapped(self.model, state, seed=0) as model:
            losses = {}
            for name, samples in self.data.items():
                values: list[float] = []
                loss = self._losses[name]
                for seed, sample in enumerate(samples):
                    seed_all(seed)
                    values += _numbers(loss(model, sample))
                losses[name] = np.array(values)
            return losses

    def losses_of(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the mean loss of any weights on every function.

        Args:
            state: The weights.

        Returns:
            Function to loss.
        """
        return _means(self.sample_losses(state))

    def changing(self, intervention: Intervention = "mask") -> ChangingNetwork:
        """Make a network for many selections; from one selection to the next, only the units that differ are written.

        Args:
            intervention: ``"mask"`` sets the selected units of target back to base; ``"graft"`` sets the selected units
                of base to target.

        Returns:
            The network, in which no unit is changed yet.
        """
        return ChangingNetwork(self, intervention)

    def removed(self, selection: FilterSelection, strength: float = 0.0) -> dict[str, float]:
        """Measure how much of every function an ablation removes.

        Args:
            selection: The units to set back to base.
            strength: 0 sets them to base, 1 leaves them at target.

        Returns:
            Function to the removed share: 0 intact, 1 gone, above 1 damaged, below 0 improved. If target is not better
            than base, as on clean inputs of a restoration network, the share has no meaning; look at the losses.
        """
        losses = self.losses_of(self.masked(selection, strength))
        return {name: self.share_removed(name, losses[name]) for name in losses}

    def share_removed(self, name: str, loss: float) -> float:
        """Convert a loss on one function into the removed share of this function.

        Args:
            name: The function.
            loss: The loss of some weights on the function.

        Returns:
            The share: 0 for the loss of target, 1 for the loss of base, NaN if both have the same loss.
        """
        learnt = self.loss_base[name] - self.loss_target[name]
        return (loss - self.loss_target[name]) / learnt if learnt else float("nan")


class ChangingNetwork:
    """A network for many selections; see `filterattr.analysis.ends.ChangingState`.

    Args:
        masking: Base, target and samples.
        intervention: As in `Masking.changing`.

    Example:
        >>> from filterattr import ScoredParameter, Unit
        >>> base, target = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 2))})
        >>> like = {"weight": ScoredParameter(Unit("... -> ..."), (1, 2))}
        >>> network = masking.changing()
        >>> for chosen in ([True, False], [True, True]):
        ...     losses = network.sample_losses(FilterSelection({"weight": torch.tensor([chosen])}, like))
        >>> bool((losses["copying"] == masking.samples_base["copying"]).all())
        True
    """

    def __init__(self, masking: Masking, intervention: Intervention = "mask") -> None:
        self._masking = masking
        self._state = ChangingState(masking, intervention)

    def sample_losses(self, selection: FilterSelection) -> dict[str, Array]:
        """Compute the loss of the network with these units changed, on every sample.

        Args:
            selection: The units; every call needs the same kind of units.

        Returns:
            Function to one loss per sample, float64.

        Raises:
            StateMismatchError: A selected parameter is missing or has another shape.
            SettingError: The kind of units differs from that of the previous call.
        """
        return self._masking.sample_losses(self._state.with_units(selection))


class Measured:
    """The losses of one network on all samples, in every draw of the bootstrap.

    Args:
        masking: Base, target and samples.
        losses: Function to the loss of the network on every sample, as `Masking.sample_losses` returns it.
        bootstrap: The draws.
        intervention: ``"mask"`` measures shares from target to base, ``"graft"`` from base to target.

    Example:
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 4))})
        >>> back = Measured(masking, masking.samples_base, masking.bootstrap())  # everything is back at base
        >>> back.share("copying").value
        1.0
    """

    def __init__(
        self,
        masking: Masking,
        losses: Mapping[str, Array],
        bootstrap: Bootstrap,
        intervention: Intervention = "mask",
    ) -> None:
        self._bootstrap = bootstrap
        self._losses = losses
        self._shares: dict[str, tuple[float, Array]] = {}
        self._better = [name for name in masking.data if masking.loss_target[name] < masking.loss_base[name]]
        for name, values in self._losses.items():
            ends = masking.samples_base[name], masking.samples_target[name]
            start, end = reversed(ends) if intervention == "mask" else ends
            drawn = (bootstrap.means(name, each) for each in (values, start, end))
            self._shares[name] = float(_ratio(values.mean(), start.mean(), end.mean())), _ratio(*drawn)

    def loss(self, name: str) -> Estimate:
        """Mean loss on a function.

        Args:
            name: The function.

        Returns:
            The loss with its interval.
        """
        values = self._losses[name]
        return self._bootstrap.estimate(float(values.mean()), self._bootstrap.means(name, values))

    def share(self, name: str) -> Estimate:
        """Share of a function that is removed, or recovered.

        Args:
            name: The function.

        Returns:
            The share with its interval; 0 is nothing, 1 the complete function.
        """
        return self._bootstrap.estimate(*self._shares[name])

    def minus(self, name: str, other: Measured, other_name: str) -> Estimate:
        """Difference of two shares, draw by draw.

        Args:
            name: A function.
            other: The network to compare with, on the same draws.
            other_name: A function of that network.

        Returns:
            The difference with its interval.
        """
        (value, drawn), (other_value, other_drawn) = self._shares[name], other._shares[other_name]
        return self._bootstrap.estimate(value - other_value, drawn - other_drawn)

    def minus_largest_other(self, name: str) -> Estimate:
        """Difference to the largest share of all other functions that target learned, draw by draw.

        Args:
            name: A function.

        Returns:
            The difference with its interval; NaN if there is no other function.
        """
        others = [self._shares[other] for other in self._better if other != name]
        if not others:
            return Estimate(float("nan"))
        value, drawn = self._shares[name]
        largest = max(other for other, _ in others)
        return self._bootstrap.estimate(value - largest, drawn - np.max([draws for _, draws in others], axis=0))


def _ratio(value: Any, start: Any, end: Any) -> Any:
    """Distance from start to value, divided by the distance from start to end; NaN if the latter is 0."""
    apart = np.asarray(end - start, dtype=np.float64)
    return (value - start) / np.where(apart == 0, np.nan, apart)


def _loss_of_each(loss: Loss | Mapping[str, Loss], names: Collection[str]) -> dict[str, Loss]:
    """Name of a function to its loss."""
    if not isinstance(loss, Mapping):
        return dict.fromkeys(names, loss)
    unmatched = {*names} ^ {*loss}
    if unmatched:
        raise SettingError(
            f"a mapping of losses needs one loss for each of {name_some(names)}, and no other; {name_some(unmatched)} "
            "has none, or no samples."
        )
    return dict(loss)


def _numbers(loss: Any) -> list[float]:
    """The losses of a sample: one, or one per row of a batch."""
    if isinstance(loss, Tensor) and loss.ndim > 1:
        raise LossError(
            f"loss must return one scalar, or one number per row of a batch; got shape {tuple(loss.shape)}. Sum or "
            "average the other axes."
        )
    return [float(value) for value in loss.reshape(-1).tolist()] if isinstance(loss, Tensor) else [float(loss)]


def _means(losses: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in losses.items()}
