"""``restore``: enlarge an image, or all images of a folder, and undo what was done to them."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from tqdm import tqdm

from filterattr import FilterAttrWarning
from filterattr.cli import OutputError, check_file, check_folder, device_of
from sr_zoo.cli.keys import keys_of
from sr_zoo.data import unreadable
from sr_zoo.images import EXTENSIONS, ImageError, list_photographs
from sr_zoo.pretrained import open_network
from sr_zoo.restoring import Picture, restore_picture

_LARGEST = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # pixels that the format can count


def run(options: argparse.Namespace) -> None:
    """Restore tile by tile; everything that cannot be restored is named before the work."""
    outs = _outs(options)
    kinds = _kinds(outs)
    for image, out in outs.items():
        check_file("--out", out, EXTENSIONS, overwrite=options.overwrite, inputs=[image])
    device = device_of(options)
    network = open_network(options.weights, key=keys_of(options, [options.weights])[0]).to(device)
    for image, out in outs.items():
        _check_format(*kinds[image], int(getattr(network, "upscale", 1)), out)
    for image, out in outs.items():
        height, width = _restore(network, image, out, options.tile)
        sys.stdout.write(f"wrote {out} ({width}x{height})\n")


def _outs(options: argparse.Namespace) -> dict[Path, Path]:
    """Image to the file that is written for it."""
    image, out = options.image, options.out
    if not image.is_dir():
        return {image: out or image.with_name(f"{image.stem}_restored.png")}
    folder = out or image.resolve().with_name(f"{image.resolve().name}_restored")
    outs = {path: folder / f"{path.stem}.png" for path in list_photographs(image)}
    if len(set(outs.values())) < len(outs):
        outs = {path: folder / f"{path.name}.png" for path in outs}
    check_folder("--out", folder, [path.name for path in outs.values()], overwrite=options.overwrite)
    return outs


def _kinds(images: Mapping[Path, Path]) -> dict[Path, tuple[int, bool]]:
    """Image to its longer side and whether it is transparent; every one that cannot be read is named at once."""
    kinds: dict[Path, tuple[int, bool]] = {}
    findings: list[ImageError] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)  # said when the image is restored
        for image in images:
            try:
                picture = Picture.read(image)
            except ImageError as error:
                findings.append(error)
                continue
            kinds[image] = max(picture.size), picture.alpha is not None
    if len(images) == 1 and findings:
        raise findings[0]
    if findings:
        raise unreadable(list(map(str, findings)), len(images), "images")
    return kinds


def _check_format(longest: int, is_transparent: bool, scale: int, out: Path) -> None:
    """Refuse a format that cannot hold what will be restored."""
    kind, widest = out.suffix.lower(), scale * longest
    if is_transparent and kind in (".jpg", ".jpeg"):
        raise OutputError(
            f"--out must hold transparency, as the image does, which JPEG cannot; got '{out}'. PNG stores it."
        )
    if widest > _LARGEST.get(kind, widest):
        raise OutputError(
            f"--out must hold {widest} pixels in a row, and {kind} stores at most {_LARGEST[kind]}; got '{out}'. PNG "
            "stores more."
        )


def _restore(network: nn.Module, image: Path, out: Path, tile: int) -> tuple[int, int]:
    """Restore one image, write it, and return its height and width."""
    with tqdm(desc=image.name, unit="tile", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restored = restore_picture(network, Picture.read(image), tile=tile, progress=show)
    restored.write(out)
    return restored.size
