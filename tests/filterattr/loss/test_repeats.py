"""The loss must be the same function at every node: samples are protected, and what changes it is found and named."""

from __future__ import annotations

import collections
import random
import time
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from filterattr import FilterAttributor, LossError
from filterattr.loss.sample_watch import fresh


def ends() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(2))
    return first, second


X = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 0, 1, 1])


def attribute(loss: Any, data: Any = None, **options: Any) -> Any:
    base, target = ends()
    return FilterAttributor(base, unit="weight").attribute(base, target, loss, data, n_steps=8, **options)


def clean(model: nn.Module, _: Any = None) -> Tensor:
    return functional.cross_entropy(model(X), LABELS)


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(found.scores("sum")[name], value) for name, value in expected.scores("sum").items())


class Batch(collections.UserDict):
    pass


@dataclass
class Record:
    x: Tensor
    labels: list[Tensor]


def popping(model: nn.Module, batch: Any) -> Tensor:
    labels = batch.pop("labels")
    return functional.cross_entropy(model(batch["x"]), labels)


def popping_inside(model: nn.Module, record: Any) -> Tensor:
    return functional.cross_entropy(model(record.x), record.labels.pop())


def popping_a_list(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1].pop())


def marking(model: nn.Module, batch: Any) -> Tensor:
    """Normalises once, or so it seems."""
    if "scale" in batch:
        batch["scale"] *= 2
    scale = batch.setdefault("scale", 1.0)
    return clean(model) * scale


class TestProtected:
    @pytest.mark.parametrize(
        ("loss", "sample"),
        [
            (popping, {"x": X, "labels": LABELS}),
            (popping, collections.OrderedDict(x=X, labels=LABELS)),
            (popping, Batch({"x": X, "labels": LABELS})),
            (popping_inside, Record(X, [LABELS])),
            (popping_inside, types.SimpleNamespace(x=X, labels=[LABELS])),
            (popping_a_list, (X, [LABELS])),
            (popping_a_list, [X, collections.deque([LABELS])]),
            (lambda model, batch: popping_inside(model, batch["deep"][0]), {"deep": [Record(X, [LABELS])]}),
            (marking, {}),
        ],
        ids=["dict", "ordered", "user dict", "dataclass", "namespace", "list", "deque", "deep", "added"],
    )
    @pytest.mark.parametrize("aggregate", ["per_sample", "pooled"])
    def test_every_node_gets_the_containers_of_the_sample_anew(self, loss, sample, aggregate):
        before = repr(sample)
        found = attribute(loss, [sample], aggregate=aggregate)
        assert same(found, attribute(clean, [sample], aggregate=aggregate))
        assert repr(sample) == before

    def test_classes_and_tensors_stay_the_same(self):
        batch = collections.defaultdict(list, x=X, rest=[1])
        copied = fresh(batch)
        assert type(copied) is collections.defaultdict
        assert copied["x"] is X
        assert copied["new"] == []
        assert copied["rest"] is not batch["rest"]
        pair = (X, "name")
        assert fresh(pair) is pair

    def test_a_class_that_cannot_be_copied_is_handed_over_itself(self):
        class Sealed(dict):
            def __reduce_ex__(self, _):
                raise TypeError("sealed")

            __copy__ = None

        sealed = Sealed(x=X)
        assert fresh(sealed) is sealed


