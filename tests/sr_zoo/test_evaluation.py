"""Measured restoration quality against a calculation by hand."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from filterattr.errors import NonFiniteError
from sr_zoo.degradations import GaussianNoise, Pipeline, Quantize, clean_inputs, evaluation_inputs
from sr_zoo.demo import find_and_mask
from sr_zoo.evaluation import check_photographs, degrade_photograph, measure
from sr_zoo.images import ImageError, to_float
from sr_zoo.models import SRResNet
from sr_zoo.training import Recipe, Trainer


class Bilinear(nn.Module):
    """No weights at all."""

    upscale = 2

    def forward(self, degraded):
        return functional.interpolate(degraded, scale_factor=2, mode="bilinear", align_corners=False)


def enlarge_row(values):
    """Twice as many values, by hand: each lies a quarter of a pixel beside an old one; the ends are repeated."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 1)], mode="edge")
    result = np.empty((*values.shape[:-1], 2 * values.shape[-1]))
    result[..., 0::2] = 0.25 * padded[..., :-2] + 0.75 * padded[..., 1:-1]
    result[..., 1::2] = 0.75 * padded[..., 1:-1] + 0.25 * padded[..., 2:]
    return result


def by_hand(photograph):
    """PSNR and SSIM, RGB and luma, of: mean of 2x2 pixels, 8 bits, bilinear enlargement, border of two pixels."""
    pixels = photograph.numpy().astype(np.float64)
    pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2] / 255
    means = (pixels[:, 0::2, 0::2] + pixels[:, 1::2, 0::2] + pixels[:, 0::2, 1::2] + pixels[:, 1::2, 1::2]) / 4
    degraded = np.round(means * 255) / 255
    restored = enlarge_row(enlarge_row(degraded).swapaxes(1, 2)).swapaxes(1, 2)
    rows = {}
    for name, (first, second) in {
        "": (restored, pixels),
        "_luma": tuple(
            ((16 + 65.481 * image[0] + 128.553 * image[1] + 24.966 * image[2]) / 255)[None]
            for image in (restored, pixels)
        ),
    }.items():
        first, second = first[:, 2:-2, 2:-2], second[:, 2:-2, 2:-2]
        rows[f"psnr{name}"] = 10 * np.log10(1 / np.mean((first - second) ** 2))
        rows[f"ssim{name}"] = structural_similarity(
            first,
            second,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    return rows


class TestMeasure:
    def test_a_network_without_weights_equals_a_calculation_by_hand(self, photographs):
        # multiples of four: the mean of four pixels is never half-way between two levels, where float32 would decide
        photographs = [photograph // 4 * 4 for photograph in photographs]
        expected = [by_hand(photograph) for photograph in photographs]
        found = measure(Bilinear(), photographs, {"clean": clean_inputs(2, "bilinear")})["clean"]
        for name, value in found.items():
            assert_close(value, float(np.mean([row[name] for row in expected])), rtol=0, atol=1e-5)
        assert set(found) == set(expected[0])

    def test_every_input_has_its_row_and_degradations_cost_quality(self, photographs):
        rows = measure(Bilinear(), photographs, evaluation_inputs(2))
        assert list(rows) == ["clean", "blur", "noise", "both"]
        for name in ("psnr", "ssim", "psnr_luma", "ssim_luma"):
            assert rows["clean"][name] > max(rows["blur"][name], rows["noise"][name])

    def test_one_seed_means_the_same_numbers_and_another_means_others(self, photographs):
        noisy = {"noise": evaluation_inputs(2)["noise"]}
        first, again, other = (measure(Bilinear(), photographs, noisy, seed=seed) for seed in (3, 3, 4))
        assert first == again
        assert first != other

    def test_the_callers_random_numbers_do_not_matter_and_are_left_alone(self, photographs):
        noisy = {"noise": evaluation_inputs(2)["noise"]}
        torch.manual_seed(1)
        first = measure(Bilinear(), photographs, noisy)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert measure(Bilinear(), photographs, noisy) == first
        assert torch.equal(torch.get_rng_state(), state)

    def test_two_photographs_get_different_noise(self, photographs):
        class Spy(Bilinear):
            seen = []

            def forward(self, degraded):
                self.seen.append(degraded)
                return super().forward(degraded)

        measure(Spy(), photographs[:1] * 2, {"noise": evaluation_inputs(2)["noise"]})
        assert not torch.equal(*Spy.seen)

    def test_values_outside_the_range_are_clipped_before_the_comparison(self):
        class TooBright(Bilinear):
            def forward(self, degraded):
                return super().forward(degraded) + 3

        white = [torch.full((3, 32, 32), 255, dtype=torch.uint8)]
        assert measure(TooBright(), white, {"clean": clean_inputs(2)})["clean"]["psnr"] == np.inf

    def test_the_network_is_left_as_it_was(self, photographs):
        network = SRResNet(num_feat=4, num_block=1)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        for training in (True, False):
            network.train(training)
            measure(network, photographs[:1], {"clean": clean_inputs(2)})
            assert network.training == training
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_the_network_may_be_in_double_precision(self, photographs):
        network = SRResNet(num_feat=4, num_block=1)
        single = measure(network, photographs[:1], {"clean": clean_inputs(2)})
        double = measure(network.double(), photographs[:1], {"clean": clean_inputs(2)})
        assert_close(double["clean"]["psnr"], single["clean"]["psnr"], rtol=1e-5, atol=0)

    def test_a_network_that_keeps_the_size_is_measured_too(self, photographs):
        rows = measure(nn.Identity(), photographs, {"noise": Pipeline((GaussianNoise(0.1), Quantize()))})
        assert 20 < rows["noise"]["psnr"] < 21.5

    def test_the_bar_is_shown_only_on_request(self, photographs, capfd, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        measure(Bilinear(), photographs[:1], {"clean": clean_inputs(2)})
        assert capfd.readouterr().err == ""
        measure(Bilinear(), photographs[:1], {"clean": clean_inputs(2)}, progress=True)
        assert "evaluating" in capfd.readouterr().err


class TestCheckedPhotographs:
    def test_none_are_refused(self):
        with pytest.raises(ImageError, match="at least one photograph is needed"):
            measure(Bilinear(), [], {"clean": clean_inputs(2)})

    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_the_smallest_size_is_just_enough(self, scale):
        class Nearest(nn.Module):
            upscale = scale

            def forward(self, degraded):
                return functional.interpolate(degraded, scale_factor=scale)

        width = 10 + 3 * scale
        for extra in range(scale):
            square = torch.zeros(3, width + extra, width + extra, dtype=torch.uint8)
            assert measure(Nearest(), [square], evaluation_inputs(scale))["clean"]["ssim"] <= 1
        with pytest.raises(ImageError, match=rf"at least {width}x{width} pixels to measure x{scale} on; number 0 is"):
            measure(Nearest(), [torch.zeros(3, width - 1, 60, dtype=torch.uint8)], evaluation_inputs(scale))

    def test_at_most_five_are_named(self):
        small = [torch.zeros(3, 9, 9, dtype=torch.uint8)] * 7
        with pytest.raises(ImageError, match=r"number 4 is 9x9 and 2 more\."):
            check_photographs(small, 2)


class TestDegradePhotograph:
    def test_it_crops_to_a_multiple_from_the_top_left(self, photographs):
        degraded, reference = degrade_photograph(photographs[2], clean_inputs(3), scale=3, seed=0)
        assert_close(reference, to_float(photographs[2][None, :, :84, :66]), rtol=0, atol=0)
        assert_close(degraded, clean_inputs(3)(reference), rtol=0, atol=0)
        assert degraded.shape == (1, 3, 28, 22)

    def test_the_seed_decides_the_noise(self, photographs):
        noise = evaluation_inputs(2)["noise"]
        first, again, other = (degrade_photograph(photographs[0], noise, 2, seed)[0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_gray_networks_are_refused_before_any_work(photographs, tmp_path):
    gray = SRResNet(num_in_ch=1, num_out_ch=1, num_feat=4, num_block=1)
    colouring = SRResNet(num_in_ch=1, num_out_ch=3, num_feat=4, num_block=1)
    sound = SRResNet(num_feat=4, num_block=1)
    message = r"photographs have 3 channels.*got 1 and [13]\. A network of gray images restores"
    for network in (gray, colouring):
        for refused in (
            lambda network=network: measure(network, photographs, evaluation_inputs()),
            lambda network=network: find_and_mask(sound, network, photographs, photographs),
            lambda network=network: find_and_mask(network, sound, photographs, photographs),
            lambda network=network: Trainer(
                network, photographs, photographs, Recipe(clean_inputs().config()), tmp_path / "run"
            ),
        ):
            with pytest.raises(ImageError, match=message):
                refused()
    assert not (tmp_path / "run").exists()


def test_what_puts_out_no_numbers_has_no_quality(photographs):
    network = SRResNet(num_feat=4, num_block=1)
    with torch.no_grad():
        network.conv_last.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"an image must be finite; \d+ of \d+ values"):
        measure(network, photographs, evaluation_inputs())
