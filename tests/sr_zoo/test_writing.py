"""What the commands write, watched while they run: no file that lies there is opened for writing, and none is lost."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sr_zoo.cli import main
from sr_zoo.contact_sheet import draw_contact_sheet
from sr_zoo.images import read_image, write_image
from sr_zoo.models import SRResNet
from sr_zoo.pretrained import save_network
from sr_zoo.restoring import Picture
from tests.sr_zoo.conftest import make_photograph

SIZES = {"num_feat": 4, "num_block": 1, "upscale": 2}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_seen: list[tuple[Path, int]] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _seen is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        path, _, flags = arguments
        if isinstance(flags, int) and flags & WRITING:
            _seen.append((Path(os.fsdecode(path)), flags))


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_watch)  # cannot be taken off again; it does nothing while nobody watches


@contextmanager
def watched() -> Iterator[list[tuple[Path, int]]]:
    global _seen  # a hook has no other way to be told
    _seen = opened = []
    try:
        yield opened
    finally:
        _seen = None


@pytest.fixture
def files(tmp_path: Path, photographs: list[Tensor]) -> Path:
    for index, photograph in enumerate(photographs):
        write_image(tmp_path / "photos" / f"{index}.png", photograph)
    write_image(tmp_path / "large.png", make_photograph(120, 130, 5))
    for seed, name in enumerate(("base", "target")):
        torch.manual_seed(seed)
        save_network(tmp_path / f"{name}.safetensors", "srresnet", SIZES, SRResNet(**SIZES).state_dict(), {})
    return tmp_path


COMMANDS = {
    "restore": "photos/0.png --weights target.safetensors --out out/restored.png --device cpu",
    "degrade": "large.png --size 96 --out out/sheet.png",
    "card": "target.safetensors --images photos --data some --half out/half.safetensors --out out/card.md",
    "compare": "--network a target.safetensors --images photos --out out/table.md --device cpu",
    "attribute": "base.safetensors target.safetensors --images photos --crops 1 --size 32 --steps 4 --device cpu",
    "train": "base --images photos --iterations 2 --batch-size 1 --patch-size 16 --features 4 --blocks 1 --device cpu "
    "--out out",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # untrained networks are no sound pair
def test_a_command_opens_only_files_of_its_own_for_writing(
    files: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    with watched() as opened:
        assert main([command, *COMMANDS[command].split()]) == 0
    here = [(path, flags) for path, flags in opened if files in path.absolute().parents]
    assert any(path.suffix == ".part" for path, _ in here)
    for path, flags in here:
        if path.name == "log.jsonl":
            assert flags & os.O_APPEND
        elif path.name != ".lock":
            assert path.suffix == ".part"
            assert path.name.startswith(".")
    left = [path for path in files.rglob("*") if path.suffix == ".part"]
    assert left == []


@contextmanager
def full_disk(size: int = 200) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("way", ["write_image", "Picture.write", "draw_contact_sheet"])
def test_on_a_full_disk_the_old_picture_survives(tmp_path: Path, extension: str, way: str) -> None:
    if way == "draw_contact_sheet" and extension == "bmp":
        pytest.skip("matplotlib writes none")
    path = tmp_path / f"photo.{extension}"
    write_image(path, make_photograph(60, 60, 1))
    old, new = path.read_bytes(), make_photograph(100, 110, 2)
    write = {
        "write_image": lambda: write_image(path, new),
        "Picture.write": lambda: Picture(new).write(path),
        "draw_contact_sheet": lambda: draw_contact_sheet(new, path, size=96),
    }[way]
    with full_disk(), pytest.raises(ValueError, match=rf"photo\.{extension}' could not be written .*older file there"):
        write()
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    write()
    assert read_image(path).shape[-1] >= 110


def test_restoring_a_photograph_over_itself_on_a_full_disk_keeps_it(files: Path, capsys: pytest.CaptureFixture) -> None:
    photo = files / "photos" / "0.png"
    old = photo.read_bytes()
    words = ["restore", str(photo), "--weights", str(files / "target.safetensors"), "--device", "cpu"]
    with full_disk():
        assert main([*words, "--out", str(photo), "--overwrite"]) == 2
    assert photo.read_bytes() == old
    error = capsys.readouterr().err
    assert error.count("\n") <= 2
    assert "0.png" in error


def test_a_read_only_folder_says_what_it_is(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ValueError, match=r"a\.png' could not be written \(Permission denied\).*may be written to"):
        write_image(files / "a.png", make_photograph(20, 20, 1))