class TestWritten:
    @pytest.mark.parametrize(
        ("sample", "name"),
        [
            (lambda: X.clone(), "sample 0:"),
            (lambda: {"image": X.clone()}, r"sample 0 \['image'\]:"),
            (lambda: [{"pair": (0, X.clone())}], r"sample 0 \[0\]\['pair'\]\[1\]:"),
            (lambda: Record(X.clone(), []), r"sample 0 \.x:"),
            (lambda: {"image": X.numpy().copy()}, r"sample 0 \['image'\]:"),
        ],
        ids=["tensor", "mapping", "deep", "dataclass", "array"],
    )
    @pytest.mark.parametrize("options", [{}, {"method": "adaptive", "n_steps": 31}, {"aggregate": "pooled"}])
    def test_a_loss_that_writes_to_its_sample_is_refused_with_the_entry(self, sample, name, options):
        def find(value: Any) -> Any:
            while not isinstance(value, Tensor | np.ndarray):
                value = (
                    value.x
                    if isinstance(value, Record)
                    else value[next(reversed(value))]
                    if (isinstance(value, dict))
                    else value[-1]
                )
            return value

        def loss(model, given):
            image = find(given)
            image -= 0.2
            return model(torch.as_tensor(image)).square().sum()

        base, target = ends()
        with pytest.raises(LossError, match=f"writes to {name}.*Work on a copy"):
            FilterAttributor(base).attribute(base, target, loss, [sample()], **options)

    def test_a_later_sample_is_named_by_its_number(self):
        def loss(model, x):
            return model(x.mul_(2) if float(x[0, 0]) > 1 else x).square().sum()

        with pytest.raises(LossError, match="writes to sample 1:"):
            attribute(loss, [X.clone(), X + 1])

    def test_to_write_the_same_again_is_right(self):
        found = attribute(lambda model, x: model(x.clamp_(0.2, 0.6)).square().sum(), [X.clone()])
        assert same(found, attribute(lambda model, x: model(x.clamp(0.2, 0.6)).square().sum(), [X.clone()]))

    def test_samples_made_in_inference_mode_are_fine(self):
        with torch.inference_mode():
            sample = X.clone()
        attribute(lambda model, x: model(x.clone()).square().sum(), [sample])


class Normaliser:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: nn.Module) -> Tensor:
        self.count += 1
        return clean(model) * (1 + 0.1 * self.count)


CALLS = {"number": 0}


def counting_globally(model: nn.Module) -> Tensor:
    CALLS["number"] += 1
    return clean(model) * CALLS["number"]


def counting(model: nn.Module, calls: list[int] = []) -> Tensor:  # noqa: B006 - that is the fault
    calls.append(1)
    return clean(model) * len(calls)


def closed_over() -> dict[str, Any]:
    image, noise, numbers, own = X.clone(), torch.Generator().manual_seed(0), np.random.default_rng(0), random.Random(0)
    normal = nn.BatchNorm1d(3).double()
    number = 0

    def writes(model):
        image.sub_(0.2)
        return model(image).square().sum()

    def counts(model):
        nonlocal number
        number += 1
        return clean(model) + number

    return {
        "image": writes,
        "number": counts,
        "noise": lambda model: model(X + torch.rand(5, 3, generator=noise, dtype=torch.float64)).square().sum(),
        "numbers": lambda model: clean(model) * numbers.random(),
        "own": lambda model: clean(model) * own.random(),
        "normal.running_mean": lambda model: model(normal(X)).square().sum() + normal.running_mean.sum(),
    }


