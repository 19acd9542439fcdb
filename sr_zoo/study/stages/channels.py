"""Which output channels serve a function? The attribution against Captum's layer methods, at every number of passes.

All rankings are of the same channels (kernels and bias of every output channel of every layer), of the same target, by
the same loss, on the same search crops. The largest sets are set back to base on the same test crops. The layer methods
go along a path of the input, from the clean crop to the degraded one; they never see base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterattr import ChannelAttributor, FilterAttributor, FilterScores, contrast
from filterattr.analysis import ChannelMethod, NullCurve, Record, Row, input_path, random_ranking, weight_change
from filterattr.display import counted
from sr_zoo.pair import concerns_are_shown
from sr_zoo.study.archive import Archive, Results
from sr_zoo.study.contest import Contest, ContestRow, ContestTable, Entrant, MaskedLosses
from sr_zoo.study.samples import Sample, restoration_error, towards_degraded
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.search import complete_in_the_mean, strict_scores
from sr_zoo.study.subject import Subject

ATTRIBUTION = "attribution"
CONTRAST, PLAIN, CAPTUM = "strict contrast", "no contrast", "Captum's usual"
LAYER_METHODS: dict[str, ChannelMethod] = {
    "conductance": "conductance",
    "internal influence": "internal_influence",
    "layer integrated gradients": "integrated_gradients",
    "gradient x activation": "gradient_x_activation",
}
SHUFFLED = (ATTRIBUTION,)  # whose layer-matched nulls are drawn; one costs as much as 30 rankings


@dataclass(frozen=True)
class Job:
    """Scores to compute on the search crops: of the channels, by one method with so many steps.

    Attributes:
        method: Name of the method.
        steps: Nodes on its path; 0 if it has none.
        usual: For a layer method: the sum of the output on the path from black, as Captum is mostly called, instead of
            the loss on the path from the clean crop.
    """

    method: str
    steps: int
    usual: bool = False

    @property
    def key(self) -> str:
        """Name of its folder."""
        return "-".join((self.method.replace(" ", "_"), str(self.steps), *(("usual",) if self.usual else ())))

    def n_passes(self, n_layers: int) -> int:
        """Forward-backward passes for one crop.

        Args:
            n_layers: Number of layers with channels.

        Returns:
            The passes; those of layer integrated gradients begin at the layer in question and cost about half.
        """
        if self.method == "layer integrated gradients":
            return self.steps * n_layers
        if self.method == "conductance":
            return self.steps + 1
        return 0 if self.method == "weight change" else max(self.steps, 1)


def jobs_of(settings: Settings) -> tuple[Job, ...]:
    """What is computed: every method at every number of steps, the cheap ones once.

    Conductance, a sum of differences that nearly cancel where target restores well, goes on to twice as many steps.
    Layer integrated gradients, which cost a path for every layer, stop at an eighth of them. Captum's usual call has
    the middle number of steps.

    Args:
        settings: The settings.

    Returns:
        The jobs.
    """
    ladder = settings.channel_steps
    few = tuple(steps for steps in ladder if steps <= ladder[-1] / 8) or ladder[:1]
    middle = ladder[len(ladder) // 2]
    jobs = [Job(ATTRIBUTION, steps) for steps in ladder]
    for method in LAYER_METHODS:
        if method == "gradient x activation":
            jobs += [Job(method, 0), Job(method, 0, usual=True)]
        elif method == "layer integrated gradients":
            jobs += [*(Job(method, steps) for steps in few), Job(method, few[0], usual=True)]
        else:
            more = (2 * ladder[-1],) if method == "conductance" else ()
            jobs += [*(Job(method, steps) for steps in (*ladder, *more)), Job(method, middle, usual=True)]
    jobs += [Job("gradient x change at target", 0), Job("gradient x change at base", 0)]
    return (*jobs, Job("input path x change", ladder[-1]), Job("weight change", 0))


class ChannelRanker:
    """Scores the output channels of a subject's target.

    Args:
        subject: Base and target.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.attributor = FilterAttributor(subject.target, unit={"": subject.channels})
        self.like = weight_change(self.attributor, subject.base, subject.target)

    def scores(self, job: Job, samples: Sequence[Sample]) -> dict[str, FilterScores]:
        """Do a job.

        Args:
            job: The job.
            samples: Search samples of one function.

        Returns:
            Reduction to scores, without a contrast: ``"abs_of_sum"`` takes the absolute value after the sum over the
            channel, for every sample, as Captum's scores are taken; the attribution has the other two as well.
        """
        subject = self.subject
        if job.method == "weight change":
            return {"abs_of_sum": self.like}
        if job.method == "input path x change":
            ranking = input_path(
                self.attributor,
                subject.target,
                restoration_error,
                samples,
                towards_degraded,
                base=subject.base,
                n_steps=job.steps,
            )
            return {"sum_of_abs": ranking}
        if job.method in LAYER_METHODS:
            return {"abs_of_sum": self._of_layers(job, samples)}
        rules = {"gradient x change at target": "riemann_right", "gradient x change at base": "riemann_left"}
        with concerns_are_shown():  # said when the pair was searched
            attribution = self.attributor.attribute(
                subject.base,
                subject.target,
                restoration_error,
                samples,
                method=rules.get(job.method),
                n_steps=max(job.steps, 1),
                progress=False,
            )
        found = {"abs_of_sum": attribution.scores("abs_of_sum")}
        if job.method == ATTRIBUTION:
            found |= {"sum_of_abs": attribution.scores(), "signed": -attribution.scores("sum")}
        return found

    def _of_layers(self, job: Job, samples: Sequence[Sample]) -> FilterScores:
        channels = ChannelAttributor(self.subject.target, lambda name, _: name in self.like)
        method = LAYER_METHODS[job.method]
        totals = {name: torch.zeros_like(one) for name, one in self.like.items()}
        for sample in samples:
            degraded, _, clean = sample

            def error(restored: Tensor, sample: Sample = sample) -> Tensor:
                return (restored - sample[1]).square().sum((1, 2, 3))

            start = torch.zeros_like(degraded) if job.usual else clean
            # Captum's own rule for conductance leaves out both ends of the path, which tells with few steps
            fair = method == "conductance" and not job.usual
            found = channels.attribute(
                degraded,
                None if method == "gradient_x_activation" else start,
                _brightness if job.usual else error,
                attribution=method,
                n_steps=max(job.steps, 1),
                method="riemann_trapezoid" if fair else "gausslegendre",
            ).channels()
            for name, total in totals.items():
                total += found[name] / len(samples)
        return FilterScores(totals, self.like.parameters)


