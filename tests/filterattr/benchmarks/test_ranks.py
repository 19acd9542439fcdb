"""Ranks of adapters by contribution against equal ones."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import SettingError
from filterattr.analysis import Budget, LayerBudget
from filterattr.benchmarks import ranks as command
from filterattr.benchmarks.adapting import Domains, Task, adaptation_tasks
from filterattr.benchmarks.allocating import EVA, UNIFORM, allocations, eva_ranks, input_components
from filterattr.benchmarks.ranks import Row, main, run, table, with_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # between PEFT and transformers
    pytest.mark.filterwarnings("ignore::filterattr.errors.FilterAttrWarning"),
]


@pytest.fixture
def peft() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft")


class Chain(nn.Module):
    """Layers of one size, whose inputs spread over more and more directions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.scales = [torch.logspace(0, -slope, width) for slope in (3.0, 1.0, 0.3)]

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x * scale) for layer, scale in zip(self.layers, self.scales, strict=True))  # type: ignore[return-value]


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    value: Tensor = model(batch[0]).square().mean()
    return value


def uniform(names: list[str], rank: int, step: int) -> Budget:
    return Budget("rank", tuple(LayerBudget(f"{name}.weight", 1 / len(names), step, rank, rank) for name in names))


def test_ranks_of_eva_and_their_directions_are_those_of_peft(peft: Any) -> None:
    torch.manual_seed(0)
    model, inputs = Chain(), torch.randn(400, 16)
    names = [f"layers.{number}" for number in range(3)]
    components = input_components(model, names, loss, (inputs,))
    budget = eva_ranks(uniform(names, 3, 32), {f"{name}.weight": held.shares for name, held in components.items()})
    ranks = {name.removesuffix(".weight"): rank for name, rank in budget.amounts().items()}
    config = peft.LoraConfig(r=3, target_modules=names, init_lora_weights="eva", eva_config=peft.EvaConfig())
    expected = peft.get_eva_state_dict(
        model,
        [(inputs,)],
        config,
        forward_fn=loss,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    assert {name: len(rows) for name, rows in expected.items()} == ranks
    assert len(set(ranks.values())) > 1
    for name, rows in expected.items():
        overlap = (rows.double() @ components[name].directions[: ranks[name]].T).abs()
        assert overlap.max(1).values.min() > 0.95  # PEFT decomposes at random, and stops when little moves
    adapted = with_adapters(model, budget, components)
    for name, rank in ((name, rank) for name, rank in ranks.items() if rank):
        weight = adapted.get_submodule(f"base_model.model.{name}.lora_A.default").weight
        torch.testing.assert_close(weight.detach(), components[name].directions[:rank].float())


def test_the_inputs_of_a_convolution_are_its_patches() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2)), torch.randn(5, 2, 7, 6)
    (components,) = input_components(model, ["0"], loss, (images,)).values()
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = [
        padded[image, :, y : y + 3, x : x + 3].ravel()
        for image in range(5)
        for y in range(0, 7, 2)
        for x in range(0, 6, 2)
    ]
    squares = np.linalg.svd(np.array(patches) - np.mean(patches, axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(components.shares.numpy(), squares / squares.sum(), rtol=1e-6, atol=1e-9)
    assert not model[0]._forward_hooks


def tiny(task: Task) -> tuple[nn.Module, Domains]:
    torch.manual_seed(0)
    return task.build(), task.domains()


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("name", list(adaptation_tasks()))
def test_every_criterion_spends_as_much_and_peft_gives_every_layer_its_rank(name: str) -> None:
    task = adaptation_tasks()[name]
    model, domains = tiny(task)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    short = {key: value + 0.01 * torch.randn_like(value) for key, value in base.items()}
    budgets = allocations(task, model, base, short, domains, 0).budgets
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
    assert next(iter(budgets)) == UNIFORM
    assert {"attribution", "attribution, signed", "weight change", "Fisher", "random", EVA} < set(budgets)
    assert len({tuple(budget.amounts().values()) for budget in budgets.values()}) >= 4
    for budget in budgets.values():
        assert 0.97 * budgets[UNIFORM].total <= budget.total <= budgets[UNIFORM].total
    model = with_adapters(model, budgets["attribution"])
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == budgets["attribution"].total
    before, after = (task.loss(network, domains.search) for network in (task.build(), model))
    assert before.shape == after.shape == ()


@pytest.mark.usefixtures("peft")
def test_training_is_paired_and_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A criterion with the ranks of another one has its losses, too."""
    plain = command.allocations

    def doubled(*arguments: Any) -> Any:
        result = plain(*arguments)
        return dataclasses.replace(result, budgets={UNIFORM: result.budgets[UNIFORM], "again": result.budgets[UNIFORM]})

    monkeypatch.setattr(command, "allocations", doubled)
    state = torch.get_rng_state()
    rows = run(["digits"], [0, 1], shorten=50, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(row.seed, row.criterion) for row in rows] == [(s, c) for s in (0, 1) for c in (UNIFORM, "again")]
    assert rows[0].loss == rows[1].loss != rows[2].loss == rows[3].loss
    assert all(row.loss < row.before for row in rows)


def test_the_table_shows_differences_that_are_paired() -> None:
    losses = {UNIFORM: [1.0, 2.0, 3.0, 4.0, 5.0], "attribution": [0.9, 1.8, 2.9, 3.8, 4.9]}
    rows = [
        Row("digits", seed, criterion, 100 if criterion == UNIFORM else 95, 0.01, loss, 9.0, "1 1")
        for criterion, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    # the mean is -0.14, the standard deviation 0.0548, and Student's quantile for four degrees 2.776
    assert "| attribution | -0.140 [-0.208, -0.072] | 0.950 |" in table(rows)
    assert "| uniform | 3.000 | 1.000 |" in table(rows)
    assert "| no adapters | 9.000 |  |" in table(rows)


@pytest.mark.usefixtures("peft")
def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ranks.csv"
    assert main(["--quick", "--tasks", "digits", "--seeds", "1", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    with path.open() as file:
        rows = {row["criterion"]: row for row in csv.DictReader(file)}
    assert rows[f"{EVA}, with its start"]["ranks"] == rows[EVA]["ranks"]
    assert rows[f"{EVA}, with its start"]["loss"] != rows[EVA]["loss"]
    assert f"| uniform | {float(rows[UNIFORM]['loss']):.3f} | 1.000 |" in printed
    difference = float(rows["attribution"]["loss"]) - float(rows[UNIFORM]["loss"])
    assert f"| attribution | {difference:+.3f} |" in printed


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(SettingError, match="'speech'"):
        run(["speech"], [0])
