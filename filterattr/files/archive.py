"""The archives of `torch.save`: zip files whose one directory is checked as a whole before anything is read.

Readers of zip files differ in what they take from a file with two directories, bytes in front, or sizes that contradict
each other. Here all of that is refused: every record is stored as it is, lies inside the file, and overlaps no other.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from filterattr.files.reading import fill

_END = struct.Struct("<4s4H2IH")
_WIDE_LOCATOR = struct.Struct("<4sIQI")
_WIDE_END = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL = {2: 0xFFFF, 4: 0xFFFFFFFF}
_IN_DESCRIPTOR = 8  # a flag: sizes stand behind the record
_WIDE_FIELD = 1
_CHUNK_BYTES = 2**22
_MOST_RECORDS = 2**20


class ArchiveError(Exception):
    """A file is no sound archive; the message says why."""


class Record(NamedTuple):
    """Where one part of an archive lies.

    Attributes:
        name: Its name.
        begin: Place of its first byte.
        size: Number of its bytes.
        checksum: CRC-32 of its bytes.
    """

    name: str
    begin: int
    size: int
    checksum: int


def read_directory(stream: BinaryIO, size: int) -> dict[str, Record]:
    """Read the directory of an archive, and check it against the records.

    Args:
        stream: The file.
        size: Number of its bytes.

    Returns:
        Name to record.

    Raises:
        ArchiveError: There is more than one way to read the archive, a record is compressed or not where it should be,
            or the file was cut.

    Example:
        >>> import io, torch
        >>> stream = io.BytesIO()
        >>> torch.save({"a": torch.ones(2)}, stream)
        >>> read_directory(stream, len(stream.getvalue()))["archive/data/0"].size
        8
    """
    begin, end, count = _place(stream, size)
    stream.seek(begin)
    directory = stream.read(end - begin)
    records: dict[str, Record] = {}
    spans = []
    for name, place, record_size, checksum, flags in _entries(directory, count):
        data = _data_place(stream, name, place, record_size, checksum, flags)
        if data + record_size > begin:
            raise ArchiveError(f"its part '{name}' does not lie in the file")
        if name in records:
            raise ArchiveError(f"it has two parts '{name}'")
        records[name] = Record(name, data, record_size, checksum)
        spans.append((place, data + record_size, name))
    spans.sort()
    for (_, stop, first), (start, _, second) in itertools.pairwise(spans):
        if start < stop:
            raise ArchiveError(f"its parts '{first}' and '{second}' overlap")
    return records


def fill_from(stream: BinaryIO, record: Record, buffer: memoryview) -> None:
    """Read a record and compare its checksum.

    Args:
        stream: The file.
        record: Where it lies.
        buffer: Where its bytes go; as long as the record.

    Raises:
        ArchiveError: The checksum is another one, or the file ends too early.
    """
    stream.seek(record.begin)
    checksum = 0
    for place in range(0, record.size, _CHUNK_BYTES):
        part = buffer[place : place + _CHUNK_BYTES]
        try:
            fill(stream, part)
        except EOFError as error:
            raise ArchiveError(str(error)) from error
        checksum = zlib.crc32(part, checksum)
    if checksum != record.checksum:
        raise ArchiveError(f"its part '{record.name}' does not match its checksum")


def _place(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Begin and end of the one directory, and the number of its entries."""
    stream.seek(max(0, size - _END.size))
    tail = stream.read()
    if len(tail) < _END.size or not tail.startswith(b"PK\5\6"):
        raise ArchiveError("its end is missing")
    _, disk, first_disk, on_disk, count, length, begin, comment = _END.unpack(tail)
    if disk or first_disk or on_disk != count or comment:
        raise ArchiveError("it has several parts or a comment")
    end = size - _END.size
    narrow = (count, length, begin)
    wide = _wide_end(stream, end)
    if wide is not None:
        *values, end = wide
        for value, small, width in zip(values, narrow, (2, 4, 4), strict=True):
            if small not in (value, _FULL[width]):
                raise ArchiveError("its two ends contradict each other")
        count, length, begin = values
    if begin + length != end or count > _MOST_RECORDS:
        raise ArchiveError("its directory does not lie before its end")
    return begin, end, count


