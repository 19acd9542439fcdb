"""Small networks that were fine-tuned on something new and forgot the old: characters, digits, and a LoRA of digits."""

from __future__ import annotations

import argparse
import ast
import inspect
import json.decoder
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, kl_div, scaled_dot_product_attention
from torch.optim import AdamW

from filterattr.attribution import FilterAttributor
from filterattr.benchmarks.families import Adapted
from filterattr.errors import SettingError
from filterattr.units.groups import Group

State = dict[str, Tensor]
SKILL = "skill"
_LENGTH, _WIDTH = 64, 64


@dataclass(frozen=True)
class ForgettingPair:
    """A network before and after fine-tuning, its skill, and the abilities that it lost.

    Attributes:
        attributor: Says which units there are; holds a network that both ends fit.
        base: Weights before.
        target: Weights after.
        losses: ``losses(model, sample)``, one loss a row of a batch.
        output: ``output(model, sample)``, what the network says.
        apart: How far what it says is from something else, one number.
        scored: ``"skill"`` and the ability to batches for scores.
        search: The same for all that is chosen by measuring networks.
        held_out: The same for the report.
    """

    attributor: FilterAttributor
    base: State
    target: State
    losses: Callable[[nn.Module, Any], Tensor]
    output: Callable[[nn.Module, Any], Tensor]
    apart: Callable[[Tensor, Tensor], Tensor]
    scored: Mapping[str, Sequence[Any]]
    search: Mapping[str, Sequence[Any]]
    held_out: Mapping[str, Sequence[Any]]


def forgetting_pairs() -> Mapping[str, Callable[[], ForgettingPair]]:
    """The pairs that need no files.

    Returns:
        Name to what makes it; a minute of processor time for all.

    Example:
        >>> list(forgetting_pairs())
        ['characters', 'digits', 'LoRA']
    """
    return {"characters": _characters, "digits": lambda: _digits(_filters), "LoRA": lambda: _digits(_low_rank)}


def divergence(said: Tensor, reference: Tensor) -> Tensor:
    """How far two outputs of a classifier or a language model are apart.

    Args:
        said: Logits, classes in the last axis.
        reference: Others.

    Returns:
        The mean Kullback-Leibler divergence from the reference, in nats.

    Example:
        >>> divergence(torch.zeros(1, 2), torch.tensor([[3.0, 3.0]])).item()
        0.0
    """
    logs, other = (each.flatten(0, -2).log_softmax(-1) for each in (said, reference))
    return kl_div(logs, other, reduction="batchmean", log_target=True)


