"""State dicts checked against a model: what agrees, what is chosen, and what is refused."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, StateMismatchError
from filterattr.model.fitting import FittedStates, Rounded, fit_states, rounding_warning

NAN = math.nan


class Marked(nn.Module):
    """A weight, and a buffer in which NaN says that nothing was measured."""

    def __init__(self, buffer: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, dtype=torch.float64))
        self.register_buffer("measured", torch.tensor(buffer))

    def forward(self) -> Tensor:
        return (self.weight * self.measured.nan_to_num(0.5)).square().sum()


def fitted(
    base: dict[str, Tensor], target: dict[str, Tensor], buffers: dict[str, Tensor], **options: Any
) -> FittedStates:
    weight = {"weight": torch.ones(2)}
    names = {name: name for name in (*weight, *buffers)}
    states = ({**weight, **base}, {"weight": torch.zeros(2), **target})
    return fit_states(*states, parameters=weight, buffers=buffers, aliases=names, **options)


class TestNotANumber:
    def test_is_equal_to_itself_in_buffers(self) -> None:
        networks = [Marked([NAN, 2.0, NAN]) for _ in range(2)]
        seen: list[Tensor] = []

        def loss(model: nn.Module) -> Tensor:
            seen.append(model.measured.clone())
            return model()

        FilterAttributor(networks[0], unit="weight", select="weight").attribute(*networks, loss)
        for buffer in seen:
            torch.testing.assert_close(buffer, torch.tensor([NAN, 2.0, NAN]), equal_nan=True, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("first", "second"), [([NAN, 2.0], [1.0, 2.0]), ([1.0, 2.0], [NAN, 2.0]), ([NAN, 2.0], [2.0, NAN])]
    )
    def test_is_equal_to_no_number(self, first: list[float], second: list[float]) -> None:
        base, target = Marked([*first, 1.0]), Marked([*second, 1.0])
        with pytest.raises(StateMismatchError, match="the buffers 'measured' differ between base and target"):
            FilterAttributor(base, unit="weight", select="weight").attribute(base, target, lambda model: model())

    def test_of_a_state_is_kept_and_not_that_of_the_model(self) -> None:
        values = torch.tensor([NAN, 3.0])
        fixed = fitted({"buffer": values}, {"buffer": values.clone()}, {"buffer": torch.zeros(2)}).fixed
        assert fixed["buffer"].isnan().tolist() == [True, False]
        assert fixed["buffer"][1] == 3

    def test_makes_no_end_another_one(self) -> None:
        values = torch.tensor([NAN, 3.0])
        states = fitted(
            {"same": values, "other": torch.ones(2)},
            {"same": values.clone(), "other": torch.zeros(2)},
            {"same": torch.zeros(2), "other": torch.zeros(2)},
            keep_buffers="target",
        )
        assert {t: list(values) for t, values in states.end_buffers.items()} == {0.0: ["other"]}

    def test_under_two_names_is_one_value(self) -> None:
        values = torch.tensor([NAN, 3.0])
        state = {"weight": torch.ones(2), "buffer": values, "again": values.clone()}
        aliases = {"weight": "weight", "buffer": "buffer", "again": "buffer"}
        states = fit_states(
            state, state, parameters={"weight": torch.ones(2)}, buffers={"buffer": torch.zeros(2)}, aliases=aliases
        )
        assert states.fixed["buffer"].isnan().tolist() == [True, False]
        state["again"] = torch.tensor([NAN, 4.0])
        with pytest.raises(StateMismatchError, match="different values for 'buffer' and 'again'"):
            fit_states(
                state, state, parameters={"weight": torch.ones(2)}, buffers={"buffer": torch.zeros(2)}, aliases=aliases
            )


class TestTypes:
    def test_buffers_are_compared_as_the_model_holds_them(self) -> None:
        """A third in float64 is a third in float32; the next number of float64 is no other."""
        third = torch.full((2,), 1 / 3, dtype=torch.float64)
        model = torch.zeros(2)
        states = fitted({"buffer": third}, {"buffer": third.float()}, {"buffer": model})
        assert states.fixed["buffer"].dtype == torch.float32
        assert torch.equal(states.fixed["buffer"], third.float())
        with pytest.raises(StateMismatchError, match="the buffers 'buffer' differ"):
            fitted({"buffer": third}, {"buffer": third.float()}, {"buffer": model.double()})


class TestChoices:
    """What is used of buffers: base holds 1, target 2, the model 3."""

    def value(self, kind: torch.dtype, ends: str, keep_buffers: str | None) -> float:
        states = {"base": {"buffer": torch.full((2,), 1).to(kind)}, "target": {"buffer": torch.full((2,), 2).to(kind)}}
        base, target = (states[role] if role in ends else {} for role in ("base", "target"))
        own = torch.full((2,), 3).to(kind)
        fixed = fitted(base, target, {"buffer": own}, keep_buffers=keep_buffers).fixed["buffer"]
        assert fixed.dtype == kind
        assert fixed.data_ptr() not in {value.data_ptr() for value in (own, *base.values(), *target.values())}
        return fixed[0].item()

    @pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.complex64], ids=str)
    def test_of_buffers_that_differ(self, kind: torch.dtype) -> None:
        assert self.value(kind, "base target", "base") == 1
        assert self.value(kind, "base target", "target") == 2
        for keep in (None, "base", "target"):
            assert self.value(kind, "", keep) == 3
        if kind == torch.int64:
            assert self.value(kind, "base target", None) == 3
            for ends in ("base", "target"):
                assert self.value(kind, ends, None) == 3
        else:
            for ends in ("base", "target", "base target"):
                with pytest.raises(StateMismatchError, match="the buffers 'buffer' differ between base and target"):
                    self.value(kind, ends, None)

    @pytest.mark.parametrize(("has", "lacks", "number"), [("base", "target", 1), ("target", "base", 2)])
    def test_of_buffers_that_one_end_lacks(self, has: str, lacks: str, number: int) -> None:
        assert self.value(torch.float32, has, has) == number
        with pytest.raises(StateMismatchError, match=f"{lacks} lacks the buffers 'buffer', but is to provide them"):
            self.value(torch.float32, has, lacks)
        assert self.value(torch.int64, has, has) == number
        assert self.value(torch.int64, has, lacks) == 3

    def test_of_ends_whose_floating_buffers_are_others(self) -> None:
        buffers = {"mean": torch.zeros(2), "count": torch.tensor(0), "same": torch.ones(2)}
        base = {"mean": torch.ones(2), "count": torch.tensor(1), "same": torch.ones(2)}
        target = {"mean": torch.full((2,), 2.0), "count": torch.tensor(2), "same": torch.ones(2)}
        states = fitted(base, target, buffers, keep_buffers="target")
        assert states.end_buffers.keys() == {0.0}
        assert {name: value.tolist() for name, value in states.end_buffers[0.0].items()} == {"mean": [1, 1], "count": 1}
        states = fitted(base, target, buffers, keep_buffers="base")
        assert states.end_buffers.keys() == {1.0}
        assert {name: value.tolist() for name, value in states.end_buffers[1.0].items()} == {"mean": [2, 2], "count": 2}
        del base["mean"], target["mean"]
        assert fitted(base, target, buffers, keep_buffers="target").end_buffers == {}  # a counter alone is no reason

    def test_counters_among_the_parameters_must_agree(self) -> None:
        parameters = {"count": torch.tensor(3), "weight": torch.ones(2)}
        names = {name: name for name in parameters}

        def fit(first: int, second: int) -> FittedStates:
            states = ({"count": torch.tensor(one), "weight": torch.ones(2)} for one in (first, second))
            return fit_states(*states, parameters=parameters, buffers={}, aliases=names)

        states = fit(7, 7)
        assert states.fixed["count"] == 7
        assert [list(corner) for corner in states.corners] == [["weight"], ["weight"]]
        with pytest.raises(StateMismatchError, match=r"'count' is torch.int64 and differs, but cannot move"):
            fit(7, 8)
        state = {"weight": torch.ones(2)}
        with pytest.raises(StateMismatchError, match="base lacks 1 of 2: 'count'") as caught:
            fit_states(state, parameters, parameters=parameters, buffers={}, aliases=names)
        assert "differs" not in str(caught.value)


class TestFindings:
    """Everything that is wrong stands in one message."""

    PARAMETERS: ClassVar = {name: torch.ones(2) for name in ("a", "b", "c")}

    def message(self, base: dict[str, Tensor], target: dict[str, Tensor] | None = None, **options: Any) -> str:
        target = self.PARAMETERS if target is None else target
        names = {name: name for name in self.PARAMETERS} | {"again": "a"}
        with pytest.raises(StateMismatchError) as caught:
            fit_states(base, target, parameters=self.PARAMETERS, buffers={}, aliases=names, **options)
        return str(caught.value)

    def test_about_names_and_shapes(self) -> None:
        state = {"a": torch.ones(2), "b": torch.ones(3), "other": torch.ones(1), "again": torch.zeros(2)}
        assert self.message(state) == (
            "base and target must both fit the model: base holds different values for 'a' and 'again', which are one "
            "parameter; base lacks 1 of 3: 'c'; base has 1 that the model lacks: 'other'; in base 'b' has shape (3,), "
            "not (2,). Load both from the same architecture."
        )
        assert "target lacks 3 of 3: 'a', 'b', 'c'" in self.message(self.PARAMETERS, {})
        waypoints = [self.PARAMETERS, {}]
        assert "waypoint 1 lacks 3 of 3" in self.message(self.PARAMETERS, waypoints=waypoints)

    def test_about_every_name_that_differs_from_the_first(self) -> None:
        names = dict.fromkeys(("a", "second", "third"), "a")
        state = {"a": torch.ones(2), "second": torch.zeros(2), "third": torch.ones(2)}
        with pytest.raises(StateMismatchError, match="different values for 'a' and 'second'") as caught:
            fit_states(state, state, parameters={"a": torch.ones(2)}, buffers={}, aliases=names)
        assert "third" not in str(caught.value)

    def test_about_values(self) -> None:
        large = torch.tensor([1.0, 1e300], dtype=torch.float64)
        state = {"a": torch.tensor([1.0, math.inf]), "b": large, "c": torch.ones(2, dtype=torch.complex64)}
        assert self.message(state) == (
            "base and target must both fit the model: base holds infinite values or NaN in 'a'; base holds values too "
            "large for torch.float32 in 'b'; base is complex and the model real in 'c'. Load both from the same "
            "architecture."
        )
        nan = {**self.PARAMETERS, "b": torch.tensor([NAN, 1.0], dtype=torch.float64)}
        assert "target holds infinite values or NaN in 'b'. Load" in self.message(self.PARAMETERS, nan)

    def test_about_types_names_each(self) -> None:
        parameters = {"a": torch.ones(1).half(), "b": torch.ones(1), "c": torch.ones(1).half()}
        state = {name: torch.full((1,), 1e300, dtype=torch.float64) for name in parameters}
        with pytest.raises(StateMismatchError, match=r"too large for torch.float16, torch.float32 in 'a', 'b', 'c'"):
            fit_states(state, parameters, parameters=parameters, buffers={}, aliases={name: name for name in "abc"})

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    def test_sums_that_overflow_are_no_finding(self, kind: torch.dtype) -> None:
        limit = torch.full((2,), torch.finfo(torch.float32).max)
        state = {**self.PARAMETERS, "a": limit.to(kind)}
        names = {name: name for name in self.PARAMETERS}
        states = fit_states(state, self.PARAMETERS, parameters=self.PARAMETERS, buffers={}, aliases=names)
        assert torch.equal(states.corners[0]["a"], limit)

    def test_complex_values_of_complex_parameters_are_none(self) -> None:
        parameters = {"w": torch.ones(2, dtype=torch.complex64)}
        states = ({"w": torch.tensor([1 + 2j, number], dtype=torch.complex128)} for number in (1j, 2j))
        corners = fit_states(*states, parameters=parameters, buffers={}, aliases={"w": "w"}).corners
        assert [corner["w"].tolist() for corner in corners] == [[1 + 2j, 1j], [1 + 2j, 2j]]

    def test_about_buffers_need_no_other_architecture(self) -> None:
        with pytest.raises(StateMismatchError) as caught:
            fitted({"buffer": torch.ones(2)}, {"buffer": torch.zeros(2)}, {"buffer": torch.zeros(2)})
        assert str(caught.value).endswith('choose buffers="target" (as in the trained model) or buffers="base".')


class TestRounded:
    def test_counts_what_moves_and_what_of_it_is_lost(self) -> None:
        weight = torch.zeros(4, dtype=torch.bfloat16)
        base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
        middle = {"w": torch.tensor([1.001, 1.001, 1.0, 2.0])}
        target = {"w": torch.tensor([1.001, 1.002, 1.0, 3.0])}
        states = fit_states(base, target, waypoints=[middle], parameters={"w": weight}, buffers={}, aliases={"w": "w"})
        assert states.rounded == {"w": (5, 3)}
        same = fit_states(base, target, parameters={"w": weight.float()}, buffers={}, aliases={"w": "w"})
        assert same.rounded == {}
        kept = fit_states(base, {"w": torch.arange(4.0)}, parameters={"w": weight}, buffers={}, aliases={"w": "w"})
        assert kept.rounded == {}

    def test_a_coarser_state_in_a_finer_model_loses_nothing(self) -> None:
        weight = torch.zeros(2, dtype=torch.float64)
        base, target = {"w": torch.ones(2).bfloat16()}, {"w": torch.ones(2).half() * 1.25}
        assert fit_states(base, target, parameters={"w": weight}, buffers={}, aliases={"w": "w"}).rounded == {}

    def test_counts_the_parts_of_the_path_where_one_state_is_finer(self) -> None:
        def rounded(*states: Tensor) -> dict[str, Rounded]:
            base, *waypoints, target = ({"w": state} for state in states)
            names, model = {"w": "w"}, {"w": torch.zeros(2)}
            return fit_states(base, target, waypoints=waypoints, parameters=model, buffers={}, aliases=names).rounded

        fine = torch.tensor([2 + 1e-12, 2.0], dtype=torch.float64)
        assert rounded(torch.full((2,), 2.0).bfloat16(), fine) == {"w": (1, 1)}
        assert rounded(fine, torch.full((2,), 2.0).bfloat16()) == {"w": (1, 1)}
        assert rounded(torch.ones(2), torch.full((2,), 2.0), fine) == {"w": (1, 1)}

    def test_up_to_a_tenth_is_no_reason_to_warn(self) -> None:
        moving = {"a": torch.zeros(1).bfloat16(), "b": torch.zeros(1).half()}
        assert rounding_warning({"a": Rounded(10, 1)}, moving) is None
        assert str(rounding_warning({"a": Rounded(100, 11)}, moving)).startswith("11% of the changes")
        assert rounding_warning({}, moving) is None
        text = rounding_warning({"a": Rounded(10, 2), "b": Rounded(30, 1)}, moving)
        assert text is not None
        assert text.startswith("20% of the changes between base and target round away in the model's torch.bfloat16 ")
        assert "(2 of 10 weights, in 'a')" in text
        text = rounding_warning({"a": Rounded(10, 2), "b": Rounded(10, 8)}, moving)
        assert text is not None
        assert text.startswith("50% of the changes")
        assert "torch.bfloat16, torch.float16 (10 of 20 weights, in 'a', 'b')" in text
