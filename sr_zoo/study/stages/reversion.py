"""Do sets put a function back and leave the rest alone? Signed and searched sets beside the paper's, clean inputs kept.

Everything is chosen on the search crops: sizes that are expected to remove a share, and sets that are searched. The
test crops only report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from filterattr import (
    FilterAttribution,
    FilterScores,
    FilterSelection,
    signed_contrast,
)
from filterattr.analysis import (
    PRICES,
    SIZES,
    Chosen,
    Masking,
    Outputs,
    Searched,
    choose,
    output_curve,
    output_matrix,
    reversion,
    search,
    specificity,
)
from sr_zoo.pair import concerns_are_shown
from sr_zoo.samples import restored
from sr_zoo.study.archive import Archive, Results
from sr_zoo.study.samples import Sample, batches_of, restoration_error
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject

GUARD = "clean"
ENOUGH = 0.85  # of the loss, removed on the search crops: what a chosen set must come to
REVERTED = 0.8  # of the outputs, on the test crops: what the smallest sets are counted for
# name of a kind of set to what it is called in texts
KINDS = {
    "strict": "paper's score, strict contrast",
    "published": "paper's score, equation 7",
    "signed": "signed",
    "chosen": f"signed, chosen to remove {ENOUGH:g}",
    "searched": "searched",
}
_JUDGED = ("searched", "chosen")  # against random sets
_CURVES = ("strict", "signed", "searched")
_GREEDY_STEPS, _MASK_STEPS, _BATCH = 12, 120, 8  # of a search
_MEASURED = 4  # sets that a choice measures for every price, at most


def outputs_of(context: Context, samples: Mapping[str, list[Sample]], *, per_row: bool) -> Outputs:
    """Where outputs go, for every function and for clean inputs.

    Args:
        context: The study.
        samples: Name of an input to its samples.
        per_row: Whether each row of a batch counts.

    Returns:
        The outputs of base and target.
    """
    subject = context.subject
    data = {name: samples[name] for name in (*subject.functions, GUARD)}
    return Outputs(subject.target, subject.base, subject.target, restored, data, per_row=per_row)


def _reversion(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    attributions = {name: context.found[f"attribution_{name}"] for name in subject.functions}
    attributions[GUARD] = _guard(context)
    # what target has not learnt cannot be put back; it guards the others still
    learnt = [name for name in subject.functions if attributions[name].loss_target < attributions[name].loss_base]
    scores = {name: signed_contrast(attributions, name) for name in learnt}
    results: dict[str, object] = {f"scores_{name}": one for name, one in scores.items()}
    searching = outputs_of(context, dict(context.search), per_row=False)
    chosen = dict(_chosen(context, searching, attributions, learnt))
    results |= {f"candidates_{name}": one.candidates for name, one in chosen.items()}
    searched = dict(_searched(context, searching, {name: one.scores for name, one in chosen.items()}))
    results |= {f"history_{name}": one.history for name, one in searched.items()}
    sets = dict(_sets(context, scores))
    sets |= {("chosen", name): one.selection for name, one in chosen.items()}
    sets |= {("searched", name): one.selection for name, one in searched.items()}
    results |= {f"set_{kind}_{name}": selection for (kind, name), selection in sets.items()}
    outputs = outputs_of(context, {name: batches_of(some) for name, some in context.test.items()}, per_row=True)
    masking = context.masking(*subject.functions)
    pieces = Archive(context.work)
    for kind in KINDS:
        by_function = {name: sets[kind, name] for name in learnt if (kind, name) in sets}
        if by_function:
            key = f"outputs_{kind}"
            results[key] = _once(pieces, key, partial(output_matrix, outputs, by_function))
        if len(by_function) > 1:
            key = f"removed_{kind}"
            results[key] = _once(pieces, key, partial(specificity, masking, by_function))
    curves = {"strict": {name: context.found[f"scores_{name}"] for name in learnt}, "signed": scores}
    curves["searched"] = {name: one.scores for name, one in searched.items()}
    for kind in _CURVES:
        for name, one in curves[kind].items():
            key = f"curve_{kind}_{name}"
            results[key] = _once(pieces, key, partial(output_curve, outputs, one, name, ranking=KINDS[kind]))
    for place, (kind, name) in enumerate((kind, name) for kind in _JUDGED for name in learnt):
        judge = partial(
            reversion,
            outputs,
            sets[kind, name],
            name,
            generator=torch.Generator().manual_seed(settings.seed + place),
            nulls=("layer-matched",),
            draws=settings.reversion_draws,
            null_moves=False,
            progress=context.progress,
        )
        key = f"reversion_{kind}_{name}"
        results[key] = _once(pieces, key, judge)
    return results


def _once(pieces: Archive, key: str, make: Callable[[], object]) -> object:
    """Take a piece that an interrupted run has left, or make it."""
    if not pieces.is_done(key):
        pieces.store(key, "", {"piece": make()}, {})
    return pieces.load(key)["piece"]


def _guard(context: Context) -> FilterAttribution:
    """Attribution of the inputs that need no function."""
    subject = context.subject
    with concerns_are_shown():
        return subject.attributor.attribute(
            subject.base,
            subject.target,
            restoration_error,
            context.search[GUARD],
            n_steps=context.settings.steps,
            checkpoint=context.work / f"{GUARD}.safetensors",
            progress=context.progress,
        )


def _sets(context: Context, scores: Mapping[str, FilterScores]) -> Iterator[tuple[tuple[str, str], FilterSelection]]:
    """The sets of one size for all."""
    for name, one in scores.items():
        yield ("strict", name), context.found[f"set_{name}"]
        yield ("published", name), context.found[f"published_{name}"]
        yield ("signed", name), one.top(context.settings.fraction)


def _chosen(
    context: Context, outputs: Outputs, attributions: Mapping[str, FilterAttribution], learnt: Sequence[str]
) -> Iterator[tuple[str, Chosen]]:
    """The signed sets whose price and size are measured on the search crops."""
    subject = context.subject
    ends = subject.target, subject.base, subject.target
    for name in learnt:
        masking = Masking(*ends, restoration_error, {name: context.search[name]})
        with concerns_are_shown():
            yield (
                name,
                choose(outputs, attributions, name, masking=masking, until=ENOUGH, amount=context.settings.fraction),
            )


def _searched(context: Context, outputs: Outputs, scores: Mapping[str, FilterScores]) -> Iterator[tuple[str, Searched]]:
    """The sets that are searched for on the search crops, from the signed scores."""
    settings = context.settings
    for name, one in scores.items():
        yield (
            name,
            search(
                outputs,
                one,
                name,
                amount=settings.fraction,
                greedy_steps=_GREEDY_STEPS,
                steps=_MASK_STEPS,
                batch=_BATCH,
                collateral=settings.search_collateral,
                seed=settings.seed,
                checkpoint=context.work / f"searched-{name}.safetensors",
                progress=context.progress,
            ),
        )


def _cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    sets = count * (len(KINDS) * 2 + len(_CURVES) * len(SIZES))
    drawn = count * len(_JUDGED) * settings.reversion_draws
    searches = count * (_GREEDY_STEPS + _MASK_STEPS) * _BATCH * (count + 1)
    choices = count * len(PRICES) * (_MEASURED + count + 1)
    return Cost(
        forwards=settings.test_crops * ((count + 1) * sets + drawn) + settings.search_crops * choices,
        passes=settings.search_crops * settings.steps + searches,
    )


REVERSION = Stage(
    "reversion",
    "Is a function put back, and is everything else left alone?",
    ("search",),
    (
        "search_collateral",
        "reversion_draws",
        "fraction",
        "crop",
        "search_crops",
        "test_crops",
        "steps",
        "seed",
    ),
    _cost,
    _reversion,
)
