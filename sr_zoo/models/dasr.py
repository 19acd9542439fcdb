"""The contrastive two-branch network: what a degradation is, is learned by telling images apart, without labels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.models.blocks import NEGATIVE_SLOPE, scaled_kaiming_
from sr_zoo.models.two_branch import TwoBranch

_TEMPERATURE = 0.07  # of He et al., CVPR 2020, which the paper follows


class DegradationAwareConvolution(nn.Module):
    """Convolve with kernels that the condition makes, and weigh channels as it says: ``pointwise(k * f) + a f``.

    The depthwise 3x3 kernels ``k`` and the channel weights ``a`` in (0, 1) are functions of the condition, one set for
    each image of the batch.

    Args:
        channels: Feature channels.
        condition: Numbers that describe a degradation.
        hidden: Numbers between condition and kernels.

    Example:
        >>> layer = DegradationAwareConvolution(4, condition=5, hidden=3)
        >>> layer(torch.rand(2, 4, 8, 8), torch.rand(2, 5)).shape
        torch.Size([2, 4, 8, 8])

    References:
        Wang et al., "Unsupervised Degradation Representation Learning for Blind Super-Resolution", CVPR 2021,
        section 3.3.
    """

    def __init__(self, channels: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.kernels = nn.Sequential(
            nn.Linear(condition, hidden), nn.LeakyReLU(NEGATIVE_SLOPE), nn.Linear(hidden, 9 * channels)
        )
        self.attention = nn.Sequential(
            nn.Linear(condition, hidden), nn.LeakyReLU(NEGATIVE_SLOPE), nn.Linear(hidden, channels), nn.Sigmoid()
        )
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape, given ``(N, condition)``."""
        images, channels, height, width = features.shape
        count = images * channels
        kernels = self.kernels(condition).reshape(count, 1, 3, 3)
        # every image has kernels of its own: one group for each channel of each image
        spread = functional.conv2d(features.reshape(1, count, height, width), kernels, padding=1, groups=count)
        mixed = self.pointwise(self.lrelu(spread.reshape(features.shape)))
        result: Tensor = mixed + features * self.attention(condition)[:, :, None, None]
        return result


class DegradationAwareBlock(nn.Module):
    """Residual block with two degradation-aware convolutions: ``x + conv2(r(aware2(r(conv1(r(aware1(x)))))))``.

    Args:
        channels: Feature channels.
        condition: Numbers that describe a degradation.
        hidden: Numbers between condition and kernels.

    Example:
        >>> DegradationAwareBlock(4, 5, 3)(torch.rand(2, 4, 8, 8), torch.rand(2, 5)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, channels: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.aware1 = DegradationAwareConvolution(channels, condition, hidden)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.aware2 = DegradationAwareConvolution(channels, condition, hidden)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)
        scaled_kaiming_([self.conv1, self.conv2], 0.1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape, given ``(N, condition)``."""
        inner = self.lrelu(self.conv1(self.lrelu(self.aware1(features, condition))))
        result: Tensor = features + self.conv2(self.lrelu(self.aware2(inner, condition)))
        return result


class DASR(TwoBranch):
    """Two branches of which the first learns by contrast what a degradation is, without being told.

    The left and the right half of one image share their degradation, halves of different images do not: `contrast`
    is small if the predictor describes the first alike and the others differently. The second branch is an `SRResNet`
    whose blocks convolve with kernels made of that description. `estimate` is a linear probe: it reads strengths off
    the condition and teaches the predictor nothing. Maps ``(N, num_in_ch, H, W)`` in [0, 1] to
    ``(N, num_out_ch, upscale * H, upscale * W)``.

    The published network is larger (64 features, 25 blocks, 256 numbers a degradation), crops two patches of each
    image instead of halving one, and compares with a queue of 8,192 earlier ones; in a batch of 16 there are 15.

    Args:
        condition: Numbers that describe a degradation.
        **arguments: Of `TwoBranch`; ``hidden`` are the numbers between the condition and the kernels.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = DASR(condition=4, num_feat=8, num_block=1, hidden=4, predictor_feat=4)
        >>> network(torch.rand(2, 3, 12, 10)).shape, network.contrast(torch.rand(2, 3, 12, 10)).shape
        (torch.Size([2, 3, 24, 20]), torch.Size([]))

    References:
        Wang et al., "Unsupervised Degradation Representation Learning for Blind Super-Resolution", CVPR 2021.
    """

    # as many parameters as the SRResNet, within .3%, and 8 to 9% fewer multiply-adds: kernels are made once an image
    _MATCHED: ClassVar[dict[tuple[int, int], dict[str, int]]] = {
        (32, 8): {"num_feat": 32, "num_block": 5, "hidden": 4, "condition": 16, "predictor_feat": 29},
        (64, 16): {"num_feat": 64, "num_block": 12, "hidden": 8, "condition": 16, "predictor_feat": 37},
    }

    unused_in_restoring: ClassVar[tuple[str, ...]] = ("estimate.*", "project.*")

    def __init__(self, condition: int = 16, **arguments: Any) -> None:
        super().__init__(condition=condition, **arguments)
        self.project = nn.Sequential(
            nn.Linear(condition, 2 * condition), nn.LeakyReLU(NEGATIVE_SLOPE), nn.Linear(2 * condition, condition)
        )

    def restore_and_estimate(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """See `TwoBranch.restore_and_estimate`; no gradient flows from the estimates into the predictor."""
        condition = self.predictor(degraded)
        return self.restore(degraded, condition), self.estimate(condition.detach())

    def contrast(self, degraded: Tensor) -> Tensor:
        r"""Compute the contrastive loss of a batch, equation 1 of the paper with negatives from the batch.

        .. math:: -\frac{1}{2N} \sum_{i} \log \frac{e^{q_i \cdot k_i / \tau}}{\sum_j e^{q_i \cdot k_j / \tau}}
           + (q \leftrightarrow k), \quad \tau = .07

        Args:
            degraded: Images of shape ``(N, C, H, W)``, N at least 2, W at least 2.

        Returns:
            The loss; :math:`\log N` if all descriptions are alike.

        Raises:
            ValueError: There are fewer than two images or columns.
        """
        images, width = len(degraded), degraded.shape[-1]
        if images < 2 or width < 2:
            raise ValueError(
                f"a contrast needs at least two images, of at least two columns; got shape {tuple(degraded.shape)}."
            )
        halves = torch.cat([degraded[..., : width // 2], degraded[..., width - width // 2 :]])
        described = functional.normalize(self.project(self.predictor(halves)).float(), dim=1)
        alike = described[:images] @ described[images:].T / _TEMPERATURE
        own = torch.arange(images, device=degraded.device)
        return (functional.cross_entropy(alike, own) + functional.cross_entropy(alike.T, own)) / 2

    def _add_body(self, num_feat: int, num_block: int, condition: int, hidden: int) -> None:
        self.body = nn.ModuleList(DegradationAwareBlock(num_feat, condition, hidden) for _ in range(num_block))
        self.last = DegradationAwareConvolution(num_feat, condition, hidden)

    def _through_body(self, features: Tensor, condition: Tensor) -> Tensor:
        for block in self.body:
            features = block(features, condition)
        result: Tensor = self.last(features, condition)
        return result
