"""What is handed in as weights: modules read slot by slot, prefixes as the model has them, ties, types, rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from filterattr import (
    FilterAttributor,
    FilterAttrWarning,
    FilterSelection,
    StateMismatchError,
    Unit,
    blend,
    load_state,
    swapped,
)
from filterattr.analysis.controls import scrambled
from filterattr.analysis.gradients import sample_gradient, taylor
from filterattr.analysis.health import sanity_checks
from filterattr.analysis.knockout import KnockOutJob
from filterattr.analysis.masking import Masking
from filterattr.analysis.rankings import magnitude, weight_change
from filterattr.model.state_dict import plain_state
from filterattr.units.unit import ScoredParameter

X = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def loss(model: nn.Module, x: Tensor = X) -> Tensor:
    return model(x).square().sum()


class Wrapper(nn.Module):
    """A network whose only child is called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Packed(nn.Linear):
    """Its state dict holds more than its parameters, as that of a 4-bit layer does."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight.absmax"] = torch.ones(1)


class Silent(nn.Linear):
    """Its state dict holds less than its parameters."""

    def state_dict(self, *args, **kwargs):
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name != "bias"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 3, bias=False)
        self.double()
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).tanh())


def apart(model: Tied) -> dict[str, Tensor]:
    """The weights as a file without sharing gives them back."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class TestModules:
    @pytest.mark.parametrize(
        "build",
        [
            Wrapper,
            lambda: nn.Sequential(Packed(3, 3), nn.Linear(3, 1)).double(),
            lambda: Silent(3, 2).double(),
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 1)).double(),
            lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double().eval(),
            Tied,
        ],
        ids=["child called module", "more", "less", "parametrized", "buffers", "tied"],
    )
    def test_a_module_is_its_own_base_and_target(self, build: Callable[[], nn.Module]) -> None:
        base, target = build(), build()
        attribution = FilterAttributor(base).attribute(base, target, loss, n_steps=4)
        assert attribution.loss_base == loss(base).item()
        assert attribution.loss_target == loss(target).item()
        with swapped(base, target):
            assert loss(base).item() == attribution.loss_target

    def test_entries_and_order_are_those_of_the_state_dict(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Tied(), nn.Sequential(nn.PReLU()))
        model[1].register_buffer("passing", torch.ones(2), persistent=False)
        state = plain_state(model, "base")
        assert list(state) == list(model.state_dict())
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert not any(value.requires_grad for value in state.values())

    def test_a_module_of_another_kind_that_holds_the_network_as_module_fits_it(self) -> None:
        network = nn.Linear(3, 2).double()
        holder = Wrapper()
        attribution = FilterAttributor(network).attribute(network, holder, loss, n_steps=4)
        assert attribution.loss_target == loss(holder).item()


class TestPrefix:
    def wrapped(self, model: nn.Module) -> dict[str, Tensor]:
        return nn.DataParallel(model).state_dict()

    def test_a_prefix_that_is_the_models_own_stays(self) -> None:
        base, target = Wrapper(), Wrapper()
        expected = FilterAttributor(base).attribute(base, target, loss, n_steps=4).scores().flat()
        for state in (target.state_dict(), self.wrapped(target), target.module.state_dict(), nn.DataParallel(target)):
            assert torch.equal(FilterAttributor(base).attribute(base, state, loss, n_steps=4).scores().flat(), expected)

    def test_part_of_a_state_keeps_the_names_of_the_model(self) -> None:
        model = nn.ModuleDict({"module": nn.Linear(1, 1), "other": nn.Linear(1, 1)})
        with swapped(model, {"module.weight": torch.full((1, 1), 7.0)}):
            assert model["module"].weight.item() == 7.0
        with swapped(model, {"module.module.weight": torch.full((1, 1), 8.0)}):
            assert model["module"].weight.item() == 8.0

    def test_files_of_such_networks_fit(self, tmp_path: Path) -> None:
        base, target = Wrapper(), Wrapper()
        torch.save(self.wrapped(target), tmp_path / "file.pth")
        attribution = FilterAttributor(base).attribute(base, load_state(tmp_path / "file.pth"), loss, n_steps=4)
        assert attribution.loss_target == loss(target).item()

    def test_blend_and_masking_follow_the_selection(self) -> None:
        base, target = Wrapper(), Wrapper()
        chosen = FilterAttributor(base).attribute(base, target, loss, n_steps=4).scores().top(1.0)
        blended = blend(self.wrapped(target), base, chosen)
        assert torch.equal(blended["module.weight"], base.module.weight)
        masking = Masking(base, base, target, loss, {"all": [X]})
        with swapped(base, blended):
            assert masking.losses_of(masking.masked(chosen))["all"] == loss(base).item()

    def test_names_that_become_one_are_refused(self) -> None:
        state = {"weight": torch.zeros(1, 1), "_orig_mod.weight": torch.ones(1, 1)}
        with pytest.raises(StateMismatchError, match="holds 'weight' twice"):
            plain_state(state, "base")


