"""Wrong turns on the command line end in one sentence and exit code 2, before any work, and nothing is lost."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import filterattr
from filterattr import FilterAttribution, FilterAttrWarning
from filterattr.cli import OutputError, check_file, check_folder
from sr_zoo import degradations, pretrained, study, training
from sr_zoo.cli import arguments, main, make_parser
from sr_zoo.folder_lock import FolderInUseError, sole_run
from sr_zoo.images import write_image
from sr_zoo.models import SRResNet
from sr_zoo.pretrained import save_network

SIZES = {"num_feat": 4, "num_block": 1, "upscale": 2}
_, COMMANDS = make_parser()
NO_NUMBERS = ("", "nan", "inf", "ten", "1e3", "1.5")
HUGE = "9" * 30
# what every option that takes a number refuses, written down by hand
REFUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {
        "--crops": ("0", "-1", HUGE, *NO_NUMBERS),
        "--draws": ("1", "0", "-1", HUGE, *NO_NUMBERS),
        "--fraction": ("0", "1", "-1", "nan", "inf", HUGE, "", "ten"),
        "--steps": ("0", "-1", HUGE, *NO_NUMBERS),
        "--seed": ("-1", HUGE, *NO_NUMBERS),
    },
    "degrade": {
        "--scale": ("0", "-1", "9", HUGE, *NO_NUMBERS),
        "--size": ("95", "0", "-1", HUGE, *NO_NUMBERS),
        "--seed": ("-1", HUGE, *NO_NUMBERS),
    },
    "train": {
        "--features": ("0", "-1", HUGE, *NO_NUMBERS),
        "--blocks": ("0", "-1", HUGE, *NO_NUMBERS),
        "--iterations": ("0", "-1", HUGE, *NO_NUMBERS),
        "--learning-rate": ("0", "-1", "1", "nan", "inf", HUGE, "", "ten"),
        "--batch-size": ("0", "-1", HUGE, *NO_NUMBERS),
        "--patch-size": ("15", "0", "-1", HUGE, *NO_NUMBERS),
        "--prediction-weight": ("-1", "nan", "inf", HUGE, "", "ten"),
        "--seed": ("-1", HUGE, *NO_NUMBERS),
        "--validate-every": ("0", "-1", HUGE, *NO_NUMBERS),
        "--stop-after": ("0", "-1", HUGE, *NO_NUMBERS),
        "--upscale": ("0", "-1", "5", HUGE, *NO_NUMBERS),
    },
    "restore": {"--tile": ("15", "0", "-1", HUGE, *NO_NUMBERS)},
    "attribute": {
        "--crops": ("0", "-1", HUGE, *NO_NUMBERS),
        "--size": ("0", "-1", HUGE, *NO_NUMBERS),
        "--steps": ("0", "-1", HUGE, *NO_NUMBERS),
        "--fraction": ("0", "1", "-1", "nan", "inf", HUGE, "", "ten"),
        "--seed": ("-1", HUGE, *NO_NUMBERS),
    },
    "study": {
        "--crop": ("31", "0", "-1", HUGE, *NO_NUMBERS),
        "--search-crops": ("3", "0", "-1", HUGE, *NO_NUMBERS),
        "--test-crops": ("3", "0", "-1", HUGE, *NO_NUMBERS),
        "--steps": ("0", "-1", HUGE, *NO_NUMBERS),
        "--null-draws": ("1", "0", "-1", HUGE, *NO_NUMBERS),
        "--reversion-draws": ("1", "0", "-1", HUGE, *NO_NUMBERS),
        "--ranking-crops": ("0", "-1", HUGE, *NO_NUMBERS),
        "--retrain-seeds": ("0", "-1", HUGE, *NO_NUMBERS),
        "--retrain-iterations": ("0", "-1", HUGE, *NO_NUMBERS),
        "--adaptive-iterations": ("-1", HUGE, *NO_NUMBERS),
        "--seed": ("-1", HUGE, *NO_NUMBERS),
    },
    "card": {"--seed": ("-1", HUGE, *NO_NUMBERS)},
    "compare": {"--seed": ("-1", HUGE, *NO_NUMBERS)},
    "report": {},
}
NEEDED = {
    "demo": [],
    "degrade": ["a.png"],
    "train": ["base", "--images", "photos", "--out", "run"],
    "restore": ["a.png"],
    "attribute": ["a", "b", "--images", "photos"],
    "study": [],
    "card": ["a", "--images", "photos", "--data", "d"],
    "compare": ["--network", "a", "b", "--images", "photos"],
    "report": ["study"],
}


@pytest.fixture
def folder(tmp_path: Path, photographs: list[Tensor]) -> Path:
    """Photographs, two networks, a file, an empty folder."""
    for index, photograph in enumerate(photographs):
        write_image(tmp_path / "photos" / f"{index}.png", photograph)
    write_image(tmp_path / "large.png", torch.randint(0, 256, (3, 120, 140), dtype=torch.uint8))
    for seed, name in enumerate(("base", "target")):
        torch.manual_seed(seed)
        save_network(tmp_path / f"{name}.safetensors", "srresnet", SIZES, SRResNet(**SIZES).state_dict(), {})
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "small" / "a.png", photographs[0])
    return tmp_path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says when it refuses, in one line."""
    capsys.readouterr()
    assert main(words) == 2, words
    said = capsys.readouterr().err
    assert said.startswith("python -m sr_zoo: ")
    assert said.count("\n") == 1, said
    return said


