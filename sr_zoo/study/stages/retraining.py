"""Can the discovered places learn their function alone? Retraining from base, against other places."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filterattr import FilterSelection, train_only
from filterattr.analysis import Estimate, Record, Row, load_scipy, spread
from filterattr.display import counted
from sr_zoo.degradations import Degradation, blind_inputs
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import margin_of
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject
from sr_zoo.training import Recipe, Trainer

PATCH = 64
PLACES = ("discovered", "layer-matched", "random", "everything")


@dataclass(frozen=True)
class RetrainingRow:
    """What retraining one kind of places brings.

    Attributes:
        function: The function that was trained.
        places: ``"discovered"``, ``"layer-matched"``, ``"random"`` or ``"everything"``.
        count: Kernels that were trained.
        brought: Share of the function that target has over base, one number a seed.
        mean: Their mean, with a t-interval over the seeds.
        advantage: What the discovered places bring more, seed by seed, with its interval.
    """

    function: str
    places: str
    count: int
    brought: tuple[float, ...]
    mean: Estimate
    advantage: Estimate


@dataclass(frozen=True)
class Retraining(Record):
    """Retraining of some places from base.

    Attributes:
        iterations: Of every training.
        entries: One per function and kind of places.
    """

    iterations: int
    entries: tuple[RetrainingRow, ...]

    def rows(self) -> list[Row]:
        """One row per entry."""
        return [
            {
                "function": row.function,
                "places": row.places,
                "count": row.count,
                "seeds": len(row.brought),
                "iterations": self.iterations,
                **spread("brought", row.mean),
                **spread("discovered_minus", row.advantage),
            }
            for row in self.entries
        ]


def mean_over_seeds(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean with Student's interval; without ends for a single value.

    Args:
        values: One number a seed.
        confidence: Of the interval.

    Returns:
        The estimate.

    Example:
        >>> print(mean_over_seeds([1.0, 2.0, 3.0]))
        2.00 [-0.48, 4.48]
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(load_scipy().t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def retrain(
    subject: Subject,
    start: Mapping[str, Tensor],
    selection: FilterSelection,
    degradation: Degradation,
    folder: Path,
    *,
    iterations: int,
    batch: int,
    rate: float,
    precision: str,
    seed: int,
    ema_decay: float = 0.0,
) -> dict[str, Tensor]:
    """Train some kernels of a network on the search photographs; everything else stays as it is, bit for bit.

    Args:
        subject: Says which network, and holds the photographs.
        start: First weights.
        selection: The kernels.
        degradation: What they shall undo.
        folder: Where the run keeps its checkpoint; a run that was killed goes on.
        iterations: Optimizer steps.
        batch: Patches in each.
        rate: First learning rate, falling as a cosine.
        precision: ``"fp32"`` or ``"bf16"``.
        seed: Seed of the patches.
        ema_decay: Decay of the moving average that comes back; 0 gives the last weights.

    Returns:
        The trained weights.
    """
    network = copy.deepcopy(subject.base)
    network.load_state_dict(dict(start))
    network.train()
    recipe = Recipe(
        degradation.config(),
        iterations=iterations,
        learning_rate=rate,
        final_rate=rate / 100,
        batch_size=batch,
        patch_size=PATCH if PATCH % subject.scale == 0 else PATCH - PATCH % subject.scale,
        margin=margin_of(subject.scale),
        ema_decay=ema_decay,
        precision=precision,
        seed=seed,
    )
    corner = [subject.search[0][:, :PATCH, :PATCH]]  # the study measures on its own samples: this costs nothing
    trainer = Trainer(
        network,
        subject.search,
        corner,
        recipe,
        folder,
        inputs={"trained": degradation},
        validate_every=500,
        progress=False,
    )
    with train_only(network, selection, trainer.optimizer):
        return trainer.run()


def places_of(selection: FilterSelection, kind: str, seed: int) -> FilterSelection:
    """Which kernels are trained.

    Args:
        selection: The discovered ones.
        kind: One of `PLACES`.
        seed: Seed of the random ones.

    Returns:
        The kernels.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds: dict[str, Callable[[], FilterSelection]] = {
        "discovered": lambda: selection,
        "layer-matched": lambda: selection.random(generator, layer_matched=True),
        "random": lambda: selection.random(generator),
        "everything": lambda: selection | ~selection,
    }
    return kinds[kind]()


def _retraining(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    masking = context.masking()
    entries = []
    total = len(subject.functions) * len(PLACES) * settings.retrain_seeds
    with counted(context.progress, total, "training") as step:
        for name, chosen in context.sets.items():
            degradation = blind_inputs(subject.scale, degradations={name: subject.degradations[name]})
            brought: dict[str, list[float]] = {}
            for kind in PLACES:
                for seed in range(settings.retrain_seeds):
                    state = retrain(
                        subject,
                        masking.base,
                        places_of(chosen, kind, seed),
                        degradation,
                        context.work / f"{name}-{kind}-{seed}",
                        iterations=settings.retrain_iterations,
                        batch=settings.retrain_batch,
                        rate=settings.retrain_rate,
                        precision=settings.precision,
                        seed=settings.seed + seed,
                    )
                    removed = masking.share_removed(name, masking.losses_of(state)[name])
                    brought.setdefault(kind, []).append(1 - removed)
                    step()
            entries += _rows(name, chosen, brought)
    return {"retraining": Retraining(settings.retrain_iterations, tuple(entries))}


def _rows(name: str, chosen: FilterSelection, brought: Mapping[str, list[float]]) -> list[RetrainingRow]:
    own = brought["discovered"]
    return [
        RetrainingRow(
            function=name,
            places=kind,
            count=chosen.n_units if kind == "everything" else chosen.count,
            brought=tuple(values),
            mean=mean_over_seeds(values),
            advantage=mean_over_seeds([one - other for one, other in zip(own, values, strict=True)]),
        )
        for kind, values in brought.items()
    ]


def training_passes(subject: Subject, settings: Settings, iterations: int) -> float:  # noqa: ARG001
    """What a training costs, in passes of one crop of the study.

    Args:
        subject: The subject.
        settings: The settings.
        iterations: Its iterations.

    Returns:
        The passes.
    """
    return iterations * settings.retrain_batch * (PATCH / settings.crop) ** 2


def _cost(subject: Subject, settings: Settings) -> Cost:
    trainings = len(subject.functions) * len(PLACES) * settings.retrain_seeds
    return Cost(
        forwards=settings.test_crops * len(subject.functions) * (2 + trainings),
        passes=trainings * training_passes(subject, settings, settings.retrain_iterations),
    )


RETRAINING = Stage(
    "retraining",
    "Can the discovered places learn their function alone?",
    ("search",),
    ("retrain_seeds", "retrain_iterations", "retrain_batch", "retrain_rate", "precision", "test_crops", "seed"),
    _cost,
    _retraining,
)
