"""Give back what fine-tuning took of clean inputs: the shipped pairs as a contest of repairs.

``python -m sr_zoo.repairs FOLDER`` runs it on photographs of a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from filterattr import FilterAttributor
from filterattr.benchmarks import SKILL, ForgettingPair, run_repairs
from sr_zoo.data import read_photographs
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.images import list_photographs
from sr_zoo.pretrained import load_network
from sr_zoo.samples import restored
from sr_zoo.study.samples import Sample, batches_of, draw_samples, row_errors

PAIRS = {"SRResNet, 32 channels": "srresnet_x2_f32b8", "SRResNet, 64 channels": "srresnet_x2_f64b16"}
_PHOTOGRAPHS = 72
_BATCH = 6


def restoration_pair(weights: str, photographs: Sequence[Tensor], *, size: int = 48) -> ForgettingPair:
    """A shipped pair whose skill is to take away blur and noise, and which lost some of its way with clean inputs.

    Args:
        weights: The weights of both ends, without ``_base`` and ``_target``.
        photographs: ``uint8`` tensors of shape ``(3, H, W)``; a third each for scores, choices and the report.
        size: Width of a crop in pixels, a multiple of 2.

    Returns:
        The pair, with one crop of every photograph.

    Example:
        >>> import torch
        >>> photographs = [torch.zeros(3, 96, 96, dtype=torch.uint8)] * 3
        >>> pair = restoration_pair("srresnet_x2_f32b8", photographs, size=32)
        >>> {name: len(batches) for name, batches in pair.search.items()}
        {'skill': 2, 'clean inputs': 1}
    """
    base, target = (load_network(f"{weights}_{end}") for end in ("base", "target"))
    scored, search, held_out = (_part(photographs[seed::3], size, seed) for seed in range(3))
    return ForgettingPair(
        FilterAttributor(target, unit="filter"),
        base.state_dict(),
        target.state_dict(),
        row_errors,
        restored,
        _distance,
        scored,
        search,
        held_out,
    )


def _part(photographs: Sequence[Tensor], size: int, seed: int) -> dict[str, list[Sample]]:
    """One crop of every photograph, with blur, with noise, and clean."""
    inputs = {name: way for name, way in evaluation_inputs(2).items() if name in ("clean", "blur", "noise")}
    drawn = draw_samples(photographs, inputs, count=len(photographs), size=size, scale=2, seed=seed)
    skill = batches_of(drawn["blur"], _BATCH) + batches_of(drawn["noise"], _BATCH)
    return {SKILL: skill, "clean inputs": batches_of(drawn["clean"], _BATCH)}


def _distance(image: Tensor, other: Tensor) -> Tensor:
    return (image - other).square().sum() / len(image)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contest from the command line.

    Args:
        arguments: Those of the command line by default.

    Returns:
        The exit status, 0.

    Example:
        >>> main(["--help"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    parser = argparse.ArgumentParser(prog="python -m sr_zoo.repairs", description="Repairs of the shipped pairs.")
    parser.add_argument("folder", help="photographs; 72 of them are taken")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS.values()), default=list(PAIRS.values()))
    parser.add_argument("--size", type=int, default=48, help="width of a crop in pixels (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("repair.csv"), help="CSV file (default: %(default)s)")
    options = parser.parse_args(arguments)
    files = list_photographs(options.folder)
    photographs = read_photographs(files[:: max(1, len(files) // _PHOTOGRAPHS)][:_PHOTOGRAPHS])
    run_repairs(
        {
            name: partial(restoration_pair, weights, photographs, size=options.size)
            for name, weights in PAIRS.items()
            if weights in options.pairs
        },
        options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
