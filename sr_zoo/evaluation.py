"""How well a network restores: PSNR and SSIM over photographs and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sr_zoo.degradations import Degradation
from sr_zoo.images import to_float
from sr_zoo.metrics import psnr, ssim


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
    height, width = (length - length % scale for length in photograph.shape[-2:])
    reference = to_float(photograph[None, :, :height, :width])
    generator = torch.Generator().manual_seed(seed)
    return degradation(reference, generator), reference


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
        progress: Show a progress bar.

    Returns:
        Input name to ``{"psnr", "ssim", "psnr_luma", "ssim_luma"}``; PSNR in dB.

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> from sr_zoo.models import SRResNet
        >>> photograph = torch.zeros(3, 32, 32, dtype=torch.uint8)
        >>> rows = measure(SRResNet(num_feat=4, num_block=1), [photograph], {"clean": clean_inputs()})
        >>> sorted(rows["clean"])
        ['psnr', 'psnr_luma', 'ssim', 'ssim_luma']
    """
    scale = int(getattr(network, "upscale", 1))
    parameter = next(network.parameters())
    rows: dict[str, dict[str, float]] = {}
    jobs = [(name, index) for name in inputs for index in range(len(photographs))]
    sums: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for name, index in tqdm(jobs, desc="evaluating", unit="image", disable=not progress):
        degraded, reference = degrade_photograph(photographs[index], inputs[name], scale, seed * 100_003 + index)
        restored = network(degraded.to(parameter)).to(reference).clamp(0, 1)
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
