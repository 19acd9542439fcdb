"""Reasons to doubt an attribution: the bounds, the words, and how to go without the warning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from filterattr.errors import FilterAttrWarning

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
