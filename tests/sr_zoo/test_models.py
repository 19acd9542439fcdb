"""Names, shapes, kernels and arithmetic of the published networks, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from sr_zoo.models import ResidualBlock, SRCNNStyle, SRResNet

SRCNN_X2 = {
    "features.0": (64, 3),
    "features.2": (128, 64),
    "features.4": (128, 128),
    "features.6": (128, 128),
    "features.8": (128, 128),
    "features.10": (128, 128),
    "features.12": (512, 128),
    "features.15": (128, 128),
    "features.17": (3, 128),
}
SRCNN_X3 = {**SRCNN_X2, "features.12": (1152, 128)}
SRCNN_X4 = {
    "features.0": (64, 3),
    "features.2": (128, 64),
    "features.4": (128, 128),
    "features.6": (128, 128),
    "features.8": (128, 128),
    "features.10": (128, 128),
    "features.12": (512, 128),
    "features.15": (512, 128),
    "features.18": (128, 128),
    "features.20": (3, 128),
}
BODY = {f"body.{block}.{layer}": (64, 64) for block in range(16) for layer in ("conv1", "conv2")}
SRRESNET_X2 = {
    "conv_first": (64, 3),
    **BODY,
    "upconv1": (256, 64),
    "conv_hr": (64, 64),
    "conv_last": (3, 64),
}
SRRESNET_X3 = {**SRRESNET_X2, "upconv1": (576, 64)}
SRRESNET_X4 = {
    "conv_first": (64, 3),
    **BODY,
    "upconv1": (256, 64),
    "upconv2": (256, 64),
    "conv_hr": (64, 64),
    "conv_last": (3, 64),
}
PUBLISHED = [
    (SRCNNStyle, 2, SRCNN_X2, 156_224),
    (SRCNNStyle, 3, SRCNN_X3, 238_144),
    (SRCNNStyle, 4, SRCNN_X4, 221_760),
    (SRResNet, 2, SRRESNET_X2, 151_936),
    (SRResNet, 3, SRRESNET_X3, 172_416),
    (SRResNet, 4, SRRESNET_X4, 168_320),
]
published = pytest.mark.parametrize(
    ("network_class", "upscale", "layers", "kernels"),
    PUBLISHED,
    ids=[f"{network.__name__}-x{scale}" for network, scale, _, _ in PUBLISHED],
)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@published
def test_names_shapes_and_order_are_the_published_ones(network_class, upscale, layers, kernels):  # noqa: ARG001
    expected = {}
    for name, (out_channels, in_channels) in layers.items():
        expected[f"{name}.weight"] = (out_channels, in_channels, 3, 3)
        expected[f"{name}.bias"] = (out_channels,)
    assert list(shapes(network_class(upscale=upscale)).items()) == list(expected.items())


@published
def test_the_number_of_kernels(network_class, upscale, layers, kernels):
    network = network_class(upscale=upscale)
    counted = sum(weight.shape[0] * weight.shape[1] for weight in network.parameters() if weight.ndim == 4)
    assert counted == kernels == sum(out * channels for out, channels in layers.values())


@pytest.mark.parametrize("network_class", [SRCNNStyle, SRResNet])
@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_image_grows_by_the_factor(network_class, upscale, rng):
    network = network_class(upscale=upscale)
    assert network.upscale == upscale
    with torch.no_grad():
        assert network(torch.rand(2, 3, 5, 7, generator=rng)).shape == (2, 3, 5 * upscale, 7 * upscale)


def convolve(state, name, images):
    return functional.conv2d(images, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)


def leaky(images):
    return torch.where(images > 0, images, 0.1 * images)


def shuffle(images, factor):
    """Sub-pixel upsampling, index by index: channel ``c f^2 + i f + j`` goes to row ``i``, column ``j`` of a cell."""
    count, channels, height, width = images.shape
    result = images.new_zeros(count, channels // factor**2, height * factor, width * factor)
    for row in range(factor):
        for column in range(factor):
            result[:, :, row::factor, column::factor] = images[:, row * factor + column :: factor**2]
    return result


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_srresnet_computes_what_msrresnet_does(upscale, rng):
    network = SRResNet(num_feat=6, num_block=2, upscale=upscale).double()
    for parameter in network.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    state = network.state_dict()
    degraded = torch.rand(2, 3, 6, 5, generator=rng).double()
    features = leaky(convolve(state, "conv_first", degraded))
    for block in range(2):
        inner = torch.relu(convolve(state, f"body.{block}.conv1", features))
        features = features + convolve(state, f"body.{block}.conv2", inner)
    for layer, factor in {2: [("upconv1", 2)], 3: [("upconv1", 3)], 4: [("upconv1", 2), ("upconv2", 2)]}[upscale]:
        features = leaky(shuffle(convolve(state, layer, features), factor))
    residual = convolve(state, "conv_last", leaky(convolve(state, "conv_hr", features)))
    skip = functional.interpolate(degraded, scale_factor=upscale, mode="bilinear", align_corners=False)
    assert_close(network(degraded), residual + skip, rtol=0, atol=1e-12)


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_srcnn_style_computes_what_the_published_one_does(upscale, rng):
    network = SRCNNStyle(upscale=upscale).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    state = network.state_dict()
    features = degraded = torch.rand(1, 3, 4, 5, generator=rng).double()
    for index in (0, 2, 4, 6, 8, 10):
        features = leaky(convolve(state, f"features.{index}", features))
    for index, factor in {2: [(12, 2)], 3: [(12, 3)], 4: [(12, 2), (15, 2)]}[upscale]:
        features = leaky(shuffle(convolve(state, f"features.{index}", features), factor))
    last = 15 if upscale != 4 else 18
    features = leaky(convolve(state, f"features.{last}", features))
    assert_close(network(degraded), convolve(state, f"features.{last + 2}", features), rtol=0, atol=1e-10)


def test_srresnet_of_zero_weights_is_bilinear_interpolation(rng):
    network = SRResNet(num_feat=4, num_block=1)
    for parameter in network.parameters():
        parameter.data.zero_()
    degraded = torch.rand(1, 3, 6, 6, generator=rng)
    expected = functional.interpolate(degraded, scale_factor=2, mode="bilinear", align_corners=False)
    assert_close(network(degraded), expected, rtol=0, atol=0)


def test_no_activation_is_in_place():
    for network in (SRResNet(num_feat=4, num_block=1), SRCNNStyle()):
        assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("network_class", [SRCNNStyle, SRResNet])
def test_the_global_seed_decides_the_first_weights(network_class):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(network_class().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_first_weights_have_the_published_spread():
    torch.manual_seed(0)
    state = SRResNet().state_dict()
    assert_close(state["body.3.conv1.weight"].std().item(), 0.1 * (2 / (64 * 9)) ** 0.5, rtol=0.02, atol=0)
    state = SRCNNStyle().state_dict()
    assert_close(state["features.4.weight"].std().item(), (2 / (128 * 9)) ** 0.5, rtol=0.02, atol=0)
    assert_close(state["features.0.weight"].std().item(), (2 / (64 * 9)) ** 0.5, rtol=0.1, atol=0)
    assert not any(value.any() for name, value in state.items() if name.endswith("bias"))


def test_a_residual_block_adds_to_its_input(rng):
    block = ResidualBlock(4)
    block.conv2.weight.data.zero_()
    features = torch.randn(1, 4, 5, 5, generator=rng)
    assert_close(block(features), features, rtol=0, atol=0)


@pytest.mark.parametrize("network_class", [SRCNNStyle, SRResNet])
@pytest.mark.parametrize("upscale", [1, 5, 0, -2])
def test_factors_without_a_published_network_are_refused(network_class, upscale):
    with pytest.raises(ValueError, match=rf"upscale must be one of 2, 3, 4; got {upscale}"):
        network_class(upscale=upscale)


def test_sizes_that_are_none_are_all_named():
    with pytest.raises(ValueError, match=r"positive whole numbers; got num_feat=0, num_block=1\.5"):
        SRResNet(num_feat=0, num_block=1.5)


def test_channels_that_the_skip_cannot_add_are_refused():
    with torch.no_grad():
        assert SRResNet(1, 3, num_feat=4, num_block=1)(torch.rand(1, 1, 4, 4)).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"num_in_ch must be 1 or num_out_ch \(1\) for the skip; got 3"):
        SRResNet(num_in_ch=3, num_out_ch=1)
