"""Every kind of module and unit against the slow reference and against knocking units out; makes the table of the docs.

``python -m tests.filterattr.units.test_units_table`` prints the table; a test fails where docs/explanation/units.md
differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    FilterAttributor,
    FilterSelection,
    Group,
    attention_heads,
    blend,
    output_channels,
    recurrent_gates,
    swapped,
)
from filterattr.units.groups import UnitLike
from tests.reference.slow_attribution import UnitIndex, slow_attribution

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "units.md"
NODES = 4
TOLERANCE = 1e-10
CHANGE = 0.02  # small, so that units hardly interact and knocking one out must undo its attribution
IMAGE = (1, 2, 6, 6)


@dataclass(frozen=True)
class Case:
    """One row: a network around a module, the units, and by plain index arithmetic where each weight belongs."""

    module: str
    unit: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    written: str
    wanted: Callable[[nn.Module], UnitLike]
    index: dict[str, UnitIndex]
    select: str | None = None
    group: dict[str, str] = field(default_factory=dict)  # parameter to its name in the scores, where that is another
    words: int = 0  # above 0: the input is that many kinds of tokens


class First(nn.Module):
    """The first output of a recurrent or attention module, which is given its input as often as it wants."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*[x] * self.times)[0]


class Pair(nn.Module):
    """A bilinear form of an input with its square."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(3, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x[:, :2].square())


class Separate(nn.Module):
    """Attention with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """A table of words that is also the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).tanh())


class Adapter(nn.Module):
    """A linear layer with a low-rank change."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.lora_A, self.lora_B = (
            nn.Linear(4, 5),
            nn.Linear(4, 3, bias=False),
            nn.Linear(3, 5, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.lora_B(self.lora_A(x))


def conv(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(copy.deepcopy(module), nn.Tanh())


def first(place: tuple[int, ...]) -> tuple[int, ...]:
    return place[:1]


def two(place: tuple[int, ...]) -> tuple[int, ...]:
    return place[:2]


def every(place: tuple[int, ...]) -> tuple[int, ...]:
    return place


def head_row(place: tuple[int, ...]) -> tuple[int, ...]:
    return (place[0] % 4 // 2,)


def head_column(place: tuple[int, ...]) -> tuple[int, ...]:
    return (place[1] // 2,)


def gate(place: tuple[int, ...]) -> tuple[int, ...]:
    return divmod(place[0], 3)


SEQUENCE = (2, 3, 4)
RECURRENT = {f"inner.{kind}_{which}_l0": gate for kind in ("weight", "bias") for which in ("ih", "hh")}
HEAD = Group({"[qkv]*": "(heads d) ... -> heads", "out.weight": "o (heads d) -> heads"}, heads=2)
RANK = Group({"lora_A.weight": "rank i -> rank", "lora_B.weight": "o rank -> rank"})

CASES = [
    Case(
        "`Conv1d`", "kernel", conv(nn.Conv1d(2, 3, 3)), (1, 2, 6), '`"kernel"`', lambda _: "kernel",
        {"0.weight": two},
    ),
    Case("`Conv2d`", "kernel", conv(nn.Conv2d(2, 3, 2)), IMAGE, '`"kernel"`', lambda _: "kernel", {"0.weight": two}),
    Case("`Conv2d`", "filter", conv(nn.Conv2d(2, 5, 2)), IMAGE, '`"filter"`', lambda _: "filter", {"0.weight": first}),
    Case(
        "`Conv2d`", "input channel", conv(nn.Conv2d(4, 2, 2)), (1, 4, 5, 5), '`"input"`', lambda _: "input",
        {"0.weight": lambda place: (place[1],)},
    ),
    Case(
        "`Conv3d`", "kernel", conv(nn.Conv3d(2, 3, 2)), (1, 2, 3, 3, 3), '`"kernel"`', lambda _: "kernel",
        {"0.weight": two},
    ),
    Case(
        "`Conv2d`, grouped", "kernel", conv(nn.Conv2d(4, 6, 2, groups=2)), (1, 4, 4, 4), '`"kernel"`',
        lambda _: "kernel", {"0.weight": two},
    ),
    Case(
        "`Conv2d`, depthwise", "kernel", conv(nn.Conv2d(6, 6, 2, groups=6)), (1, 6, 4, 4), '`"kernel"`',
        lambda _: "kernel", {"0.weight": two},
    ),
    Case(
        "`ConvTranspose2d`", "kernel", conv(nn.ConvTranspose2d(2, 3, 2)), IMAGE, '`"kernel"`', lambda _: "kernel",
        {"0.weight": lambda place: (place[1], place[0])},
    ),
    Case(
        "`ConvTranspose2d`, grouped", "kernel", conv(nn.ConvTranspose2d(4, 6, 2, groups=2)), (1, 4, 4, 4),
        '`"kernel"`', lambda _: "kernel",
        {"0.weight": lambda place: (place[0] // 2 * 3 + place[1], place[0] % 2)},
    ),
    Case("`Linear`", "neuron", conv(nn.Linear(4, 6)), (3, 4), '`"filter"`', lambda _: "filter", {"0.weight": first}),
    Case("`Linear`", "weight", conv(nn.Linear(4, 3)), (3, 4), '`"weight"`', lambda _: "weight", {"0.weight": every}),
    Case("`Bilinear`", "neuron", Pair, (4, 3), '`"filter"`', lambda _: "filter", {"inner.weight": first}),
    Case(
        "`Embedding`", "token", lambda: nn.Sequential(nn.Embedding(6, 3), nn.Tanh()), (2, 9), '`"filter"`',
        lambda _: "filter", {"0.weight": first}, words=6,
    ),
    Case(
        "tied `Embedding` and `Linear`", "token", Tied, (2, 9), '`"filter"`', lambda _: "filter",
        {"embed.weight": first}, words=5,
    ),
    Case(
        "`MultiheadAttention`", "head: q, k, v, output",
        lambda: First(nn.MultiheadAttention(4, 2, batch_first=True), 3), SEQUENCE, "`attention_heads(model)`",
        attention_heads,
        {"inner.in_proj_weight": head_row, "inner.in_proj_bias": head_row, "inner.out_proj.weight": head_column},
        group=dict.fromkeys(("inner.in_proj_weight", "inner.in_proj_bias", "inner.out_proj.weight"), "inner"),
    ),
    Case(
        "`MultiheadAttention`", "q, k, v of a head",
        lambda: First(nn.MultiheadAttention(4, 2, batch_first=True), 3), SEQUENCE,
        '`Unit("(qkv heads d) i -> qkv heads", {"qkv": 3, "heads": 2})`',
        lambda _: {"*in_proj_weight": _unit("(qkv heads d) i -> qkv heads", qkv=3, heads=2), "*": "layer"},
        {
            "inner.in_proj_weight": lambda place: (place[0] // 4, place[0] % 4 // 2),
            "inner.out_proj.weight": lambda _: (),
        },
    ),
    Case(
        "attention, own projections", "head: q, k, v, output", Separate, SEQUENCE,
        '`{"": Group({"[qkv]*": "(heads d) ... -> heads", "out.weight": "o (heads d) -> heads"}, heads=2)}`',
        lambda _: {"": HEAD},
        {f"{part}.{kind}": head_row for part in ("query", "key", "value") for kind in ("weight", "bias")}
        | {"out.weight": head_column},
        group={f"{part}.{kind}": "model" for part in ("query", "key", "value", "out") for kind in ("weight", "bias")},
    ),
    Case(
        "`LSTM`", "gate of a neuron", lambda: First(nn.LSTM(4, 3, batch_first=True)), SEQUENCE,
        "`recurrent_gates(model)`", recurrent_gates, RECURRENT, group=dict.fromkeys(RECURRENT, "inner.l0"),
    ),
    Case(
        "`GRU`", "gate of a neuron", lambda: First(nn.GRU(4, 3, batch_first=True)), SEQUENCE,
        "`recurrent_gates(model)`", recurrent_gates, RECURRENT, group=dict.fromkeys(RECURRENT, "inner.l0"),
    ),
    Case(
        "`LayerNorm`, `BatchNorm`, ...", "feature", lambda: nn.Sequential(nn.LayerNorm(6), nn.Tanh()), (3, 6),
        '`"kernel", select="*"`', lambda _: "kernel", {"0.weight": every, "0.bias": every}, select="*",
    ),
    Case(
        "biases alone (BitFit)", "bias",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Conv2d(4, 3, 2)), IMAGE,
        '`"kernel", select="*bias"`', lambda _: "kernel", {"0.bias": every, "2.bias": every}, select="*bias",
    ),
    Case(
        "`Conv2d` with its norm", "channel: kernels, bias, norm",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()), IMAGE,
        "`output_channels(model, run)`", lambda model: output_channels(model, lambda net: net(_input(IMAGE))),
        {"0.weight": first, "0.bias": first, "1.weight": first, "1.bias": first},
        group=dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), "0"),
    ),
    Case(
        "parametrized weight", "channel: gain, direction, bias",
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 2)), nn.Tanh()), IMAGE,
        "`output_channels(model)`", output_channels,
        {"0.bias": first, **{f"0.parametrizations.weight.original{which}": first for which in (0, 1)}},
        group=dict.fromkeys(("0.bias", *(f"0.parametrizations.weight.original{which}" for which in (0, 1))), "0"),
    ),
    Case(
        "low-rank adapter (LoRA)", "rank direction: row of A, column of B", Adapter, (4, 4),
        '`{"": Group({"lora_A.*": "rank i -> rank", "lora_B.*": "o rank -> rank"})}`', lambda _: {"": RANK},
        {"lora_A.weight": first, "lora_B.weight": lambda place: (place[1],)},
        group=dict.fromkeys(("lora_A.weight", "lora_B.weight"), "model"),
    ),
]  # fmt: skip


