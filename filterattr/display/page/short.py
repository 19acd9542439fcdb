"""The first screen of a report: what was found, how sure that is, and what to do next, in a sentence each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from filterattr.analysis.results import Curve, NullCurve, SpecificityMatrix
from filterattr.display.page.markup import Markup, element, number
from filterattr.display.page.section import Verdict
from filterattr.display.plot import short_names
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterSelection

_MOST_NAMED = 3


@dataclass(frozen=True)
class Evidence:
    """What a report is given, as far as the first screen needs it.

    Attributes:
        attributions: Label to attribution.
        selections: Label to chosen units.
        curves: Masking and graft curves.
        nulls: Their null distributions.
        matrix: The specificity matrix.
        verdicts: What all sections found.
    """

    attributions: Mapping[str, FilterAttribution] = field(default_factory=dict)
    selections: Mapping[str, FilterSelection] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    nulls: Sequence[NullCurve] = ()
    matrix: SpecificityMatrix | None = None
    verdicts: Sequence[Verdict] = ()


def in_short(evidence: Evidence) -> Markup:
    """Write the first screen.

    Args:
        evidence: What the report is given.

    Returns:
        Three sentences.

    Example:
        >>> page = in_short(Evidence(verdicts=[Verdict("blur: sound.", True), Verdict("noise: a barrier.", False)]))
        >>> "<dd>1 of 2 checks hold. Against it: noise: a barrier.</dd>" in page
        True
    """
    lines = {
        "What was found": found(evidence),
        "How sure it is": how_sure(evidence.verdicts),
        "Next": what_next(evidence),
    }
    return element("dl", [(element("dt", name), element("dd", text)) for name, text in lines.items()], class_="answer")


def found(evidence: Evidence) -> str:
    """Say what the most telling result is: effects, or chosen units, or where the scores are.

    Args:
        evidence: What the report is given.

    Returns:
        A sentence.
    """
    effects = [text for curve in _foremost(evidence.curves) if (text := _effect(curve))]
    if effects:
        text = "; ".join(effects[:_MOST_NAMED])
        return f"{text[0].upper()}{text[1:]}."
    if evidence.selections:
        chosen = [
            f"{number(selection.count)} of {number(selection.n_units)} units for {label}, most of them in "
            f"{_largest({name: float(marks.sum()) for name, marks in selection.items()})}"
            for label, selection in evidence.selections.items()
        ]
        return f"Selected are {'; '.join(chosen[:_MOST_NAMED])}."
    if evidence.attributions:
        places = [
            f"for {label} in {_largest({row.name: row.share for row in attribution.per_layer()})}"
            for label, attribution in evidence.attributions.items()
        ]
        return f"The largest share of the scores is {'; '.join(places[:_MOST_NAMED])}."
    return "The results follow below."


def how_sure(verdicts: Sequence[Verdict]) -> str:
    """Count the checks that hold, and name the first that does not.

    Args:
        verdicts: What all sections found.

    Returns:
        One or two sentences.
    """
    judged = [verdict for verdict in verdicts if verdict.good is not None]
    if not judged:
        return "Nothing on this page tests it yet."
    against = [verdict for verdict in judged if not verdict.good]
    if not against:
        return f"All {len(judged)} checks hold." if len(judged) > 1 else "The one check on this page holds."
    counted = f"{len(judged) - len(against)} of {len(judged)} checks hold." if len(judged) > 1 else ""
    return f"{counted} Against it: {against[0].text}".strip()


def what_next(evidence: Evidence) -> str:
    """Say which step of the evidence is the next one.

    Args:
        evidence: What the report is given.

    Returns:
        A sentence, with the call to make.
    """
    unsound = [label for label, attribution in evidence.attributions.items() if attribution.concerns]
    steps = (
        (bool(evidence.attributions or evidence.selections or evidence.curves), _ATTRIBUTE),
        (not unsound, f"Fix the path of {', '.join(unsound[:_MOST_NAMED])} first: print(attribution) says how."),
        (bool(evidence.selections or evidence.curves), _CHOOSE),
        (bool(evidence.curves), _MASK),
        (bool(evidence.nulls), _COMPARE),
        (evidence.matrix is not None or len(evidence.attributions) <= 1, _SPECIFY),
        (all(verdict.good is not False for verdict in evidence.verdicts), _DOUBT),
    )
    missing = next((text for is_there, text in steps if not is_there), None)
    return missing or _USE


_ATTRIBUTE = 'Attribute a function, and pass it to the report as attributions={"name": ...}.'
_CHOOSE = "Choose units: scores.top(0.01), or signed_contrast for several functions."
_MASK = "Measure what masking these units removes on held-out samples: mask_curve(masking, scores)."
_COMPARE = 'Compare with random units of the same layers: null_curve(masking, scores, null="layer-matched").'
_SPECIFY = "Measure what masking does to the other functions: specificity(masking, selections)."
_DOUBT = "Try other sizes, units or scores (signed_contrast), or more samples: the checks below say what failed."
_USE = "Use the units: blend(target, base, selection) masks them, train_only(...) trains them alone."


def _foremost(curves: Sequence[Curve]) -> list[Curve]:
    """The masking curve of every function that does most to it."""
    best: dict[str, Curve] = {}
    for curve in curves:
        if curve.intervention != "mask" or curve.order != "most" or not curve.shares:
            continue
        function = _function_of(curve)
        if function not in best or _area(curve, function) > _area(best[function], function):
            best[function] = curve
    return list(best.values())


def _function_of(curve: Curve) -> str:
    """The function that a ranking is of: that of its name, or the one that it does most to."""
    if curve.ranking in curve.shares:
        return curve.ranking
    return max(curve.shares, key=lambda name: _area(curve, name))


def _area(curve: Curve, function: str) -> float:
    area = curve.area(function)
    return -1.0 if math.isnan(area) else area


def _effect(curve: Curve) -> str | None:
    """What masking about 1% of the units removes, of the function and of the others."""
    function = _function_of(curve)
    places = [place for place, fraction in enumerate(curve.fractions) if fraction > 0]
    if not places:
        return None
    place = min(places, key=lambda index: abs(math.log(curve.fractions[index] / 0.01)))
    others = [
        f"{shares[place].value:.2f} of {name}"
        for name, shares in curve.shares.items()
        if name != function and curve.loss_target[name] < curve.loss_base[name]
    ]
    removed = " and ".join([f"{curve.shares[function][place].value:.2f} of {function}", *others[:_MOST_NAMED]])
    return f"masking the first {number(100 * curve.fractions[place])}% of {curve.ranking} removes {removed}"


def _largest(shares: Mapping[str, float]) -> str:
    names = dict(zip(shares, short_names(list(shares)), strict=True))
    return names[max(shares, key=lambda name: shares[name])]
