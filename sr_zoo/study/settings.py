"""How much a study does: crops, steps, draws, iterations; a quick and a full preset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_type_hints

from filterattr import FilterAttrError
from filterattr.analysis import FRACTIONS, STRENGTHS
from sr_zoo.training import PRECISIONS, fast_precision

# parts of the crops that are searched
_OF_THE_SEARCH = ("ranking_crops", "channel_crops", "oracle_crops", "calibration_crops", "sanity_crops")


class StudyError(FilterAttrError, ValueError):
    """A study cannot be made from what was given; the message gathers everything that is wrong."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study's numbers, apart from the networks and the photographs.

    Attributes:
        fraction: Share of all kernels in a discovered set.
        crop: Width of a reference crop in pixels.
        search_crops: Crops to find kernels on, each from another photograph as long as there are enough.
        test_crops: Crops to evaluate on.
        steps: Gauss-Legendre nodes of the attribution.
        curve_fractions: Sizes of the sets of the masking curves.
        null_fractions: Sizes of the random sets.
        null_draws: Random sets of every size and kind.
        search_collateral: Price of what a searched set moves.
        reversion_draws: Random sets that reversion is compared with.
        ranking_crops: Search crops for every ranking, the attribution among them.
        ranking_steps: Nodes of the attribution and of the input paths there.
        ranking_fractions: Sizes at which rankings are compared.
        plain_rankings: Whether every ranking is also compared without the contrast between functions.
        layer_steps: Steps of Captum's layer methods; 0 leaves them out.
        channel_crops: Search crops of the rankings of channels.
        channel_steps: Numbers of steps of each of them.
        channel_fractions: Sizes of the sets of channels.
        oracle_units: Kernels that are knocked out one by one.
        oracle_crops: Search crops of the knock-out.
        strengths: Of the modulation.
        calibration_crops: Labelled search crops of every input for the calibrated predictor.
        prediction_steps: Nodes of the predictor.
        bootstrap_draws: Draws for the intervals of stability and depth.
        place_draws: Draws of permuted weights and shuffled edges.
        retrain_seeds: Trainings of every set of places.
        retrain_iterations: Iterations of each.
        retrain_batch: Patches of 64 pixels in one iteration.
        retrain_rate: First learning rate.
        sanity_crops: Search crops of the sanity checks.
        adaptive_fractions: Sizes of the kernel sets of the adaptive restorer.
        adaptive_iterations: Iterations of tuning its largest sets; 0 leaves them as they are in target.
        precision: Of trainings, ``"fp32"`` or ``"bf16"``; by default what the processor computes fast.
        seed: Of everything random.

    Raises:
        StudyError: A number makes no sense; all of them are named.

    Example:
        >>> Settings(fraction=2.0, steps=0)
        Traceback (most recent call last):
        ...
        sr_zoo.study.settings.StudyError: fraction must lie in (0, 0.5]; got 2.0; steps must be at least 1; got 0.
    """

    fraction: float = 0.01
    crop: int = 128
    search_crops: int = 48
    test_crops: int = 100
    steps: int = 16
    curve_fractions: tuple[float, ...] = FRACTIONS
    null_fractions: tuple[float, ...] = (0.01, 0.03, 0.05, 0.1)
    null_draws: int = 100
    search_collateral: float = 1.0
    reversion_draws: int = 99
    ranking_crops: int = 24
    ranking_steps: int = 16
    ranking_fractions: tuple[float, ...] = (0.01, 0.03, 0.05, 0.1)
    plain_rankings: bool = True
    layer_steps: int = 8
    channel_crops: int = 24
    channel_steps: tuple[int, ...] = (1, 2, 4, 8)
    channel_fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2)
    oracle_units: int = 1000
    oracle_crops: int = 4
    strengths: tuple[float, ...] = STRENGTHS
    calibration_crops: int = 24
    prediction_steps: int = 8
    bootstrap_draws: int = 200
    place_draws: int = 30
    retrain_seeds: int = 3
    retrain_iterations: int = 2000
    retrain_batch: int = 8
    retrain_rate: float = 1e-3
    sanity_crops: int = 4
    adaptive_fractions: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05)
    adaptive_iterations: int = 4000
    precision: str = field(default_factory=partial(fast_precision, "cpu"))
    seed: int = 0

    def __post_init__(self) -> None:
        """Gather every number that makes no sense."""
        kinds = get_type_hints(type(self))
        least = {
            "crop": 32,
            "search_crops": 4,
            "test_crops": 4,
            "null_draws": 2,
            "reversion_draws": 2,
            "layer_steps": 0,
            "oracle_units": 3,
            "bootstrap_draws": 2,
            "place_draws": 2,
            "adaptive_iterations": 0,
            "seed": 0,
        }
        wrong = [
            f"{name} must be at least {least.get(name, 1)}; got {getattr(self, name)}"
            for name, kind in kinds.items()
            if kind is int and getattr(self, name) < least.get(name, 1)
        ]
        if not 0 < self.fraction <= 0.5:
            wrong.insert(0, f"fraction must lie in (0, 0.5]; got {self.fraction}")
        wrong += [
            f"{name} must be at least 0; got {getattr(self, name)}"
            for name in ("search_collateral",)
            if not 0 <= getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must ascend inside [0, 1]; got {getattr(self, name)}"
            for name in (
                "curve_fractions",
                "null_fractions",
                "ranking_fractions",
                "channel_fractions",
                "adaptive_fractions",
            )
            if not _ascends(getattr(self, name))
        ]
        if len(self.channel_fractions) < 2 or not all(0 < one <= 1 for one in self.channel_fractions):
            wrong.append(f"channel_fractions must be at least two sizes above 0; got {self.channel_fractions}")
        if not self.channel_steps or list(self.channel_steps) != sorted({max(one, 1) for one in self.channel_steps}):
            wrong.append(f"channel_steps must ascend from at least 1; got {self.channel_steps}")
        for name in _OF_THE_SEARCH:
            if getattr(self, name) > self.search_crops:
                wrong.append(f"{name} must be at most search_crops ({self.search_crops}); got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            wrong.append(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if wrong:
            raise StudyError("; ".join(wrong) + ".")

    def chosen(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Take some of the settings, for the digest of a stage.

        Args:
            names: Their names.

        Returns:
            Name to value.
        """
        return {name: getattr(self, name) for name in names}