def _brightness(restored: Tensor) -> Tensor:
    """What is left of an image if one number is wanted and there is no reference."""
    return restored.sum((1, 2, 3))


@dataclass(frozen=True)
class Kept(Record):
    """Which reductions of a job are kept, under their places.

    Attributes:
        reductions: Their names.
    """

    reductions: tuple[str, ...]

    def rows(self) -> list[Row]:
        """One row per reduction."""
        return [{"reduction": name} for name in self.reductions]


Plain = Mapping[str, Mapping[str, FilterScores]]


def channel_scores(context: Context) -> dict[Job, Plain]:
    """Do all jobs on the search crops of every function; what was done before an interruption is read back.

    Args:
        context: The study.

    Returns:
        Job to reduction to function to scores, without a contrast.
    """
    pieces = Archive(context.work)
    ranker = ChannelRanker(context.subject)
    functions = context.subject.functions
    jobs = jobs_of(context.settings)
    found: dict[Job, Plain] = {}
    with counted(context.progress, len(jobs), "ranking") as step:
        for job in jobs:
            if not pieces.is_done(job.key):
                crops = {name: context.search[name][: context.settings.channel_crops] for name in functions}
                with complete_in_the_mean():
                    scores = {name: ranker.scores(job, some) for name, some in crops.items()}
                kept = {f"{reduction}-{name}": one for name, some in scores.items() for reduction, one in some.items()}
                pieces.store(job.key, "", {"kept": Kept(tuple(next(iter(scores.values())))), **kept}, {})
            stored = pieces.load(job.key)
            found[job] = {
                reduction: {name: stored[f"{reduction}-{name}"] for name in functions}
                for reduction in stored["kept"].reductions
            }
            step()
    return found


