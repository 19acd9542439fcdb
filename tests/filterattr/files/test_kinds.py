"""Files that hold no weights are called what they are."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from filterattr import FilterAttribution, StorageError, load_state
from filterattr.files.kinds import HEAD_BYTES, kind_of


def picture(path: Path, form: str) -> None:
    Image.new("RGB", (5, 4), (250, 3, 7)).save(path, form)


def packed(path: Path) -> None:
    path.with_suffix(".txt").write_text("weights")
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_suffix(".txt"), "weights.txt")


def array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


MAKERS = {
    "a PNG picture": lambda path: picture(path, "PNG"),
    "a JPEG picture": lambda path: picture(path, "JPEG"),
    "a GIF picture": lambda path: picture(path, "GIF"),
    "a BMP picture": lambda path: picture(path, "BMP"),
    "a TIFF picture": lambda path: picture(path, "TIFF"),
    "a WebP picture": lambda path: picture(path, "WEBP"),
    "a PDF document": lambda path: path.write_bytes(b"%PDF-1.4\n" + bytes(100)),
    "packed with gzip": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "packed with tar": packed,
    "an array of NumPy": array,
    "an ONNX network": lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x032.1" + bytes(range(100))),
    "a pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
    "a web page": lambda path: path.write_text("\n<!DOCTYPE html>\n<html>"),
    "text": lambda path: path.write_text("# My network\n\nIts weights are elsewhere."),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("opened", [load_state, FilterAttribution.load], ids=["weights", "attribution"])
def test_what_is_no_weights_is_called_by_its_name(tmp_path: Path, kind: str, opened) -> None:
    path = tmp_path / "net.pth"
    MAKERS[kind](path)
    with pytest.raises(StorageError, match=rf"net\.pth' .*it is {kind}") as caught:
        opened(path)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize("words", ['{"a": 1}', "a,b\n1,2\n", "Grüße, größer " * 60, "日本語" * 200])
def test_text_of_any_kind_is_text(tmp_path: Path, words: str) -> None:
    (tmp_path / "net.pth").write_text(words, encoding="utf-8")
    with pytest.raises(StorageError, match="it is text"):
        load_state(tmp_path / "net.pth")


def test_bytes_that_tell_nothing_have_no_name() -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (0, 1, 8, 100, HEAD_BYTES):
        head = bytes(torch.randint(128, 256, (length,), dtype=torch.uint8, generator=generator).tolist())
        assert kind_of(head) is None


def test_a_damaged_checkpoint_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(StorageError, match="it is damaged or of another format"):
        load_state(path)
