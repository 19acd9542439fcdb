"""Restoring files: tiles leave no trace, gray and transparency are kept, and what cannot be restored is refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn
from torch.testing import assert_close

from filterattr.errors import FilterAttrWarning, NonFiniteError
from sr_zoo.images import ImageError, to_float, to_uint8
from sr_zoo.models import RRDBNet, SRCNNStyle, SRResNet, TwoBranch
from sr_zoo.restoring import MAX_PIXELS, Picture, reach, restore, restore_picture


def strong(network: nn.Module, rng: torch.Generator) -> nn.Module:
    """Weights that let every pixel matter far away."""
    for parameter in network.parameters():
        parameter.data = 1.5 * torch.randn(parameter.shape, generator=rng) / max(1, parameter[0].numel()) ** 0.5
    return network.eval()


@pytest.fixture
def network(rng):
    return strong(SRResNet(num_feat=6, num_block=2), rng)


class TestTiles:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: SRResNet(num_feat=6, num_block=3),
            lambda: SRResNet(num_feat=4, num_block=1, upscale=3),
            lambda: TwoBranch(num_feat=6, num_block=2, hidden=3, condition=4, predictor_feat=5),
            lambda: RRDBNet(num_feat=6, num_block=1, num_grow_ch=3, upscale=2),
        ],
        ids=["SRResNet", "x3", "TwoBranch", "RRDBNet x2"],
    )
    @pytest.mark.parametrize("size", [(70, 93), (17, 120), (150, 33)])
    def test_a_tiled_image_equals_the_whole_one(self, make, size, rng):
        network = strong(make(), rng).double()
        degraded = torch.rand(1, 3, *size, generator=rng).double()
        with torch.no_grad():
            whole = network(degraded)
        assert whole.std() > 0.01
        tiled = restore(network, degraded, tile=32)
        assert_close(tiled, whole, rtol=0, atol=1e-9 * float(whole.abs().max()))

    def test_without_an_overlap_there_would_be_seams(self, network, rng, monkeypatch):
        """The test above can fail."""
        monkeypatch.setattr("sr_zoo.restoring.reach", lambda network: 0)
        degraded = torch.rand(1, 3, 70, 70, generator=rng)
        with torch.no_grad():
            assert (restore(network, degraded, tile=32) - network(degraded)).abs().max() > 1e-3

    def test_single_precision_and_8_bits_agree_with_the_whole_image(self, network, rng):
        pixels = torch.randint(0, 256, (2, 3, 50, 60), generator=rng, dtype=torch.uint8)
        with torch.no_grad():
            whole = network(to_float(pixels))
        assert_close(restore(network, to_float(pixels), tile=16), whole, rtol=0, atol=1e-4)
        tiled = restore(network, pixels, tile=16)
        assert tiled.dtype == torch.uint8
        assert (tiled.int() - to_uint8(whole).int()).abs().max() <= 1

    def test_the_overlap_is_how_far_the_network_looks(self, rng):
        """A pixel that far away changes nothing, by the gradient."""
        for network in (SRResNet(num_feat=4, num_block=2), SRCNNStyle(), SRResNet(num_feat=4, num_block=1, upscale=4)):
            strong(network, rng).double()
            degraded = torch.rand(1, 3, 61, 61, generator=rng).double().requires_grad_()
            middle = 30 * network.upscale
            network(degraded)[0, :, middle, middle].sum().backward()
            seen = degraded.grad.abs().sum((0, 1)) > 0
            rows = seen.any(1).nonzero().flatten()
            assert max(30 - int(rows.min()), int(rows.max()) - 30) <= reach(network)

    def test_the_deepest_networks_overlap_by_64_pixels(self):
        with torch.device("meta"):
            assert reach(RRDBNet()) == 64
            assert reach(SRResNet()) < 40

    def test_progress_counts_tiles(self, network):
        seen = []
        restore(network, torch.rand(1, 3, 40, 20), tile=16, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(done, 6) for done in range(1, 7)]

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
    def test_the_smallest_images_are_restored_too(self, network, size):
        assert restore(network, torch.rand(1, 3, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])

    def test_a_tile_that_is_too_small_and_an_image_without_pixels_are_refused(self, network):
        with pytest.raises(ImageError, match="a tile must be at least 16 pixels wide; got 8"):
            restore(network, torch.rand(1, 3, 40, 40), tile=8)
        with pytest.raises(ImageError, match=r"must have pixels; got shape \(1, 3, 0, 5\)"):
            restore(network, torch.rand(1, 3, 0, 5))


class TestPictures:
    def test_gray_stays_gray(self, tmp_path, network, photographs):
        path = tmp_path / "gray.png"
        Image.fromarray(photographs[1][0].numpy()).save(path)
        picture = Picture.read(path)
        assert picture.is_gray
        assert torch.equal(picture.pixels[0], picture.pixels[2])
        restore_picture(network, picture).write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            assert out.mode == "L"
            assert out.size == (128, 128)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_enlarged_and_colours_are_restored_as_if_opaque(self, tmp_path, network, photographs, mode):
        pixels = photographs[1].permute(1, 2, 0).numpy()
        alpha = np.zeros((64, 64), np.uint8)
        alpha[:, 32:] = 255
        image = Image.fromarray(pixels).convert(mode)
        image.putalpha(Image.fromarray(alpha))
        image.save(tmp_path / "a.png")
        picture = Picture.read(tmp_path / "a.png")
        restore_picture(network, picture).write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            assert out.mode == mode
            found = np.array(out)
        assert (found[:, :60, -1] == 0).all()
        assert (found[:, 68:, -1] == 255).all()
        opaque = restore_picture(network, Picture(picture.pixels, is_gray=mode == "LA"))
        opaque.write(tmp_path / "opaque.png")
        with Image.open(tmp_path / "opaque.png") as expected:
            colours = np.array(expected).reshape(128, 128, -1)
        assert np.array_equal(found[..., :-1], colours)

    def test_palettes_with_a_transparent_colour_become_true_colour(self, tmp_path, network):
        image = Image.new("P", (20, 20), 1)
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.save(tmp_path / "a.png", transparency=1)
        picture = restore_picture(network, Picture.read(tmp_path / "a.png"))
        assert (picture.alpha == 0).all()
        assert not picture.is_gray

    def test_the_picture_is_upright_and_keeps_its_colour_profile(self, tmp_path, network):
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif, icc_profile=profile)
        restored = restore_picture(network, Picture.read(tmp_path / "a.jpg"))
        assert restored.size == (60, 40)
        restored.write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            assert out.info["icc_profile"] == profile

    def test_a_picture_that_is_not_touched_comes_back(self, tmp_path, photographs):
        Image.fromarray(photographs[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
        picture = Picture.read(tmp_path / "a.png")
        assert torch.equal(picture.pixels, photographs[0])
        picture.write(tmp_path / "deep" / "b.bmp")
        assert torch.equal(Picture.read(tmp_path / "deep" / "b.bmp").pixels, photographs[0])


class TestRefusals:
    def test_16_bits_are_refused_in_gray_and_in_colour(self, tmp_path):
        Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "gray.png")
        with pytest.raises(ImageError, match=r"must hold 8 bits per channel; '.*gray\.png' holds more \(mode I;16\)"):
            Picture.read(tmp_path / "gray.png")

    def test_16_bit_colour_is_refused_though_pillow_reads_it(self, tmp_path):
        cv2 = pytest.importorskip("cv2")
        cv2.imwrite(str(tmp_path / "colour.png"), np.full((20, 20, 3), 40_000, np.uint16))
        with Image.open(tmp_path / "colour.png") as image:
            assert image.mode == "RGB"
        with pytest.raises(ImageError, match=r"must hold 8 bits per channel; '.*colour\.png' holds more"):
            Picture.read(tmp_path / "colour.png")

    def test_an_enormous_image_is_refused_before_it_is_decoded(self, tmp_path):
        side = int(MAX_PIXELS**0.5) + 1
        Image.new("1", (side, side)).save(tmp_path / "huge.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=rf"may hold 50,000,000 pixels; '.*huge\.png' has {side}x{side}"):
                Picture.read(tmp_path / "huge.png")

    @pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
    def test_what_is_no_image_is_refused(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"must be a readable file; got '.*a\.png'"):
            Picture.read(tmp_path / "a.png")

    def test_a_truncated_image_is_refused(self, tmp_path, photographs):
        Image.fromarray(photographs[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match="must be a readable file"):
            Picture.read(tmp_path / "a.png")

    def test_formats_that_cannot_hold_it_are_refused(self, tmp_path):
        pixels, alpha = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8)
        with pytest.raises(ImageError, match=r"a\.jpg' cannot be written: .*RGBA.*Choose \.png"):
            Picture(pixels, alpha).write(tmp_path / "a.jpg")
        with pytest.raises(ImageError, match=r"a\.xyz' cannot be written"):
            Picture(pixels).write(tmp_path / "a.xyz")


class TestGrayNetworks:
    @pytest.fixture
    def gray(self, photographs):
        return Picture(photographs[1][:1].repeat(3, 1, 1), is_gray=True)

    @pytest.mark.parametrize(
        "make",
        [
            lambda **channels: SRResNet(num_feat=4, num_block=1, **channels),
            lambda **channels: RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, upscale=2, **channels),
            lambda **channels: TwoBranch(num_feat=4, num_block=1, hidden=2, condition=2, predictor_feat=2, **channels),
        ],
        ids=["SRResNet", "RRDBNet", "TwoBranch"],
    )
    def test_a_gray_picture_becomes_what_the_network_makes_of_one_channel(self, tmp_path, make, rng, gray):
        network = strong(make(num_in_ch=1, num_out_ch=1), rng)
        restored = restore_picture(network, gray)
        with torch.no_grad():
            expected = to_uint8(network(to_float(gray.pixels[None, :1])))[0, 0]
        assert restored.is_gray
        assert restored.pixels.shape == (3, 128, 128)
        assert (restored.pixels.int() - expected.int()).abs().max() <= 1
        restored.write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            assert out.mode == "L"
            assert np.array_equal(np.array(out), restored.pixels[0].numpy())

    def test_a_network_that_colours_makes_a_picture_in_colour(self, rng, gray):
        network = strong(SRResNet(num_in_ch=1, num_out_ch=3, num_feat=4, num_block=1), rng)
        restored = restore_picture(network, gray)
        assert not restored.is_gray
        assert not torch.equal(restored.pixels[0], restored.pixels[1])

    def test_a_picture_in_colour_is_refused(self, photographs):
        with pytest.raises(ImageError, match="one channel restores gray pictures; this one has colours"):
            restore_picture(SRResNet(num_in_ch=1, num_out_ch=1, num_feat=4, num_block=1), Picture(photographs[1]))

    def test_channels_that_no_picture_has_are_refused(self, gray):
        with pytest.raises(ImageError, match="1 or 3 channels to 1 or 3 to restore a picture; got 4 to 4"):
            restore_picture(SRResNet(num_in_ch=4, num_out_ch=4, num_feat=4, num_block=1), gray)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_network_that_puts_out_no_numbers_restores_nothing(value, dtype):
    network = SRResNet(num_feat=4, num_block=1)
    with torch.no_grad():
        network.conv_last.weight[0, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match=r"values are infinite or not a number\. If a network made it"):
        restore(network, torch.ones(1, 3, 20, 20).to(dtype))


def icc(space):
    """A profile of these values; only its head is sound."""
    sound = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    sound[16:20] = space
    return bytes(sound)


class TestProfiles:
    def read(self, tmp_path, image, profile, name="a.tiff"):
        image.save(tmp_path / name, icc_profile=profile)
        picture = Picture.read(tmp_path / name)
        picture.write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            return picture, out.mode, out.info.get("icc_profile")

    @pytest.mark.parametrize(("mode", "space"), [("RGB", b"RGB "), ("L", b"GRAY"), ("RGBA", b"RGB "), ("LA", b"GRAY")])
    def test_a_profile_of_these_values_is_kept(self, tmp_path, mode, space):
        _, written, profile = self.read(tmp_path, Image.new(mode, (20, 20)), icc(space))
        assert (written, profile) == (mode, icc(space))

    @pytest.mark.parametrize(
        ("mode", "space", "named"),
        [("RGB", b"GRAY", "GRAY"), ("L", b"RGB ", "RGB"), ("RGB", b"CMYK", "CMYK"), ("RGB", b"Lab ", "Lab")],
    )
    def test_a_profile_of_other_values_is_left_out_with_a_word(self, tmp_path, mode, space, named):
        with pytest.warns(FilterAttrWarning, match=f"left out: it is for {named} values, the picture holds {mode}"):
            _, written, profile = self.read(tmp_path, Image.new(mode, (20, 20)), icc(space))
        assert (written, profile) == (mode, None)

    @pytest.mark.parametrize("name", ["a.tiff", "a.jpg"])
    def test_a_damaged_profile_of_print_is_left_out_with_a_word(self, tmp_path, name):
        image = Image.new("CMYK", (20, 20), (10, 200, 30, 5))
        with pytest.warns(FilterAttrWarning, match=r"left out: it cannot be used \(.*\)\. Colours may shift"):
            picture, written, profile = self.read(tmp_path, image, icc(b"CMYK"), name)
        assert (written, profile) == ("RGB", None)
        assert (picture.pixels[:, 0, 0].int() - torch.tensor([240, 54, 220])).abs().max() < 8

    def test_print_becomes_what_its_profile_says(self, tmp_path, monkeypatch):
        """No profile of print comes with Pillow: the conversion is watched instead."""
        seen = []

        def convert(image, source, target, outputMode):  # noqa: N803 - Pillow's name
            assert target.profile_description.startswith("sRGB")
            seen.append((image.mode, source.read(), outputMode))
            return Image.new(outputMode, image.size, (1, 2, 3))

        monkeypatch.setattr(ImageCms, "profileToProfile", convert)
        picture, written, profile = self.read(tmp_path, Image.new("CMYK", (20, 20)), icc(b"CMYK"))
        assert seen == [("CMYK", icc(b"CMYK"), "RGB")]
        assert picture.pixels[:, 5, 5].tolist() == [1, 2, 3]
        assert (written, profile) == ("RGB", None)

    def test_lab_becomes_srgb_and_its_profile_goes_without_a_word(self, tmp_path):
        lab = Image.new("LAB", (20, 20), (128, 128, 128))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture, written, profile = self.read(tmp_path, lab, icc(b"Lab "))
        assert (written, profile) == ("RGB", None)
        assert (picture.pixels.float().std(0) < 3).all()

    def test_a_profile_does_not_follow_a_picture_that_lost_its_colours(self, tmp_path, photographs):
        Picture(photographs[1], is_gray=True, profile=icc(b"RGB ")).write(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as out:
            assert (out.mode, out.info.get("icc_profile")) == ("L", None)
