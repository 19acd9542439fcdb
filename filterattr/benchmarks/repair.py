"""Repairs against simpler ways to give back what fine-tuning broke: ``python -m filterattr.benchmarks.repair``.

Prints what each way loses of the skill and recovers of the ability on held-out samples, and writes a CSV file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from filterattr.benchmarks.contest import run_repairs
from filterattr.benchmarks.forgetting import forgetting_pairs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line.

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
    known = forgetting_pairs()
    parser = argparse.ArgumentParser(
        prog="python -m filterattr.benchmarks.repair", description="Repairs against simpler ways."
    )
    parser.add_argument("--pairs", nargs="+", choices=list(known), default=list(known), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("repair.csv"), help="CSV file (default: %(default)s)")
    options = parser.parse_args(arguments)
    run_repairs({name: known[name] for name in options.pairs}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