def _trained(model: nn.Module, parameters: Sequence[nn.Parameter], batch: Callable[[], Any], steps: int) -> State:
    """Train some parameters, and copy all weights."""
    optimizer = AdamW(parameters, 3e-3, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(_row_losses(model, batch()).mean())
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _row_losses(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every row, a mean over its places."""
    logits = model(sample[0])
    losses = cross_entropy(logits.flatten(0, -2), sample[1].flatten(), reduction="none")
    return losses.reshape(len(logits), -1).mean(1)


def _row_errors(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    """Probability of a wrong answer; base is so sure of them that a cross-entropy has no scale."""
    certain: Tensor = model(sample[0]).softmax(1).gather(1, sample[1][:, None])[:, 0]
    return 1 - certain


def _said(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    logits: Tensor = model(sample[0])
    return logits


def _batches(inputs: Tensor, answers: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(inputs, size), torch.split(answers, size), strict=True))


class _Block(nn.Module):
    """Attention that looks back, and two linear layers."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.inner_norm = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.output = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.inner, self.outer = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.output(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        after: Tensor = x + self.outer(gelu(self.inner(self.inner_norm(x))))
        return after


class _CharacterGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, _WIDTH), nn.Embedding(_LENGTH, _WIDTH)
        self.blocks, self.head = nn.Sequential(_Block(), _Block()), nn.Linear(_WIDTH, 128)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.places.weight[: characters.shape[1]]
        logits: Tensor = self.head(self.blocks(x))
        return logits


def _characters() -> ForgettingPair:
    """A GPT that read English prose and then Python code alone."""
    prose = "\n".join(topics[name] for name in sorted(topics))
    code = "\n".join(map(inspect.getsource, (argparse, ast, textwrap, json.decoder, inspect)))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _CharacterGPT()
    rows = {name: _rows(text, generator) for name, text in {SKILL: code, "prose": prose}.items()}
    parameters = list(model.parameters())

    def batch_of(name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        def batch() -> tuple[Tensor, Tensor]:
            drawn = rows[name][torch.randint(320, len(rows[name]), (32,), generator=generator)]
            return drawn[:, :-1], drawn[:, 1:]

        return batch

    base = _trained(model, parameters, batch_of("prose"), 400)
    target = _trained(model, parameters, batch_of(SKILL), 150)
    parts = {
        part: {name: _batches(some[first:last, :-1], some[first:last, 1:], 16) for name, some in rows.items()}
        for part, (first, last) in {"scored": (320, 416), "search": (0, 96), "held_out": (96, 320)}.items()
    }
    attributor = FilterAttributor(model, unit="filter")
    return ForgettingPair(attributor, base, target, _row_losses, _said, divergence, **parts)


def _rows(text: str, generator: torch.Generator) -> Tensor:
    """Rows of characters of a text, shuffled."""
    characters = torch.tensor(list(text.encode("ascii", "replace")))
    rows = characters[: len(characters) // _LENGTH * _LENGTH].reshape(-1, _LENGTH)
    return rows[torch.randperm(len(rows), generator=generator)]


def _filters() -> tuple[nn.Module, FilterAttributor, tuple[str, ...]]:
    model = nn.Sequential(nn.Unflatten(1, (1, 8)))
    for inside, outside in ((1, 16), (16, 32), (32, 64)):
        model.append(nn.Conv2d(inside, outside, 3, 1 if inside == 1 else 2, padding=1)).append(nn.ReLU())
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(64, 10))
    return model, FilterAttributor(model, unit="kernel"), ("",)


def _low_rank() -> tuple[nn.Module, FilterAttributor, tuple[str, ...]]:
    model = nn.Sequential(nn.Flatten())
    for inside in (64, 128, 128):
        model.append(Adapted(inside, 128, rank=8)).append(nn.GELU())
    model.append(nn.Linear(128, 10))
    names = [name for name, module in model.named_modules() if isinstance(module, Adapted)]
    direction = Group({"up": "o rank -> rank", "down": "rank i -> rank"})
    return model, FilterAttributor(model, unit=dict.fromkeys(names, direction)), ("up", "down")


def _digits(build: Callable[[], tuple[nn.Module, FilterAttributor, tuple[str, ...]]]) -> ForgettingPair:
    """A classifier that read digits and then learned to read those that lie on their side, and nothing else."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SettingError("the digits come with scikit-learn: pip install scikit-learn.") from error
    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.target), generator=generator)
    upright = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
    images = {SKILL: upright.rot90(dims=(1, 2)), "upright digits": upright}
    labels = torch.tensor(digits.target)[order]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, attributor, ends = build()
    everything = dict(model.named_parameters())
    tuned = [value for name, value in everything.items() if name.endswith(ends)]
    first = [value for name, value in everything.items() if not name.endswith(("up", "down"))]

    def batch_of(name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        def batch() -> tuple[Tensor, Tensor]:
            drawn = torch.randint(1000, (64,), generator=generator)
            return images[name][drawn], labels[drawn]

        return batch

    base = _trained(model, first, batch_of("upright digits"), 300)
    target = _trained(model, tuned, batch_of(SKILL), 200)
    parts = {
        part: {name: _batches(some[first:last], labels[first:last], 32) for name, some in images.items()}
        for part, (first, last) in {"scored": (0, 256), "search": (1000, 1256), "held_out": (1256, 1797)}.items()
    }
    return ForgettingPair(attributor, base, target, _row_errors, _said, divergence, **parts)
