"""Reading photographs of every sort, and writing them."""

import ast
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from filterattr.errors import FilterAttrError, NonFiniteError
from sr_zoo.images import ImageError, list_photographs, read_image, to_float, to_uint8, write_image
from sr_zoo.restoring import Picture

ORIENTATION = 274

# how to turn the stored picture into the one that the camera saw, by the EXIF standard
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.fixture
def pixels() -> np.ndarray:
    """A picture with no symmetry, ``(6, 9, 3)``."""
    return np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def write_16_bit_rgb(path: Path, values: np.ndarray) -> None:
    """A PNG that Pillow cannot write: 16 bits for each of three channels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


class TestReading:
    @pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.PNG"])
    def test_lossless_files_come_back_bit_for_bit(self, tmp_path, pixels, name):
        write_image(tmp_path / name, as_tensor(pixels))
        found = read_image(tmp_path / name)
        assert found.dtype == torch.uint8
        assert found.is_contiguous()
        assert_close(found, as_tensor(pixels), rtol=0, atol=0)

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("extension", ["png", "tiff"])
    def test_photographs_are_upright(self, tmp_path, pixels, orientation, extension):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(pixels).save(tmp_path / f"a.{extension}", exif=exif)
        found = read_image(tmp_path / f"a.{extension}")
        assert_close(found, as_tensor(UPRIGHT[orientation](pixels)), rtol=0, atol=0)

    def test_a_jpeg_of_a_turned_camera_is_upright(self, tmp_path):
        stored = np.zeros((16, 32, 3), dtype=np.uint8)
        stored[:, :16] = 255
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
        found = read_image(tmp_path / "a.jpg")
        assert found.shape == (3, 32, 16)
        assert found[:, :15].min() > 250
        assert found[:, 17:].max() < 5

    @pytest.mark.parametrize("extension", ["png", "tiff"])
    def test_16_bit_gray_is_scaled_not_clipped(self, tmp_path, extension):
        values = np.linspace(0, 65535, 60).round().astype(np.uint16).reshape(6, 10)
        Image.fromarray(values).save(tmp_path / f"a.{extension}")
        expected = np.round(values.astype(np.float64) / 65535 * 255).astype(np.uint8)
        assert_close(read_image(tmp_path / f"a.{extension}"), as_tensor(np.stack([expected] * 3, -1)), rtol=0, atol=0)

    def test_16_bit_gray_is_upright_too(self, tmp_path):
        values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        assert_close(read_image(tmp_path / "a.png")[0], torch.tensor([[3, 0], [4, 1], [5, 2]], dtype=torch.uint8))

    def test_16_bit_colour_is_within_one_level(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
        write_16_bit_rgb(tmp_path / "a.png", values)
        expected = torch.from_numpy(values.astype(np.float64) / 257).permute(2, 0, 1)
        assert_close(read_image(tmp_path / "a.png").double(), expected, rtol=0, atol=1)

    def test_gray_is_repeated(self, tmp_path, pixels):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
        assert_close(read_image(tmp_path / "a.png"), as_tensor(np.stack([pixels[..., 0]] * 3, -1)), rtol=0, atol=0)

    def test_black_and_white_becomes_0_and_255(self, tmp_path):
        Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[:, 0].tolist() == [[255, 0]] * 3

    def test_a_palette_is_looked_up(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]

    def test_a_transparent_palette_entry_shows_white(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png", transparency=b"\x00\xff")
        assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]

    def test_opaque_alpha_changes_nothing(self, tmp_path, pixels):
        Image.fromarray(pixels).convert("RGBA").save(tmp_path / "a.png")
        assert_close(read_image(tmp_path / "a.png"), as_tensor(pixels), rtol=0, atol=0)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_what_is_transparent_is_laid_on_white(self, tmp_path, mode):
        shade = (100,) * 3 if mode == "RGBA" else (100,)
        image = Image.new(mode, (3, 1))
        for column, alpha in enumerate((0, 51, 255)):
            image.putpixel((column, 0), (*shade, alpha))
        image.save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[0, 0].tolist() == [255, 100 // 5 + 255 * 4 // 5, 100]

    def test_print_colours_become_rgb(self, tmp_path):
        Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
        assert read_image(tmp_path / "a.jpg").float().mean() > 250

    def test_of_an_animation_the_first_picture_is_taken(self, tmp_path):
        first, second = (Image.new("RGB", (4, 4), shade) for shade in ("red", "blue"))
        first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
        assert read_image(tmp_path / "a.webp")[:, 0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("kind", [np.float32, np.int32])
    def test_32_bit_values_are_refused_because_white_is_unknown(self, tmp_path, kind):
        Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / "depth.tiff")
        with pytest.raises(ImageError, match=r"depth\.tiff.*32-bit values; convert it to 8 or 16 bits"):
            read_image(tmp_path / "depth.tiff")

    @pytest.mark.parametrize("extension", ["png", "jpg", "tiff", "webp", "bmp"])
    def test_a_file_that_was_cut_off_is_named(self, tmp_path, extension):
        path = tmp_path / f"cut.{extension}"
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=rf"readable image file; got '.*cut\.{extension}'"):
            read_image(path)

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
    def test_a_file_that_is_no_image_is_named(self, tmp_path, content):
        (tmp_path / "text.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"text\.png"):
            read_image(tmp_path / "text.png")

    def test_missing_files_and_folders_are_named(self, tmp_path):
        with pytest.raises(ImageError, match=r"gone\.png.*FileNotFoundError"):
            read_image(tmp_path / "gone.png")
        with pytest.raises(ImageError, match="IsADirectoryError"):
            read_image(tmp_path)

    def test_one_except_catches_it_as_an_error_of_the_library(self):
        assert issubclass(ImageError, FilterAttrError)
        assert issubclass(ImageError, ValueError)


POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


class TestFormats:
    @pytest.mark.parametrize("read", [read_image, Picture.read])
    def test_postscript_under_the_name_of_a_picture_starts_no_program(self, tmp_path, monkeypatch, read):
        program = tmp_path / "bin" / "gs"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        (tmp_path / "holiday.png").write_text(POSTSCRIPT)
        with pytest.raises(ImageError, match=r"holiday\.png.*PNG, JPEG, BMP, TIFF and WebP are read"):
            read(tmp_path / "holiday.png")
        assert not (tmp_path / "started").exists()

    @pytest.mark.parametrize("read", [read_image, Picture.read])
    @pytest.mark.parametrize("kind", ["GIF", "PPM", "PCX", "TGA", "ICO"])
    def test_formats_that_are_not_listed_are_refused_though_pillow_knows_them(self, tmp_path, pixels, read, kind):
        Image.fromarray(pixels).save(tmp_path / "a.png", format=kind)
        with pytest.raises(ImageError, match="cannot identify image file"):
            read(tmp_path / "a.png")

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_the_content_tells_the_format_not_the_name(self, tmp_path, pixels, kind):
        Image.fromarray(pixels).save(tmp_path / "a.jpg", format=kind)
        assert_close(read_image(tmp_path / "a.jpg"), as_tensor(pixels), rtol=0, atol=0)

    def test_a_photograph_of_several_pictures_as_telephones_write_is_a_jpeg(self, tmp_path):
        first, second = (Image.new("RGB", (16, 16), shade) for shade in ("white", "black"))
        first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
        assert read_image(tmp_path / "a.jpg").min() > 250

    def test_no_picture_is_opened_without_a_list_of_formats(self):
        root = Path(__file__).parents[2]
        opened = [
            ast.unparse(node)
            for package in ("filterattr", "sr_zoo")
            for path in (root / package).rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
        ]
        assert len(opened) == 2
        assert all("formats=" in call for call in opened)


class TestListing:
    def test_images_are_listed_by_name_and_nothing_else_is(self, tmp_path):
        for name in ("b.JPG", "a.png", "c.webp", "notes.txt", ".hidden.png"):
            (tmp_path / name).touch()
        (tmp_path / "folder.png").mkdir()
        assert [path.name for path in list_photographs(tmp_path)] == ["a.png", "b.JPG", "c.webp"]

    def test_a_missing_folder_and_a_file_are_refused(self, tmp_path):
        (tmp_path / "a.png").touch()
        for path in (tmp_path / "gone", tmp_path / "a.png"):
            with pytest.raises(ImageError, match="a folder of photographs must exist"):
                list_photographs(path)

    def test_a_folder_without_images_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ImageError, match=r"at least one image.*\.png"):
            list_photographs(tmp_path)


class TestConverting:
    def test_every_8_bit_value_survives_the_way_to_float_and_back(self):
        values = torch.arange(256, dtype=torch.uint8)
        assert_close(to_uint8(to_float(values)), values, rtol=0, atol=0)
        assert to_float(values).max() == 1

    def test_values_are_rounded_and_clipped(self):
        values = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1.5])
        assert to_uint8(values).tolist() == [0, 0, 1, 254, 255]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_no_number_does_not_become_black(self, tmp_path, value):
        image = torch.full((3, 4, 4), 0.5)
        image[0, 1, 2] = value
        for convert in (to_uint8, lambda some: write_image(tmp_path / "a.png", some)):
            with pytest.raises(NonFiniteError, match="an image must be finite; 1 of 48 values"):
                convert(image)
        assert not (tmp_path / "a.png").exists()

    def test_half_precision_and_gradients_are_no_obstacle(self):
        assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)).tolist() == [128]

    def test_floats_are_not_divided_by_255_again(self):
        with pytest.raises(ImageError, match=r"must be uint8; got torch\.float32"):
            to_float(torch.rand(3, 4, 4))


class TestWriting:
    def test_floats_are_rounded_and_folders_are_made(self, tmp_path, pixels):
        path = tmp_path / "new" / "folder" / "a.png"
        write_image(path, to_float(as_tensor(pixels)))
        assert_close(read_image(path), as_tensor(pixels), rtol=0, atol=0)

    @pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4), (1, 3, 4, 4), (4, 4, 3)])
    def test_other_shapes_are_refused(self, tmp_path, shape):
        with pytest.raises(ImageError, match=r"must have shape \(3, H, W\); got \("):
            write_image(tmp_path / "a.png", torch.zeros(shape))

    def test_integers_of_unknown_range_are_refused(self, tmp_path):
        with pytest.raises(ImageError, match=r"uint8 or floating in \[0, 1\]; got torch\.int64"):
            write_image(tmp_path / "a.png", torch.zeros(3, 4, 4, dtype=torch.int64))

    @pytest.mark.parametrize("name", ["a.unknown", "a"])
    def test_an_unknown_format_is_named(self, tmp_path, name):
        with pytest.raises(ImageError, match=rf"{name}' cannot be written: unknown file extension"):
            write_image(tmp_path / name, torch.zeros(3, 4, 4))
