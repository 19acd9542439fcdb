"""Units against explicit index loops, for every kind of convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    Unit,
    UnitError,
)
from filterattr.units.layouts import unit_of
from filterattr.units.unit import ReadOnly, ScoredParameter, kept_as, kept_by

CONVOLUTIONS = {
    "conv1d": nn.Conv1d(4, 6, 3),
    "conv2d": nn.Conv2d(4, 6, (3, 2)),
    "conv3d": nn.Conv3d(2, 3, 2),
    "pointwise": nn.Conv2d(4, 6, 1),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed1d": nn.ConvTranspose1d(4, 6, 3),
    "transposed2d": nn.ConvTranspose2d(4, 6, 3),
    "transposed grouped": nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed3d": nn.ConvTranspose3d(2, 3, 2),
    "linear": nn.Linear(4, 6),
}


def kernel_table(module: nn.Module, values: Tensor) -> dict[tuple[int, int, int], float]:
    """Sum over the kernel window of every weight: (output channel, input channel, input channel in its group)."""
    groups = getattr(module, "groups", 1)
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    table = {}
    for first, second in itertools.product(range(values.shape[0]), range(values.shape[1])):
        if transposed:
            into_per_group, out_per_group = values.shape[0] // groups, values.shape[1]
            group, inner = divmod(first, into_per_group)
            out, into = group * out_per_group + second, first
        else:
            out_per_group, into_per_group = values.shape[0] // groups, values.shape[1]
            group, inner = first // out_per_group, second
            out, into = first, group * into_per_group + second
        table[out, into, inner] = float(values[first, second].sum())
    return table


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_kernels_filters_and_inputs_equal_explicit_loops(kind: str, generator: torch.Generator) -> None:
    module = CONVOLUTIONS[kind]
    values = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
    table = kernel_table(module, values)
    kernels = unit_of("w", module.weight, module, "kernel").reduce(values)
    filters = unit_of("w", module.weight, module, "filter").reduce(values)
    inputs = unit_of("w", module.weight, module, "input").reduce(values)
    assert kernels.numel() == len(table)
    for (out, _, inner), value in table.items():
        assert float(kernels[out, inner]) == pytest.approx(value, rel=1e-12)
    for out in range(filters.numel()):
        expected = sum(value for (o, _, _), value in table.items() if o == out)
        assert float(filters[out]) == pytest.approx(expected, rel=1e-12)
    for channel in range(inputs.numel()):
        expected = sum(value for (_, i, _), value in table.items() if i == channel)
        assert float(inputs[channel]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("wanted", ["kernel", "filter", "input", "layer", "weight"])
def test_expanding_marks_exactly_the_weights_that_reducing_sums(kind: str, wanted: str) -> None:
    module = CONVOLUTIONS[kind]
    shape = module.weight.shape
    unit = unit_of("w", module.weight, module, wanted)
    count = unit.reduce(torch.zeros(shape)).numel()
    seen = torch.zeros(shape)
    for place in range(count):
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[place] = True
        marked = unit.expand(chosen.reshape(unit.reduce(torch.zeros(shape)).shape), shape)
        assert marked.shape == shape
        inside = unit.reduce(marked.double()).reshape(-1)
        assert float(inside[place]) == float(marked.sum())
        seen += marked
    torch.testing.assert_close(seen, torch.ones(shape))


def test_depthwise_kernels_have_one_input_each() -> None:
    module = CONVOLUTIONS["depthwise"]
    assert unit_of("w", module.weight, module, "kernel").reduce(module.weight).shape == (8, 1)


def test_functional_weights_are_taken_as_output_then_input() -> None:
    weight = torch.ones(5, 2, 3, 3)
    assert unit_of("w", weight, nn.Module(), "kernel").reduce(weight).shape == (5, 2)


def test_biases_are_their_own_kernels() -> None:
    module = nn.Conv2d(2, 3, 3)
    assert unit_of("b", module.bias, module, "kernel").reduce(module.bias).shape == (3,)
    with pytest.raises(UnitError, match=r"'b' has shape \(3,\) and no input axis"):
        unit_of("b", module.bias, module, "input")


def test_pattern_with_sizes_scores_attention_heads() -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    unit = unit_of("q.weight", weight, nn.Linear(4, 6), Unit("(heads d) i -> heads", {"heads": 3}))
    torch.testing.assert_close(
        unit.reduce(weight), torch.stack([weight[:2].sum(), weight[2:4].sum(), weight[4:].sum()])
    )


def test_units_that_do_not_fit_name_parameter_shape_and_pattern() -> None:
    module = nn.Linear(3, 5)
    with pytest.raises(UnitError, match=r"'q': the pattern '\(h d\) i -> h' with \{'h': 2\} .* shape \(5, 3\)"):
        unit_of("q", module.weight, module, Unit("(h d) i -> h", {"h": 2}))
    with pytest.raises(UnitError, match=r"unit must be one of weight, kernel, .*'neuron'"):
        unit_of("q", module.weight, module, "neuron")


@pytest.mark.parametrize(
    ("pattern", "group", "twins"), [("... -> ...", None, True), ("o i -> o", None, False), ("... -> ...", "g", False)]
)
def test_numbers_that_are_equal_are_kept_once(pattern: str, group: str | None, twins: bool) -> None:
    scored = ScoredParameter(Unit(pattern), (3, 2), group)
    for statistic, reduction, has_twin in (
        ("means", "sum_of_abs", False),
        ("means", "abs_of_sum", True),
        ("means", "sum", False),
        ("mean_squares", "sum_of_abs", False),
        ("mean_squares", "sum", True),
    ):
        assert kept_as(statistic, reduction, scored) == ("sum_of_abs" if has_twin and twins else reduction)


def test_a_mapping_that_holds_another_one_holds_its_content() -> None:
    values = {"w": torch.ones(2)}
    held = ReadOnly(ReadOnly(values))
    assert held.kept["w"] is values["w"]
    assert kept_by(held) is held.kept
    assert kept_by(values) is values
    assert repr(held) == repr(values)


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (
            Unit("(h d) i -> h", {"h": 2}),
            "the pattern '(h d) i -> h' with {'h': 2} does not fit a parameter of shape (5, 3): ",
        ),
        (Unit("o i j -> o"), "the pattern 'o i j -> o' does not fit a parameter of shape (5, 3): "),
    ],
)
def test_misfits_end_with_the_reason_of_einops(unit: Unit, told: str) -> None:
    with pytest.raises(UnitError) as caught:
        unit.reduce(torch.zeros(5, 3))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert "hape" in str(caught.value).removeprefix(told)


def test_a_choice_of_units_in_other_types_marks_their_weights() -> None:
    marked = Unit("o i -> o").expand(torch.tensor([0, 1]), (2, 3))
    assert marked.tolist() == [[False] * 3, [True] * 3]
    assert marked.dtype == torch.bool