def entrants_of(found: Mapping[Job, Plain], largest: int, n_layers: int) -> dict[Entrant, dict[str, FilterScores]]:
    """Turn scores of single functions into the rankings that are compared.

    Every ranking appears with the strict contrast. Captum's usual calls, and those with the largest number of steps of
    their method, also appear without a contrast. The attribution also appears as the paper sums it, with equation 7,
    and signed.

    Args:
        found: What `channel_scores` gives.
        largest: The largest number of steps.
        n_layers: Number of layers with channels.

    Returns:
        Ranking to function to scores.
    """
    last = {job.method: job.steps for job in found if not job.usual}
    entrants: dict[Entrant, dict[str, FilterScores]] = {}
    for job, reductions in found.items():
        for reduction, plain in reductions.items():
            whole = job.steps == largest
            if reduction == "signed" and not whole:
                continue
            plainly = reduction == "abs_of_sum" or job.method != ATTRIBUTION
            method = job.method if plainly else f"{job.method}, {reduction}"
            forms: dict[str, dict[str, FilterScores]] = {CONTRAST: {n: strict_scores(plain, n) for n in plain}}
            if job.usual:
                forms = {f"{CAPTUM}, {CONTRAST}": forms[CONTRAST], CAPTUM: dict(plain)}
            elif job.method == "weight change":  # it sees no input: there is nothing to contrast
                forms = {PLAIN: dict(plain)}
            elif reduction == "abs_of_sum" and job.steps == last[job.method]:
                forms[PLAIN] = dict(plain)
            if job.method == ATTRIBUTION and whole and reduction == "sum_of_abs":
                forms["equation 7"] = {name: contrast(plain, name) for name in plain}
            for form, scores in forms.items():
                entrants[Entrant(method, form, job.steps, job.n_passes(n_layers))] = scores
    return entrants


def _channels(context: Context) -> Results:
    settings = context.settings
    functions = context.subject.functions
    found = channel_scores(context)
    like = next(iter(next(iter(next(iter(found.values())).values())).values()))
    entrants = entrants_of(found, settings.channel_steps[-1], len(like))
    contest = Contest(context.masking(), settings.channel_fractions)
    pieces = Archive(context.work)
    masked: dict[Entrant, dict[str, MaskedLosses]] = {}
    with counted(context.progress, len(entrants), "curve") as step:
        for entrant, scores in entrants.items():
            key = f"masked-{re.sub(r'[^a-z0-9_]+', '-', entrant.name.lower())}"
            if not pieces.is_done(key):
                pieces.store(key, "", {name: contest.masked(scores[name]) for name in functions}, {})
            masked[entrant] = dict(pieces.load(key))
            step()
    nulls = dict(_nulls(context, contest, pieces, entrants, like))
    table = contest_table(contest, masked, nulls, like.n_units, settings.null_draws)
    results: dict[str, object] = {"table": table}
    for place, (entrant, by_function) in enumerate(masked.items()):
        results |= {f"curve{place:02d}_{name}": contest.curve(one, entrant.name) for name, one in by_function.items()}
    return results | {f"null{place:02d}": one for place, one in enumerate(nulls.values())}


