"""Two processes against one on the same samples. Run with ``make bench`` on a machine with two idle processors."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.interleaved import record

ROOT = Path(__file__).parents[2]
ROUNDS = 3
SCRIPT = """
import time
import torch, torch.distributed as dist
from filterattr import FilterAttributor
from tests.benchmarks.problems import RestorationPair
torch.set_num_threads(1)
dist.init_process_group("gloo")
pair = RestorationPair(48)
data = [(pair.degraded, pair.reference)] * 16
pair.bare_passes(1, 0)
dist.barrier()
started = time.perf_counter()
FilterAttributor(pair.model).attribute(
    pair.base, pair.target, pair.loss, data, n_steps=4, distributed=True, progress=False
)
if dist.get_rank() == 0:
    print("seconds", time.perf_counter() - started)
dist.destroy_process_group()
"""


def test_two_ranks_share_the_work(benchmark: Callable[..., object], tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)

    def seconds(ranks: int) -> float:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, str(script)], check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout.split("seconds")[1])

    ratios = [seconds(1) / seconds(2) for _ in range(ROUNDS)]
    benchmark.pedantic(lambda: None, rounds=1)  # type: ignore[attr-defined]
    ratio = statistics.median(ratios)
    record(
        benchmark,
        "time of a call of one rank over that of two",
        "16 samples of 48x48, 4 nodes, one thread a rank",
        ratio,
        spread=(min(ratios), max(ratios)),
    )
    assert ratio >= (1.7 if len(os.sched_getaffinity(0)) >= 2 else 0.8)
