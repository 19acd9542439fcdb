"""JPEG compression: through a real encoder, and a differentiable model of it (ITU-T T.81, JFIF colour)."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sr_zoo.degradations.base import Degradation, DegradationError, check_range

_SUBSAMPLINGS = ("4:4:4", "4:2:0")
_TOLERANCE = 1e-4  # single precision misses a half by less

# ITU-T T.81, tables K.1 and K.2, which libjpeg scales by the quality
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)


@dataclass(frozen=True)
class _Compression(Degradation):
    """What both kinds of compression are described by."""

    quality: int = 75
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        """Refuse a quality or subsampling that libjpeg does not have."""
        check_range(self, "quality", self.quality, 1, 100, whole=True)
        if self.subsampling not in _SUBSAMPLINGS:
            known = ", ".join(_SUBSAMPLINGS)
            raise DegradationError(
                f"{type(self).__name__}.subsampling must be one of {known}; got {self.subsampling!r}."
            )

    def strengths(self) -> dict[str, float]:
        """How far the quality is below 100, as a share of 1."""
        return {"jpeg": 1 - self.quality / 100}


@dataclass(frozen=True)
class JPEG(_Compression):
    """Encode and decode every image with Pillow, in memory; gradients do not pass.

    The images are clipped to [0, 1], rounded to 8 bits, and copied to the CPU and back.

    Args:
        quality: Quality of libjpeg, 1 to 100.
        subsampling: ``"4:2:0"``, colour at half the resolution, or ``"4:4:4"``.

    Raises:
        DegradationError: A parameter is outside its range, or images have neither one channel nor three.

    Example:
        >>> JPEG(quality=30)(torch.rand(2, 3, 20, 30)).shape
        torch.Size([2, 3, 20, 30])
    """

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Send every image through a file in memory."""
        _check_channels(images)
        pixels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        result = torch.empty_like(pixels)
        for image, decoded in zip(pixels, result, strict=True):
            planes = image.permute(1, 2, 0).contiguous().numpy()
            stream = io.BytesIO()
            # a gray picture is recognised by its two dimensions
            Image.fromarray(planes.squeeze(2) if planes.shape[2] == 1 else planes).save(
                stream, format="jpeg", quality=self.quality, subsampling=self.subsampling
            )
            with Image.open(stream, formats=("JPEG",)) as picture:
                decoded.copy_(torch.from_numpy(np.array(picture)).view(planes.shape).permute(2, 0, 1))
        return result.to(images) / 255


