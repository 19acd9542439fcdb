"""Run the stages of a study one after the other, skip what is done, and say beforehand what the rest costs."""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import filterattr
from filterattr.display import Progress
from filterattr.files import fingerprint
from sr_zoo.folder_lock import sole_run
from sr_zoo.study.archive import Archive
from sr_zoo.study.samples import draw_samples, restoration_error
from sr_zoo.study.settings import Settings, StudyError
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.adaptive import ADAPTIVE
from sr_zoo.study.stages.channels import CHANNELS
from sr_zoo.study.stages.depth import DEPTH
from sr_zoo.study.stages.gradient_maps import GRADIENT_MAPS
from sr_zoo.study.stages.masking import CURVES, MODULATION, NULLS, SPECIFICITY
from sr_zoo.study.stages.pictures import PICTURES, Pictures
from sr_zoo.study.stages.places import PLACES
from sr_zoo.study.stages.prediction import PREDICTION
from sr_zoo.study.stages.ranking import COMPARISON, ORACLE, RANKINGS
from sr_zoo.study.stages.retraining import RETRAINING
from sr_zoo.study.stages.reversion import REVERSION
from sr_zoo.study.stages.rivals import RIVALS
from sr_zoo.study.stages.search import SANITY, SEARCH, STABILITY
from sr_zoo.study.subject import Subject, network_text

_FORMAT = 1  # raise it when a stage computes something else from the same inputs

_REHEARSAL_SECONDS = 5.0

STAGES: tuple[Stage, ...] = (
    SEARCH,
    SANITY,
    STABILITY,
    DEPTH,
    CURVES,
    NULLS,
    SPECIFICITY,
    REVERSION,
    MODULATION,
    RANKINGS,
    COMPARISON,
    RIVALS,
    ORACLE,
    CHANNELS,
    GRADIENT_MAPS,
    PREDICTION,
    PLACES,
    RETRAINING,
    ADAPTIVE,
    PICTURES,
)


@dataclass(frozen=True)
class PlannedStage:
    """What one stage will take.

    Attributes:
        stage: The stage.
        digest: Digest of its inputs.
        cost: Its passes.
        seconds: About how long it takes; 0 if its results are there.
        is_done: Whether they are.
    """

    stage: Stage
    digest: str
    cost: Cost
    seconds: float
    is_done: bool


@dataclass(frozen=True)
class Plan:
    """What a study will take.

    Attributes:
        stages: Every stage, in order.
    """

    stages: tuple[PlannedStage, ...]

    @property
    def minutes(self) -> float:
        """Minutes for what is not done yet."""
        return sum(one.seconds for one in self.stages) / 60

    def __str__(self) -> str:
        """A table of at most 80 columns."""
        lines = [f"{'stage':<15}{'forward':>10}{'fwd-bwd':>10}{'minutes':>10}"]
        lines += [
            f"{one.stage.name:<15}{one.cost.forwards:>10.0f}{one.cost.passes:>10.0f}"
            + (f"{'done':>10}" if one.is_done else f"{one.seconds / 60:>10.1f}")
            for one in self.stages
        ]
        lines.append(f"{'in total':<35}{self.minutes:>10.1f}")
        lines += [
            "",
            "forward: forward passes of one crop; fwd-bwd: passes with a gradient.",
            "minutes: estimated from a few passes on this machine.",
        ]
        return "\n".join(lines)


def open_archive(folder: str | Path) -> Archive:
    """Open the folder of a study.

    Args:
        folder: The folder.

    Returns:
        The archive, which knows all results of a study.
    """
    return Archive(folder, (Pictures,))


def stored_setting(archive: Archive, name: str) -> Any:
    """What the results in a folder were computed with.

    Args:
        archive: The folder.
        name: Name of a setting.

    Returns:
        Its value, or ``None`` if no result depends on it.
    """
    every = (archive.notes(stage).get("settings", {}) for stage in archive.stages())
    return next((settings[name] for settings in every if name in settings), None)


def make_plan(subject: Subject, settings: Settings, archive: Archive, stages: Sequence[Stage] = STAGES) -> Plan:
    """Look at what is done, time a pass, and estimate the rest.

    Args:
        subject: What is studied.
        settings: How much is done.
        archive: Where results are kept.
        stages: Which stages; those that they need must be among them or done.

    Returns:
        The plan.
    """
    digests = stage_digests(subject, settings)
    seconds = _seconds_per_pass(subject, settings)
    planned = []
    for stage in stages:
        cost = stage.cost(subject, settings)
        is_done = archive.is_done(stage.name, digests[stage.name])
        estimate = 0.0 if is_done else cost.forwards * seconds[0] + cost.passes * seconds[1]
        planned.append(PlannedStage(stage, digests[stage.name], cost, estimate, is_done))
    return Plan(tuple(planned))


def stage_digests(subject: Subject, settings: Settings) -> dict[str, str]:
    """Digest of everything that decides the results of every stage.

    Args:
        subject: What is studied.
        settings: How much is done.

    Returns:
        Name of the stage to digest.
    """
    digests: dict[str, str] = {}
    for stage in STAGES:
        inputs = {
            "format": _FORMAT,
            "stage": stage.name,
            "subject": subject.digest,
            "settings": settings.chosen(stage.uses),
            "needs": {name: digests[name] for name in stage.needs},
        }
        digests[stage.name] = fingerprint(inputs)
    return digests


