"""Which rule, and how many nodes? Measured on the shipped pair of networks against a converged integral.

``python -m tests.benchmarks.rules [relu] [silu] [pooled]`` prints the tables of docs/explanation/quadrature.md (two
minutes on one idle core).
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.pretrained import load_network
from sr_zoo.samples import Pair, draw_pairs, squared_error

CONVERGED = {"ReLU": ("riemann_middle", 128), "SiLU": ("gausslegendre", 32)}
RULES: list[tuple[str, dict[str, object]]] = [
    ("right, 100 (published)", {"method": "riemann_right", "n_steps": 100}),
    ("midpoint, 8", {"method": "riemann_middle", "n_steps": 8}),
    ("midpoint, 16", {"method": "riemann_middle", "n_steps": 16}),
    ("Gauss-Legendre, 4", {"n_steps": 4}),
    ("Gauss-Legendre, 8", {"n_steps": 8}),
    ("Gauss-Legendre, 16", {"n_steps": 16}),
    ("adaptive, 0.03", {"method": "adaptive", "tolerance": 0.03}),
    ("adaptive, 0.01", {"method": "adaptive", "tolerance": 0.01}),
    ("adaptive, 0.003", {"method": "adaptive", "tolerance": 0.003}),
    ("Gauss-Legendre, 16, bf16", {"n_steps": 16, "precision": "bf16"}),
]


def main(parts: Sequence[str]) -> None:
    torch.set_num_threads(1)
    base, target = (load_network(f"srresnet_x2_f32b8_{end}").eval() for end in ("base", "target"))
    search, _ = bundled_photographs()
    inputs = {name: one for name, one in evaluation_inputs(2).items() if name in ("blur", "noise")}
    few = draw_pairs(search, inputs, count=2, size=48, scale=2, seed=0)
    if "relu" in parts:
        print_rules("ReLU", base, target, [*few["blur"], *few["noise"]])
    if "silu" in parts:
        print_rules("SiLU", smooth(base), smooth(target), [few["blur"][0], few["noise"][0]])
    if "pooled" in parts:
        for name, samples in draw_pairs(search, inputs, count=16, size=48, scale=2, seed=0).items():
            print_pooled(name, base, target, samples)


def smooth(network: nn.Module) -> nn.Module:
    """The same weights with SiLU for ReLU."""
    network = copy.deepcopy(network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
    return network


def attribute(base: nn.Module, target: nn.Module, samples: Sequence[Pair], **options: object) -> FilterAttribution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)
        return FilterAttributor(target).attribute(base, target, squared_error, samples, progress=False, **options)


def overlap(first: FilterAttribution, second: FilterAttribution) -> float:
    return first.scores().top(0.01).overlap(second.scores().top(0.01))


def distance(found: FilterAttribution, expected: FilterAttribution) -> float:
    """Sum of absolute differences of the scores, relative to their sum."""
    first, second = found.scores().flat(), expected.scores().flat()
    return float((first - second).abs().sum() / second.sum())


def print_rules(kind: str, base: nn.Module, target: nn.Module, samples: Sequence[Pair]) -> None:
    method, n_steps = CONVERGED[kind]
    converged = [attribute(base, target, [sample], method=method, n_steps=n_steps) for sample in samples]
    print(f"\n{kind}: means over {len(samples)} samples, each by itself, against {method} {n_steps}\n")
    print("| rule | passes | time | top 1% (worst) | error of the scores | completeness error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, options in RULES:
        begin = time.process_time()
        found = [attribute(base, target, [sample], **options) for sample in samples]
        seconds = (time.process_time() - begin) / len(samples)
        shared = [overlap(*pair) for pair in zip(found, converged, strict=True)]
        wrong = statistics.mean(distance(*pair) for pair in zip(found, converged, strict=True))
        passes = statistics.mean(one.n_passes for one in found)
        lacking = statistics.mean(one.completeness_error for one in found)
        print(
            f"| {name} | {passes:.3g} | {seconds:.2f} s | {statistics.mean(shared):.3f} ({min(shared):.3f}) "
            f"| {wrong:.1e} | {lacking:.1e} |",
            flush=True,
        )


def print_pooled(name: str, base: nn.Module, target: nn.Module, samples: Sequence[Pair]) -> None:
    begin = time.process_time()
    whole = attribute(base, target, samples)
    seconds = time.process_time() - begin
    print(f"\n{name}: {len(samples)} samples; top 1% shared with the scores per sample, Gauss-Legendre 16\n")
    print("| estimate | passes | time | shared | `agreement` | sum of the scores |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| per sample, Gauss-Legendre 16 | {whole.n_passes} | {seconds:.1f} s | 1 | | 1 |", flush=True)
    for label, options in (
        ("per sample, Gauss-Legendre 4", {"n_steps": 4}),
        ("pooled, 16 nodes", {"aggregate": "pooled", "n_steps": 16}),
        *((f"pooled, 1 node, seed {seed}", {"aggregate": "pooled", "seed": seed}) for seed in range(3)),
    ):
        torch.manual_seed(options.pop("seed", 0))
        begin = time.process_time()
        found = attribute(base, target, samples, **options)
        seconds = time.process_time() - begin
        size = float(found.scores().flat().sum() / whole.scores().flat().sum())
        agreement = "" if found.agreement is None else f"{found.agreement:.3f}"
        print(
            f"| {label} | {found.n_passes} | {seconds:.1f} s | {overlap(found, whole):.3f} | {agreement} "
            f"| {size:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["relu", "silu", "pooled"])
