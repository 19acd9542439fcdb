"""State dicts checked against a model: what agrees, what is chosen, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, StateMismatchError
from filterattr.model.fitting import FittedStates, fit_states

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
