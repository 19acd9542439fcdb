r"""Give back what fine-tuning broke: which units, put back towards base, restore lost abilities at little of the skill?

Fine-tuning gains a skill and costs abilities: clean inputs, the domain of before, general text. Let :math:`A_u(D)` be
the signed attribution of a unit. Then :math:`A_u(D) / \sum_v A_v(D)` is its part of what was lost of an ability, or of
what was gained of a skill. A *price* of the skill ranks the units,

.. math:: S_u = \frac{1}{n} \sum_D \frac{A_u(D)}{\sum_v A_v(D)}
   - \lambda \sum_K \max\Bigl(0, \frac{A_u(K)}{\sum_v A_v(K)}\Bigr)

over the abilities :math:`D` and the skills :math:`K`. The set of a price is all units with :math:`S_u > 0`. It goes
back as far as the skill allows, which is found by measuring networks on the samples of the search.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from filterattr.analysis.masking import Masking
from filterattr.analysis.record import Record, Row
from filterattr.errors import FilterAttrWarning, SettingError, gathered, name_some
from filterattr.jobs.progress import Progress, counted
from filterattr.results.attribution import FilterAttribution
from filterattr.results.cells import bars, cell, facts
from filterattr.results.scores import FilterSelection, mark_top
from filterattr.results.signed import expected_removed, gain_of
from filterattr.units.unit import Immutable

PRICES = 0.0, 0.5, 1.0, 2.0, 4.0, 8.0
PLACES = 2**20  # on the way of a set
_LOOKS = 6  # at networks, for one price
_NEAR = 0.9  # of the limit: near enough
_AIM = 0.97  # of the limit: where the next network should be


@dataclass(frozen=True)
class RepairStep(Immutable):
    """One network that was measured.

    Attributes:
        price: Price of the skill that made its set.
        count: Number of units.
        strength: How much of the change of these units is left; see `filterattr.blend`.
        lost: Skill to the share of it that is lost.
        recovered: Ability to the share of its loss that is given back.
    """

    price: float
    count: int
    strength: float
    lost: Mapping[str, float]
    recovered: Mapping[str, float]

    @property
    def most_lost(self) -> float:
        """Of any skill; infinite where a loss is no number."""
        return max(math.inf if math.isnan(share) else share for share in self.lost.values())

    @property
    def mean_recovered(self) -> float:
        """Over the abilities."""
        return sum(self.recovered.values()) / len(self.recovered)


@dataclass(frozen=True)
class RepairHistory(Record):
    """All networks that were measured.

    Attributes:
        steps: The networks.
    """

    steps: tuple[RepairStep, ...]

    def rows(self) -> list[Row]:
        """One row a network."""
        return [
            {
                "price": step.price,
                "count": step.count,
                "strength": step.strength,
                **{f"lost {name}": share for name, share in step.lost.items()},
                **{f"recovered {name}": share for name, share in step.recovered.items()},
            }
            for step in self.steps
        ]


@dataclass(frozen=True, eq=False)
class Repaired(Immutable):
    """The set that gives back most, and what it does on the samples of the search; measure it on others.

    ``blend(target, base, repaired.selection, repaired.strength)`` is the repaired checkpoint.

    Attributes:
        selection: The units.
        strength: How much of their change is left: 0 puts them to base.
        price: The price of the skill that made the set.
        at_most: The limit.
        lost: Skill to the share of it that is lost.
        recovered: Ability to the share of its loss that is given back; above 1 it is better than at base.
        expected: Every skill and ability to the same share before any pass, from the attributions alone.
        history: Everything that was measured.
        n_forwards: Forward passes that this took, one a sample and network.
    """

    selection: FilterSelection
    strength: float
    price: float
    at_most: float
    lost: Mapping[str, float]
    recovered: Mapping[str, float]
    expected: Mapping[str, float]
    history: RepairHistory
    n_forwards: int

    def __repr__(self) -> str:
        shares = [f"{share:.3g} of {name!r} lost" for name, share in self.lost.items()]
        shares += [f"{share:.3g} of {name!r} recovered" for name, share in self.recovered.items()]
        return f"Repaired({self.selection.count} of {self.selection.n_units} units, {', '.join(shares)})"

    def _repr_html_(self) -> str:
        """Show in a notebook what is given back, and what it costs."""
        rows = [(name, "lost", share) for name, share in self.lost.items()]
        rows += [(name, "recovered", share) for name, share in self.recovered.items()]
        shown = [
            ((name, what, f"{share:.1%}", f"{self.expected[name]:.1%}"), max(share, 0.0)) for name, what, share in rows
        ]
        return cell(
            f"Repaired({self.selection.count} of {self.selection.n_units} units)",
            facts({"strength": f"{self.strength:.3g}", "at most": f"{self.at_most:.1%} of a skill"}),
            bars(("function", "share", "measured", "expected"), shown),
        )


def repair(
    masking: Masking,
    attributions: Mapping[str, FilterAttribution],
    keep: str | Iterable[str],
    *,
    at_most: float = 0.05,
    prices: Sequence[float] = PRICES,
    partly: bool = True,
    progress: Progress = None,
) -> Repaired:
    r"""Find the units whose way back to base gives back most of the lost abilities, and takes little of the skill.

    .. math:: \mathrm{recovered}_D = \frac{L_D(target) - L_D(repaired)}{L_D(target) - L_D(base)} \qquad
       \mathrm{lost}_K = \frac{L_K(repaired) - L_K(target)}{L_K(base) - L_K(target)}

    Every price gives a set, and its networks are measured until one is just inside the limit: about four each. The
    answer is the network inside the limit that recovers most, as a mean over the abilities.

    Args:
        masking: Both ends and the samples of the search, of every skill and every ability. Samples that are reported
            must be others.
        attributions: Skill or ability to its attribution; those besides ``keep`` are the abilities. They may use
            another loss than ``masking``, such as the distance to what base said (abilities) and to what target
            said (skills), and may begin anywhere between base and target.
        keep: The skill, or several.
        at_most: The share of any skill that may be lost.
        prices: Prices of the skill to try; 0 looks at the abilities alone.
        partly: Whether all units of a set may go the same part of the way back. ``False`` puts units to base, or not at
            all, and takes as many of the highest as the limit allows.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in prices.

    Returns:
        The set, with what was measured. It is empty if nothing could be given back inside the limit; a
        `FilterAttrWarning` then says so.

    Raises:
        SettingError: A name is unknown, a number makes no sense, the units differ, or fine-tuning did not gain a skill
            or did not cost an ability, by the attributions or on the samples of ``masking``.
        StateMismatchError: The units do not fit the end points.

    Example:
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Masking, repair
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():  # the first row is the skill, the second one does harm
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> goal = torch.tensor([1.0, 0.0])
        >>> loss = lambda model, x: (model(x) - goal * x).square().sum()
        >>> samples = {"skill": [torch.tensor([1.0, 0.0])], "old": [torch.tensor([0.0, 1.0])]}
        >>> attributor = FilterAttributor(target, unit="filter")
        >>> found = {name: attributor.attribute(base, target, loss, some) for name, some in samples.items()}
        >>> repair(Masking(target, base, target, loss, samples), found, keep="skill")
        Repaired(1 of 2 units, 0 of 'skill' lost, 1 of 'old' recovered)
    """
    skills = [keep] if isinstance(keep, str) else list(keep)
    _check(masking, attributions, skills, at_most, prices)
    job = _Repair(masking, attributions, skills, at_most)
    with counted(progress, len(prices), "price") as step:
        for price in prices:
            job.try_price(price, partly=partly)
            step()
    if job.best.count == 0:
        warnings.warn(
            f"nothing could be given back for at most {at_most:.3g} of {name_some(skills)}. Allow more, try other "
            "prices or finer units, or look at the history for what was measured.",
            FilterAttrWarning,
            stacklevel=2,
        )
    return job.result()


def _check(
    masking: Masking,
    attributions: Mapping[str, FilterAttribution],
    skills: Sequence[str],
    at_most: float,
    prices: Sequence[float],
) -> None:
    """Find everything wrong before the first pass."""
    findings = [f"at_most is {at_most}"] if not 0 < at_most < 1 else []
    findings += [f"a price is {price}" for price in prices if not 0 <= price < math.inf]
    findings += [] if len(prices) else ["there is no price"]
    findings += [f"there is no attribution of the skill {name!r}" for name in skills if name not in attributions]
    findings += [] if skills else ["there is no skill to keep"]
    findings += [] if set(attributions) - set(skills) else ["there is no ability beside the skill"]
    for name, attribution in attributions.items():
        if name not in masking.data:
            findings.append(f"{name!r} has an attribution and no samples in masking")
            continue
        gains = gain_of(attribution), masking.loss_base[name] - masking.loss_target[name]
        findings.append(_misfit(name, gains, name in skills))
    findings = [finding for finding in findings if finding]
    if findings:
        raise SettingError(
            "a repair needs a skill that fine-tuning gained, abilities that it cost, samples of all of them, at_most "
            f"in (0, 1) and prices of at least 0; {gathered(findings)}."
        )
    first = next(iter(attributions.values())).scores("sum")
    for attribution in attributions.values():
        first.check_same_units(attribution.scores("sum"))


def _misfit(name: str, gains: tuple[float, float], is_skill: bool) -> str:
    """Say that the loss of a skill did not fall, or that of an ability did not rise; nothing if all is well."""
    sign, kind, happened, moved = (1, "skill", "gained", "fell") if is_skill else (-1, "ability", "lost", "rose")
    attributed, measured = (sign * gain for gain in gains)
    if attributed > 0 and measured > 0:
        return ""
    return (
        f"the {kind} {name!r} was not {happened}: its loss {moved} by {attributed:.3g} as attributed, and by "
        f"{measured:.3g} on the samples of masking"
    )


class _Repair:
    """Tries prices, and keeps the best network inside the limit."""

    def __init__(
        self,
        masking: Masking,
        attributions: Mapping[str, FilterAttribution],
        skills: Sequence[str],
        at_most: float,
    ) -> None:
        self._masking, self._attributions, self._at_most = masking, attributions, at_most
        self._skills = skills
        self._abilities = [name for name in attributions if name not in skills]
        parts = {name: each.scores("sum") * (-1 / gain_of(each)) for name, each in attributions.items()}
        self._like = parts[skills[0]]
        self._blame = torch.stack([parts[name].flat() for name in self._abilities]).mean(0).cpu()
        self._cost = torch.stack([parts[name].flat() for name in skills]).clamp(min=0).sum(0).cpu()
        nothing = RepairStep(0.0, 0, 1.0, dict.fromkeys(skills, 0.0), dict.fromkeys(self._abilities, 0.0))
        self.best, self._selection = nothing, self._set(self._blame, 0)
        self._steps: list[RepairStep] = []

    def try_price(self, price: float, *, partly: bool) -> None:
        """Measure the networks of one price."""
        scores = self._blame - price * self._cost
        count = int((scores > 0).sum())
        if count == 0:
            return

        def part_of_the_way(place: int) -> float:
            return self._measured(price, self._set(scores, count), 1 - place / PLACES)

        def part_of_the_units(place: int) -> float:
            return self._measured(price, self._set(scores, place), 0.0)

        if partly:
            up_to(self._at_most, PLACES, part_of_the_way)
        else:
            up_to(self._at_most, count, part_of_the_units)

    def _set(self, scores: torch.Tensor, count: int) -> FilterSelection:
        return FilterSelection(self._like._split(mark_top(scores, count)), self._like.parameters)

    def _measured(self, price: float, selection: FilterSelection, strength: float) -> float:
        """Measure what a network loses of a skill, and keep it if it is the best so far."""
        shares = self._masking.removed(selection, strength)
        lost = {name: shares[name] for name in self._skills}
        # of an ability the loss rises from base to target, and the share of its way back is what is given back
        step = RepairStep(price, selection.count, strength, lost, {name: shares[name] for name in self._abilities})
        self._steps.append(step)
        if step.most_lost <= self._at_most and step.mean_recovered > self.best.mean_recovered:
            self.best, self._selection = step, selection
        return step.most_lost

    def result(self) -> Repaired:
        """Say what was found."""
        best = self.best
        expected = expected_removed(self._attributions, self._selection)
        return Repaired(
            selection=self._selection,
            strength=best.strength,
            price=best.price,
            at_most=self._at_most,
            lost=best.lost,
            recovered=best.recovered,
            expected={name: share * (1 - best.strength) for name, share in expected.items()},
            history=RepairHistory(tuple(self._steps)),
            n_forwards=len(self._steps) * sum(map(len, self._masking.data.values())),
        )


def up_to(limit: float, last: int, lost_at: Callable[[int], float]) -> None:
    """Look at some of the networks 1 to ``last`` on a way from target, until one is just inside a limit.

    Near target, where a skill is at its best, what is lost of it grows as the square of the way. So the root of it is
    taken for a straight line.

    Args:
        limit: What may be lost.
        last: Number of the network that is looked at first.
        lost_at: Measures a network, and returns what it loses.

    Example:
        >>> def lost_at(place):
        ...     seen.append(place)
        ...     return (place / 100) ** 2
        >>> seen = []
        >>> up_to(0.25, 100, lost_at)
        >>> seen
        [100, 49]
    """
    aim = (_AIM * limit) ** 0.5
    inside, outside = (0, 0.0), (last, _root(lost_at(last)))
    if outside[1] <= limit**0.5:
        return
    for _ in range(_LOOKS - 1):
        length = outside[0] - inside[0]
        if length <= 1:
            return
        straight = (aim - inside[1]) / (outside[1] - inside[1])
        place = inside[0] + min(max(round(length * min(max(straight, 0.05), 0.95)), 1), length - 1)
        lost = _root(lost_at(place))
        if lost > limit**0.5:
            outside = place, lost
        else:
            inside = place, lost
        if _NEAR * limit < lost**2 <= limit:
            return


def _root(lost: float) -> float:
    """Of a share; a network that is broken is as far away as can be."""
    return math.sqrt(max(lost, 0.0)) if math.isfinite(lost) else 1e3
