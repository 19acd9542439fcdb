"""PEFT takes the arguments, gives every layer its rank, and trains; SHiRA trains the best weights of every layer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterScores, ScoredParameter, SettingError, Unit
from filterattr.analysis import lora_ranks, magnitude, units_to_train
from filterattr.export import lora_arguments, shira_masks


class Block(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.second(torch.relu(self.first(inputs)))
        return inputs + hidden


class Network(nn.Sequential):
    """Names that are the end of others: '1' and 'inner.1', 'first' and '1.first'."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 12), Block(), Block())
        self.inner = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
        self.inner.first = nn.Linear(12, 12)


def scores_of(model: nn.Module, factors: dict[str, float]) -> FilterScores:
    scores = magnitude(FilterAttributor(model, unit="weight"), model)
    scaled = {
        name: value.abs() / value.abs().sum() * factors.get(name.removesuffix(".weight"), 1.0)
        for name, value in scores.items()
    }
    return FilterScores(scaled, scores.parameters)


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


def adapted(peft: Any, model: nn.Module, **arguments: Any) -> tuple[Any, dict[str, int]]:
    """The model with adapters, and the rank that every module got."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**arguments))
    ranks = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }
    return wrapped, ranks


def expected(budget: Any) -> dict[str, int]:
    return {name.removesuffix(".weight"): rank for name, rank in budget.amounts().items() if rank}


FACTORS = {"0": 5.0, "1.first": 9.0, "2.second": 4.0, "inner.0": 0.0, "inner.1": 0.3, "inner.first": 0.0}


@pytest.mark.parametrize("with_model", [True, False])
def test_every_layer_gets_its_rank_and_a_step_trains(peft: Any, with_model: bool) -> None:
    model = Network()
    budget = lora_ranks(scores_of(model, FACTORS), 3)
    assert len(set(expected(budget).values())) > 3
    assert not {"inner.0", "inner.first"} & set(expected(budget))
    wrapped, ranks = adapted(peft, model, **lora_arguments(budget, model if with_model else None, scaling=2.0))
    assert ranks == expected(budget)
    assert all(module.scaling["default"] == 2.0 for module in wrapped.modules() if hasattr(module, "lora_A"))
    added = sum(value.numel() for name, value in wrapped.named_parameters() if "lora_" in name)
    assert added == budget.total <= budget.uniform_total

    inputs = torch.randn(8, 12)
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    optimizer = torch.optim.SGD([value for value in wrapped.parameters() if value.requires_grad], lr=0.1)
    loss = wrapped.base_model.model[2](wrapped.base_model.model[1](wrapped.base_model.model[0](inputs))).square().mean()
    loss.backward()
    optimizer.step()
    moved = {name for name, value in wrapped.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_B" in name for name in moved)  # A follows in the next step, as B was zero


def test_modules_that_were_not_scored_get_no_adapter(peft: Any) -> None:
    """Without a regular expression, 'first' would also mean '1.first', which was not scored."""
    model = Network()
    model.first = nn.Linear(12, 12)
    scores = scores_of(model, {}).only("first.weight", "0.weight")
    budget = lora_ranks(scores, 2)
    assert lora_arguments(budget, model)["target_modules"] == r"0|first"
    assert adapted(peft, model, **lora_arguments(budget, model))[1] == expected(budget)
    assert set(adapted(peft, Network(), **lora_arguments(lora_ranks(scores, 2)))[1]) != set(expected(budget))


def test_plain_names_are_left_as_they_are() -> None:
    budget = lora_ranks(scores_of(Block(), {}), 2)
    arguments = lora_arguments(budget)
    assert arguments["target_modules"] == ["first", "second"]
    assert list(arguments["rank_pattern"]) == ["first", "second"]
    assert arguments["lora_alpha"] == arguments["r"]


def test_convolutions_and_wrapped_models(peft: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3))
    scores = magnitude(FilterAttributor(model), model)
    scaled = {name: value * (20 if name == "1.weight" else 1) for name, value in scores.items()}
    budget = lora_ranks(FilterScores(scaled, scores.parameters), 2)
    arguments = lora_arguments(budget, nn.DataParallel(model))
    wrapped, ranks = adapted(peft, model, **arguments)
    assert ranks == expected(budget)
    added = sum(value.numel() for name, value in wrapped.named_parameters() if "lora_" in name)
    assert added == budget.total
    assert wrapped(torch.randn(1, 3, 8, 8)).shape == (1, 4, 4, 4)


def test_layers_of_gpt2_are_told_to_be_the_other_way_round(peft: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    scores = magnitude(FilterAttributor(model, unit="weight", select="*.mlp.*.weight"), model)
    budget = lora_ranks(scores, 2)
    arguments = lora_arguments(budget, model)
    assert arguments["fan_in_fan_out"] is True
    wrapped, ranks = adapted(peft, model, **arguments)
    assert ranks == expected(budget)
    tokens = torch.arange(6)[None]
    wrapped(input_ids=tokens, labels=tokens).loss.backward()


def test_what_is_no_weight_of_a_module_is_named() -> None:
    like = {name: ScoredParameter(Unit("o i -> o i"), (4, 4)) for name in ("a.in_proj_weight", "b.weight")}
    scores = FilterScores({name: torch.ones(4, 4) for name in like}, like)
    with pytest.raises(
        SettingError, match=r"'a\.in_proj_weight' is no weight of a module; the model has no module 'b'"
    ):
        lora_arguments(lora_ranks(scores, 1), nn.Linear(2, 2))


def test_budgets_that_give_no_ranks_are_refused() -> None:
    scores = scores_of(Block(), {})
    with pytest.raises(SettingError, match=r"must be of ranks.*it is of units"):
        lora_arguments(units_to_train(scores, 0.5))
    with pytest.raises(SettingError, match="gives no layer a rank"):
        lora_arguments(lora_ranks(scores, 0))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # PEFT makes sparse tensors without saying
@pytest.mark.parametrize("unit", ["weight", "filter"])
def test_shira_trains_the_best_weights(peft: Any, unit: str) -> None:
    model = Block()
    generator = torch.Generator().manual_seed(0)
    like = magnitude(FilterAttributor(model, unit=unit), model)
    scores = FilterScores({name: torch.rand(v.shape, generator=generator) for name, v in like.items()}, like.parameters)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    config = peft.ShiraConfig(r=2, target_modules=["first", "second"])
    config.mask_fn = shira_masks(scores, model)
    wrapped = peft.get_peft_model(model, config)
    optimizer = torch.optim.SGD([value for value in wrapped.parameters() if value.requires_grad], lr=1.0)
    wrapped(torch.randn(16, 12)).square().sum().backward()
    optimizer.step()
    merged = wrapped.merge_and_unload().state_dict()
    for name in ("first.weight", "second.weight"):
        moved = merged[name] != plain[name]
        count = 2 * (12 + 24)
        spread = scores[name] if unit == "weight" else scores[name][:, None].expand(plain[name].shape)
        assert 0.4 * count < int(moved.sum()) <= count  # dead units have no gradient
        assert float(spread[moved].min()) >= float(spread.flatten().sort(descending=True).values[count - 1])


def test_shira_refuses_layers_without_scores() -> None:
    model = Block()
    mask = shira_masks(scores_of(model, {}).only("first.weight"), model)
    assert int(mask(model.first, 2).sum()) == 2 * 36
    with pytest.raises(SettingError, match=r"every adapted layer needs scores.*only 'first\.weight'"):
        mask(model.second, 2)
