"""Published checkpoints, files of our own, shipped weights, and what is refused."""

import os
import pickle
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from filterattr.errors import FilterAttrError, StorageError
from filterattr.files.safetensors import write_tensors
from sr_zoo import pretrained
from sr_zoo.adaptive import AdaptiveRestorer
from sr_zoo.cli import main
from sr_zoo.images import write_image
from sr_zoo.models import SRCNNStyle, SRResNet
from sr_zoo.pretrained import (
    WeightsError,
    build,
    describe_network,
    load_checkpoint,
    load_network,
    open_network,
    open_weights,
    save_network,
    shipped_weights,
)

ARGUMENTS = {"num_feat": 6, "num_block": 2, "upscale": 2}


def small(seed: int) -> SRResNet:
    torch.manual_seed(seed)
    return SRResNet(**ARGUMENTS)


@pytest.fixture
def trained() -> SRResNet:
    return small(1)


@pytest.fixture
def other() -> dict:
    return small(2).state_dict()


def assert_same_network(found, expected):
    degraded = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(found(degraded), expected(degraded), rtol=0, atol=0)
    for (name, value), (expected_name, expected_value) in zip(
        found.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == expected_name
        assert_close(value, expected_value, rtol=0, atol=0)


def prefixed(state, prefix="module."):
    return {prefix + name: value for name, value in state.items()}


class TestPublishedLayouts:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state, other: state,
            lambda state, other: {"params": state},
            lambda state, other: {"params": other, "params_ema": state},
            lambda state, other: {"params_ema": state, "params": other},
            lambda state, other: {"params": prefixed(state)},
            lambda state, other: {"params_ema": prefixed(state), "params": prefixed(other)},
            lambda state, other: {"state_dict": state, "epoch": 3},
            lambda state, other: prefixed(state),
            lambda state, other: prefixed(prefixed(state)),
        ],
        ids=["bare", "params", "ema", "ema first", "module", "ema module", "state_dict", "bare module", "twice"],
    )
    def test_the_weights_are_found_and_give_the_same_output(self, tmp_path, trained, other, wrap):
        torch.save(wrap(trained.state_dict(), other), tmp_path / "net_g_latest.pth")
        network = small(3)
        load_checkpoint(network, tmp_path / "net_g_latest.pth")
        assert_same_network(network, trained)

    @pytest.mark.parametrize("network_class", [SRResNet, SRCNNStyle])
    def test_a_checkpoint_of_full_size_loads(self, tmp_path, network_class):
        path = str(tmp_path / "net_g_1000000.pth")
        trained, network = network_class(upscale=2), network_class(upscale=2)
        torch.save({"params": trained.state_dict(), "params_ema": trained.state_dict()}, path)
        load_checkpoint(network, path)
        assert all(torch.equal(*pair) for pair in zip(network.parameters(), trained.parameters(), strict=True))

    def test_files_of_old_pytorch_and_half_precision_load(self, tmp_path, trained):
        halves = {name: value.half() for name, value in trained.state_dict().items()}
        torch.save({"params": halves}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        network = small(3)
        load_checkpoint(network, tmp_path / "old.pth")
        assert network.conv_last.weight.dtype == torch.float32
        assert_close(network.conv_last.weight, trained.conv_last.weight.half().float(), rtol=0, atol=0)

    def test_the_parameters_stay_the_same_objects(self, tmp_path, trained):
        torch.save(trained.state_dict(), tmp_path / "a.pth")
        network = small(3)
        before = [id(parameter) for parameter in network.parameters()]
        load_checkpoint(network, tmp_path / "a.pth")
        assert [id(parameter) for parameter in network.parameters()] == before


class Malicious:
    """Makes a folder when unpickled: the harmless stand-in for any command."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class TestRefusals:
    @pytest.mark.parametrize("forced", ["0", "1"])
    @pytest.mark.parametrize("layout", ["zip", "old", "plain pickle"])
    def test_a_malicious_file_is_refused_and_does_not_run(self, tmp_path, trained, monkeypatch, forced, layout):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
        ran, path = tmp_path / "ran", tmp_path / "evil.pth"
        content = {"params": trained.state_dict(), "extra": Malicious(ran)}
        if layout == "plain pickle":
            path.write_bytes(pickle.dumps(Malicious(ran)))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
        network = small(3)
        with pytest.raises(WeightsError, match=r"evil\.pth' must be a checkpoint of tensors alone.*code of its own"):
            load_checkpoint(network, path)
        assert not ran.exists()
        assert_same_network(network, small(3))
        if layout != "plain pickle":
            torch.load(path, weights_only=False)  # the file does what it is feared for
            assert ran.exists()

    def test_the_message_does_not_recommend_to_run_the_code(self, tmp_path):
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
        with pytest.raises(WeightsError, match="Get it again") as caught:
            load_checkpoint(small(3), tmp_path / "evil.pth")
        assert "weights_only=False" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_a_truncated_file_is_refused(self, tmp_path, trained, share):
        path = tmp_path / "cut.pth"
        torch.save(trained.state_dict(), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        network = small(3)
        with pytest.raises(WeightsError, match=r"cut\.pth' must be a checkpoint of tensors alone.*damaged"):
            load_checkpoint(network, path)
        assert_same_network(network, small(3))

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path):
        with pytest.raises(WeightsError, match=r"gone\.pth' cannot be read: No such file"):
            load_checkpoint(small(3), tmp_path / "gone.pth")
        with pytest.raises(WeightsError, match="must hold weights: a file that ends in"):
            load_checkpoint(small(3), tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "must hold names of tensors; it holds list"),
            (torch.zeros(2), "must hold names of tensors; it holds Tensor"),
            ({"iter": 7, "lr": 0.1}, "must map names to tensors; 'iter', 'lr' hold float, int"),
        ],
    )
    def test_what_holds_no_weights_is_refused(self, tmp_path, content, message):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=rf"a\.pth' {message}"):
            load_checkpoint(small(3), tmp_path / "a.pth")

    def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(self, tmp_path, trained):
        state = trained.state_dict()
        del state["conv_hr.bias"], state["body.0.conv1.weight"]
        state["conv_hr.alpha"] = torch.zeros(1)
        state["conv_last.weight"] = torch.zeros(3, 6, 5, 5)
        torch.save(state, tmp_path / "a.pth")
        network = small(3)
        with pytest.raises(
            WeightsError,
            match=r"a\.pth' does not fit SRResNet: it lacks body\.0\.conv1\.weight, conv_hr\.bias; "
            r"the network has no conv_hr\.alpha; "
            r"shapes differ: conv_last\.weight \(3, 6, 5, 5\) instead of \(3, 6, 3, 3\)\.",
        ):
            load_checkpoint(network, tmp_path / "a.pth")
        assert_same_network(network, small(3))

    def test_the_other_network_is_refused(self, tmp_path):
        torch.save({"params": SRCNNStyle().state_dict()}, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=r"it lacks conv_first\.weight.*the network has no features\.0\.weight"):
            load_checkpoint(small(3), tmp_path / "a.pth")

    def test_a_prefix_on_some_names_only_is_no_prefix(self, tmp_path, trained):
        state = trained.state_dict()
        state["module.conv_hr.bias"] = state.pop("conv_hr.bias")
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=r"it lacks conv_hr\.bias; the network has no module\.conv_hr\.bias"):
            load_checkpoint(small(3), tmp_path / "a.pth")


class TestOwnFiles:
    @pytest.mark.parametrize(
        ("architecture", "arguments"), [("srresnet", ARGUMENTS), ("srresnet", {"upscale": 4}), ("srcnn_style", {})]
    )
    def test_a_network_comes_back_bit_for_bit_with_its_card(self, tmp_path, architecture, arguments):
        path, network = tmp_path / "a.safetensors", build(architecture, arguments)
        save_network(path, architecture, arguments, network.state_dict(), {"seed": 3, "note": "ä"})
        loaded = load_network(path)
        assert type(loaded) is type(network)
        assert not loaded.training
        assert loaded.upscale == network.upscale
        assert_same_network(loaded, network)
        assert describe_network(str(path)) == {
            "architecture": architecture,
            "arguments": arguments,
            "provenance": {"seed": 3, "note": "ä"},
        }

    def test_loading_leaves_the_callers_random_numbers_usable(self, tmp_path, trained):
        save_network(tmp_path / "a.safetensors", "srresnet", ARGUMENTS, trained.state_dict(), {})
        torch.manual_seed(0)
        first = load_network(tmp_path / "a.safetensors")
        torch.manual_seed(1)
        assert_same_network(load_network(tmp_path / "a.safetensors"), first)

    def test_shipped_weights_are_found_by_name_before_files(self, tmp_path, trained, monkeypatch):
        monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
        assert shipped_weights() == []
        for name in ("two", "one"):
            save_network(tmp_path / f"{name}.safetensors", "srresnet", ARGUMENTS, trained.state_dict(), {})
        assert shipped_weights() == ["one", "two"]
        assert_same_network(load_network("one"), trained)
        assert describe_network("two")["arguments"] == ARGUMENTS
        with pytest.raises(WeightsError, match="weights must be a file or one of one, two; got 'three'"):
            load_network("three")

    def test_every_shipped_network_is_on_the_page_of_weights(self):
        page = (Path(__file__).parents[2] / "docs" / "reference" / "weights.md").read_text()
        assert [name for name in shipped_weights() if f"`{name}`" not in page] == []

    def test_every_shipped_network_loads_and_says_where_it_comes_from(self):
        for name in shipped_weights():
            load_network(name)
            assert describe_network(name)["provenance"]

    def test_weights_that_do_not_fit_their_own_description_are_refused(self, tmp_path, trained):
        path = tmp_path / "a.safetensors"
        save_network(path, "srresnet", {**ARGUMENTS, "num_block": 3}, trained.state_dict(), {})
        with pytest.raises(WeightsError, match=r"does not fit SRResNet: it lacks body\.2\.conv1\.weight"):
            load_network(path)

    @pytest.mark.parametrize("description", [{}, {"architecture": 3, "arguments": {}}, {"architecture": "srresnet"}])
    def test_a_file_without_a_description_is_refused(self, tmp_path, description):
        write_tensors(tmp_path / "a.safetensors", "network", {"a": torch.zeros(1)}, description)
        for read in (load_network, describe_network):
            with pytest.raises(WeightsError, match="must say which 'architecture' it holds and its 'arguments'"):
                read(tmp_path / "a.safetensors")

    def test_damage_and_other_kinds_are_refused(self, tmp_path, trained):
        path = tmp_path / "a.safetensors"
        save_network(path, "srresnet", ARGUMENTS, trained.state_dict(), {})
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(StorageError, match="damaged"):
            load_network(path)
        write_tensors(path, "training", {"a": torch.zeros(1)}, {})
        with pytest.raises(StorageError, match="must be a network file"):
            load_network(path)


@contextmanager
def little_room(extra=2**29):
    """Nothing large can be built meanwhile: the process has half a GiB more than it holds now."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + extra, before[1]))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < 5


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
class TestNothingIsBuiltBeforeItFits:
    @pytest.mark.parametrize(
        ("architecture", "arguments", "message"),
        [
            ("srresnet", {"num_block": 10**9, "num_feat": 1}, "sizes must be positive whole numbers; got num_block"),
            ("srresnet", {"num_feat": 10**9}, "got num_feat=1000000000. At most 1000 blocks and 65536 channels"),
            ("srresnet", {"num_feat": 2**16, "num_block": 0}, "got num_block=0"),
            ("srresnet", {"num_block": 1000, "num_feat": 1}, "holds 1 tensors, which are too few for num_block=1000"),
            ("srresnet", {"num_feat": True}, "got num_feat=True"),
            ("srresnet", {"num_feat": 8.0}, "got num_feat=8.0"),
            ("srresnet", {"num_feat": -8}, "got num_feat=-8"),
            ("srresnet", {"num_feat": "9" * 5000}, r"num_feat='9+\.\.\."),
            ("srresnet", {"num_feat": int("9" * 4000)}, "a number of about 4000 digits"),
            ("srresnet", {"upscale": 2.0}, "upscale must be one of 2, 3, 4; got 2.0"),
            ("srresnet", {"upscale": True}, "upscale must be one of 2, 3, 4; got True"),
            ("srresnet", {"upscale": [2]}, "upscale must be one of 2, 3, 4"),
            ("srcnn_style", {"upscale": 4}, "does not fit SRCNNStyle"),
            ("rrdbnet", {"num_block": 10**9}, "got num_block=1000000000"),
            ("rrdbnet", {"num_feat": 2**16, "num_grow_ch": 2**16}, r"does not fit RRDBNet: it lacks .* and \d+ more"),
            ("rrdbnet", {"upscale": {"a": 1}}, "upscale must be one of 1, 2, 4"),
            ("two_branch", {"hidden": 10**9}, "got hidden=1000000000"),
            ("two_branch", {"condition": 2**16, "hidden": 2**16, "num_feat": 2**16}, "does not fit TwoBranch"),
            ("two_branch", {"predicts": 5}, "predicts must name at least one degradation, in a tuple; got 5"),
            ("two_branch", {"predicts": {"blur": 1}}, "predicts must name"),
            ("two_branch", {"predicts": ["blur", ["noise"]]}, "predicts must name"),
            ("dasr", {"condition": 10**9}, "got condition=1000000000"),
            ("dasr", {"condition": 2**16}, "does not fit DASR"),
        ],
    )
    def test_what_a_file_says_of_itself_is_checked_first(self, tmp_path, architecture, arguments, message):
        path = tmp_path / "a.safetensors"
        save_network(path, architecture, arguments, {"a": torch.zeros(1)}, {})
        with little_room(), pytest.raises(WeightsError, match=message) as caught:
            open_network(path)
        assert len(str(caught.value)) < 2500

    @pytest.mark.parametrize("block", ["999999999", "9" * 5000, "70000", "\u0663" * 12])
    @pytest.mark.parametrize(
        "layout", ["body.{}.conv1.weight", "body.{}.rdb1.conv1.weight", "features.{}.weight", "layers.x{}.weight"]
    )
    def test_names_that_number_more_layers_than_there_can_be_are_refused(self, tmp_path, block, layout):
        state = {
            "conv_first.weight": torch.zeros(1, 3, 1, 1),
            "conv_last.weight": torch.zeros(3, 1, 1, 1),
            "upconv1.weight": torch.zeros(4, 1, 1, 1),
            layout.format(block): torch.zeros(1),
        }
        save_file(state, tmp_path / "a.safetensors")
        with little_room(), pytest.raises(WeightsError, match=r"must number its layers from 0; '.* names no layer"):
            open_network(tmp_path / "a.safetensors")

    def test_a_small_file_that_calls_for_a_large_network_is_refused(self, tmp_path):
        """Shapes of the first layers alone, which tell the sizes of all others."""
        width = 30_000
        state = {
            "conv_first.weight": torch.zeros(width, 3, 1, 1),
            "conv_last.weight": torch.zeros(3, 1),
            "body.0.conv1.weight": torch.zeros(1),
            "upconv1.weight": torch.zeros(4 * width, 1),
        }
        save_file(state, tmp_path / "a.safetensors")
        with little_room(), pytest.raises(WeightsError, match="does not fit SRResNet: it lacks"):
            open_network(tmp_path / "a.safetensors")

    def test_tensors_without_elements_call_for_nothing_either(self, tmp_path):
        state = {
            "conv_first.weight": torch.zeros(10**9, 0, 3, 3),
            "conv_last.weight": torch.zeros(3, 1),
            "body.0.conv1.weight": torch.zeros(1),
            "upconv1.weight": torch.zeros(4 * 10**9, 0),
        }
        save_file(state, tmp_path / "a.safetensors")
        with little_room(), pytest.raises(WeightsError, match="sizes must be positive whole numbers"):
            open_network(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("width", [2**12, 2**20])
    def test_the_collection_builds_no_giant_either(self, tmp_path, monkeypatch, width):
        class ModelLoader:
            def load_from_state_dict(self, state):
                model = nn.Sequential(*(nn.Linear(len(state["a.weight"]), width) for _ in range(2)))
                return SimpleNamespace(model=model, scale=2, input_channels=1, output_channels=1)

        collection = SimpleNamespace(ModelLoader=ModelLoader, UnsupportedModelError=ArithmeticError)
        monkeypatch.setitem(sys.modules, "spandrel", collection)
        save_file({"a.weight": torch.zeros(512)}, tmp_path / "a.safetensors")
        if width == 2**12:
            network = open_network(tmp_path / "a.safetensors")
            assert (network.upscale, network.num_in_ch, network.num_out_ch) == (2, 1, 1)
            return
        with (
            little_room(),
            pytest.raises(WeightsError, match="no network that this package or spandrel knows") as caught,
        ):
            open_network(tmp_path / "a.safetensors")
        assert "far larger than its weights" in str(caught.value.__cause__)

    def test_the_adaptive_restorer_is_checked_like_any_network(self, tmp_path):
        description = {"architecture": "srresnet", "arguments": {"num_block": 10**9, "num_feat": 1}}
        write_tensors(tmp_path / "a.safetensors", "adaptive restorer", {"shared/a": torch.zeros(1)}, description)
        with little_room(), pytest.raises(WeightsError, match="sizes must be positive whole numbers"):
            AdaptiveRestorer.load(tmp_path / "a.safetensors")


class TestWeightsThatAreNoNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), complex(1, 1)])
    @pytest.mark.parametrize("kind", ["own", "basicsr", "given network"])
    def test_they_are_refused_by_name(self, tmp_path, trained, value, kind):
        state = trained.state_dict()
        if isinstance(value, complex):
            state["conv_hr.weight"] = state["conv_hr.weight"].to(torch.complex64)
        state["conv_hr.weight"][0, 0, 0, 0] = value
        path = tmp_path / "a.pth"
        if kind == "own":
            save_network(path, "srresnet", ARGUMENTS, state, {})
        else:
            torch.save({"params": state}, path)
        read = (lambda path: load_checkpoint(small(3), path)) if kind == "given network" else open_network
        with pytest.raises(WeightsError, match=r"must be finite real numbers; those of '.*a\.pth' are not in conv_hr"):
            read(path)

    def test_no_command_takes_them(self, tmp_path, trained, capsys):
        state = trained.state_dict()
        state["conv_hr.weight"][0] = float("nan")
        path, photos = tmp_path / "a.safetensors", tmp_path / "photos"
        save_network(path, "srresnet", ARGUMENTS, state, {})
        write_image(photos / "0.png", torch.zeros(3, 64, 64, dtype=torch.uint8))
        images = ["--images", str(photos)]
        for words in (
            ["restore", str(photos / "0.png"), "--weights", str(path), "--out", str(tmp_path / "out.png")],
            ["demo", "--target", str(path), "--out", str(tmp_path / "demo")],
            ["card", str(path), *images, "--data", "none"],
            ["compare", "--network", "a", str(path), *images],
            ["train", "target", "--from", str(path), *images, "--out", str(tmp_path / "run")],
            ["attribute", str(path), str(path), *images, "--out", str(tmp_path / "attribution")],
        ):
            assert main(words) == 2
            assert "must be finite real numbers" in capsys.readouterr().err
        assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors", "photos"]