def _wide_end(stream: BinaryIO, end: int) -> tuple[int, int, int, int] | None:
    """What the end for large archives says, if there is one, and where it lies."""
    place = end - _WIDE_LOCATOR.size
    if place < _WIDE_END.size:
        return None
    stream.seek(place)
    signature, disk, wide, disks = _WIDE_LOCATOR.unpack(stream.read(_WIDE_LOCATOR.size))
    if signature != b"PK\6\7":
        return None
    if disk or disks != 1 or wide != place - _WIDE_END.size:
        raise ArchiveError("its end is not where it should be")
    stream.seek(wide)
    signature, rest, _, _, disk, first_disk, on_disk, count, length, begin = _WIDE_END.unpack(
        stream.read(_WIDE_END.size)
    )
    if signature != b"PK\6\6" or rest != _WIDE_END.size - 12 or disk or first_disk or on_disk != count:
        raise ArchiveError("its end cannot be read")
    return count, length, begin, wide


def _entries(directory: bytes, count: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, place, size, checksum and flags of every record, as the directory tells them."""
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > len(directory):
            raise ArchiveError("its directory is cut")
        (signature, _, _, flags, method, _, _, checksum, packed, unpacked, name_length, extra_length, comment_length,
         disk, _, _, where) = _ENTRY.unpack_from(directory, place)  # fmt: skip
        place += _ENTRY.size
        name = directory[place : place + name_length]
        extra = directory[place + name_length : place + name_length + extra_length]
        place += name_length + extra_length + comment_length
        if signature != b"PK\1\2" or place > len(directory) or disk or flags & 1:
            raise ArchiveError("its directory cannot be read")
        unpacked, packed, where = _widened(extra, (unpacked, packed, where))
        if method or packed != unpacked:
            raise ArchiveError("it is compressed, which torch.save never does; it may unpack to any size")
        yield _text(name), where, unpacked, checksum, flags
    if place != len(directory):
        raise ArchiveError("its directory holds more than its entries")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise ArchiveError("a name in it is no text") from error


def _widened(extra: bytes, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
    """Take the numbers that need more than 32 bits from where they stand then."""
    values = list(narrow)
    wide = None
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == _WIDE_FIELD:
            if wide is not None:
                raise ArchiveError("a size stands there twice")
            wide = extra[place + 4 : place + 4 + length]
        place += 4 + length
    wanted = [index for index, value in enumerate(values) if value == _FULL[4]]
    if wanted and (wide is None or len(wide) < 8 * len(wanted)):
        raise ArchiveError("a size is missing")
    for number, index in enumerate(wanted):
        values[index] = struct.unpack_from("<Q", wide or b"", 8 * number)[0]
    return values[0], values[1], values[2]


def _data_place(stream: BinaryIO, name: str, place: int, size: int, checksum: int, flags: int) -> int:
    """Where the bytes of a record begin; what stands in front of them must agree with the directory."""
    stream.seek(place)
    head = stream.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise ArchiveError(f"its part '{name}' is not where it should be")
    _, _, local_flags, method, _, _, local_checksum, packed, unpacked, name_length, extra_length = _LOCAL.unpack(head)
    local_name, extra = stream.read(name_length), stream.read(extra_length)
    if local_name != name.encode() or method or local_flags != flags:
        raise ArchiveError(f"its part '{name}' does not agree with the directory")
    if not flags & _IN_DESCRIPTOR:
        unpacked, packed, _ = _widened(extra, (unpacked, packed, 0))
        if (unpacked, packed, local_checksum) != (size, size, checksum):
            raise ArchiveError(f"the size of its part '{name}' does not agree with the directory")
    return place + _LOCAL.size + len(local_name) + len(extra)
