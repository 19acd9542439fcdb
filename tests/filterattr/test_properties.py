"""Over random convolutions, units, rules and types, the library agrees with the slow reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from filterattr import FilterAttribution, FilterAttributor, Unit
from filterattr.integral.quadrature import Quadrature
from tests.reference.slow_attribution import SlowResult, rule, slow_attribution, unit_index

METHODS = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
CONVOLUTIONS = {
    False: {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d},
    True: {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d},
}
TOLERANCES = {torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: 1e-4}

pytestmark = [
    pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.errors.FilterAttrWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
]
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=1000)


class Absolute(nn.Module):
    """Something smooth for complex numbers too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(x.abs().square())


@st.composite
def convolutions(draw) -> dict[str, object]:
    transposed = draw(st.booleans())
    dimensions = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.integers(1, 3))
    stride = draw(st.integers(1, 2))
    return {
        "kind": CONVOLUTIONS[transposed][dimensions],
        "dimensions": dimensions,
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": tuple(draw(st.integers(1, 3 if dimensions < 3 else 2)) for _ in range(dimensions)),
        "stride": stride,
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 1)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": "zeros" if transposed else draw(st.sampled_from(["zeros", "reflect"])),
        "dtype": draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.complex128])),
        "seed": draw(st.integers(0, 2**16)),
    }


def networks(drawn: dict[str, object]) -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    names = [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "dilation",
        "padding",
        "groups",
        "bias",
        "padding_mode",
    ]
    torch.manual_seed(drawn["seed"])
    last = CONVOLUTIONS[False][drawn["dimensions"]]
    base, target = (
        nn.Sequential(
            drawn["kind"](**{name: drawn[name] for name in names}), Absolute(), last(drawn["out_channels"], 1, 1)
        ).to(drawn["dtype"])
        for _ in range(2)
    )
    size = [4 if drawn["dimensions"] == 3 else 6] * drawn["dimensions"]
    images = [torch.randn(1, drawn["in_channels"], *size, dtype=drawn["dtype"]) for _ in range(2)]
    return base, target, images


def squared(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(image).abs().square().mean()


def assert_agrees(fast: FilterAttribution, slow: SlowResult, tolerance: float) -> None:
    scale = max(abs(slow.loss_base), abs(slow.loss_target), 1.0)
    numbers = [
        (getattr(fast, name), getattr(slow, name)) for name in ("loss_base", "loss_target", "total", "remainder")
    ]
    for reduction, expected in slow.scores.items():
        scores = fast.scores(reduction)
        assert list(scores) == list(expected)
        for name, units in expected.items():
            assert scores[name].numel() == len(units)
            numbers += [(scores[name][place].item(), value) for place, value in units.items()]
    found, wanted = (torch.tensor(column, dtype=torch.float64) for column in zip(*numbers, strict=True))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)


def check_convolution(drawn, unit: str, method: str, n_steps: int, n_samples: int) -> None:
    assume(method != "riemann_trapezoid" or n_steps > 1)
    base, target, images = networks(drawn)
    units = {name: unit_index(base.get_submodule(name[0]), unit) for name in ("0.weight", "2.weight")}
    images = images[:n_samples]
    fast = FilterAttributor(base, unit=unit).attribute(base, target, squared, images, method=method, n_steps=n_steps)
    slow = slow_attribution(base, target, squared, images, method=method, n_steps=n_steps, units=units)
    assert_agrees(fast, slow, TOLERANCES[drawn["dtype"]])


CASES = {
    "drawn": convolutions(),
    "unit": st.sampled_from(["weight", "kernel", "filter", "input", "layer"]),
    "method": st.sampled_from(METHODS),
    "n_steps": st.integers(1, 5),
    "n_samples": st.integers(1, 2),
}


@FEW
@given(**CASES)
def test_random_convolutions_agree_with_the_slow_reference(drawn, unit, method, n_steps, n_samples):
    check_convolution(drawn, unit, method, n_steps, n_samples)


