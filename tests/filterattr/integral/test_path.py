"""The path between two states: exact copies at its ends and corners, and the model's type in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor
from filterattr.integral.path import SMALL, Path
from filterattr.model.fitting import fit_states

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LARGE = 70_000
SIZES = [5, SMALL + 5, LARGE]


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


class TestInBetween:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", TYPES, ids=str)
    def test_a_point_is_that_of_float64_but_for_the_rounding_of_the_type(self, kind: torch.dtype, size: int) -> None:
        ends = [torch.randn(size, dtype=kind) for _ in range(2)]
        wide = torch.complex128 if kind.is_complex else torch.float64
        for t in (0.3, 0.7):
            point = {"w": torch.empty(size, dtype=kind)}
            path_between(*({"w": end} for end in ends)).write(t, point)
            expected = ends[0].to(wide) + t * (ends[1].to(wide) - ends[0].to(wide))
            scale = torch.stack([end.abs() for end in ends]).amax(0).double()
            assert ((point["w"].to(wide) - expected).abs() <= 2 * torch.finfo(kind).eps * scale).all()

    @pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
    def test_a_point_in_a_type_that_nothing_computes_in(self, kind: torch.dtype) -> None:
        ends = [torch.tensor([1.0, -2.0, 0.5]).to(kind), torch.tensor([2.0, 2.0, 0.25]).to(kind)]
        point = {"w": torch.empty(3, dtype=kind)}
        Path({"w": ends[0].view(torch.uint8).view(kind)}, {"w": ends[1]}, {}).write(0.5, point)
        assert point["w"].float().tolist() == [1.5, 0.0, 0.375]

    @pytest.mark.parametrize("n_segments", [2, 3, 7, 10, 49])
    def test_corners_are_hit_whatever_their_place_was_rounded_to(self, n_segments: int) -> None:
        corners = [{"w": torch.tensor([float(number)])} for number in range(n_segments + 1)]
        path = path_between(*corners)
        assert len(path.segments) == n_segments
        point = {"w": torch.empty(1)}
        for number in range(n_segments + 1):
            for place in (number / n_segments, sum([1 / n_segments] * number)):
                path.write(place, point)
                assert point["w"].item() == number
        for number in range(n_segments):
            segment, place = path.segment_at((number + 0.25) / n_segments)
            assert segment is path.segments[number]
            assert place == pytest.approx(0.25, abs=1e-12)
            path.write((number + 0.25) / n_segments, point)
            assert point["w"].item() == pytest.approx(number + 0.25, rel=1e-6)

    def test_a_place_that_only_lies_near_a_corner_is_none(self) -> None:
        path = path_between(*({"w": torch.tensor([value], dtype=torch.float64)} for value in (0.0, 1.0, 5.0)))
        _, place = path.segment_at(0.5 + 1e-8)
        assert place == pytest.approx(2e-8, rel=1e-6)
        assert path.segment_at(0.5 - 1e-8)[0] is path.segments[0]
        assert path.segment_at(0.5 + 1e-10) == (path.segments[1], 0.0)
        assert path.segment_at(0.5 - 1e-10) == (path.segments[1], 0.0)
        assert path.segment_at(1.0) == (path.segments[1], 1.0)

    def test_a_straight_path_has_its_ends_and_no_corner_near_them(self) -> None:
        path = path_between({"w": torch.zeros(1)}, {"w": torch.ones(1)})
        assert path.segments == (path,)
        assert path.segment_at(1e-10) == (path, 1e-10)
        names = path.moved()
        names.clear()
        assert path.moved() == ["w"]

    def test_repeated_points_are_no_corners(self) -> None:
        first, second, third = ({"w": torch.tensor([value])} for value in (0.0, 1.0, 5.0))
        waypoints = path_between(first, first, second, second, third, third).waypoints
        assert [point["w"].item() for point in waypoints] == [1.0]
        assert path_between(first, second, first, third).waypoints[1]["w"].item() == 0.0  # a way back is a way
        assert path_between(first, first, third, third).waypoints == ()
        assert len(path_between(first, first).segments) == 1

    def test_a_way_there_and_back_moves(self) -> None:
        there = {"w": torch.ones(1), "still": torch.ones(1)}
        base = {"w": torch.zeros(1), "still": torch.ones(1)}
        path = path_between(base, there, base)
        assert path.moved() == ["w"]
        assert [segment.moved() for segment in path.segments] == [["w"], ["w"]]
        assert path.waypoints[0]["still"] is path.base["still"]


class TestDisplacement:
    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("size", SIZES)
    def test_is_that_of_float64_in_the_type_of_sums(self, size: int, kind: torch.dtype) -> None:
        base, target = torch.randn(size).to(kind), torch.randn(size).to(kind)
        path = Path({"w": base}, {"w": target}, {})
        own = torch.float64 if kind == torch.float64 else torch.float32
        expected = target.double() - base.double()
        torch.testing.assert_close(path.displacement("w"), expected.to(own), rtol=torch.finfo(own).eps, atol=0)
        values = torch.randn(size, dtype=own)
        product = values.double() * expected
        found = path.times_displacement("w", values)
        assert found.dtype == own
        assert found.data_ptr() == values.data_ptr()
        torch.testing.assert_close(found.double(), product, rtol=4 * torch.finfo(own).eps, atol=0)
        assert torch.equal(base, path.base["w"])
        assert torch.equal(target, path.target["w"])

    def test_of_complex_weights_counts_the_conjugate(self) -> None:
        base, target = (torch.randn(7, dtype=torch.complex128) for _ in range(2))
        values = torch.randn(7, dtype=torch.complex128)
        change = target - base
        expected = values.real * change.real + values.imag * change.imag
        found = Path({"w": base}, {"w": target}, {}).times_displacement("w", values)
        assert not found.is_complex()
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("is_last", [False, True])
    def test_knows_the_layout_of_what_it_multiplies(self, is_last: bool) -> None:
        layout = torch.channels_last
        base, target = (torch.randn(4, 3, 5, 5).to(memory_format=layout) for _ in range(2))
        values = torch.randn(4, 3, 5, 5)
        if is_last:
            values = values.to(memory_format=layout)
        expected = values * (target - base)
        found = Path({"w": base}, {"w": target}, {}).times_displacement("w", values)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 4), (300, 300), (0, 3)])
    def test_of_several_samples_is_that_of_each(self, shape: tuple[int, ...]) -> None:
        base, target = torch.randn(shape), torch.randn(shape)
        values = torch.randn(3, *shape)
        expected = values * (target - base)
        found = Path({"w": base}, {"w": target}, {}).times_displacement("w", values)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class TestCosine:
    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64], ids=str)
    def test_is_that_of_all_weights_side_by_side(self, kind: torch.dtype) -> None:
        sizes = {"small": 5, "large": LARGE}
        base, target = ({name: torch.randn(size, dtype=kind) for name, size in sizes.items()} for _ in range(2))
        target["large"] += 0.3 * base["large"]
        first, second = (
            torch.cat([torch.view_as_real(v).reshape(-1) if v.is_complex() else v for v in end.values()]).double()
            for end in (base, target)
        )
        expected = (first @ second / (first.norm() * second.norm())).item()
        assert 0.1 < expected < 0.9
        rounding = 1e-12 if kind == torch.float64 else 1e-6
        path = Path(base, target, {})
        assert path.cosine() == pytest.approx(expected, rel=rounding)
        path.side_by_side()
        assert path.cosine() == pytest.approx(expected, rel=rounding)

    def test_of_weights_that_are_all_zero(self) -> None:
        zeros, ones = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
        assert repr(Path(zeros, zeros, {}).cosine()) == "1.0"
        assert Path(zeros, ones, {}).cosine() == Path(ones, zeros, {}).cosine() == 0.0
        assert Path(ones, {"w": -torch.ones(3)}, {}).cosine() == pytest.approx(-1, rel=1e-14)


class TestSideBySide:
    def test_large_and_unmoved_tensors_stay_what_they_are(self) -> None:
        large, still = torch.randn(SMALL + 1), torch.randn(3)
        base = {"large": large, "small": torch.randn(SMALL), "still": still}
        target = {"large": large + 1, "small": torch.randn(SMALL), "still": still.clone()}
        values = {name: value.clone() for name, value in base.items()}
        path = Path(base, target, {})
        line, point, places = path.side_by_side()
        assert base["large"] is large
        assert base["still"] is still
        assert set(point) == {"buffer 0", "large", "still"}
        assert places["small"].data_ptr() == point["buffer 0"].data_ptr()
        assert {name: value.shape for name, value in places.items()} == {name: v.shape for name, v in values.items()}
        for t in (0.0, 0.5, 1.0):
            line.write(t, point)
            for name, value in values.items():
                torch.testing.assert_close(places[name], torch.lerp(value, target[name], t))
        assert all(torch.equal(base[name], values[name]) for name in values)

    def test_paths_with_corners_or_without_small_tensors_are_their_own(self) -> None:
        first, second, third = ({"w": torch.tensor([value])} for value in (0.0, 1.0, 5.0))
        for path in (
            path_between(first, second, third),
            Path({"w": torch.zeros(SMALL + 1)}, {"w": torch.ones(SMALL + 1)}, {}),
        ):
            line, point, places = path.side_by_side()
            assert line is path
            assert set(point) == {"w"}
            assert places["w"] is point["w"]

    def test_what_a_loss_writes_into_buffers_no_other_place_sees(self) -> None:
        networks = [nn.BatchNorm1d(2).eval() for _ in range(2)]
        networks[1].weight.data.add_(1)
        seen: list[Tensor] = []

        def loss(model: nn.Module) -> Tensor:
            seen.append(model.running_mean.clone())
            model.running_mean.add_(1)
            return (model.weight * seen[-1].add(1)).sum()

        FilterAttributor(networks[0], unit="weight", select="weight").attribute(*networks, loss, n_steps=3)
        assert len(seen) > 3
        assert not any(buffer.any() for buffer in seen)


def test_a_path_keeps_what_is_known_of_its_states() -> None:
    base, target = ({"w": torch.tensor([1.0, 2.0]) * size, "mean": torch.tensor(size)} for size in (1.0, 1.0 + 2**-12))
    states = fit_states(
        base,
        target,
        parameters={"w": torch.zeros(2, dtype=torch.bfloat16)},
        buffers={"mean": torch.zeros(())},
        aliases={"w": "w", "mean": "mean"},
        keep_buffers="target",
    )
    path = Path.through(states)
    assert path.rounded == {"w": (2, 2)}  # bfloat16 has eight digits
    assert path.fixed == {"mean": torch.tensor(1 + 2**-12)}
    assert path.end_buffers == {0.0: {"mean": torch.tensor(1.0)}}
    assert path.segments == (path,)
    plain = Path(path.base, path.target, path.fixed)
    assert (plain.rounded, plain.end_buffers, plain.waypoints) == ({}, {}, ())
