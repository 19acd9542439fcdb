"""Paths through checkpoints: against the slow chain, against loss change allocation, and complete."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, PathRecorder, StateMismatchError, StorageError
from filterattr.integral.path import Path as WeightPath
from filterattr.model.fitting import fit_states
from filterattr.model.swap import ParameterSwap
from filterattr.results.attribution import FilterAttribution
from tests.networks import image, smooth_network, squared_sum
from tests.reference.slow_attribution import unit_index
from tests.reference.slow_waypoints import slow_waypoints


def chain(length: int) -> list[nn.Module]:
    return [smooth_network() for _ in range(length)]


@pytest.mark.parametrize(
    ("method", "n_steps"),
    [("gausslegendre", 3), ("riemann_left", 2), ("riemann_middle", 2), ("riemann_right", 2), ("riemann_trapezoid", 2)],
)
def test_scores_equal_the_slow_chain(method: str, n_steps: int) -> None:
    networks = chain(4)
    base, *waypoints, target = networks
    model = copy.deepcopy(base)
    modules = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    units = {f"{name}.weight": unit_index(module, "kernel") for name, module in modules.items()}
    expected = slow_waypoints(networks, squared_sum, image(size=5), method=method, n_steps=n_steps, units=units)
    found = (
        FilterAttributor(model).attribute(
            base, target, squared_sum, [image(size=5)], method=method, n_steps=n_steps, waypoints=waypoints
        )
        if method == "gausslegendre"
        else _without_warning(model, networks, method, n_steps)
    )
    for reduction, numbers in expected.items():
        for name, places in numbers.items():
            for place, value in places.items():
                assert float(found.scores(reduction)[name][place]) == pytest.approx(value, rel=1e-10, abs=1e-13)
    assert (found.n_segments, found.n_steps, found.n_passes) == (3, n_steps, 3 * n_steps)


def _without_warning(model: nn.Module, networks: list[nn.Module], method: str, n_steps: int) -> FilterAttribution:
    """Coarse rules are not complete, and say so."""
    import warnings

    base, *waypoints, target = networks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FilterAttributor(model).attribute(
            base, target, squared_sum, [image(size=5)], method=method, n_steps=n_steps, waypoints=waypoints
        )


def test_path_stays_complete_and_shows_the_loss_at_every_corner() -> None:
    networks = chain(3)
    base, middle, target = networks
    samples = [image(seed, size=5) for seed in (0, 1)]
    found = FilterAttributor(base).attribute(base, target, squared_sum, samples, waypoints=[middle])
    direct = FilterAttributor(base).attribute(base, target, squared_sum, samples)
    assert found.completeness_error < 1e-10
    assert found.total == pytest.approx(direct.total, rel=1e-9)
    assert (found.scores().flat() - direct.scores().flat()).abs().max() > 1e-3  # but it is another path
    at = dict(zip(found.path_places, found.path_losses, strict=True))
    for place, network in zip((0.0, 0.5, 1.0), networks, strict=True):
        assert at[place] == pytest.approx(sum(squared_sum(network, one).item() for one in samples) / 2, rel=1e-12)
    assert "in each of 2 segments" in repr(found)


def test_waypoint_on_the_straight_line_changes_nothing() -> None:
    base, target = chain(2)
    third = {name: value + (target.state_dict()[name] - value) / 3 for name, value in base.state_dict().items()}
    one = [image(size=5)]
    found = FilterAttributor(base).attribute(base, target, squared_sum, one, waypoints=[third])
    direct = FilterAttributor(base).attribute(base, target, squared_sum, one)
    for reduction in ("sum", "sum_of_abs", "abs_of_sum"):
        torch.testing.assert_close(
            found.scores(reduction).flat(), direct.scores(reduction).flat(), rtol=1e-9, atol=1e-11
        )


def test_repeated_points_and_both_ends_cost_nothing() -> None:
    base, middle, target = chain(3)
    one = [image(size=5)]
    attributor = FilterAttributor(base)
    plain = attributor.attribute(base, target, squared_sum, one, waypoints=[middle])
    more = attributor.attribute(base, target, squared_sum, one, waypoints=[base, middle, middle, target])
    assert more.n_passes == plain.n_passes
    torch.testing.assert_close(more.scores().flat(), plain.scores().flat(), rtol=0, atol=0)
    assert attributor.attribute(base, target, squared_sum, one, waypoints=[base, target]).n_segments == 1


def test_all_steps_of_a_training_give_loss_change_allocation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs, answers = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (network(batch[0]) - batch[1]).square().mean()

    recorder = PathRecorder(model, limit=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.register_step_post_hook(recorder)
    allocated = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for _ in range(6):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer.zero_grad()
        loss(model, (inputs, answers)).backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        optimizer.step()
        for name, value in model.named_parameters():
            allocated[name] += gradients[name] * (value.detach() - before[name])
    found = FilterAttributor(model, unit="weight", select="*").attribute(
        recorder.base,
        model,
        loss,
        [(inputs, answers)],
        method="riemann_left",
        n_steps=1,
        waypoints=recorder.waypoints,
    )
    for name, value in allocated.items():
        torch.testing.assert_close(found.scores("sum")[name], value, rtol=0, atol=1e-12)
    exact = FilterAttributor(model).attribute(
        recorder.base, model, loss, [(inputs, answers)], n_steps=4, waypoints=recorder.waypoints
    )
    assert exact.completeness_error < 1e-10


def test_half_kept_waypoints_are_as_complete() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    batch = torch.randn(8, 3, dtype=torch.float64)
    recorder = PathRecorder(model, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        squared_sum(model, batch).backward()
        optimizer.step()
        recorder()
    found = FilterAttributor(model).attribute(recorder.base, model, squared_sum, [batch], waypoints=recorder.waypoints)
    assert found.completeness_error < 1e-9
    assert found.n_segments == 6  # the last waypoint is next to target, not on it


def test_misfitting_waypoint_is_named() -> None:
    base, target = chain(2)
    wrong = {name: value for name, value in target.state_dict().items() if name != "0.weight"}
    with pytest.raises(StateMismatchError, match=r"waypoint 1 lacks 1 of 8: '0\.weight'"):
        FilterAttributor(base).attribute(base, target, squared_sum, [image()], waypoints=[target, wrong])
    with pytest.raises(StateMismatchError, match="waypoint 0 must be a module or a state dict; got str"):
        FilterAttributor(base).attribute(base, target, squared_sum, [image()], waypoints=base.state_dict())


def test_checkpoint_of_another_path_is_refused_and_that_of_the_same_is_taken_up(tmp_path: Path) -> None:
    base, middle, target = chain(3)
    samples = [image(seed, size=5) for seed in range(3)]
    attributor = FilterAttributor(base)
    whole = attributor.attribute(base, target, squared_sum, samples, waypoints=[middle])
    file = tmp_path / "job"
    attributor.attribute(base, target, squared_sum, samples[:2], waypoints=[middle], checkpoint=file)
    with pytest.raises(StorageError, match="another list of waypoints"):
        attributor.attribute(base, target, squared_sum, samples, checkpoint=file)
    resumed = attributor.attribute(base, target, squared_sum, samples, waypoints=[middle], checkpoint=file)
    torch.testing.assert_close(resumed.scores().flat(), whole.scores().flat(), rtol=0, atol=0)
    whole.save(tmp_path / "whole")
    assert FilterAttribution.load(tmp_path / "whole").n_segments == 2


def test_complex_weights_follow_waypoints(generator: torch.Generator) -> None:
    class Phases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128, generator=generator))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight @ x.to(self.weight.dtype)).abs().square()

    base, middle, target = Phases(), Phases(), Phases()
    x = torch.randn(2, 1, dtype=torch.float64, generator=generator)
    found = FilterAttributor(base).attribute(base, target, lambda model: model(x).sum(), waypoints=[middle])
    assert found.completeness_error < 1e-12


def test_what_does_not_move_is_kept_once() -> None:
    base, middle, target = chain(3)
    for other in (middle, target):
        other[0].load_state_dict(base[0].state_dict())
    slots = ParameterSwap(base)
    states = fit_states(
        base.state_dict(),
        target.state_dict(),
        parameters=slots.parameters,
        buffers=slots.buffers,
        aliases=slots.aliases,
        waypoints=[middle.state_dict()],
    )
    path = WeightPath.through(states)
    assert path.waypoints[0]["0.weight"] is path.base["0.weight"]
    assert "0.weight" not in path.moved()
    point = {name: torch.empty_like(value) for name, value in path.base.items()}
    for t, network in ((0.0, base), (0.5, middle), (1.0, target)):
        path.write(t, point)
        for name, value in point.items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("keep", ["all", "signed"])
def test_what_moves_in_one_segment_alone_rests_at_its_corner_in_the_others(keep: str) -> None:
    base, target = chain(2)
    middle = {**base.state_dict(), "0.weight": target.state_dict()["0.weight"]}
    attributor = FilterAttributor(base, select="*")
    seen: list[Tensor] = []

    def loss(model: nn.Module, sample: Tensor) -> Tensor:
        seen.append(model[0].weight.detach().clone())
        return squared_sum(model, sample)

    found = attributor.attribute(base, target, loss, [image()], waypoints=[middle], n_steps=3, keep=keep)
    ends = base.state_dict()["0.weight"], target.state_dict()["0.weight"]
    inside = [value for value in seen if not any(torch.equal(value, end) for end in ends)]
    assert len(inside) == 3  # the nodes of the first segment; all others have the weight of an end
    parts = [
        attributor.attribute(first, second, squared_sum, [image()], n_steps=3, keep=keep).scores("sum").flat()
        for first, second in ((base, middle), (middle, target))
    ]
    torch.testing.assert_close(found.scores("sum").flat(), parts[0] + parts[1], rtol=1e-5, atol=1e-7)
