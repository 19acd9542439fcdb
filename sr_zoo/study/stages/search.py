"""Find the kernels of every function, say whether to believe them, and how much they depend on the photographs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from filterattr import FilterAttrWarning, FilterScores, contrast
from filterattr.analysis import SampleScores, differences, path_health, per_sample_scores, sanity_checks, stability
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import restoration_error
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject


def strict_scores(scores: Mapping[str, FilterScores], function: str) -> FilterScores:
    """Discriminative score of a function against the mean of the others, on the strict scale of `filterattr.contrast`.

    Args:
        scores: Function to scores.
        function: Which one.

    Returns:
        Its score.
    """
    return contrast(scores, function, scale="strict")


@contextmanager
def complete_in_the_mean() -> Iterator[None]:
    """Keep quiet about the completeness of single samples: that of all of them is in the results, and judged there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)
        yield


def _search(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    attributions, samples = {}, {}
    for name in subject.functions:
        attributions[name] = subject.attributor.attribute(
            subject.base,
            subject.target,
            restoration_error,
            context.search[name],
            n_steps=settings.steps,
            checkpoint=context.work / f"{name}.safetensors",
            progress=context.progress,
        )
        with complete_in_the_mean():
            samples[name] = per_sample_scores(
                subject.attributor,
                subject.base,
                subject.target,
                restoration_error,
                context.search[name],
                folder=context.work / name,
                progress=context.progress,
                n_steps=settings.steps,
            )
    scores = {name: attribution.scores() for name, attribution in attributions.items()}
    results: dict[str, object] = {}
    for name in subject.functions:
        strict = strict_scores(scores, name)
        results[f"attribution_{name}"] = attributions[name]
        results[f"health_{name}"] = path_health(attributions[name])
        results[f"samples_{name}"] = samples[name]
        results[f"scores_{name}"] = strict
        results[f"set_{name}"] = strict.top(settings.fraction)
        results[f"published_{name}"] = contrast(scores, name).top(settings.fraction)
    return results


def _search_cost(subject: Subject, settings: Settings) -> Cost:
    return Cost(passes=2 * len(subject.functions) * settings.search_crops * settings.steps)


def _stability(context: Context) -> Results:
    functions = context.subject.functions
    samples: dict[str, SampleScores] = {name: context.found[f"samples_{name}"] for name in functions}
    draws = context.settings.bootstrap_draws
    results: dict[str, object] = {
        f"stability_{name}": stability(
            samples,
            lambda scores, name=name: strict_scores(scores, name),  # type: ignore[misc]
            context.settings.fraction,
            draws=draws,
            splits=max(2, draws // 4),
            seed=context.settings.seed,
        )
        for name in functions
    }
    for first, second in itertools.combinations(functions, 2):
        results[f"differences_{first}_{second}"] = differences(samples, first, second)
    return results


def _sanity(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    labelled = {name: context.found[f"samples_{name}"] for name in subject.functions}
    with complete_in_the_mean():
        return {
            f"sanity_{name}": sanity_checks(
                subject.attributor,
                subject.base,
                subject.target,
                restoration_error,
                context.search[name][: settings.sanity_crops],
                amount=settings.fraction,
                labelled=labelled if len(labelled) == 2 else None,
                seed=settings.seed,
                n_steps=settings.steps,
                allow_unused=subject.unused,
            )
            for name in subject.functions
        }


def _sanity_cost(subject: Subject, settings: Settings) -> Cost:
    return Cost(passes=6 * len(subject.functions) * settings.sanity_crops * settings.steps)


_FOUND = ("fraction", "crop", "search_crops", "steps", "seed")
SEARCH = Stage("search", "Which kernels?", (), _FOUND, _search_cost, _search)
STABILITY = Stage(
    "stability",
    "How much does the set depend on the photographs?",
    ("search",),
    ("fraction", "bootstrap_draws", "seed"),
    lambda subject, settings: Cost(),  # noqa: ARG005 - no pass
    _stability,
)
SANITY = Stage(
    "sanity",
    "Does the attribution behave as it must?",
    ("search",),
    ("sanity_crops", *_FOUND),
    _sanity_cost,
    _sanity,
)
