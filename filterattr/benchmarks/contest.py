"""A repair against simpler ways to give back what fine-tuning broke, all under one limit on what the skill loses.

Scores come from one set of samples. On a second one every way chooses all that it can choose: how far it goes back, and
how many units. What it loses and recovers is reported on a third one, with intervals.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filterattr.analysis.gradients import fisher
from filterattr.analysis.masking import Masking, Measured
from filterattr.analysis.rankings import random_ranking, weight_change
from filterattr.analysis.record import Estimate
from filterattr.analysis.repairing import PLACES, Repaired, repair, up_to
from filterattr.benchmarks.forgetting import SKILL, ForgettingPair, State
from filterattr.benchmarks.tables import markdown, write_csv
from filterattr.errors import FilterAttrWarning
from filterattr.intervention import blend, swapped
from filterattr.jobs.progress import counted
from filterattr.results.scores import FilterScores, FilterSelection

AT_MOST = 0.05
_SIZES = 0.05, 0.1, 0.2, 0.4, 0.7
_NEARNESS = 2.0  # attributions go twice as far as interpolation can
_DRAWS = 3
Way = Callable[[float], State]


class RepairRow(NamedTuple):
    """One line of the CSV file.

    Attributes:
        pair: The network.
        method: How it was repaired.
        units: Share of the units that were put back.
        way: How far they went: 1 is all the way.
        searched_lost: What is lost of the skill on the search samples.
        searched_recovered: What is recovered of the abilities there.
        lost: The same on held-out samples.
        lost_low: Lower end of its interval.
        lost_high: Upper end.
        recovered: The same on held-out samples.
        recovered_low: Lower end of its interval.
        recovered_high: Upper end.
        n_networks: How many networks were measured.
    """

    pair: str
    method: str
    units: float
    way: float
    searched_lost: float
    searched_recovered: float
    lost: float
    lost_low: float
    lost_high: float
    recovered: float
    recovered_low: float
    recovered_high: float
    n_networks: int


class _Network(NamedTuple):
    """The best network of one method, by the search samples."""

    state: State
    units: float
    way: float
    lost: float
    recovered: float
    n_networks: int


def repair_contest(
    name: str, pair: ForgettingPair, *, at_most: float = AT_MOST, draws: int = _DRAWS
) -> list[RepairRow]:
    """Repair one pair in every way.

    Args:
        name: What the pair is called.
        pair: The pair, with one ability.
        at_most: The share of the skill that may be lost on the search samples.
        draws: Random sets of each kind.

    Returns:
        One row a method; random ones are the mean over their draws.

    Example:
        >>> from filterattr.benchmarks import forgetting_pairs
        >>> rows = repair_contest("LoRA", forgetting_pairs()["LoRA"](), draws=1)
        >>> max(row.searched_lost for row in rows) <= 0.05
        True
    """
    match = _Contest(pair, at_most)
    interpolated = match.best([(1.0, match.interpolated)])
    reach = min(1.0, _NEARNESS * interpolated.way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)
        near, far = match.repaired_near(reach), match.repaired()
    change = weight_change(pair.attributor, pair.base, pair.target)
    methods = {
        "repair, outputs near target": [match.network_of(near)],
        "repair, losses from base": [match.network_of(far)],
        "interpolation of all weights": [interpolated],
        "largest changes back": [match.ranked(change)],
        "smallest changes back": [match.ranked(-change)],
        "Fisher, ability over skill": [match.ranked(match.fisher_ratio())],
    }
    generator = torch.Generator().manual_seed(0)
    drawn = [near.selection.random(generator, layer_matched=True) for _ in range(draws)]
    methods["random"] = [match.ranked(random_ranking(change, generator)) for _ in range(draws)]
    methods["random, layer-matched"] = [match.best([match.way_of(selection)]) for selection in drawn]
    return [match.row(name, method, networks) for method, networks in methods.items()]


class _Contest:
    """Networks of one pair, chosen on its search samples and reported on the others."""

    def __init__(self, pair: ForgettingPair, at_most: float) -> None:
        self._pair, self._at_most = pair, at_most
        self._ability = next(name for name in pair.search if name != SKILL)
        self._model = pair.attributor.model
        ends = self._model, pair.base, pair.target, pair.losses
        self._search, self._held_out = Masking(*ends, pair.search), Masking(*ends, pair.held_out)
        self._bootstrap = self._held_out.bootstrap()

    def interpolated(self, way: float) -> State:
        """All weights, scored or not, on the line from target to base."""
        return {
            name: torch.lerp(value, self._pair.base[name], way) if value.is_floating_point() else value
            for name, value in self._pair.target.items()
        }

    def way_of(self, selection: FilterSelection) -> tuple[float, Way]:
        """The networks whose chosen units go back."""
        share = selection.count / selection.n_units
        return share, lambda way: blend(self._pair.target, self._pair.base, selection, 1 - way)

    def ranked(self, scores: FilterScores) -> _Network:
        """The best network of a ranking, over some sizes."""
        return self.best([self.way_of(selection) for selection in scores.tops(_SIZES)])

    def best(self, ways: Iterable[tuple[float, Way]]) -> _Network:
        """The network inside the limit that recovers most."""
        measured: list[_Network] = []
        for units, way in ways:

            def lost_at(place: int, units: float = units, way: Way = way) -> float:
                measured.append(self._measured(way(place / PLACES), units, place / PLACES))
                return measured[-1].lost

            up_to(self._at_most, PLACES, lost_at)
        nothing = _Network(self._pair.target, 0.0, 0.0, 0.0, 0.0, 0)
        inside = [network for network in measured if network.lost <= self._at_most]
        best = max([nothing, *inside], key=lambda network: network.recovered)
        return best._replace(n_networks=len(measured))

    def _measured(self, state: State, units: float, way: float) -> _Network:
        losses = self._search.losses_of(state)
        shares = {name: self._search.share_removed(name, loss) for name, loss in losses.items()}
        return _Network(state, units, way, shares[SKILL], shares[self._ability], 1)

    def repaired(self) -> Repaired:
        """Repair by attributions of the losses, all the way from base."""

        def loss(model: nn.Module, sample: Any) -> Tensor:
            return self._pair.losses(model, sample).mean()

        return self._repaired(self._pair.base, dict.fromkeys(self._pair.scored, loss), self._pair.scored, 8)

    def repaired_near(self, reach: float) -> Repaired:
        """Repair by attributions of how far the outputs are from those to be had, over the way that is left."""
        pair, ends = self._pair, {SKILL: self._pair.target, self._ability: self._pair.base}
        samples = {}
        for name, batches in pair.scored.items():
            with torch.no_grad(), swapped(self._model, ends[name]) as model:
                samples[name] = [(batch, pair.output(model, batch)) for batch in batches]

        def apart(model: nn.Module, sample: tuple[Any, Tensor]) -> Tensor:
            return pair.apart(pair.output(model, sample[0]), sample[1])

        return self._repaired(self.interpolated(reach), dict.fromkeys(samples, apart), samples, 4)

    def _repaired(
        self, begin: State, losses: Mapping[str, Any], samples: Mapping[str, Sequence[Any]], n_steps: int
    ) -> Repaired:
        attributions = {
            name: self._pair.attributor.attribute(
                begin, self._pair.target, loss, samples[name], n_steps=n_steps, keep="signed", progress=False
            )
            for name, loss in losses.items()
        }
        return repair(self._search, attributions, SKILL, at_most=self._at_most, progress=False)

    def network_of(self, repaired: Repaired) -> _Network:
        """The network of a repair."""
        units, way = self.way_of(repaired.selection)
        lost, recovered = repaired.lost[SKILL], repaired.recovered[self._ability]
        far = 1 - repaired.strength
        return _Network(way(far), units, far, lost, recovered, len(repaired.history.steps))

    def fisher_ratio(self) -> FilterScores:
        """Units whose change matters for the ability, and not for the skill."""
        information = {
            name: fisher(
                self._pair.attributor,
                self._pair.target,
                lambda model, sample: self._pair.losses(model, sample).mean(),
                self._pair.scored[name],
                base=self._pair.base,
            )
            for name in (self._ability, SKILL)
        }
        ability, skill = information[self._ability], information[SKILL]
        least = 1e-12 * float(skill.flat().max())
        ratios = {key: value / (skill[key] + least) for key, value in ability.items()}
        return FilterScores(ratios, ability.parameters)

    def row(self, pair: str, method: str, networks: Sequence[_Network]) -> RepairRow:
        """Measure the networks of a method on held-out samples, and take their mean."""
        estimates = [self._held_out_shares(network) for network in networks]
        lost, recovered = (_mean(column) for column in zip(*estimates, strict=True))
        units, way, searched_lost, searched_recovered, n_networks = (
            sum(column) / len(networks) for column in zip(*(network[1:] for network in networks), strict=True)
        )
        chosen = units, way, searched_lost, searched_recovered
        ends = (lost.value, lost.low, lost.high, recovered.value, recovered.low, recovered.high)
        return RepairRow(pair, method, *chosen, *ends, round(n_networks * len(networks)))

    def _held_out_shares(self, network: _Network) -> tuple[Estimate, Estimate]:
        losses = self._held_out.sample_losses(network.state)
        measured = Measured(self._held_out, losses, self._bootstrap)
        return measured.share(SKILL), measured.share(self._ability)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Of networks that were drawn; the ends of the intervals, too."""
    count = len(estimates)
    return Estimate(*(sum(getattr(each, end) for each in estimates) / count for end in ("value", "low", "high")))