class TestTies:
    def test_two_values_for_one_parameter_are_refused_everywhere(self) -> None:
        model = Tied()
        state = {"embed.weight": torch.zeros(3, 3), "head.weight": torch.ones(3, 3)}
        calls = [
            lambda: swapped(model, state).__enter__(),
            lambda: FilterAttributor(model).attribute(model, state, loss),
            lambda: FilterAttributor(model).attribute(model, model, loss, waypoints=[state]),
            lambda: Masking(model, model, state, loss, {"all": [X]}),
            lambda: magnitude(FilterAttributor(model), state),
            lambda: taylor(FilterAttributor(model), state, loss, [X]),
        ]
        for call in calls:
            with pytest.raises(StateMismatchError, match=r"different values for 'embed\.weight' and 'head\.weight'"):
                call()
        before = model.embed.weight
        assert model.head.weight is before

    def test_a_contradiction_in_buffers_is_refused_too(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        model[1].running_mean = model[0].running_mean
        with (
            pytest.raises(StateMismatchError, match=r"'0\.running_mean' and '1\.running_mean'"),
            swapped(model, {"0.running_mean": torch.zeros(2), "1.running_mean": torch.ones(2)}),
        ):
            pass

    def test_masking_changes_a_tied_weight_under_all_its_names(self) -> None:
        base, target = Tied(), Tied()
        chosen = FilterAttributor(base).attribute(base, target, loss, n_steps=4).scores().top(1.0)
        for state in (target, apart(target), {"head.weight": target.head.weight.detach()}):
            masking = Masking(base, base, state, loss, {"all": [X]})
            assert masking.removed(chosen) == {"all": 1.0}
            base.load_state_dict(masking.masked(chosen))

    def test_blends_of_blends_keep_the_tie(self) -> None:
        base, target = Tied(), Tied()
        scores = FilterAttributor(base, unit="filter").attribute(base, target, loss, n_steps=4).scores()
        twice = blend(blend(target, base, scores.top(1)), base, scores.top(2))
        assert twice["embed.weight"] is twice["head.weight"]

    def test_gradients_are_those_of_the_given_weights(self) -> None:
        """A state that names a tied weight once says what it is under its other name."""
        model, target = Tied(), Tied()
        weight = target.embed.weight.detach()
        loss(target).backward()
        for state in ({"embed.weight": weight}, {"head.weight": weight}):
            found = sample_gradient(model, state, loss, (X,), ["embed.weight"])["embed.weight"]
            torch.testing.assert_close(found, target.embed.weight.grad)

    def test_rankings_and_knock_outs_take_either_name(self) -> None:
        base, target = Tied(), Tied()
        attributor = FilterAttributor(base, unit="filter")
        alone = {"head.weight": target.head.weight.detach()}
        assert torch.equal(
            weight_change(attributor, base, alone).flat(), weight_change(attributor, base, target).flat()
        )
        jobs = [KnockOutJob(attributor, base, state, loss, [X]).run().scores.flat() for state in (target, alone)]
        assert torch.equal(*jobs)

    def test_scrambled_weights_stay_tied(self) -> None:
        target = Tied()
        chosen = FilterSelection(
            {"embed.weight": torch.ones(3, dtype=torch.bool)},
            {"embed.weight": ScoredParameter(Unit("o i -> o"), (3, 3))},
        )
        state = scrambled(target, chosen, "permute", torch.Generator().manual_seed(0))
        assert torch.equal(state["embed.weight"], state["head.weight"])
        assert not torch.equal(state["embed.weight"], target.embed.weight)

    def test_sanity_checks_run_on_tied_networks(self) -> None:
        base, target = Tied(), Tied()
        table = sanity_checks(FilterAttributor(base), base, target, loss, list(X[:, None]), amount=2)
        assert [row.holds for row in table.entries[:4]] == [True] * 4


def special(kind: str) -> Tensor:
    if kind == "sparse":
        return torch.eye(3, dtype=torch.float64).to_sparse()
    if kind == "compressed":
        return torch.eye(3, dtype=torch.float64).to_sparse_csr()
    if kind == "nested":
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.eye(3))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["sparse", "compressed", "nested", "subclass"])
def test_tensors_of_other_kinds_are_refused_by_name(kind: str) -> None:
    model = nn.Linear(3, 3, bias=False).double()
    state = {"weight": special(kind)}
    selection = FilterAttributor(model).attribute(model, nn.Linear(3, 3, bias=False), loss, n_steps=2).scores().top(1)
    calls = [
        lambda: FilterAttributor(model).attribute(model, state, loss),
        lambda: FilterAttributor(model).attribute(model, model, loss, waypoints=[state]),
        lambda: swapped(model, state).__enter__(),
        lambda: blend(model, state, selection),
        lambda: Masking(model, state, model, loss, {"all": [X]}),
    ]
    for call in calls:
        with pytest.raises(StateMismatchError, match="'weight'"):
            call()


