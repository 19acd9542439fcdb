"""Files: what is written comes back, and what is damaged, foreign or hostile is refused by name."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from filterattr import FilterAttribution, FilterAttributor, FilterScores, FilterSelection, StorageError
from filterattr.files import layout, writing
from filterattr.files import safetensors as storage
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.files.untrusted import read_untrusted
from tests.memory import allocated, needs_glibc, peak_of

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip
DTYPES += [torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []  # PyTorch has it since 2.7


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
        for a, b in zip(first.values(), (second[name] for name in first), strict=True)
    )


def raw_tensor(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    count = int(np.prod(shape)) * dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    return torch.randint(high, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


@pytest.fixture
def attribution() -> FilterAttribution:
    base, target = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3)
    data = [torch.rand(1, 1, 5, 5) for _ in range(2)]
    return FilterAttributor(base).attribute(base, target, lambda model, x: model(x).square().sum(), data)


def rewrite_header(payload: bytes, change) -> bytes:
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload[8 + length :]


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
    def test_every_type_and_shape_comes_back_bit_for_bit(self, tmp_path, generator, dtype, shape):
        tensors = {"a": raw_tensor(dtype, shape, generator)}
        write_tensors(tmp_path / "x", "note", tensors, {})
        assert same(read_tensors(tmp_path / "x", "note")[0], tensors)

    def test_layouts_views_ties_and_special_values(self, tmp_path):
        table = torch.arange(24.0).reshape(2, 3, 4)
        nan = torch.tensor([0x7FC00001, 0x7F800001, 0x80000000], dtype=torch.int64).to(torch.uint32).view(torch.float32)
        tensors = {
            "transposed": table.transpose(0, 2),
            "sliced": table[:, 1:, ::2],
            "expanded": torch.ones(1).expand(5),
            "tied": table,
            "tied.again": table,
            "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "conjugate": torch.rand(2, dtype=torch.complex64).conj(),
            "needs_grad": nn.Parameter(torch.ones(2)),
            "nan payloads and minus zero": nan,
            "ünicode / name": torch.ones(1),
        }
        write_tensors(tmp_path / "x", "note", tensors, {"a": [1, None, "ü", 0.1]})
        back, description = read_tensors(tmp_path / "x", "note")
        assert same(back, {name: value.detach().resolve_conj() for name, value in tensors.items()})
        assert description == {"a": [1, None, "ü", 0.1]}

    def test_a_slice_does_not_drag_its_whole_tensor_along(self, tmp_path):
        write_tensors(tmp_path / "x", "note", {"a": torch.zeros(10**6)[:1]}, {})
        assert (tmp_path / "x").stat().st_size < 1000

    def test_the_same_content_gives_the_same_bytes(self, tmp_path, attribution):
        for name in "abc":
            attribution.save(tmp_path / name)
        assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1

    def test_any_safetensors_tool_can_read_the_file(self, tmp_path):
        write_tensors(tmp_path / "x", "note", {"a": torch.arange(3)}, {})
        torch.testing.assert_close(safetensors.torch.load_file(tmp_path / "x")["a"], torch.arange(3))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.eye(2).to_sparse(),
            lambda: torch.empty(2, device="meta"),
            lambda: torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8),
        ],
        ids=["sparse", "meta", "quantized"],
    )
    @pytest.mark.filterwarnings("ignore:.*quantiz.*")
    def test_what_has_no_plain_bytes_is_refused_by_name(self, tmp_path, make):
        with pytest.raises(StorageError, match=r"'odd' of '.*x' must be a strided tensor with data"):
            write_tensors(tmp_path / "x", "note", {"odd": make()}, {})
        assert not list(tmp_path.iterdir())

    def test_results_scores_and_selections(self, tmp_path, attribution):
        attribution.save(tmp_path / "a")
        back = FilterAttribution.load(tmp_path / "a")
        assert repr(back) == repr(attribution)
        assert back.parameters == attribution.parameters
        for reduction in ("sum_of_abs", "abs_of_sum", "sum"):
            assert same(dict(back.scores(reduction)), dict(attribution.scores(reduction)))
            assert same(dict(back.standard_errors(reduction)), dict(attribution.standard_errors(reduction)))
        scores = attribution.scores()
        scores.save(tmp_path / "s")
        assert same(dict(FilterScores.load(tmp_path / "s")), dict(scores))
        scores.top(2).save(tmp_path / "t")
        assert FilterSelection.load(tmp_path / "t") == scores.top(2)

    def test_one_kind_is_not_taken_for_another(self, tmp_path, attribution):
        attribution.scores().save(tmp_path / "s")
        with pytest.raises(StorageError, match=r"must be a selection file.*kind 'scores'"):
            FilterSelection.load(tmp_path / "s")
        with pytest.raises(StorageError, match=r"must be a attribution file|must be an attribution file"):
            FilterAttribution.load(tmp_path / "s")


class TestAtomicWriting:
    def test_a_full_disk_keeps_the_old_file(self, tmp_path, monkeypatch):
        write_tensors(tmp_path / "x", "note", {"a": torch.ones(2)}, {})
        old = (tmp_path / "x").read_bytes()

        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            StorageError, match=r"'.*x' could not be written .*No space left.*older file there is unharmed"
        ):
            write_tensors(tmp_path / "x", "note", {"a": torch.zeros(2)}, {})
        assert (tmp_path / "x").read_bytes() == old
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_the_bytes_reach_the_disk_before_they_replace_the_old_file(self, tmp_path, monkeypatch):
        events = []
        fsync, replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), fsync(descriptor)))
        monkeypatch.setattr(Path, "replace", lambda path, to: (events.append("replace"), replace(path, to))[1])
        write_tensors(tmp_path / "x", "note", {"a": torch.ones(2)}, {})
        assert events == ["flush", "replace", "flush"]

    def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        prefix = writing._part_prefix(tmp_path / "x")
        stale, living, other = (
            tmp_path / f"{prefix}{dead.pid}.00.part",
            tmp_path / f"{prefix}{os.getppid()}.00.part",
            tmp_path / f".y.{dead.pid}.00.part",
        )
        for path in (stale, living, other):
            path.write_bytes(b"half")
        write_tensors(tmp_path / "x", "note", {}, {})
        assert not stale.exists()
        assert living.exists()
        assert other.exists()

    def test_folders_are_made_and_folders_are_not_overwritten(self, tmp_path):
        write_tensors(tmp_path / "new" / "x", "note", {}, {})
        with pytest.raises(StorageError, match=r"'.*new' could not be written"):
            write_tensors(tmp_path / "new", "note", {}, {})

    def test_the_description_must_be_json(self, tmp_path):
        with pytest.raises(StorageError, match=r"description of '.*x' must be JSON"):
            write_tensors(tmp_path / "x", "note", {}, {"a": object()})


@needs_glibc
@pytest.mark.slow
class TestMemory:
    """What is held beside the tensors; a copy of them would be 1."""

    SIZE = 48 * 2**20

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensor: tensor,
            lambda tensor: tensor.t(),
            lambda tensor: tensor[:, : tensor.shape[1] // 2],
            lambda tensor: tensor[None, None].transpose(1, 3),
            lambda tensor: tensor.reshape(-1).bfloat16(),
            lambda tensor: tensor.reshape(-1) > 0,
        ],
        ids=["plain", "transposed", "sliced", "nested", "bfloat16", "bool"],
    )
    def test_writing_copies_parts_alone(self, tmp_path, change):
        tensors = {str(index): change(torch.zeros(2**10, self.SIZE // 4 // 2**12)) for index in range(4)}
        before = allocated()
        peak = peak_of(lambda: write_tensors(tmp_path / "x", "note", tensors, {}))
        assert peak - before < 0.2 * self.SIZE

    def test_one_large_tensor_is_copied_in_parts(self, tmp_path):
        tensors = {"a": torch.zeros(7, self.SIZE // 56, dtype=torch.float64).t()}
        before = allocated()
        peak = peak_of(lambda: write_tensors(tmp_path / "x", "note", tensors, {}))
        assert peak - before < 0.2 * self.SIZE
        assert same(read_tensors(tmp_path / "x", "note")[0], tensors)

    def test_reading_holds_the_tensors_once(self, tmp_path):
        write_tensors(tmp_path / "x", "note", {str(index): torch.zeros(self.SIZE // 16) for index in range(4)}, {})
        before, kept = allocated(), []
        peak = peak_of(lambda: kept.append(read_tensors(tmp_path / "x", "note")))
        assert peak - before < 1.2 * self.SIZE

    @pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
    def test_checkpoints_of_others_are_held_once(self, tmp_path, new):
        content = {str(index): torch.zeros(self.SIZE // 16) for index in range(4)}
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        del content
        before, kept = allocated(), []
        peak = peak_of(lambda: kept.append(read_untrusted(tmp_path / "x.pth")))
        assert peak - before < 1.2 * self.SIZE


class TestLimits:
    def test_a_file_that_is_too_long_is_not_read(self, tmp_path):
        with (tmp_path / "x").open("wb") as stream:
            stream.truncate(storage.MAX_BYTES + 1)  # a hole: takes no room on the disk
        with pytest.raises(StorageError, match=r"holds 17179869185 bytes; at most 17179869184 are read"):
            read_tensors(tmp_path / "x", "note")
        with pytest.raises(StorageError, match=r"holds 17179869185 bytes"):
            read_untrusted(tmp_path / "x")

    @pytest.mark.parametrize("length", [2**63, storage.MAX_HEADER_BYTES + 1])
    def test_a_header_that_is_too_long_is_not_read(self, tmp_path, length):
        with (tmp_path / "x").open("wb") as stream:
            stream.write(struct.pack("<Q", length))
            stream.truncate(2 * storage.MAX_HEADER_BYTES)
        with pytest.raises(StorageError, match=f"a header of {length} bytes"):
            read_tensors(tmp_path / "x", "note")

    @pytest.mark.parametrize("shape", [[10**18], [2**40, 2**40], [-1], ["3"]], ids=str)
    @pytest.mark.parametrize("end", [16, 2**62])
    def test_a_header_that_promises_too_much_is_refused(self, tmp_path, shape, end):
        write_tensors(tmp_path / "x", "note", {"a": torch.ones(4)}, {})
        changed = rewrite_header(
            (tmp_path / "x").read_bytes(), lambda header: header["a"].update(shape=shape, data_offsets=[0, end])
        )
        (tmp_path / "x").write_bytes(changed)
        with pytest.raises(StorageError, match=r"'.*x' is not a readable safetensors file"):
            read_tensors(tmp_path / "x", "note")

    def test_what_could_not_be_read_is_not_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "MAX_BYTES", storage.MAX_HEADER_BYTES + 100)
        with pytest.raises(StorageError, match=r"would hold 104 bytes; at most 100 are written"):
            write_tensors(tmp_path / "x", "note", {"a": torch.zeros(13, dtype=torch.int64)}, {})
        monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 100)
        with pytest.raises(StorageError, match=r"description of '.*x' must fit into"):
            write_tensors(tmp_path / "x", "note", {}, {"a": "b" * 100})

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_pipes_devices_and_folders_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
            with pytest.raises(StorageError, match=r"must be a regular file|cannot be read: Is a directory"):
                read_tensors(path, "note")
            with pytest.raises(StorageError, match=r"must be a regular file|cannot be read: Is a directory"):
                read_untrusted(path)


class TestForeignFiles:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "a header of 0 bytes in a file of 0"),
            (b"<!DOCTYPE html>" * 9, "it is a web page"),
            (pickle.dumps({"a": 1}), "a header of"),
            (struct.pack("<Q", 2) + b"[]", "no JSON object"),
            (struct.pack("<Q", 2) + b"{}", "says format None, kind None"),
            (struct.pack("<Q", 20000) + b"[" * 20000, "RecursionError|JSONDecodeError"),
        ],
        ids=["empty", "html", "pickle", "list", "bare", "deep"],
    )
    def test_other_files_are_refused_by_name(self, tmp_path, content, reason):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(StorageError, match=f"'.*x'.*({reason})"):
            read_tensors(tmp_path / "x", "note")

    def test_a_safetensors_file_of_somebody_else(self, tmp_path):
        safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x")
        with pytest.raises(StorageError, match=r"must be a note file of the format filterattr-1; it says format None"):
            read_tensors(tmp_path / "x", "note")

    def test_descriptions_with_a_right_digest_are_still_checked(self, tmp_path, attribution):
        """SHA-256 finds damage; a hostile writer can compute it too."""
        attribution.save(tmp_path / "a")
        tensors, description = read_tensors(tmp_path / "a", "attribution")
        name = next(iter(tensors))
        good = description["parameters"]
        hostile = [
            ({**tensors, name: tensors[name][:1]}, description),
            ({**tensors, name: tensors[name].float()}, description),
            (tensors, {**description, "loss_base": "1.0"}),
            (tensors, {**description, "n_samples": True}),
            (tensors, {**description, "path_losses": [[]]}),
            (tensors, {**description, "parameters": {}}),
            (tensors, {**description, "parameters": [["weight", "o i ... -> o i", {"o": 10**15}, [3, 1, 3, 3], None]]}),
            (tensors, {**description, "parameters": [["weight", "o i ... -> o i", {}, [10**18, 10**18]]]}),
            (tensors, {**description, "parameters": [["weight", "__import__('os')", {}, [3, 1, 3, 3], None]]}),
            (tensors, {**description, "parameters": [[["weight"], *good[0][1:]]]}),
            (tensors, {**description, "method": ["gausslegendre"]}),
            ({}, description),
        ]
        for index, (other_tensors, other_description) in enumerate(hostile):
            write_tensors(tmp_path / "b", "attribution", other_tensors, other_description)
            refusal = outcome(FilterAttribution.load, tmp_path / "b")
            assert isinstance(refusal, StorageError), f"case {index} was read"
            assert "b' is not a complete attribution" in str(refusal)

    def test_scores_and_selections_are_checked_too(self, tmp_path, attribution):
        selection = attribution.scores().top(1)
        selection.save(tmp_path / "a")
        tensors, description = read_tensors(tmp_path / "a", "selection")
        for changed in ({name: value.to(torch.uint8) for name, value in tensors.items()}, {"other": torch.ones(1) > 0}):
            write_tensors(tmp_path / "b", "selection", changed, description)
            with pytest.raises(StorageError, match=r"'.*b' is not a complete selection"):
                FilterSelection.load(tmp_path / "b")


class TestDamage:
    @pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
    def test_every_single_bit_of_a_small_file_counts(self, tmp_path, stride):
        path = tmp_path / "x"
        tensors = {"a": torch.tensor([1.5, -0.0])}
        write_tensors(path, "note", tensors, {"seed": 3})
        payload = path.read_bytes()
        for place in range(0, 8 * len(payload), stride):
            damaged = bytearray(payload)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)
            check_refused_or_equal(path, tensors, {"seed": 3})

    @pytest.mark.parametrize("n_files", [300, pytest.param(7000, marks=pytest.mark.slow)])
    def test_damaged_files_are_refused_or_equal(self, tmp_path, generator, n_files):
        path = tmp_path / "x"
        tensors = {
            "a": torch.rand(3, 4, generator=generator),
            "b": torch.rand(2, dtype=torch.float64, generator=generator).to(torch.complex128),
            "c": torch.tensor(True),
        }
        description = {"list": [1, 2, {"x": None}], "text": "ü" * 20}
        write_tensors(path, "note", tensors, description)
        payload = path.read_bytes()
        source = random.Random(0)
        for _ in range(n_files):
            path.write_bytes(damage(payload, source))
            check_refused_or_equal(path, tensors, description)

    @pytest.mark.parametrize("n_files", [60, pytest.param(2000, marks=pytest.mark.slow)])
    def test_damaged_results_and_jobs_are_refused_or_equal(self, tmp_path, attribution, n_files):
        path = tmp_path / "x"
        attribution.save(path)
        payload = path.read_bytes()
        source = random.Random(1)
        for _ in range(n_files):
            path.write_bytes(damage(payload, source))
            back = outcome(FilterAttribution.load, path)
            if isinstance(back, StorageError):
                assert str(path) in str(back)
                continue
            assert repr(back) == repr(attribution)
            assert same(dict(back.scores()), dict(attribution.scores()))

    @pytest.mark.parametrize("n_files", [200, pytest.param(4000, marks=pytest.mark.slow)])
    def test_damaged_foreign_files_are_refused_or_equal(self, tmp_path, generator, n_files):
        """In a process of its own: an error in PyTorch's own reader must not end the tests."""
        torch.save(
            {"params": {"a": torch.rand(3, 4, generator=generator), "b": torch.arange(3)}}, tmp_path / "good.pth"
        )
        code = (
            "import sys; from pathlib import Path; from tests.filterattr.files.test_safetensors import fuzz_foreign; "
            f"print(fuzz_foreign(Path({str(tmp_path)!r}), {n_files}))"
        )
        root = Path(__file__).parents[3]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert int(done.stdout) > n_files // 2