def _unit(pattern: str, **sizes: int) -> object:
    from filterattr import Unit

    return Unit(pattern, sizes)


def _input(shape: tuple[int, ...], words: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if words:
        return torch.arange(shape[0] * shape[1]).reshape(shape) % words
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Outcome:
    """What was found for a case: units, largest deviation from the slow reference, and agreement with knock-outs."""

    units: int
    deviation: float
    completeness: float
    signs: float
    rank: float


@cache
def outcome(number: int) -> Outcome:
    """Attribute a small network in float64, slowly too, and knock out every unit."""
    case = CASES[number]
    torch.manual_seed(number)
    base = case.build().double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(CHANGE * torch.randn_like(parameter))
    x = _input(case.shape, case.words)
    with torch.no_grad():
        answer = torch.randn_like(base(x))

    def loss(model: nn.Module, sample: Tensor) -> Tensor:
        return (model(sample) - answer).square().sum()

    attribution = FilterAttributor(base, unit=case.wanted(base), select=case.select).attribute(
        base, target, loss, [x], n_steps=NODES
    )
    slow = slow_attribution(base, target, loss, [x], method="gausslegendre", n_steps=NODES, units=case.index)
    deviation = 0.0
    for reduction in ("sum", "sum_of_abs"):
        expected: dict[tuple[str, tuple[int, ...]], float] = {}
        for name, places in slow.scores[reduction].items():
            for place, value in places.items():
                key = case.group.get(name, name), place
                expected[key] = expected.get(key, 0.0) + value
        found = attribution.scores(reduction)
        assert len(expected) == found.n_units
        deviation = max(
            deviation, *(abs(float(found[name][place]) - value) for (name, place), value in expected.items())
        )
    signed = attribution.scores("sum")
    effects = []
    with torch.no_grad():
        whole = float(loss(target, x))
        for flat in range(signed.n_units):
            chosen = torch.arange(signed.n_units) == flat
            selection = FilterSelection(signed._split(chosen), signed.parameters)
            with swapped(target, blend(target, base, selection)):
                effects.append(whole - float(loss(target, x)))
    knocked = torch.tensor(effects, dtype=torch.float64)
    scores = signed.flat()
    clear = scores.abs() > 0.05 * scores.abs().max()
    signs = float((scores[clear].sign() == knocked[clear].sign()).double().mean())
    rank = float(torch.corrcoef(torch.stack([one.argsort().argsort().double() for one in (scores, knocked)]))[0, 1])
    return Outcome(signed.n_units, deviation, attribution.completeness_error, signs, rank)


IDS = [f"{case.module} {case.unit}".replace("`", "") for case in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_scores_equal_the_slow_reference_and_agree_with_knocking_out(number: int) -> None:
    found = outcome(number)
    assert found.deviation < TOLERANCE
    assert found.completeness < TOLERANCE
    assert found.signs == 1.0
    assert found.rank > 0.9


def table() -> str:
    """The table of the docs."""
    rows = [
        "| module | unit | written as | units | slow reference | sign | rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, case in enumerate(CASES):
        found = outcome(number)
        near = "< 1e-10" if found.deviation < TOLERANCE else f"{found.deviation:.0e}"
        rows.append(
            f"| {case.module} | {case.unit} | {case.written} | {found.units} | {near} | "
            f"{100 * found.signs:.0f}% | {found.rank:.2f} |"
        )
    return "\n".join(rows)


def test_table_of_the_docs_is_what_was_measured() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
