"""Files of `torch.save` that somebody else wrote: what is handed out was read from them, whatever they claim."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from filterattr import FilterScores, StorageError, Unit, load_state
from filterattr.files import pickled, torch_file
from filterattr.files.safetensors import write_tensors
from filterattr.files.untrusted import read_untrusted
from filterattr.units.unit import ScoredParameter

ROOT = Path(__file__).parents[3]
HEAD = [
    0x1950A86A20F9469CFC6C,
    1001,
    {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, count: int, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + view + b"tQ"


def tensor(place: bytes, shape: tuple[int, ...], strides: tuple[int, ...] = (1,), offset: int = 0) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = place + number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def content(**entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def archive(pickled: bytes, *, method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, value in {"data.pkl": pickled, **records}.items():
            target.writestr(f"a/{name.replace('__', '/')}", value, compress_type=method)
    return stream.getvalue()


def old(pickled: bytes, keys: object, *storages: bytes) -> bytes:
    return b"".join([*(pickle.dumps(part, 2) for part in HEAD), pickled, pickle.dumps(keys, 2), *storages])


def stored(*values: float) -> bytes:
    return struct.pack(f"<q{len(values)}f", len(values), *values)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.fixture
def refused(tmp_path) -> Callable[[bytes, str], None]:
    def check(payload: bytes, reason: str) -> None:
        (tmp_path / "x.pth").write_bytes(payload)
        with pytest.raises(StorageError, match=rf"'.*x\.pth' must be a checkpoint of tensors alone.*{reason}"):
            read_untrusted(tmp_path / "x.pth")

    return check


@pytest.fixture
def read(tmp_path) -> Callable[[bytes], object]:
    def content_of(payload: bytes) -> object:
        (tmp_path / "x.pth").write_bytes(payload)
        return read_untrusted(tmp_path / "x.pth")

    return content_of


class TestOldFormat:
    def test_a_sound_file_made_by_hand_is_read(self, read):
        payload = old(content(a=tensor(storage("0", 2), (2,)), b=tensor(storage("1", 1), (1,))), ["0", "1"])
        found = read(payload + stored(1.0, 2.0) + stored(3.0))
        assert {name: value.tolist() for name, value in found.items()} == {"a": [1.0, 2.0], "b": [3.0]}

    @pytest.mark.parametrize(
        ("keys", "storages", "reason"),
        [
            ([], [], "its list of storages is another one than its tensors name"),
            (["0"], [stored(1.0, 2.0)], "its list of storages is another one"),
            (["0", "1", "2"], [stored(1.0, 2.0)] * 3, "its list of storages is another one"),
            (["0", "1", "1"], [stored(1.0, 2.0)] * 3, "its list of storages is another one"),
            (["0", 1], [stored(1.0, 2.0)] * 2, "its list of storages is another one"),
            ({"0": 1, "1": 2}, [stored(1.0, 2.0)] * 2, "its list of storages is another one"),
            (["0", "1"], [stored(1.0, 2.0), stored(1.0)], "the storage '1' has another length than its tensors say"),
            (["0", "1"], [stored(1.0, 2.0), stored(1.0, 2.0)[:-1]], "it ends 1 bytes too early"),
            (["0", "1"], [stored(1.0, 2.0)], "the storage '1' has another length"),
        ],
    )
    def test_every_storage_that_a_tensor_names_must_be_there(self, refused, keys, storages, reason):
        pickled = content(a=tensor(storage("0", 2), (2,)), b=tensor(storage("1", 2), (2,)))
        refused(old(pickled, keys, *storages), reason)

    def test_a_storage_larger_than_the_file_takes_no_memory(self, refused):
        pickled = content(a=tensor(storage("0", 10**10), (10**10,)))
        refused(old(pickled, ["0"], stored(1.0)), "should hold 40000000000 bytes; the file has")
        many = content(**{f"n{index}": tensor(storage(f"{index}", 100), (100,)) for index in range(99)})
        refused(old(many, ["0"]), "should hold 400 bytes; the file has")

    def test_parts_of_a_storage_are_read_if_they_lie_in_it(self, read, refused):
        def with_view(offset: int, count: int) -> bytes:
            view = b"(" + text("v") + number(offset) + number(count) + b"t"
            return old(content(a=tensor(storage("0", 4, view=view), (2,))), ["0"], stored(1.0, 2.0, 3.0, 4.0))

        assert read(with_view(1, 2))["a"].tolist() == [2.0, 3.0]
        refused(with_view(3, 2), "a part of the storage '0' does not lie in it")
        refused(with_view(1, 1), "needs 8 bytes of a storage of 4")

    def test_other_byte_orders_are_refused(self, refused):
        parts = [*HEAD[:2], {**HEAD[2], "little_endian": False}]
        refused(b"".join(pickle.dumps(part, 2) for part in parts), "another order of bytes")


class TestClaims:
    @pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0, 3.0)])
    def test_a_record_has_the_length_that_its_tensor_claims(self, refused, values):
        pickled = content(a=tensor(storage("0", 2), (2,)))
        reason = rf"'0' should hold 8 bytes; the file has {4 * len(values)}"
        refused(archive(pickled, data__0=floats(*values)), reason)

    def test_a_record_must_be_there(self, refused):
        refused(archive(content(a=tensor(storage("0", 2), (2,)))), "the storage '0' is missing")

    def test_a_storage_has_one_size(self, refused, read):
        both = {"a": tensor(storage("0", 2), (2,)), "b": tensor(storage("0", 1), (1,))}
        refused(archive(content(**both), data__0=floats(1, 2)), "should hold both 8 and 4 bytes")
        refused(old(content(**both), ["0"], stored(1.0, 2.0)), "should hold both 8 and 4 bytes")
        tied = {"a": tensor(storage("0", 2), (2,)), "b": tensor(storage("0", 2), (2,))}
        found = read(archive(content(**tied), data__0=floats(1, 2)))
        assert found["a"].data_ptr() == found["b"].data_ptr()

    @pytest.mark.parametrize(
        ("shape", "strides", "offset", "reason"),
        [
            ((3,), (1,), 0, "needs 12 bytes of a storage of 8"),
            ((2,), (1,), 1, "needs 12 bytes of a storage of 8"),
            ((2,), (2,), 0, "needs 12 bytes of a storage of 8"),
            ((2, 2), (2, 1), 0, "needs 16 bytes"),
            ((10**15,), (1,), 0, "needs 4000000000000000 bytes"),
            ((2**61,), (2**61,), 0, "needs"),
            ((2,), (-1,), 1, "strides"),
            ((-2,), (1,), 0, "shape"),
            ((2,), (1,), -1, "offset"),
            ((2**63,), (1,), 0, "shape"),
            ((1, 2), (1,), 0, "shape"),
            ((1,) * 65, (1,) * 65, 0, "shape"),
        ],
    )
    def test_a_tensor_shows_no_more_than_its_storage(self, refused, shape, strides, offset, reason):
        pickled = content(a=tensor(storage("0", 2), shape, strides, offset))
        refused(archive(pickled, data__0=floats(1, 2)), reason)
        refused(old(pickled, ["0"], stored(1.0, 2.0)), reason)

    @pytest.mark.parametrize(
        "made",
        [
            b"ctorch\nFloatStorage\n" + number(10**6) + b"\x85R",
            b"ctorch\nTensor\n" + number(10**6) + b"\x85R",
            b"ctorch\nFloatTensor\n" + number(10**6) + b"\x85R",
            b"ctorch\nempty\n" + number(10**6) + b"\x85R",
            b"ctorch.nn.parameter\nParameter\n" + number(10**6) + b"\x85R",
            b"ctorch._utils\n_rebuild_tensor\n(ctorch\nFloatStorage\n" + number(0) + numbers(9) + numbers(1) + b"tR",
            b"cbuiltins\nbytearray\n" + number(10**12) + b"\x85R",
            b"ctorch\nTensor\n)\x81" + numbers(1) + b"b",
            tensor(storage("0", 2), (2,)) + b"(" + storage("0", 2) + number(0) + numbers(9) + numbers(1) + b"tb",
        ],
    )
    def test_nothing_is_made_that_the_file_does_not_hold(self, refused, made):
        refused(archive(content(a=made), data__0=floats(1, 2)), "")

    @pytest.mark.parametrize(
        "pickled",
        [
            b"\x80\x02}r\xff\xff\xff\xff.",  # a memo of four billion places
            b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".",  # nested as deep as that
            b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"Ns.",  # and as a key
            b"\x80\x02]" + b"q\x00" + b"h\x00a" * 10 + b".",  # a list that holds itself
        ],
        ids=["memo", "deep", "key", "loop"],
    )
    def test_odd_pickles_end_soon(self, tmp_path, pickled):
        (tmp_path / "x.pth").write_bytes(archive(pickled))
        try:
            assert not isinstance(read_untrusted(tmp_path / "x.pth"), torch.Tensor)
        except StorageError as error:
            assert "must be a checkpoint of tensors alone" in str(error)  # noqa: PT017 - one of two outcomes

    def test_copies_of_one_long_list_are_limited(self, refused, monkeypatch):
        assert 2**24 <= pickled._MOST_COPIED <= 2**28  # seconds
        monkeypatch.setattr(pickled, "_MOST_COPIED", 2**17)
        body = (
            text("s")
            + b"]q\x01("
            + b"K\x01" * 10**3
            + b"e0"
            + b"".join(b"cbuiltins\nset\nh\x01\x85R0" for _ in range(1000))
        )
        refused(archive(b"\x80\x02}(" + body + b"Nu."), "it copies its parts too often")


class TestArchives:
    PICKLED = content(a=tensor(storage("0", 2), (2,)))

    @pytest.fixture
    def good(self) -> bytes:
        return archive(self.PICKLED, data__0=floats(1, 2), version=b"3\n", byteorder=b"little")

    def test_a_sound_one_made_by_hand_is_read(self, read, good):
        assert read(good)["a"].tolist() == [1.0, 2.0]

    def test_bytes_before_and_behind_are_refused(self, tmp_path, good):
        for payload in (good + b"\0", good + good, good[:30] + good, b"PK\3\4" + good):
            (tmp_path / "x.pth").write_bytes(payload)
            with pytest.raises(StorageError, match="must be a checkpoint of tensors alone"):
                read_untrusted(tmp_path / "x.pth")

    def test_two_directories_are_refused(self, refused, good):
        end = good.rindex(b"PK\5\6")
        place = struct.unpack("<II", good[end + 12 : end + 20])[1]
        twice = good[:end] + good[place:end] + good[end:]
        refused(twice, "its directory does not lie before its end")

    def test_a_comment_and_several_disks_are_refused(self, refused, good):
        refused(good[:-2] + b"\x01\x00x", "its end is missing")
        end = bytearray(good)
        end[-18:-16] = b"\x01\x00"
        refused(bytes(end), "it has several parts or a comment")

    def test_names_that_are_there_twice_are_refused(self, refused):
        stream = io.BytesIO(archive(self.PICKLED, data__0=floats(1, 2)))
        with zipfile.ZipFile(stream, "a") as target, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.writestr("a/data/0", floats(3, 4))
        refused(stream.getvalue(), "it has two parts 'a/data/0'")

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    def test_compressed_records_are_refused(self, refused, method):
        refused(archive(self.PICKLED, method=method, data__0=floats(1, 2)), "it is compressed, which torch.save never")

    @pytest.mark.parametrize(
        ("place", "change", "reason"),
        [
            (10, b"\x08\x00", "it is compressed"),
            (20, struct.pack("<I", 4), "it is compressed"),
            (20, struct.pack("<II", 4, 4), "does not agree with the directory"),
            (20, struct.pack("<II", 2**31, 2**31), "does not agree with the directory"),
            (20, struct.pack("<II", 2**32 - 1, 2**32 - 1), "a size is missing"),
            (16, b"\0\0\0\0", "does not agree with the directory"),
            (42, struct.pack("<I", 1), "is not where it should be"),
            (42, struct.pack("<I", 0), "does not agree with the directory"),
            (8, b"\x01\x00", "its directory cannot be read"),
            (46, b"b", "does not agree with the directory"),
        ],
    )
    def test_a_directory_that_lies_is_refused(self, refused, good, place, change, reason):
        entry = good.index(b"a/data/0", good.index(b"PK\1\2")) - 46
        damaged = bytearray(good)
        damaged[entry + place : entry + place + len(change)] = change
        refused(bytes(damaged), reason)

    def test_records_that_overlap_are_refused(self, refused):
        inner = archive(self.PICKLED, data__0=floats(1, 2))
        begin = inner.index(b"PK\3\4", 4)
        hidden = inner[begin : begin + 30 + len("a/data/0") + 8]
        outer = bytearray(archive(self.PICKLED, data__0=floats(1, 2), data__1=hidden))
        entry = outer.index(b"a/data/0", outer.index(b"PK\1\2")) - 46
        outer[entry + 42 : entry + 46] = struct.pack("<I", outer.index(hidden, begin + 1))
        refused(bytes(outer), "its parts 'a/data/[01]' and 'a/data/[01]' overlap")

    def test_wide_ends_must_agree_with_the_narrow_ones(self, tmp_path, refused):
        torch.save({"a": torch.ones(2)}, tmp_path / "y.pth")
        payload = bytearray((tmp_path / "y.pth").read_bytes())
        wide = payload.rindex(b"PK\6\6")
        for place in (24, 32, 40, 48):
            damaged = bytearray(payload)
            damaged[wide + place] ^= 1
            refused(bytes(damaged), "its (two )?ends? (contradict|cannot be read)")
        damaged = bytearray(payload)
        damaged[wide + 4] ^= 1
        refused(bytes(damaged), "its end cannot be read")

    def test_what_is_no_archive_of_torch_save_is_told_apart(self, refused, tmp_path):
        np.savez(tmp_path / "x.npz", a=np.ones(2))
        refused((tmp_path / "x.npz").read_bytes(), "an archive of torch.save holds one data.pkl")
        program = archive(self.PICKLED, data__0=floats(1, 2), **{"constants.pkl": b"\x80\x02).", "code/a.py": b""})
        refused(program, "it is a program of TorchScript")
        refused(archive(self.PICKLED, data__0=floats(1, 2), byteorder=b"big"), "another order of bytes")


class TestSoundFiles:
    @pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_they_are_read_as_torch_load_reads_them(self, tmp_path, generator, new, protocol):
        row = torch.arange(12.0)
        weight = nn.Parameter(torch.rand(3, 4, generator=generator))
        tagged = torch.ones(2)
        tagged.is_tagged = True
        saved = {
            "state_dict": OrderedDict(weight=weight, tied=weight.detach(), fixed=nn.Parameter(row[:0], False)),
            "views": [row[::2].clone(), torch.rand(3, 4, generator=generator).t(), row.reshape(3, 4)[1:, ::2].clone()],
            "types": {
                str(dtype): torch.arange(4).to(dtype)
                for dtype in (
                    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
                    torch.bfloat16, torch.float64, torch.complex64, torch.complex128, torch.uint16, torch.uint32,
                    torch.uint64, torch.float8_e5m2,
                )
            },
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "tagged": tagged,
            "gradient": torch.ones(2, requires_grad=True),
            "plain": [1, -(2**70), 2.5, True, None, "ü", b"bytes", (1, (2,)), {1, 2}, frozenset({3}), 1 + 2j],
            "bytes": bytearray(b"ab"),
            "torch": [torch.float32, torch.Size([1, 2]), Counter(a=2)],
        }  # fmt: skip
        torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        found = read_untrusted(tmp_path / "x.pth")
        compare(found, saved)
        assert found["gradient"].requires_grad
        assert isinstance(found["state_dict"]["weight"], nn.Parameter)
        assert not found["state_dict"]["fixed"].requires_grad
        assert found["state_dict"]["tied"].data_ptr() == found["state_dict"]["weight"].data_ptr()

    def test_storages_of_a_graphics_card_come_to_the_processor(self, read):
        pickled = content(a=tensor(storage("0", 2).replace(text("cpu"), text("cuda:0")), (2,)))
        assert read(archive(pickled, data__0=floats(1, 2)))["a"].tolist() == [1.0, 2.0]

    def test_they_can_be_trained_and_changed(self, tmp_path):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pth")
        state = load_state(tmp_path / "x.pth")
        state["weight"].mul_(2)
        model = nn.Linear(2, 2)
        model.load_state_dict(state)
        model(torch.ones(2)).sum().backward()
        assert torch.equal(model.weight, state["weight"])


def compare(found: object, expected: object) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        same = [one.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for one in (found, expected)]
        assert torch.equal(*same)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            compare(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected) or isinstance(expected, torch.Size)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(0.3), "numpy._core.multiarray.scalar', 'numpy.dtype"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
        (pathlib.PurePosixPath("runs"), "pathlib.PurePosixPath"),
        ({"kind": argparse.Namespace}, "argparse.Namespace"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_sound_files_with_objects_beside_the_weights_name_them_and_the_way_out(tmp_path, beside, name, new) -> None:
    state = nn.Linear(2, 2).state_dict()
    path = tmp_path / "x.pth"
    torch.save({"state_dict": state, "args": beside}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(StorageError, match=rf"it also holds .*'{name}'.*if you trust where it comes from") as caught:
        load_state(path)
    assert "damaged" not in str(caught.value)
    assert "torch.load(path, weights_only=False)" in str(caught.value)
    assert torch.load(path, weights_only=False)["state_dict"].keys() == state.keys()  # the way that is told is one


def test_the_digest_of_the_library_is_checked_by_load_state(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    kept = {"w": torch.tensor([1.0, 2.0]), "c": torch.tensor([1 + 2j], dtype=torch.complex128)}
    write_tensors(path, "network", kept, {})
    found = load_state(path)
    assert found["w"].tolist() == [1.0, 2.0]
    assert found["c"].tolist() == [1 + 2j]  # a type that safetensors lacks
    payload = bytearray(path.read_bytes())
    payload[payload.index(floats(1, 2)) + 2] ^= 1
    path.write_bytes(payload)
    with pytest.raises(StorageError, match="is damaged: its content does not match its digest"):
        load_state(path)
    payload = path.read_bytes().replace(b'"format":"filterattr-1"', b'"format":"filterattr-2"')
    path.write_bytes(payload)
    with pytest.raises(StorageError, match="must be a known file of the format filterattr-1; it says format"):
        load_state(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, LookupError])
def test_what_interrupts_the_reading_is_no_damage(tmp_path, monkeypatch, error) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "x.pth")

    def interrupted(*_: object) -> None:
        raise error("an alarm of the caller")

    monkeypatch.setattr(torch_file, "fill_from", interrupted)
    with pytest.raises(error, match="an alarm of the caller"):
        read_untrusted(tmp_path / "x.pth")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_lack_of_memory_is_said_and_the_file_is_not_called_damaged(tmp_path) -> None:
    count = 25_000_000
    scored = ScoredParameter(Unit("... -> ..."), (count,))
    FilterScores({"w": torch.zeros(count)}, {"w": scored}).save(tmp_path / "x.safetensors")
    torch.save({"w": torch.zeros(count)}, tmp_path / "x.pth")
    code = f"""
import resource
from filterattr import FilterScores, StorageError, load_state
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, resource.RLIM_INFINITY))
for load, name in ((FilterScores.load, "x.safetensors"), (load_state, "x.pth"), (load_state, "x.safetensors")):
    try:
        load({str(tmp_path)!r} + "/" + name)
    except StorageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "the memory does not suffice to read" in line
        assert "which needs about 10000" in line
        assert "damaged" not in line
