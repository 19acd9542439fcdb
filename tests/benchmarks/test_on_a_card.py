"""What a call costs on a card: one table in at most five minutes. Run with ``make bench-gpu``.

Without a card every test is skipped by name. ``FILTERATTR_BENCH_DEVICE=cpu`` runs tiny versions, to find mistakes here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import ChannelAttributor, FilterAttributor
from sr_zoo.models import SRResNet
from tests.benchmarks.interleaved import compare, record

DEVICE = torch.device(os.environ.get("FILTERATTR_BENCH_DEVICE", "cuda"))
CARD = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CARD and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning"),
]

OVERHEAD = "time of one call over the same passes by hand"
PEAK = "peak memory, in copies of the weights; base and target are two of them"
# width, width inside of a block, blocks, heads
LAYOUTS = {"0.13e9": (768, 2048, 12, 12), "1.26e9": (2048, 5632, 22, 32), "6.7e9": (4096, 11008, 32, 32)}
TINY = {"tiny": (64, 128, 2, 4)}


def waiting(work: Callable[[], object]) -> Callable[[], None]:
    """The work, and the wait for the card."""

    def run() -> None:
        work()
        if CARD:
            torch.cuda.synchronize()

    return run


def moved(network: nn.Module, scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Base and target: the weights of a network, and the same with noise."""
    torch.manual_seed(1)
    base = {name: value.detach().clone() for name, value in network.state_dict().items()}
    target = {
        name: value + scale * value.abs().mean() * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in base.items()
    }
    return base, target


def restorer() -> nn.Module:
    torch.manual_seed(0)
    return SRResNet(num_feat=64 if CARD else 8, num_block=16 if CARD else 1, upscale=2).to(DEVICE)


