"""What an attribution returns: scores, the numbers that say whether to believe them, and the reasons not to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from filterattr.errors import FilterAttrWarning, SettingError
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.results.cells import TOP, bars, cell, curve, facts, reasons
from filterattr.results.scores import FilterScores
from filterattr.results.stored import FIELDS, complete, described, fields_of, parameters_of, stored_tensor
from filterattr.units.unit import (
    REDUCTIONS,
    SIGNED,
    STATISTICS,
    ReadOnly,
    Reduction,
    ScoredParameter,
    kept_as,
    kept_by,
    units_of,
)

if TYPE_CHECKING:
    import pandas as pd


DOUBTS = "reasons to doubt this attribution"  # begins the warnings about a path

BARRIER = 0.05  # of what the ends differ by
MONOTONY = 0.9
COSINE = 0.9
OTHER_NETWORKS = 0.5  # a cosine that no fine-tuning leads to; small networks get to .6
COMPLETENESS = 0.01
REMAINDER = 0.2
_SAME_LOSS = 0.05  # of what the ends of the path differ by
_ROUNDING = 1e-6  # of the largest loss


class PathNumbers(NamedTuple):
    """The numbers that an attribution is judged by.

    Attributes:
        losses: Losses along the path, base first and target last.
        true_ends: Losses of base and target with their own buffers, where those on the path are others.
        cosine: Cosine of the angle between all weights of base and target.
        completeness_error: As of `FilterAttribution`.
        remainder_share: Part of all absolute attributions that belongs to what is not scored.
    """

    losses: tuple[float, ...]
    true_ends: tuple[float, float] | None
    cosine: float
    completeness_error: float
    remainder_share: float

    @property
    def barrier(self) -> float:
        """Height of the loss above the higher end, in parts of what the ends differ by; 0 without a barrier."""
        first, *_, last = self.losses
        height = max(self.losses) - max(first, last)
        if not height > _ROUNDING * max(map(abs, self.losses)):
            return 0.0 if height == height else math.nan
        return height / abs(last - first) if last != first else math.inf

    @property
    def monotony(self) -> float:
        """Change of the loss from end to end over all its ups and downs; 1 if it only falls, or only rises."""
        steps = math.fsum(abs(second - first) for first, second in zip(self.losses, self.losses[1:], strict=False))
        return abs(self.losses[-1] - self.losses[0]) / steps if steps else 1.0


class LayerSummary(NamedTuple):
    """One row of `FilterAttribution.per_layer`.

    Attributes:
        name: Name of the parameter or group.
        n_units: Number of units.
        sum: Signed attribution of the parameter.
        sum_of_abs: Sum of the ``sum_of_abs`` scores of its units.
        share: Its share of this sum over all parameters, in [0, 1].
    """

    name: str
    n_units: int
    sum: float
    sum_of_abs: float
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class FilterAttribution:
    """The result of `FilterAttributor.attribute`; it is immutable, and the tensors that it returns are copies.

    Losses and attributions are means over the samples, in the unit of the loss.

    Attributes:
        loss_base: Loss at t = 0.
        loss_target: Loss at t = 1.
        remainder: Signed attribution of everything that is not scored, such as biases.
        total: Signed attribution of all parameters. Completeness means that it equals ``loss_target - loss_base``.
        completeness_error: ``|total - (loss_target - loss_base)| / max(|loss_target - loss_base|, 1e-3 sum |a|)``.
            Numerator and denominator are summed over the samples, so that errors of different samples do not cancel.
            The denominator is at least the rounding of the losses, 1e-12 of the largest loss.
        path_places: The places t on the path where the loss was computed, from 0 to 1.
        path_losses: The losses at these places.
        cosine: Cosine of the angle between all weights of base and target. Below about 0.9, masking a few filters tends
            to damage the network rather than to remove one function.
        n_samples: Number of samples.
        n_passes: Number of forward-backward passes.
        method: Name of the quadrature.
        n_steps: Number of quadrature nodes in every segment.
        parameters: Parameter name to how it is scored.
        means: Reduction to parameter name to mean scores over the samples; ``keep="signed"`` leaves out
            ``"sum_of_abs"``.
        mean_squares: The same for the squared scores; ``"sum"`` stands for ``"abs_of_sum"``, too.
        n_segments: Number of straight parts of the path, 1 without waypoints. All parts have the same length in
            ``path_places``.
        aggregate: ``"per_sample"`` or ``"pooled"``. A pooled attribution evaluates no sample at both ends; its losses
            and its completeness error are NaN.
        precision: ``"bf16"`` if this library evaluated the loss under autocast.
        tolerance: The tolerance of ``method="adaptive"``.
        n_unsettled: Number of samples that did not reach the tolerance; ``n_steps`` is then the largest number of nodes
            of a sample.
        agreement: For a pooled attribution, the share of its top 1% that infinitely many samples would keep, estimated
            from two halves of the samples.
        unscored_abs: Mean over the samples of the absolute attributions of all parameters without scores; ``None`` if
            it is not known, as in files of version 0.1.
        true_loss_base: Loss of base with its own buffers, if ``buffers=`` gives it others on the path; else ``None``.
        true_loss_target: The same for target.
    """

    loss_base: float
    loss_target: float
    remainder: float
    total: float
    completeness_error: float
    path_places: tuple[float, ...]
    path_losses: tuple[float, ...]
    cosine: float
    n_samples: int
    n_passes: int
    method: str
    n_steps: int
    parameters: Mapping[str, ScoredParameter]
    means: Mapping[Reduction, Mapping[str, Tensor]]
    mean_squares: Mapping[Reduction, Mapping[str, Tensor]]
    n_segments: int = 1
    aggregate: str = "per_sample"
    precision: str | None = None
    tolerance: float | None = None
    n_unsettled: int = 0
    agreement: float | None = None
    unscored_abs: float | None = None
    true_loss_base: float | None = None
    true_loss_target: float | None = None

    def __post_init__(self) -> None:
        for name in STATISTICS:
            held = {reduction: dict(kept_by(tensors)) for reduction, tensors in kept_by(getattr(self, name)).items()}
            self._share_equal(name, held)
            object.__setattr__(self, name, ReadOnly({key: ReadOnly(tensors) for key, tensors in held.items()}))
        object.__setattr__(self, "parameters", ReadOnly(self.parameters))

    def _share_equal(self, statistic: str, held: dict[Reduction, dict[str, Tensor]]) -> None:
        """Keep numbers once that are equal because every weight is a unit."""
        for name, scored in self.parameters.items():
            for reduction in held:
                kept = held.get(kept_as(statistic, reduction, scored), {}).get(name)
                tensor = held[reduction].get(name)
                if kept is not None and tensor is not None and kept is not tensor and torch.equal(kept, tensor):
                    held[reduction][name] = kept

    def __repr__(self) -> str:
        units = sum(tensor.numel() for tensor in kept_by(self.means["sum"]).values())
        rule = f"{self.method} {self.n_steps}{f' in each of {self.n_segments} segments' * (self.n_segments > 1)}"
        if self.tolerance is not None:
            rule = f"{self.method} to {self.tolerance:g} with {self.mean_steps:.3g} nodes in the mean"
        if self.is_signed:
            rule += ", signed scores alone"
        if self.aggregate == "pooled":
            rule += f", pooled, agreement {self.agreement:.3g}"
        lines = [
            f"FilterAttribution({units} units in {len(self.parameters)} parameters, {self.n_samples} samples, {rule})",
            *self._loss_lines(),
            f"  attribution     {self.total:.6g} in total, {self.remainder:.6g} of it not scored",
            f"  cosine          {self.cosine:.4f} between base and target",
            *(f"  concern         {concern}" for concern in self.concerns),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show in a notebook whether to believe it, and which layers matter."""
        numbers = {
            "loss of base": f"{self.loss_base:.4g}",
            "loss of target": f"{self.loss_target:.4g}",
            "completeness error": f"{self.completeness_error:.2g}",
            "barrier": f"{self.barrier:.3g}",
            "cosine": f"{self.cosine:.4f}",
            "samples": str(self.n_samples),
        }
        layers = sorted(self.per_layer(), key=lambda row: -row.share)[:TOP]
        longest = layers[0].share or 1.0
        rows = [((row.name, str(row.n_units), f"{row.share:.1%}"), row.share / longest) for row in layers]
        losses = f"loss on the path from base ({self.loss_base:.4g}) to target ({self.loss_target:.4g})"
        return cell(
            repr(self).partition("\n")[0],
            facts({name: value for name, value in numbers.items() if value != "nan"}),
            reasons(self.concerns, "no reason to doubt it"),
            curve(self.path_places, self.path_losses, losses),
            bars(("parameter", "units", "share of scores"), rows),
        )

    def to_frame(self) -> pd.DataFrame:
        """Return `per_layer` as a table; needs pandas.

        Returns:
            One row per parameter, with the columns of `LayerSummary`.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        return pd.DataFrame(self.per_layer())

    def _loss_lines(self) -> list[str]:
        if self.aggregate == "pooled":
            return ["  loss            not seen at both ends, as samples are pooled"]
        lines = [
            f"  loss            {self.loss_base:.6g} (base) -> {self.loss_target:.6g} (target), "
            f"barrier {self.barrier:.3g}",
            f"  completeness    relative error {self.completeness_error:.2g}",
        ]
        if self.true_loss_base is not None:
            true = f"{self.true_loss_base:.6g} (base) -> {self.true_loss_target:.6g} (target)"
            lines.insert(1, f"  own buffers     {true}")
        return lines

    @property
    def mean_steps(self) -> float:
        """Mean number of nodes of a sample; ``n_steps`` unless the nodes are refined."""
        return self.n_passes / (self.n_samples * self.n_segments)

    @property
    def barrier(self) -> float:
        """Height of the loss on the path above its higher end; 0 without a barrier.

        Networks of unrelated trainings have a high barrier between them. An attribution along such a path means little.
        """
        return max(self.path_losses) - max(self.loss_base, self.loss_target)

    @property
    def concerns(self) -> tuple[str, ...]:
        """Reasons to doubt the attribution, in words; empty if there are none."""
        return concerns_about(self.path_numbers())

    def path_numbers(self) -> PathNumbers:
        """The numbers that `concerns` is about."""
        ends = self.true_loss_base, self.true_loss_target
        sizes = self.means["abs_of_sum" if self.is_signed else "sum_of_abs"]
        scored = math.fsum(float(size.sum()) for size in kept_by(sizes).values())
        unscored = abs(self.remainder) if self.unscored_abs is None else self.unscored_abs
        return PathNumbers(
            losses=self.path_losses,
            true_ends=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
            cosine=self.cosine,
            completeness_error=self.completeness_error,
            remainder_share=unscored / (unscored + scored) if unscored else 0.0,
        )

    @property
    def is_signed(self) -> bool:
        """Whether ``keep="signed"`` left out the statistics that need the attribution of every weight."""
        return "sum_of_abs" not in self.means

    def scores(self, reduction: Reduction = "sum_of_abs") -> FilterScores:
        r"""Return the scores of all units.

        Args:
            reduction: How the weights k of a unit become one number, for each sample before the mean over samples.
                ``"sum_of_abs"`` is :math:`\sum_k |A_k|` (the paper's). ``"abs_of_sum"`` is :math:`|\sum_k A_k|`.
                ``"sum"`` is :math:`\sum_k A_k`, which is signed and complete.

        Returns:
            The scores.

        Raises:
            SettingError: The reduction is unknown, or was not kept.

        References:
            Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution", NeurIPS
            2021, equation 6.
        """
        if reduction not in REDUCTIONS:
            raise SettingError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}.")
        if reduction not in self.means:
            raise SettingError(
                f'the scores "{reduction}" were not kept, as attribute was called with keep="signed"; there are '
                f'{", ".join(self.means)}. Take one of these, or call attribute with keep="all".'
            )
        return FilterScores(self.means[reduction], self.parameters)

    def standard_errors(self, reduction: Reduction = "sum_of_abs") -> FilterScores:
        """Return the standard error of every score over the samples.

        Args:
            reduction: As in `scores`.

        Returns:
            The standard errors of the means.

        Raises:
            SettingError: There was only one sample, or the reduction is unknown.
        """
        scores = self.scores(reduction)
        if self.n_samples < 2:
            raise SettingError("a standard error needs at least two samples; got 1.")
        squares = kept_by(self.mean_squares["sum" if reduction == "abs_of_sum" else reduction])
        variances = {name: (squares[name] - value.square()).clamp_min(0) for name, value in scores.kept.items()}
        errors = {name: (value / (self.n_samples - 1)).sqrt() for name, value in variances.items()}
        return FilterScores(errors, self.parameters)

    def per_layer(self) -> list[LayerSummary]:
        """Summarise every scored parameter.

        Returns:
            One row per parameter, in the order of the network. With ``keep="signed"``, ``sum_of_abs`` is the sum of the
            absolute signed scores.
        """
        kept = self.means["abs_of_sum" if self.is_signed else "sum_of_abs"]
        sizes = {name: float(tensor.sum()) for name, tensor in kept_by(kept).items()}
        total = math.fsum(sizes.values())
        return [
            LayerSummary(
                name,
                tensor.numel(),
                float(tensor.sum()),
                sizes[name],
                sizes[name] / total if total else 0.0,
            )
            for name, tensor in kept_by(self.means["sum"]).items()
        ]

    def save(self, path: str | Path) -> None:
        """Write the result to a file (safetensors with a digest).

        Args:
            path: The file to write.

        Raises:
            StorageError: The file cannot be written, or the memory does not suffice.
        """
        tensors = {
            f"{statistic}/{reduction}/{name}": tensor
            for statistic in STATISTICS
            for reduction, scores in getattr(self, statistic).items()
            for name, tensor in kept_by(scores).items()
        }
        description: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        description["parameters"] = described(self.parameters)
        description |= {"keep": "signed"} if self.is_signed else {}
        write_tensors(path, "attribution", tensors, description)

    @classmethod
    def load(cls, path: str | Path) -> FilterAttribution:
        """Read a result that `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal result, on the CPU.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        tensors, description = read_tensors(path, "attribution")
        with complete(path, "attribution"):
            parameters = parameters_of(description)
            is_signed = description.get("keep") == "signed"
            means, mean_squares = (
                {
                    reduction: {
                        name: stored_tensor(tensors, f"{statistic}/{reduction}/{name}", shape, torch.float64)
                        for name, shape in units_of(parameters).items()
                    }
                    for reduction in reductions
                    if reduction in SIGNED or not is_signed
                }
                for statistic, reductions in STATISTICS.items()
            )
            return cls(**fields_of(description), parameters=parameters, means=means, mean_squares=mean_squares)


def warning_text(attribution: FilterAttribution) -> str | None:
    """Say what a reader of the numbers must know first.

    Args:
        attribution: The result of a call.

    Returns:
        The text of its warning, or ``None``.
    """
    kept: Reduction = "abs_of_sum" if attribution.is_signed else "sum_of_abs"
    if not attribution.remainder and not any(
        bool(values.any()) for values in kept_by(attribution.means[kept]).values()
    ):
        return (
            "every attribution is 0: the loss does not change with any weight that differs between base and target. If "
            "both are one model that was trained in place, keep its weights from before: copy.deepcopy(model)."
        )
    if attribution.n_unsettled:
        return (
            f"{attribution.n_unsettled} of {attribution.n_samples} samples have not reached the tolerance "
            f"{attribution.tolerance} with {attribution.n_steps} nodes (completeness error "
            f"{attribution.completeness_error:.2g} over all); allow more with n_steps, or a larger tolerance."
        )
    path = attribution.path_numbers()
    barrier = barrier_concern(path)
    if attribution.completeness_error > COMPLETENESS and attribution.n_steps > 1:
        change = attribution.loss_target - attribution.loss_base
        gap = (
            f"the attributions should sum to the loss change {change:.4g} but sum to {attribution.total:.4g} (relative "
            f"error {attribution.completeness_error:.2g})"
            if attribution.n_samples == 1
            else "the attributions should sum to the loss change of every sample; the relative error is "
            f"{attribution.completeness_error:.2g} over {attribution.n_samples} samples, whose errors do not cancel "
            f"(the means sum to {attribution.total:.4g} for a change of {change:.4g})"
        )
        cure = f"use more steps than {attribution.n_steps} or another method than {attribution.method!r}."
        others = [text for text in concerns_about(path) if text not in (barrier, completeness_concern(path))]
        return " ".join([f"{gap}; {cure if barrier is None else _at_its_beginning(barrier)}", *others])
    # a training may well go over a hill; that base and target are far apart is seen on the straight way
    barrier = barrier if attribution.n_segments == 1 else None
    if barrier or ends_concern(path) or buffers_concern(path) or path.cosine < OTHER_NETWORKS:
        return f"{DOUBTS}: {' '.join(concerns_about(path))}"
    return None


def _at_its_beginning(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def concerns_about(path: PathNumbers) -> tuple[str, ...]:
    """Judge a path.

    Args:
        path: Its numbers; where they are NaN, nothing is said.

    Returns:
        Reasons to doubt the attribution, in words; empty if there are none.

    Example:
        >>> concerns_about(PathNumbers((1.0, 0.5, 0.0), None, 0.99, 0.0, 0.1))
        ()
        >>> concerns_about(PathNumbers((1.0, 1.5, 2.0), None, 0.99, 0.0, 0.1))
        ('Target is not better than base on these samples (loss 1 -> 2). This is as expected ...',)
    """
    said = [
        ends_concern(path),
        buffers_concern(path),
        barrier_concern(path) or _about_monotony(path),
        _about_cosine(path),
        completeness_concern(path),
        _about_remainder(path),
    ]
    return tuple(text for text in said if text)


@contextmanager
def without_doubts() -> Iterator[None]:
    """Do not warn of the path, where something else says what is to be said, or a path has no meaning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DOUBTS, FilterAttrWarning)
        yield


def barrier_concern(path: PathNumbers) -> str | None:
    """What to say of a barrier on the way, if there is one.

    Args:
        path: The numbers.
    """
    if not path.barrier > BARRIER:
        return None
    return (
        f"The loss rises on the way to {path.barrier:.0%} of what the ends differ by above the higher end: base "
        "and target are not in one valley, and what matters only in between counts as well. Judge by masking, "
        "not by the scores alone."
    )


def ends_concern(path: PathNumbers) -> str | None:
    """What to say of a target that is not better than base, if it is not.

    Args:
        path: The numbers.
    """
    base, target = path.true_ends or (path.losses[0], path.losses[-1])
    if not target >= base:
        return None
    return (
        f"Target is not better than base on these samples (loss {base:.4g} -> {target:.4g}). This is as expected if "
        "they are not those of the function, or if more is better; if the ends are swapped, exchange base and target."
    )


def buffers_concern(path: PathNumbers) -> str | None:
    """What to say of ends that are other networks with their own buffers, if they are.

    Args:
        path: The numbers.
    """
    if path.true_ends is None:
        return None
    ends = path.losses[0], path.losses[-1]
    size = max(abs(ends[1] - ends[0]), abs(path.true_ends[1] - path.true_ends[0]))
    if not max(abs(on_path - other) for on_path, other in zip(ends, path.true_ends, strict=True)) > _SAME_LOSS * size:
        return None
    return (
        f"Base and target with the buffers of one of them have losses {ends[0]:.4g} -> {ends[1]:.4g}, with their own "
        f"{path.true_ends[0]:.4g} -> {path.true_ends[1]:.4g}: a part of the change lies in the buffers, which have no "
        "attribution."
    )


def _about_monotony(path: PathNumbers) -> str | None:
    if not path.monotony < MONOTONY:
        return None
    return (
        f"The loss goes up and down on the way (monotony {path.monotony:.2f}): filters whose effect turns around "
        "count with what is left."
    )


def _about_cosine(path: PathNumbers) -> str | None:
    if not path.cosine < COSINE:
        return None
    return (
        f"The ends point in different directions (cosine {path.cosine:.2f}): masking will tend to damage the "
        "network rather than to remove one function. Fine-tune more gently."
    )


def completeness_concern(path: PathNumbers) -> str | None:
    """What to say of attributions that miss the change of the loss, if they do.

    Args:
        path: The numbers.
    """
    if not path.completeness_error > COMPLETENESS:
        return None
    cure = "the barrier is the cause" if path.barrier > BARRIER else "use more steps"
    return (
        f"The attributions of the samples miss the changes of their losses by {path.completeness_error:.1%} of these: "
        f"{cure}."
    )


def _about_remainder(path: PathNumbers) -> str | None:
    if not path.remainder_share > REMAINDER:
        return None
    return f"{path.remainder_share:.0%} of the attribution belongs to parameters that are not scored, such as biases."
