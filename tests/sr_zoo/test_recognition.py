"""Checkpoints of other projects: the published layouts are told by names and shapes, opened, run, and attributed."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from filterattr import FilterAttributor
from sr_zoo import pretrained
from sr_zoo.models import RRDBNet, SRCNNStyle, SRResNet
from sr_zoo.pretrained import WeightsError, load_checkpoint, load_network, open_checkpoint, open_network, save_network
from sr_zoo.recognition import recognise
from sr_zoo.samples import squared_error


def saved(path, state):
    torch.save({"params_ema": state}, path)
    return path


def convolution(state, name, out_channels, in_channels, rng, size=3):
    state[f"{name}.weight"] = 0.2 * torch.randn(out_channels, in_channels, size, size, generator=rng)
    state[f"{name}.bias"] = 0.1 * torch.randn(out_channels, generator=rng)


def msrresnet_state(rng, upscale, features=8, blocks=3):
    """The names of BasicSR's MSRResNet, written out."""
    state = {}
    convolution(state, "conv_first", features, 3, rng)
    for block in range(blocks):
        for layer in ("conv1", "conv2"):
            convolution(state, f"body.{block}.{layer}", features, features, rng)
    convolution(state, "upconv1", features * (9 if upscale == 3 else 4), features, rng)
    if upscale == 4:
        convolution(state, "upconv2", features * 4, features, rng)
    convolution(state, "conv_hr", features, features, rng)
    convolution(state, "conv_last", 3, features, rng)
    return state


def rrdbnet_state(rng, fold=1, features=8, blocks=2, growth=4):
    """The names of BasicSR's and Real-ESRGAN's RRDBNet, written out."""
    state = {}
    convolution(state, "conv_first", features, 3 * fold**2, rng)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for layer in range(1, 6):
                out = features if layer == 5 else growth
                convolution(state, f"body.{block}.rdb{dense}.conv{layer}", out, features + (layer - 1) * growth, rng)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        convolution(state, name, features, features, rng)
    convolution(state, "conv_last", 3, features, rng)
    return state


def old_names(state):
    """The names of the first ESRGAN for the same layers."""
    renamed = {}
    for name, value in state.items():
        new = name.replace("body.", "RRDB_trunk.").replace("rdb", "RDB").replace("conv_RRDB_trunk", "trunk_conv")
        new = new.replace("conv_body", "trunk_conv").replace("conv_up", "upconv").replace("conv_hr", "HRconv")
        renamed[new] = value
    return renamed


