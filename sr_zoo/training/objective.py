"""What training makes small: the L1 error of the restored image and, with two branches, that of the predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.degradations import STRENGTH_UNITS, Strengths
from sr_zoo.models import DASR, TwoBranch


class Objective(nn.Module):
    """A network together with its loss, so that one forward pass does both, in one process or several.

    A `TwoBranch` network is also asked how strong the degradations were: the mean squared error of its estimates, in
    the units of `STRENGTH_UNITS`, is added with a weight. Both branches learn from one loss. With `DASR` the contrast
    has that weight, and the estimates are a probe that no other part of the network learns from.

    Args:
        network: Maps degraded images to restored ones.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        prediction_weight: Weight of the prediction loss, or of the contrast.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> objective = Objective(SRResNet(num_feat=4, num_block=1), "fp32", 0.1)
        >>> total, losses = objective(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16), {})
        >>> list(losses)
        ['loss']
    """

    def __init__(self, network: nn.Module, precision: str, prediction_weight: float) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.prediction_weight = prediction_weight

    def forward(self, degraded: Tensor, reference: Tensor, strengths: Strengths) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total loss, and its parts: ``"loss"`` (L1), perhaps ``"prediction"`` and ``"contrast"``."""
        degraded = degraded.contiguous(memory_format=torch.channels_last)
        with torch.autocast(degraded.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            if not isinstance(self.network, TwoBranch):
                loss = functional.l1_loss(self.network(degraded).float(), reference)
                return loss, {"loss": loss}
            restored, estimates = self.network.restore_and_estimate(degraded)
            contrast = self.network.contrast(degraded) if isinstance(self.network, DASR) else None
        loss = functional.l1_loss(restored.float(), reference)
        truth = wanted_estimates(self.network, strengths, len(degraded)).to(degraded.device)
        prediction = functional.mse_loss(estimates.float(), truth)
        if contrast is not None:
            total = loss + self.prediction_weight * contrast + prediction
            return total, {"loss": loss, "prediction": prediction, "contrast": contrast}
        return loss + self.prediction_weight * prediction, {"loss": loss, "prediction": prediction}


def wanted_estimates(network: TwoBranch, strengths: Strengths, count: int) -> Tensor:
    """What a two-branch network should have estimated.

    Args:
        network: Says which degradations it predicts.
        strengths: What the degradation did, by name; what is not there did not happen.
        count: Number of images.

    Returns:
        Shape ``(count, len(network.predicts))``, in the units of `STRENGTH_UNITS`.

    Example:
        >>> from sr_zoo.models import DASR, TwoBranch
        >>> network = TwoBranch(num_feat=4, num_block=1, hidden=2, condition=2, predictor_feat=2)
        >>> wanted_estimates(network, {"blur": torch.tensor([2.0, 0.0, 1.0])}, 3)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    absent = torch.zeros(count, device="cpu")
    return torch.stack([strengths.get(name, absent) / STRENGTH_UNITS[name] for name in network.predicts], dim=1)
