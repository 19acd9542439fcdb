"""Rankings against truth that is known: ``python -m filterattr.benchmarks.planted``.

Makes pairs of small networks whose carriers are known (`filterattr.benchmarks.planting`) and scores both functions of
each by every ranking of the library. Prints how near they are to the truth, and writes every number to a CSV file.
Scores of any other method join it with the same columns::

    from filterattr.benchmarks import Judge, families, plant

    pair = plant(families()["CNN"], seed=0)     # pair.base, pair.target, pair.search["A"], pair.attributor.model
    auroc, precision, reverted, moved = Judge.of(pair)("A", scores)
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from filterattr.benchmarks.families import families
from filterattr.benchmarks.planting import PlantedPair, is_learnt, plant
from filterattr.benchmarks.scoring import Judge, rankings
from filterattr.benchmarks.tables import first_line, markdown, write_csv
from filterattr.errors import FilterAttrWarning, SettingError, name_some
from filterattr.jobs.progress import Progress, counted


class Row(NamedTuple):
    """One line of the CSV file.

    Attributes:
        family: The kind of network.
        seed: Seed of the pair.
        function: ``"A"`` or ``"B"``.
        ranking: What scored the units.
        auroc: See `filterattr.benchmarks.scoring.Truth`; as the three below.
        precision: Share of carriers among the highest.
        reverted: What masking these reverts of the function.
        moved: The most that it moves another task.
        n_passes: Forward-backward passes that it took.
    """

    family: str
    seed: int
    function: str
    ranking: str
    auroc: float
    precision: float
    reverted: float
    moved: float
    n_passes: int


def run(names: Sequence[str], seeds: Iterable[int], *, progress: Progress = None) -> list[Row]:
    """Make the pairs and judge all rankings.

    Args:
        names: Families.
        seeds: Of each family.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in pairs.

    Returns:
        One row per family, seed, function and ranking. A `FilterAttrWarning` names the pairs that are left out because
        target is no better than base at a function after the drift.

    Raises:
        SettingError: A family is unknown.

    Example:
        >>> rows = run(["LoRA"], [0], progress=False)
        >>> rows[0].family, rows[0].ranking, 0 <= rows[0].auroc <= 1
        ('LoRA', 'signed, lambda 0', True)
    """
    known = families()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingError(f"a family must be one of {name_some(known, 10)}; got {name_some(unknown)}.")
    pairs = [(name, seed) for seed in seeds for name in names]
    rows = []
    lost = []
    with counted(progress, len(pairs), "pair", title="planting and scoring") as step:
        for name, seed in pairs:
            pair = plant(known[name], seed)
            if is_learnt(pair):
                rows += _judged(pair, name, seed)
            else:
                lost.append(f"{name} {seed}")
            step()
    if lost:
        warnings.warn(
            f"pairs were left out, as the drift took a function away from them: {name_some(lost, len(lost))}.",
            FilterAttrWarning,
            stacklevel=2,
        )
    return rows


def _judged(pair: PlantedPair, name: str, seed: int) -> list[Row]:
    """The rows of one pair."""
    judge, rows = Judge.of(pair), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)  # drift makes barriers
        for ranked in rankings(pair, seed):
            truth = judge(ranked.function, ranked.scores)
            rows.append(Row(name, seed, ranked.function, ranked.ranking, *truth, ranked.n_passes))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Write the means over seeds and functions as a table in Markdown.

    Args:
        rows: Of `run`.

    Returns:
        One line a ranking: AUROC in each family, then precision, reverted and moved over all, and passes.

    Example:
        >>> print(table([Row("CNN", 0, "A", "random", 0.5, 0.25, 0.125, 0.5, 0)]))
        | ranking | CNN | precision | reverted | moved | passes |
        | --- | --- | --- | --- | --- | --- |
        | random | .50 | .25 | .12 | .50 | 0 |
        <BLANKLINE>
    """
    names = list(dict.fromkeys(row.family for row in rows))
    head = ["ranking", *names, "precision", "reverted", "moved", "passes"]
    lines = [head]
    for ranking in dict.fromkeys(row.ranking for row in rows):
        those = [row for row in rows if row.ranking == ranking]
        cells = [_mean(row.auroc for row in those if row.family == name) for name in names]
        # a broken network counts as one that is as far away as base, or nowhere near it
        cells += [
            _mean(row.precision for row in those),
            _mean(max(row.reverted, 0.0) for row in those),
            _mean(min(row.moved, 1.0) for row in those),
            str(those[0].n_passes),
        ]
        lines.append([ranking, *cells])
    return markdown(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line.

    Args:
        arguments: Those of the command line by default.

    Returns:
        The exit status, 0.

    Example:
        >>> main(["--help"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    parser = argparse.ArgumentParser(prog="python -m filterattr.benchmarks.planted", description=first_line(__doc__))
    parser.add_argument("--families", nargs="+", default=list(families()), help="default: all", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="pairs of each family (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("planted.csv"), help="CSV file (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = run(options.families, range(options.seeds), progress=True)
    write_csv(Row._fields, rows, options.out)
    sys.stdout.write(f"{table(rows)}\nwrote {options.out}\n")
    return 0


def _mean(values: Iterable[float]) -> str:
    listed = list(values)  # none where a ranking does not apply to a family
    return f"{np.mean(listed):.2f}".removeprefix("0") if listed else ""


if __name__ == "__main__":
    sys.exit(main())
