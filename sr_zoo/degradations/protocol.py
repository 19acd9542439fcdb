"""The degradations of the paper's experiment: what networks are trained on, and the inputs they are tested with."""

from __future__ import annotations

from collections.abc import Sequence

from sr_zoo.degradations.base import Degradation, DegradationError
from sr_zoo.degradations.blur import GaussianBlur
from sr_zoo.degradations.jpeg import JPEG
from sr_zoo.degradations.noise import GaussianNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes
from sr_zoo.degradations.resize import Downsample

BLUR = GaussianBlur(sigma=2.0, kernel_size=21)
NOISE = GaussianNoise(sigma=0.1)
COMPRESSION = JPEG(quality=30)
PUBLISHED = ("blur", "noise")
_PARTS: dict[str, Degradation] = {"blur": BLUR, "noise": NOISE, "jpeg": COMPRESSION}

# what a two-branch network estimates is in these units: 1 is the protocol's own degradation, 0 none
STRENGTH_UNITS = {name: part.strengths()[name] for name, part in _PARTS.items()}


def clean_inputs(scale: int = 2, kind: str = "bicubic") -> Pipeline:
    """Downsampling and 8-bit rounding alone: what a base network is trained on.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.

    Returns:
        The pipeline.

    Example:
        >>> [type(step).__name__ for step in clean_inputs().steps]
        ['Downsample', 'Quantize']
    """
    return Pipeline((Downsample(scale, kind), Quantize()))


def blind_inputs(scale: int = 2, kind: str = "bicubic", degradations: Sequence[str] = PUBLISHED) -> Pipeline:
    """Blur with probability one half, downsampling, noise with probability one half, 8-bit rounding.

    What a target network is fine-tuned on, as published: blur and noise are drawn independently for every patch.
    ``"jpeg"`` puts compression at quality 30 with probability one half behind the noise.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.
        degradations: Some of ``"blur"``, ``"noise"`` and ``"jpeg"``.

    Returns:
        The pipeline.

    Raises:
        DegradationError: A name is unknown or none is given.

    Example:
        >>> [type(step).__name__ for step in blind_inputs().steps]
        ['Sometimes', 'Downsample', 'Sometimes', 'Quantize']
    """
    _check_names(degradations)
    sometimes: dict[str, Degradation] = {
        name: Sometimes(part, 0.5) for name, part in _PARTS.items() if name in degradations
    }
    return _inputs(scale, kind, sometimes)


def evaluation_inputs(
    scale: int = 2, kind: str = "bicubic", degradations: Sequence[str] = PUBLISHED
) -> dict[str, Degradation]:
    """The inputs of every evaluation: ``clean``, each degradation alone, and all at once.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.
        degradations: Some of ``"blur"``, ``"noise"`` and ``"jpeg"``.

    Returns:
        Name to degradation; all at once are ``both`` if they are two, and ``all`` if they are more.

    Raises:
        DegradationError: A name is unknown or none is given.

    Example:
        >>> list(evaluation_inputs())
        ['clean', 'blur', 'noise', 'both']
        >>> list(evaluation_inputs(degradations=("blur", "noise", "jpeg")))
        ['clean', 'blur', 'noise', 'jpeg', 'all']
    """
    _check_names(degradations)
    parts = {name: part for name, part in _PARTS.items() if name in degradations}
    inputs: dict[str, Degradation] = {"clean": _inputs(scale, kind, {})}
    inputs |= {name: _inputs(scale, kind, {name: part}) for name, part in parts.items()}
    if len(parts) > 1:
        inputs["both" if len(parts) == 2 else "all"] = _inputs(scale, kind, parts)
    return inputs


def _inputs(scale: int, kind: str, parts: dict[str, Degradation]) -> Pipeline:
    """Blur before the downsampling, the rest behind it."""
    behind = [part for name, part in parts.items() if name != "blur"]
    before = [parts["blur"]] if "blur" in parts else []
    return Pipeline((*before, Downsample(scale, kind), *behind, Quantize()))


def _check_names(degradations: Sequence[str]) -> None:
    """Refuse degradations that the protocol does not have."""
    if not degradations or not set(degradations) <= set(_PARTS):
        raise DegradationError(f"degradations must be some of {', '.join(_PARTS)}; got {degradations!r}.")