@pytest.mark.slow
@MANY
@given(**CASES)
def test_many_random_convolutions_agree_with_the_slow_reference(drawn, unit, method, n_steps, n_samples):
    check_convolution(drawn, unit, method, n_steps, n_samples)


@st.composite
def patterns(draw) -> tuple[object, object, tuple[int, int, int]]:
    """A pattern for a parameter of shape (a b, c, k), and where each of its weights belongs."""
    a, b, c = (draw(st.integers(1, 3)) for _ in range(3))
    choices = [
        (Unit("(a b) c k -> a", {"a": a}), lambda place: (place[0] // b,)),
        (Unit("(a b) c k -> b", {"b": b}), lambda place: (place[0] % b,)),
        (Unit("(a b) c k -> b c a", {"a": a}), lambda place: (place[0] % b, place[1], place[0] // b)),
        (Unit("(a b) c k -> (c a)", {"b": b}), lambda place: (place[1] * a + place[0] // b,)),
        ("o c k -> k", lambda place: place[2:]),
        ("o c k -> c o", lambda place: (place[1], place[0])),
        ("o ... -> o", lambda place: place[:1]),
        ("... k -> ...", lambda place: place[:2]),
        ("o c k -> ", lambda place: ()),
    ]
    return (*draw(st.sampled_from(choices)), (a * b, c, draw(st.integers(1, 3))))


@FEW
@given(pattern=patterns(), seed=st.integers(0, 2**16))
def test_random_patterns_agree_with_the_slow_reference(pattern, seed):
    unit, place_of, (rows, columns, width) = pattern
    torch.manual_seed(seed)
    base, target = (nn.Sequential(nn.Conv1d(columns, rows, width), nn.SiLU()).double() for _ in range(2))
    image = torch.randn(1, columns, 4, dtype=torch.float64)
    fast = FilterAttributor(base, unit=unit).attribute(base, target, squared, [image], n_steps=3)
    slow = slow_attribution(
        base, target, squared, [image], method="gausslegendre", n_steps=3, units={"0.weight": place_of}
    )
    assert_agrees(fast, slow, 1e-10)


@FEW
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    unit=st.sampled_from(["weight", "kernel", "filter", "input", "layer"]),
    seed=st.integers(0, 2**16),
)
def test_linear_layers_agree_with_the_slow_reference(sizes, unit, seed):
    torch.manual_seed(seed)
    base, target = (
        nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2])).double()
        for _ in range(2)
    )
    samples = [torch.randn(2, sizes[0], dtype=torch.float64)]
    units = {name: unit_index(base.get_submodule(name[0]), unit) for name in ("0.weight", "2.weight")}
    fast = FilterAttributor(base, unit=unit).attribute(base, target, squared, samples, n_steps=4)
    slow = slow_attribution(base, target, squared, samples, method="gausslegendre", n_steps=4, units=units)
    assert_agrees(fast, slow, 1e-10)


@given(method=st.sampled_from(METHODS), count=st.integers(2, 64))
@settings(FEW, max_examples=60)
def test_rules_agree_with_the_slow_reference(method, count):
    known = Quadrature.rule(method, count)
    expected = torch.tensor(rule(method, count), dtype=torch.float64)
    found = torch.tensor([known.nodes, known.coefficients], dtype=torch.float64).T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_reference_itself_notices_a_wrong_unit():
    """Guards against a comparison that could not fail."""
    torch.manual_seed(0)
    base, target = nn.Conv2d(2, 4, 3, groups=2).double(), nn.Conv2d(2, 4, 3, groups=2).double()
    image = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    fast = FilterAttributor(base, unit="filter").attribute(base, target, squared, [image], n_steps=2)
    wrong = {"weight": lambda place: (3 - place[0],)}
    slow = slow_attribution(base, target, squared, [image], method="gausslegendre", n_steps=2, units=wrong)
    with pytest.raises(AssertionError, match="not close"):
        assert_agrees(fast, slow, 1e-10)
