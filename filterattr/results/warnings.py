"""What a reader of an attribution must know first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from filterattr.errors import FilterAttrWarning
from filterattr.results.attribution import FilterAttribution
from filterattr.results.concerns import (
    COMPLETENESS,
    OTHER_NETWORKS,
    barrier_concern,
    buffers_concern,
    completeness_concern,
    concerns_about,
    ends_concern,
)

_BEGINNING = "what speaks against believing this attribution"


def warning_text(attribution: FilterAttribution) -> str | None:
    """Say what a reader of the numbers must know first.

    Args:
        attribution: The result of a call.

    Returns:
        The text of its warning, or ``None``.
    """
    if not attribution.remainder and not any(bool(one.any()) for one in attribution.scores().kept.values()):
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
            else "the attributions should sum to the loss change of every sample, but miss it (relative error "
            f"{attribution.completeness_error:.2g} over {attribution.n_samples} samples, whose errors do not cancel; "
            f"in the mean they sum to {attribution.total:.4g} for a change of {change:.4g})"
        )
        cure = f"use more steps than {attribution.n_steps} or another method than {attribution.method!r}."
        others = [text for text in concerns_about(path) if text not in (barrier, completeness_concern(path))]
        return " ".join([f"{gap}; {cure if barrier is None else _at_its_beginning(barrier)}", *others])
    # a training may well go over a hill; that base and target are far apart is seen on the straight way
    barrier = barrier if attribution.n_segments == 1 else None
    if barrier or ends_concern(path) or buffers_concern(path) or path.cosine < OTHER_NETWORKS:
        return f"{_BEGINNING}: {' '.join(concerns_about(path))}"
    return None


@contextmanager
def without_doubts() -> Iterator[None]:
    """Do not warn of the path, where something else says what is to be said, or a path has no meaning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _BEGINNING, FilterAttrWarning)
        yield


def _at_its_beginning(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
