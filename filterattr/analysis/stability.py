"""Dependence of a set of units on the samples of its search, and units whose scores differ between functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from filterattr.analysis.agreement import load_scipy
from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.resampling import interval
from filterattr.analysis.results import spread
from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError, name_some
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.jobs.progress import Progress, counted
from filterattr.jobs.samples import series
from filterattr.loss.checks import Loss
from filterattr.model.state_dict import StateLike
from filterattr.results.attribution import without_doubts
from filterattr.results.scores import FilterScores, FilterSelection
from filterattr.results.stored import complete, described, parameters_of
from filterattr.units.unit import Reduction

_KIND = "per-sample scores"
_NUMBERS_AT_ONCE = 2**24  # of the results of one matrix product

Rank: TypeAlias = Callable[[Mapping[str, FilterScores]], FilterScores]


class SampleScores:
    """The scores of every single sample, in single precision.

    Args:
        values: Shape ``(samples, units)``, units in the order of `FilterScores.flat`.
        like: Scores or a selection with the same units.

    Raises:
        SettingError: The shape does not fit the units, or there are no samples.

    Example:
        >>> from filterattr import ScoredParameter, Unit
        >>> like = FilterScores({"w": torch.zeros(2)}, {"w": ScoredParameter(Unit("... -> ..."), (2,))})
        >>> samples = SampleScores(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), like)
        >>> samples.scores()["w"], samples.scores([1])["w"]
        (tensor([2., 2.], dtype=torch.float64), tensor([3., 2.], dtype=torch.float64))
    """

    def __init__(self, values: Tensor, like: FilterScores | FilterSelection) -> None:
        if values.ndim != 2 or values.shape[1] != like.n_units or not len(values):
            raise SettingError(
                f"per-sample scores must have one row per sample and {like.n_units} units; got shape "
                f"{tuple(values.shape)}."
            )
        self._values = values.detach().to(torch.float32, copy=True)
        self.like = FilterSelection(
            {name: torch.zeros(tensor.shape, dtype=torch.bool, device="cpu") for name, tensor in like.items()},
            like.parameters,
        )

    def __len__(self) -> int:
        return len(self._values)

    @property
    def values(self) -> Tensor:
        """A copy of the scores, shape ``(samples, units)``."""
        return self._values.clone()

    def scores(self, samples: Sequence[int] | None = None) -> FilterScores:
        """Compute the mean scores of some samples.

        Args:
            samples: Indices of the samples, with or without repetitions; all samples by default.

        Returns:
            The mean, as `FilterAttribution.scores` returns it.
        """
        chosen = self._values if samples is None else self._values[torch.as_tensor(samples, device="cpu")]
        return FilterScores(self.like._split(chosen.mean(0, dtype=torch.float64)), self.like.parameters)

    def weighted(self, weights: Tensor) -> Iterator[FilterScores]:
        """Compute weighted sums of the scores of all samples, in single precision.

        Args:
            weights: Shape ``(n, samples)``; a row that sums to 1 gives a mean.

        Yields:
            The scores of each row.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> like = FilterScores({"w": torch.zeros(2)}, {"w": ScoredParameter(Unit("... -> ..."), (2,))})
            >>> samples = SampleScores(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), like)
            >>> [scores["w"].tolist() for scores in samples.weighted(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))]
            [[2.0, 2.0], [3.0, 2.0]]
        """
        rows = max(1, min(16, _NUMBERS_AT_ONCE // self._values.shape[1]))
        for some in torch.split(weights.to(self._values), rows):
            for row in some @ self._values:
                yield FilterScores(self.like._split(row.double()), self.like.parameters)

    def save(self, path: str | Path) -> None:
        """Write the scores to a file (safetensors with a digest).

        Args:
            path: The file to write.

        Raises:
            StorageError: The file cannot be written, or the memory does not suffice.
        """
        write_tensors(path, _KIND, {"values": self._values}, {"parameters": described(self.like.parameters)})

    @classmethod
    def load(cls, path: str | Path) -> SampleScores:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            The same scores, on the CPU.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        tensors, description = read_tensors(path, _KIND)
        with complete(path, _KIND):
            parameters = parameters_of(description)
            empty = {
                name: torch.zeros(scored.units_shape, dtype=torch.bool, device="cpu")
                for name, scored in parameters.items()
            }
            return cls(tensors["values"], FilterSelection(empty, parameters))


def per_sample_scores(
    attributor: FilterAttributor,
    base: StateLike,
    target: StateLike,
    loss: Loss,
    data: Iterable[Any],
    *,
    reduction: Reduction = "sum_of_abs",
    folder: str | PathLike[str] | None = None,
    progress: Progress = None,
    **options: Any,
) -> SampleScores:
    """Attribute every sample separately and keep all scores, for resampling.

    Args:
        attributor: Defines the units.
        base: Weights that lack the function.
        target: Weights that have it.
        loss: ``loss(model, sample)``.
        data: Samples.
        reduction: As in `FilterAttribution.scores`.
        folder: Folder for the checkpoint of every sample, so that an interrupted call resumes. Checkpoints of another
            job are refused. It needs six numbers in double precision per unit and sample.
        progress: As in `FilterAttributor.attribute`, counted in samples.
        **options: Further arguments of `FilterAttributor.attribute`.

    Returns:
        One row per sample. The mean of the rows equals the scores of one call with all samples, in single precision.

    Raises:
        SettingError: There are no samples.

    Example:
        >>> from torch import nn
        >>> base, target = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> loss = lambda model, x: model(x).square().sum()
        >>> len(per_sample_scores(FilterAttributor(base), base, target, loss, list(torch.rand(3, 2))))
        3
    """
    samples = list(series(data))
    if not samples:
        raise SettingError("data must hold at least one sample; it is empty.")
    rows = []
    with counted(progress, len(samples), "sample") as step:
        for index, sample in enumerate(samples):
            checkpoint = None if folder is None else Path(folder) / f"sample{index:05d}.safetensors"
            with without_doubts():  # a single sample need not tell target from base
                attribution = attributor.attribute(
                    base, target, loss, [sample], checkpoint=checkpoint, progress=False, **options
                )
            scores = attribution.scores(reduction)
            rows.append(scores.flat().to(torch.float32))
            step()
    return SampleScores(torch.stack(rows), scores)


@dataclass(frozen=True)
class Stability(Record):
    """Dependence of a set of units on the samples of its search.

    Attributes:
        n_units: Number of all units.
        n_samples: Number of samples.
        count: Number of units in the set.
        draws: Number of draws.
        units: Flat indices of the units that were in the set of any draw, most frequent first.
        probabilities: Share of the draws whose set holds each of these units.
        sizes: Numbers of samples, at most half of all samples.
        reproduced: For each size, the Jaccard index of the sets of two disjoint groups of that many samples.
        overlap: The same agreement as a share of the set.
    """

    n_units: int
    n_samples: int
    count: int
    draws: int
    units: tuple[int, ...]
    probabilities: tuple[float, ...]
    sizes: tuple[int, ...]
    reproduced: tuple[Estimate, ...]
    overlap: tuple[Estimate, ...]

    def enough(self, jaccard: float = 0.8) -> int | None:
        """Number of samples that are enough to find nearly the same set again with other samples.

        Args:
            jaccard: Mean Jaccard index of nearly equal sets, in [0, 1].

        Returns:
            The smallest number of samples from which on every mean Jaccard index is at least ``jaccard``; ``None`` if
            half of the samples are not enough.
        """
        for place, size in enumerate(self.sizes):
            if all(estimate.value >= jaccard for estimate in self.reproduced[place:]):
                return size
        return None

    def inclusion(self, like: FilterScores | FilterSelection) -> FilterScores:
        """Inclusion probability of every unit.

        Args:
            like: Scores or a selection with the same units.

        Returns:
            Probabilities in [0, 1].

        Raises:
            SettingError: ``like`` has another number of units.
        """
        _check_units(like, self.n_units)
        flat = torch.zeros(self.n_units, dtype=torch.float64, device="cpu")
        flat[list(self.units)] = torch.tensor(self.probabilities, dtype=torch.float64, device="cpu")
        return FilterScores(like._split(flat), like.parameters)

    def reproduction(self, like: FilterScores | FilterSelection) -> FilterScores:
        r"""Probability of every unit to be in the set of as many *other* samples.

        .. math:: p = \Phi\left(\Phi^{-1}(\mathrm{inclusion}) / \sqrt 2\right)

        A draw of the bootstrap differs from the present samples as the present samples differ from the truth. Other
        samples differ from the present ones by both, so by :math:`\sqrt 2` times as much. Inclusion probabilities alone
        are too confident. This supposes that units of all strengths are about as frequent near the edge of the set.

        Args:
            like: Scores or a selection with the same units.

        Returns:
            Probabilities in (0, 1); with a finite number of draws, none is 0 or 1.

        Raises:
            SettingError: ``like`` has another number of units.
        """
        least = 1 / (2 * self.draws)
        inclusion = self.inclusion(like).flat().clamp(least, 1 - least)
        flat = _reproduced(inclusion)
        return FilterScores(like._split(flat), like.parameters)

    def core(self, like: FilterScores | FilterSelection, probability: float = 0.95) -> FilterSelection:
        """The units that other samples find, too.

        Args:
            like: Scores or a selection with the same units.
            probability: The least `reproduction` of each of them, in (0.5, 1).

        Returns:
            The selection; it may be empty.

        Raises:
            SettingError: ``like`` has another number of units, or the draws cannot show such a probability.
        """
        most = float(_reproduced(torch.tensor(1 - 1 / (2 * self.draws)).double()))
        if not 0.5 < probability <= most:
            raise SettingError(
                f"probability must be above 0.5, and with {self.draws} draws at most {most:.4g}; got {probability}."
            )
        flat = self.reproduction(like).flat() >= probability
        return FilterSelection(like._split(flat), like.parameters)

    def rows(self) -> list[Row]:
        """One row per number of samples."""
        return [
            {"n_samples": size, **spread("jaccard", jaccard), **spread("overlap", overlap)}
            for size, jaccard, overlap in zip(self.sizes, self.reproduced, self.overlap, strict=True)
        ]


@dataclass(frozen=True)
class Differences(Record):
    """Units whose scores differ between two functions, with a bound on the share of false ones among them.

    Attributes:
        of: The first function; a positive difference is a larger score for it.
        against: The second function.
        n_units: Number of tests.
        n_samples: Number of paired samples.
        rate: Bound on the expected share of false discoveries.
        procedure: ``"bh"`` (Benjamini and Hochberg) or ``"by"`` (Benjamini and Yekutieli).
        units: Flat places of the discoveries, smallest p-value first.
        means: Their mean differences.
        p_values: Their p-values.
        q_values: For each discovery, the smallest rate at which it would still be a discovery.
    """

    of: str
    against: str
    n_units: int
    n_samples: int
    rate: float
    procedure: Literal["bh", "by"]
    units: tuple[int, ...]
    means: tuple[float, ...]
    p_values: tuple[float, ...]
    q_values: tuple[float, ...]

    def selection(
        self, like: FilterScores | FilterSelection, sign: Literal["both", "positive", "negative"] = "both"
    ) -> FilterSelection:
        """The discoveries as a selection.

        Args:
            like: Scores or a selection with the same units.
            sign: ``"positive"`` for units with larger scores for `of`, ``"negative"`` for those with larger scores for
                `against`.

        Returns:
            The selection.

        Raises:
            SettingError: ``like`` has another number of units.
        """
        _check_units(like, self.n_units)
        wanted = {"both": (-1, 0, 1), "positive": (1,), "negative": (-1,)}[sign]
        places = [unit for unit, mean in zip(self.units, self.means, strict=True) if np.sign(mean) in wanted]
        flat = torch.zeros(self.n_units, dtype=torch.bool, device="cpu")
        flat[places] = True
        return FilterSelection(like._split(flat), like.parameters)

    def rows(self) -> list[Row]:
        """One row per discovery."""
        return [
            {"unit": unit, "difference": mean, "p_value": p, "q_value": q}
            for unit, mean, p, q in zip(self.units, self.means, self.p_values, self.q_values, strict=True)
        ]


def stability(
    samples: Mapping[str, SampleScores],
    rank: Rank,
    amount: float,
    *,
    draws: int = 200,
    splits: int = 50,
    sizes: Sequence[int] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Stability:
    """Measure how much a set depends on its samples.

    The inclusion probability of a unit comes from a bootstrap: n of n samples with replacement, the same samples for
    every function. The required number of samples comes from pairs of groups without a common sample. (A group agrees
    with all samples for a trivial reason: it is part of them.)

    Args:
        samples: Function to scores per sample; sample i of all functions belongs together.
        rank: A function of the mean scores of every function that returns the ranking, such as
            ``lambda scores: contrast(scores, "blur")``.
        amount: Size of the set, as in `FilterScores.top`.
        draws: Bootstrap draws.
        splits: Pairs of disjoint groups for every size.
        sizes: Sizes of the groups, at most half of the samples; doubling from 1 by default.
        confidence: Share of the splits inside the intervals.
        seed: Seed of the draws.

    Returns:
        Inclusion probabilities, and the agreement of disjoint groups.

    Raises:
        SettingError: The functions have different numbers of samples or fewer than two, or a size or number of draws
            is out of range.
    """
    n = _paired_length(samples)
    wanted = [2**k for k in range(n.bit_length()) if 2 * 2**k <= n] if sizes is None else list(sizes)
    if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 1 or 2 * wanted[-1] > n or min(draws, splits) < 2:
        raise SettingError(
            f"sizes must ascend from at least 1 to at most half of the {n} samples, and at least 2 draws and splits "
            f"are needed; got {wanted}, {draws} and {splits}."
        )
    generator = np.random.default_rng(seed)

    def sets(drawn: Sequence[Sequence[int]]) -> Iterator[FilterSelection]:
        weights = torch.from_numpy(np.stack([np.bincount(places, minlength=n) / len(places) for places in drawn]))
        rows = zip(*(per_sample.weighted(weights) for per_sample in samples.values()), strict=True)
        return (rank(dict(zip(samples, scores, strict=True))).top(amount) for scores in rows)

    reference = rank({name: per_sample.scores() for name, per_sample in samples.items()}).top(amount)
    hits = torch.zeros(reference.n_units, device="cpu")
    for chosen in sets([generator.integers(n, size=n).tolist() for _ in range(draws)]):
        hits += chosen.flat()
    reproduced: list[Estimate] = []
    overlap: list[Estimate] = []
    for size in wanted:
        pairs = [generator.permutation(n)[: 2 * size].tolist() for _ in range(splits)]
        firsts, seconds = sets([places[:size] for places in pairs]), sets([places[size:] for places in pairs])
        agreeing = np.array([(a.jaccard(b), a.overlap(b)) for a, b in zip(firsts, seconds, strict=True)])
        for kept, values in ((reproduced, agreeing[:, 0]), (overlap, agreeing[:, 1])):
            kept.append(interval(float(values.mean()), values, confidence))
    order = torch.argsort(hits, descending=True, stable=True)[: int((hits > 0).sum())]
    return Stability(
        n_units=reference.n_units,
        n_samples=n,
        count=reference.count,
        draws=draws,
        units=tuple(order.tolist()),
        probabilities=tuple((hits[order].double() / draws).tolist()),
        sizes=tuple(wanted),
        reproduced=tuple(reproduced),
        overlap=tuple(overlap),
    )


def differences(
    samples: Mapping[str, SampleScores],
    of: str,
    against: str,
    *,
    rate: float = 0.05,
    procedure: Literal["bh", "by"] = "bh",
    scale: Literal["loss", "share"] = "loss",
) -> Differences:
    """Find units whose scores differ between two functions, with a bound on false discoveries; needs scipy.

    Every unit gets a two-sided t-test of its paired differences. A procedure then bounds the expected share of false
    discoveries. **Assumptions:** the samples are independent draws of the inputs (crops of one photograph are not).
    They are 20 or more, so that the mean difference is nearly normal although scores are skewed. For ``"bh"`` the tests
    are independent or positively dependent; ``"by"`` is valid for any dependence and finds fewer units. A discovery
    says that the scores differ *between this base and this target*, and not by how much: sort by the difference.

    Args:
        samples: Function to scores per sample; sample i of both functions belongs together.
        of: The first function.
        against: The second function.
        rate: Bound on the expected share of false discoveries.
        procedure: ``"bh"`` (Benjamini and Hochberg) or ``"by"`` (Benjamini and Yekutieli).
        scale: ``"loss"`` compares the scores themselves. A function with larger scores in total then differs in nearly
            all units. ``"share"`` divides the scores of every sample by their sum first.

    Returns:
        The discoveries.

    Raises:
        SettingError: A name is unknown, there are fewer than three samples, a number is out of range, or scipy is not
            installed.

    References:
        Benjamini and Hochberg, "Controlling the False Discovery Rate", JRSS B 1995; Benjamini and Yekutieli, "The
        Control of the False Discovery Rate in Multiple Testing under Dependency", Annals of Statistics 2001.
    """
    unknown = [name for name in (of, against) if name not in samples]
    if unknown or of == against or not 0 < rate < 1 or procedure not in ("bh", "by") or scale not in ("loss", "share"):
        raise SettingError(
            f"differences need two functions of {name_some(samples)}, a rate between 0 and 1, bh or by, and loss or "
            f"share; got {of!r}, {against!r}, {rate}, {procedure!r}, {scale!r}."
        )
    n = _paired_length({name: samples[name] for name in (of, against)}, least=3)
    stats = load_scipy()
    first, second = (samples[name].values.double().numpy() for name in (of, against))
    if scale == "share":
        first, second = (values / np.abs(values).sum(1, keepdims=True) for values in (first, second))
    gaps = first - second
    means = gaps.mean(0)
    errors = gaps.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistics = np.where((means == 0) & (errors == 0), 0.0, np.abs(means) / errors)
    p_values = 2 * stats.t.sf(statistics, n - 1)
    q_values = stats.false_discovery_control(p_values, method=procedure)
    order = np.argsort(p_values, kind="stable")
    order = order[q_values[order] <= rate]
    return Differences(
        of=of,
        against=against,
        n_units=gaps.shape[1],
        n_samples=n,
        rate=rate,
        procedure=procedure,
        units=tuple(order.tolist()),
        means=tuple(means[order].tolist()),
        p_values=tuple(p_values[order].tolist()),
        q_values=tuple(q_values[order].tolist()),
    )


def _reproduced(inclusion: Tensor) -> Tensor:
    """Two sets of samples differ by the square root of two times as much as a draw of the bootstrap."""
    reproduced: Tensor = torch.special.ndtr(torch.special.ndtri(inclusion) / 2**0.5)
    return reproduced


def _paired_length(samples: Mapping[str, SampleScores], least: int = 2) -> int:
    """Number of samples that all functions share."""
    lengths = {name: len(scores) for name, scores in samples.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) < least:
        raise SettingError(f"all functions need the same number of samples, at least {least}; got {lengths}.")
    return next(iter(lengths.values()))


def _check_units(like: FilterScores | FilterSelection, n_units: int) -> None:
    if like.n_units != n_units:
        raise SettingError(f"the units must be the same; the result knows {n_units}, got {like.n_units}.")
