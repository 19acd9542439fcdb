"""One way to write a file: whole or not at all, whatever lies at the path."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from filterattr import StorageError
from filterattr.files import writing
from filterattr.files.writing import replace_file, replacing

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and device files of Linux")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(path: Path, error: BaseException) -> None:
    with replacing(path) as stream:
        stream.write(b"half")
        raise error


class TestReplacing:
    def test_the_old_file_stays_until_the_block_ends(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        with replacing(tmp_path / "a") as stream:
            stream.write(b"new")
            stream.flush()
            assert (tmp_path / "a").read_bytes() == b"old"
        assert (tmp_path / "a").read_bytes() == b"new"
        assert names(tmp_path) == ["a"]

    @pytest.mark.parametrize("error", [KeyError("a"), KeyboardInterrupt(), TimeoutError("an alarm of the caller")])
    def test_an_error_of_the_block_passes_and_nothing_has_happened(self, tmp_path, error):
        (tmp_path / "a").write_bytes(b"old")
        with pytest.raises(type(error)) as caught:
            fail_halfway(tmp_path / "a", error)
        assert caught.value is error
        assert (tmp_path / "a").read_bytes() == b"old"
        assert names(tmp_path) == ["a"]

    def test_writers_that_move_in_their_file_can_use_the_stream(self, tmp_path):
        with replacing(tmp_path / "a.tif") as stream:
            Image.new("RGB", (3, 2), (1, 2, 3)).save(stream, format="TIFF")
        with Image.open(tmp_path / "a.tif") as picture:
            assert picture.getpixel((2, 1)) == (1, 2, 3)

    @pytest.mark.parametrize(
        ("number", "cure"),
        [
            (errno.ENOSPC, "The disk is full: free some space"),
            (errno.EDQUOT, "The quota of the disk is used up"),
            (errno.EROFS, "Choose a folder that may be written to"),
            (errno.EIO, "Choose another path"),
        ],
    )
    def test_the_disk_says_what_is_wrong_and_the_old_file_is_unharmed(self, tmp_path, monkeypatch, number, cure):
        (tmp_path / "a").write_bytes(b"old")

        def refuse(_descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        reason = rf"a' could not be written \({os.strerror(number)}\); an older file there is unharmed\. {cure}"
        with pytest.raises(StorageError, match=reason):
            replace_file(tmp_path / "a", [b"new"])
        assert (tmp_path / "a").read_bytes() == b"old"
        assert names(tmp_path) == ["a"]

    @LINUX
    def test_a_limit_of_the_size_of_files_is_a_full_disk_in_earnest(self, tmp_path):
        code = f"""
