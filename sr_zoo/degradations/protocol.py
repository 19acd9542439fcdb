"""The degradations of the paper's experiment: what networks are trained on, and the inputs they are tested with.

The same inputs can be made of other degradations. Blurs are applied before the downsampling, as in the optics; all
others after it, as in the sensor and the file. A degradation that shrinks the image by the scale replaces the
downsampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from sr_zoo.degradations.base import Degradation, DegradationError
from sr_zoo.degradations.blur import GaussianBlur
from sr_zoo.degradations.draws import OneOf
from sr_zoo.degradations.jpeg import JPEG
from sr_zoo.degradations.noise import GaussianNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes
from sr_zoo.degradations.resize import Downsample

BLUR = GaussianBlur(sigma=2.0, kernel_size=21)
NOISE = GaussianNoise(sigma=0.1)
COMPRESSION = JPEG(quality=30)
PUBLISHED = ("blur", "noise")
PARTS: Mapping[str, Degradation] = {"blur": BLUR, "noise": NOISE, "jpeg": COMPRESSION}

# what a two-branch network estimates is in these units: 1 is the protocol's own degradation, 0 none
STRENGTH_UNITS = {name: part.strengths()[name] for name, part in PARTS.items()}

Degradations: TypeAlias = Sequence[str] | Mapping[str, Degradation]
_TRIED = 96


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


def blind_inputs(
    scale: int = 2, kind: str = "bicubic", degradations: Degradations = PUBLISHED, *, one_at_a_time: bool = False
) -> Degradation:
    """Blur with probability one half, downsampling, noise with probability one half, 8-bit rounding.

    What a target network is fine-tuned on, as published: blur and noise are drawn independently for every patch.
    Any other degradation is drawn in the same way.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.
        degradations: Some of ``"blur"``, ``"noise"`` and ``"jpeg"``, or name to degradation (`degradations_from`).
        one_at_a_time: Give every patch one of the degradations or none, all equally likely. Degradations that shrink
            the image cannot follow one another, and are always drawn like this.

    Returns:
        The pipeline.

    Raises:
        DegradationError: A name is unknown, none is given, or one makes images of an unsuitable size.

    Example:
        >>> [type(step).__name__ for step in blind_inputs().steps]
        ['Sometimes', 'Downsample', 'Sometimes', 'Quantize']
        >>> [len(one.steps) for one in blind_inputs(one_at_a_time=True).degradations]
        [2, 3, 3]
    """
    parts = _checked(degradations, scale)
    if one_at_a_time or _whole(parts, scale):
        alone = (_inputs(scale, kind, {name: part}) for name, part in parts.items())
        return OneOf((clean_inputs(scale, kind), *alone))
    return _inputs(scale, kind, {name: Sometimes(part, 0.5) for name, part in parts.items()})


def evaluation_inputs(
    scale: int = 2, kind: str = "bicubic", degradations: Degradations = PUBLISHED
) -> dict[str, Degradation]:
    """The inputs of every evaluation: ``clean``, each degradation alone, and all at once.

    Args:
        scale: Downsampling factor.
        kind: ``"bicubic"``, or ``"bilinear"`` as in the published code.
        degradations: Some of ``"blur"``, ``"noise"`` and ``"jpeg"``, or name to degradation (`degradations_from`).

    Returns:
        Name to degradation; all at once are ``both`` if they are two, and ``all`` if they are more. There is no such
        input if one of them shrinks the image, as two of those cannot follow one another.

    Raises:
        DegradationError: A name is unknown, none is given, or one makes images of an unsuitable size.

    Example:
        >>> list(evaluation_inputs())
        ['clean', 'blur', 'noise', 'both']
        >>> list(evaluation_inputs(degradations=("blur", "noise", "jpeg")))
        ['clean', 'blur', 'noise', 'jpeg', 'all']
    """
    parts = _checked(degradations, scale)
    inputs: dict[str, Degradation] = {"clean": clean_inputs(scale, kind)}
    inputs |= {name: _inputs(scale, kind, {name: part}) for name, part in parts.items()}
    if len(parts) > 1 and not _whole(parts, scale):
        inputs["both" if len(parts) == 2 else "all"] = _inputs(scale, kind, parts)
    return inputs


def _inputs(scale: int, kind: str, parts: Mapping[str, Degradation]) -> Pipeline:
    """Blur before the downsampling, the rest behind it."""
    if _whole(parts, scale):
        return Pipeline((*parts.values(), Quantize()))
    front = [part for part in parts.values() if part.is_optical()]
    behind = [part for part in parts.values() if not part.is_optical()]
    return Pipeline((*front, Downsample(scale, kind), *behind, Quantize()))


def _checked(degradations: Degradations, scale: int) -> dict[str, Degradation]:
    """Look names up, in the protocol's order, and refuse what cannot be made an input of."""
    if not isinstance(degradations, Mapping):
        if not degradations or not set(degradations) <= set(PARTS):
            raise DegradationError(f"degradations must be some of {', '.join(PARTS)}; got {degradations!r}.")
        return {name: part for name, part in PARTS.items() if name in degradations}
    if not degradations:
        raise DegradationError("at least one degradation is needed; got none.")
    foreign = [f"{name}={part!r}" for name, part in degradations.items() if not isinstance(part, Degradation)]
    if foreign:
        raise DegradationError(f"degradations must be name to degradation; got {', '.join(foreign)}.")
    small = _TRIED // scale
    wrong = [
        f"{name!r} makes {height}x{width} of it"
        for name, part in degradations.items()
        for height, width in [_size_after(part, scale)]
        if (height, width) not in {(_TRIED // scale * scale,) * 2, (small, small)}
    ]
    if wrong:
        raise DegradationError(
            f"a degradation must keep the size of an image, or divide it by the scale {scale} and so replace the "
            f"downsampling; of {small * scale}x{small * scale} pixels {', '.join(wrong)}."
        )
    return dict(degradations)


def _whole(parts: Mapping[str, Degradation], scale: int) -> bool:
    """Whether one of the degradations shrinks the image by the scale."""
    return scale > 1 and any(_size_after(part, scale)[0] == _TRIED // scale for part in parts.values())


def _size_after(part: Degradation, scale: int) -> tuple[int, int]:
    """What size a degradation makes of an image; tried, since only the degradation knows."""
    trial = torch.zeros(1, 3, *(_TRIED // scale * scale,) * 2, device="cpu")
    height, width = part(trial, torch.Generator().manual_seed(0)).shape[-2:]
    return height, width
