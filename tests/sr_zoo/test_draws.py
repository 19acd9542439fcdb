"""Degradations that are drawn: from which ranges, how often, in which order, and the second-order pipeline."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from sr_zoo.degradations import (
    JPEG,
    Degradation,
    DegradationError,
    Drawn,
    GaussianBlur,
    GaussianNoise,
    GeneralizedGaussianBlur,
    OneOf,
    Pipeline,
    PlateauBlur,
    Quantize,
    Resize,
    SecondOrder,
    Shuffled,
    Sinc,
    from_config,
    second_order,
)
from sr_zoo.images import to_float


@dataclasses.dataclass(frozen=True)
class _Fill(Degradation, abstract=True):
    """Write its own fields into the image, so that what was drawn can be read back."""

    first: float = 0.0
    second: float = 0.0
    count: int = 0

    def apply(self, images, generator):  # noqa: ARG002
        return (
            torch.tensor([self.first, self.second, self.count], dtype=images.dtype).view(1, 3, 1, 1).expand_as(images)
        )


@dataclasses.dataclass(frozen=True)
class _Times(Degradation, abstract=True):
    factor: float = 2.0

    def apply(self, images, generator):  # noqa: ARG002
        return images * self.factor


@dataclasses.dataclass(frozen=True)
class _Plus(Degradation, abstract=True):
    summand: float = 1.0

    def apply(self, images, generator):  # noqa: ARG002
        return images + self.summand


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestDrawn:
    def test_numbers_are_uniform_over_the_range_and_independent(self):
        drawn = Drawn(_Fill(), {"first": (1, 3), "second": (-2.0, -1.0), "count": (4, 6)})
        first, second, count = drawn(torch.zeros(1000, 3, 1, 1), seeded())[:, :, 0, 0].unbind(1)
        assert stats.kstest((first.numpy() - 1) / 2, "uniform").pvalue > 1e-3
        assert stats.kstest(second.numpy() + 2, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(1000)
        assert stats.chisquare(np.bincount(count.long().numpy())[4:]).pvalue > 1e-3
        assert count.unique().tolist() == [4, 5, 6]

    def test_choices_are_equally_likely(self):
        drawn = Drawn(_Fill(), choices={"count": (3, 7, 11, 15)})
        count = drawn(torch.zeros(800, 3, 1, 1), seeded())[:, 2, 0, 0].long().numpy()
        assert set(count) == {3, 7, 11, 15}
        assert stats.chisquare(np.bincount(count)[3::4]).pvalue > 1e-3

    def test_fields_named_together_have_the_same_value(self):
        filled = Drawn(_Fill(), {"first second": (0.0, 1.0)})(torch.zeros(20, 3, 1, 1), seeded())
        assert_close(filled[:, 0], filled[:, 1], rtol=0, atol=0)
        assert filled[:, 0].unique().numel() == 20

    def test_every_image_is_degraded_by_what_was_drawn_for_it(self, photographs):
        images = torch.stack([to_float(photographs[0][:, :60, :60])] * 3)
        blurred, strengths = Drawn(GaussianBlur(), {"sigma": (0.5, 3.0)}).traced(images, seeded())
        for image, sigma in zip(blurred, strengths["blur"].tolist(), strict=True):
            assert_close(image, GaussianBlur(sigma)(images[:1])[0], rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"ranges": {"radius": (0, 1)}},
                r"fields of GaussianBlur, each once; got radius\. It has kernel_size",
            ),
            ({"ranges": {"sigma": (1, 2)}, "choices": {"sigma": (1,)}}, "each once; got sigma"),
            ({}, "each once; got none"),
            ({"ranges": {"sigma": (0, 2)}}, r"GaussianBlur\.sigma must be a number in \[0\.001, 100\]; got 0"),
            ({"ranges": {"sigma": (3, 2)}}, "from low to high; got 3 to 2 for sigma"),
            ({"ranges": {"sigma": (1, 2, 3)}}, r"Drawn\.ranges must have two ends for each field; not so \['sigma'\]"),
            ({"choices": {"kernel_size": (7, 8)}}, r"GaussianBlur\.kernel_size must be odd; got 8"),
            ({"choices": {"kernel_size": ()}}, r"Drawn\.choices must have at least one value"),
            ({"ranges": 3}, r"Drawn\.ranges must map fields to values; got 3"),
            ({"ranges": {"sigma": 3}}, r"Drawn\.ranges must map fields to values"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_by_name(self, fields, message):
        with pytest.raises(DegradationError, match=message):
            Drawn(GaussianBlur(), **fields)

    def test_it_only_draws_for_degradations(self):
        with pytest.raises(DegradationError, match=r"Drawn\.degradation must hold degradations; got 3"):
            Drawn(3, {"sigma": (1, 2)})


class TestOneOf:
    def test_candidates_come_with_their_chances(self):
        chosen = OneOf((_Plus(1.0), _Plus(2.0), _Plus(3.0)), (0.5, 0.3, 0.2))(torch.zeros(2000, 1, 1, 1), seeded())
        counts = np.bincount(chosen.flatten().long().numpy())[1:]
        assert stats.chisquare(counts, 2000 * np.array([0.5, 0.3, 0.2])).pvalue > 1e-3

    def test_chances_are_equal_if_not_given(self):
        assert OneOf((Quantize(), Sinc())) == OneOf((Quantize(), Sinc()), (0.5, 0.5))

    def test_strengths_are_zero_for_who_got_something_else(self):
        _, strengths = OneOf((GaussianNoise(0.2), GaussianBlur(2.0))).traced(torch.rand(20, 1, 16, 16), seeded())
        assert_close((strengths["noise"] > 0), (strengths["blur"] == 0))
        assert 0 < (strengths["noise"] > 0).sum() < 20

    @pytest.mark.parametrize(
        ("chances", "message"),
        [
            ((0.5, 0.6), r"one for each of the 2 degradations, of sum 1; got \(0\.5, 0\.6\)"),
            ((1.0,), "one for each of the 2 degradations"),
            ((1.5, -0.5), r"OneOf\.probabilities must be a number in \[0, 1\]; got 1\.5"),
        ],
    )
    def test_chances_that_are_none_are_refused(self, chances, message):
        with pytest.raises(DegradationError, match=message):
            OneOf((Quantize(), Sinc()), chances)

    def test_nothing_to_choose_from_is_refused(self):
        with pytest.raises(DegradationError, match=r"OneOf\.degradations must hold at least one degradation; got none"):
            OneOf(())

    def test_results_of_different_sizes_are_refused_for_a_batch_but_not_for_one_image(self):
        resize = OneOf((Resize(0.5), Resize(0.25)))
        with pytest.raises(DegradationError, match=r"images of one size.*made 4x4, 8x8\. Give it one image at a time"):
            resize(torch.rand(20, 1, 16, 16), seeded())
        assert resize(torch.rand(1, 1, 16, 16), seeded()).shape[-1] in (4, 8)


class TestShuffled:
    def test_all_orders_happen_equally_often(self):
        """Of doubling, adding one and adding ten to 1, each order has a result of its own."""
        shuffled = Shuffled((_Times(2.0), _Plus(1.0), _Times(5.0)))
        found = shuffled(torch.ones(1200, 1, 1, 1), seeded()).flatten().long().numpy()
        results, counts = np.unique(found, return_counts=True)
        # (1+1)*10, (1*2+1)*5, (1*5+1)*2, 1*10+1: the first and the last come from two orders each
        assert results.tolist() == [11, 12, 15, 20]
        assert stats.chisquare(counts, [400, 200, 200, 400]).pvalue > 1e-3

    def test_one_image_goes_through_a_pipeline(self, photographs):
        image = to_float(photographs[1])[None]
        steps = (GaussianBlur(1.0), Quantize(5))
        found = Shuffled(steps)(image, seeded())
        assert any(torch.equal(found, Pipeline(order)(image)) for order in (steps, steps[::-1]))


class TestSecondOrder:
    @pytest.mark.parametrize("scale", [2, 4])
    def test_whatever_happens_in_between_the_size_is_that_of_the_scale(self, photographs, scale):
        image = to_float(photographs[0][:, :, :80])[None].expand(2, -1, -1, -1)
        image = torch.nn.functional.interpolate(image, size=(80, 88))
        for seed in range(2):
            degraded, strengths = second_order(scale).traced(image, seeded(seed))
            assert degraded.shape == (2, 3, 80 // scale, 88 // scale)
            assert degraded.min() >= 0
            assert degraded.max() <= 1
            assert_close(degraded * 255, (degraded * 255).round(), rtol=0, atol=1e-4)
            assert (strengths["jpeg"] > 0).all()
            assert (strengths["noise"] > 0).all()
        assert not torch.equal(degraded[0], degraded[1])

    def test_images_are_drawn_for_independently_of_their_neighbours(self):
        """The random numbers of an image come after those of the images before it, never from those behind."""
        images = torch.rand(3, 3, 80, 80, generator=seeded())
        pipeline = SecondOrder(2, GaussianNoise(0.1), Sinc(2.0), JPEG(60))
        whole = pipeline(images, seeded(1))
        changed = images.clone()
        changed[2] = 0
        assert_close(pipeline(changed, seeded(1))[:2], whole[:2], rtol=0, atol=0)

    def test_resizing_back_comes_before_or_after_the_compression(self, photographs):
        image = to_float(photographs[1])[None]
        pipeline = SecondOrder(2, Pipeline(()), Sinc(1.5, 9), JPEG(10))
        from_jpeg = {float((pipeline(image, seeded(seed)) - image[..., ::2, ::2]).std()) for seed in range(12)}
        assert len(from_jpeg) == 4  # two orders; halved, bilinear and area are the same

    def test_the_published_ranges(self):
        config = json.dumps(second_order(4).config())
        for piece in (
            '"ranges": {"factor": [0.15, 1.0]}',
            '"ranges": {"factor": [0.3, 1.0]}',
            '"ranges": {"quality": [30, 95]}',
            '"probabilities": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]',
        ):
            assert piece in config
        assert from_config(json.loads(config)) == second_order(4)

    def test_sizes_that_are_no_multiple_are_refused(self):
        with pytest.raises(DegradationError, match="multiples of 4; got 80x82"):
            second_order(4)(torch.zeros(1, 3, 80, 82))

    def test_parts_must_be_degradations(self):
        with pytest.raises(DegradationError, match=r"SecondOrder\.ringing must hold degradations; got None"):
            SecondOrder(2, Quantize(), None, JPEG())


class TestAgainstOpenCV:
    """The third witness, beside SciPy and Pillow."""

    @pytest.fixture
    def cv2(self):
        return pytest.importorskip("cv2")

    @pytest.fixture
    def image(self, photographs):
        return to_float(photographs[0][:, :60, :66])[None]

    @pytest.mark.parametrize(
        "blur",
        [
            GaussianBlur(2.0),
            GeneralizedGaussianBlur(2.0, 1.0, 30.0, 15, 0.5),
            PlateauBlur(3.0, 1.0, -70.0, 13),
            Sinc(1.2),
        ],
        ids=lambda blur: type(blur).__name__,
    )
    def test_blurs(self, cv2, image, blur):
        kernel = blur.kernel().numpy()
        if kernel.ndim == 1:
            kernel = np.outer(kernel, kernel)
        pixels = image[0].permute(1, 2, 0).double().numpy()
        expected = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        assert_close(blur(image)[0].permute(1, 2, 0), torch.from_numpy(expected).float(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("factor", "size"), [(0.5, (30, 33)), (1.5, (90, 99)), (0.3, (18, 20))])
    def test_bilinear(self, cv2, image, factor, size):
        pixels = image[0].permute(1, 2, 0).numpy()
        expected = torch.from_numpy(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))
        assert_close(Resize(factor, "bilinear")(image)[0].permute(1, 2, 0), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("scale", [2, 3])
    def test_area(self, cv2, image, scale):
        pixels = image[0].permute(1, 2, 0).numpy()
        size = (66 // scale, 60 // scale)
        expected = torch.from_numpy(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        resize = torch.nn.functional.interpolate
        assert resize(image, scale_factor=1 / scale, mode="area").shape[-2:] == size[::-1]
        assert_close(Resize(1 / scale, "area")(image)[0].permute(1, 2, 0), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("quality", [20, 80])
    def test_jpeg(self, cv2, image, quality):
        pixels = (image[0] * 255).round().byte().permute(1, 2, 0).flip(2).contiguous().numpy()
        _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = torch.from_numpy(cv2.imdecode(stream, cv2.IMREAD_COLOR)[..., ::-1].copy()).permute(2, 0, 1)
        assert (JPEG(quality)(image)[0] * 255 - decoded).abs().max() <= 1


def test_the_sinc_kernel_is_scipys_bessel_function():
    special = pytest.importorskip("scipy.special")
    axis = np.arange(15) - 7
    distance = np.hypot(*np.meshgrid(axis, axis))
    with np.errstate(invalid="ignore"):
        kernel = 2.2 * special.j1(2.2 * distance) / (2 * np.pi * distance)
    kernel[7, 7] = 2.2**2 / (4 * np.pi)
    assert_close(Sinc(2.2, 15).kernel(), torch.from_numpy(kernel / kernel.sum()), rtol=0, atol=1e-7)


def test_resizing_bicubically_is_pillows_for_any_factor(photographs):
    from PIL import Image

    image = to_float(photographs[0][:1, :60, :66])[None]
    for factor in (0.37, 0.8, 1.0, 1.6):
        found = Resize(factor)(image)
        size = found.shape[:-3:-1]
        expected = Image.fromarray(image[0, 0].numpy()).resize(size, Image.BICUBIC)
        assert_close(found[0, 0], torch.from_numpy(np.array(expected)), rtol=0, atol=1e-5)


def test_the_smallest_image_keeps_a_pixel():
    assert Resize(0.05)(torch.rand(1, 1, 4, 4)).shape == (1, 1, 1, 1)
