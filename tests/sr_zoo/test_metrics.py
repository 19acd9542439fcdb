"""PSNR and SSIM against scikit-image, on RGB and on luma."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from sr_zoo.images import to_float
from sr_zoo.metrics import luma, psnr, ssim


@pytest.fixture(params=[0.01, 0.1, 0.4], ids="noise-{}".format)
def pair(request, photographs, rng):
    reference = to_float(photographs[0])[None]
    noise = request.param * torch.randn(reference.shape, generator=rng)
    return (reference + noise).clamp(0, 1), reference


def expected_luma(images):
    """``(16 + 65.481 R + 128.553 G + 24.966 B) / 255``, channel by channel."""
    red, green, blue = (images[:, channel].double() for channel in range(3))
    return ((16 + 65.481 * red + 128.553 * green + 24.966 * blue) / 255)[:, None]


def as_planes(images, border, on_luma):
    """What scikit-image is given: ``(H, W, C)`` in float64, without the border."""
    images = expected_luma(images) if on_luma else images.double()
    height, width = images.shape[-2:]
    return images[0, :, border : height - border, border : width - border].permute(1, 2, 0).numpy()


def test_luma_equals_the_formula_and_has_studio_range(pair):
    assert_close(luma(pair[0].double()), expected_luma(pair[0]), rtol=0, atol=1e-12)
    ends = luma(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])).flatten() * 255
    assert_close(ends, torch.tensor([16.0, 235.0]))


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("on_luma", [False, True])
def test_psnr_equals_scikit_image(pair, border, on_luma):
    restored, reference = (as_planes(images, border, on_luma) for images in pair)
    expected = peak_signal_noise_ratio(reference, restored, data_range=1)
    assert_close(psnr(*pair, border=border, on_luma=on_luma).item(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("on_luma", [False, True])
def test_ssim_equals_scikit_image(pair, border, on_luma):
    restored, reference = (as_planes(images, border, on_luma) for images in pair)
    expected = structural_similarity(
        reference,
        restored,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert_close(ssim(*pair, border=border, on_luma=on_luma).item(), float(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_every_image_of_a_batch_gets_its_own_number(metric, pair, rng):
    reference = pair[1]
    worse = reference + 0.3 * torch.randn(reference.shape, generator=rng)
    both = metric(torch.cat([pair[0], worse]), torch.cat([reference, reference]))
    assert both.shape == (2,)
    assert_close(both, torch.cat([metric(pair[0], reference), metric(worse, reference)]))
    assert both[0] != both[1]


@pytest.mark.parametrize("on_luma", [False, True])
def test_identical_images_are_perfect(pair, on_luma):
    assert math.isinf(psnr(pair[1], pair[1], on_luma=on_luma).item())
    assert_close(ssim(pair[1], pair[1], on_luma=on_luma).item(), 1.0, rtol=0, atol=1e-12)


def test_ssim_is_symmetric_and_at_most_one(pair):
    assert_close(ssim(*pair), ssim(*pair[::-1]))
    assert ssim(*pair).item() < 1


def test_the_border_really_is_left_out(pair):
    reference = pair[1]
    damaged = reference.clone()
    damaged[..., :3, :] = 1 - damaged[..., :3, :]
    assert math.isinf(psnr(damaged, reference, border=3).item())
    assert math.isfinite(psnr(damaged, reference, border=2).item())


def test_metrics_are_computed_in_float64_whatever_comes_in(pair):
    halves = [images.half() for images in pair]
    assert psnr(*halves).dtype == ssim(*halves).dtype == torch.float64
    assert_close(psnr(*halves), psnr(*(images.double() for images in halves)))


def test_gray_images_are_measured_as_they_are(pair):
    gray = [images[:, :1] for images in pair]
    expected = -10 * np.log10(np.mean((gray[0].double() - gray[1].double()).numpy() ** 2))
    assert_close(psnr(*gray).item(), float(expected))


@pytest.mark.parametrize("metric", [psnr, ssim])
class TestBadInput:
    def test_different_shapes(self, metric):
        with pytest.raises(ValueError, match=r"same shape.*got \(1, 3, 16, 16\) and \(1, 3, 16, 18\)"):
            metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18))

    def test_an_image_without_a_batch(self, metric):
        with pytest.raises(ValueError, match=r"shape \(N, C, H, W\); got \(3, 16, 16\)"):
            metric(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))

    @pytest.mark.parametrize("border", [8, -1])
    def test_a_border_that_leaves_nothing_or_is_negative(self, metric, border):
        with pytest.raises(ValueError, match=rf"twice the border.*with border {border}"):
            metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), border=border)

    def test_eight_bit_pixels_would_be_measured_on_the_wrong_scale(self, metric):
        pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"floating in \[0, 1\]; got torch.uint8"):
            metric(pixels, pixels)

    def test_luma_of_gray_images(self, metric):
        with pytest.raises(ValueError, match=r"luma needs RGB.*got \(1, 1, 16, 16\)"):
            metric(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), on_luma=True)


def test_ssim_needs_one_window():
    assert_close(ssim(torch.zeros(1, 3, 11, 11), torch.zeros(1, 3, 11, 11)).item(), 1.0)
    with pytest.raises(ValueError, match=r"11x11 pixels; got \(1, 3, 10, 16\) without the border of 2"):
        ssim(torch.zeros(1, 3, 14, 20), torch.zeros(1, 3, 14, 20), border=2)
