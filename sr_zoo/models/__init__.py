"""Blind super-resolution networks, by the names under which the field knows them."""

from sr_zoo.models.blocks import ResidualBlock, image_channels
from sr_zoo.models.dasr import DASR
from sr_zoo.models.rrdbnet import RRDBNet
from sr_zoo.models.srcnn_style import SRCNNStyle
from sr_zoo.models.srresnet import SRResNet
from sr_zoo.models.two_branch import TwoBranch

__all__ = ["DASR", "RRDBNet", "ResidualBlock", "SRCNNStyle", "SRResNet", "TwoBranch", "image_channels"]
