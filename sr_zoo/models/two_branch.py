"""The two-branch network: one branch predicts the degradation, the other restores what the first one tells it to."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.models.blocks import NEGATIVE_SLOPE, brief, check_sizes, check_upscale, scaled_kaiming_

# brings the details of photographs, a few per cent of the range, near a deviation of 1
_DETAIL_GAIN = 8.0


class Predictor(nn.Module):
    """Tell from degraded images ``(N, C, H, W)`` how they were degraded: a condition ``(N, condition)`` for all pixels.

    It looks at what is left of an image without its mean over 3x3 pixels, since blur, noise and compression show in the
    details; with the whole image it learns more than ten times slower. Four convolutions, then the mean over the
    image, since a degradation is the same everywhere.

    Args:
        num_in_ch: Channels of the degraded image.
        num_feat: Feature channels.
        condition: Numbers that describe a degradation.

    Example:
        >>> import torch
        >>> Predictor(3, 8, 5)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """

    def __init__(self, num_in_ch: int, num_feat: int, condition: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(num_in_ch if place == 0 else num_feat, num_feat, 3, 1, 1) for place in range(4)]
        scaled_kaiming_(convolutions, 1.0)
        self.convolutions = nn.ModuleList(convolutions)
        self.describe = nn.Linear(num_feat, condition)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)

    def features(self, degraded: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, num_feat, H, W)``, of which the mean describes the degradation."""
        features = _DETAIL_GAIN * (degraded - functional.avg_pool2d(degraded, 3, 1, 1, count_include_pad=False))
        for convolution in self.convolutions:
            features = self.lrelu(convolution(features))
        return features

    def forward(self, degraded: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, condition)``."""
        described: Tensor = self.describe(self.features(degraded).mean((2, 3)))
        return described


class SpatialFeatureTransform(nn.Module):
    """Scale and shift every feature at every place: ``f * (1 + gamma) + beta`` with ``gamma, beta`` of ``(f, c)``.

    Two pointwise convolutions see the features together with the condition, stretched over the image. What the first
    makes of the stretched condition is the same everywhere, so it is computed once and added. The second starts at
    zero, so that an untrained transform changes nothing.

    Args:
        channels: Feature channels.
        condition: Numbers that describe a degradation.
        hidden: Channels between the two convolutions.

    Example:
        >>> import torch
        >>> transform = SpatialFeatureTransform(4, condition=5, hidden=3)
        >>> features = torch.rand(2, 4, 8, 8)
        >>> torch.equal(transform(features, torch.rand(2, 5)), features)
        True

    References:
        Wang et al., "Recovering Realistic Texture in Image Super-resolution by Deep Spatial Feature Transform",
        CVPR 2018; stretched degradation codes as in Gu et al. (SFTMD), CVPR 2019, section 3.2.
    """

    def __init__(self, channels: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.of_features = nn.Conv2d(channels, hidden, 1)
        self.of_condition = nn.Linear(condition, hidden, bias=False)
        self.modulate = nn.Conv2d(hidden, 2 * channels, 1)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)
        nn.init.zeros_(self.modulate.weight)
        if self.modulate.bias is not None:
            nn.init.zeros_(self.modulate.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Transform ``(N, channels, H, W)``, given ``(N, condition)``."""
        hidden = self.lrelu(self.of_features(features) + self.of_condition(condition)[:, :, None, None])
        gamma, beta = self.modulate(hidden).chunk(2, dim=1)
        transformed: Tensor = features * (1 + gamma) + beta
        return transformed