import resource, signal
from filterattr import StorageError
from filterattr.files.writing import replace_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
replace_file({str(tmp_path / "a")!r}, [b"old"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    replace_file({str(tmp_path / "a")!r}, [bytes(60_000)] * 3)
except StorageError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert "could not be written (File too large); an older file there is unharmed" in done.stdout
        assert (tmp_path / "a").read_bytes() == b"old"
        assert names(tmp_path) == ["a"]

    def test_a_kill_leaves_the_old_file_and_the_next_write_cleans_up(self, tmp_path):
        code = f"""
from filterattr.files.writing import replacing
with replacing({str(tmp_path / "a")!r}) as stream:
    stream.write(b"half")
    stream.flush()
    print("ready", flush=True)
    input()
"""
        replace_file(tmp_path / "a", [b"old"])
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        with child:
            assert child.stdout.readline() == "ready\n"
            assert len(names(tmp_path)) == 2
            child.send_signal(signal.SIGKILL)
        assert (tmp_path / "a").read_bytes() == b"old"
        replace_file(tmp_path / "a", [b"new"])
        assert (tmp_path / "a").read_bytes() == b"new"
        assert names(tmp_path) == ["a"]

    @LINUX
    def test_read_only_folders_and_files_are_refused(self):
        code = """
import os, sys, tempfile
from pathlib import Path
from filterattr import StorageError
from filterattr.files.writing import replace_file
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o777)
    if os.geteuid() == 0:  # root may write everywhere
        os.setegid(65534)
        os.seteuid(65534)
    inner = Path(folder, "inner")
    replace_file(inner / "a", [b"old"])
    (inner / "a").chmod(0o444)
    inner.chmod(0o555)
    for name in "ab":
        try:
            replace_file(inner / name, [b"new"])
        except StorageError as error:
            print(error)
    inner.chmod(0o755)
    print((inner / "a").read_bytes(), os.listdir(inner))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        first, second, rest = done.stdout.splitlines()
        assert "inner/a' could not be written (it is read-only); an older file there is unharmed" in first
        assert "inner/b' could not be written (Permission denied)" in second
        assert first.endswith("Choose a folder that may be written to.")
        assert rest == "b'old' ['a']"


class TestPaths:
    @pytest.mark.parametrize("path", ["x\0y", "x\ud800y"])
    def test_what_no_system_can_open_is_refused(self, tmp_path, path):
        with pytest.raises(StorageError, match=r"cannot be the path of a file: .*Choose another one"):
            replace_file(tmp_path / path, [b""])

    def test_a_name_that_is_too_long_is_refused(self, tmp_path):
        with pytest.raises(StorageError, match=r"File name too long.*Choose a shorter name"):
            replace_file(tmp_path / ("a" * 300), [b""])

    @pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "画" * 85])
    def test_the_longest_names_that_the_system_allows_can_be_written(self, tmp_path, name):
        replace_file(tmp_path / name, [b"text"])
        assert (tmp_path / name).read_bytes() == b"text"

    def test_names_that_begin_alike_do_not_share_their_temporary_files(self, tmp_path):
        first, second = (writing._part_prefix(tmp_path / ("a" * 130 + end)) for end in "xy")
        assert first != second


@pytest.mark.skipif(os.name != "posix", reason="needs links and modes")
class TestLinksAndModes:
    def test_a_link_stays_and_what_it_points_to_is_replaced(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "real").write_bytes(b"old")
        (tmp_path / "far").symlink_to("deep/real")
        (tmp_path / "near").symlink_to(tmp_path / "far")
        replace_file(tmp_path / "near", [b"new"])
        assert (tmp_path / "near").is_symlink()
        assert (tmp_path / "far").is_symlink()
        assert (tmp_path / "deep" / "real").read_bytes() == b"new"
        assert names(tmp_path / "deep") == ["real"]

    def test_a_link_to_nothing_gets_its_file(self, tmp_path):
        (tmp_path / "link").symlink_to("new")
        replace_file(tmp_path / "link", [b"text"])
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "new").read_bytes() == b"text"

    def test_links_in_a_circle_are_refused(self, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(StorageError, match=r"Too many levels of symbolic links"):
            replace_file(tmp_path / "a", [b""])

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
    def test_the_mode_of_the_old_file_is_kept(self, tmp_path, mode):
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "a").chmod(mode)
        replace_file(tmp_path / "a", [b"new"])
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode

    def test_a_private_file_is_private_while_it_is_written(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "a").chmod(0o600)
        with replacing(tmp_path / "a"):
            assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}

    def test_a_new_file_gets_the_usual_mode(self, tmp_path):
        (tmp_path / "usual").write_bytes(b"")
        replace_file(tmp_path / "a", [b""])
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@LINUX
class TestSpecialFiles:
    def test_a_pipe_gets_the_bytes_and_stays_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        payload = bytes(range(256)) * 4000
        for _ in range(500):  # until the reader has opened its end
            try:
                replace_file(tmp_path / "pipe", [payload])
                break
            except StorageError:
                time.sleep(0.01)
        reader.join(10)
        assert got == [payload]
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        assert names(tmp_path) == ["pipe"]

    def test_a_pipe_that_nobody_reads_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match=r"Nobody reads from it: start the reader first"):
            replace_file(tmp_path / "pipe", [b"text"])

    def test_devices_stay_and_a_full_one_says_so(self, tmp_path):
        (tmp_path / "full").symlink_to("/dev/full")
        (tmp_path / "null").symlink_to("/dev/null")
        replace_file(tmp_path / "null", [b"text"])
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
        with pytest.raises(StorageError, match=r"could not be written \(No space left on device\).*The disk is full"):
            replace_file(tmp_path / "full", [b"text"])
        assert names(tmp_path) == ["full", "null"]

    @pytest.mark.parametrize("as_file", [False, True])
    def test_the_standard_output_is_written_to_wherever_it_leads(self, tmp_path, as_file):
        code = """
from filterattr.files.writing import replace_file
print("before", flush=True)
replace_file("/dev/stdout", [b"page\\n"])
print("after", flush=True)
"""
        with (tmp_path / "out").open("w+") as stream:
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=stream if as_file else subprocess.PIPE, cwd=ROOT, text=True
            )
            stream.seek(0)
            text = stream.read() if as_file else done.stdout
        assert text == "before\npage\nafter\n"

    def test_folders_and_sockets_are_refused(self, tmp_path):
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "socket"))
            for name in ("", "socket"):
                with pytest.raises(StorageError, match=r"It is a folder|it is a disk or a socket"):
                    replace_file(tmp_path / name, [b"text"])
            assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)

    def test_nothing_reaches_a_device_if_the_block_fails(self):
        with pytest.raises(KeyError):
            fail_halfway(Path("/dev/full"), KeyError("a"))
