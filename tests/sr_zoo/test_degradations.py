"""Degradations against scipy, Pillow and literal formulas; their randomness, their descriptions, their refusals."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch.testing import assert_close

from filterattr.errors import FilterAttrError
from sr_zoo.degradations import (
    JPEG,
    STRENGTH_UNITS,
    AnisotropicGaussianBlur,
    Degradation,
    DegradationError,
    DifferentiableJPEG,
    Downsample,
    Drawn,
    GaussianBlur,
    GaussianNoise,
    GeneralizedGaussianBlur,
    OneOf,
    Pipeline,
    PlateauBlur,
    PoissonNoise,
    Quantize,
    Resize,
    SecondOrder,
    Shuffled,
    Sinc,
    Sometimes,
    blind_inputs,
    clean_inputs,
    evaluation_inputs,
    from_config,
)
from sr_zoo.images import to_float

EVERY_KIND = [
    GaussianBlur(sigma=1.3, kernel_size=7),
    AnisotropicGaussianBlur(sigma_x=2.5, sigma_y=0.7, angle=-20, kernel_size=9),
    GeneralizedGaussianBlur(sigma_x=1.5, sigma_y=2.5, angle=75.0, kernel_size=13, beta=0.6),
    PlateauBlur(sigma_x=1.1, sigma_y=1.9, angle=10.0, kernel_size=11, beta=1.7),
    GaussianNoise(sigma=0.07),
    GaussianNoise(sigma=0.07, gray=True),
    PoissonNoise(scale=1.5),
    PoissonNoise(scale=0.5, gray=True),
    Downsample(scale=3, kind="bilinear"),
    JPEG(quality=42),
    JPEG(quality=90, subsampling="4:4:4"),
    DifferentiableJPEG(quality=42),
    DifferentiableJPEG(quality=90, subsampling="4:4:4"),
    Sinc(cutoff=1.5, kernel_size=9),
    Resize(factor=0.6, kind="bilinear"),
    Downsample(scale=2, kind="area"),
    Drawn(GaussianBlur(), {"sigma": (0.2, 3.0)}, {"kernel_size": (7, 9)}),
    OneOf((GaussianNoise(0.2), Sinc()), (0.3, 0.7)),
    Shuffled((GaussianBlur(), GaussianNoise(), Quantize(9))),
    SecondOrder(
        2,
        Pipeline((Resize(0.4), GaussianNoise(), Resize(1.7))),
        Sometimes(Sinc(), 0.5),
        Drawn(JPEG(), {"quality": (30, 95)}),
    ),
    Quantize(levels=17),
    Sometimes(GaussianBlur(0.9), 0.3),
    Pipeline((GaussianBlur(), Downsample(), Sometimes(GaussianNoise(), 0.5), Quantize())),
    Pipeline(()),
]
every_kind = pytest.mark.parametrize("degradation", EVERY_KIND, ids=lambda kind: type(kind).__name__)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images(photographs) -> torch.Tensor:
    """Two different photographs, ``(2, 3, 60, 66)``."""
    return torch.stack([to_float(photograph[:, :60, :66]) for photograph in (photographs[0], photographs[2])])


class TestBlur:
    @pytest.mark.parametrize(("sigma", "width"), [(2.0, 21), (0.6, 7), (4.0, 21)])
    def test_equals_scipy_with_an_explicit_kernel(self, images, sigma, width):
        offsets = np.arange(width) - width // 2
        kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
        kernel /= kernel.sum()
        blurred = GaussianBlur(sigma, width)(images.double())
        for image, found in zip(images.double(), blurred, strict=True):
            for channel, result in zip(image, found, strict=True):
                expected = torch.from_numpy(ndimage.correlate(channel.numpy(), kernel, mode="mirror"))
                assert_close(result, expected, rtol=0, atol=1e-12)

    def test_single_precision_is_as_good_as_it_can_be(self, images):
        assert_close(GaussianBlur()(images), GaussianBlur()(images.double()).float(), rtol=0, atol=1e-6)

    def test_a_kernel_of_one_pixel_changes_nothing(self, images):
        assert_close(GaussianBlur(2.0, kernel_size=1)(images), images, rtol=0, atol=0)

    def test_an_image_smaller_than_half_the_kernel_is_refused(self):
        assert GaussianBlur()(torch.zeros(1, 1, 11, 11)).shape == (1, 1, 11, 11)
        with pytest.raises(DegradationError, match=r"larger than half the blur kernel \(10 pixels\).*got 10x30"):
            GaussianBlur()(torch.zeros(1, 1, 10, 30))


def squared_distances(width: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """``d^T C^-1 d`` with the covariance written out, as in the publication; rows are y, columns x."""
    theta = np.deg2rad(angle)
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    axis = np.arange(width) - width // 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    return np.einsum("hwi,ij,hwj->hw", grid, inverse, grid)


class TestEllipticBlur:
    @pytest.mark.parametrize(("sigma_x", "sigma_y", "angle"), [(3.0, 0.8, 30.0), (1.0, 2.0, -100.0), (2.0, 2.0, 45.0)])
    def test_the_anisotropic_kernel_is_scipys_normal_density(self, sigma_x, sigma_y, angle):
        theta = np.deg2rad(angle)
        turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
        covariance = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
        axis = np.arange(15) - 7
        density = stats.multivariate_normal(cov=covariance).pdf(np.stack(np.meshgrid(axis, axis), axis=-1))
        found = AnisotropicGaussianBlur(sigma_x, sigma_y, angle, 15).kernel()
        assert_close(found, torch.from_numpy(density / density.sum()), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
    def test_generalised_and_plateau_kernels_are_the_published_formulas(self, beta):
        q = squared_distances(13, 2.5, 1.2, 65.0)
        for kind, expected in ((GeneralizedGaussianBlur, np.exp(-0.5 * q**beta)), (PlateauBlur, 1 / (q**beta + 1))):
            found = kind(2.5, 1.2, 65.0, 13, beta).kernel()
            assert_close(found, torch.from_numpy(expected / expected.sum()), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        "blur",
        [
            AnisotropicGaussianBlur(3.0, 0.8, 30.0),
            GeneralizedGaussianBlur(2.0, 1.0, -40.0, 15, 0.5),
            PlateauBlur(1.0, 3.0, 110.0, 9, 2.0),
        ],
        ids=lambda blur: type(blur).__name__,
    )
    def test_blurring_equals_scipys_convolution(self, images, blur):
        for image, found in zip(images, blur(images), strict=True):
            for channel, result in zip(image.double(), found, strict=True):
                expected = ndimage.convolve(channel.numpy(), blur.kernel().numpy(), mode="mirror")
                assert_close(result, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)

    def test_equal_deviations_are_the_isotropic_blur_at_any_angle(self, images):
        turned = AnisotropicGaussianBlur(1.7, 1.7, 33.0, 15)(images.double())
        assert_close(turned, GaussianBlur(1.7, 15)(images.double()), rtol=0, atol=1e-12)

    def test_a_beta_of_one_is_the_gaussian(self):
        expected = AnisotropicGaussianBlur(3.0, 0.8, 30.0).kernel()
        assert_close(GeneralizedGaussianBlur(3.0, 0.8, 30.0, beta=1).kernel(), expected, rtol=0, atol=1e-15)

    def test_a_positive_angle_turns_the_long_axis_downwards(self):
        kernel = AnisotropicGaussianBlur(3.0, 0.8, 45.0, 9).kernel()
        assert kernel[7, 7] > 10 * kernel[1, 7]

    @pytest.mark.parametrize("kind", [AnisotropicGaussianBlur, GeneralizedGaussianBlur, PlateauBlur])
    def test_the_narrowest_widest_and_largest_kernels_are_finite_and_sum_to_one(self, kind):
        extremes = [{"sigma_x": 1e-3, "sigma_y": 100.0}, {"sigma_x": 100.0, "sigma_y": 100.0}, {"kernel_size": 1}]
        if kind is not AnisotropicGaussianBlur:
            extremes += [{"beta": beta, "sigma_x": 1e-3, "kernel_size": 201} for beta in (0.1, 10.0)]
        for fields in extremes:
            kernel = kind(**fields).kernel()
            assert kernel.isfinite().all()
            assert_close(kernel.sum().item(), 1.0, rtol=0, atol=1e-12)

    def test_an_image_smaller_than_half_the_kernel_is_refused(self):
        with pytest.raises(DegradationError, match=r"larger than half the blur kernel \(10 pixels\).*got 30x10"):
            PlateauBlur()(torch.zeros(1, 1, 30, 10))

    def test_their_common_part_is_no_kind_of_its_own(self):
        with pytest.raises(
            DegradationError, match=r"must be one of Anisotropic(?!.*Elliptic.*;).*; got 'EllipticBlur'"
        ):
            from_config({"type": "EllipticBlur"})


class TestDownsample:
    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_bicubic_equals_pillow(self, images, scale):
        height, width = (length - length % scale for length in images.shape[-2:])
        images = images[..., :height, :width]
        found = Downsample(scale)(images)
        for image, result in zip(images, found, strict=True):
            for channel, plane in zip(image, result, strict=True):
                pillow = Image.fromarray(channel.numpy()).resize((width // scale, height // scale), Image.BICUBIC)
                assert_close(plane, torch.from_numpy(np.array(pillow)), rtol=0, atol=1e-5)

    def test_bilinear_by_two_is_the_mean_of_four_pixels(self, images):
        expected = images.double().unflatten(3, (33, 2)).unflatten(2, (30, 2)).mean((3, 5))
        assert_close(Downsample(2, "bilinear")(images).double(), expected, rtol=0, atol=1e-6)

    def test_bilinear_by_three_takes_the_pixel_in_the_middle(self, images):
        assert_close(Downsample(3, "bilinear")(images), images[..., 1::3, 1::3], rtol=0, atol=1e-6)

    def test_bilinear_by_four_is_the_mean_of_the_four_in_the_middle(self, images):
        images = images[..., :64]
        corners = [images[..., row::4, column::4].double() for row in (1, 2) for column in (1, 2)]
        expected = torch.stack(corners).mean(0)
        assert_close(Downsample(4, "bilinear")(images).double(), expected, rtol=0, atol=1e-6)

    def test_a_factor_of_one_changes_nothing(self, images):
        assert_close(Downsample(1)(images), images, rtol=0, atol=1e-6)

    def test_a_size_that_is_no_multiple_is_refused_with_the_crop_to_make(self):
        with pytest.raises(DegradationError, match=r"multiples of 4; got 30x33. Crop the image to 28x32"):
            Downsample(4)(torch.zeros(1, 3, 30, 33))


class TestNoise:
    def test_it_is_gaussian_of_the_stated_deviation(self):
        noise = GaussianNoise(0.1)(torch.zeros(4, 3, 100, 100), seeded())
        assert abs(noise.mean().item()) < 4 * 0.1 / np.sqrt(noise.numel())
        assert_close(noise.std().item(), 0.1, rtol=4 / np.sqrt(2 * noise.numel()), atol=0)
        assert stats.kstest(noise.flatten().numpy()[:20_000] / 0.1, "norm").pvalue > 1e-3

    def test_pixels_channels_and_images_are_independent(self):
        noise = GaussianNoise(1.0)(torch.zeros(2, 2, 100, 100), seeded()).flatten(0, 1).flatten(1)
        neighbours = torch.stack([*noise, noise[0].roll(1), noise[0].roll(100)])
        correlation = torch.corrcoef(neighbours) - torch.eye(6)
        assert correlation.abs().max() < 5 / 100

    def test_it_adds_to_the_image_and_is_not_clipped(self, images):
        difference = GaussianNoise(0.5)(images, seeded()) - images
        assert_close(difference, 0.5 * torch.randn(images.shape, generator=seeded()), rtol=0, atol=1e-6)
        assert GaussianNoise(0.5)(images, seeded()).min() < 0

    def test_no_noise_changes_nothing(self, images):
        assert_close(GaussianNoise(0.0)(images, seeded()), images, rtol=0, atol=0)

    def test_the_default_type_of_the_session_does_not_change_the_numbers(self, images):
        noisy = GaussianNoise()(images, seeded())
        hit = Sometimes(GaussianNoise(), 0.5)(images, seeded())
        torch.set_default_dtype(torch.float64)
        try:
            assert_close(GaussianNoise()(images, seeded()), noisy, rtol=0, atol=0)
            assert_close(Sometimes(GaussianNoise(), 0.5)(images, seeded()), hit, rtol=0, atol=0)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_the_images_type_does_not_change_the_numbers(self, images):
        single, double = (GaussianNoise()(batch, seeded()) for batch in (images, images.double()))
        assert double.dtype == torch.float64
        assert_close(double.float(), single, rtol=0, atol=1e-6)

    def test_gray_noise_is_one_number_for_all_channels_of_a_pixel(self, images):
        noise = GaussianNoise(0.2, gray=True)(images.double(), seeded()) - images
        expected = 0.2 * torch.randn(2, 1, *images.shape[-2:], generator=seeded()).expand(-1, 3, -1, -1)
        assert_close(noise, expected.double(), rtol=0, atol=1e-6)

    def test_colour_noise_is_described_as_before_there_was_gray_noise(self):
        assert GaussianNoise(0.1).config() == {"type": "GaussianNoise", "sigma": 0.1}
        assert GaussianNoise(0.1, gray=True).config() == {"type": "GaussianNoise", "sigma": 0.1, "gray": True}


class TestPoissonNoise:
    @pytest.mark.parametrize("level", [3, 20, 200])
    def test_counts_follow_scipys_poisson_law(self, level):
        noisy = PoissonNoise()(torch.full((1, 1, 100, 100), level / 255), seeded()).flatten() * 255
        counts = noisy.round()
        assert_close(noisy, counts, rtol=0, atol=1e-3)
        law = stats.poisson(level)
        edges = np.unique(law.ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
        found = np.bincount(np.searchsorted(edges, counts.numpy()), minlength=len(edges) + 1)
        expected = len(counts) * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
        assert stats.chisquare(found, expected).pvalue > 1e-3

    def test_the_scale_multiplies_the_noise_alone(self, images):
        once = PoissonNoise(1.0)(images.double(), seeded()) - images
        assert_close(PoissonNoise(2.5)(images.double(), seeded()) - images, 2.5 * once, rtol=0, atol=1e-9)
        assert_close(PoissonNoise(0)(images, seeded()), images, rtol=0, atol=0)

    def test_gray_noise_is_that_of_the_luma(self, images):
        noise = PoissonNoise(gray=True)(images.double(), seeded()) - images
        luma = sum(part * images[:, index] for index, part in enumerate((0.299, 0.587, 0.114)))[:, None]
        expected = torch.poisson(luma * 255, generator=seeded()) / 255 - luma
        assert_close(noise, expected.expand(-1, 3, -1, -1).double(), rtol=0, atol=1e-5)

    def test_values_outside_the_range_have_the_noise_of_its_ends(self):
        values = torch.tensor([-0.5, 1.5]).view(1, 1, 2, 1).expand(-1, -1, -1, 5000)
        noise = PoissonNoise()(values, seeded()) - values
        assert noise[0, 0, 0].abs().max() == 0
        assert_close(noise[0, 0, 1].std().item(), 255**-0.5, rtol=0.05, atol=0)

    def test_gray_noise_for_channels_without_a_luma_is_refused(self):
        with pytest.raises(DegradationError, match=r"one channel or of three \(RGB\); got 4 channels"):
            PoissonNoise(gray=True)(torch.zeros(1, 4, 8, 8))


class TestSometimes:
    def test_each_image_is_hit_independently_with_the_probability(self):
        images = torch.zeros(4000, 1, 2, 2)
        hit = Sometimes(GaussianNoise(0.1), 0.3)(images, seeded()).flatten(1).abs().amax(1) > 0
        assert abs(hit.float().mean().item() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
        assert abs((hit[1:] & hit[:-1]).float().mean().item() - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 4000)

    def test_spared_images_are_untouched_and_hit_ones_fully_degraded(self, images):
        batch = images.repeat(4, 1, 1, 1)
        degraded = Sometimes(GaussianBlur(), 0.5)(batch, seeded(1))
        blurred = GaussianBlur()(batch)
        hit = [not torch.equal(result, image) for result, image in zip(degraded, batch, strict=True)]
        assert 0 < sum(hit) < len(hit)
        for index, was_hit in enumerate(hit):
            assert_close(degraded[index], (blurred if was_hit else batch)[index], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("probability", [0, 1])
    def test_the_ends_are_never_and_always(self, images, probability):
        degraded = Sometimes(GaussianBlur(), probability)(images, seeded())
        assert_close(degraded, GaussianBlur()(images) if probability else images, rtol=0, atol=0)

    def test_blur_and_noise_of_the_blind_protocol_are_drawn_independently(self):
        ramp = torch.zeros(2000, 1, 22, 22)
        ramp[..., 11:] = 1  # an edge, which blur softens and noise does not
        blind = Pipeline((Sometimes(GaussianBlur(2.0), 0.5), Sometimes(GaussianNoise(1e-3), 0.5)))
        degraded = blind(ramp, seeded(2))
        is_blurred = degraded[:, 0, 0, 10] > 0.1
        is_noisy = degraded[:, 0, :, 0].std(1) > 1e-5
        for both in (is_blurred & is_noisy, is_blurred & ~is_noisy, ~is_blurred & is_noisy, ~is_blurred & ~is_noisy):
            assert abs(both.float().mean().item() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)

    def test_what_changes_the_size_cannot_happen_sometimes(self, images):
        with pytest.raises(DegradationError, match=r"must keep the image size.*Downsample made \(3, 30, 33\)"):
            Sometimes(Downsample(2), 1)(images)


class TestQuantize:
    def test_equals_saving_to_an_8_bit_file(self, images):
        values = images * 1.4 - 0.2
        stream = io.BytesIO()
        pixels = np.clip(np.rint(values[0].permute(1, 2, 0).double().numpy() * 255), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(stream, format="png")
        with Image.open(stream) as image:
            saved = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert_close(Quantize()(values)[0], to_float(saved), rtol=0, atol=1e-7)

    def test_doing_it_twice_changes_nothing_more(self, images):
        once = Quantize()(images)
        assert_close(Quantize()(once), once, rtol=0, atol=0)

    def test_two_levels_are_black_and_white(self):
        assert Quantize(2)(torch.tensor([[[[0.2, 0.8]]]])).flatten().tolist() == [0, 1]


class TestJPEG:
    @pytest.mark.parametrize("quality", [10, 30, 75, 95])
    @pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
    @pytest.mark.parametrize("gray", [False, True])
    def test_the_differentiable_one_is_mostly_within_a_grey_level(self, images, quality, subsampling, gray):
        images = images[:, :1] if gray else images
        for size in ((60, 66), (48, 64), (9, 17)):
            crop = images[..., : size[0], : size[1]]
            real = JPEG(quality, subsampling)(crop) * 255
            modelled = DifferentiableJPEG(quality, subsampling)(crop) * 255
            assert_close(modelled, modelled.round(), rtol=0, atol=1e-3)
            difference = (real - modelled).abs()
            assert difference.mean() < 0.4
            assert (difference > 1.01).float().mean() < 0.1

    def test_the_real_one_is_pillows(self, images):
        stream = io.BytesIO()
        pixels = (images[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(stream, format="jpeg", quality=37, subsampling=2)
        with Image.open(stream) as decoded:
            expected = torch.from_numpy(np.array(decoded)).permute(2, 0, 1)
        assert_close(JPEG(37)(images)[1], to_float(expected), rtol=0, atol=1e-6)

    def test_less_quality_is_further_from_the_image(self, images):
        for kind in (JPEG, DifferentiableJPEG):
            errors = [(kind(quality)(images) - images).square().mean().item() for quality in (5, 20, 50, 80, 100)]
            assert errors == sorted(errors, reverse=True)

    def test_gradients_pass_the_differentiable_one_straight_through(self, images):
        """Without quantisation to speak of, compression is the identity, and so is its gradient."""
        crop = images[:1, :1, :16, :16].clamp(0.2, 0.8).clone().requires_grad_()
        weights = torch.randn(crop.shape, generator=seeded())
        (DifferentiableJPEG(100)(crop) * weights).sum().backward()
        assert_close(crop.grad, weights, rtol=0, atol=1e-4)

    def test_images_of_two_channels_are_refused(self):
        for kind in (JPEG, DifferentiableJPEG):
            with pytest.raises(DegradationError, match=r"one channel or of three \(RGB\); got 4 channels"):
                kind()(torch.zeros(1, 4, 8, 8))


class TestTraces:
    def test_tracing_changes_no_number(self, images):
        for degradation in EVERY_KIND:
            traced, _ = degradation.traced(images, seeded(4))
            assert_close(traced, degradation(images, seeded(4)), rtol=0, atol=0)

    def test_the_blind_protocol_says_who_was_hit(self, images):
        batch = images.repeat(10, 1, 1, 1)
        degraded, strengths = blind_inputs(2, degradations=("blur", "noise", "jpeg")).traced(batch, seeded(1))
        assert set(strengths) == set(STRENGTH_UNITS) == {"blur", "noise", "jpeg"}
        clean = clean_inputs(2)(batch)
        spared = sum(value for value in strengths.values()) == 0
        assert 0 < spared.sum() < len(batch)
        for index, was_spared in enumerate(spared.tolist()):
            assert was_spared == torch.equal(degraded[index], clean[index])
        for name, unit in (("blur", 2.0), ("noise", 0.1), ("jpeg", 0.7)):
            assert_close(strengths[name].unique(), torch.tensor([0.0, unit]))

    def test_strengths_of_a_kind_add_in_squares(self, images):
        pipeline = Pipeline((GaussianBlur(1.5), GaussianBlur(2.0), GaussianNoise(0.03), Quantize()))
        _, strengths = pipeline.traced(images, seeded())
        assert_close(strengths, {"blur": torch.tensor([2.5, 2.5]), "noise": torch.tensor([0.03, 0.03])})

    def test_blurring_twice_is_as_strong_as_the_trace_says(self, images):
        inner = images.double()[..., :60, :60]
        twice = Pipeline((GaussianBlur(0.9, 21), GaussianBlur(1.2, 21)))(inner)
        assert_close(twice[..., 20:40, 20:40], GaussianBlur(1.5, 31)(inner)[..., 20:40, 20:40], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kind", [AnisotropicGaussianBlur, GeneralizedGaussianBlur, PlateauBlur])
    def test_an_elliptic_blur_says_how_far_its_kernel_reaches(self, kind):
        wide = kind(sigma_x=2.0, sigma_y=1.0, angle=30.0, kernel_size=41)
        kernel = wide.kernel().numpy()
        y, x = np.mgrid[-20:21, -20:21]
        expected = np.sqrt((np.cov(np.stack([x.ravel(), y.ravel()]), aweights=kernel.ravel(), ddof=0)).trace() / 2)
        assert_close(wide.strengths()["blur"], float(expected), rtol=1e-9, atol=0)
        if kind is AnisotropicGaussianBlur:
            assert_close(wide.strengths()["blur"], 2.5**0.5, rtol=1e-3, atol=0)

    def test_poisson_noise_says_its_deviation_at_middle_gray(self):
        noisy = PoissonNoise(1.5)(torch.full((1, 3, 200, 200), 0.5), seeded())
        assert_close(noisy.std().item(), PoissonNoise(1.5).strengths()["noise"], rtol=0.01, atol=0)


class TestPipeline:
    def test_steps_follow_one_another_and_share_the_generator(self, images):
        generator = seeded(7)
        expected = GaussianNoise(0.2)(GaussianBlur()(GaussianNoise(0.1)(images, generator)), generator)
        found = Pipeline((GaussianNoise(0.1), GaussianBlur(), GaussianNoise(0.2)))(images, seeded(7))
        assert_close(found, expected, rtol=0, atol=0)

    def test_a_list_of_steps_equals_a_tuple(self):
        assert Pipeline([GaussianBlur(), Quantize()]) == Pipeline((GaussianBlur(), Quantize()))

    def test_without_steps_it_copies(self, images):
        copy = Pipeline(())(images)
        assert_close(copy, images, rtol=0, atol=0)
        assert copy.data_ptr() != images.data_ptr()


class TestProtocol:
    def test_compression_comes_last_before_the_rounding(self):
        names = ("jpeg", "blur", "noise")  # in any order
        down, blur, noise, jpeg = Downsample(2), GaussianBlur(2.0), GaussianNoise(0.1), JPEG(30)
        halves = [Sometimes(part, 0.5) for part in (blur, noise, jpeg)]
        assert blind_inputs(degradations=names) == Pipeline((halves[0], down, *halves[1:], Quantize()))
        inputs = evaluation_inputs(degradations=names)
        assert list(inputs) == ["clean", "blur", "noise", "jpeg", "all"]
        assert inputs["jpeg"] == Pipeline((down, jpeg, Quantize()))
        assert inputs["all"] == Pipeline((blur, down, noise, jpeg, Quantize()))
        assert list(evaluation_inputs(degradations=["noise"])) == ["clean", "noise"]

    @pytest.mark.parametrize("names", [(), ("rain",), ("blur", "rain")])
    def test_other_degradations_are_refused(self, names):
        for make in (blind_inputs, evaluation_inputs):
            with pytest.raises(DegradationError, match="some of blur, noise, jpeg; got"):
                make(degradations=names)

    def test_the_four_inputs_are_the_published_ones(self):
        blur, noise = GaussianBlur(sigma=2.0, kernel_size=21), GaussianNoise(sigma=0.1)
        for kind in ("bicubic", "bilinear"):
            down = Downsample(2, kind)
            assert evaluation_inputs(2, kind) == {
                "clean": Pipeline((down, Quantize())),
                "blur": Pipeline((blur, down, Quantize())),
                "noise": Pipeline((down, noise, Quantize())),
                "both": Pipeline((blur, down, noise, Quantize())),
            }

    def test_training_inputs_blur_before_and_add_noise_after_the_downsampling(self):
        assert clean_inputs(3) == Pipeline((Downsample(3), Quantize()))
        assert blind_inputs(4, "bilinear") == Pipeline(
            (
                Sometimes(GaussianBlur(2.0, 21), 0.5),
                Downsample(4, "bilinear"),
                Sometimes(GaussianNoise(0.1), 0.5),
                Quantize(),
            )
        )


@every_kind
class TestEveryKind:
    def test_one_seed_means_one_result(self, images, degradation):
        first, again = (degradation(images, seeded(5)) for _ in range(2))
        assert_close(first, again, rtol=0, atol=0)

    def test_the_global_generator_is_left_alone_when_one_is_given(self, images, degradation):
        before = torch.get_rng_state()
        degradation(images, seeded())
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_generator_the_global_seed_decides(self, images, degradation):
        results = []
        for _ in range(2):
            torch.manual_seed(11)
            results.append(degradation(images))
        assert_close(*results, rtol=0, atol=0)

    def test_the_input_is_not_written_to(self, images, degradation):
        before = images.clone()
        result = degradation(images, seeded())
        assert torch.equal(images, before)
        assert result.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_type_and_channels_are_kept(self, images, degradation, dtype):
        for batch in (images, images[:, :1], images[:1], images[:0]):
            result = degradation(batch.to(dtype), seeded())
            assert result.dtype == dtype
            assert result.shape[:2] == batch.shape[:2]

    def test_the_description_survives_json(self, images, degradation):
        text = json.dumps(degradation.config())
        rebuilt = from_config(json.loads(text))
        assert rebuilt == degradation
        assert json.dumps(rebuilt.config()) == text
        assert_close(rebuilt(images, seeded(3)), degradation(images, seeded(3)), rtol=0, atol=0)

    def test_it_cannot_be_changed(self, degradation):
        name = dataclasses.fields(degradation)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(degradation, name, 1)
        assert hash(degradation) == hash(from_config(degradation.config()))

    def test_the_repr_is_the_call_that_makes_it(self, degradation):
        names = {kind.__name__: kind for kind in (type(known) for known in EVERY_KIND)}
        assert eval(repr(degradation), names) == degradation

    @pytest.mark.parametrize(
        "wrong",
        [torch.zeros(3, 32, 32), torch.zeros(32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)],
        ids=["no batch", "gray", "8 bit"],
    )
    def test_other_images_are_refused_with_the_remedy(self, degradation, wrong):
        with pytest.raises(DegradationError, match=r"floating tensor of shape \(N, C, H, W\).*image\[None\].*by 255"):
            degradation(wrong)

    @pytest.mark.gpu
    @needs_cuda
    def test_the_result_does_not_depend_on_the_device(self, images, degradation):
        there = degradation(images.cuda(), seeded(5))
        assert there.is_cuda
        difference = (there.cpu() - degradation(images, seeded(5))).abs()
        # a rounding step may turn a difference in the last bit into one grey level, at a few pixels
        assert difference.mean() < 1e-5


WRONG = [
    (GaussianBlur, {"sigma": 0}, r"GaussianBlur\.sigma must be a number in \[0\.001, 100\]; got 0"),
    (GaussianBlur, {"sigma": 101.0}, r"GaussianBlur\.sigma.*got 101\.0"),
    (GaussianBlur, {"sigma": float("nan")}, r"GaussianBlur\.sigma.*got nan"),
    (GaussianBlur, {"sigma": "2"}, r"GaussianBlur\.sigma.*got '2'"),
    (GaussianBlur, {"sigma": np.float32(2)}, r"GaussianBlur\.sigma must be a number"),
    (GaussianBlur, {"kernel_size": 20}, r"GaussianBlur\.kernel_size must be odd; got 20"),
    (GaussianBlur, {"kernel_size": 21.0}, r"GaussianBlur\.kernel_size must be a whole number in \[1, 201\]; got 21\.0"),
    (GaussianBlur, {"kernel_size": 203}, r"GaussianBlur\.kernel_size.*got 203"),
    (AnisotropicGaussianBlur, {"sigma_x": 0}, r"AnisotropicGaussianBlur\.sigma_x.*\[0\.001, 100\]; got 0"),
    (AnisotropicGaussianBlur, {"sigma_y": -1.0}, r"AnisotropicGaussianBlur\.sigma_y.*got -1\.0"),
    (AnisotropicGaussianBlur, {"angle": 200}, r"AnisotropicGaussianBlur\.angle.*\[-180, 180\]; got 200"),
    (AnisotropicGaussianBlur, {"kernel_size": 4}, r"AnisotropicGaussianBlur\.kernel_size must be odd; got 4"),
    (GeneralizedGaussianBlur, {"beta": 0}, r"GeneralizedGaussianBlur\.beta must be a number in \[0\.1, 10\]; got 0"),
    (GeneralizedGaussianBlur, {"sigma_x": 0}, r"GeneralizedGaussianBlur\.sigma_x.*got 0"),
    (PlateauBlur, {"beta": 11}, r"PlateauBlur\.beta must be a number in \[0\.1, 10\]; got 11"),
    (PlateauBlur, {"angle": float("nan")}, r"PlateauBlur\.angle.*got nan"),
    (GaussianNoise, {"sigma": -0.1}, r"GaussianNoise\.sigma must be a number in \[0, 1\]; got -0\.1"),
    (GaussianNoise, {"gray": 1}, r"GaussianNoise\.gray must be True or False; got 1"),
    (PoissonNoise, {"scale": -1}, r"PoissonNoise\.scale must be a number in \[0, 10\]; got -1"),
    (PoissonNoise, {"scale": 10.5}, r"PoissonNoise\.scale.*got 10\.5"),
    (PoissonNoise, {"gray": "yes"}, r"PoissonNoise\.gray must be True or False; got 'yes'"),
    (GaussianNoise, {"sigma": 25}, r"GaussianNoise\.sigma.*got 25"),
    (Downsample, {"scale": 0}, r"Downsample\.scale must be a whole number in \[1, 8\]; got 0"),
    (Downsample, {"scale": 2.5}, r"Downsample\.scale.*got 2\.5"),
    (Downsample, {"kind": "nearest"}, r"Downsample\.kind must be one of bicubic, bilinear, area; got 'nearest'"),
    (JPEG, {"quality": 0}, r"JPEG\.quality must be a whole number in \[1, 100\]; got 0"),
    (JPEG, {"quality": 50.0}, r"JPEG\.quality.*got 50\.0"),
    (JPEG, {"subsampling": "4:1:1"}, r"JPEG\.subsampling must be one of 4:4:4, 4:2:0; got '4:1:1'"),
    (DifferentiableJPEG, {"quality": 101}, r"DifferentiableJPEG\.quality.*got 101"),
    (DifferentiableJPEG, {"subsampling": 2}, r"DifferentiableJPEG\.subsampling must be one of .*got 2"),
    (Sinc, {"cutoff": 4.0}, r"Sinc\.cutoff must be a number in \[0\.1, 3\.14159\]; got 4\.0"),
    (Sinc, {"kernel_size": 2}, r"Sinc\.kernel_size must be odd; got 2"),
    (Resize, {"factor": 0}, r"Resize\.factor must be a number in \[0\.05, 8\]; got 0"),
    (Resize, {"kind": "lanczos"}, r"Resize\.kind must be one of bicubic, bilinear, area; got 'lanczos'"),
    (Quantize, {"levels": 1}, r"Quantize\.levels must be a whole number in \[2, 65536\]; got 1"),
    (Quantize, {"levels": 8.5}, r"Quantize\.levels.*got 8\.5"),
    (Sometimes, {"degradation": Quantize(), "probability": 1.5}, r"Sometimes\.probability.*\[0, 1\]; got 1\.5"),
    (Sometimes, {"degradation": "blur"}, r"Sometimes\.degradation must hold degradations; got 'blur'"),
    (Pipeline, {"steps": (Quantize(), "blur", 3)}, r"Pipeline\.steps must hold degradations; got 'blur', 3"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), WRONG)
def test_a_parameter_out_of_its_range_is_refused_by_name(kind, fields, message):
    with pytest.raises(DegradationError, match=message):
        kind(**fields)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "Rain"}, r"type of a degradation must be one of .*Downsample.*Sometimes.*; got 'Rain'"),
        ({}, r"type of a degradation must be one of .*got 'None'"),
        ({"type": ["GaussianBlur"]}, "type of a degradation must be one of"),
        ("GaussianBlur", "description of a degradation must be a dictionary; got 'GaussianBlur'"),
        (None, "description of a degradation must be a dictionary; got None"),
        ({"type": "GaussianBlur", "radius": 3}, r"GaussianBlur cannot be built from \{'radius': 3\}.*'radius'"),
        ({"type": "GaussianBlur", "sigma": -1}, r"GaussianBlur\.sigma.*got -1"),
        ({"type": "Sometimes"}, r"Sometimes cannot be built from \{\}: 'degradation' is missing"),
        ({"type": "Pipeline"}, r"Pipeline cannot be built from \{\}: 'steps' is missing"),
        ({"type": "Pipeline", "steps": [{"type": "Rain"}]}, "got 'Rain'"),
        ({"type": "Pipeline", "steps": 3}, "Pipeline cannot be built from"),
    ],
)
def test_a_description_that_is_none_is_refused(config, message):
    with pytest.raises(DegradationError, match=message):
        from_config(config)


def test_a_new_kind_registers_itself():
    @dataclasses.dataclass(frozen=True)
    class Darken(Degradation):
        factor: float = 0.5

        def apply(self, images, generator):  # noqa: ARG002
            return images * self.factor

    try:
        assert from_config({"type": "Darken", "factor": 0.25}) == Darken(0.25)
        assert_close(Pipeline((Darken(),))(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 0.5))
    finally:
        del Degradation._kinds["Darken"]


def test_the_error_is_one_of_the_library():
    assert issubclass(DegradationError, FilterAttrError)
    assert issubclass(DegradationError, ValueError)
