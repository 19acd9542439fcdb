"""The page of a study: one HTML file made from stored results alone, and its summary as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filterattr import report
from filterattr.analysis import Confusion, Record
from filterattr.display import Dial, Picture, Strip
from filterattr.files import replace_file
from sr_zoo.study.archive import Archive
from sr_zoo.study.channels_page import channels_section
from sr_zoo.study.pipeline import STAGES
from sr_zoo.study.settings import StudyError
from sr_zoo.study.stages.pictures import Pictures
from sr_zoo.study.summary import summary

_QUESTION = (
    "Which few kernels of the network remove which degradation, and is that more than chance? Kernels were found on "
    "some photographs and put back to the weights before fine-tuning while others were restored. Removed 0: the "
    "function is intact; 1: it is gone; above 1 the network is damaged."
)
# stage and prefix of its results to the caption on the page
_TABLES = {
    ("sanity", "sanity_"): "Sanity checks",
    ("stability", "stability_"): "How many crops are enough",
    ("reversion", "reversion_"): "Put back, and left alone, against random sets of the same layers",
    ("reversion", "outputs_"): "Put back, and left alone",
    ("reversion", "removed_"): "Removed by the same sets",
    ("reversion", "curve_"): "Put back, size by size",
    ("depth", "depth_"): "Kernels of every layer, with intervals",
    ("comparison", "table"): "All rankings",
    ("rivals", "rivals_"): "All rankings, by what their sets put back and move",
    ("oracle", "agreement_"): "Agreement with knocking kernels out",
    ("gradient_maps", "gradient_maps"): "The published metric beside ours",
    ("places", "places"): "Weights, locations, connections",
    ("retraining", "retraining"): "Retraining the discovered places",
    ("adaptive", "restorers"): "A shared network with patches",
}


def write_report(archive: Archive) -> list[Path]:
    """Write ``report.html`` and ``summary.md`` into the folder of a study.

    Args:
        archive: The study.

    Returns:
        The files.

    Raises:
        StudyError: No stage is done.
        StorageError: Results are damaged, or the disk refuses.
    """
    stored = {stage.name: archive.load(stage.name) for stage in STAGES if archive.is_done(stage.name)}
    if not stored:
        raise StudyError(
            f"'{archive.folder}' must hold a study of which a stage is done; it holds no results. Run python -m sr_zoo "
            f"study --out {archive.folder} first."
        )
    text = archive.folder / "summary.md"
    replace_file(text, [summary(archive).encode()])
    found = stored.get("search", {})
    notes = archive.notes(next(iter(stored)))
    functions = [name.removeprefix("set_") for name in found if name.startswith("set_")]
    asked = notes["subject"]["functions"].split(", ")
    title = f"What removes {' and '.join(asked)}? {notes['subject']['target']}"
    page = report(
        archive.folder / "report.html",
        title,
        question=_QUESTION,
        attributions={name: found[f"attribution_{name}"] for name in functions},
        selections={name: found[f"set_{name}"] for name in functions},
        scores={name: found[f"scores_{name}"] for name in functions},
        curves=list(stored.get("curves", {}).values()),
        nulls=list(stored.get("nulls", {}).values()),
        matrix=stored.get("specificity", {}).get("strict"),
        modulations=list(stored.get("modulation", {}).values()),
        strips=_panels(stored.get("pictures", {})),
        confusions=_confusions(stored),
        further=[channels_section(stored["channels"])] if "channels" in stored else [],
        tables=_captioned(stored, _TABLES),
        costs={"Stages": _costs(archive)},
        provenance=_provenance(notes),
    )
    return [page, text]


def _captioned(stored: Mapping[str, Mapping[str, Any]], captions: Mapping[tuple[str, str], str]) -> dict[str, Record]:
    tables = {}
    for (stage, prefix), caption in captions.items():
        for name, one in stored.get(stage, {}).items():
            if name.startswith(prefix) and isinstance(one, Record):
                rest = name.removeprefix(prefix)
                tables[f"{caption}: {rest}" if rest else caption] = one
    return tables


def _confusions(stored: Mapping[str, Mapping[str, Any]]) -> list[Confusion]:
    """Every confusion matrix, the unsupervised ones first."""
    return [one for results in stored.values() for one in results.values() if isinstance(one, Confusion)]


def _panels(pictures: Mapping[str, Pictures]) -> list[Strip | Dial]:
    panels: list[Strip | Dial] = []
    for name, book in pictures.items():
        kind, _, function = name.partition("_")
        arrays = {caption: image.permute(1, 2, 0).numpy() for caption, image in book.images.items()}
        if kind == "strip":
            shown = [Picture(array, caption) for caption, array in arrays.items()]
            panels.append(Strip(f"Input with {function}", shown))
        else:
            frames = {
                float(strength): [Picture(array, f"{function} kernels at {strength}")]
                for strength, array in arrays.items()
            }
            panels.append(Dial(f"Dialling the {function} kernels", frames, note="0 is base, 1 is target."))
    return panels


def _costs(archive: Archive) -> list[dict[str, Any]]:
    rows = []
    for stage in STAGES:
        if archive.is_done(stage.name):
            notes = archive.notes(stage.name)
            rows.append(
                {
                    "stage": stage.name,
                    "question": stage.title,
                    "forward passes": round(notes["forwards"]),
                    "forward-backward passes": round(notes["passes"]),
                    "seconds": round(notes["seconds"], 1),
                }
            )
    return rows


def _provenance(notes: Mapping[str, Any]) -> dict[str, Any]:
    subject = {name: value for name, value in notes["subject"].items() if name != "inputs"}
    return {**subject, "inputs": notes["subject"]["inputs"], "settings": notes["settings"], **notes["environment"]}
