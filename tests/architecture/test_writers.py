"""Files are written in one way: beside the old one, synced, renamed. No other call that writes is in the packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITER = "filterattr/files/writing.py"

# calls that write, unless what they write to is a stream that somebody else puts in its place
WRITES = {
    "write_text", "write_bytes", "savefig", "imsave", "imwrite", "save_file", "tofile", "savez", "savez_compressed",
    "savetxt", "to_csv", "to_json", "to_pickle", "to_excel", "to_parquet", "to_html", "dump", "touch", "mkstemp",
    "NamedTemporaryFile", "copyfile", "copyfileobj", "copy2", "move", "rename", "symlink_to", "hardlink_to",
    "truncate", "serialize_file",
}  # fmt: skip
SAVERS = {"write_tensors", "replace_file", "replacing", "save_picture"}
FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"}

# what is no whole file that could be lost
EXCEPTIONS = {
    ("sr_zoo/training/log.py", "path.open('a')"),  # adds a line; those before stay
    ("sr_zoo/folder_lock.py", "os.open(path, os.O_RDWR | os.O_CREAT, 420)"),  # a lock, without content
    ("filterattr/cli/program.py", "os.open(os.devnull, os.O_WRONLY)"),
}


def name_of(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def modes_of(call: ast.Call) -> list[str]:
    """Every constant text that may be the mode of an opened file."""
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [value.value for value in values if isinstance(value, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and len(text) <= 4 and set(text) <= set("rwaxbt+U")]


def goes_to_a_stream(call: ast.Call) -> bool:
    return bool(call.args) and any(isinstance(value, ast.Name) and value.id == "stream" for value in call.args[:2])


def writes(call: ast.Call) -> bool:
    """Whether a call writes to a path of its own."""
    name = name_of(call)
    if name in ("open", "fdopen"):
        flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        return bool(flags & FLAGS) or any(set(mode) & set("wax+") for mode in modes_of(call))
    if name == "save":  # of results and networks, whose definitions are looked at; Pillow's and PyTorch's are none
        is_foreign = any(keyword.arg in ("format", "quality", "icc_profile", "dpi") for keyword in call.keywords)
        receiver = getattr(getattr(call.func, "value", None), "id", "")
        return (is_foreign or receiver in ("torch", "np", "numpy", "image", "picture")) and not goes_to_a_stream(call)
    if name.startswith("to_") and not call.args and not call.keywords:  # a text, not a file
        return False
    if name == "rename" and isinstance(call.func, ast.Name):  # an argument that renames parameters
        return False
    return name in WRITES and not goes_to_a_stream(call)


def found_in(source: str) -> list[str]:
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and writes(node)]


MODULES = sorted(path for package in ("filterattr", "sr_zoo") for path in (ROOT / package).rglob("*.py"))


def test_nothing_is_written_but_by_the_one_writer() -> None:
    places = {path.relative_to(ROOT).as_posix(): path.read_text() for path in MODULES}
    calls = {(place, call) for place, source in places.items() if place != WRITER for call in found_in(source)}
    assert WRITER in places
    assert calls == EXCEPTIONS


def test_what_can_be_saved_is_saved_by_the_one_writer() -> None:
    n_savers = 0
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "save" and not is_protocol(node):
                called = {name_of(call) for call in ast.walk(node) if isinstance(call, ast.Call)}
                assert called & (SAVERS | {"save"}), f"{path.name}: save() calls {sorted(called)}"
                n_savers += 1
    assert n_savers > 3


def is_protocol(node: ast.FunctionDef) -> bool:
    return all(isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in node.body)


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('a')",
        "Path(path).write_bytes(content)",
        "open(path, 'w')",
        "open(path, mode='xb')",
        "path.open('a')",
        "path.open(mode='r+')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.fdopen(file, 'wb')",
        "figure.savefig(path, dpi=100)",
        "image.save(path)",
        "Image.fromarray(pixels).save(path, icc_profile=profile)",
        "torch.save(state, path)",
        "json.dump(content, file)",
        "frame.to_csv(path)",
        "np.savez(path, a=a)",
        "shutil.move(first, second)",
        "path.rename(other)",
    ],
)
def test_ways_around_are_seen(source: str) -> None:
    assert found_in(source) == [ast.unparse(ast.parse(source).body[0])]


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "figure.savefig(stream, format='png')",
        "image.save(stream, format='PNG')",
        "torch.save(state, stream)",
        "attribution.save(path)",
        "text.replace('a', 'w')",
        "result.to_json()",
        "rename(name)",
        "stream.write(content)",
    ],
)
def test_reading_and_streams_are_none(source: str) -> None:
    assert found_in(source) == []
