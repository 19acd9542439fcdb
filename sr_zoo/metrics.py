"""PSNR and SSIM between images in [0, 1], on RGB or on luma.

``PSNR = -10 log10(mean((x - y)^2))`` in dB; SSIM as in Wang et al. (IEEE TIP 2004, equation 13) with an 11x11 Gaussian
window of 1.5 pixels and population covariances.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (65.481, 128.553, 24.966)


def luma(images: Tensor) -> Tensor:
    """ITU-R BT.601 luma in studio range, as the super-resolution literature evaluates.

    Args:
        images: RGB of shape ``(N, 3, H, W)`` in [0, 1].

    Returns:
        Shape ``(N, 1, H, W)``, from 16/255 (black) to 235/255 (white).

    Raises:
        ValueError: The images do not have three channels.

    Example:
        >>> luma(torch.ones(1, 3, 1, 1)).mul(255).round().item()
        235.0
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"luma needs RGB images of shape (N, 3, H, W); got {tuple(images.shape)}.")
    coefficients = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return (torch.einsum("nchw,c->nhw", images, coefficients)[:, None] + 16) / 255


def _prepared(restored: Tensor, reference: Tensor, border: int, on_luma: bool) -> tuple[Tensor, Tensor]:
    """Check, convert to float64 and crop a pair."""
    if restored.shape != reference.shape or restored.ndim != 4:
        raise ValueError(
            "restored and reference must have the same shape (N, C, H, W); got "
            f"{tuple(restored.shape)} and {tuple(reference.shape)}."
        )
    if not restored.is_floating_point() or not reference.is_floating_point():
        raise ValueError(
            f"restored and reference must be floating in [0, 1]; got {restored.dtype} and {reference.dtype}. Divide "
            "8-bit pixels by 255."
        )
    if border < 0 or min(restored.shape[-2:]) <= 2 * border:
        raise ValueError(
            "images must be larger than twice the border, which must not be negative; got "
            f"{tuple(restored.shape)} with border {border}."
        )
    pair = (restored.to(torch.float64), reference.to(torch.float64))
    if on_luma:
        pair = (luma(pair[0]), luma(pair[1]))
    if border:
        pair = (
            pair[0][..., border:-border, border:-border],
            pair[1][..., border:-border, border:-border],
        )
    return pair


def psnr(restored: Tensor, reference: Tensor, *, border: int = 0, on_luma: bool = False) -> Tensor:
    """Peak signal-to-noise ratio of every image of a batch, in dB.

    Args:
        restored: Shape ``(N, C, H, W)``, values in [0, 1].
        reference: The same shape.
        border: Pixels to leave out on every side; the literature uses the upscaling factor.
        on_luma: Compare BT.601 luma instead of RGB.

    Returns:
        ``float64`` of shape ``(N,)``; infinite for identical images.

    Raises:
        ValueError: The shapes differ, the values are no floating numbers, or the border leaves nothing.

    Example:
        >>> psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)).round(decimals=4)
        tensor([20.], dtype=torch.float64)
    """
    first, second = _prepared(restored, reference, border, on_luma)
    return -10 * torch.log10((first - second).square().mean((1, 2, 3)))


def ssim(restored: Tensor, reference: Tensor, *, border: int = 0, on_luma: bool = False) -> Tensor:
    """Structural similarity of every image of a batch, averaged over pixels and channels.

    Args:
        restored: Shape ``(N, C, H, W)``, values in [0, 1], at least 11x11 after the crop.
        reference: The same shape.
        border: Pixels to leave out on every side.
        on_luma: Compare BT.601 luma instead of RGB.

    Returns:
        ``float64`` of shape ``(N,)``, at most 1.

    Raises:
        ValueError: The shapes differ, the values are no floating numbers, or less than one 11x11 window is left.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> ssim(image, image).round(decimals=6)
        tensor([1.], dtype=torch.float64)
    """
    first, second = _prepared(restored, reference, border, on_luma)
    if min(first.shape[-2:]) < 11:
        raise ValueError(
            f"SSIM needs images of at least 11x11 pixels; got {tuple(first.shape)} without the border of {border}."
        )
    channels = first.shape[1]
    offsets = torch.arange(-5, 6, dtype=first.dtype, device=first.device)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, -1)

    def local_mean(images: Tensor) -> Tensor:
        rows = functional.conv2d(images, window, groups=channels)
        return functional.conv2d(rows, window.transpose(2, 3), groups=channels)

    mean_x, mean_y = local_mean(first), local_mean(second)
    variance_x = local_mean(first * first) - mean_x**2
    variance_y = local_mean(second * second) - mean_y**2
    covariance = local_mean(first * second) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return similarity.mean((1, 2, 3))
