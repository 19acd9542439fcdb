"""The two-branch network: its cost, its arithmetic, and that both branches learn from one loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from sr_zoo.cost import cost
from sr_zoo.degradations import STRENGTH_UNITS, blind_inputs
from sr_zoo.models import SRResNet, TwoBranch
from sr_zoo.models.two_branch import SpatialFeatureTransform
from sr_zoo.pretrained import build, load_network, save_network
from sr_zoo.training import Objective, Recipe, Trainer, read_log, wanted_estimates

TINY = {"num_feat": 6, "num_block": 1, "hidden": 3, "condition": 4, "predictor_feat": 5}


def tiny(seed: int = 0, **changes) -> TwoBranch:
    torch.manual_seed(seed)
    return TwoBranch(**{**TINY, **changes})


def shaken(network: nn.Module, rng: torch.Generator) -> nn.Module:
    """Give every parameter a value that matters; the transforms start at zero."""
    for parameter in network.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return network


@pytest.mark.parametrize("sizes", [(32, 8), (64, 16)])
def test_it_costs_what_the_one_branch_network_does(sizes):
    with torch.device("meta"):
        one = cost(SRResNet(num_feat=sizes[0], num_block=sizes[1]))
        two = cost(TwoBranch(**TwoBranch.matched_arguments(*sizes)))
    assert two[0] / one[0] == pytest.approx(1, abs=0.01)
    assert two[1] / one[1] == pytest.approx(1, abs=0.01)


def test_the_cost_is_counted_right():
    """Of the one-branch network by hand: nine multiply-adds a kernel and pixel, four times as many pixels behind x2."""
    kernels = 3 * 32 + 16 * 32 * 32 + 32 * 128 + 4 * (32 * 32 + 32 * 3)
    assert cost(SRResNet(num_feat=32, num_block=8)).multiply_adds == 9 * kernels * 32 * 32


def test_sizes_without_a_match_are_refused():
    with pytest.raises(ValueError, match="for features and blocks 32 and 8, 64 and 16; got 48 and 8"):
        TwoBranch.matched_arguments(48, 8)


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_image_grows_by_the_factor(upscale, rng):
    network = tiny(upscale=upscale)
    with torch.no_grad():
        assert network(torch.rand(2, 3, 5, 7, generator=rng)).shape == (2, 3, 5 * upscale, 7 * upscale)


def test_a_transform_is_two_convolutions_of_features_and_stretched_condition(rng):
    transform = shaken(SpatialFeatureTransform(6, 4, 3), rng).double()
    features = torch.randn(2, 6, 5, 7, generator=rng).double()
    condition = torch.randn(2, 4, generator=rng).double()
    stretched = torch.cat([features, condition[:, :, None, None].expand(-1, -1, 5, 7)], dim=1)
    first = torch.cat([transform.of_features.weight, transform.of_condition.weight[:, :, None, None]], dim=1)
    hidden = functional.leaky_relu(functional.conv2d(stretched, first, transform.of_features.bias), 0.1)
    both = functional.conv2d(hidden, transform.modulate.weight, transform.modulate.bias)
    expected = features * (1 + both[:, :6]) + both[:, 6:]
    assert_close(transform(features, condition), expected, rtol=0, atol=1e-12)


def test_untrained_it_is_the_one_branch_network(rng):
    network = tiny(num_block=2)
    plain = SRResNet(num_feat=6, num_block=2)
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    degraded = torch.rand(2, 3, 8, 9, generator=rng)
    assert_close(network(degraded), plain(degraded), rtol=0, atol=1e-6)


def test_the_condition_of_one_image_does_not_touch_another(rng):
    network = shaken(tiny(), rng).double()
    degraded = torch.rand(3, 3, 8, 8, generator=rng).double()
    restored, estimates = network.restore_and_estimate(degraded)
    for index in range(3):
        alone, estimate = network.restore_and_estimate(degraded[index : index + 1])
        assert_close(restored[index], alone[0], rtol=0, atol=1e-12)
        assert_close(estimates[index], estimate[0], rtol=0, atol=1e-12)
    other = network.restore(degraded, network.predictor(degraded).flip(0))
    assert (other - restored).abs().max() > 1e-6


def test_what_it_should_have_estimated_is_in_the_units_of_the_protocol(rng):
    network = tiny(predicts=("noise", "blur", "jpeg"))
    pipeline = blind_inputs(2, degradations=("blur", "noise", "jpeg"))
    _, strengths = pipeline.traced(torch.rand(40, 3, 32, 32, generator=rng), rng)
    truth = wanted_estimates(network, strengths, 40)
    assert truth.shape == (40, 3)
    assert set(truth.flatten().tolist()) == {0.0, 1.0}
    for column, name in enumerate(network.predicts):
        assert_close(truth[:, column] * STRENGTH_UNITS[name], strengths[name])
        assert 5 < truth[:, column].sum() < 35


def test_one_loss_teaches_both_branches(rng):
    network = shaken(tiny(), rng)
    degraded, reference = torch.rand(2, 3, 8, 8, generator=rng), torch.rand(2, 3, 16, 16, generator=rng)
    strengths = {"noise": torch.tensor([0.1, 0.0])}
    total, parts = Objective(network, "fp32", 0.25)(degraded, reference, strengths)
    restored, estimates = network.restore_and_estimate(degraded)
    assert_close(parts["loss"], (restored - reference).abs().mean())
    assert_close(parts["prediction"], (estimates - torch.tensor([[0.0, 1.0], [0.0, 0.0]])).square().mean())
    assert_close(total, parts["loss"] + 0.25 * parts["prediction"])
    total.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_training_lowers_both_losses_and_goes_on_after_a_kill(photographs, tmp_path):
    plan = Recipe(blind_inputs().config(), iterations=60, batch_size=4, patch_size=32, learning_rate=1e-2)

    def make(name, validate_every=30):
        return Trainer(
            tiny(predictor_feat=8, condition=4),
            photographs,
            photographs[:1],
            plan,
            tmp_path / name,
            validate_every=validate_every,
            progress=False,
        )

    expected = make("whole").run()
    log = read_log(tmp_path / "whole")
    assert log[-1]["prediction"] < 0.8 * 0.25  # .25 is what a guess of one half costs
    assert log[-1]["loss"] < log[0]["loss"]
    killed = make("killed")
    step = killed._step

    def stepping():
        if killed.iteration == 40:
            raise KeyboardInterrupt
        return step()

    killed._step = stepping
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        killed.run()
    resumed = make("killed").run()
    for name, value in resumed.items():
        assert_close(value, expected[name], rtol=0, atol=0)


def test_it_is_saved_and_loaded_with_what_it_predicts(tmp_path, rng):
    arguments = {**TINY, "upscale": 2, "predicts": ["blur", "noise", "jpeg"]}
    network = shaken(build("two_branch", arguments), rng)
    save_network(tmp_path / "a.safetensors", "two_branch", arguments, network.state_dict(), {})
    loaded = load_network(tmp_path / "a.safetensors")
    assert loaded.predicts == ("blur", "noise", "jpeg")
    degraded = torch.rand(1, 3, 8, 8, generator=rng)
    assert_close(loaded(degraded), network(degraded), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predicts": ()}, r"name at least one degradation, in a tuple; got \(\)"),
        ({"predicts": "blur"}, "name at least one degradation, in a tuple; got 'blur'"),
        ({"num_in_ch": 2}, r"num_in_ch must be 1 or num_out_ch \(3\) for the skip; got 2"),
        ({"hidden": 0}, "positive whole numbers; got hidden=0"),
        ({"upscale": 5}, "upscale must be one of"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TwoBranch(**arguments)
