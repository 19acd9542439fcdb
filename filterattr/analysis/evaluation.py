r"""Does a selection carry a function? Put its units back to base and see what is lost.

.. math:: \mathrm{rem}_d(S) =
   \frac{L_d(\mathrm{masked}) - L_d(\mathrm{target})}{L_d(\mathrm{base}) - L_d(\mathrm{target})}

0: function d is intact; 1: it is gone; above 1: the network is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.attribution import Loss
from filterattr.engine.states import StateLike, plain_state, unwrap_model
from filterattr.errors import SettingError, name_some
from filterattr.intervention import blend, swapped
from filterattr.result import FilterSelection


class Masking:
    """Losses of masked networks on several functions, measured against those of base and target.

    Args:
        model: The network that both end points fit.
        base: Weights that lack the functions.
        target: Weights that have them.
        loss: ``loss(model, sample)``, one scalar; the same as for the attribution.
        data: Name of a function (an input, a task) to its samples, which are kept and walked through repeatedly. Use
            other samples than those that the selection was found with.

    Attributes:
        loss_base: Function to mean loss of base.
        loss_target: Function to mean loss of target.

    Raises:
        SettingError: A function has no samples.

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
        loss: Loss,
        data: Mapping[str, Sequence[Any]],
    ) -> None:
        empty = [name for name, samples in data.items() if len(samples) == 0]
        if empty or not data:
            raise SettingError(f"every function needs samples; {name_some(empty) or 'data'} holds none.")
        self.model = unwrap_model(model)
        self.base = {name: value.clone() for name, value in plain_state(base, "base").items()}
        self.target = {name: value.clone() for name, value in plain_state(target, "target").items()}
        self.loss = loss
        self.data = {name: list(samples) for name, samples in data.items()}
        self.loss_base = self.losses_of(self.base)
        self.loss_target = self.losses_of(self.target)

    @torch.no_grad()
    def losses_of(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean loss of any weights of the network, per function.

        Args:
            state: The weights.

        Returns:
            Function to loss.
        """
        with swapped(self.model, state) as model:
            return {
                name: sum(float(self.loss(model, sample)) for sample in samples) / len(samples)
                for name, samples in self.data.items()
            }

    def masked(self, selection: FilterSelection, strength: float = 0.0) -> dict[str, Tensor]:
        """Weights of target with the selected units put back to base.

        Args:
            selection: The units.
            strength: 0 puts them to base, 1 leaves them; see `filterattr.blend`.

        Returns:
            A state dict.
        """
        return blend(self.target, self.base, selection, strength)

    def removed(self, selection: FilterSelection, strength: float = 0.0) -> dict[str, float]:
        """How much of every function masking takes away.

        Args:
            selection: The units to put back to base.
            strength: 0 puts them to base, 1 leaves them at target.

        Returns:
            Function to ``rem``: 0 intact, 1 gone, above 1 damaged, below 0 improved. Where target is not better than
            base (such as clean inputs of a restorer) the number has no such meaning; look at the losses there.
        """
        losses = self.losses_of(self.masked(selection, strength))
        return {name: self.share_removed(name, losses[name]) for name in losses}

    def share_removed(self, name: str, loss: float) -> float:
        """Turn a loss on one function into ``rem``.

        Args:
            name: The function.
            loss: The loss of some weights on it.

        Returns:
            ``rem``; not a number if base and target have the same loss.
        """
        whole = self.loss_base[name] - self.loss_target[name]
        return (loss - self.loss_target[name]) / whole if whole else float("nan")


def p_value(observed: float, null: Sequence[float]) -> float:
    """Chance that a random draw does at least as well as what was observed.

    Args:
        observed: The statistic of the selection, larger is more extreme.
        null: The same statistic of random draws.

    Returns:
        ``(1 + #{null >= observed}) / (1 + draws)``, in (0, 1].

    Example:
        >>> p_value(0.8, [0.1, 0.2, 0.9])
        0.5
    """
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))
