"""Small networks of several kinds, each with inputs for three tasks and the units that can carry one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.units.builders import recurrent_gates
from filterattr.units.groups import Group, UnitLike
from filterattr.units.select import Select

N_CLASSES = 3
Layout: TypeAlias = Literal["apart", "overlapping", "one layer"]
Draw: TypeAlias = Callable[[torch.Generator, int], Tensor]


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Attributes:
        build: Makes a network with random weights.
        prototypes: Draws this many examples of pure classes.
        blur: Draws an input for every prototype that it is given.
        unit: As `filterattr.FilterAttributor` takes it, for a network.
        select: As there.
        n_carriers: How many units carry a function.
        layout: Whether both functions are carried by different units anywhere, share half of them, or lie in one layer.
        trained: Globs of what learns the first task, which base can do; the rest begins as it was built.
        drifting: Globs of what drifts afterwards.
    """

    build: Callable[[], nn.Module]
    prototypes: Draw
    blur: Callable[[Tensor, torch.Generator], Tensor]
    unit: Callable[[nn.Module], UnitLike]
    select: Select | None
    n_carriers: int
    layout: Layout = "apart"
    trained: tuple[str, ...] = ("*",)
    drifting: tuple[str, ...] = ("*",)


def families() -> Mapping[str, Family]:
    """The families, easy ones first.

    Returns:
        Name to family.

    Example:
        >>> list(families())[:4]
        ['CNN', 'transformer', 'LSTM', 'LoRA']
    """
    convolutions = {
        "build": _cnn,
        "prototypes": _pictures,
        "blur": _noisy,
        "unit": lambda _: "filter",
        "select": ("*conv.weight",),
        "n_carriers": 6,
    }
    return {
        "CNN": Family(**convolutions),  # type: ignore[arg-type]
        "transformer": Family(
            _transformer, _sentences, _misspelt, lambda _: _NEURONS, None, n_carriers=8, drifting=("blocks.*",)
        ),
        "LSTM": Family(_Recurrent, _melodies, _noisy, lambda _: _CELLS, None, n_carriers=8, drifting=("lstm.*",)),
        "LoRA": Family(
            _adapted,
            _vectors,
            _noisy,
            _components,
            None,
            n_carriers=6,
            trained=("*.weight", "*.bias"),
            drifting=("*.down", "*.up"),
        ),
        "CNN, overlapping": Family(**convolutions, layout="overlapping"),  # type: ignore[arg-type]
        "CNN, one layer": Family(**convolutions, layout="one layer"),  # type: ignore[arg-type]
        "CNN, biases and norms": Family(
            _cnn,
            _pictures,
            _noisy,
            lambda _: "... -> ...",
            ("*norm.weight", "*norm.bias"),
            n_carriers=48,
            drifting=("*norm.*",),  # a step of theirs is far too large for a weight of a convolution
        ),
        "transformer, rows": Family(
            _transformer, _sentences, _misspelt, lambda _: "filter", ("blocks.*.weight",), n_carriers=16
        ),
        "LSTM, gates": Family(_Recurrent, _melodies, _noisy, recurrent_gates, None, n_carriers=16),
    }


# a neuron of an MLP is what it reads and what it writes, a cell of a recurrent layer the rows of its four gates
_NEURONS: UnitLike = {
    "blocks.*": Group(
        {"inner.weight": "neuron i -> neuron", "inner.bias": "neuron -> neuron", "outer.weight": "o neuron -> neuron"}
    )
}
_CELLS: UnitLike = {
    "lstm": tuple(
        Group({f"weight_*_l{k}": "(gate cell) i -> cell", f"bias_*_l{k}": "(gate cell) -> cell"}, label=str(k), gate=4)
        for k in range(2)
    )
}


class _Convolution(nn.Module):
    """A convolution, a norm and a SiLU."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, outside)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.conv(x)))


def _cnn() -> nn.Module:
    layers = [_Convolution(1, 32, 2), _Convolution(32, 32, 1), _Convolution(32, 32, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, N_CLASSES))


class _Block(nn.Module):
    """Attention and two linear layers, with norms before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.inner_norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        x = x + self.attention(seen, seen, seen, need_weights=False)[0]
        after: Tensor = x + self.outer(nn.functional.gelu(self.inner(self.inner_norm(x))))
        return after


class _Transformer(nn.Module):
    """Two blocks over tokens, the mean of their outputs, and a linear layer."""

    def __init__(self, n_tokens: int = 24, length: int = 8, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(n_tokens, width), nn.Parameter(torch.randn(length, width) / 2)
        self.blocks = nn.Sequential(_Block(width), _Block(width))
        self.head = nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.tokens(x) + self.places).mean(1))
        return logits


def _transformer() -> nn.Module:
    return _Transformer()


class _Recurrent(nn.Module):
    """Two recurrent layers, of which a linear layer reads the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, which does nothing at first.

    Args:
        inside: Number of inputs.
        outside: Number of outputs.
        rank: Of the adapter.
    """

    def __init__(self, inside: int, outside: int, rank: int = 32) -> None:
        super().__init__()
        self.layer = nn.Linear(inside, outside)
        self.down = nn.Parameter(torch.randn(rank, inside) / inside**0.5)
        self.up = nn.Parameter(torch.zeros(outside, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the adapter says."""
        adapted: Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return adapted


def _adapted() -> nn.Module:
    layers = [Adapted(24, 64), nn.SiLU(), Adapted(64, 64), nn.SiLU(), Adapted(64, 64), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(64, N_CLASSES))


def _components(model: nn.Module) -> UnitLike:
    """Every rank-one component of every adapter: a row of one factor and a column of the other."""
    names = [name for name, module in model.named_modules() if isinstance(module, Adapted)]
    return {name: Group({"down": "rank i -> rank", "up": "o rank -> rank"}) for name in names}


def _pictures(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=generator)


def _melodies(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, 8, 6, generator=generator)


def _vectors(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, 24, generator=generator)


def _sentences(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(24, (count, 8), generator=generator)


def _noisy(prototypes: Tensor, generator: torch.Generator) -> Tensor:
    return prototypes + 0.3 * torch.randn(prototypes.shape, generator=generator)


def _misspelt(prototypes: Tensor, generator: torch.Generator) -> Tensor:
    """Every eighth token is another one."""
    others = torch.randint(24, prototypes.shape, generator=generator)
    return torch.where(torch.rand(prototypes.shape, generator=generator) < 1 / 8, others, prototypes)