def numeric_options(parser: argparse.ArgumentParser) -> set[str]:
    """Options whose value is a number, as far as default or converter tell."""
    return {
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings
        and not isinstance(action.const, bool)
        and (action.type not in (None, Path) or isinstance(action.default, int | float))
    }


class TestHelp:
    def test_help_and_wrong_words_need_no_torch(self) -> None:
        code = (
            "import sys; from sr_zoo.cli import main\n"
            "try: main(['study', '--help'])\n"
            "except SystemExit: pass\n"
            "main(['demo', '--no-such']), main(['demo', '--crops', 'none'])\n"
            "sys.exit(bool({'torch', 'numpy', 'PIL', 'einops'} & sys.modules.keys()))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment).returncode == 0

    def test_names_are_those_of_the_modules_that_define_them(self) -> None:
        assert tuple(pretrained.ARCHITECTURES) == arguments.ARCHITECTURES
        assert set(arguments.TRAINED) < set(pretrained.ARCHITECTURES)
        assert arguments.PRECISIONS == training.PRECISIONS
        assert [stage.name for stage in study.STAGES] == list(arguments.STAGES)
        assert degradations.SPELLING == arguments.SPELLING
        sources = study.Sources()
        assert (sources.base, sources.target) == (arguments.BASE, arguments.TARGET)
        assert sources.degradations == tuple(arguments.DEGRADATIONS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_no_default_is_shown_where_there_is_none(self, command: str) -> None:
        text = COMMANDS[command].format_help()
        assert "None" not in text
        assert "False" not in text
        assert "examples:\n  python -m sr_zoo " in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_examples_are_words_that_the_command_takes(self, command: str) -> None:
        lines = (COMMANDS[command].epilog or "").splitlines()[1:]
        assert lines
        for line in lines:
            words = shlex.split(line.removeprefix("  python -m sr_zoo "))
            options, unknown = make_parser()[0].parse_known_args(words)
            assert (options.command, unknown) == (command, [])

    def test_the_version_names_what_a_report_of_a_fault_needs(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"filterattr {filterattr.__version__}, torch {torch.__version__}, ")


class TestNumbers:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_the_table_names_every_option_that_takes_a_number(self, command: str) -> None:
        assert numeric_options(COMMANDS[command]) == set(REFUSED[command])

    @pytest.mark.parametrize(
        ("command", "option"), [(command, option) for command, options in REFUSED.items() for option in options]
    )
    def test_numbers_that_cannot_be_are_refused(
        self, command: str, option: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for value in REFUSED[command][option]:
            assert option in refused([command, *NEEDED[command], f"{option}={value}"], capsys), value

    def test_all_of_them_are_named_at_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(["demo", "--crops", "0", "--steps", "many", "--fraction", "1"], capsys)
        assert all(option in said for option in ("--crops", "--steps", "--fraction"))

    def test_numbers_that_are_together_too_many_are_refused_before_the_memory_is(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["attribute", "base.safetensors", "target.safetensors", "--images", "photos", "--size", "128"]
        write_image(folder / "photos" / "big.png", torch.zeros(3, 200, 200))
        assert "GiB of memory" in refused([*words, "--crops", "100000", "--device", "cpu"], capsys)

    @pytest.mark.usefixtures("folder")
    def test_a_crop_that_does_not_suit_the_scale_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["attribute", "base.safetensors", "target.safetensors", "--images", "photos", "--size", "33"]
        assert "--size must be a multiple of the scale 2; got 33" in refused(words, capsys)


OUTPUTS: dict[str, list[str]] = {
    "degrade": ["large.png"],
    "restore": ["large.png", "--weights", "target.safetensors"],
    "card": ["target.safetensors", "--images", "photos", "--data", "d"],
    "compare": ["--network", "a", "target.safetensors", "--images", "photos"],
    "attribute": ["base.safetensors", "target.safetensors", "--images", "photos", "--crops", "1", "--size", "32"],
    "demo": ["--base", "base.safetensors", "--target", "target.safetensors"],
    "train": ["base", "--images", "photos"],
    "study": ["--quick", "--base", "base.safetensors", "--target", "target.safetensors", "--images", "photos"],
}
GOOD = {"degrade": "o.png", "restore": "o.png", "card": "o.md", "compare": "o.md"}
RESULT = {"attribute": "attribution.safetensors", "demo": "table.json", "train": "base.safetensors"}


class TestOutputs:
    """Nothing is read before outputs are known to be good: no file that is named as an input has to exist."""

    @pytest.mark.parametrize("command", OUTPUTS)
    def test_a_place_below_a_file(self, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = f"file/{GOOD.get(command, 'x')}"
        said = refused([command, *OUTPUTS[command], "--out", out], capsys)
        assert "--out must lie in a folder" in said
        assert "file' is a file" in said
        assert (folder / "file").read_text() == "kept"

    @pytest.mark.parametrize("command", OUTPUTS)
    @pytest.mark.usefixtures("folder")
    def test_a_folder_that_cannot_be_written_to(
        self, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)  # who runs as root may write everywhere
        out = f"empty/{GOOD.get(command, 'x')}"
        assert "can be written to" in refused([command, *OUTPUTS[command], "--out", out], capsys)

    @pytest.mark.parametrize("command", GOOD)
    def test_what_is_there_is_kept_without_overwrite(
        self, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / GOOD[command]).write_text("kept")
        said = refused([command, *OUTPUTS[command], "--out", GOOD[command]], capsys)
        assert "already exists: add --overwrite" in said
        assert (folder / GOOD[command]).read_text() == "kept"

    @pytest.mark.parametrize("command", RESULT)
    def test_a_folder_of_results_is_kept(self, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "out").mkdir()
        (folder / "out" / RESULT[command]).write_text("kept")
        assert "name another folder" in refused([command, *OUTPUTS[command], "--out", "out"], capsys)
        assert [path.name for path in (folder / "out").iterdir()] == [RESULT[command]]
        assert (folder / "out" / RESULT[command]).read_text() == "kept"

    @pytest.mark.parametrize("command", GOOD)
    @pytest.mark.parametrize("out", ["o.doc", "o", "empty"])
    @pytest.mark.usefixtures("folder")
    def test_unknown_endings_and_folders(self, command: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--out must end in one of" in refused([command, *OUTPUTS[command], "--out", out], capsys)

    def test_the_table_of_a_comparison_never_is_the_file_of_its_numbers(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "--out must end in" in refused(["compare", *OUTPUTS["compare"], "--out", "o.json"], capsys)
        (folder / "o.json").write_text("kept")
        assert "o.json', which already exists" in refused(["compare", *OUTPUTS["compare"], "--out", "o.md"], capsys)

    def test_a_photograph_is_never_replaced_by_what_is_made_of_it(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (folder / "large.png").read_bytes()
        for command in ("restore", "degrade"):
            said = refused([command, *OUTPUTS[command], "--out", "large.png", "--overwrite"], capsys)
            assert "must not be a file that the command reads" in said
        assert (folder / "large.png").read_bytes() == before

    def test_half_weights_never_replace_the_whole_ones(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (folder / "target.safetensors").read_bytes()
        said = refused(["card", *OUTPUTS["card"], "--half", "target.safetensors", "--overwrite"], capsys)
        assert "--half must not be a file that the command reads" in said
        assert "add --overwrite" in refused(["card", *OUTPUTS["card"], "--half", "base.safetensors"], capsys)
        assert (folder / "target.safetensors").read_bytes() == before

    @pytest.mark.usefixtures("folder")
    def test_overwrite_replaces(self) -> None:
        for _ in range(2):
            assert main(["degrade", "large.png", "--size", "96", "--out", "o.png", "--overwrite"]) == 0
        words = ["restore", "large.png", "--weights", "target.safetensors", "--device", "cpu"]
        assert main(words) == 0
        assert main(words) == 2
        assert main([*words, "--overwrite"]) == 0

    def test_a_format_that_cannot_hold_the_picture_is_refused_before_the_work(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from PIL import Image

        Image.new("RGBA", (20, 20), (9, 9, 9, 9)).save(folder / "clear.png")
        Image.new("RGB", (9000, 1)).save(folder / "wide.png")
        monkeypatch.setattr("sr_zoo.cli.restore.restore_picture", _never)
        more = ["--weights", "target.safetensors", "--device", "cpu", "--out"]
        assert "JPEG cannot" in refused(["restore", "clear.png", *more, "o.jpg"], capsys)
        assert "stores at most 16383" in refused(["restore", "wide.png", *more, "o.webp"], capsys)

    def test_an_empty_name_is_no_file(self) -> None:
        with pytest.raises(OutputError, match="must end in"):
            check_file("--out", Path(), {".png"}, overwrite=True)

    def test_a_link_that_leads_nowhere_can_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "link.png").symlink_to(tmp_path / "later.png")
        check_file("--out", tmp_path / "link.png", {".png"}, overwrite=False)
        check_folder("--out", tmp_path / "a" / "b")
        assert not (tmp_path / "a").exists()


def _never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this is work")


DEMO = ["--base", "base.safetensors", "--target", "target.safetensors"]
INPUTS = [
    (["restore", "nowhere.png"], "nowhere.png"),
    (["restore", "empty"], "empty"),
    (["restore", "file"], "file"),
    (["restore", "file/x.png"], "file/x.png"),
    (["restore", "large.png", "--weights", "empty"], "empty"),
    (["restore", "large.png", "--weights", "large.png"], "large.png"),
    (["restore", "large.png", "--weights", "file"], "file"),
    (["restore", "large.png", "--weights", "file/x.safetensors"], "file/x.safetensors"),
    (["restore", "large.png", "--weights", ""], "weights"),
    (["restore", "large.png", "--weights", "targt.safetensors"], "did you mean target.safetensors"),
    (["restore", "large.png", "--weights", "srresnet_x2_f32b8_taget"], "did you mean srresnet_x2_f32b8_target"),
    (["restore", "large.png", "--device", "meta"], "--device"),
    (["degrade", "empty"], "empty"),
    (["degrade", "nowhere.png"], "nowhere.png"),
    (["attribute", "base.safetensors", "target.safetensors", "--images", "nowhere"], "nowhere"),
    (["attribute", "base.safetensors", "target.safetensors", "--images", "empty"], "empty"),
    (["attribute", "base.safetensors", "target.safetensors", "--images", "file"], "file"),
    (["attribute", "base.safetensors", "target.safetensors", "--images", "file/x"], "file/x"),
    (["attribute", "base.safetensors", "nowhere", "--images", "photos"], "nowhere"),
    (["attribute", "base.safetensors", "base.safetensors", "--images", "photos"], "hold the same weights"),
    (["demo", "--base", "base.safetensors", "--target", "base.safetensors"], "hold the same weights"),
    (["demo", *DEMO, "--search", "photos", "--test", "photos"], "must be different folders"),
    (["demo", *DEMO, "--search", "photos", "--test", "small"], "192x192"),
    (["train", "base", "--images", "empty", "--out", "run"], "empty"),
    (["train", "base", "--images", "file", "--out", "run"], "file"),
    (["train", "target", "--from", "nowhere", "--images", "photos", "--out", "run"], "nowhere"),
    (["train", "target", "--from", "large.png", "--images", "photos", "--out", "run"], "large.png"),
    (["train", "base", "--images", "photos", "--out", "run", "--features", "1024", "--blocks", "1000"], "GB are free"),
    (["train", "target", "--from", "base.safetensors", "--network", "dasr", "--images", "photos", "--out", "run"],
     "--network dasr (it has srresnet)"),
    (["train", "target", "--from", "base.safetensors", "--blocks", "8", "--images", "photos", "--out", "run"],
     "--blocks 8 (it has 1)"),
    (["card", "nowhere", "--images", "photos", "--data", "d"], "nowhere"),
    (["card", "empty", "--images", "photos", "--data", "d"], "empty"),
    (["card", "target.safetensors", "--images", "nowhere", "--data", "d"], "nowhere"),
    (["compare", "--network", "a", "empty", "--images", "photos"], "empty"),
    (["compare", "--network", "a", "--images", "photos"], "at least one file"),
    (["compare", "--network", "a", "target.safetensors", "--images", "file"], "file"),
    (["study", "--quick", "--images", "nowhere"], "nowhere"),
    (["study", "--quick", "--images", "empty"], "empty"),
    (["study", "--quick", "--base", "empty"], "empty"),
    (["study", "--quick", "--stages", "serch"], "serch"),
    (["report", "nowhere"], "nowhere"),
    (["report", "file"], "file"),
    (["report", "empty"], "empty"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "part"), INPUTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_inputs_that_cannot_be_are_named(
    words: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert part in refused(words, capsys)
    assert sorted(folder.rglob("*")) == before


class TestTheMachine:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "sheet.png"), "'sheet.png': No space left on device."),
            (PermissionError(errno.EACCES, "Permission denied", "a"), "'a': Permission denied."),
            (OSError("cannot identify image file"), "cannot identify image file."),
            (MemoryError(), "there is not enough memory: use fewer or smaller crops"),
            (torch.OutOfMemoryError("CUDA out of memory."), "there is not enough memory"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        ],
    )
    @pytest.mark.usefixtures("folder")
    def test_what_it_refuses_is_said_in_one_line(
        self, error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
    ) -> None:
        def fail(*_: object, **__: object) -> NoReturn:
            raise error

        monkeypatch.setattr("sr_zoo.cli.degrade.draw_contact_sheet", fail)
        assert message in refused(["degrade", "large.png"], capsys)

    @pytest.mark.usefixtures("folder")
    @pytest.mark.filterwarnings("always")
    def test_warnings_of_the_library_are_sentences_and_others_say_where_they_come_from(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def warn(*_: object, **__: object) -> None:
            warnings.warn("the path has a barrier.", FilterAttrWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)

        monkeypatch.setattr("sr_zoo.cli.degrade.draw_contact_sheet", warn)
        before = warnings.showwarning
        assert main(["degrade", "large.png"]) == 0
        first, second = capsys.readouterr().err.splitlines()[:2]
        assert first == "python -m sr_zoo: the path has a barrier."
        assert second.endswith("DeprecationWarning: old")
        assert warnings.showwarning is before

    @pytest.mark.usefixtures("folder")
    def test_a_fault_of_the_program_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sr_zoo.cli.degrade.draw_contact_sheet", _never)
        with pytest.raises(AssertionError, match="this is work"):
            main(["degrade", "large.png"])


HOLD = """
import sys, time
from sr_zoo.folder_lock import sole_run
with sole_run(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


class TestOneRunAtATime:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Any:
        """Another process at work in the folder."""
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, cwd=root, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()
        process.wait()
        process.stdout.close()

    def test_a_folder_in_use_is_refused_and_a_killed_run_leaves_it_free(self, tmp_path: Path, other: Any) -> None:
        with pytest.raises(FolderInUseError, match=f"in use by process {other.pid}"), sole_run(tmp_path / "out"):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with sole_run(tmp_path / "out"):
            assert (tmp_path / "out" / ".lock").read_text() == f"{os.getpid()}\n"
        assert not (tmp_path / "out" / ".lock").exists()

    @pytest.mark.parametrize("command", ["attribute", "train", "demo", "study"])
    @pytest.mark.usefixtures("other")
    def test_the_commands_keep_to_it(self, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_image(folder / "photos" / "big.png", torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8))
        write_image(folder / "small" / "big.png", torch.randint(0, 256, (3, 210, 200), dtype=torch.uint8))
        more = {
            "demo": ["--search", "photos", "--test", "small"],
            "train": ["--features", "4", "--blocks", "1", "--iterations", "1", "--patch-size", "16", "--device", "cpu"],
        }
        words = [command, *OUTPUTS[command], *more.get(command, []), "--out", "out"]
        if command == "study":
            words += ["--crop", "32", "--stages", "search"]
        assert main(words) == 2
        assert "one run at a time works in a folder; 'out' is in use" in capsys.readouterr().err
        assert [path.name for path in (folder / "out").iterdir()] == [".lock"]

    def test_many_that_come_and_go_never_meet(self, tmp_path: Path) -> None:
        code = (
            "import sys, os, time, random\nfrom sr_zoo.folder_lock import sole_run, FolderInUseError\n"
            "mark = sys.argv[1] + '/inside'; done = 0; end = time.monotonic() + 2\n"
            "while time.monotonic() < end:\n"
            "  try:\n"
            "    with sole_run(sys.argv[1]):\n"
            "      os.close(os.open(mark, os.O_CREAT | os.O_EXCL)); os.unlink(mark); done += 1\n"
            "  except FolderInUseError: pass\n"
            "print(done)"
        )
        root = Path(__file__).parents[2]
        runs = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True)
            for _ in range(3)
        ]
        done = [int(run.communicate()[0]) for run in runs]
        assert [run.returncode for run in runs] == [0, 0, 0]
        assert sum(done) > 100


class TestKey:
    """One file of another project that holds both networks."""

    @pytest.fixture(autouse=True)
    def _both(self, folder: Path) -> None:
        held = {}
        for seed, name in enumerate(("before", "after")):
            torch.manual_seed(seed)
            held[name] = SRResNet(**SIZES).state_dict()
        torch.save({"networks": held}, folder / "both.pth")

    PAIR = ("both.pth", "both.pth", "--images", "photos", "--crops", "1", "--size", "32", "--steps", "1")

    @pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
    def test_one_for_each_end_is_what_two_files_are(self, folder: Path) -> None:
        keys = ["--key", "networks.before", "networks.after"]
        assert main(["attribute", *self.PAIR, "--device", "cpu", *keys, "--out", "one"]) == 0
        files = ["base.safetensors", "target.safetensors"]
        assert main(["attribute", *files, *self.PAIR[2:], "--device", "cpu", "--out", "two"]) == 0
        one, two = (FilterAttribution.load(folder / name / "attribution.safetensors") for name in ("one", "two"))
        assert torch.equal(one.scores().flat(), two.scores().flat())
        assert one.loss_base != one.loss_target

    @pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
    def test_one_key_is_for_the_file_that_takes_it(self) -> None:
        words = ["base.safetensors", *self.PAIR[1:], "--device", "cpu"]
        assert main(["attribute", *words, "--key", "networks.after"]) == 0

    def test_a_file_of_several_networks_is_refused_without(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(["attribute", *self.PAIR], capsys)
        assert "both.pth" in said

    def test_keys_that_nothing_takes_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        own = ["attribute", "base.safetensors", "target.safetensors", *self.PAIR[2:], "--key"]
        assert "these files hold one each" in refused([*own, "params"], capsys)
        assert "these files hold one each" in refused([*own, "params", "params"], capsys)
        mixed = ["attribute", "base.safetensors", *self.PAIR[1:], "--key", "params", "networks.after"]
        assert "'base.safetensors' holds one network and takes no key" in refused(mixed, capsys)
        assert "got 3" in refused([*own, "a", "b", "c"], capsys)
        assert "both.pth" in refused(["attribute", *self.PAIR, "--key", "nothing"], capsys)

    def test_every_command_that_opens_weights_has_it(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        key, keys = ["--key", "networks.after"], ["--key", "networks.before", "networks.after"]
        assert main(["restore", "large.png", "--weights", "both.pth", "--device", "cpu", *key]) == 0
        assert main(["card", "both.pth", "--images", "photos", "--data", "d", *key]) == 0
        assert main(["compare", "--network", "a", "both.pth", "target.safetensors", "--images", "photos", *key]) == 0
        start = ["train", "target", "--from", "both.pth", "--images", "photos", "--out", "run", "--patch-size", "16"]
        assert main([*start, "--batch-size", "1", "--device", "cpu", "--dry-run", *key]) == 0
        study = ["study", "--quick", "--base", "both.pth", "--target", "both.pth", "--images", "photos", "--crop", "32"]
        assert main([*study, "--dry-run", *keys]) == 0
        model = ["--model", "srresnet", "--model-arguments", *(f"{name}={value}" for name, value in SIZES.items())]
        assert main([*study, "--dry-run", *keys, *model]) == 0
        ends = ["demo", "--base", "both.pth", "--target", "both.pth", "--search", "photos", "--test", "small"]
        assert "192x192" in refused([*ends, *keys], capsys)
        rows = capsys.readouterr().out
        assert not (folder / "demo_output").exists(), rows
