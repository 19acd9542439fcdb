"""Quality of a restoration network: PSNR and SSIM over photographs and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sr_zoo.degradations import Degradation, Strengths
from sr_zoo.images import ImageError, check_finite, to_float
from sr_zoo.metrics import psnr, ssim
from sr_zoo.models import image_channels


def degrade_photograph(photograph: Tensor, degradation: Degradation, scale: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make the degraded version of a photograph, cropped to a multiple of the scale.

    Args:
        photograph: ``uint8`` of shape ``(3, H, W)``.
        degradation: What to apply.
        scale: Factor that height and width must be multiples of.
        seed: Seed of the degradation's randomness.

    Returns:
        ``degraded`` of shape ``(1, 3, h, w)`` and ``reference`` of shape ``(1, 3, H', W')``, ``float32`` in [0, 1].

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> degraded, reference = degrade_photograph(
        ...     torch.zeros(3, 33, 48, dtype=torch.uint8), clean_inputs(2), scale=2, seed=0
        ... )
        >>> tuple(degraded.shape), tuple(reference.shape)
        ((1, 3, 16, 24), (1, 3, 32, 48))
    """
    return traced_photograph(photograph, degradation, scale, seed)[:2]


def traced_photograph(
    photograph: Tensor, degradation: Degradation, scale: int, seed: int
) -> tuple[Tensor, Tensor, Strengths]:
    """Degrade a photograph as `degrade_photograph` does, and return the strengths, too.

    Args:
        photograph: ``uint8`` of shape ``(3, H, W)``.
        degradation: What to apply.
        scale: Factor that height and width must be multiples of.
        seed: Seed of the degradation's randomness.

    Returns:
        ``degraded``, ``reference``, and the strengths, as `Degradation.traced` returns them.

    Example:
        >>> from sr_zoo.degradations import GaussianNoise
        >>> traced_photograph(torch.zeros(3, 33, 48, dtype=torch.uint8), GaussianNoise(0.1), scale=2, seed=0)[2]
        {'noise': tensor([0.1000])}
    """
    height, width = (length - length % scale for length in photograph.shape[-2:])
    reference = to_float(photograph[None, :, :height, :width])
    degraded, strengths = degradation.traced(reference, torch.Generator().manual_seed(seed))
    return degraded, reference, strengths


def check_photographs(photographs: Sequence[Tensor], scale: int) -> None:
    """Refuse photographs that cannot be measured on, before any work.

    After cropping to a multiple of the scale and leaving out a border of ``scale`` pixels, one 11x11 window of SSIM
    must remain.

    Args:
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        scale: Upscaling factor of the network.

    Raises:
        ImageError: There is no photograph, or some are too small; their places in the list are named.

    Example:
        >>> check_photographs([torch.zeros(3, 15, 40, dtype=torch.uint8)], scale=2)
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: photographs must be at least 16x16 pixels to measure x2 on; ...
    """
    smallest = 10 + 3 * scale
    if not photographs:
        raise ImageError("at least one photograph is needed to measure a network; got none.")
    small = [
        f"number {index} is {image.shape[-2]}x{image.shape[-1]}"
        for index, image in enumerate(photographs)
        if min(image.shape[-2:]) < smallest
    ]
    if small:
        raise ImageError(
            f"photographs must be at least {smallest}x{smallest} pixels to measure x{scale} on; {', '.join(small[:5])}"
            f"{f' and {len(small) - 5} more' if len(small) > 5 else ''}."
        )


def check_colour(network: nn.Module) -> None:
    """Refuse a network that cannot take photographs as they are, before any work.

    Args:
        network: The network.

    Raises:
        ImageError: It does not map three channels to three.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> check_colour(SRResNet(num_in_ch=1, num_out_ch=1, num_feat=4, num_block=1))
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: photographs have 3 channels, and so must what the network takes and makes; got ...
    """
    channels = image_channels(network)
    if channels != (3, 3):
        raise ImageError(
            f"photographs have 3 channels, and so must what the network takes and makes; got {channels[0]} and "
            f"{channels[1]}. A network of gray images restores them (restore), and nothing else."
        )


@torch.no_grad()
def measure(
    network: nn.Module,
    photographs: Sequence[Tensor],
    inputs: Mapping[str, Degradation],
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Mean PSNR and SSIM of a network over photographs, for every input.

    The output is clipped to [0, 1] and compared without a border of ``upscale`` pixels, on RGB and on luma.
    Noise is drawn per photograph from ``seed`` and the photograph's place in the list.

    Args:
        network: Maps ``(N, 3, h, w)`` to ``(N, 3, upscale * h, upscale * w)``; its train flag is left alone.
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        inputs: Name to degradation.
        seed: Seed of the degradations.
        progress: Show a progress bar in a terminal.

    Returns:
        Input name to ``{"psnr", "ssim", "psnr_luma", "ssim_luma"}``; PSNR in dB.

    Raises:
        ImageError: There is no photograph, or one is too small; see `check_photographs`; or see `check_colour`.
        NonFiniteError: The network puts out values that are no numbers.

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> from sr_zoo.models import SRResNet
        >>> photograph = torch.zeros(3, 32, 32, dtype=torch.uint8)
        >>> rows = measure(SRResNet(num_feat=4, num_block=1), [photograph], {"clean": clean_inputs()})
        >>> sorted(rows["clean"])
        ['psnr', 'psnr_luma', 'ssim', 'ssim_luma']
    """
    scale = int(getattr(network, "upscale", 1))
    check_colour(network)
    check_photographs(photographs, scale)
    parameter = next(network.parameters(), torch.empty(0, device="cpu"))  # a network without weights runs on the CPU
    rows: dict[str, dict[str, float]] = {}
    jobs = [(name, index) for name in inputs for index in range(len(photographs))]
    sums: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for name, index in tqdm(jobs, desc="evaluating", unit="image", disable=None if progress else True):
        degraded, reference = degrade_photograph(photographs[index], inputs[name], scale, seed * 100_003 + index)
        restored = check_finite(network(degraded.to(parameter)).to(reference)).clamp(0, 1)
        sums[name].append(
            torch.cat(
                [
                    metric(restored, reference, border=scale, on_luma=on_luma)
                    for on_luma in (False, True)
                    for metric in (psnr, ssim)
                ]
            )
        )
    for name, values in sums.items():
        mean = torch.stack(values).mean(0).tolist()
        rows[name] = dict(zip(("psnr", "ssim", "psnr_luma", "ssim_luma"), mean, strict=True))
    return rows
