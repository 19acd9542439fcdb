"""Published checkpoints, files of our own, shipped weights, and what is refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from filterattr.engine.storage import write_tensors
from filterattr.errors import FilterAttrError, StorageError
from sr_zoo import pretrained
from sr_zoo.models import SRCNNStyle, SRResNet
from sr_zoo.pretrained import (
    WeightsError,
    build,
    describe_network,
    load_checkpoint,
    load_network,
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
        with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
            load_checkpoint(small(3), tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "must be a module or a state dict; got list"),
            (torch.zeros(2), "must be a module or a state dict; got Tensor"),
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