def _nulls(
    context: Context,
    contest: Contest,
    pieces: Archive,
    entrants: Mapping[Entrant, Mapping[str, FilterScores]],
    like: FilterScores,
) -> Iterator[tuple[tuple[str, str], NullCurve]]:
    """Random rankings, which serve all, and shuffled ones of some: name of the ranking and function to null."""
    settings = context.settings
    generator = torch.Generator().manual_seed(settings.seed)
    wanted: list[tuple[str, str, FilterScores]] = [("random", "", random_ranking(like, generator))]
    for entrant, by_function in entrants.items():
        if entrant.method in SHUFFLED and (entrant.form, entrant.steps) == (CONTRAST, settings.channel_steps[-1]):
            wanted += [(entrant.name, name, by_function[name]) for name in context.subject.functions]
    for place, (ranking, function, scores) in enumerate(wanted):
        key = f"null{place:02d}"
        if not pieces.is_done(key):
            drawn = contest.null(
                scores,
                "layer-matched" if function else "random",
                f"{ranking}: {function}" if function else ranking,
                torch.Generator().manual_seed(settings.seed + place),
                settings.null_draws,
                context.progress,
            )
            pieces.store(key, "", {"null": drawn}, {})
        yield (ranking, function), pieces.load(key)["null"]


def contest_table(
    contest: Contest,
    masked: Mapping[Entrant, Mapping[str, MaskedLosses]],
    nulls: Mapping[tuple[str, str], NullCurve],
    n_units: int,
    draws: int,
) -> ContestTable:
    """Measure every ranking against the attribution with the most steps, and against chance.

    Args:
        contest: The samples.
        masked: Ranking to function to losses.
        nulls: Name of the ranking and function to null: ``("random", "")`` and some layer-matched ones.
        n_units: Number of all units.
        draws: Random rankings of each null.

    Returns:
        The table.
    """
    own = [one for one in masked if (one.method, one.form) == (ATTRIBUTION, CONTRAST)]
    reference = max(own, key=lambda one: one.steps)
    entries = []
    for entrant, by_function in masked.items():
        for name, losses in by_function.items():
            areas = contest.areas(losses, name)
            against = contest.areas(masked[reference][name], name)
            curve = contest.curve(losses, entrant.name)
            others = [[one.value for one in curve.shares[other]] for other in curve.shares if other != name]
            layers = nulls.get((entrant.name, name))
            in_layers = (float("nan"),) * 2 if layers is None else contest.p_values(areas, layers, name)
            by_chance = contest.p_values(areas, nulls["random", ""], name)
            margin, margins = areas.own - areas.other, areas.own_drawn - areas.other_drawn
            entries.append(
                ContestRow(
                    method=entrant.method,
                    form=entrant.form,
                    steps=entrant.steps,
                    n_passes=entrant.n_passes,
                    function=name,
                    removed=tuple(one.value for one in curve.shares[name]),
                    collateral=tuple(max(some) for some in zip(*others, strict=True)),
                    own=contest.estimate(areas.own, areas.own_drawn),
                    other=contest.estimate(areas.other, areas.other_drawn),
                    margin=contest.estimate(margin, margins),
                    advantage=contest.estimate(
                        margin - (against.own - against.other), margins - (against.own_drawn - against.other_drawn)
                    ),
                    p_own=by_chance[0],
                    p_margin=by_chance[1],
                    p_own_in_layers=in_layers[0],
                    p_margin_in_layers=in_layers[1],
                )
            )
    return ContestTable(reference.name, contest.fractions, n_units, draws, tuple(entries))


def _cost(subject: Subject, settings: Settings) -> Cost:
    count, n_layers = len(subject.functions), len(subject.channels)
    jobs = jobs_of(settings)
    rankings = len(jobs) + len(settings.channel_steps) + 5 + 2 * len(LAYER_METHODS)  # other reductions and contrasts
    sets = 2 + len(settings.channel_fractions) * (count * rankings + (1 + len(SHUFFLED) * count) * settings.null_draws)
    passes = sum(
        job.n_passes(n_layers) / (2 if job.method == "layer integrated gradients" else 1) for job in jobs
    )  # those begin in the middle
    return Cost(forwards=settings.test_crops * count * sets, passes=count * settings.channel_crops * passes)


CHANNELS = Stage(
    "channels",
    "Which channels? Against Captum's layer methods",
    (),
    ("channel_crops", "channel_steps", "channel_fractions", "null_draws", "crop", "search_crops", "test_crops", "seed"),
    _cost,
    _channels,
)
