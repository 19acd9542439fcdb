"""One shared network and small patches against target and against separate networks: quality, size, choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from filterattr import FilterSelection, swapped
from filterattr.analysis import Bootstrap, Calibration, Estimate, Record, Row, Signals, confusion, spread
from sr_zoo.adaptive import CLEAN, AdaptiveRestorer, Patch
from sr_zoo.degradations import Degradation
from sr_zoo.metrics import psnr
from sr_zoo.pretrained import save_network
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import Sample
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.retraining import retrain, training_passes
from sr_zoo.study.subject import Subject


@dataclass(frozen=True)
class RestorerRow:
    """One way of restoring every input.

    Attributes:
        restorer: Its name.
        fraction: Share of the kernels in every patch; 0 without patches.
        extra: Weights beside the shared network, in parts of its parameters.
        size: Bytes on disk.
        psnr: Input to PSNR in dB on RGB.
        minus_target: Input to the difference to target, crop by crop.
    """

    restorer: str
    fraction: float
    extra: float
    size: int
    psnr: Mapping[str, Estimate]
    minus_target: Mapping[str, Estimate]


@dataclass(frozen=True)
class RestorerTable(Record):
    """Ways of restoring, side by side.

    Attributes:
        functions: The degradations that have a patch.
        entries: One per way.
    """

    functions: tuple[str, ...]
    entries: tuple[RestorerRow, ...]

    def within(self, decibel: float = 0.3, extra: float = 0.1) -> tuple[str, ...]:
        """Which adaptive restorers are near enough to target on every function with few enough extra parameters.

        Args:
            decibel: How far below target they may be.
            extra: How many weights they may add, in parts of the shared network.

        Returns:
            Their names.
        """
        return tuple(
            row.restorer
            for row in self.entries
            if row.fraction
            and row.extra <= extra
            and all(row.minus_target[name].value >= -decibel for name in self.functions)
        )

    def rows(self) -> list[Row]:
        """One row per way."""
        return [
            {
                "restorer": row.restorer,
                "fraction": row.fraction,
                "extra_parameters": row.extra,
                "bytes": row.size,
                **{f"psnr_{name}": value.value for name, value in row.psnr.items()},
                **{
                    key: number
                    for name, value in row.minus_target.items()
                    for key, number in spread(f"minus_target_{name}", value).items()
                },
            }
            for row in self.entries
        ]


Restore = Callable[[str, int, Tensor], Tensor]


@torch.no_grad()
def qualities(restore: Restore, samples: Mapping[str, Sequence[Sample]], border: int) -> dict[str, np.ndarray]:
    """PSNR of every sample.

    Args:
        restore: From the name of the input, the number of the sample and the degraded crop to the restored one.
        samples: Input to samples.
        border: Pixels to leave out on every side.

    Returns:
        Input to PSNR in dB, one number per sample.
    """
    return {
        name: np.array(
            [
                float(psnr(restore(name, place, sample[0]).clamp(0, 1), sample[1], border=border))
                for place, sample in enumerate(some)
            ]
        )
        for name, some in samples.items()
    }


def plans_of(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Which patches every input needs: none, its own, or all of them.

    Args:
        subject: The subject.

    Returns:
        Input to patches.
    """
    return {
        name: () if name == CLEAN else (name,) if name in subject.functions else subject.functions
        for name in subject.inputs
    }


