"""One sweep for all layers against one call of Captum per layer: time and peak memory.

Rounds are interleaved: before each timed sweep, Captum attributes to the next few layers. Run with ``make bench``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from filterattr import ChannelAttributor
from sr_zoo.models import SRResNet
from tests.benchmarks.interleaved import record
from tests.memory import needs_glibc

captum_attr = pytest.importorskip("captum.attr")

CAPTUM = {
    "conductance": "LayerConductance",
    "internal_influence": "InternalInfluence",
    "integrated_gradients": "LayerIntegratedGradients",
    "gradient_x_activation": "LayerGradientXActivation",
}
# what one sweep has to be faster than 36 calls by; a line of activations cannot be shared between layers
AT_LEAST = {"conductance": 15, "internal_influence": 15, "integrated_gradients": 1, "gradient_x_activation": 15}
ROUNDS = 6

SCALES = [pytest.param(32, 20), pytest.param(32, 50), pytest.param(64, 20, marks=pytest.mark.slow)]


class Problem:
    """The network of the paper, an image pair of some low resolution, and the squared error as output."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        self.model = SRResNet(num_feat=64, num_block=16, upscale=2).eval()
        self.degraded = torch.rand(1, 3, size, size)
        self.clean = 0.5 * self.degraded + 0.25
        self.reference = torch.rand(1, 3, 2 * size, 2 * size)
        self.layers = [module for module in self.model.modules() if isinstance(module, nn.Conv2d)]

    def output(self, restored: Tensor) -> Tensor:
        return (restored - self.reference).square().sum((1, 2, 3))

    def sweep(self, method: str, n_steps: int, batch_nodes: int = 1) -> object:
        attributor = ChannelAttributor(self.model)
        return attributor.attribute(
            self.degraded,
            self.clean,
            self.output,
            attribution=method,
            n_steps=n_steps,
            internal_batch_size=batch_nodes * len(self.degraded),
        )

    def captum(self, method: str, layer: nn.Module, n_steps: int) -> Tensor:
        attributor = getattr(captum_attr, CAPTUM[method])(lambda image: self.output(self.model(image)), layer)
        if method == "gradient_x_activation":
            return attributor.attribute(self.degraded)
        return attributor.attribute(self.degraded, self.clean, n_steps=n_steps)


class CaptumInParts:
    """Captum over all layers, a few at a time; adds up how long it took."""

    def __init__(self, problem: Problem, method: str, n_steps: int) -> None:
        self.seconds = 0.0
        self._parts = self._run(problem, method, n_steps)

    def _run(self, problem: Problem, method: str, n_steps: int) -> Iterator[None]:
        for place in range(0, len(problem.layers), len(problem.layers) // ROUNDS):
            started = time.perf_counter()
            for layer in problem.layers[place : place + len(problem.layers) // ROUNDS]:
                problem.captum(method, layer, n_steps)
            self.seconds += time.perf_counter() - started
            yield

    def next_part(self) -> None:
        next(self._parts)


@pytest.mark.parametrize("batch_nodes", [1, 4])
@pytest.mark.parametrize(("size", "n_steps"), SCALES)
@pytest.mark.parametrize("method", CAPTUM)
def test_one_sweep_is_faster_than_one_call_per_layer(
    benchmark: Callable[..., object], method: str, size: int, n_steps: int, batch_nodes: int
) -> None:
    if n_steps > 20 and method in ("integrated_gradients", "gradient_x_activation"):
        pytest.skip("20 steps tell the ratio")
    if batch_nodes > 1 and method == "gradient_x_activation":
        pytest.skip("there is only one node")
    problem = Problem(size)
    problem.sweep(method, 1)
    captum = CaptumInParts(problem, method, n_steps)
    benchmark.group = f"{method}, {size}x{size}, {n_steps} steps"
    benchmark.pedantic(
        problem.sweep, args=(method, n_steps, batch_nodes), setup=captum.next_part, rounds=ROUNDS, iterations=1
    )
    ratio = captum.seconds / benchmark.stats.stats.median
    case = f"{method}, {size}x{size}, {n_steps} steps, {batch_nodes} node{'s' * (batch_nodes > 1)} a pass"
    record(benchmark, f"time of Captum, one call a layer for {len(problem.layers)} layers, over one sweep", case, ratio)
    assert ratio >= AT_LEAST[method]


@pytest.mark.parametrize("kernels", [False, True])
def test_the_kernel_split_costs_a_gradient_of_the_weights(benchmark: Callable[..., object], kernels: bool) -> None:
    problem = Problem(32)
    attributor = ChannelAttributor(problem.model)
    benchmark.group = "conductance with and without kernels, 32x32, 10 steps"
    benchmark.pedantic(
        attributor.attribute,
        args=(problem.degraded, problem.clean, problem.output),
        kwargs={"n_steps": 10, "kernels": kernels},
        rounds=3,
        warmup_rounds=1,
    )


PEAK = """
import sys, torch
from tests.benchmarks.test_channels import Problem
from tests.memory import allocated, peak_of
who, method, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
problem = Problem(32)
run = {
    "sweep": lambda n: problem.sweep(method, n),
    "captum": lambda n: problem.captum(method, problem.layers[0], n),
}[who]
with torch.no_grad():
    problem.model(problem.degraded)
before = allocated()
print((peak_of(lambda: run(n_steps)) - before) / 2**20)
"""


def peak_mebibytes(who: str, method: str, n_steps: int) -> float:
    """What a fresh process allocates above its network and images; Captum attributes to one layer only."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, who, method, str(n_steps)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@needs_glibc
@pytest.mark.parametrize("method", ["conductance", "internal_influence"])
def test_memory_is_flat_in_the_number_of_steps(benchmark: Callable[..., object], method: str) -> None:
    peaks = {n: peak_mebibytes("sweep", method, n) for n in (20, 50, 200)}
    captum = {n: peak_mebibytes("captum", method, n) for n in (20, 50)}
    benchmark.pedantic(lambda: None, rounds=1)
    found = ["/".join(f"{value:.0f}" for value in each.values()) for each in (peaks, captum)]
    record(
        benchmark,
        "peak memory in MiB at 20/50/200 steps, one sweep; Captum's for a single layer at 20/50 steps",
        f"{method}, 32x32",
        "; Captum ".join(found),
    )
    assert peaks[200] < 1.15 * peaks[20] + 8
    assert max(peaks.values()) < captum[20]
