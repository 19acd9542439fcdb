"""The degradations of the paper's experiment: what networks are trained on, and the inputs they are tested with."""

from __future__ import annotations

from sr_zoo.degradations.base import Degradation
from sr_zoo.degradations.blur import GaussianBlur
from sr_zoo.degradations.noise import GaussianNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes
from sr_zoo.degradations.resize import Downsample

BLUR = GaussianBlur(sigma=2.0, kernel_size=21)
NOISE = GaussianNoise(sigma=0.1)


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


def blind_inputs(scale: int = 2, kind: str = "bicubic") -> Pipeline:
    """Blur with probability one half, downsampling, noise with probability one half, 8-bit rounding.

    What a target network is fine-tuned on, as published: blur and noise are drawn independently for every patch.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.

    Returns:
        The pipeline.

    Example:
        >>> [type(step).__name__ for step in blind_inputs().steps]
        ['Sometimes', 'Downsample', 'Sometimes', 'Quantize']
    """
    return Pipeline((Sometimes(BLUR, 0.5), Downsample(scale, kind), Sometimes(NOISE, 0.5), Quantize()))


def evaluation_inputs(scale: int = 2, kind: str = "bicubic") -> dict[str, Degradation]:
    """The four inputs of every evaluation: ``clean``, ``blur``, ``noise`` and ``both``.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.

    Returns:
        Name to degradation.

    Example:
        >>> list(evaluation_inputs())
        ['clean', 'blur', 'noise', 'both']
    """
    down, end = Downsample(scale, kind), Quantize()
    return {
        "clean": Pipeline((down, end)),
        "blur": Pipeline((BLUR, down, end)),
        "noise": Pipeline((down, NOISE, end)),
        "both": Pipeline((BLUR, down, NOISE, end)),
    }