class TestOpening:
    def test_weights_come_with_all_that_is_known(self, tmp_path, trained):
        save_network(tmp_path / "a.bin", "srresnet", ARGUMENTS, trained.state_dict(), {"seed": 3})
        torch.save({"params": trained.state_dict()}, tmp_path / "b.pth")
        own, foreign = open_weights(tmp_path / "a.bin"), open_weights(tmp_path / "b.pth")
        assert own[1:] == ("srresnet", ARGUMENTS, {"seed": 3})
        assert foreign[1:] == ("srresnet", {"num_in_ch": 3, "num_out_ch": 3, **ARGUMENTS}, {})
        for opened in (own, foreign):
            assert_same_network(opened.network, trained)
            assert not opened.network.training
            assert all(weight.requires_grad and weight.is_leaf for weight in opened.network.parameters())

    def test_opening_draws_no_random_numbers(self, tmp_path, trained):
        torch.save({"params": trained.state_dict()}, tmp_path / "b.pth")
        before = torch.get_rng_state()
        open_network(tmp_path / "b.pth")
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_key_names_an_entry_or_what_names_begin_with(self, tmp_path, trained, other):
        states = {"g": {"net": trained.state_dict()}, "d": {"net": other}, "iteration": 3}
        torch.save(states, tmp_path / "gan.pth")
        torch.save(prefixed(trained.state_dict(), "a.") | prefixed(other, "b."), tmp_path / "flat.pth")
        for path, key in (("gan.pth", "g.net"), ("flat.pth", "a")):
            assert_same_network(open_network(tmp_path / path, key=key), trained)
            network = small(3)
            load_checkpoint(network, tmp_path / path, key=key)
            assert_same_network(network, trained)
        with pytest.raises(WeightsError, match=r"holds nothing under 'h': 'h' is missing beside 'g', 'd', 'iteration'"):
            open_network(tmp_path / "gan.pth", key="h")

    def test_a_key_is_for_files_of_others_so_that_one_can_stand_beside_ours(self, tmp_path, trained):
        save_network(tmp_path / "a.safetensors", "srresnet", ARGUMENTS, trained.state_dict(), {})
        assert_same_network(open_network(tmp_path / "a.safetensors", key="params"), trained)


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("edsr", {}, "architecture must be one of srresnet, srcnn_style, two_branch, dasr, rrdbnet; got 'edsr'"),
        ("srresnet", {"features": 3}, r"srresnet cannot be built from \{'features': 3\}: .*'features'"),
        ("srresnet", {"upscale": 5}, "srresnet cannot be built from .*: upscale must be one of 2, 3, 4; got 5"),
        ("srresnet", {"num_feat": -1}, "srresnet cannot be built from .*: sizes must be positive whole numbers"),
        ("srcnn_style", {"upscale": "2"}, "srcnn_style cannot be built from"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(architecture, arguments, message):
    with pytest.raises(WeightsError, match=message):
        build(architecture, arguments)


def test_the_error_is_one_of_the_library():
    assert issubclass(WeightsError, FilterAttrError)
    assert issubclass(WeightsError, ValueError)


def test_a_checkpoint_whose_weights_are_an_entry_says_how_to_name_it(tmp_path: Path) -> None:
    network = SRResNet(num_feat=4, num_block=1)
    torch.save({"generator": network.state_dict(), "epoch": 3}, tmp_path / "both.pth")
    with pytest.raises(
        WeightsError, match=r"'generator', 'epoch' hold OrderedDict, int.*name the entry with --key, or key="
    ):
        open_network(tmp_path / "both.pth")
    opened = open_network(tmp_path / "both.pth", key="generator")
    for name, value in network.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