class TestRounding:
    def ends(self, step: float) -> tuple[nn.Module, nn.Module]:
        base = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 1))
        target = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in target[0].parameters():
                parameter.mul_(1 + step * torch.randn_like(parameter))
            target[2].weight.add_(0.3 * torch.randn_like(target[2].weight))
        return base, target

    def narrow_loss(self, model: nn.Module) -> Tensor:
        inputs = torch.rand(8, 16, generator=torch.Generator().manual_seed(1))
        return model(inputs.to(model[0].weight.dtype)).float().square().mean()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_changes_that_round_away_are_counted_and_named(self, dtype: torch.dtype) -> None:
        base, target = self.ends(1e-4)
        moved = [(base[0].weight != target[0].weight), (base[0].bias != target[0].bias)]
        lost = [
            (one & (first.to(dtype) == second.to(dtype))).sum()
            for one, first, second in zip(moved, base[0].parameters(), target[0].parameters(), strict=True)
        ]
        share = f"{int(sum(lost)) / int(sum(one.sum() for one in moved)):.0%}"
        attributor = FilterAttributor(copy.deepcopy(base).to(dtype), unit="weight")
        with pytest.warns(
            FilterAttrWarning, match=rf"{share} of the changes .* away in the model's {dtype} .*'0\.weight'"
        ):
            attribution = attributor.attribute(base, target, self.narrow_loss, n_steps=64)
        scores = attribution.scores()
        with pytest.warns(FilterAttrWarning, match="selected units have score 0"):
            scores.top(0.9)

    def test_a_double_state_in_a_single_model_counts_as_well(self) -> None:
        base = nn.Linear(3, 2, bias=False).double()
        target = {"weight": base.weight.detach() * (1 + 1e-12)}
        with pytest.warns(FilterAttrWarning) as caught:
            FilterAttributor(copy.deepcopy(base).float()).attribute(base, target, lambda model: loss(model, X.float()))
        assert "100% of the changes" in str(caught[0].message)
        assert "torch.float32" in str(caught[0].message)

    def test_a_small_step_to_a_waypoint_counts(self) -> None:
        base, target = self.ends(0.5)
        near = {name: value * (1 + 1e-4) for name, value in base.state_dict().items()}
        attributor = FilterAttributor(copy.deepcopy(base).bfloat16())
        with pytest.warns(FilterAttrWarning, match="round away"):
            attributor.attribute(base, target, self.narrow_loss, waypoints=[near], n_steps=64)

    def test_changes_that_survive_are_no_reason_to_warn(self) -> None:
        base, target = self.ends(0.5)
        narrow = copy.deepcopy(base).bfloat16()
        FilterAttributor(narrow).attribute(base, target, self.narrow_loss, n_steps=64)
        FilterAttributor(narrow).attribute(
            copy.deepcopy(base).bfloat16(), copy.deepcopy(target).bfloat16(), self.narrow_loss, n_steps=64
        )

    def test_swapped_refuses_what_the_type_cannot_hold(self) -> None:
        model = nn.Linear(2, 1, bias=False).half()
        with (
            pytest.raises(StateMismatchError, match=r"too large for torch\.float16 in 'weight'"),
            swapped(model, {"weight": torch.full((1, 2), 1e6)}),
        ):
            pass
        with (
            pytest.raises(StateMismatchError, match="complex and the model real in 'weight'"),
            swapped(model, {"weight": torch.ones(1, 2, dtype=torch.complex64)}),
        ):
            pass
