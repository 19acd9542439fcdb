"""train_only: weights outside the selection keep their bytes under every optimizer, those inside train as if alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from filterattr import FilterSelection, SettingError, StateMismatchError, Unit, train_only
from filterattr.units.unit import ScoredParameter

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, weight_decay=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1),
}
INPUTS = torch.rand(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """Biases, a norm, a tied pair, a frozen parameter, values that comparisons get wrong, and another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.tied = self.second
        self.spare = nn.Parameter(torch.tensor([-0.0, float("nan"), 1.0]))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.double()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.second(self.norm(self.first(x)))))


@pytest.fixture
def model() -> Network:
    return Network()


def kernels(**chosen: list[tuple[int, int]]) -> FilterSelection:
    """Select kernels of the layers `first` (4 x 2) and `second` (4 x 4)."""
    shapes = {"first": (4, 2, 3, 3), "second": (4, 4, 3, 3)}
    marks = {name: torch.zeros(shapes[name][:2], dtype=torch.bool) for name in chosen}
    for name, places in chosen.items():
        for place in places:
            marks[name][place] = True
    return FilterSelection(
        {f"{name}.weight": mark for name, mark in marks.items()},
        {f"{name}.weight": ScoredParameter(Unit("o i ... -> o i"), shapes[name]) for name in chosen},
    )


SOME = kernels(first=[(0, 1), (3, 0)], second=[(1, 2)])


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def frozen_bytes(model: nn.Module, selection: FilterSelection) -> dict[str, bytes]:
    marks = selection.weights()
    return {
        name: raw(parameter[~marks[name]] if name in marks else parameter)
        for name, parameter in model.named_parameters()
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, change=lambda: None) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(INPUTS).square().mean()
        loss.backward()
        change()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


