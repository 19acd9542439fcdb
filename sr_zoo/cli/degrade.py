"""``degrade``: a contact sheet of all degradations, or one degraded image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from filterattr.cli import check_file
from sr_zoo.contact_sheet import draw_contact_sheet
from sr_zoo.degradations import input_from
from sr_zoo.images import EXTENSIONS, read_image, to_float, write_image

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg"}


def run(options: argparse.Namespace) -> None:
    """Draw the sheet, or write one image."""
    if options.degradation is None:
        out = options.out or Path("degradations.png")
        check_file("--out", out, _ENDINGS, overwrite=options.overwrite, inputs=[options.photograph])
        draw_contact_sheet(read_image(options.photograph), out, size=options.size, seed=options.seed)
    else:
        out = options.out or options.photograph.with_name(f"{options.photograph.stem}_degraded.png")
        check_file("--out", out, EXTENSIONS, overwrite=options.overwrite, inputs=[options.photograph])
        _write_degraded(options, out)
    sys.stdout.write(f"wrote {out}\n")


def _write_degraded(options: argparse.Namespace, out: Path) -> None:
    """Apply the degradations to the photograph, cut to a multiple of the scale."""
    _, degradation = input_from(options.degradation, options.scale)
    photograph = to_float(read_image(options.photograph)[None])
    height, width = (size // options.scale * options.scale for size in photograph.shape[-2:])
    degraded = degradation(photograph[..., :height, :width], torch.Generator().manual_seed(options.seed))
    write_image(out, degraded[0].clamp(0, 1))