@dataclass(frozen=True)
class DifferentiableJPEG(_Compression):
    """Do what `JPEG` does in differentiable steps; rounding passes gradients on unchanged (straight through).

    Colour transform, subsampling, 8x8 cosine transform, quantisation and their way back are those of libjpeg, also in
    how halves are rounded, but not in the last bits of its integer arithmetic: on photographs 96% (quality 75, 4:2:0)
    to 99.9% (gray) of the values are within a grey level of `JPEG`. Clipping passes no gradient where it clips.

    Args:
        quality: Quality of libjpeg, 1 to 100.
        subsampling: ``"4:2:0"``, colour at half the resolution, or ``"4:4:4"``.

    Raises:
        DegradationError: A parameter is outside its range, or images have neither one channel nor three.

    Example:
        >>> images = torch.rand(1, 3, 16, 16, requires_grad=True)
        >>> DifferentiableJPEG(quality=30)(images).square().mean().backward()
        >>> bool(images.grad.abs().sum() > 0)
        True
    """

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Compress each plane by itself, the two of colour at their own resolution."""
        _check_channels(images)
        # half precision cannot hold the sums of the cosine transform
        precise = images if images.dtype == torch.float64 else images.float()
        pixels = _round(precise.clamp(0, 1) * 255)
        if images.shape[1] == 1:
            return (_compress(pixels, _steps(_LUMA_STEPS, self.quality)) / 255).to(images.dtype)
        planes = _round(_to_ycbcr(pixels))
        luma, chroma = planes[:, :1], planes[:, 1:]
        luma = _compress(luma, _steps(_LUMA_STEPS, self.quality))
        steps = _steps(_CHROMA_STEPS, self.quality)
        if self.subsampling == "4:2:0":
            height, width = images.shape[-2:]
            # libjpeg rounds its halves down and up in turns, from column to column, here and there
            small = functional.avg_pool2d(_extend(chroma, 2), 2)
            small = _floor(small + _alternating(small, 0.25, 0.5))
            # "fancy" upsampling weighs the nearest sample 3/4 and the next 1/4 in each direction, as this does
            wide = functional.interpolate(_compress(small, steps), scale_factor=2, mode="bilinear", align_corners=False)
            chroma = _floor(wide + _alternating(wide, 8 / 16, 7 / 16))[..., :height, :width]
        else:
            chroma = _compress(chroma, steps)
        decoded = _round(_to_rgb(torch.cat((luma, chroma), dim=1))).clamp(0, 255)
        return (decoded / 255).to(images.dtype)


def _check_channels(images: Tensor) -> None:
    """Refuse images that a JPEG file cannot hold."""
    if images.shape[1] not in (1, 3):
        raise DegradationError(
            f"JPEG holds images of one channel or of three (RGB); got {images.shape[1]} channels. Compress the colour "
            "channels alone, images[:, :3]."
        )


def _round(values: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return values + (values.round() - values).detach()


def _floor(values: Tensor) -> Tensor:
    """Round down, with the gradient of the identity; what is a whole number except for the last bits stays one."""
    return values + ((values + _TOLERANCE).floor() - values).detach()


def _round_away(values: Tensor) -> Tensor:
    """Round halves away from zero, as libjpeg quantises, with the gradient of the identity."""
    rounded = (values.abs() + 0.5 + _TOLERANCE).floor().copysign(values)
    return values + (rounded - values).detach()


def _alternating(planes: Tensor, even: float, odd: float) -> Tensor:
    """One number for the even columns and another for the odd ones."""
    return torch.where(torch.arange(planes.shape[-1], device=planes.device) % 2 == 0, even, odd).to(planes)


def _to_ycbcr(pixels: Tensor) -> Tensor:
    """Transform RGB to Y, Cb, Cr of JFIF, all in [0, 255]."""
    red, green, blue = pixels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack((luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128), dim=1)


def _to_rgb(planes: Tensor) -> Tensor:
    """Transform Y, Cb, Cr of JFIF to RGB."""
    luma, blue, red = planes[:, 0], planes[:, 1] - 128, planes[:, 2] - 128
    green = luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587
    return torch.stack((luma + 1.402 * red, green, luma + 1.772 * blue), dim=1)


def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Scale a table of quantisation steps as libjpeg does, in whole numbers."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table, device="cpu") * percent + 50) // 100).clamp(1, 255)


def _extend(planes: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples."""
    height, width = planes.shape[-2:]
    return functional.pad(planes, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _compress(planes: Tensor, steps: Tensor) -> Tensor:
    """Quantise the cosine transform of 8x8 blocks; planes in [0, 255], rounded and clipped on return."""
    height, width = planes.shape[-2:]
    place = torch.arange(8, dtype=torch.float64, device="cpu")
    cosines = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    transform, steps = cosines.to(planes), steps.to(planes)
    extended = _extend(planes, 8) - 128
    count, channels, rows, columns = extended.shape
    blocks = extended.view(count, channels, rows // 8, 8, columns // 8, 8).transpose(3, 4)
    # libjpeg's integer arithmetic keeps eighths, so that more of the quotients are halves than there would be
    eighths = _round(8 * (transform @ blocks @ transform.T))
    coefficients = _round_away(eighths / (8 * steps)) * steps
    decoded = (transform.T @ coefficients @ transform).transpose(3, 4).reshape(extended.shape)
    return _floor(decoded[..., :height, :width] + 128.5).clamp(0, 255)
