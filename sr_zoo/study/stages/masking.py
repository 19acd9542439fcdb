"""Curves, nulls, specificity and modulation of the discovered sets on photographs that were not searched."""

from __future__ import annotations

import dataclasses

import torch

from filterattr.analysis import mask_curve, modulation, null_curve, specificity
from sr_zoo.study.archive import Results
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject


def _curves(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    masking = context.masking("clean", *subject.functions)
    results: dict[str, object] = {}
    for name in subject.functions:
        for kind, intervention, order in (
            ("mask", "mask", "most"),
            ("least", "mask", "least"),
            ("graft", "graft", "most"),
        ):
            results[f"{kind}_{name}"] = mask_curve(
                masking,
                context.found[f"scores_{name}"],
                ranking=name,
                intervention=intervention,  # type: ignore[arg-type]
                order=order,  # type: ignore[arg-type]
                fractions=settings.curve_fractions,
                progress=context.progress,
            )
    return results


def _curves_cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    return Cost(forwards=settings.test_crops * (count + 1) * (2 + 3 * count * len(settings.curve_fractions)))


def _nulls(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    masking = context.masking()
    generator = torch.Generator().manual_seed(settings.seed)
    results: dict[str, object] = {}
    plain = None
    for name in subject.functions:
        scores = context.found[f"scores_{name}"]
        for null in ("random", "layer-matched"):
            if null == "random" and plain is not None:  # sets of all functions have the same size
                results[f"random_{name}"] = dataclasses.replace(plain, ranking=name)
                continue
            drawn = null_curve(
                masking,
                scores,
                generator,
                ranking=name,
                null=null,
                fractions=settings.null_fractions,
                draws=settings.null_draws,
                progress=context.progress,
            )
            plain = plain or drawn
            results[f"{null}_{name}"] = drawn
    return results


def _nulls_cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    sets = 2 + (1 + count) * settings.null_draws * len(settings.null_fractions)
    return Cost(forwards=settings.test_crops * count * sets)


def _specificity(context: Context) -> Results:
    subject = context.subject
    masking = context.masking(*subject.inputs)
    published = {name: context.found[f"published_{name}"] for name in subject.functions}
    return {"strict": specificity(masking, context.sets), "published": specificity(masking, published)}


def _specificity_cost(subject: Subject, settings: Settings) -> Cost:
    return Cost(forwards=settings.test_crops * len(subject.inputs) * (2 + 2 * len(subject.functions)))


def _modulation(context: Context) -> Results:
    masking = context.masking(*context.subject.inputs)
    return {
        f"modulation_{name}": modulation(masking, chosen, function=name, strengths=context.settings.strengths)
        for name, chosen in context.sets.items()
    }


def _modulation_cost(subject: Subject, settings: Settings) -> Cost:
    sets = 2 + len(subject.functions) * len(settings.strengths)
    return Cost(forwards=settings.test_crops * len(subject.inputs) * sets)


_TEST = ("test_crops",)
CURVES = Stage(
    "curves",
    "What does masking more and more kernels remove?",
    ("search",),
    ("curve_fractions", *_TEST),
    _curves_cost,
    _curves,
)
NULLS = Stage(
    "nulls",
    "What do random kernels remove?",
    ("search",),
    ("null_fractions", "null_draws", "seed", *_TEST),
    _nulls_cost,
    _nulls,
)
SPECIFICITY = Stage(
    "specificity",
    "Is every set specific to its function?",
    ("search",),
    _TEST,
    _specificity_cost,
    _specificity,
)
MODULATION = Stage(
    "modulation",
    "Can a function be dialled?",
    ("search",),
    ("strengths", *_TEST),
    _modulation_cost,
    _modulation,
)
