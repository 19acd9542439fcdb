"""The attribution against every other ranking, and all of them against the oracle that knocks kernels out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterattr import FilterScores, FilterSelection, contrast
from filterattr.analysis import (
    ChannelMethod,
    KnockOutJob,
    Ranking,
    Record,
    Row,
    agreement,
    all_rankings,
    channel_ranking,
    compare_rankings,
)
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import Sample, restoration_error, towards_degraded
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.search import complete_in_the_mean, strict_scores
from sr_zoo.study.subject import Subject

# rankings that never see an input: there is nothing to contrast
_BLIND = ("random", "weight change", "relative change", "magnitude", "squared magnitude")
_LAYER_METHODS: dict[str, ChannelMethod] = {
    "Captum conductance": "conductance",
    "Captum layer IG": "integrated_gradients",
    "Captum gradient x activation": "gradient_x_activation",
}


def _output_sum(model: nn.Module, sample: Sample) -> Tensor:
    """What the published code takes the gradient of for its input path."""
    restored: Tensor = model(sample[0])
    return restored.sum()


def _error_of(restored: Tensor, sample: Sample) -> Tensor:
    """Squared error of every row."""
    return (restored - sample[1]).square().flatten(1).sum(1)


def rank_all(context: Context) -> dict[str, dict[str, Ranking]]:
    """Compute every ranking on the search samples.

    Args:
        context: The study.

    Returns:
        Name to function to ranking, without any contrast.
    """
    subject, settings = context.subject, context.settings
    generator = torch.Generator().manual_seed(settings.seed)
    rankings: dict[str, dict[str, Ranking]] = {}
    for name in subject.functions:
        samples = context.search[name][: settings.ranking_crops]
        found = all_rankings(
            subject.attributor,
            subject.base,
            subject.target,
            restoration_error,
            samples,
            generator,
            along=towards_degraded,
            output=_output_sum,
            n_steps=settings.ranking_steps,
        )
        if settings.layer_steps:
            found |= {
                label: channel_ranking(
                    subject.attributor,
                    subject.target,
                    samples,
                    lambda sample: (sample[0], sample[2]),
                    _error_of,
                    attribution=method,
                    n_steps=settings.layer_steps,
                )
                for label, method in _LAYER_METHODS.items()
            }
        for label, ranking in found.items():
            rankings.setdefault(label, {})[name] = ranking
    return rankings


def contrasted(
    rankings: Mapping[str, Mapping[str, FilterScores]], passes: Mapping[str, int], *, with_plain: bool = True
) -> tuple[dict[str, dict[str, FilterScores]], dict[str, int]]:
    """Turn rankings of single functions into those that are compared, and count their passes.

    Every ranking appears with the strict contrast, and by itself if wanted; the attribution also with equation 7;
    rankings that see no input only by themselves.

    Args:
        rankings: Name to function to scores.
        passes: Name to passes for all functions together.
        with_plain: Whether rankings appear by themselves, too; the attribution always does.

    Returns:
        The same two of what is compared.
    """
    scores: dict[str, dict[str, FilterScores]] = {}
    counts: dict[str, int] = {}
    for label, by_function in rankings.items():
        plain = dict(by_function)
        variants = {label: plain}
        if label not in _BLIND:
            variants = {label: {name: strict_scores(plain, name) for name in plain}}
            if with_plain or label == "attribution":
                variants[f"{label}, no contrast"] = plain
        if label == "attribution":
            variants["attribution, equation 7"] = {name: contrast(plain, name) for name in plain}
        scores |= variants
        counts |= dict.fromkeys(variants, passes[label])
    return scores, counts


@dataclass(frozen=True)
class Ranked(Record):
    """Which rankings were computed, and what they took.

    Attributes:
        passes: Name to forward-backward passes for all functions together; scores are kept under its place.
    """

    passes: Mapping[str, int]

    def rows(self) -> list[Row]:
        """One row per ranking."""
        return [{"ranking": name, "n_passes": count} for name, count in self.passes.items()]


def _rankings(context: Context) -> Results:
    with complete_in_the_mean():
        rankings = rank_all(context)
    passes = {label: sum(one.n_passes for one in by_function.values()) for label, by_function in rankings.items()}
    results: dict[str, object] = {"ranked": Ranked(passes)}
    for place, by_function in enumerate(rankings.values()):
        results |= {f"scores{place:02d}_{name}": one.scores for name, one in by_function.items()}
    return results


def _rankings_cost(subject: Subject, settings: Settings) -> Cost:
    of_weights, of_inputs = settings.ranking_steps + 6, 2 * settings.ranking_steps
    layers = 2 * 2 * settings.layer_steps + 2  # two methods with steps, about two passes each, and one without
    return Cost(passes=len(subject.functions) * settings.ranking_crops * (of_weights + of_inputs + layers))


def stored_scores(context: Context) -> tuple[dict[str, dict[str, FilterScores]], Mapping[str, int]]:
    """Read the rankings back.

    Args:
        context: The study, of which the stage of rankings is done.

    Returns:
        Name to function to scores, without any contrast, and name to passes.
    """
    stored = context.archive.load("rankings")
    passes: Mapping[str, int] = stored["ranked"].passes
    functions = context.subject.functions
    return {
        label: {name: stored[f"scores{place:02d}_{name}"] for name in functions} for place, label in enumerate(passes)
    }, passes


def _comparison(context: Context) -> Results:
    scores, passes = contrasted(*stored_scores(context), with_plain=context.settings.plain_rankings)
    table = compare_rankings(
        context.masking(),
        scores,
        reference="attribution",
        fractions=context.settings.ranking_fractions,
        n_passes=passes,
        progress=context.progress,
    )
    return {"table": table}


def _comparison_cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    variants = 21 + (11 if settings.plain_rankings else 0)
    return Cost(forwards=count * settings.test_crops * (2 + count * variants * len(settings.ranking_fractions)))


def random_units(like: FilterSelection, count: int, seed: int) -> FilterSelection:
    """Choose random units for the oracle, half of them among the discovered ones, so that both kinds are known.

    Args:
        like: The discovered set.
        count: How many.
        seed: Seed of the draw.

    Returns:
        The units.
    """
    generator = torch.Generator().manual_seed(seed)
    own, rest = like.flat().nonzero().reshape(-1), (~like.flat()).nonzero().reshape(-1)
    half = min(count // 2, len(own))
    chosen = torch.zeros(like.n_units, dtype=torch.bool, device="cpu")
    chosen[own[torch.randperm(len(own), generator=generator, device="cpu")[:half]]] = True
    chosen[rest[torch.randperm(len(rest), generator=generator, device="cpu")[: count - half]]] = True
    sizes = [tensor.numel() for tensor in like.values()]
    parts = torch.split(chosen, sizes)
    shaped = {name: part.reshape(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}
    return FilterSelection(shaped, like.parameters)


def _oracle(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    results: dict[str, object] = {}
    scores, _ = stored_scores(context)
    for name, chosen in context.sets.items():
        job = KnockOutJob(
            subject.attributor,
            subject.base,
            subject.target,
            restoration_error,
            context.search[name][: settings.oracle_crops],
            units=random_units(chosen, min(settings.oracle_units, chosen.n_units), settings.seed),
            checkpoint=context.work / f"{name}.safetensors",
            seed=settings.seed,
        )
        knocked = job.run(progress=context.progress)
        # the oracle says how much the loss rises, so rankings are held against it as they are, without a contrast
        plain = {label: by_function[name] for label, by_function in scores.items()}
        results[f"agreement_{name}"] = agreement(
            knocked.scores, plain, knocked.units, function=name, draws=settings.bootstrap_draws, seed=settings.seed
        )
    return results


def _oracle_cost(subject: Subject, settings: Settings) -> Cost:
    return Cost(forwards=len(subject.functions) * settings.oracle_units * settings.oracle_crops)


RANKINGS = Stage(
    "rankings",
    "How do other methods rank the kernels?",
    (),
    ("ranking_crops", "ranking_steps", "layer_steps", "crop", "search_crops", "seed"),
    _rankings_cost,
    _rankings,
)
COMPARISON = Stage(
    "comparison",
    "Does a cheaper ranking do as well?",
    ("rankings",),
    ("ranking_fractions", "plain_rankings", "test_crops"),
    _comparison_cost,
    _comparison,
)
ORACLE = Stage(
    "oracle",
    "Do rankings agree with knocking kernels out one by one?",
    ("search", "rankings"),
    ("oracle_units", "oracle_crops", "bootstrap_draws", "seed"),
    _oracle_cost,
    _oracle,
)