def pictures(size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(1, 3, size, size, device=DEVICE), torch.rand(1, 3, 2 * size, 2 * size, device=DEVICE)


def bare_passes(network: nn.Module, loss: Callable[[nn.Module], Tensor], count: int) -> None:
    for _ in range(count):
        network.zero_grad(set_to_none=True)
        loss(network).backward()
    network.zero_grad(set_to_none=True)


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> Any:
    """TF32 has three digits; what is compared must not depend on it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_scores_are_those_of_float64_on_the_processor(benchmark: Any) -> None:
    network = restorer()
    base, target = moved(network, 0.2)
    degraded, reference = pictures(32 if CARD else 8)

    def loss(model: nn.Module) -> Tensor:
        own = next(model.parameters())
        return (model(degraded.to(own)) - reference.to(own)).square().sum()

    def scores(of: nn.Module, **options: Any) -> Tensor:
        attribution = FilterAttributor(of).attribute(base, target, loss, progress=False, **options)
        return attribution.scores("sum").flat().cpu()

    found = {keep: scores(network, keep=keep) for keep in ("all", "signed")}
    expected = scores(network.double().cpu())
    benchmark.pedantic(lambda: None, rounds=1)
    count = max(1, len(expected) // 100)
    top = set(expected.abs().topk(count).indices.tolist())
    for value in found.values():
        error = float((value - expected).abs().sum() / expected.abs().sum())
        shared = len(top & set(value.abs().topk(count).indices.tolist())) / count
        record(benchmark, "error of the scores against float64 on the processor", "SRResNet, float32", error)
        assert error < 1e-4
        assert shared > 0.99


@pytest.mark.parametrize("keep", ["all", "signed"])
@pytest.mark.parametrize("nodes", [8, 16])
@pytest.mark.parametrize("size", [32, 64, 128] if CARD else [8])
def test_a_call_on_a_restoration_network(benchmark: Any, size: int, nodes: int, keep: str) -> None:
    network = restorer()
    base, target = moved(network, 0.01)
    degraded, reference = pictures(size)
    loss = lambda model: (model(degraded) - reference).square().sum()  # noqa: E731
    attributor = FilterAttributor(network)
    compare(
        benchmark,
        waiting(lambda: attributor.attribute(base, target, loss, n_steps=nodes, keep=keep, progress=False)),
        waiting(lambda: bare_passes(network, loss, nodes)),
        question=OVERHEAD,
        case=f"SRResNet, {size}x{size}, {nodes} nodes, {keep} scores",
        ours_over_theirs=True,
    )


@pytest.mark.parametrize("together", [1, 16, 64] if CARD else [1, 2])
@pytest.mark.parametrize("size", [16, 48] if CARD else [8])
def test_samples_in_one_pass(benchmark: Any, size: int, together: int) -> None:
    network, rows = restorer(), 64 if CARD else 2
    base, target = moved(network, 0.01)
    data = [pictures(size) for _ in range(rows)]
    batch = tuple(torch.cat(parts) for parts in zip(*data, strict=True))
    loss = lambda model, pair: (model(pair[0]) - pair[1]).square().sum()  # noqa: E731
    attributor = FilterAttributor(network)
    compare(
        benchmark,
        waiting(
            lambda: attributor.attribute(
                base, target, loss, data, n_steps=8, internal_batch_size=together, progress=False
            )
        ),
        waiting(lambda: bare_passes(network, lambda model: loss(model, batch), 8)),
        question="time of a call over one batch whose samples get no gradient of their own",
        case=f"{rows} crops of {size}x{size}, internal_batch_size={together}",
        rounds=2,
        ours_over_theirs=True,
    )


@pytest.mark.parametrize("method", ["conductance", "internal_influence"])
def test_all_layers_in_one_sweep(benchmark: Any, method: str) -> None:
    from captum.attr import InternalInfluence, LayerConductance

    network = restorer().eval()
    image, _ = pictures(48 if CARD else 8)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    output = lambda restored: restored.square().flatten(1).sum(1)  # noqa: E731
    kind = {"conductance": LayerConductance, "internal_influence": InternalInfluence}[method]
    zero = torch.zeros_like(image)

    def captum() -> None:
        for layer in layers:
            kind(lambda inputs: output(network(inputs)), layer).attribute(image, zero, n_steps=20)

    compare(
        benchmark,
        waiting(lambda: ChannelAttributor(network).attribute(image, zero, output, attribution=method, n_steps=20)),
        waiting(captum),
        question="time of Captum, one call a layer, over one sweep",
        case=f"{method}, {len(layers)} layers, 20 steps",
        rounds=1,
    )


@pytest.mark.parametrize("keep", ["all", "signed"])
@pytest.mark.parametrize("size", LAYOUTS if CARD else TINY)
def test_a_call_on_a_language_model(benchmark: Any, size: str, keep: str) -> None:
    transformers = pytest.importorskip("transformers")
    width, inner, layers, heads = {**LAYOUTS, **TINY}[size]
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32_000,
        use_cache=False,
    )
    if CARD:
        torch.cuda.empty_cache()
    network = transformers.LlamaForCausalLM(config).eval().to(DEVICE, torch.bfloat16 if CARD else torch.float32)
    weights = sum(value.numel() * value.element_size() for value in network.parameters())
    base = {name: value.detach().clone() for name, value in network.state_dict().items()}
    target = {name: value + 0.002 if value.is_floating_point() else value for name, value in base.items()}
    tokens = torch.randint(0, 32_000, (1, 512 if CARD else 8), device=DEVICE)
    loss = lambda model: model(input_ids=tokens, labels=tokens).loss.float()  # noqa: E731
    attributor = FilterAttributor(network, unit="filter", select="*proj.weight")
    call = waiting(lambda: attributor.attribute(base, target, loss, n_steps=4, keep=keep, progress=False))
    compare(
        benchmark,
        call,
        waiting(lambda: bare_passes(network, loss, 4)),
        question=OVERHEAD,
        case=f"Llama layout, {size} weights, 512 tokens, 4 nodes, {keep} scores",
        rounds=2,
        ours_over_theirs=True,
    )
    if CARD:
        torch.cuda.reset_peak_memory_stats()
        call()
        held = torch.cuda.max_memory_allocated() / weights
        record(benchmark, PEAK, f"Llama layout, {size} weights, 512 tokens, {keep} scores", held)
