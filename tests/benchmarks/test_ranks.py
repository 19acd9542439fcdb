"""Two processes against one on the same samples. Run with ``make bench`` on a machine with two idle processors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.interleaved import compare

ROOT = Path(__file__).parents[2]
SCRIPT = """
import torch, torch.distributed as dist
from filterattr import FilterAttributor
from tests.benchmarks.problems import RestorationPair
torch.set_num_threads(1)
dist.init_process_group("gloo")
pair = RestorationPair(48)
data = [(pair.degraded, pair.reference)] * 16
FilterAttributor(pair.model).attribute(pair.base, pair.target, pair.loss, data, n_steps=4, distributed=True)
dist.destroy_process_group()
"""


def test_two_ranks_share_the_work(benchmark: Callable[..., object], tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)

    def run(ranks: int) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([*command, str(script)], check=True, capture_output=True, env=environment)

    ratio = compare(
        benchmark,
        lambda: run(2),
        lambda: run(1),
        question="time of one rank over two, start of the processes included",
        case="16 samples of 48x48, 4 nodes, one thread a rank",
        rounds=3,
    )
    assert ratio >= (1.7 if len(os.sched_getaffinity(0)) >= 2 else 0.8)