class TestFrozenWeights:
    @pytest.mark.parametrize("history", [False, True])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_everything_outside_keeps_its_bytes(self, model, name, history):
        if name == "lbfgs":
            model.to(memory_format=torch.contiguous_format)  # it can do with no other layout
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        if history:
            step(model, optimizer)
            step(model, optimizer)
        before, chosen = frozen_bytes(model, SOME), model.first.weight.detach().clone()
        layout = model.second.weight.stride()
        with train_only(model, SOME, optimizer):
            for _ in range(3):
                step(model, optimizer)
                assert frozen_bytes(model, SOME) == before
        assert frozen_bytes(model, SOME) == before
        assert not torch.equal(model.first.weight, chosen)
        assert model.second.weight.stride() == layout

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
    def test_zeroing_gradients_alone_would_not_do(self, model, name):
        """The reason for all this: the usual way moves every frozen weight."""
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        step(model, optimizer)
        before, marks = frozen_bytes(model, SOME), SOME.weights()

        def mask_gradients() -> None:
            for key, parameter in model.named_parameters():
                if parameter.grad is not None:
                    parameter.grad *= marks.get(key, torch.zeros(()))

        step(model, optimizer, mask_gradients)
        assert frozen_bytes(model, SOME) != before

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
    def test_an_infinite_gradient_outside_does_no_harm(self, model, name):
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        before = frozen_bytes(model, SOME)
        blow_up = torch.zeros(4, 2, 3, 3, dtype=torch.float64)
        blow_up[0, 0], blow_up[1, 1] = float("inf"), float("nan")
        handle = model.first.weight.register_hook(lambda gradient: gradient + blow_up)
        with train_only(model, SOME, optimizer):
            step(model, optimizer)
            step(model, optimizer)
        handle.remove()
        assert frozen_bytes(model, SOME) == before
        assert bool(model.first.weight.isfinite().all())

    def test_several_groups_gradient_clipping_and_an_empty_selection(self, model):
        optimizer = torch.optim.AdamW(
            [
                {"params": [model.first.weight, model.first.bias], "weight_decay": 0.5},
                {"params": [*model.norm.parameters(), *model.second.parameters()], "lr": 0.1},
            ]
        )
        for selection in (SOME, kernels(first=[])):
            before = frozen_bytes(model, selection)
            with train_only(model, selection, optimizer):
                for _ in range(3):
                    step(model, optimizer, lambda: clip_grad_norm_(model.parameters(), 1e-3))
            assert frozen_bytes(model, selection) == before

    def test_a_gradient_scaler_steps_and_does_not_stumble_over_frozen_infinities(self, model):
        optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), torch.amp.GradScaler("cpu")
        blow_up = torch.zeros(4, 2, 3, 3, dtype=torch.float64)
        blow_up[0, 0] = float("inf")
        handle = model.first.weight.register_hook(lambda gradient: gradient + blow_up)
        before, chosen = frozen_bytes(model, SOME), model.first.weight.detach().clone()
        with train_only(model, SOME, optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale(model(INPUTS).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        handle.remove()
        assert frozen_bytes(model, SOME) == before
        assert not torch.equal(model.first.weight, chosen)
        assert scaler.get_scale() == 65536.0  # no step was skipped

    def test_a_sparse_gradient(self):
        table = nn.Embedding(5, 2, sparse=True)
        rows = FilterSelection(
            {"weight": torch.tensor([True, False, True, False, False])},
            {"weight": ScoredParameter(Unit("n d -> n"), (5, 2))},
        )
        before = table.weight.detach().clone()
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        with train_only(table, rows, optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                table(torch.tensor([0, 1, 1, 2])).square().sum().backward()
                optimizer.step()
        assert (table.weight == before).all(1).tolist() == [False, True, False, True, True]

    def test_wrapped_models_and_parametrized_weights(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        name = "parametrizations.weight.original1"
        chosen = FilterSelection(
            {name: torch.tensor([True, False, False, False])}, {name: ScoredParameter(Unit("o i -> o"), (4, 3))}
        )
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        before = frozen_bytes(layer, chosen)
        with train_only(nn.DataParallel(layer), chosen, optimizer):
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        assert frozen_bytes(layer, chosen) == before


class TestChosenWeights:
    @pytest.mark.parametrize("clip", [None, 0.01])
    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
    def test_they_train_as_if_they_were_the_only_ones(self, name, clip):
        """A vector of the chosen weights alone, scattered into the network by hand, takes the same way."""
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3)).double()
        chosen = FilterSelection(
            {"0.weight": torch.tensor([[1, 0], [0, 0], [0, 1], [0, 0]]) > 0},
            {"0.weight": ScoredParameter(Unit("o i ... -> o i"), (4, 2, 3, 3))},
        )
        mark = chosen.weights()["0.weight"]
        whole = copy.deepcopy(model)
        alone = nn.Parameter(whole[0].weight.detach()[mark].clone())
        lonely = OPTIMIZERS[name]([alone])
        for _ in range(5):
            weight = whole[0].weight.detach().masked_scatter(mark, alone)
            lonely.zero_grad()
            torch.func.functional_call(whole, {"0.weight": weight}, (INPUTS,)).square().mean().backward()
            if clip:
                clip_grad_norm_([alone], clip)
            lonely.step()
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        with train_only(model, chosen, optimizer):
            for _ in range(5):
                optimizer.zero_grad()
                model(INPUTS).square().mean().backward()
                if clip:
                    clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
        torch.testing.assert_close(model[0].weight.detach()[mark], alone.detach(), rtol=1e-12, atol=1e-13)

    def test_everything_selected_is_ordinary_training(self, model):
        everything = kernels(
            first=[(o, i) for o in range(4) for i in range(2)], second=[(o, i) for o in range(4) for i in range(4)]
        )
        twin = copy.deepcopy(model)
        weights = [model.first.weight, model.second.weight], [twin.first.weight, twin.second.weight]
        optimizers = [torch.optim.AdamW(each) for each in weights]
        with train_only(model, everything, optimizers[0]):
            step(model, optimizers[0])
        step(twin, optimizers[1])
        assert raw(model.first.weight) == raw(twin.first.weight)
        assert raw(model.second.weight) == raw(twin.second.weight)


class TestLeaving:
    def hooks(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        return len(optimizer._optimizer_step_post_hooks) + sum(
            len(parameter._backward_hooks or {}) for parameter in model.parameters()
        )

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_everything_is_removed_whatever_happens(self, model, error):
        optimizer = torch.optim.AdamW(model.parameters())
        flags = [parameter.requires_grad for parameter in model.parameters()]
        seen = []

        def train() -> None:
            with train_only(model, SOME, optimizer) as inner:
                assert inner is model
                seen.append(self.hooks(model, optimizer))
                step(model, optimizer)
                if error is not None:
                    raise error("stop")

        if error is None:
            train()
        else:
            with pytest.raises(error, match="stop"):
                train()
        assert seen[0] > 0
        assert self.hooks(model, optimizer) == 0
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        before = raw(model.second.bias)
        step(model, optimizer)
        assert raw(model.second.bias) != before

    def test_a_step_that_breaks_off_in_the_middle_leaves_no_trace(self, model):
        class Breaking(torch.optim.SGD):
            def step(self, closure=None):
                super().step(closure)
                raise KeyboardInterrupt("in the middle")

        optimizer = Breaking(model.parameters(), lr=0.1, weight_decay=0.1)
        before = frozen_bytes(model, SOME)
        with pytest.raises(KeyboardInterrupt, match="in the middle"), train_only(model, SOME, optimizer):
            step(model, optimizer)
        assert frozen_bytes(model, SOME) == before
        assert self.hooks(model, optimizer) == 0

    def test_gradients_and_optimizer_state_of_the_past_stay(self, model):
        optimizer = torch.optim.Adam(model.parameters())
        step(model, optimizer)
        past = model.second.weight.grad.clone()
        state = copy.deepcopy(optimizer.state_dict()["state"])
        with train_only(model, SOME, optimizer):
            pass
        torch.testing.assert_close(model.second.weight.grad, past, rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


class TestRefusals:
    def refused(self, model, selection, optimizer, error, match):
        with pytest.raises(error, match=match), train_only(model, selection, optimizer):
            pass

    def test_an_optimizer_of_other_parameters_is_refused_by_their_names(self, model):
        other = torch.optim.SGD(Network().parameters(), lr=0.1)
        match = "does not hold 'first.weight', 'second.weight'.*after the model was moved or loaded"
        self.refused(model, SOME, other, SettingError, match)
        part = torch.optim.SGD([model.first.weight], lr=0.1)
        self.refused(model, SOME, part, SettingError, r"does not hold 'second\.weight'")
        with train_only(model, kernels(first=[(0, 0)], second=[]), part):
            step(model, part)

    def test_a_selected_parameter_must_require_a_gradient(self, model):
        model.first.weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.refused(model, SOME, optimizer, SettingError, r"'first\.weight' require no gradient")

    def test_what_is_no_optimizer_or_runs_no_hooks_is_refused(self, model):
        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner):
                self.param_groups = inner.param_groups

            __repr__ = object.__repr__

        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        self.refused(model, SOME, Wrapper(inner), SettingError, "must run hooks after its steps; Wrapper does not")
        self.refused(model, SOME, object(), SettingError, r"must be a torch\.optim\.Optimizer; got object")
        assert all(not parameter._backward_hooks for parameter in model.parameters())

    def test_a_selection_of_another_model_is_refused_by_name(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scored = {
            "third.weight": ScoredParameter(Unit("o ... -> o"), (2, 2)),
            "second.weight": ScoredParameter(Unit("o ... -> o"), (4, 4, 1, 1)),
        }
        foreign = FilterSelection({"third.weight": torch.ones(2) > 0, "second.weight": torch.ones(4) > 0}, scored)
        match = r"no parameter 'third\.weight'; 'second\.weight' has shape \(4, 4, 3, 3\), not \(4, 4, 1, 1\)"
        self.refused(model, foreign, optimizer, StateMismatchError, match)