def run_study(
    subject: Subject,
    settings: Settings,
    folder: str | Path,
    *,
    stages: Sequence[Stage] = STAGES,
    overwrite: bool = False,
    progress: Progress = None,
    report: Callable[[str], None] | None = None,
) -> Archive:
    """Run the stages that are not done yet; one run at a time works in a folder.

    Args:
        subject: What is studied.
        settings: How much is done.
        folder: Where results are kept; a study that was interrupted goes on there.
        stages: Which stages.
        overwrite: Whether results of another study may be replaced.
        progress: As in `FilterAttributor.attribute`.
        report: Gets a line of text before every stage.

    Returns:
        The archive with all results.

    Raises:
        StudyError: A stage needs another one that is neither among ``stages`` nor done, or the folder holds another
            study.
        FolderInUseError: Another run is at work in the folder.
        StorageError: Results cannot be written, or are damaged.
    """
    archive = open_archive(folder)
    refuse_another_study(subject, settings, archive, stages, overwrite=overwrite)
    digests = stage_digests(subject, settings)
    names = {stage.name for stage in stages}
    lacking = [
        f"{stage.name} needs {need}"
        for stage in stages
        for need in stage.needs
        if need not in names and not archive.is_done(need, digests[need])
    ]
    if lacking:
        raise StudyError("every stage needs those before it: " + "; ".join(lacking) + ".")
    with sole_run(folder):
        _compute(subject, settings, archive, stages, digests, progress, report or (lambda _: None))
    return archive


def refuse_another_study(
    subject: Subject, settings: Settings, archive: Archive, stages: Sequence[Stage] = STAGES, *, overwrite: bool = False
) -> None:
    """Refuse a folder that holds results of other networks, photographs or settings.

    Args:
        subject: What is studied.
        settings: How much is done.
        archive: Where results are kept.
        stages: Which stages.
        overwrite: Whether these stages may be computed again.

    Raises:
        StudyError: It does; the message says what differs. Also if ``overwrite`` would leave some of them.
    """
    digests = stage_digests(subject, settings)
    others = [
        stage
        for stage in STAGES
        if archive.is_done(stage.name) and not archive.is_done(stage.name, digests[stage.name])
    ]
    left = [stage.name for stage in others if stage not in stages]
    if others and not overwrite:
        listed = "; ".join(_differences(subject, settings, archive, others)) or "another version made it"
        raise StudyError(
            f"'{archive.folder}' holds another study: {listed}. Name another folder, or write over it with --overwrite."
        )
    if left:
        raise StudyError(
            f"'{archive.folder}' holds another study, and {', '.join(left)} would be left of it: compute these stages, "
            "too, or name another folder."
        )


def _differences(subject: Subject, settings: Settings, archive: Archive, stages: Sequence[Stage]) -> list[str]:
    """What tells stored results from those that would be computed."""
    names = {**subject.names, "functions": ", ".join(subject.functions)}
    found: dict[str, None] = {}
    for stage in stages:
        notes = archive.notes(stage.name)
        new = {**json.loads(json.dumps(settings.chosen(stage.uses))), **names}
        old = {**notes.get("settings", {}), **notes.get("subject", {})}
        found |= {
            f"{name} was {old[name]} and is {new[name]}": None for name in new if name in old and old[name] != new[name]
        }
        if not found and notes.get("subject", {}).get("digest", subject.digest) != subject.digest:
            found["the weights, the photographs or the degradations differ"] = None
    return list(found)


def _compute(
    subject: Subject,
    settings: Settings,
    archive: Archive,
    stages: Sequence[Stage],
    digests: Mapping[str, str],
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Compute the stages that are not done, one after the other."""
    for place, stage in enumerate(stages, 1):
        digest = digests[stage.name]
        label = f"[{place}/{len(stages)}] {stage.name}: {stage.title}"
        if archive.is_done(stage.name, digest):
            say(f"{label} (done)")
            continue
        say(label)
        started = time.monotonic()
        context = Context(subject, settings, archive, archive.work(stage.name, digest), progress)
        results = stage.compute(context)
        cost = stage.cost(subject, settings)
        notes = {
            "seconds": time.monotonic() - started,
            "forwards": cost.forwards,
            "passes": cost.passes,
            "settings": settings.chosen(stage.uses),
            "subject": {
                **subject.names,
                "digest": subject.digest,
                "network": network_text(subject.architecture, subject.arguments),
                "functions": ", ".join(subject.functions),
                "inputs": {name: str(one) for name, one in subject.inputs.items()},
            },
            "environment": _environment(),
        }
        archive.store(stage.name, digest, results, notes)


def _seconds_per_pass(subject: Subject, settings: Settings) -> tuple[float, float]:
    """Median seconds of a forward and of a forward-backward pass of one crop, of one alone if that is long."""
    sample = draw_samples(
        subject.search, subject.inputs, count=1, size=settings.crop, scale=subject.scale, seed=settings.seed
    )["clean"][0]
    parameters = [one for one in subject.target.parameters() if one.requires_grad]
    forwards: list[float] = []
    passes: list[float] = []
    begun = time.perf_counter()
    while len(passes) < 3 and (not passes or time.perf_counter() - begun < _REHEARSAL_SECONDS):
        started = time.perf_counter()
        with torch.no_grad():
            restoration_error(subject.target, sample)
        forwards.append(time.perf_counter() - started)
        started = time.perf_counter()
        loss = restoration_error(subject.target, sample)
        torch.autograd.grad(loss, parameters, allow_unused=True)
        passes.append(time.perf_counter() - started)
    return statistics.median(forwards), statistics.median(passes)


def _environment() -> dict[str, str]:
    return {
        "filterattr": filterattr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "machine": f"{platform.system()} {platform.machine()}",
        "command": "python -m sr_zoo " + shlex.join(sys.argv[1:]),
    }
