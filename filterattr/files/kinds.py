"""What a file is that holds no weights, told by its first bytes."""

from __future__ import annotations

import unicodedata

HEAD_BYTES = 512  # enough to find a character in them that no text holds

_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"%PDF-", "a PDF document"),
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip: unpack it first"),
    (b"Rar!", "packed with RAR: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it: save the weights with torch.save"),
    (b"GGUF", "a GGUF file, as llama.cpp reads it: take the file that it was made from"),
    (b"\x93NUMPY", "an array of NumPy: save a dict of tensors with torch.save"),
    (b"version https://git-lfs", "a pointer of Git LFS: `git lfs pull` gets the weights"),
)


def kind_of(head: bytes) -> str | None:
    r"""Tell a file that holds no weights.

    Args:
        head: Its first bytes; `HEAD_BYTES` are enough.

    Returns:
        What it is, to follow "it is"; ``None`` if there is no sign.

    Example:
        >>> kind_of(b"\x89PNG\r\n\x1a\n" + bytes(8)), kind_of(b"weights of my network"), kind_of(bytes(8))
        ('a PNG picture', 'text', None)
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[257:262] == b"ustar":
        return "packed with tar: unpack it first"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download went wrong"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if _is_onnx(head):
        return "an ONNX network: save its state_dict() with torch.save"
    return "text" if _is_text(head) else None


def _is_onnx(head: bytes) -> bool:
    """Its version, and the name of what wrote it."""
    return head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] == b"\x12" and head[4 : 4 + head[3]].isascii()


def _is_text(head: bytes) -> bool:
    """Whether the bytes are letters, signs and spaces; the last character may be cut."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) - error.start > 3 or len(head) < HEAD_BYTES:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cn", "Co") for sign in text)
