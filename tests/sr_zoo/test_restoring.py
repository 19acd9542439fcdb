"""Restoring files: tiles leave no trace, gray and transparency are kept, and what cannot be restored is refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

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
        with pytest.raises(ImageError, match=r"must hold 8 bits a channel; '.*gray\.png' holds more \(mode I;16\)"):
            Picture.read(tmp_path / "gray.png")

    def test_16_bit_colour_is_refused_though_pillow_reads_it(self, tmp_path):
        cv2 = pytest.importorskip("cv2")
        cv2.imwrite(str(tmp_path / "colour.png"), np.full((20, 20, 3), 40_000, np.uint16))
        with Image.open(tmp_path / "colour.png") as image:
            assert image.mode == "RGB"
        with pytest.raises(ImageError, match=r"must hold 8 bits a channel; '.*colour\.png' holds more"):
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
        with pytest.raises(ImageError, match=r"a\.jpg' cannot be written: .*RGBA.*PNG holds every picture"):
            Picture(pixels, alpha).write(tmp_path / "a.jpg")
        with pytest.raises(ImageError, match=r"a\.xyz' cannot be written"):
            Picture(pixels).write(tmp_path / "a.xyz")
