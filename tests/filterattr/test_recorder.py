"""Recording a training: what is kept, how it is thinned, and that the training does not notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from filterattr import PathRecorder, SettingError


def train(steps: int, **settings: object) -> tuple[nn.Module, PathRecorder | None, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.05)
    recorder = PathRecorder(model, **settings) if settings else None
    if recorder is not None:
        optimizer.register_step_post_hook(recorder)
    states = [{name: value.clone() for name, value in model.state_dict().items()}]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return model, recorder, states


def test_waypoints_are_the_weights_of_their_steps_bit_for_bit() -> None:
    _, recorder, states = train(7, every=2)
    assert recorder.places == (2, 4, 6)
    for step, waypoint in zip((0, *recorder.places), (recorder.base, *recorder.waypoints), strict=True):
        torch.testing.assert_close(waypoint, states[step], rtol=0, atol=0)


def test_recording_does_not_change_the_training() -> None:
    recorded, _, _ = train(5, every=1)
    plain, _, _ = train(5)
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 4, 5, 9, 17, 100])
def test_full_recorder_drops_every_second_waypoint(steps: int) -> None:
    _, recorder, states = train(steps, limit=4)
    assert len(recorder.places) <= 4
    assert recorder.places == tuple(range(recorder.every, steps + 1, recorder.every))
    assert steps < 4 or len(recorder.places) >= 2
    for step, waypoint in zip(recorder.places, recorder.waypoints, strict=True):
        torch.testing.assert_close(waypoint, states[step], rtol=0, atol=0)


def test_narrow_changes_are_off_by_a_part_of_the_distance_from_base() -> None:
    _, recorder, states = train(6, every=3, dtype=torch.bfloat16)
    for step, waypoint in zip(recorder.places, recorder.waypoints, strict=True):
        for name, value in waypoint.items():
            distance = (states[step][name] - states[0][name]).abs()
            bound = 2**-8 * distance + 1e-7 * states[step][name].abs()
            assert ((value - states[step][name]).abs() <= bound).all()


def test_unmoved_parameters_are_there_once_for_all_waypoints() -> None:
    _, recorder, _ = train(3, every=1)
    first, *others = recorder.waypoints
    assert others
    assert all(waypoint["0.bias"] is first["0.bias"] for waypoint in others)


@pytest.mark.parametrize("settings", [{"every": 0}, {"limit": 1}, {"dtype": torch.int8}])
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(SettingError, match=r"at least|floating"):
        PathRecorder(nn.Linear(1, 1), **settings)
