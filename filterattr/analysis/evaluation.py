r"""Tests of whether a selection carries a function: curves, nulls, matrices and tables of masked networks.

All networks are measured on the same samples and bootstrap draws, so the intervals of their differences are paired. The
intervals do not cover the choice of the units; `filterattr.analysis.stability` measures how it depends on the samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch

from filterattr.analysis.masking import Masking as Masking
from filterattr.analysis.masking import Measured
from filterattr.analysis.record import Estimate
from filterattr.analysis.resampling import Bootstrap
from filterattr.analysis.resampling import p_value as p_value
from filterattr.analysis.results import (
    Curve,
    Intervention,
    Modulation,
    Null,
    NullCurve,
    Order,
    RankingRow,
    RankingTable,
    SpecificityMatrix,
)
from filterattr.errors import SettingError, name_some
from filterattr.jobs.progress import Progress, counted
from filterattr.results.scores import FilterScores, FilterSelection

FRACTIONS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def mask_curve(
    masking: Masking,
    scores: FilterScores,
    *,
    ranking: str,
    intervention: Intervention = "mask",
    order: Order = "most",
    fractions: Sequence[float] = FRACTIONS,
    bootstrap: Bootstrap | None = None,
    progress: Progress = None,
) -> Curve:
    """Mask (or graft) the first units of a ranking, for several sizes of the set.

    Args:
        masking: The networks and held-out samples.
        scores: The ranking.
        ranking: Name of the ranking.
        intervention: ``"mask"`` sets units of target back to base; ``"graft"`` sets units of base to target.
        order: ``"most"`` or ``"least"`` important units first.
        fractions: Shares of all units; each costs one forward pass per sample.
        bootstrap: For the intervals; `Masking.bootstrap` by default.
        progress: As in `FilterAttributor.attribute`.

    Returns:
        The curve.

    Raises:
        SettingError: The fractions are not ascending in [0, 1].

    Example:
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Masking, weight_change
        >>> _ = torch.manual_seed(0)
        >>> from torch import nn
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 4))})
        >>> scores = weight_change(FilterAttributor(base), base, target)
        >>> curve = mask_curve(masking, scores, ranking="weight change", fractions=(0, 0.5, 1))
        >>> [round(estimate.value, 3) for estimate in curve.shares["copying"]][::2]
        [0.0, 1.0]
    """
    _check_fractions(fractions)
    bootstrap = bootstrap or masking.bootstrap()
    ordered = scores if order == "most" else -scores
    counts = []
    losses: dict[str, list[Estimate]] = {name: [] for name in masking.data}
    shares: dict[str, list[Estimate]] = {name: [] for name in masking.data}
    network = masking.changing(intervention)
    with counted(progress, len(fractions), "set") as step:
        for selection in ordered.tops(map(float, fractions)):
            counts.append(selection.count)
            measured = Measured(masking, network.sample_losses(selection), bootstrap, intervention)
            for name in masking.data:
                losses[name].append(measured.loss(name))
                shares[name].append(measured.share(name))
            step()
    return Curve(
        ranking=ranking,
        intervention=intervention,
        order=order,
        fractions=tuple(map(float, fractions)),
        counts=tuple(counts),
        losses={name: tuple(values) for name, values in losses.items()},
        shares={name: tuple(values) for name, values in shares.items()},
        loss_base=masking.loss_base,
        loss_target=masking.loss_target,
        n_samples=masking.n_samples,
    )


def null_curve(
    masking: Masking,
    scores: FilterScores,
    generator: torch.Generator,
    *,
    ranking: str,
    null: Null = "random",
    intervention: Intervention = "mask",
    fractions: Sequence[float] = FRACTIONS[1:-1],
    draws: int = 30,
    progress: Progress = None,
) -> NullCurve:
    """Mask (or graft) random sets of the same sizes as those of a ranking.

    Args:
        masking: The networks and held-out samples.
        scores: The ranking whose numbers of units are matched.
        generator: Source of randomness, on the CPU.
        ranking: Name of the ranking.
        null: ``"random"`` draws the same number of units; ``"layer-matched"`` draws the same number in every
            parameter. A ranking that beats only the first may have found no more than the right layers.
        intervention: ``"mask"`` or ``"graft"``.
        fractions: Shares of all units.
        draws: Random sets per fraction; ``draws * len(fractions)`` forward passes per sample in total.
        progress: As in `FilterAttributor.attribute`.

    Returns:
        All draws; `NullCurve.bands` and `NullCurve.p_values` read them.

    Raises:
        SettingError: A name is unknown, there are fewer than two draws, or the fractions are not ascending in [0, 1].

    Example:
        >>> from filterattr.analysis import Masking
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 4))})
        >>> scores = weight_change(FilterAttributor(base), base, target)
        >>> generator = torch.Generator().manual_seed(0)
        >>> nulls = null_curve(masking, scores, generator, ranking="weight change", fractions=(0.5, 1), draws=3)
        >>> nulls.counts
        (8, 16)
    """
    _check_fractions(fractions)
    if draws < 2 or null not in ("random", "layer-matched"):
        raise SettingError(
            f'a null needs at least 2 draws and is "random" or "layer-matched"; got {draws} and {null!r}.'
        )
    shares: dict[str, list[tuple[float, ...]]] = {name: [] for name in masking.data}
    counts = []
    network = masking.changing(intervention)
    with counted(progress, draws * len(fractions), "draw") as step:
        for fraction in fractions:
            like = scores.top(float(fraction))
            counts.append(like.count)
            drawn: dict[str, list[float]] = {name: [] for name in masking.data}
            for _ in range(draws):
                chosen = like.random(generator, layer_matched=null == "layer-matched")
                for name, losses in network.sample_losses(chosen).items():
                    removed = masking.share_removed(name, float(losses.mean()))
                    drawn[name].append(removed if intervention == "mask" else 1 - removed)
                step()
            for name, values in drawn.items():
                shares[name].append(tuple(values))
    return NullCurve(
        null=null,
        ranking=ranking,
        intervention=intervention,
        fractions=tuple(map(float, fractions)),
        counts=tuple(counts),
        shares={name: tuple(values) for name, values in shares.items()},
    )


def specificity(
    masking: Masking, sets: Mapping[str, FilterSelection], *, bootstrap: Bootstrap | None = None
) -> SpecificityMatrix:
    """Mask the set of every function, and measure how much of each function is removed.

    Args:
        masking: The networks and held-out samples.
        sets: Function to the units found for it. Functions of ``masking`` without a set are columns only; the test of
            the diagonal ignores them.
        bootstrap: For the intervals; `Masking.bootstrap` by default. The intervals are not corrected for the number of
            margins.

    Returns:
        The matrix, with the margins of its diagonal.

    Raises:
        SettingError: A set belongs to no function of ``masking``, or there are fewer than two.

    Example:
        >>> from filterattr.analysis import Masking
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> ends = {"first": list(torch.eye(4)[:2]), "last": list(torch.eye(4)[2:])}
        >>> masking = Masking(base, base, target, loss, ends)
        >>> scores = weight_change(FilterAttributor(base), base, target)
        >>> inputs = torch.arange(4).expand(4, 4)  # input i matters where it is not zero
        >>> sets = {
        ...     "first": FilterSelection({"weight": inputs < 2}, scores.parameters),
        ...     "last": FilterSelection({"weight": inputs >= 2}, scores.parameters),
        ... }
        >>> matrix = specificity(masking, sets)
        >>> [round(matrix.shares["first"][name].value, 3) for name in ("first", "last")]
        [1.0, 0.0]
    """
    unknown = [name for name in sets if name not in masking.data]
    if unknown or len(sets) < 2:
        raise SettingError(
            f"at least two sets are needed, each of a function of {name_some(masking.data)}; got "
            f"{name_some(sets) or 'none'}."
        )
    bootstrap = bootstrap or masking.bootstrap()
    network = masking.changing()
    measured = {name: Measured(masking, network.sample_losses(chosen), bootstrap) for name, chosen in sets.items()}
    return SpecificityMatrix(
        counts={name: chosen.count for name, chosen in sets.items()},
        shares={name: {other: row.share(other) for other in masking.data} for name, row in measured.items()},
        row_margins={
            name: {other: row.minus(name, row, other) for other in sets if other != name}
            for name, row in measured.items()
        },
        column_margins={
            name: {other: row.minus(name, measured[other], name) for other in sets if other != name}
            for name, row in measured.items()
        },
        n_samples=masking.n_samples,
        confidence=bootstrap.confidence,
    )


def modulation(
    masking: Masking,
    selection: FilterSelection,
    *,
    function: str,
    strengths: Sequence[float] = STRENGTHS,
    bootstrap: Bootstrap | None = None,
) -> Modulation:
    r"""Modulate the units of one function: :math:`W = s\,\theta + (1 - s)\,\bar\theta` on the selection.

    Args:
        masking: The networks and held-out samples.
        selection: The units.
        function: The function they were found for.
        strengths: The values of s, ascending: 0 is base, 1 is target, larger values extrapolate.
        bootstrap: For the intervals; `Masking.bootstrap` by default.

    Returns:
        Losses and shares at every strength.

    Raises:
        SettingError: The function is unknown, or the strengths are not ascending.

    Example:
        >>> from filterattr.analysis import Masking
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 4))})
        >>> scores = weight_change(FilterAttributor(base), base, target)
        >>> dialled = modulation(masking, scores.top(1.0), function="copying", strengths=(0, 0.5, 1))
        >>> [round(share.value, 3) for share in dialled.shares["copying"]]  # a quadratic loss
        [1.0, 0.25, 0.0]
    """
    if function not in masking.data or list(strengths) != sorted(set(strengths)) or len(strengths) < 2:
        raise SettingError(
            f"modulation needs a function of {name_some(masking.data)} and at least two ascending strengths; got "
            f"{function!r} and {tuple(strengths)}."
        )
    bootstrap = bootstrap or masking.bootstrap()
    measured = [Measured(masking, masking.sample_losses(masking.masked(selection, s)), bootstrap) for s in strengths]
    pairs = list(itertools.pairwise(measured))
    return Modulation(
        function=function,
        count=selection.count,
        strengths=tuple(map(float, strengths)),
        losses={name: tuple(point.loss(name) for point in measured) for name in masking.data},
        shares={name: tuple(point.share(name) for point in measured) for name in masking.data},
        steps={name: tuple(later.minus(name, point, name) for point, later in pairs) for name in masking.data},
        loss_base=masking.loss_base,
        loss_target=masking.loss_target,
    )


def compare_rankings(
    masking: Masking,
    rankings: Mapping[str, Mapping[str, FilterScores]],
    *,
    reference: str,
    fractions: Sequence[float] = (0.01, 0.03, 0.05, 0.1),
    n_passes: Mapping[str, int] | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Progress = None,
) -> RankingTable:
    """Mask the same number of units by every ranking, and measure how much of each function is removed.

    Args:
        masking: The networks and held-out samples.
        rankings: Name to function to scores, all of the same units.
        reference: Name of the ranking that the others are compared with.
        fractions: Shares of all units.
        n_passes: Name to the number of forward-backward passes of the ranking; 0 if it is not given.
        bootstrap: For the intervals; `Masking.bootstrap` by default.
        progress: As in `FilterAttributor.attribute`.

    Returns:
        One row per ranking, function and fraction.

    Raises:
        SettingError: The reference is missing, a ranking lacks a function that the reference has, or a function has no
            samples.

    Example:
        >>> from filterattr.analysis import Masking
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> masking = Masking(base, base, target, loss, {"copying": list(torch.rand(8, 4))})
        >>> scores = weight_change(FilterAttributor(base), base, target)
        >>> rankings = {"weight change": {"copying": scores}, "the reverse": {"copying": -scores}}
        >>> table = compare_rankings(masking, rankings, reference="weight change", fractions=(0.25,))
        >>> [row.ranking for row in table.entries], [len(row.shares) for row in table.entries]
        (['weight change', 'the reverse'], [1, 1])
    """
    functions = list(rankings.get(reference, ()))
    findings = [
        f"{name!r} lacks {name_some(set(functions) - set(by_function))}"
        for name, by_function in rankings.items()
        if not set(functions) <= set(by_function)
    ]
    unknown = [name for name in functions if name not in masking.data]
    if not functions or findings or unknown:
        raise SettingError(
            f"the reference {reference!r} must be among the rankings, and every ranking must score its functions: "
            + ("; ".join(findings) or f"got {name_some(rankings)}, without samples: {name_some(unknown) or 'none'}")
            + "."
        )
    _check_fractions(fractions)
    bootstrap = bootstrap or masking.bootstrap()
    order = [reference, *(name for name in rankings if name != reference)]
    entries = []
    network = masking.changing()
    with counted(progress, len(functions) * len(fractions) * len(rankings), "set") as step:
        for function in functions:
            for fraction in fractions:
                first: Measured | None = None
                for name in order:
                    chosen = rankings[name][function].top(float(fraction))
                    measured = Measured(masking, network.sample_losses(chosen), bootstrap)
                    first = first or measured
                    entries.append(
                        RankingRow(
                            ranking=name,
                            function=function,
                            fraction=float(fraction),
                            count=chosen.count,
                            n_passes=(n_passes or {}).get(name, 0),
                            shares={other: measured.share(other) for other in masking.data},
                            advantage=measured.minus(function, first, function),
                            specificity=measured.minus_largest_other(function),
                        )
                    )
                    step()
    return RankingTable(reference, tuple(entries))


def _check_fractions(fractions: Iterable[float]) -> None:
    listed = [float(fraction) for fraction in fractions]
    if not listed or listed != sorted(set(listed)) or not 0 <= listed[0] <= listed[-1] <= 1:
        raise SettingError(f"fractions must ascend inside [0, 1] (one per cent is 0.01); got {tuple(listed)}.")