def repair_table(rows: Sequence[RepairRow]) -> str:
    """Write rows as a table in Markdown.

    Args:
        rows: Of `repair_contest`.

    Returns:
        One line a pair and method.

    Example:
        >>> shares = 0.04, 0.2, 0.05, 0.04, 0.06, 0.2, 0.1, 0.3
        >>> print(repair_table([RepairRow("digits", "random", 0.1, 0.5, *shares, 9)]))
        | pair | method | units | way | skill lost | recovered | networks |
        | --- | --- | --- | --- | --- | --- | --- |
        | digits | random | 10% | 0.50 | 0.05 [0.04, 0.06] | 0.20 [0.10, 0.30] | 9 |
        <BLANKLINE>
    """
    head = ["pair", "method", "units", "way", "skill lost", "recovered", "networks"]
    lines = [head]
    for row in rows:
        lost, recovered = row[6:9], row[9:12]
        cells = f"{row.units:.0%}", f"{row.way:.2f}", _spread(*lost), _spread(*recovered), str(row.n_networks)
        lines.append([row.pair, row.method, *cells])
    return markdown(lines)


def _spread(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def run_repairs(pairs: Mapping[str, Callable[[], ForgettingPair]], out: Path) -> None:
    """Run the contest of some pairs, print the table and write the file.

    Args:
        pairs: Name to what makes the pair.
        out: The CSV file.

    Example:
        >>> import tempfile
        >>> run_repairs({}, Path(tempfile.mkdtemp()) / "repair.csv")
        | pair | method | units | way | skill lost | recovered | networks |
        | --- | --- | --- | --- | --- | --- | --- |
    """
    rows: list[RepairRow] = []
    with counted(None, len(pairs), "pair", title="repairing") as step:
        for name, make in pairs.items():
            rows += repair_contest(name, make())
            step()
    write_csv(RepairRow._fields, rows, out)
    sys.stdout.write(repair_table(rows))
