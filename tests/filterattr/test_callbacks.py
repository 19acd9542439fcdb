"""Trainings are watched from inside of their trainers, go on as if nobody watched, and train chosen units alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from filterattr import FilterAttributor, FilterSelection, SettingError, train_only
from filterattr.callbacks import TrainingWatch

SAMPLES = torch.rand(24, 5, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """Dropout and running statistics show whether somebody drew numbers or passed data through."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        value: Tensor = self.last(self.drop(self.norm(self.first(inputs)).relu()))
        return value


def loss(model: nn.Module, sample: Tensor) -> Tensor:
    value: Tensor = (model(sample[None]) - 1).square().sum()
    return value


def made() -> Network:
    torch.manual_seed(0)
    return Network()


def trained(watch: TrainingWatch | None, steps: int = 7) -> Network:
    model = made().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if watch is not None:
        watch.begin(model)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (model(SAMPLES[(step * 4) % 20 : (step * 4) % 20 + 4]) - 1).square().mean().backward()
        optimizer.step()
        if watch is not None:
            watch.step(step)
    if watch is not None:
        watch.end(steps)
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    held = second.state_dict()
    return all(torch.equal(value, held[name]) for name, value in first.state_dict().items())


def test_a_training_goes_on_as_if_nobody_watched() -> None:
    watched = trained(TrainingWatch(loss, SAMPLES[:2], every=3, n_steps=2))
    assert same(watched, trained(None))
    assert all(module.training for module in watched.modules())


def test_stretches_follow_each_other_and_their_changes_add_up() -> None:
    watch = TrainingWatch(loss, SAMPLES[:2], every=3, n_steps=8)
    model = trained(watch)
    assert list(watch.attributions) == [3, 6, 7]
    assert watch.recorder is not None
    assert watch.recorder.places == (1, 2, 3, 4, 5, 6, 7)
    for attribution in watch.attributions.values():
        assert attribution.completeness_error < 0.05
    expected = FilterAttributor(model.eval()).attribute(
        {**model.state_dict(), **watch.recorder.waypoints[5]}, model, loss, SAMPLES[:2], n_steps=8, buffers="target"
    )
    found = watch.attributions[7].scores()
    torch.testing.assert_close(dict(found), dict(expected.scores()), rtol=1e-6, atol=1e-12)


def test_train_flags_come_back_whatever_happens() -> None:
    def failing(*_: object) -> Tensor:
        raise RuntimeError("in the loss")

    model = made().train()
    model.drop.eval()
    watch = TrainingWatch(failing, SAMPLES[:1], every=1)
    watch.begin(model)
    model.last.weight.data.add_(1)
    with pytest.raises(RuntimeError, match="in the loss"):
        watch.step(1)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_a_part_can_be_watched_and_recording_needs_no_loss() -> None:
    watch = TrainingWatch(part="first")
    trained(watch)
    assert watch.recorder is not None
    assert set(watch.recorder.base) == {"weight", "bias"}
    assert watch.attributions == {}
    with pytest.raises(SettingError, match="part must name a module"):
        TrainingWatch(part="nothing").begin(made())
    with pytest.raises(SettingError, match="every must be at least 1"):
        TrainingWatch(every=0)
    with pytest.raises(SettingError, match="must come before the first step"):
        TrainingWatch().step(1)


class WithLoss(Network):
    """As the Hugging Face Trainer wants it."""

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:
        value = super().forward(inputs)
        return value if labels is None else {"loss": (value[:, 0] - labels).square().mean(), "logits": value}


def trainer_of(transformers: Any, folder: Path, model: nn.Module, *callbacks: Any, **settings: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, learning_rate=0.01, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0, **settings,
    )  # fmt: skip
    data = [{"inputs": sample, "labels": torch.tensor(1.0)} for sample in SAMPLES]
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_of_hugging_face(tmp_path: Path, accumulation: int) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    models = []
    watch = TrainingWatch(loss, SAMPLES[:2], every=4, n_steps=2)
    for callbacks in ([watch.for_transformers()], []):
        torch.manual_seed(0)
        models.append(WithLoss())
        trainer_of(transformers, tmp_path, models[-1], *callbacks, gradient_accumulation_steps=accumulation).train()
    assert same(*models)
    assert list(watch.attributions) == [4, 6]
    assert watch.recorder is not None
    assert watch.recorder.places == (1, 2, 3, 4, 5, 6)
    assert torch.equal(watch.recorder.waypoints[-1]["first.weight"], models[0].first.weight)


def some(model: nn.Module) -> FilterSelection:
    scored = FilterAttributor(model, unit="filter", select="first.weight").scored_parameters()
    return FilterSelection({"first.weight": torch.tensor([True, False] * 3)}, scored)


def only_these_moved(model: Network, before: dict[str, Tensor]) -> bool:
    moved = {name: value != before[name] for name, value in model.named_parameters()}
    others = [marks for name, marks in moved.items() if name != "first.weight"]
    return not any(bool(marks.any()) for marks in others) and moved["first.weight"].any(1).tolist() == [True, False] * 3


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_trainer_of_hugging_face_trains_chosen_units_alone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = WithLoss()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = trainer_of(transformers, tmp_path, model, weight_decay=0.1)
    trainer.create_optimizer()
    with train_only(model, some(model), trainer.optimizer):
        trainer.train()
    assert only_these_moved(model, before)


def test_accelerate_trains_chosen_units_alone() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = made()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    plain = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    prepared, optimizer, loader = accelerator.prepare(model, plain, DataLoader(list(SAMPLES), batch_size=4))
    with train_only(prepared, some(model), optimizer):
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward((prepared(batch) - 1).square().mean())
            optimizer.step()
    assert only_these_moved(model, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_lightning(tmp_path: Path, accumulation: int) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            value: Tensor = (self.net(batch) - 1).square().mean()
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            return self.optimizer

    def fit(*callbacks: Any) -> Network:
        module = Module()
        torch.manual_seed(1)
        trainer = lightning.Trainer(
            max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
            accumulate_grad_batches=accumulation,
        )  # fmt: skip
        trainer.fit(module, DataLoader(SAMPLES, batch_size=2))
        net: Network = module.net
        return net

    watch = TrainingWatch(loss, SAMPLES[:2], every=4, n_steps=2, part="net")
    assert same(fit(watch.for_lightning()), fit())
    assert list(watch.attributions) == [4, 6]
    assert watch.recorder is not None
    assert watch.recorder.places == (1, 2, 3, 4, 5, 6)
