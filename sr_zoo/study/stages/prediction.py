"""Which degradation does an image have? Asked of the networks' kernels, without its reference."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from filterattr.analysis import READ_OUTS, Calibration, FunctionPredictor, confusion, largest_wins
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import Sample
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.search import complete_in_the_mean
from sr_zoo.study.subject import Subject


def _prediction(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    predictor = FunctionPredictor(
        subject.attributor, subject.base, subject.target, context.sets, n_steps=settings.prediction_steps
    )
    with complete_in_the_mean():
        seen = predictor.signals_of(_degraded(context.test), progress=context.progress)
        labelled = predictor.signals_of(
            _degraded(context.search, settings.calibration_crops), progress=context.progress
        )
    alone = {name: seen[name] for name in subject.functions}
    results: dict[str, object] = {}
    for read_out in READ_OUTS:
        predict = partial(largest_wins, read_out=read_out)
        results[f"unsupervised_{read_out}"] = confusion(alone, predict, method=f"{read_out}, no labels")
    results["all_inputs_overlap"] = confusion(seen, largest_wins, method="overlap, no labels, all inputs")
    calibration = Calibration.fit(labelled)
    results["calibration"] = calibration
    results["calibrated"] = confusion(seen, calibration.predict, method="calibrated")
    return results


def _degraded(samples: Mapping[str, list[Sample]], count: int | None = None) -> dict[str, list[Tensor]]:
    return {name: [sample[0] for sample in some[:count]] for name, some in samples.items()}


def _cost(subject: Subject, settings: Settings) -> Cost:
    crops = len(subject.inputs) * (settings.test_crops + settings.calibration_crops)
    return Cost(forwards=crops * (1 + len(subject.functions)), passes=crops * settings.prediction_steps)


PREDICTION = Stage(
    "prediction",
    "Which degradation does an image have?",
    ("search",),
    ("prediction_steps", "calibration_crops", "test_crops"),
    _cost,
    _prediction,
)
