r"""From gradient sums to scores: :math:`A_k = \Delta_k \sum_j c_j g_{jk}`, reduced over the weights of every unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from filterattr.units.unit import REDUCTIONS, Reduction, ScoredParameter, Unit


class Totals(NamedTuple):
    """Sums over all parameters.

    Attributes:
        signed: Of the attributions.
        remainder: The same of what is not scored.
        absolute: Of their absolute values.
        unscored: The same of what is not scored.
    """

    signed: float
    remainder: float
    absolute: float
    unscored: float = 0.0

    def gap(self, losses: list[float]) -> tuple[float, float]:
        """What completeness lacks, and what that is to be compared with.

        Args:
            losses: Along the path, base first and target last.

        Returns:
            ``|signed - change|`` and ``max(|change|, 1e-3 absolute)``, at least the rounding of the losses.
        """
        change = losses[-1] - losses[0]
        # below the rounding of the losses themselves nothing can be told
        return abs(self.signed - change), max(abs(change), 1e-3 * self.absolute, 1e-12 * max(map(abs, losses)))


class Contributions:
    """The attributions of all weights, one parameter after the other, and what they sum to.

    Nothing waits for the device until `totals` is asked for.

    Args:
        parameters: Parameter name to how it is scored.
    """

    def __init__(self, parameters: Mapping[str, ScoredParameter]) -> None:
        self._parameters = parameters
        self._signed: dict[str, Tensor] = {}
        self._absolute: dict[str, Tensor] = {}

    def per_unit(self, attributions: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[Reduction, Tensor]]]:
        """Yield the scores of every parameter or group.

        Args:
            attributions: Parameter name and the attributions of its weights, which are used up.

        Yields:
            Name, and its scores in all reductions.
        """
        self._signed, self._absolute = {}, {}
        groups: dict[str, dict[Reduction, Tensor]] = {}
        for name, values in attributions:
            self._signed[name] = self._sum(values)
            scored = self._parameters.get(name)
            if scored is None:
                self._absolute[name] = self._sum(values.abs_())
                continue
            signed = self._reduce(scored.unit, values)
            self._absolute[name] = self._sum(values.abs_())
            scores: dict[Reduction, Tensor] = {"sum": signed, "sum_of_abs": self._reduce(scored.unit, values)}
            if scored.group is None:
                yield name, with_all(scores)
            elif scored.group in groups:
                for reduction, score in groups[scored.group].items():
                    score.add_(scores[reduction])
            else:
                groups[scored.group] = scores
        for name, scores in groups.items():
            yield name, with_all(scores)

    def totals(self) -> Totals:
        """The sums over all parameters, after the last `per_unit` has come to its end."""
        return self._totals(1)[0]

    def _totals(self, count: int) -> list[Totals]:
        """The totals of so many samples; the device is waited for once."""
        if not self._signed:
            return count * [Totals(0.0, 0.0, 0.0)]
        # sums of different devices do not meet before they are here
        rows = [torch.stack(list(values.values())) for values in (self._signed, self._absolute)]
        totals = []
        for signed, absolute in torch.stack(rows).reshape(2, len(self._signed), count).permute(2, 0, 1).tolist():
            rest = [place for place, name in enumerate(self._signed) if name not in self._parameters]
            remainder, unscored = (sum(values[place] for place in rest) for values in (signed, absolute))
            totals.append(Totals(sum(signed), remainder, sum(absolute), unscored))
        return totals

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum().double()

    def _reduce(self, unit: Unit, values: Tensor) -> Tensor:
        return _double_copy(unit.reduce(values), values)


class BatchedContributions(Contributions):
    """The attributions of several samples at once; they and the scores have one more dimension in front.

    Args:
        parameters: Parameter name to how it is scored.
    """

    def totals_of_each(self, count: int) -> list[Totals]:
        """The sums over all parameters for each sample, after the last `per_unit` has come to its end.

        Args:
            count: Number of samples.
        """
        return self._totals(count)

    def _sum(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1).double()

    def _reduce(self, unit: Unit, values: Tensor) -> Tensor:
        return _double_copy(vmap(unit.reduce)(values), values)


def _double_copy(units: Tensor, weights: Tensor) -> Tensor:
    """Scores of units in float64, in memory of their own: where every weight is a unit, they are the weights'."""
    return units.clone() if units.data_ptr() == weights.data_ptr() and units.dtype == torch.float64 else units.double()


def with_all(scores: dict[Reduction, Tensor]) -> dict[Reduction, Tensor]:
    """Add what follows from the signed scores of units."""
    known: dict[Reduction, Tensor] = {"abs_of_sum": scores["sum"].abs(), **scores}
    return {reduction: known[reduction] for reduction in REDUCTIONS}
