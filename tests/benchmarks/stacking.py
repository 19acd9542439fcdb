"""Does it pay to evaluate several samples in one pass, each with its own gradient, and how is that done best?

``python -m tests.benchmarks.stacking [ways] [calls]`` prints the tables of docs/explanation/quadrature.md (one minute
on one idle core). All columns of a row run alternately in one process; ratios are medians.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from filterattr import FilterAttributor, FilterAttrWarning
from sr_zoo.models import SRResNet

Sample = tuple[Tensor, Tensor]
SECONDS = 6.0


class Case(NamedTuple):
    """A network, samples for it, and the loss of one or of a whole batch (with the sum over it)."""

    name: str
    make: Callable[[], nn.Module]
    sample: Callable[[], Sample]
    loss: Callable[[nn.Module, Sample], Tensor]
    count: int
    numbers: tuple[int, ...]
    n_steps: int = 8


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def cnn() -> nn.Module:
    layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10))


def srresnet() -> nn.Module:
    return SRResNet(num_feat=32, num_block=8, upscale=2)


def labelled(*shape: int, classes: int) -> Callable[[], Sample]:
    return lambda: (torch.randn(1, *shape), torch.randint(classes, (1,)))


def crop(size: int) -> Callable[[], Sample]:
    return lambda: (torch.rand(1, 3, size, size), torch.rand(1, 3, 2 * size, 2 * size))


def cross_entropy(model: nn.Module, sample: Sample) -> Tensor:
    return functional.cross_entropy(model(sample[0]), sample[1], reduction="sum")


def squared_error(model: nn.Module, sample: Sample) -> Tensor:
    return (model(sample[0]) - sample[1]).square().sum()


CASES = [
    Case("MLP 20-64-64-2, rows of a table", mlp, labelled(20, classes=2), cross_entropy, 64, (8, 32, 64)),
    Case("CNN, 16 and 32 channels, 28x28", cnn, labelled(1, 28, 28, classes=10), cross_entropy, 32, (8, 16, 32)),
    Case("SRResNet f32 b8, crops of 16x16", srresnet, crop(16), squared_error, 16, (4, 8, 16), 4),
    Case("SRResNet f32 b8, crops of 48x48", srresnet, crop(48), squared_error, 8, (2, 4, 8), 2),
]


def one_by_one(model: nn.Module, case: Case, samples: Sequence[Sample]) -> None:
    parameters = list(model.parameters())
    sums = [torch.zeros(parameter.shape, dtype=torch.float64) for parameter in parameters]
    for sample in samples:
        gradients = torch.autograd.grad(case.loss(model, sample), parameters)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient)


def mapped(model: nn.Module, case: Case, samples: Sequence[Sample]) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sums = {name: torch.zeros(len(samples), *one.shape, dtype=torch.float64) for name, one in parameters.items()}
    stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))

    def loss(weights: dict[str, Tensor], sample: Sample) -> Tensor:
        return case.loss(lambda x: functional_call(model, weights, (x,)), sample)  # type: ignore[arg-type]

    gradients, _ = vmap(grad_and_value(loss), in_dims=(None, 0))(parameters, stacked)
    for name, gradient in gradients.items():
        sums[name].add_(gradient)


def hooked(model: nn.Module, case: Case, samples: Sequence[Sample]) -> None:
    """Inputs and output gradients of every layer of one batch, which the loss must know how to take."""
    batch = tuple(torch.cat(parts) for parts in zip(*samples, strict=True))
    sums: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].detach()

        def multiply(gradient: Tensor) -> None:
            if isinstance(module, nn.Linear):
                own = torch.einsum("no,ni->noi", gradient, x)
            else:
                patches = functional.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride)
                own = torch.bmm(gradient.flatten(2), patches.transpose(1, 2)).reshape(len(x), *module.weight.shape)
            sums[module] = torch.zeros(own.shape, dtype=torch.float64).add_(own)

        output.register_hook(multiply)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    model.requires_grad_(False)
    case.loss(model, (batch[0].requires_grad_(), batch[1])).backward()
    model.requires_grad_(True)
    for handle in handles:
        handle.remove()


def alternately(works: dict[str, Callable[[], object]]) -> tuple[float, dict[str, float]]:
    """Median processor seconds of the first, and how many times faster the others are."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    first, *others = works
    begun = time.perf_counter()
    while time.perf_counter() - begun < SECONDS or len(seconds[first]) < 3:
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True)) for name in others
    }
    return statistics.median(seconds[first]), ratios


def prepared(case: Case) -> tuple[nn.Module, nn.Module, list[Sample]]:
    torch.manual_seed(0)
    return case.make(), case.make(), [case.sample() for _ in range(case.count)]


def print_ways() -> None:
    print("\n| network and samples | samples | one by one | mapped | hooks |\n| --- | --- | --- | --- | --- |")
    for case in CASES:
        model, _, samples = prepared(case)
        works = {
            way.__name__: lambda way=way, case=case, model=model, samples=samples: way(model, case, samples)
            for way in (one_by_one, mapped, hooked)
        }
        seconds, ratios = alternately(works)
        each = f"{seconds / case.count * 1e3:.2f} ms"
        print(
            f"| {case.name} | {case.count} | {each} | {ratios['mapped']:.2f}x | {ratios['hooked']:.2f}x |", flush=True
        )


def call(case: Case, number: int) -> Callable[[], object]:
    base, target, samples = prepared(case)
    options = {"n_steps": case.n_steps, "internal_batch_size": number, "progress": False}
    attributor = FilterAttributor(base)
    return lambda: attributor.attribute(base, target, case.loss, samples, **options)


def print_calls() -> None:
    print("\n| network and samples | one by one, a pass | `internal_batch_size`: times faster |\n| --- | --- | --- |")
    for case in CASES:
        works = {str(number): call(case, number) for number in (1, *case.numbers)}
        seconds, ratios = alternately(works)
        each = f"{seconds / case.count / case.n_steps * 1e3:.2f} ms"
        listed = ", ".join(f"{number}: {ratio:.2f}x" for number, ratio in ratios.items())
        print(f"| {case.name} | {each} | {listed} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FilterAttrWarning)
    chosen = sys.argv[1:] or ["ways", "calls"]
    if "ways" in chosen:
        print_ways()
    if "calls" in chosen:
        print_calls()
