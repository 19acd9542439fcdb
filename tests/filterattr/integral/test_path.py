"""The path between two states: exact copies at its ends and corners, and float64 in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor
from filterattr.integral.path import Path
from filterattr.integral.pieces import PIECE, SMALL
from filterattr.model.fitting import fit_states

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
SIZES = [5, SMALL + 5, PIECE + 5]


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in the order of its indices: signs of zero and the last digit count."""
    return tensor.detach().contiguous().clone().view(-1).view(torch.uint8)


def awkward(kind: torch.dtype, size: int, sign: int) -> Tensor:
    """Zeros of both signs, and the largest and smallest numbers, of which ``base + 1 (target - base)`` would lose."""
    values = torch.zeros(size, dtype=kind)
    real = torch.view_as_real(values).view(-1) if values.is_complex() else values
    limits = torch.finfo(real.dtype)
    real[:5] = torch.tensor([-0.0, -0.0 * sign, sign * limits.max, limits.smallest_normal, sign], dtype=real.dtype)
    real[-3:] = torch.tensor([-0.0, sign * limits.max, -sign * limits.tiny], dtype=real.dtype)
    return values


def path_between(*states: dict[str, Tensor]) -> Path:
    base, *waypoints, target = states
    names = {name: name for name in base}
    fitted = fit_states(base, target, parameters=base, buffers={}, aliases=names, waypoints=waypoints)
    return Path.through(fitted)


class TestEnds:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", TYPES, ids=str)
    def test_are_written_bit_for_bit(self, kind: torch.dtype, size: int) -> None:
        ends = [{"w": awkward(kind, size, sign)} for sign in (1, -1)]
        path = path_between(*ends)
        point = {"w": torch.empty(size, dtype=kind)}
        for t, end in zip((0.0, 1.0), ends, strict=True):
            path.write(t, point)
            assert torch.equal(bits(point["w"]), bits(end["w"]))

    def test_of_layouts_of_their_own(self) -> None:
        ends = [{"w": awkward(torch.float32, 96, sign).view(2, 3, 4, 4)} for sign in (1, -1)]
        own = torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last)
        path = Path.through(fit_states(*ends, parameters={"w": own}, buffers={}, aliases={"w": "w"}))
        for t, end in zip((0.0, 1.0), ends, strict=True):
            path.write(t, {"w": own})
            assert torch.equal(bits(own), bits(end["w"]))

    def test_and_corners_are_written_bit_for_bit(self) -> None:
        corners = [{"w": awkward(torch.float64, 9, sign) + shift} for shift, sign in enumerate((1, -1, 1, -1))]
        path = path_between(*corners)
        point = {"w": torch.empty(9, dtype=torch.float64)}
        for number, corner in enumerate(corners):
            path.write(number / 3, point)
            assert torch.equal(bits(point["w"]), bits(corner["w"]))

    def test_the_loss_sees_zeros_of_both_signs(self) -> None:
        ends = [nn.Linear(4, 2) for _ in range(2)]
        for end, sign in zip(ends, (1.0, -1.0), strict=True):
            end.weight.data[0] = torch.tensor([-0.0, -0.0 * sign, 0.0, sign])
            end.bias.data = torch.tensor([-0.0, sign])
        seen: list[dict[str, Tensor]] = []

        def loss(model: nn.Module) -> Tensor:
            seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
            return model(torch.ones(1, 4)).sum()

        found = FilterAttributor(ends[0]).attribute(*ends, loss, n_steps=2, method="riemann_trapezoid")
        assert found.path_places == (0.0, 1.0)
        for end in ends:
            same = [
                all(torch.equal(bits(point[name]), bits(end.state_dict()[name])) for name in point) for point in seen
            ]
            assert any(same)

    def test_what_does_not_move_has_the_bits_of_base_in_between(self) -> None:
        path = path_between({"w": torch.tensor([-0.0, 1.0])}, {"w": torch.tensor([0.0, 1.0])})
        point = {"w": torch.empty(2)}
        signs = []
        for t in (0.0, 0.5, 1.0):
            path.write(t, point)
            signs.append(bool(point["w"][0].signbit()))
        assert signs == [True, True, False]
