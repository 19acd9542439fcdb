"""Gradients are taken once each, whole, and dropped; what got none is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from filterattr import LossError
from filterattr.integral.gradients import GradientSums
from filterattr.integral.path import SMALL

SIZES = {"one": 1, "small": SMALL, "large": SMALL + 1, "long": 70_000, "last": 3}


def leaves_of(sizes: dict[str, int], kind: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.randn(size, dtype=kind)) for name, size in sizes.items()}


def add(sums: GradientSums, leaves: dict[str, nn.Parameter], loss: Tensor, coefficient: float) -> None:
    """One node, as `PathNode` does it."""
    sums.take_all(loss, leaves, coefficient)


class TestSums:
    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64], ids=str)
    def test_are_those_of_the_gradients_times_their_coefficients(self, kind: torch.dtype) -> None:
        wide = torch.complex128 if kind.is_complex else torch.float64
        sums = GradientSums(leaves_of(SIZES, kind))
        expected = {name: torch.zeros(size, dtype=wide) for name, size in SIZES.items()}
        for coefficient in (0.25, -1.5, 1.0):
            leaves = leaves_of(SIZES, kind)
            add(sums, leaves, sum((leaf * leaf.conj()).real.sum() for leaf in leaves.values()), coefficient)
            for name, leaf in leaves.items():
                expected[name] += coefficient * 2 * leaf.detach().to(wide)
                assert leaf.grad is None or name in sums.small
        assert list(sums.sums) == list(SIZES)
        for name, total in sums.sums.items():
            assert total.dtype == kind
            rounding = 1e-12 if kind == torch.float64 else 1e-6
            torch.testing.assert_close(total.to(wide), expected[name], rtol=rounding, atol=rounding)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
    def test_of_narrow_types_are_float32(self, kind: torch.dtype) -> None:
        """In the type of the weights a small gradient would get lost beside the sum of many."""
        sums = GradientSums(leaves_of(SIZES, kind))
        for _ in range(1000):
            leaves = leaves_of(SIZES, kind)
            add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1e-3)
        for total in sums.sums.values():
            assert total.dtype == torch.float32
            torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=0)

    def test_of_a_weight_that_is_used_twice_are_whole(self) -> None:
        for size in SIZES.values():
            leaves = leaves_of({"w": size})
            sums = GradientSums(leaves)
            add(sums, leaves, (3 * leaves["w"]).sum() + leaves["w"].sum(), 0.5)
            assert sums.sums["w"].eq(2).all()

    def test_start_from_zero_with_the_next_sample(self) -> None:
        sums = GradientSums(leaves_of(SIZES))
        for _ in range(2):
            leaves = leaves_of(SIZES)
            add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1.0)
            assert all(total.eq(1).all() for total in sums.sums.values())
            assert sums.reached == set(SIZES)
            sums.reset()
            assert sums.reached == set()
            assert not any(total.any() for total in sums.sums.values())

    def test_start_from_zero_with_the_next_segment_of_the_same_sample(self) -> None:
        leaves = leaves_of(SIZES)
        sums = GradientSums(leaves)
        add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1.0)
        sums.zero()
        assert not any(total.any() for total in sums.sums.values())
        assert sums.reached == set(SIZES)

    def test_of_gradients_in_another_order_of_memory(self) -> None:
        for shape in ((2, 3), (100, 90)):
            leaf = nn.Parameter(torch.randn(shape))
            sums = GradientSums({"w": leaf})
            numbers = torch.arange(float(math.prod(shape))).view(shape)
            leaf.grad = numbers.t().contiguous().t()
            sums.collect({"w": leaf}, 0.5)
            if leaf.grad is not None and math.prod(shape) > SMALL:
                sums.take("w", leaf.grad, 0.5)
            assert torch.equal(sums.sums["w"], numbers / 2)

    def test_of_small_parameters_of_one_type_lie_in_one_buffer(self) -> None:
        kinds = {"a": torch.float32, "b": torch.float64, "c": torch.bfloat16}
        sums = GradientSums({f"{name}{n}": torch.empty(SMALL, dtype=kinds[name]) for n in range(20) for name in kinds})
        buffers = {total.untyped_storage().data_ptr() for total in sums.sums.values()}
        assert len(buffers) == 3


class TestWhatGetsNone:
    def test_is_not_reached_and_its_sum_stays(self) -> None:
        leaves = leaves_of(SIZES)
        sums = GradientSums(leaves)
        add(sums, leaves, leaves["one"].sum() + leaves["long"].sum(), 2.0)
        assert sums.reached == {"one", "long"}
        assert {name for name, total in sums.sums.items() if total.any()} == {"one", "long"}
        assert sums.sums["one"].eq(2).all()
        assert sums.sums["long"].eq(2).all()

    @pytest.mark.parametrize("name", SIZES)
    def test_gradients_of_a_backward_pass_inside_of_the_loss_are_refused(self, name: str) -> None:
        leaves = leaves_of(SIZES)
        leaves[name].sum().backward()
        with pytest.raises(LossError, match=rf"must not call backward\(\); it left gradients in '{name}'"):
            GradientSums(leaves).take_all(leaves[name].sum(), leaves, 1.0)

    @pytest.mark.parametrize("size", [9, SMALL + 1])
    def test_sparse_gradients_are_added_dense(self, size: int) -> None:
        table = nn.Embedding(size, 1, sparse=True)
        leaves = {"w": table.weight}
        sums = GradientSums(leaves)
        add(sums, leaves, table(torch.tensor([2, 2, 5])).sum(), 0.5)
        assert sums.sums["w"].flatten()[[2, 5]].tolist() == [1.0, 0.5]
        assert sums.sums["w"].sum() == 1.5
        assert sums.reached == {"w"}


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_sums_are_found_by_name(self, value: float) -> None:
        for kind in (torch.float32, torch.complex64):
            sums = GradientSums(leaves_of(SIZES, kind))
            assert sums.find_nonfinite() == {}
            for name in ("small", "long"):
                sums.sums[name][-1] = complex(1, value) if kind.is_complex else value
            found = sums.find_nonfinite()
            assert list(found) == ["small", "long"]
            assert {type(number) for number in found.values()} == {float}
            assert all(number == value or math.isnan(number) == math.isnan(value) for number in found.values())
