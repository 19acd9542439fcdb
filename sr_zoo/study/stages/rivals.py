"""Other rankings by the same measure: where do the outputs go with their sets, beside the signed and searched ones?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from filterattr.analysis import Estimate, Record, Row
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import batches_of
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.ranking import contrasted, stored_scores
from sr_zoo.study.stages.reversion import GUARD, outputs_of
from sr_zoo.study.subject import Subject

BETTER = ("chosen", "searched")  # kinds of sets that every ranking is compared with
_VARIANTS = 22


@dataclass(frozen=True)
class Rival:
    """The set of one ranking.

    Attributes:
        ranking: Its name.
        count: Number of kernels.
        reverted: How far the outputs of its function return to base.
        moved: Every other input to how far its outputs leave target.
        gain: Kind of set to how much more that set reverts, with a paired interval.
    """

    ranking: str
    count: int
    reverted: Estimate
    moved: Mapping[str, Estimate]
    gain: Mapping[str, Estimate]


@dataclass(frozen=True)
class Rivals(Record):
    """The sets of all rankings for one function.

    Attributes:
        function: The function.
        entries: One for each ranking, those that revert most first.
    """

    function: str
    entries: tuple[Rival, ...]

    def rows(self) -> list[Row]:
        """One row per ranking."""
        return [
            {
                "ranking": entry.ranking,
                "count": entry.count,
                "reverted": str(entry.reverted),
                **{f"moved {name}": str(share) for name, share in entry.moved.items()},
                **{f"{kind} reverts more by": str(gain) for kind, gain in entry.gain.items()},
            }
            for entry in self.entries
        ]

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the other functions."""
        return tuple(name for name in self.entries[0].moved if name != GUARD)


def _rivals(context: Context) -> Results:
    reversion = context.archive.load("reversion")
    scores, _ = contrasted(*stored_scores(context), with_plain=False)
    outputs = outputs_of(context, {name: batches_of(some) for name, some in context.test.items()}, per_row=True)
    bootstrap = outputs.bootstrap()
    results: dict[str, object] = {}
    for name in context.subject.functions:
        sets = {kind: f"set_{kind}_{name}" for kind in BETTER}
        if not all(key in reversion for key in sets.values()):
            continue  # target has not learnt it
        better = {kind: outputs.measure(reversion[key], bootstrap) for kind, key in sets.items()}
        entries = []
        for label, by_function in scores.items():
            selection = by_function[name].top(context.settings.fraction)
            measured = outputs.measure(selection, bootstrap)
            entries.append(
                Rival(
                    label,
                    selection.count,
                    measured.reverted(name),
                    {other: measured.moved(other) for other in outputs.data if other != name},
                    {kind: one.more_reverted(name, measured) for kind, one in better.items()},
                )
            )
        entries.sort(key=lambda entry: -entry.reverted.value)
        results[f"rivals_{name}"] = Rivals(name, tuple(entries))
    return results


def _cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    return Cost(forwards=count * settings.test_crops * (count + 1) * (_VARIANTS + len(BETTER)))


RIVALS = Stage(
    "rivals",
    "Do other rankings put a function back?",
    ("rankings", "reversion"),
    ("fraction", "test_crops"),
    _cost,
    _rivals,
)
