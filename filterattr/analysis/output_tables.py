"""Tables of masked outputs: for several sizes of a ranking, and for the sets of several functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from filterattr.analysis.outputs import MeasuredOutputs, Outputs
from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.resampling import Bootstrap
from filterattr.analysis.results import bounded, spread
from filterattr.errors import SettingError, name_some
from filterattr.jobs.progress import Progress, counted
from filterattr.results.scores import FilterScores, FilterSelection

SIZES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)


@dataclass(frozen=True)
class OutputCurve(Record):
    """The reverted and moved shares of a ranking, for several sizes of the set.

    Attributes:
        ranking: Name of the ranking.
        function: The function of the ranking.
        fractions: Shares of all units.
        counts: Numbers of units.
        reverted: Reverted share of the function, for every size.
        moved: Every other function to its moved share, for every size.
        n_samples: Function to number of samples.
    """

    ranking: str
    function: str
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    reverted: tuple[Estimate, ...]
    moved: Mapping[str, tuple[Estimate, ...]]
    n_samples: Mapping[str, int]

    def smallest(self, until: float, *, moved: float | None = None) -> int | None:
        """Size of the smallest set that reverts enough.

        Args:
            until: The share that must be reverted.
            moved: The largest moved share of any other function; no limit by default.

        Returns:
            The number of units, for `filterattr.FilterScores.top`; ``None`` if no set of the curve fulfils both.
        """
        for place, (count, share) in enumerate(zip(self.counts, self.reverted, strict=True)):
            most = max((shares[place].value for shares in self.moved.values()), default=0.0)
            if share.value >= until and (moved is None or most <= moved):
                return count
        return None

    def rows(self) -> list[Row]:
        """One row per size and function."""
        shares = {self.function: ("reverted", self.reverted)}
        shares |= {name: ("moved", values) for name, values in self.moved.items()}
        return [
            {
                "ranking": self.ranking,
                "function": self.function,
                "fraction": fraction,
                "count": count,
                "measure": measure,
                "on": name,
                **spread("share", values[place]),
                "bounded": bounded(values[place].value),
            }
            for name, (measure, values) in shares.items()
            for place, (fraction, count) in enumerate(zip(self.fractions, self.counts, strict=True))
        ]


def output_curve(
    outputs: Outputs,
    scores: FilterScores,
    of: str,
    *,
    ranking: str,
    fractions: Sequence[float] = SIZES,
    bootstrap: Bootstrap | None = None,
    progress: Progress = None,
) -> OutputCurve:
    """Mask the first units of a ranking, for several sizes of the set, and measure the outputs.

    The expected share of `filterattr.FilterScores.top` (``until=``) takes no pass and is right if units do not depend
    on each other. This function measures the share, with one forward pass per sample and size.

    Args:
        outputs: The networks and samples: the samples of the search to choose a size, held-out samples to report it.
        scores: The ranking.
        of: The function of the ranking.
        ranking: Name of the ranking.
        fractions: Shares of all units, ascending.
        bootstrap: For the intervals; `Outputs.bootstrap` by default.
        progress: As in `FilterAttributor.attribute`, counted in sets.

    Returns:
        The curve; `OutputCurve.smallest` returns the size of the smallest sufficient set.

    Raises:
        SettingError: The function is unknown, or the fractions do not ascend.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Outputs, weight_change
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), {"copying": [torch.ones(4)]})
        >>> scores = weight_change(FilterAttributor(base, unit="filter"), base, target)
        >>> curve = output_curve(outputs, scores, "copying", ranking="weight change", fractions=(0.25, 0.5, 1))
        >>> [round(share.value, 3) for share in curve.reverted], curve.smallest(0.8)
        ([0.533, 0.833, 1.0], 2)
    """
    if of not in outputs.data:
        raise SettingError(f"the function must be one of {name_some(outputs.data)}; got {of!r}.")
    bootstrap = bootstrap or outputs.bootstrap()
    distances_of = outputs.changing()
    counts, measured = [], []
    with counted(progress, len(fractions), "set") as step:
        for selection in scores.tops(map(float, fractions)):
            counts.append(selection.count)
            measured.append(MeasuredOutputs(outputs, distances_of(selection), bootstrap))
            step()
    return OutputCurve(
        ranking=ranking,
        function=of,
        fractions=tuple(map(float, fractions)),
        counts=tuple(counts),
        reverted=tuple(point.reverted(of) for point in measured),
        moved={name: tuple(point.moved(name) for point in measured) for name in outputs.data if name != of},
        n_samples=outputs.n_samples,
    )


@dataclass(frozen=True)
class OutputMatrix(Record):
    """The reverted and moved shares of the sets of several functions.

    Attributes:
        counts: Function to the number of units in its set.
        reverted: Function to the share of it that its set reverts.
        moved: Function to every other function to the share that the set of the first moves.
        n_samples: Function to number of samples.
    """

    counts: Mapping[str, int]
    reverted: Mapping[str, Estimate]
    moved: Mapping[str, Mapping[str, Estimate]]
    n_samples: Mapping[str, int]

    def rows(self) -> list[Row]:
        """One row per set and function."""
        return [
            {"masked": name, "count": self.counts[name], "measure": measure, "on": on, **spread("share", share)}
            for name in self.counts
            for measure, on, share in [
                ("reverted", name, self.reverted[name]),
                *(("moved", other, share) for other, share in self.moved[name].items()),
            ]
        ]


def output_matrix(
    outputs: Outputs, sets: Mapping[str, FilterSelection], *, bootstrap: Bootstrap | None = None
) -> OutputMatrix:
    """Mask the set of every function, and measure the outputs on all functions.

    Args:
        outputs: The networks and held-out samples.
        sets: Function to the units found for it. Functions of ``outputs`` without a set, such as clean inputs, are
            measured as well.
        bootstrap: For the intervals; `Outputs.bootstrap` by default.

    Returns:
        The matrix.

    Raises:
        SettingError: A set belongs to no function of ``outputs``, or there is none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Outputs, weight_change
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), {"first": torch.eye(2)[:1],
        ...                                                                   "second": torch.eye(2)[1:]})
        >>> units = weight_change(FilterAttributor(base, unit="filter"), base, target)
        >>> matrix = output_matrix(outputs, {"first": units.select({"weight": [0]})})
        >>> matrix.reverted["first"].value, matrix.moved["first"]["second"].value
        (1.0, 0.0)
    """
    unknown = [name for name in sets if name not in outputs.data]
    if unknown or not sets:
        raise SettingError(
            f"every set must belong to a function of {name_some(outputs.data)}; got {name_some(sets) or 'none'}."
        )
    bootstrap = bootstrap or outputs.bootstrap()
    distances_of = outputs.changing()
    rows = {name: MeasuredOutputs(outputs, distances_of(chosen), bootstrap) for name, chosen in sets.items()}
    return OutputMatrix(
        counts={name: chosen.count for name, chosen in sets.items()},
        reverted={name: row.reverted(name) for name, row in rows.items()},
        moved={
            name: {other: row.moved(other) for other in outputs.data if other != name} for name, row in rows.items()
        },
        n_samples=outputs.n_samples,
    )