def full_settings(**changes: Any) -> Settings:
    """Settings of ``study`` without ``--quick``.

    Args:
        **changes: Settings that differ from the preset; numbers of search crops that are not among them follow
            ``search_crops`` downwards.

    Returns:
        The settings.

    Example:
        >>> full_settings(search_crops=8).ranking_crops
        8
    """
    return _changed(Settings(), changes)


def quick_settings(**changes: Any) -> Settings:
    """Settings of ``study --quick``: at most ten minutes on two cores with the small shipped pair.

    Args:
        **changes: Settings that differ from the preset; numbers of search crops that are not among them follow
            ``search_crops`` downwards.

    Returns:
        The settings.

    Example:
        >>> quick_settings(null_draws=10).null_draws
        10
        >>> quick_settings(search_crops=4).ranking_crops
        4
    """
    return _changed(_QUICK, changes)


def _changed(preset: Settings, changes: Mapping[str, Any]) -> Settings:
    most = max(changes.get("search_crops", preset.search_crops), 1)
    following = {name: min(getattr(preset, name), most) for name in _OF_THE_SEARCH}
    return dataclasses.replace(preset, **{**following, **changes})


def _ascends(values: tuple[float, ...]) -> bool:
    listed = list(values)
    return (
        bool(listed)
        and listed == sorted(set(listed))
        and 0 <= listed[0] <= listed[-1] <= 1
        and all(math.isfinite(value) for value in listed)
    )


_QUICK = Settings(
    crop=96,
    search_crops=12,
    test_crops=10,
    steps=8,
    curve_fractions=(0.0, 0.0025, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0),
    null_fractions=(0.01,),
    null_draws=30,
    reversion_draws=19,
    ranking_crops=6,
    ranking_steps=8,
    plain_rankings=False,
    layer_steps=4,
    channel_crops=6,
    channel_steps=(1, 4),
    channel_fractions=(0.01, 0.05, 0.2),
    oracle_units=60,
    oracle_crops=2,
    calibration_crops=6,
    prediction_steps=6,
    bootstrap_draws=50,
    place_draws=6,
    retrain_seeds=1,
    retrain_iterations=60,
    retrain_batch=4,
    sanity_crops=1,
    adaptive_fractions=(0.01, 0.05),
    adaptive_iterations=150,
)