def damage(payload: bytes, source: random.Random) -> bytes:
    """Flip, cut, insert, repeat, swap or overwrite some of a file's bytes."""
    data = bytearray(payload)
    for _ in range(source.choice((1, 1, 1, 3, 10))):
        place = source.randrange(max(len(data), 1))
        length = source.choice((1, 2, 8, 100))
        kind = source.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << source.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = source.randbytes(length)
        elif kind == 4:
            data[place : place + length] = source.randbytes(length)
        elif kind == 5:
            data[place:place] = data[place : place + length]
        else:
            data[place : place + length] = bytes([source.choice((0, 255, 32, 48))]) * len(data[place : place + length])
    return bytes(data)


def outcome(read, *arguments):
    """What a reader returns, or why it refuses."""
    try:
        return read(*arguments)
    except StorageError as error:
        return error


def check_refused_or_equal(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, object]) -> None:
    back = outcome(read_tensors, path, "note")
    if isinstance(back, StorageError):
        assert str(path) in str(back)
        return
    assert same(back[0], tensors)
    assert back[1] == description


def fuzz_foreign(folder: Path, n_files: int) -> int:
    """Read damaged copies of a checkpoint; return how many were refused."""
    payload = (folder / "good.pth").read_bytes()
    good = read_untrusted(folder / "good.pth")["params"]
    source, refused, path = random.Random(2), 0, folder / "bad.pth"
    for _ in range(n_files):
        path.write_bytes(damage(payload, source))
        back = outcome(read_untrusted, path)
        if isinstance(back, StorageError):
            assert str(path) in str(back)
            refused += 1
            continue
        assert same(back["params"], good)
    return refused


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestThirdPartyCheckpoints:
    def save(self, path: Path, content: object) -> Path:
        torch.save(content, path / "x.pth")
        return path / "x.pth"

    def test_plain_weights_ties_and_training_states_are_read(self, tmp_path):
        weight = torch.rand(4, 4)
        content = {
            "params": OrderedDict(a=weight, tied=weight, b=nn.Parameter(torch.ones(2)), empty=torch.empty(0, 3)),
            "halves": {"left": weight[:2], "right": weight[2:]},
            "columns": {"even": weight[0, ::2], "odd": weight[0, 1::2]},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 1e-3},
            "epoch": 3,
        }
        content["halves"] = {name: value.clone() for name, value in content["halves"].items()}
        row = torch.arange(4.0)
        content["columns"] = {"even": row[::2], "odd": row[1::2]}
        back = read_untrusted(self.save(tmp_path, content))
        assert same(dict(back["params"]), {name: value.detach() for name, value in content["params"].items()})
        assert back["epoch"] == 3
        torch.testing.assert_close(back["columns"]["odd"], torch.tensor([1.0, 3.0]))

    def test_files_of_the_old_format_are_read(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
        torch.testing.assert_close(read_untrusted(tmp_path / "x.pth")["a"], torch.ones(2))

    @pytest.mark.parametrize("variable", ["", "1"])
    def test_no_code_runs_whatever_the_environment_says(self, tmp_path, monkeypatch, variable):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", variable)
        trap = tmp_path / "trap"
        contents = [Hostile(trap), {"a": torch.ones(1), "b": Hostile(trap)}]
        for new in (True, False):
            for content in contents:
                torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
                with pytest.raises(StorageError, match=r"'.*x.pth' must be a checkpoint of tensors alone"):
                    read_untrusted(tmp_path / "x.pth")
        (tmp_path / "y.pth").write_bytes(pickle.dumps(Hostile(trap)))
        with pytest.raises(StorageError, match=r"'.*y.pth' must be a checkpoint of tensors alone"):
            read_untrusted(tmp_path / "y.pth")
        assert not trap.exists()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (nn.Linear(2, 2), "must be a checkpoint of tensors alone"),
            ({"a": np.float64(3)}, "must be a checkpoint of tensors alone"),
            ([torch.zeros(1).expand(2)], "'0' shows 8 bytes of a storage of 4"),
            (torch.zeros(1).expand(2), "'' shows 8 bytes of a storage of 4"),
            ({0: torch.ones(2)}, "the key 0 must be a text"),
            ({"state": {("a", 1): torch.ones(2)}}, r"the key \('a', 1\) must be a text"),
            ({"p": {"w": torch.zeros(1).expand(10**11)}}, "'p.w' shows 400000000000 bytes of a storage of 4"),
            ({"w": torch.arange(6.0).as_strided((3, 2), (1, 1))}, "'w' overlaps itself"),
            (
                {"w": torch.zeros(5).as_strided((3, 2), (0, 1))},
                "'w' shows 24 bytes of a storage of 20|'w' overlaps itself",
            ),
            ({"s": torch.eye(2).to_sparse()}, "'s' is torch.sparse_coo"),
            ({"m": torch.empty(10**12, device="meta")}, "'m' is torch.strided of torch.float32 on meta"),
        ],
        ids=["module", "numpy", "list", "tensor", "int-key", "tuple-key", "bomb", "overlap", "zero", "sparse", "meta"],
    )
    def test_what_is_not_plain_is_refused_with_file_and_key(self, tmp_path, content, reason):
        with pytest.raises(StorageError, match=f"'.*x.pth'.*({reason})"):
            read_untrusted(self.save(tmp_path, content))

    def test_overlapping_views_are_refused_by_both_names(self, tmp_path):
        row = torch.arange(6.0)
        path = self.save(tmp_path, {"first": row[:4], "second": row[3:]})
        with pytest.raises(StorageError, match=r"'second' overlaps 'first'"):
            read_untrusted(path)
        path = self.save(tmp_path, {"weight": row.view(2, 3), "transposed": row.view(2, 3).t()})
        with pytest.raises(StorageError, match=r"'transposed' overlaps 'weight'"):
            read_untrusted(path)

    def test_a_container_that_holds_itself_ends(self, tmp_path):
        content: dict[str, object] = {"a": torch.ones(1)}
        content["self"] = content
        assert "a" in read_untrusted(self.save(tmp_path, content))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "must be a checkpoint of tensors alone.*damaged"),
            (b"\n <!DOCTYPE html><html>", "it is a web page: the download went wrong"),
            (b"PK\x03\x04 and then nothing", "its end is missing"),
            (b"\x80\x02", "must be a checkpoint of tensors alone"),
            (b"version https://git-lfs.github.com/spec/v1", "must be a checkpoint of tensors alone"),
        ],
        ids=["empty", "html", "cut", "pickle", "pointer"],
    )
    def test_what_is_no_checkpoint_is_refused(self, tmp_path, content, reason):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(StorageError, match=f"'.*x.pth'.*({reason})"):
            read_untrusted(tmp_path / "x.pth")
        with pytest.raises(StorageError, match=r"'.*none.pth' cannot be read: No such file"):
            read_untrusted(tmp_path / "none.pth")

    def test_truncated_at_every_length(self, tmp_path):
        payload = self.save(tmp_path, {"a": torch.rand(20)}).read_bytes()
        for length in range(0, len(payload), 17):
            (tmp_path / "y.pth").write_bytes(payload[:length])
            with pytest.raises(StorageError, match=r"y\.pth"):
                read_untrusted(tmp_path / "y.pth")

    def test_one_flipped_bit_of_a_tensor_is_refused(self, tmp_path):
        path = self.save(tmp_path, {"a": torch.full((100,), 2.0)})
        payload = bytearray(path.read_bytes())
        payload[payload.find(torch.full((100,), 2.0).numpy().tobytes()) + 3] ^= 1
        path.write_bytes(payload)
        assert not torch.load(path, weights_only=True)["a"].eq(2.0).all()  # torch.load does not notice
        with pytest.raises(StorageError, match=r"'.*data/0' does not match its checksum"):
            read_untrusted(path)

    def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(self, tmp_path):
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(10**6)}, buffer)
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for entry in source.infolist():
                bomb.writestr(entry.filename, source.read(entry))
        assert (tmp_path / "x.pth").stat().st_size < 10**5
        with pytest.raises(StorageError, match=r"is compressed"):
            read_untrusted(tmp_path / "x.pth")
