"""Measure what a path without a barrier finds: ``python docs/_pictures/bend.py PHOTOGRAPHS`` (half an hour).

The pair with three degradations; photographs to train the point of the path on, to find sets on, and to test sets on
are all from the folder, and no photograph is in two of these groups.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from filterattr import FilterAttributor, FilterAttrWarning
from filterattr.analysis import Masking, Outputs, bend, choose
from sr_zoo.data import read_photographs
from sr_zoo.degradations import degradations_from, evaluation_inputs
from sr_zoo.images import list_photographs
from sr_zoo.pretrained import load_network
from sr_zoo.samples import restored
from sr_zoo.study.samples import batches_of, draw_samples, restoration_error

FUNCTIONS = ("blur", "noise", "jpeg")


def main(folder: Path) -> None:
    ends = [load_network(f"srresnet_x2_f32b8_{role}") for role in ("base", "three_target")]
    files = list_photographs(folder)
    inputs = evaluation_inputs(2, degradations=degradations_from(("blur", "noise", "jpeg:10")))
    inputs = {name: inputs[name] for name in (*FUNCTIONS, "clean")}
    training, search, test = (
        draw_samples(read_photographs(some), inputs, count=count, size=48, scale=2, seed=seed)
        for seed, (some, count) in enumerate(((files[2::4], 360), (files[::8], 24), (files[1::8], 24)))
    )
    target = ends[1]
    point = bend(target, *ends, restoration_error, training, steps=450)
    outputs = Outputs(target, *ends, restored, search)
    held_out = Outputs(target, *ends, restored, {n: batches_of(some) for n, some in test.items()}, per_row=True)
    bootstrap, straight = held_out.bootstrap(), {}
    for label, waypoints, n_steps in (("straight", [], 8), ("bent", [point], 4)):
        attributions = {
            name: FilterAttributor(target).attribute(
                *ends, restoration_error, search[name], n_steps=n_steps, waypoints=waypoints
            )
            for name in inputs
        }
        for name in FUNCTIONS:
            masking = Masking(target, *ends, restoration_error, {name: search[name]})
            measured = held_out.measure(choose(outputs, attributions, name, masking=masking).selection, bootstrap)
            straight.setdefault(name, measured)
            found = attributions[name]
            print(  # noqa: T201 - a script
                f"{label:9}{name:6} barrier {found.barrier / found.loss_base:6.1%}"
                f"  completeness error {found.completeness_error:.1%}  reverted {measured.reverted(name)}"
                f"  more than straight {measured.more_reverted(name, straight[name])}"
            )


if __name__ == "__main__":
    warnings.simplefilter("ignore", FilterAttrWarning)
    main(Path(sys.argv[1]))