def _adaptive(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    plans = plans_of(subject)
    shared = {name: value.detach() for name, value in subject.base.state_dict().items()}
    whole = {name: value.detach() for name, value in subject.target.state_dict().items()}
    table = _Table(context)
    table.add("base", _with(subject.base, shared), table.network_size(shared))
    table.add("target", _with(subject.base, whole), table.network_size(whole))
    scores = {name: context.found[f"attribution_{name}"].scores() for name in subject.functions}

    def as_in_target(fraction: float) -> AdaptiveRestorer:
        patches = {name: Patch.of(whole, one.top(fraction)) for name, one in scores.items()}
        return AdaptiveRestorer(subject.base, patches, plans=plans)

    for fraction in settings.adaptive_fractions:
        table.add_restorer(f"patches of {fraction:.0%} as in target", as_in_target(fraction), fraction)
    sets = {name: one.top(fraction) for name, one in scores.items()}
    restorer = as_in_target(fraction)
    if settings.adaptive_iterations:
        tuned = {
            name: Patch.of(_tuned(context, restorer.weights((name,)), name, chosen, "patch"), chosen)
            for name, chosen in sets.items()
        }
        restorer = AdaptiveRestorer(subject.base, tuned, plans=plans)
        table.add_restorer(f"patches of {fraction:.0%}, tuned", restorer, fraction)
        separate = {name: _tuned(context, whole, name, chosen | ~chosen, "network") for name, chosen in sets.items()}
        states = {CLEAN: shared, **separate}
        size = sum(table.network_size(state) for state in states.values())
        # no separate network was made for several degradations at once: target stands in
        table.add(
            "separate networks, tuned as long",
            lambda name, place, degraded: _with(subject.base, states.get(name, whole))(name, place, degraded),
            size,
            extra=float(len(separate)),
        )
    final, signals = _calibrated(context, restorer, plans)
    answers = {name: [final.judge(one).answer for one in some] for name, some in signals.items()}
    table.add_restorer("the last patches, chosen per image", final, fraction, answers=answers)
    final.save(context.archive.folder / "restorer.safetensors", subject.architecture, subject.arguments)
    chosen = confusion(signals, final.judge, method="choice of patches")
    return {"restorers": RestorerTable(subject.functions, tuple(table.entries)), "choice": chosen}


class _Table:
    """Rows that share their samples and draws."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.samples = context.test
        self.border = context.subject.scale
        self.bootstrap = Bootstrap({name: len(some) for name, some in self.samples.items()})
        self.entries: list[RestorerRow] = []
        target = _with(context.subject.base, dict(context.subject.target.state_dict()))
        self.target = qualities(target, self.samples, self.border)

    def add(self, label: str, restore: Restore, size: int, *, fraction: float = 0.0, extra: float = 0.0) -> None:
        """Measure one way of restoring."""
        values = qualities(restore, self.samples, self.border)
        self.entries.append(
            RestorerRow(
                restorer=label,
                fraction=fraction,
                extra=extra,
                size=size,
                psnr={name: self._estimate(name, one) for name, one in values.items()},
                minus_target={name: self._estimate(name, one - self.target[name]) for name, one in values.items()},
            )
        )

    def add_restorer(
        self,
        label: str,
        restorer: AdaptiveRestorer,
        fraction: float,
        *,
        answers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Measure an adaptive restorer that is told which input it sees, or takes it for what the answers say."""
        path = self.context.work / "restorer.safetensors"
        restorer.save(path, self.context.subject.architecture, self.context.subject.arguments)

        def restore(name: str, place: int, degraded: Tensor) -> Tensor:
            return restorer.restore(degraded, name if answers is None else answers[name][place]).image

        extra = restorer.n_extra / restorer.n_shared
        self.add(label, restore, path.stat().st_size, fraction=fraction, extra=extra)

    def network_size(self, state: Mapping[str, Tensor]) -> int:
        """Bytes of a network on disk."""
        path = Path(self.context.work / "network.safetensors")
        save_network(path, self.context.subject.architecture, self.context.subject.arguments, state, {})
        return path.stat().st_size

    def _estimate(self, name: str, values: np.ndarray) -> Estimate:
        return self.bootstrap.estimate(float(values.mean()), self.bootstrap.means(name, values))


def _with(model: nn.Module, state: Mapping[str, Tensor]) -> Restore:
    def restore(name: str, place: int, degraded: Tensor) -> Tensor:  # noqa: ARG001 - one network for all inputs
        with swapped(model, state) as network:
            restored: Tensor = network(degraded)
            return restored

    return restore


def _tuned(
    context: Context, start: Mapping[str, Tensor], function: str, selection: FilterSelection, kind: str
) -> dict[str, Tensor]:
    """Train kernels on one degradation alone, from what they are in target."""
    settings = context.settings
    degradation: Degradation = context.subject.inputs[function]
    return retrain(
        context.subject,
        start,
        selection,
        degradation,
        context.work / f"{kind}-{function}",
        iterations=settings.adaptive_iterations,
        batch=settings.retrain_batch,
        rate=2 * settings.retrain_rate if kind == "patch" else settings.retrain_rate / 4,
        precision=settings.precision,
        seed=settings.seed,
    )


def _calibrated(
    context: Context, restorer: AdaptiveRestorer, plans: Mapping[str, Sequence[str]]
) -> tuple[AdaptiveRestorer, dict[str, list[Signals]]]:
    """Teach the restorer on labelled search crops what inputs look like to its kernels, and ask about the test ones."""
    count = context.settings.calibration_crops

    def ask(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[Signals]]:
        return {name: [restorer.signals(sample[0]) for sample in some] for name, some in samples.items()}

    labelled = ask({name: some[:count] for name, some in context.search.items()})
    calibration = Calibration.fit(labelled, unsure_below=0.0)
    seen = ask(context.test)
    return AdaptiveRestorer(context.subject.base, restorer.patches, plans=plans, calibration=calibration), seen


def _cost(subject: Subject, settings: Settings) -> Cost:
    count, inputs = len(subject.functions), len(subject.inputs)
    ways = 3 + len(settings.adaptive_fractions) + (2 if settings.adaptive_iterations else 0) + 1
    asked = inputs * (settings.test_crops + settings.calibration_crops)
    trained = training_passes(subject, settings, settings.adaptive_iterations)
    return Cost(
        forwards=inputs * settings.test_crops * ways + asked * (1 + count),
        passes=6 * asked + 2 * count * trained,
    )


ADAPTIVE = Stage(
    "adaptive",
    "Is a shared network with small patches enough?",
    ("search",),
    (
        "adaptive_fractions",
        "adaptive_iterations",
        "retrain_batch",
        "retrain_rate",
        "precision",
        "calibration_crops",
        "test_crops",
        "seed",
    ),
    _cost,
    _adaptive,
)
