"""Blind super-resolution networks, by the names under which the field knows them."""

from sr_zoo.models.blocks import ResidualBlock
from sr_zoo.models.srcnn_style import SRCNNStyle
from sr_zoo.models.srresnet import SRResNet

__all__ = ["ResidualBlock", "SRCNNStyle", "SRResNet"]
