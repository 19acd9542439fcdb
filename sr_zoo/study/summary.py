"""What a study found, in words and tables: Markdown, and the pieces that the page is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from filterattr.analysis import Estimate, Modulation, RankingTable, SpecificityMatrix, bounded
from sr_zoo.study.archive import Archive
from sr_zoo.study.contest import ContestTable
from sr_zoo.study.stages.reversion import GUARD, KINDS, REVERTED
from sr_zoo.study.stages.rivals import Rivals

Row = Mapping[str, Any]
HOW_TO_READ = (
    "Shares say how much of a function is removed (or recovered): 0 none of it, 1 all of it, above 1 worse than base. "
    "Brackets hold 95% intervals over the test crops. A p-value is small if hardly any random set does as well."
)


def summary(archive: Archive) -> str:
    """Write what a study found as Markdown; stages that are not done are left out.

    Args:
        archive: The study.

    Returns:
        The text.
    """
    parts = ["# Study"]
    notes = next((archive.notes(stage) for stage in _WRITERS if archive.is_done(stage)), {})
    if notes:
        subject = notes["subject"]
        parts.append(
            f"{subject['base']} to {subject['target']}, {subject['network']}; searched on "
            f"{notes['settings'].get('search_crops', '?')} crops of {subject['photographs searched']}, tested on crops "
            f"of {subject['photographs tested']}."
        )
        parts.append(HOW_TO_READ)
    for stage, write in _WRITERS.items():
        if archive.is_done(stage):
            parts += [f"## {_TITLES[stage]}", *write(archive.load(stage))]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """Lay out rows as a Markdown table.

    Args:
        rows: Dictionaries with the same keys.

    Returns:
        The table.

    Example:
        >>> print(markdown_table([{"set": "blur", "removed": 0.5}]))
        | set | removed |
        | --- | --- |
        | blur | 0.50 |
    """
    names = list(rows[0]) if rows else []
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"
    return str(value).replace("|", "\\|")


def _of(results: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Results whose names begin with a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): one for name, one in results.items() if name.startswith(prefix)}


def _search(results: Mapping[str, Any]) -> Iterable[str]:
    for name, health in _of(results, "health_").items():
        attribution = results[f"attribution_{name}"]
        yield (
            f"- {name}: {results[f'set_{name}'].count} of {results[f'set_{name}'].n_units} kernels; loss "
            f"{health.loss_base:.4g} to {health.loss_target:.4g}, barrier {health.barrier:.1%}, cosine "
            f"{health.cosine:.3f}, completeness error {health.completeness_error:.2%}, {attribution.n_passes} passes. "
            f"{health}"
        )


def _sanity(results: Mapping[str, Any]) -> Iterable[str]:
    for name, table in _of(results, "sanity_").items():
        failed = [f"{row.check} ({row.measured:.3g}, bound {row.bound:g})" for row in table.entries if not row.holds]
        yield f"- {name}: " + ("all checks hold" if not failed else "**fails**: " + "; ".join(failed))


def _stability(results: Mapping[str, Any]) -> Iterable[str]:
    for name, one in _of(results, "stability_").items():
        steady = sum(probability >= 0.9 for probability in one.probabilities)
        largest = one.reproduced[-1]
        yield (
            f"- {name}: {steady} of {one.count} kernels are in 90% of the bootstrap sets or more; two disjoint groups "
            f"of {one.sizes[-1]} crops agree to Jaccard {largest}"
        )
    for name, one in _of(results, "differences_").items():
        yield f"- {name.replace('_', ' against ')}: {len(one.units)} kernels differ at a false-discovery rate of 5%"


def _depth(results: Mapping[str, Any]) -> Iterable[str]:
    for name, one in _of(results, "depth_").items():
        others = "; ".join(f"minus {other} {difference}" for other, difference in one.minus.items())
        yield f"- {name}: mean depth {one.mean} (all kernels {one.uniform:.2f}; 0 first layer, 1 last); {others}"


def _curves(results: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for name, curve in _of(results, "mask_").items():
        for fraction, share in zip(curve.fractions, curve.shares[name], strict=True):
            place = curve.fractions.index(fraction)
            least, graft = (results[f"{kind}_{name}"].shares[name][place] for kind in ("least", "graft"))
            rows.append(
                {
                    "function": name,
                    "masked": f"{fraction:.2%}",
                    "highest scores removed": str(share),
                    "lowest scores removed": str(least),
                    "graft brings": str(graft),
                }
            )
    yield markdown_table(rows)


def _nulls(results: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for key, null in results.items():
        kind, _, name = key.rpartition("_")
        for fraction, band in zip(null.fractions, null.bands(name), strict=True):
            rows.append(
                {"function": name, "null": kind, "masked": f"{fraction:.1%}", "draws": null.n_draws}
                | {"removed": f"{band.mean:.2f}", "sd": band.sd, "95% band": f"[{band.low:.2f}, {band.high:.2f}]"}
            )
    yield markdown_table(rows)


def _specificity(results: Mapping[str, SpecificityMatrix]) -> Iterable[str]:
    names = {"strict": "Strict contrast", "published": "Equation 7"}
    for key, matrix in results.items():
        verdict = (
            "diagonal-dominant, intervals exclude 0"
            if matrix.is_diagonal_dominant
            else ("**not** diagonal-dominant with intervals that exclude 0")
        )
        yield f"{names[key]}: {verdict}."
        yield markdown_table(
            [
                {"set": name, **{other: str(share) for other, share in row.items()}}
                for name, row in matrix.shares.items()
            ]
        )


def _reversion(results: Mapping[str, Any]) -> Iterable[str]:
    yield (
        "Reverted: how far the outputs of the function return to base (1: completely). Moved: how far all others leave "
        "target (0: not at all). p compares with random sets of the same layers, by what they revert."
    )
    rows = []
    for kind, label in KINDS.items():
        if f"outputs_{kind}" not in results:
            continue
        matrix, removed = results[f"outputs_{kind}"], results.get(f"removed_{kind}")
        for name in matrix.counts:
            judged = results.get(f"reversion_{kind}_{name}")
            others = [share.value for other, share in matrix.moved[name].items() if other != GUARD]
            rows.append(
                {
                    "function": name,
                    "set": label,
                    "kernels": matrix.counts[name],
                    "removed": "" if removed is None else str(removed.shares[name][name]),
                    "reverted": str(matrix.reverted[name]),
                    "moved, others": max(others),
                    "moved, clean": str(matrix.moved[name][GUARD]),
                    "p": "" if judged is None else f"{judged.p_values['layer-matched']:.3f}",
                }
            )
    if not rows:
        yield "Target is better than base at none of the functions."
        return
    yield markdown_table(sorted(rows, key=lambda row: str(row["function"])))
    for key, curve in _of(results, "curve_").items():
        sizes = curve.smallest(REVERTED), curve.smallest(REVERTED, moved=0.05)
        texts = [f"{count} kernels" if count else "none of the curve" for count in sizes]
        yield (
            f"- {curve.function}, {KINDS[key.split('_')[0]]}: smallest set that reverts {REVERTED:g}: {texts[0]}; that "
            f"also moves nothing else by more than 0.05: {texts[1]}"
        )


def _rivals(results: Mapping[str, Rivals]) -> Iterable[str]:
    yield (
        "The sets of all rankings, measured as above. The last columns say how much more the chosen signed set and the "
        "searched set revert, with paired intervals over the test crops; below 0 they revert less."
    )
    for rivals in results.values():
        rows = [
            {
                "ranking": entry.ranking,
                "kernels": entry.count,
                "reverted": str(entry.reverted),
                "moved, others": max(entry.moved[other].value for other in rivals.others),
                "moved, clean": str(entry.moved[GUARD]),
                **{f"{kind} reverts more": str(gain) for kind, gain in entry.gain.items()},
            }
            for entry in rivals.entries
        ]
        yield f"{rivals.function}:"
        yield markdown_table(rows)


def _modulation(results: Mapping[str, Modulation]) -> Iterable[str]:
    rows = []
    for one in results.values():
        others = [name for name in one.shares if name != one.function]
        rows.append(
            {
                "dialled": one.function,
                "monotone from 0 to 1": "yes" if one.is_monotone() else "no",
                **{
                    f"{s:g}": f"{share.value:.2f}"
                    for s, share in zip(one.strengths, one.shares[one.function], strict=True)
                },
                "largest change of others": ", ".join(f"{name} {one.flatness(name):.2f}" for name in others),
            }
        )
    yield markdown_table(rows)


def _comparison(results: Mapping[str, RankingTable]) -> Iterable[str]:
    table = results["table"]
    yield (
        "Removed of the own function, bounded to [0, 1], and of the largest other; attribution is the reference, and a "
        "star marks rankings that it does not beat (the interval of the difference holds 0 or lies above)."
    )
    unbeaten = {(row.ranking, row.function, row.fraction) for row in table.not_beaten()}
    keys = dict.fromkeys((row.function, row.fraction) for row in table.entries)
    rows = []
    for ranking in dict.fromkeys(row.ranking for row in table.entries):
        line: dict[str, Any] = {"ranking": ranking}
        for function, fraction in keys:
            (row,) = (
                one
                for one in table.entries
                if (one.ranking, one.function, one.fraction) == (ranking, function, fraction)
            )
            others = max(bounded(share.value) for name, share in row.shares.items() if name != function)
            star = "*" if (ranking, function, fraction) in unbeaten else ""
            line[f"{function} {fraction:.0%}"] = f"{bounded(row.shares[function].value):.2f} / {others:.2f}{star}"
            line["passes"] = row.n_passes
        rows.append(line)
    yield markdown_table(rows)


def _oracle(results: Mapping[str, Any]) -> Iterable[str]:
    for name, one in _of(results, "agreement_").items():
        yield f"{name}, {one.n_units} kernels:"
        ordered = sorted(
            one.entries, key=lambda row: -row.spearman.value if row.spearman.value == row.spearman.value else 1
        )
        yield markdown_table(
            [
                {"ranking": row.ranking, "Spearman": str(row.spearman), "upper tenth": str(row.top_overlap)}
                for row in ordered
            ]
        )


def _channels(results: Mapping[str, Any]) -> Iterable[str]:
    table: ContestTable = results["table"]
    sizes = ", ".join(f"{fraction:.0%}" for fraction in table.fractions)
    yield (
        f"Rankings of {table.n_units} output channels; sets of {sizes}. Area: mean share removed over these sizes, "
        "every doubling alike; margin: own minus the largest other. A star marks margins that the attribution "
        f"({table.reference}) does not beat (the interval of the difference holds 0 or lies above); p against "
        f"{table.draws} random rankings, and against as many shuffled inside the layers."
    )
    for function in dict.fromkeys(row.function for row in table.entries):
        rows = []
        for row in table.entries:
            if row.function == function:
                star = "" if row.advantage.is_negative or row.method == "attribution" else "*"
                p_values = f"{row.p_margin:.3f}" + (
                    f", {row.p_margin_in_layers:.3f}" if row.p_margin_in_layers == row.p_margin_in_layers else ""
                )
                rows.append(
                    {"method": row.method, "form": row.form, "steps": row.steps or "", "passes a crop": row.n_passes}
                    | {"own area": f"{row.own.value:.2f}", "other": f"{row.other.value:.2f}"}
                    | {"margin": f"{row.margin}{star}", "p of margin": p_values}
                )
        yield f"{function}:"
        yield markdown_table(rows)


def _gradient_maps(results: Mapping[str, Any]) -> Iterable[str]:
    yield markdown_table(
        [
            {
                "masked": row.masked,
                "share": f"{row.fraction:.0%}",
                "input": row.function,
                "published metric": str(row.gradient_change),
                "removed": row.removed,
            }
            for row in results["gradient_maps"].entries
        ]
    )


def _prediction(results: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        {"method": one.method, "accuracy": str(one.accuracy), "unsure": str(one.unsure_share), "images": one.n_samples}
        for name, one in results.items()
        if name.startswith("unsupervised_") or name == "calibrated"
    ]
    yield markdown_table(rows)
    yield "All inputs, calibrated on labelled search crops (rows: truth):"
    yield _confusion_table(results["calibrated"].counts)
    yield "All inputs, overlap without labels:"
    yield _confusion_table(results["all_inputs_overlap"].counts)


def _confusion_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    return markdown_table([{"input": label, **row} for label, row in counts.items()])


def _places(results: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for row in results["places"].entries:
        shares = {
            f"removed of {name}": f"{value:.2f}" + (f" ({row.sd[name]:.2f})" if row.draws > 1 else "")
            for name, value in row.removed.items()
        }
        rows.append({"set": row.function, "what": row.what, **shares, "draws": row.draws, "moved": f"{row.moved:.0%}"})
    yield markdown_table(rows)


def _retraining(results: Mapping[str, Any]) -> Iterable[str]:
    one = results["retraining"]
    yield f"{one.iterations} iterations from base; share of the function brought, mean over seeds."
    yield markdown_table(
        [
            {
                "function": row.function,
                "places": row.places,
                "kernels": row.count,
                "seeds": len(row.brought),
                "brought": _with_interval(row.mean),
                "discovered minus these": _with_interval(row.advantage),
            }
            for row in one.entries
        ]
    )


def _with_interval(estimate: Estimate) -> str:
    return str(estimate) if estimate.low == estimate.low else f"{estimate.value:.2f}"


def _adaptive(results: Mapping[str, Any]) -> Iterable[str]:
    table = results["restorers"]
    near = table.within()
    yield (
        "Within 0.3 dB of target on every single degradation with at most 10% more parameters: "
        + (", ".join(near) if near else "**none**")
        + "."
    )
    yield markdown_table(
        [
            {
                "restorer": row.restorer,
                "more parameters": f"{row.extra:.1%}",
                "kB": f"{row.size / 1000:.0f}",
                **{
                    f"{name} (dB)": f"{value.value:.2f} ({row.minus_target[name].value:+.2f})"
                    for name, value in row.psnr.items()
                },
            }
            for row in table.entries
        ]
    )
    yield f"Right choice of patches: {results['choice'].accuracy}; rows: truth."
    yield _confusion_table(results["choice"].counts)


_WRITERS: dict[str, Callable[[Mapping[str, Any]], Iterable[str]]] = {
    "search": _search,
    "sanity": _sanity,
    "stability": _stability,
    "depth": _depth,
    "specificity": _specificity,
    "curves": _curves,
    "nulls": _nulls,
    "comparison": _comparison,
    "rivals": _rivals,
    "oracle": _oracle,
    "channels": _channels,
    "gradient_maps": _gradient_maps,
    "reversion": _reversion,
    "modulation": _modulation,
    "prediction": _prediction,
    "places": _places,
    "retraining": _retraining,
    "adaptive": _adaptive,
}
_TITLES = {
    "search": "Checks of the path",
    "sanity": "Does the attribution behave as it must?",
    "stability": "How much does a set depend on the photographs?",
    "depth": "Where do the kernels sit?",
    "specificity": "Is every set specific to its function?",
    "reversion": "Is a function put back, and is everything else left alone?",
    "curves": "What does masking more and more kernels remove?",
    "nulls": "What do random kernels remove?",
    "comparison": "Does a cheaper ranking do as well?",
    "rivals": "Do other rankings put a function back?",
    "oracle": "Do rankings agree with knocking kernels out one by one?",
    "channels": "Which channels? Against Captum's layer methods",
    "gradient_maps": "What does the published metric say?",
    "modulation": "Can a function be dialled?",
    "prediction": "Which degradation does an image have?",
    "places": "Weights, locations or connections?",
    "retraining": "Can the discovered places learn their function alone?",
    "adaptive": "Is a shared network with small patches enough?",
}