class ConditionedBlock(nn.Module):
    """Residual block with a transform before each convolution: ``x + conv2(sft2(relu(conv1(sft1(x)))))``.

    Args:
        channels: Feature channels.
        condition: Numbers that describe a degradation.
        hidden: Channels inside the transforms.

    Example:
        >>> import torch
        >>> ConditionedBlock(4, 5, 3)(torch.rand(2, 4, 8, 8), torch.rand(2, 5)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, channels: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.sft1 = SpatialFeatureTransform(channels, condition, hidden)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.sft2 = SpatialFeatureTransform(channels, condition, hidden)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.relu = nn.ReLU()
        scaled_kaiming_([self.conv1, self.conv2], 0.1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape, given ``(N, condition)``."""
        inner = self.relu(self.conv1(self.sft1(features, condition)))
        result: Tensor = features + self.conv2(self.sft2(inner, condition))
        return result


class TwoBranch(nn.Module):
    """Degradation predictor and conditioned restorer in one network, trained together.

    The restorer is an `SRResNet` whose residual blocks, and what comes after them, are conditioned by spatial feature
    transforms. Both branches see the degraded image; `estimate` reads the strengths of the degradations off the
    condition, so that a prediction loss can teach the predictor what it has to find. Maps ``(N, num_in_ch, H, W)`` in
    [0, 1] to ``(N, num_out_ch, upscale * H, upscale * W)``.

    Args:
        num_in_ch: Channels of the degraded image.
        num_out_ch: Channels of the restored image.
        num_feat: Feature channels of the restorer.
        num_block: Residual blocks of the restorer.
        upscale: Upscaling factor: 2, 3 or 4.
        hidden: Channels inside the transforms.
        condition: Numbers that describe a degradation.
        predictor_feat: Feature channels of the predictor.
        predicts: The degradations whose strength is estimated, by the names of
            `sr_zoo.degradations.STRENGTH_UNITS`.

    Raises:
        ValueError: The factor is not 2, 3 or 4, a size is not a positive whole number, nothing is predicted, or the
            bilinear skip cannot be added because ``num_in_ch`` is neither 1 nor ``num_out_ch``.

    Example:
        >>> import torch
        >>> network = TwoBranch(num_feat=8, num_block=1, hidden=4, condition=4, predictor_feat=4)
        >>> restored, strengths = network.restore_and_estimate(torch.rand(2, 3, 12, 10))
        >>> restored.shape, strengths.shape
        (torch.Size([2, 3, 24, 20]), torch.Size([2, 2]))

    References:
        Gu et al., "Blind Super-Resolution With Iterative Kernel Correction", CVPR 2019: SFTMD is the conditioned
        restorer; instead of correcting the code iteratively, both branches are trained together here.
    """

    _MATCHED: ClassVar[dict[tuple[int, int], dict[str, int]]] = {
        (32, 8): {"num_feat": 32, "num_block": 6, "hidden": 16, "condition": 8, "predictor_feat": 23},
        (64, 16): {"num_feat": 64, "num_block": 13, "hidden": 32, "condition": 8, "predictor_feat": 42},
    }

    # parameters that say what the degradation is, and have no part in the image
    unused_in_restoring: ClassVar[tuple[str, ...]] = ("estimate.*",)

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 13,
        upscale: int = 2,
        hidden: int = 32,
        condition: int = 8,
        predictor_feat: int = 42,
        predicts: tuple[str, ...] = ("blur", "noise"),
    ) -> None:
        check_upscale(upscale)
        check_sizes(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=num_feat,
            num_block=num_block,
            hidden=hidden,
            condition=condition,
            predictor_feat=predictor_feat,
        )
        if num_in_ch not in (1, num_out_ch):
            raise ValueError(f"num_in_ch must be 1 or num_out_ch ({num_out_ch}) for the skip; got {num_in_ch}.")
        if not _are_names(predicts):
            raise ValueError(f"predicts must name at least one degradation, in a tuple; got {brief(predicts)}.")
        super().__init__()
        self.upscale = upscale
        self.num_in_ch, self.num_out_ch = num_in_ch, num_out_ch
        self.predicts = tuple(predicts)
        self.predictor = Predictor(num_in_ch, predictor_feat, condition)
        self.estimate = nn.Linear(condition, len(self.predicts))
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self._add_body(num_feat, num_block, condition, hidden)
        factor = 2 if upscale == 4 else upscale
        self.upconv1 = nn.Conv2d(num_feat, num_feat * factor**2, 3, 1, 1)
        if upscale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * factor**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)
        outer = [self.conv_first, self.upconv1, self.conv_hr, self.conv_last]
        scaled_kaiming_([*outer, self.upconv2] if upscale == 4 else outer, 0.1)

    @classmethod
    def matched_arguments(cls, num_feat: int, num_block: int) -> dict[str, Any]:
        """Sizes that cost what an `SRResNet` of given sizes does.

        Parameters differ by less than 1%, and so do the multiply-adds of `TwoBranch` (those of `DASR` are 8 to 9%
        fewer); the one-branch network spends in its body what goes into the predictor and the transforms here.

        Args:
            num_feat: Feature channels of the one-branch network.
            num_block: Its residual blocks.

        Returns:
            Keyword arguments of the constructor.

        Raises:
            ValueError: There is no match for these sizes yet; those that have one are named.

        Example:
            >>> TwoBranch.matched_arguments(32, 8)["num_block"]
            6
        """
        if (num_feat, num_block) not in cls._MATCHED:
            known = ", ".join(f"{features} and {blocks}" for features, blocks in cls._MATCHED)
            raise ValueError(
                f"{cls.__name__} has sizes that cost what an SRResNet does for features and blocks {known}; got "
                f"{num_feat} and {num_block}."
            )
        return dict(cls._MATCHED[num_feat, num_block])

    def forward(self, degraded: Tensor) -> Tensor:
        """Restore ``(N, C, H, W)`` to ``(N, C, upscale * H, upscale * W)``, as the predictor sees fit."""
        return self.restore(degraded, self.predictor(degraded))

    def restore_and_estimate(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """Restore, and say how strong the degradations are.

        Args:
            degraded: Images of shape ``(N, C, H, W)``.

        Returns:
            The restored images, and the strengths of shape ``(N, len(predicts))`` in the units of
            `sr_zoo.degradations.STRENGTH_UNITS`.
        """
        condition = self.predictor(degraded)
        return self.restore(degraded, condition), self.estimate(condition)

    def restore(self, degraded: Tensor, condition: Tensor) -> Tensor:
        """Restore images under a condition that is given.

        Args:
            degraded: Images of shape ``(N, C, H, W)``.
            condition: What the predictor says, or would say, of shape ``(N, condition)``.

        Returns:
            Shape ``(N, C, upscale * H, upscale * W)``.
        """
        features = self._through_body(self.lrelu(self.conv_first(degraded)), condition)
        features = self.lrelu(self.pixel_shuffle(self.upconv1(features)))
        if self.upscale == 4:
            features = self.lrelu(self.pixel_shuffle(self.upconv2(features)))
        residual: Tensor = self.conv_last(self.lrelu(self.conv_hr(features)))
        return residual + functional.interpolate(
            degraded, scale_factor=self.upscale, mode="bilinear", align_corners=False
        )

    def _add_body(self, num_feat: int, num_block: int, condition: int, hidden: int) -> None:
        """Build what the condition acts on."""
        self.body = nn.ModuleList(ConditionedBlock(num_feat, condition, hidden) for _ in range(num_block))
        self.sft_last = SpatialFeatureTransform(num_feat, condition, hidden)

    def _through_body(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map ``(N, num_feat, H, W)`` to the same shape, given ``(N, condition)``."""
        for block in self.body:
            features = block(features, condition)
        transformed: Tensor = self.sft_last(features, condition)
        return transformed


def _are_names(predicts: object) -> bool:
    """Whether a value names degradations, each once; a file may hold anything."""
    listed = list(predicts) if isinstance(predicts, list | tuple) else []
    return bool(listed) and all(isinstance(name, str) for name in listed) and len(set(listed)) == len(listed)