def literal_rrdbnet(state, degraded, fold):
    """The published forward pass, in functions."""

    def conv(name, features):
        return functional.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def leaky(features):
        return functional.leaky_relu(features, 0.2)

    features = first = conv("conv_first", functional.pixel_unshuffle(degraded, fold))
    for block in range(2):
        entered = features
        for dense in (1, 2, 3):
            name = f"body.{block}.rdb{dense}.conv"
            parts = [features]
            for layer in range(1, 5):
                parts.append(leaky(conv(f"{name}{layer}", torch.cat(parts, 1))))
            features = features + 0.2 * conv(f"{name}5", torch.cat(parts, 1))
        features = entered + 0.2 * features
    features = first + conv("conv_body", features)
    for name in ("conv_up1", "conv_up2"):
        features = leaky(conv(name, features.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", leaky(conv("conv_hr", features)))


class TestSRResNet:
    @pytest.mark.parametrize("upscale", [2, 3, 4])
    def test_a_checkpoint_of_basicsr_opens_runs_and_can_be_attributed(self, tmp_path, rng, upscale):
        state = msrresnet_state(rng, upscale)
        network = open_checkpoint(saved(tmp_path / "net_g.pth", state))
        assert isinstance(network, SRResNet)
        assert not network.training
        assert network.upscale == upscale
        degraded = torch.rand(1, 3, 6, 7, generator=rng)
        assert network(degraded).shape == (1, 3, 6 * upscale, 7 * upscale)
        assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
        base = {name: 0.9 * value for name, value in state.items()}
        pair = (degraded, torch.rand(1, 3, 6 * upscale, 7 * upscale, generator=rng))
        attribution = FilterAttributor(network).attribute(base, network, squared_error, [pair], n_steps=4)
        assert attribution.completeness_error < 0.05

    def test_the_full_size_is_told(self):
        with torch.device("meta"):
            state = SRResNet(upscale=4).state_dict()
        name, arguments, _ = recognise(state)
        assert (name, arguments["num_feat"], arguments["num_block"], arguments["upscale"]) == ("srresnet", 64, 16, 4)


def sequential_names(state):
    """The names of the very first ESRGAN, whose layers were numbered, by the published table of both names."""
    table = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    table["conv_last"] = "10"
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in table:
            renamed[f"model.{table[layer]}.{kind}"] = value
        else:
            _, block, dense, convolution = layer.split(".")
            renamed[f"model.1.sub.{block}.{dense.upper()}.{convolution}.0.{kind}"] = value
    return renamed


class TestNamesOfOthers:
    @pytest.mark.parametrize("upscale", [2, 3, 4])
    def test_the_first_msrresnet_called_its_layers_otherwise(self, tmp_path, rng, upscale):
        state = msrresnet_state(rng, upscale)
        old = {name.replace("body.", "recon_trunk.").replace("conv_hr", "HRconv"): v for name, v in state.items()}
        network = open_network(saved(tmp_path / "MSRResNet.pth", old))
        assert isinstance(network, SRResNet)
        assert network.upscale == upscale
        assert_close(dict(network.state_dict()), state, rtol=0, atol=0)

    def test_the_very_first_esrgan_numbered_its_layers(self, tmp_path, rng):
        state = rrdbnet_state(rng)
        network = open_network(saved(tmp_path / "old_arch.pth", sequential_names(state)))
        assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
        degraded = torch.rand(1, 3, 8, 8, generator=rng)
        assert_close(network(degraded), literal_rrdbnet(state, degraded, 1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("prefix", ["net_g.", "generator.", "model.", "module.", "netG.module.", "a.b.c."])
    @pytest.mark.parametrize("make", [lambda rng: msrresnet_state(rng, 2), rrdbnet_state], ids=["srresnet", "rrdb"])
    def test_a_generator_is_found_beside_other_networks(self, tmp_path, rng, prefix, make):
        state = make(rng)
        whole = {prefix + name: value for name, value in state.items()}
        if prefix != "module.":
            whole |= {"net_d.conv0.weight": torch.zeros(2, 3, 3, 3), "vgg.features.0.weight": torch.zeros(4, 3, 3, 3)}
        network = open_network(saved(tmp_path / "gan.pth", whole))
        assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
        given = type(network)(**recognise(state)[1])
        load_checkpoint(given, tmp_path / "gan.pth")
        assert_close(dict(given.state_dict()), state, rtol=0, atol=0)

    def test_of_a_generator_and_its_average_the_average_is_taken(self, tmp_path, rng):
        state, average = msrresnet_state(rng, 2), msrresnet_state(rng, 2)
        both = {f"generator.{name}": value for name, value in state.items()}
        both |= {f"generator_ema.{name}": value for name, value in average.items()}
        network = open_network(saved(tmp_path / "gan.pth", both))
        assert_close(dict(network.state_dict()), average, rtol=0, atol=0)
        chosen = open_network(tmp_path / "gan.pth", key="generator")
        assert_close(dict(chosen.state_dict()), state, rtol=0, atol=0)

    def test_several_networks_that_nothing_tells_apart_are_refused(self, tmp_path, rng):
        states = {f"{part}.{name}": v for part in ("x", "y") for name, v in msrresnet_state(rng, 2).items()}
        path = saved(tmp_path / "two.pth", states)
        with pytest.raises(WeightsError, match="those of several networks, 'x' and 'y': choose one with key="):
            open_network(path)
        assert open_network(path, key="y").upscale == 2


class TestRRDBNet:
    @pytest.mark.parametrize(("fold", "upscale"), [(1, 4), (2, 2), (4, 1)])
    @pytest.mark.parametrize("old", [False, True])
    def test_a_published_checkpoint_opens_and_computes_the_published_function(self, tmp_path, rng, fold, upscale, old):
        state = rrdbnet_state(rng, fold)
        network = open_checkpoint(saved(tmp_path / "esrgan.pth", old_names(state) if old else state))
        assert isinstance(network, RRDBNet)
        assert network.upscale == upscale
        degraded = torch.rand(2, 3, 8, 12, generator=rng)
        expected = literal_rrdbnet(state, degraded, fold)
        assert expected.shape == (2, 3, 8 * upscale, 12 * upscale)
        assert_close(network(degraded), expected, rtol=1e-5, atol=1e-5)

    def test_the_full_size_has_the_published_number_of_parameters(self):
        with torch.device("meta"):
            network = RRDBNet()
        assert sum(parameter.numel() for parameter in network.parameters()) == 16_697_987
        assert recognise(network.state_dict())[1] == {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 64,
            "num_block": 23,
            "num_grow_ch": 32,
            "upscale": 4,
        }

    def test_images_that_do_not_fold_are_extended_and_cut_again(self, rng):
        network = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, upscale=2)
        degraded = torch.rand(1, 3, 7, 9, generator=rng)
        found = network(degraded)
        assert found.shape == (1, 3, 14, 18)
        extended = functional.pad(degraded, (0, 1, 0, 1), mode="replicate")
        assert_close(found, network(extended)[..., :14, :18], rtol=0, atol=0)

    def test_it_is_stored_like_the_others(self, tmp_path, rng):
        arguments = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "upscale": 2}
        network = RRDBNet(**arguments)
        save_network(tmp_path / "a.safetensors", "rrdbnet", arguments, network.state_dict(), {})
        degraded = torch.rand(1, 3, 8, 8, generator=rng)
        assert_close(load_network(tmp_path / "a.safetensors")(degraded), network(degraded), rtol=0, atol=0)

    def test_other_factors_are_refused(self):
        with pytest.raises(ValueError, match="upscale must be one of 1, 2, 4; got 3"):
            RRDBNet(upscale=3)


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_srcnn_style_network_is_told_by_its_last_layers(tmp_path, upscale, monkeypatch):
    monkeypatch.setattr("sr_zoo.models.srcnn_style._WIDTHS", (4, 8, 8, 8, 8, 8))
    network = SRCNNStyle(upscale)
    opened = open_checkpoint(saved(tmp_path / "net_g.pth", network.state_dict()))
    assert isinstance(opened, SRCNNStyle)
    assert opened.upscale == upscale


class TestOpening:
    def test_one_call_opens_every_kind(self, tmp_path, rng):
        from safetensors.torch import save_file

        arguments = {"num_feat": 8, "num_block": 3, "upscale": 2}
        state = msrresnet_state(rng, 2)
        save_network(tmp_path / "own.safetensors", "srresnet", arguments, state, {})
        save_file(state, tmp_path / "foreign.safetensors")
        saved(tmp_path / "foreign.pth", state)
        degraded = torch.rand(1, 3, 6, 6, generator=rng)
        outputs = [
            open_network(tmp_path / name)(degraded)
            for name in ("own.safetensors", "foreign.safetensors", "foreign.pth")
        ]
        assert_close(outputs[1], outputs[0], rtol=0, atol=0)
        assert_close(outputs[2], outputs[0], rtol=0, atol=0)

    def test_shipped_weights_open_by_name(self):
        for name in pretrained.shipped_weights()[:1]:
            assert open_network(name).upscale == 2

    def test_a_damaged_file_of_ours_is_not_taken_for_a_foreign_one(self, tmp_path, rng):
        path = tmp_path / "own.safetensors"
        save_network(path, "srresnet", {"num_feat": 8, "num_block": 3, "upscale": 2}, msrresnet_state(rng, 2), {})
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(Exception, match="damaged"):
            open_network(path)

    def test_what_nobody_knows_is_refused_with_the_way_to_know_more(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "spandrel", None)
        path = saved(tmp_path / "a.pth", nn.Linear(2, 2).state_dict())
        with pytest.raises(WeightsError, match=r"holds none of srresnet.*cannot be imported.*pip install spandrel"):
            open_checkpoint(path)

    def test_a_checkpoint_that_only_begins_like_one_of_ours_is_refused(self, tmp_path, rng):
        state = msrresnet_state(rng, 2)
        state["conv_extra.weight"] = torch.zeros(1)
        with pytest.raises(WeightsError, match=r"does not fit SRResNet: the network has no conv_extra\.weight"):
            open_checkpoint(saved(tmp_path / "a.pth", state))


@pytest.fixture(scope="module")
def spandrel():
    """The collection, with the two operators of torchvision declared that a CPU build of PyTorch lacks."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel cannot be imported: {error}")
    yield spandrel
    del library


@pytest.mark.filterwarnings("ignore")
class TestSpandrel:
    def test_our_rrdbnet_computes_what_spandrels_does(self, spandrel, rng):
        state = rrdbnet_state(rng, fold=2, growth=32)
        theirs = spandrel.ModelLoader().load_from_state_dict(dict(state)).model
        ours = RRDBNet(num_feat=8, num_block=2, num_grow_ch=32, upscale=2)
        ours.load_state_dict(state)
        degraded = torch.rand(1, 3, 8, 10, generator=rng)
        with torch.no_grad():
            assert_close(ours(degraded), theirs(degraded), rtol=1e-5, atol=1e-5)

    @pytest.mark.usefixtures("spandrel")
    def test_a_network_that_only_spandrel_knows_opens_and_can_be_attributed(self, tmp_path, rng):
        from spandrel.architectures.SwinIR import SwinIR

        torch.manual_seed(0)
        state = SwinIR(
            upscale=2,
            img_size=16,
            window_size=8,
            depths=[2],
            embed_dim=12,
            num_heads=[2],
            mlp_ratio=2,
            upsampler="pixelshuffledirect",
        ).state_dict()
        network = open_checkpoint(saved(tmp_path / "swinir.pth", state))
        assert network.upscale == 2
        degraded = torch.rand(1, 3, 16, 16, generator=rng)
        base = {
            name: 0.9 * value if value.is_floating_point() else value for name, value in network.state_dict().items()
        }
        pair = (degraded, torch.rand(1, 3, 32, 32, generator=rng))
        attribution = FilterAttributor(network).attribute(
            base, network, squared_error, [pair], n_steps=8, buffers="target"
        )
        assert attribution.completeness_error < 0.05
        assert len(attribution.scores()) > 5

    @pytest.mark.usefixtures("spandrel")
    def test_what_spandrel_does_not_know_either_is_refused(self, tmp_path):
        with pytest.raises(WeightsError, match="holds no network that this package or spandrel knows"):
            open_checkpoint(saved(tmp_path / "a.pth", nn.Linear(2, 2).state_dict()))
