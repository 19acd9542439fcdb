"""Three small networks that learned one domain, and data of another one to adapt them to."""

from __future__ import annotations

import argparse
import ast
import email.message
import importlib
import inspect
import itertools
import json.decoder
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.errors import SettingError

Batch: TypeAlias = tuple[Tensor, ...]
_LENGTH = 48  # characters in a row
_BLUR, _NOISE = 1.5, 0.01  # standard deviations, in pixels and where white is 1


@dataclass(frozen=True)
class Domains:
    """Rows of samples; the first axis of every tensor counts them.

    Attributes:
        old: What base learns.
        new: What the adapters learn.
        search: Samples of the new domain for scores; they are not learned.
        test: Samples of the new domain on which the result is measured.
    """

    old: Batch
    new: Batch
    search: Batch
    test: Batch


@dataclass(frozen=True)
class Task:
    """One network and two domains.

    Attributes:
        build: Makes the network with random weights.
        domains: Makes the data.
        loss: Of a network and a batch; the lower, the better.
        layers: Globs of the weights that adapters may change.
        uniform_rank: Rank of the adapters where all have the same one.
        batch: Samples in a step of training.
        steps: Steps of base, of the short fine-tuning of all weights, and of the adapters.
        rates: Learning rates of base and of the short fine-tuning.
    """

    build: Callable[[], nn.Module]
    domains: Callable[[], Domains]
    loss: Callable[[nn.Module, Batch], Tensor]
    layers: tuple[str, ...]
    uniform_rank: int
    batch: int
    steps: tuple[int, int, int]
    rates: tuple[float, float]


def adaptation_tasks() -> Mapping[str, Task]:
    """The tasks.

    Returns:
        Name to task.

    Example:
        >>> list(adaptation_tasks())
        ['characters', 'digits', 'photographs']
    """
    return {
        # a GPT that reads English prose learns to read Python code
        "characters": Task(_CharacterGPT, _texts, _nats, ("blocks.*.weight",), 2, 16, (500, 50, 100), (3e-3, 1e-3)),
        # a perceptron that reads digits learns to read those that lie on their side
        "digits": Task(_perceptron, _digits, _classes, ("*.weight",), 2, 64, (500, 50, 250), (2e-3, 1e-3)),
        # a network that doubles the resolution of photographs learns to do so with blurred ones
        "photographs": Task(_UpscalingNet, _photographs, _decibels, ("*.weight",), 2, 8, (400, 50, 150), (2e-3, 1e-3)),
    }


class _Block(nn.Module):
    """Attention and two linear layers, with norms before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        after: Tensor = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return after


class _CharacterGPT(nn.Module):
    """Three blocks over characters."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(_LENGTH, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(3)))
        self.head = nn.Linear(width, 128)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.places.weight[: characters.shape[1]]
        logits: Tensor = self.head(self.blocks(x))
        return logits


class _UpscalingNet(nn.Module):
    """Convolutions with skips, whose last channels become pixels."""

    def __init__(self, width: int = 24, depth: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.body = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        for layer in self.body:
            x = x + nn.functional.relu(layer(x))
        larger = nn.functional.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        sharper: Tensor = larger + nn.functional.pixel_shuffle(self.last(x), 2)
        return sharper


def _perceptron() -> nn.Module:
    sizes = [64, 128, 128, 128, 128, 10]
    model = nn.Sequential()
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        model.add_module(f"layer{number}", nn.Linear(inputs, outputs))
        if outputs != sizes[-1]:
            model.add_module(f"relu{number}", nn.ReLU())
    return model


def _nats(model: nn.Module, batch: Batch) -> Tensor:
    """Nats per character."""
    (characters,) = batch
    return nn.functional.cross_entropy(model(characters[:, :-1]).flatten(0, 1), characters[:, 1:].flatten())


def _classes(model: nn.Module, batch: Batch) -> Tensor:
    """Nats per digit."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _decibels(model: nn.Module, batch: Batch) -> Tensor:
    """The squared error in decibels: the negative PSNR."""
    return 10 * nn.functional.mse_loss(model(batch[0]), batch[1]).log10()


def _texts() -> Domains:
    prose = "\n".join(topics[name] for name in sorted(topics))
    code = "\n".join(map(inspect.getsource, (argparse, ast, textwrap, json.decoder, email.message)))

    def rows(text: str, start: float, end: float) -> Batch:
        characters = torch.tensor(list(text.encode("ascii", "replace")))
        part = characters[int(start * len(text)) : int(end * len(text))]
        return (part[: len(part) // _LENGTH * _LENGTH].reshape(-1, _LENGTH),)

    return Domains(rows(prose, 0, 1), rows(code, 0, 0.8), rows(code, 0.8, 0.84), rows(code, 0.9, 1))


def _digits() -> Domains:
    held = _datasets().load_digits()
    upright = torch.tensor(held.images, dtype=torch.float32) / 16
    lying, labels = upright.rot90(dims=(1, 2)).flatten(1), torch.tensor(held.target)
    places = {"new": slice(0, 900), "search": slice(900, 1000), "test": slice(1000, None)}
    return Domains((upright.flatten(1)[:1000], labels[:1000]), **{k: (lying[v], labels[v]) for k, v in places.items()})


def _photographs() -> Domains:
    """Patches of two photographs, in grey: the upper two thirds are learned, and the rest is measured."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.tensor(image).float().mean(2) / 255 for image in _datasets().load_sample_images().images]
    learned, measured = (
        torch.cat([_patches(image[part]) for image in images]) for part in (slice(280), slice(280, None))
    )
    learned, measured = (x[torch.randperm(len(x), generator=generator)] for x in (learned, measured))

    def pairs(sharp: Tensor, *, worse: bool) -> Batch:
        small = nn.functional.avg_pool2d(_blurred(sharp) if worse else sharp, 2)
        return small + _NOISE * worse * torch.randn(small.shape, generator=generator), sharp

    return Domains(
        pairs(learned, worse=False),
        pairs(learned, worse=True),
        pairs(measured[:64], worse=True),
        pairs(measured[64:264], worse=True),
    )


def _patches(image: Tensor, size: int = 24) -> Tensor:
    cut = image.unfold(0, size, size // 2).unfold(1, size, size // 2)
    return cut.reshape(-1, 1, size, size)


def _blurred(images: Tensor) -> Tensor:
    weights = torch.exp(-torch.arange(-4.0, 5.0).square() / (2 * _BLUR**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    return nn.functional.conv2d(nn.functional.pad(images, (4, 4, 4, 4), mode="reflect"), kernel[None, None])


def _datasets() -> Any:
    """Digits and photographs come with scikit-learn."""
    try:
        return importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise SettingError("this needs scikit-learn: pip install 'filterattr[ranks]'.") from error