class TestRepeats:
    @pytest.mark.parametrize("name", closed_over())
    def test_what_a_loss_keeps_around_it_is_named(self, name):
        with pytest.raises(LossError, match=rf"same function at every node.*changes .*'{name}"):
            attribute(closed_over()[name])

    @pytest.mark.parametrize(
        ("loss", "name"), [(Normaliser(), "count"), (counting_globally, "CALLS"), (counting, "default 0")]
    )
    @pytest.mark.parametrize(
        "options", [{}, {"aggregate": "pooled"}, {"method": "adaptive"}, {"method": "riemann_right"}], ids=str
    )
    def test_state_of_objects_globals_and_defaults_is_named(self, loss, name, options):
        base, target = ends()
        with pytest.raises(LossError, match=f"same function at every node.*changes .*{name}"):
            FilterAttributor(base).attribute(base, target, loss, **options)

    def test_a_class_attribute_is_named(self):
        class Counting(nn.Linear):
            number = {"of calls": 0}

            def forward(self, inputs):
                self.number["of calls"] += 1
                return super().forward(inputs) * self.number["of calls"]

        base, target = Counting(3, 2).double(), Counting(3, 2).double()
        with pytest.raises(LossError, match="of class Counting"):
            FilterAttributor(base).attribute(base, target, lambda model: model(X).square().sum())

    def test_random_numbers_without_a_seed_and_clocks_are_suspected(self):
        with pytest.raises(LossError, match="without a seed, read a clock"):
            attribute(lambda model: clean(model) * np.random.default_rng().random())
        with pytest.raises(LossError, match="without a seed, read a clock"):
            attribute(lambda model: clean(model) * (time.perf_counter_ns() % 1009))

    def test_another_number_of_draws_is_named(self):
        system = random.SystemRandom()
        with pytest.raises(LossError, match="another number of random numbers"):
            attribute(lambda model: clean(model) * torch.rand(system.randrange(1, 1000)).sum())

    def test_samples_that_share_passes_are_looked_at_too(self):
        calls = []

        def loss(model, x):
            calls.append(1)
            return model(x).square().sum() * (1 + len(calls) // 2)

        with pytest.raises(LossError, match="depends on more than the model and the sample"):
            attribute(loss, [X, X], internal_batch_size=2)

    def test_what_is_kept_without_an_effect_is_nobodys_business(self):
        seen = []

        def loss(model):
            seen.append(float(model[0].weight.detach()[0, 0]))
            return clean(model)

        assert same(attribute(loss), attribute(clean))
        assert len(seen) == 8 + 2 + 1

    @pytest.mark.filterwarnings("ignore:.* in train mode:filterattr.FilterAttrWarning")
    def test_dropout_is_the_same_function(self):
        base, target = (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)) for _ in range(2))
        FilterAttributor(base).attribute(base, target, lambda model: model(X.float()).square().sum())

    @pytest.mark.filterwarnings("error")
    def test_a_small_difference_is_a_warning(self):
        calls = []

        def loss(model):
            calls.append(1)
            return model(X.float()).square().sum() * 1e-3 + 1.0 + 2e-6 * len(calls)

        torch.manual_seed(0)
        base, target = (nn.Linear(3, 2) for _ in range(2))
        with pytest.warns(UserWarning, match="same function at every node") as caught:
            FilterAttributor(base).attribute(base, target, loss, n_steps=8)
        assert caught[0].filename == __file__

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    def test_draws_that_are_close_to_each_other_are_told(self, kind):
        """Beside the change of the loss they are small; a processor would still give the same bits twice."""
        torch.manual_seed(0)
        base, target = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(kind) for _ in range(2))
        noise = torch.Generator().manual_seed(3)

        def loss(model):
            return model(X.to(kind)).square().sum() * (1 + 2e-5 * torch.rand((), generator=noise))

        with pytest.raises((LossError, UserWarning), match="same function at every node"):
            FilterAttributor(base, unit="weight").attribute(base, target, loss, n_steps=8)

    @pytest.mark.filterwarnings("ignore:the attributions should sum to:filterattr.FilterAttrWarning")
    @pytest.mark.parametrize("n_threads", [1, 2])
    def test_sums_that_threads_share_are_the_same_twice(self, n_threads):
        torch.manual_seed(0)
        images = torch.rand(4, 3, 24, 24)

        def network():
            return nn.Sequential(
                nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.GELU(), nn.Flatten(2), nn.LSTM(484, 32, batch_first=True)
            )

        def loss(model, x):
            outputs, _ = model(x)
            return outputs.softmax(-1).logsumexp((0, 1)).square().mean() - 30

        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            base, target = network(), network()
            target.load_state_dict({name: value * 0.9 for name, value in base.state_dict().items()})
            FilterAttributor(base, unit="weight", select="*").attribute(base, target, loss, [images], n_steps=8)
        finally:
            torch.set_num_threads(before)
