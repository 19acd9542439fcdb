"""What the commands do is what the library does; wrong turns end in one sentence and exit code 2, and write nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from filterattr import FilterAttribution, FilterAttributor, FilterSelection, blend, load_state
from filterattr.analysis import compare_checkpoints
from filterattr.cli import main, make_parser
from filterattr.export import apply_patch, read_patch
from filterattr.files import read_tensors
from tests.filterattr.cli import subjects
from tests.filterattr.files.test_lazy import sharded

ROOT = Path(__file__).parents[3]
NAMES = "tests.filterattr.cli.subjects"
TASK = ["--model", f"{NAMES}:model", "--loss", f"{NAMES}:loss", "--data", f"{NAMES}:data", "--device", "cpu"]
Run = Callable[..., dict[str, Any]]
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Files base.pt and target.pth in the present folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {name: value.detach().clone() for name, value in subjects.model().state_dict().items()}
    target = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    torch.save(base, "base.pt")
    torch.save({"params_ema": target, "iter": 3}, "target.pth")
    return base, target


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds, and return its JSON."""

    def call(*words: str) -> dict[str, Any]:
        assert main([*words, "--json"] if words[0] != "export" else ["export", "--json", *words[1:]]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in second)


def test_from_two_files_to_a_report_and_a_patch(pair: Pair, run: Run) -> None:
    base, target = pair
    said = run("attribute", "base.pt", "target.pth", *TASK, "--steps", "4", "--out", "a.safetensors")
    attribution = FilterAttribution.load("a.safetensors")
    expected = FilterAttributor(subjects.model()).attribute(base, target, subjects.loss, subjects.data(), n_steps=4)
    assert same(dict(attribution.scores()), dict(expected.scores()))
    assert said["loss_base"] == expected.loss_base
    assert (said["n_samples"], said["n_passes"]) == (3, 12)
    assert not Path("a.unfinished.safetensors").exists()

    assert run("select", "a.safetensors", "--fraction", "0.25", "--out", "s.safetensors")["count"] == 3
    selection = FilterSelection.load("s.safetensors")
    assert selection == expected.scores().top(0.25)

    said = run("export", "patch", "s.safetensors", "base.pt", "target.pth", "--out", "p.safetensors")
    assert said["weights"] == 27 == read_patch("p.safetensors").count
    assert said["bytes"] == Path("p.safetensors").stat().st_size
    run("apply", "base.pt", "p.safetensors", "--out", "patched.pt")
    assert same(load_state("patched.pt"), blend(base, target, selection))
    assert same(load_state("patched.pt"), apply_patch(base, "p.safetensors"))

    run("mask", "base.pt", "target.pth", "--selection", "s.safetensors", "--out", "masked.pth", "--strength", "0.5")
    assert same(load_state("masked.pth"), blend(target, base, selection, 0.5))
    assert set(torch.load("masked.pth")) == {"params_ema", "iter"}

    run("report", "a.safetensors", "--selection", "s.safetensors", "--title", "Four commands", "--out", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "Four commands" in page
    assert "Selected units by layer" in page


@pytest.mark.usefixtures("pair")
def test_ranks_and_masks(run: Run) -> None:
    run("attribute", "base.pt", "target.pth", *TASK, "--steps", "2", "--out", "a.safetensors", "--unit", "filter")
    arguments = run("export", "ranks", "a.safetensors", "--rank", "2", "--scaling", "3")["arguments"]
    assert json.loads(Path("lora.json").read_text()) == arguments
    assert set(arguments["rank_pattern"]) <= {"0", "2"}
    assert all(arguments["alpha_pattern"][name] == 3 * rank for name, rank in arguments["rank_pattern"].items())
    run("select", "a.safetensors", "--count", "2", "--out", "s.safetensors")
    selection = FilterSelection.load("s.safetensors")
    pruned = run("export", "masks", "s.safetensors")["pruned"]
    masks, _ = read_tensors("masks.safetensors", "masks")
    assert pruned == sum(int((~mask).sum()) for mask in masks.values())
    assert same(masks, {name: ~marks for name, marks in selection.weights().items()})


@pytest.mark.usefixtures("pair")
def test_select_narrows_to_layers_and_reads_scores(run: Run) -> None:
    run("attribute", "base.pt", "target.pth", *TASK, "--steps", "2", "--out", "a.safetensors")
    attribution = FilterAttribution.load("a.safetensors")
    run("select", "a.safetensors", "--only", "2.*", "--count", "2", "--reduction", "sum", "--out", "s.safetensors")
    assert FilterSelection.load("s.safetensors") == attribution.scores("sum").only("2.*").top(2)
    attribution.scores("abs_of_sum").save("scores.safetensors")
    run("select", "scores.safetensors", "--count", "4", "--out", "t.safetensors")
    assert FilterSelection.load("t.safetensors") == attribution.scores("abs_of_sum").top(4)


def test_an_attribution_that_was_stopped_goes_on(pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = subjects.loss

    def stopped(network: Any, sample: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return plain(network, sample)

    monkeypatch.setattr(subjects, "loss", stopped)
    words = ["attribute", "base.pt", "target.pth", *TASK, "--steps", "4", "--out", "a.safetensors"]
    assert main(words) == 130
    assert not Path("a.safetensors").exists()
    assert Path("a.unfinished.safetensors").exists()
    seen = len(calls)
    run(*words)
    again = len(calls) - seen
    expected = FilterAttributor(subjects.model()).attribute(*pair, plain, subjects.data(), n_steps=4)
    assert same(dict(FilterAttribution.load("a.safetensors").scores()), dict(expected.scores()))
    assert again < seen + 4  # two samples are done again at most


def test_diff_says_what_changed_the_largest_first(pair: Pair, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    base, target = pair
    said = run("diff", "base.pt", "target.pth", "--html", "d.html")
    lengths = {name: float((target[name] - base[name]).double().square().sum()) for name in base}
    assert [entry["name"] for entry in said["entries"]] == sorted(lengths, key=lambda name: -lengths[name])
    for entry in said["entries"]:
        name = entry["name"]
        assert entry["share"] == pytest.approx(lengths[name] / sum(lengths.values()), rel=1e-5)
        assert entry["relative"] == pytest.approx((lengths[name] / float(base[name].square().sum())) ** 0.5, rel=1e-5)
        assert entry["largest"] == pytest.approx(float((target[name] - base[name]).abs().max()))
    assert "2.weight" in Path("d.html").read_text(encoding="utf-8")
    assert main(["diff", "base.pt", "target.pth", "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert "4 of 4 parameters differ" in text
    assert "and 3 more" in text
    assert main(["diff", "base.pt", "base.pt"]) == 0
    assert capsys.readouterr().out.startswith("both hold the same weights")


@pytest.mark.usefixtures("pair")
def test_estimate_tells_passes_and_units(run: Run) -> None:
    said = run("estimate", "base.pt", "target.pth", *TASK, "--steps", "8")
    assert (said["n_samples"], said["n_passes"], said["n_units"]) == (3, 24, 12)
    assert 0 < said["seconds_per_pass"] < 5
    assert said["minutes"] * 60 == pytest.approx(24 * said["seconds_per_pass"])
    assert said["engine_bytes"] > 0
    assert [path.name for path in Path().iterdir() if "unfinished" in path.name] == []


WRONG = [
    (["diff", "nowhere.pt", "base.pt"], "'nowhere.pt' cannot be read: No such file"),
    (["diff", "base.pt", "text.txt"], "'text.txt' must be a checkpoint of tensors alone"),
    (["diff", "base.pt", "other.pt"], "both checkpoints must have parameters in common"),
    (["diff", "base.pt", "empty"], "the folder 'empty' must hold weights"),
    (["diff", "base.pt", "base.pt", "--top", "-1"], "--top must be a whole number"),
    (["diff", "base.pt", "base.pt", "--html", "text.txt"], "--html must end in .html"),
    (["diff", "base.pt", "base.pt", "--htlm", "a.html"], "did you mean --html?"),
    (["diff", "base.pt", "base.pt", "--key", "net"], "holds nothing under 'net'"),
    (["diff", "base.pt"], "the following arguments are required: second"),
    (["attribute", "base.pt", "target.pth"], "name the model, the loss and the data"),
    (["attribute", "base.pt", "target.pth", *TASK[:4]], "--data are missing"),
    (["attribute", "base.pt", "target.pth", *TASK, "--text", "text.txt"], "belong together, without --text"),
    (["attribute", "base.pt", "target.pth", "--text", "text.txt"], "'base.pt' has no config.json"),
    (["attribute", "base.pt", "other.pt", *TASK], "target"),
    (["attribute", "base.pt", "target.pth", *TASK, "--out", "base.pt"], "--out must end in .safetensors"),
    (["attribute", "base.pt", "target.pth", *TASK, "--out", "there.safetensors"], "already exists: add --overwrite"),
    (["attribute", "base.pt", "target.pth", *TASK, "--device", "abacus"], "--device must be one that PyTorch has here"),
    (["attribute", "base.pt", "target.pth", *TASK, "--select", "no*"], "no*"),
    (["attribute", "base.pt", "target.pth", "--model", "nothing", *TASK[2:]], "must be spelt package.module:name"),
    (["attribute", "base.pt", "target.pth", "--model", "no.module:a", *TASK[2:]], "cannot be imported: ModuleNotFound"),
    (["attribute", "base.pt", "target.pth", "--model", f"{NAMES}:nothing", *TASK[2:]], "has no 'nothing'"),
    (["attribute", "base.pt", "target.pth", "--model", f"{NAMES}:NUMBER", *TASK[2:]], "must name a function"),
    (["attribute", "base.pt", "target.pth", "--model", f"{NAMES}:data", *TASK[2:]], "that returns a torch.nn.Module"),
    (["attribute", "base.pt", "target.pth", "--model", f"{NAMES}:failing", *TASK[2:]], "raised ZeroDivisionError"),
    (["attribute", "base.pt", "target.pth", *TASK[:4], "--data", f"{NAMES}:no_data"], "must hold at least one sample"),
    (["select", "base.pt"], "must hold an attribution or scores"),
    (["select", "there.safetensors"], "must hold an attribution or scores; it holds selection"),
    (["select", "there.safetensors", "--fraction", "2"], "--fraction must be a number between 0 and 1"),
    (
        ["mask", "base.pt", "target.pth", "--selection", "base.pt", "--out", "m.pth"],
        "'base.pt' is not a readable safetensors file",
    ),
    (["mask", "base.pt", "other.pt", "--selection", "there.safetensors", "--out", "m.pt"], "target has no '0.weight'"),
    (["mask", "base.pt", "target.pth", "--selection", "there.safetensors", "--out", "m.bin"], "--out must end in .pth"),
    (["mask", "base.pt", "target.pth", "--selection", "there.safetensors"], "required: --out"),
    (["export", "patch", "there.safetensors", "base.pt", "other.pt"], "target has no '0.weight'"),
    (["export", "ranks", "there.safetensors"], "must hold an attribution or scores"),
    (["export", "masks", "base.pt"], "'base.pt'"),
    (["export", "cake"], "invalid choice: 'cake'"),
    (["apply", "base.pt", "there.safetensors", "--out", "m.pt"], "must be a patch file"),
    (["report", "base.pt"], "'base.pt'"),
    (["dif"], "invalid choice: 'dif'"),
    ([], "required: COMMAND"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words[:1] + words[-2:]) for words, _ in WRONG])
def test_wrong_turns_end_in_one_sentence(
    words: list[str],
    message: str,
    pair: Pair,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("text.txt").write_text("a text")
    Path("empty").mkdir()
    torch.save({"a": torch.ones(2)}, "other.pt")
    FilterAttributor(subjects.model()).attribute(*pair, subjects.loss, subjects.data(), n_steps=1).scores().top(2).save(
        "there.safetensors"
    )
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("filterattr: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_help_and_version_load_no_torch() -> None:
    code = (
        "import sys\nfrom filterattr.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    for words in (["--help"], ["--version"], *([name, "--help"] for name in make_parser()[1])):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["filterattr", "ma"], ["mask"]),
        (["filterattr", "diff", "--to"], ["--top"]),
        (["filterattr", "export", "ra"], ["ranks"]),
        (["filterattr", "export", "ranks", "--sc"], ["--scaling"]),
        (["filterattr", "attribute", "--no"], []),
    ],
)
def test_bash_completes_commands_and_options(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    code = f"source ./script; {line}; _filterattr; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_the_module_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "filterattr", "diff", "a.pt", "b.pt"],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "filterattr: 'a.pt' cannot be read: No such file or directory.\n"


def test_a_folder_of_an_adapter_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some words")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    assert main(["attribute", "adapter", "adapter", "--text", "text.txt"]) == 2
    assert "'adapter' holds an adapter. Score it in Python (docs: Score a LoRA adapter)" in capsys.readouterr().err


def test_folders_of_a_language_model_need_no_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """From two folders to a report and a patch in four commands."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    text = "the quick brown fox jumps over the lazy dog " * 30
    Path("text.txt").write_text(text)
    words = {word: place for place, word in enumerate(["[UNK]", *sorted(set(text.split()))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=32, vocab_size=len(words), n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    tokenizer.save_pretrained("base")
    model.save_pretrained("base", max_shard_size="40KB")
    with torch.no_grad():
        for value in model.parameters():
            value += 0.02 * torch.randn_like(value)
    model.save_pretrained("target", max_shard_size="40KB")
    assert len(list(Path("base").glob("*.safetensors"))) > 1

    said = run(
        "attribute", "base", "target", "--text", "text.txt", "--samples", "2", "--length", "16", "--steps", "4",
        "--device", "cpu",
    )  # fmt: skip
    assert said["n_samples"] == 2
    assert said["completeness_error"] < 0.01
    tokens = torch.tensor(tokenizer(text)["input_ids"])[None, :16]
    first = transformers.GPT2LMHeadModel.from_pretrained("base").eval()
    assert abs(first(input_ids=tokens, labels=tokens).loss.item() - said["loss_base"]) < 0.5
    run("select", "attribution.safetensors")
    run("report", "attribution.safetensors", "--selection", "selection.safetensors")
    run("export", "patch", "selection.safetensors", "base", "target")

    run("apply", "base", "patch.safetensors", "--out", "patched")
    opened = transformers.AutoModelForCausalLM.from_pretrained("patched").eval()
    selection = FilterSelection.load("selection.safetensors")
    expected = blend(load_state("base"), load_state("target"), selection)
    held = opened.state_dict()
    assert all(torch.equal(held[name], value) for name, value in expected.items())
    run("mask", "base", "target", "--selection", "selection.safetensors", "--out", "masked")
    assert same(load_state("masked"), blend(load_state("target"), load_state("base"), selection))
    assert main(["apply", "base", "patch.safetensors", "--out", "patched"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["attribute", "base", "target", "--text", "text.txt", "--length", "5000", "--overwrite"]) == 2
    assert "needs more" in capsys.readouterr().err


def test_mask_of_tied_weights_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Torch files hold tied weights as one storage with two names; the selection may name the second of them."""
    monkeypatch.chdir(tmp_path)
    base, target = torch.zeros(4, 3), torch.ones(4, 3)
    for path, value in (("base.pt", base), ("target.pt", target)):
        torch.save({"embed.weight": value, "head.weight": value}, path)
    like = FilterAttributor(torch.nn.Linear(3, 4, bias=False), unit="filter").scored_parameters()["weight"]
    FilterSelection({"head.weight": torch.tensor([True, False, True, False])}, {"head.weight": like}).save("s.st")
    run("mask", "base.pt", "target.pt", "--selection", "s.st", "--out", "masked.pt")
    masked = load_state("masked.pt")
    assert masked["head.weight"].sum(1).tolist() == [0, 3, 0, 3]
    assert torch.equal(masked["embed.weight"], masked["head.weight"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing makes the system forget files here")
def test_diff_of_large_shards_is_lean_and_as_fast_as_reading(tmp_path: Path) -> None:
    """Two checkpoints of 2 GB each: at most 300 MB above what is imported, and no slower than a plain read of them."""
    noise = torch.randn(2**24)
    for end in ("a", "b"):
        state = {}
        for layer in range(32):
            value = noise.roll(1000 * layer).reshape(4096, 4096)
            state[f"layers.{layer}.weight"] = value * 1.01 if end == "b" and layer % 2 else value
            if layer % 8 == 7:
                sharded(tmp_path / f"{end}{layer // 8}", state, 1)
                state = {}
        _join(tmp_path, end)
    code = """
import os, pathlib, resource, sys, time
from filterattr.analysis import compare_checkpoints
folder = pathlib.Path(sys.argv[1])
files = sorted(folder.glob("[ab]/*.safetensors"))
buffer = bytearray(2**20)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
results = []
def compare():
    results.append(compare_checkpoints(folder / "a", folder / "b", progress=False))
def read():
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
def timed(call):
    for file in files:  # the system forgets what it holds of them, as far as it can
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
reading = timed(read)
before = peak()
seconds = timed(compare)
used = peak() - before
(found,) = results
print(seconds, reading, used, found.relative, sum(bool(entry.changed) for entry in found.entries))
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    seconds, reading, used, relative, changed = map(float, done.stdout.split())
    assert used <= 300
    assert seconds <= reading
    assert relative == pytest.approx(0.01 / 2**0.5, rel=1e-3)
    assert changed == 16


def _join(folder: Path, end: str) -> None:
    """Put four folders of one shard together as one of four."""
    weight_map = {}
    (folder / end).mkdir()
    for number in range(4):
        part = folder / f"{end}{number}"
        file = f"model-{number + 1:05}-of-00004.safetensors"
        (part / "model-00001-of-00001.safetensors").rename(folder / end / file)
        names = json.loads((part / "model.safetensors.index.json").read_text())["weight_map"]
        weight_map |= dict.fromkeys(names, file)
    (folder / end / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.usefixtures("pair")
def test_compare_is_what_the_commands_print(run: Run) -> None:
    assert run("diff", "base.pt", "target.pth")["relative"] == compare_checkpoints("base.pt", "target.pth").relative
