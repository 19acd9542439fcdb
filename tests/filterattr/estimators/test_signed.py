"""Signed scores alone: the numbers of a call that keeps everything, without memory for every weight."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import filterattr
from filterattr import (
    FilterAttribution,
    FilterAttributor,
    Group,
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
)
from tests.reference.slow_attribution import rule
from tests.reliability.fingerprint import Fingerprint
from tests.reliability.interrupts import Injection

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")

SOURCES = str(Path(filterattr.__file__).parent)
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


def networks(build, kind: torch.dtype = torch.float32) -> list[nn.Module]:
    torch.manual_seed(0)
    return [build().to(kind) for _ in range(2)]


def convolutions() -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 6, 3, groups=2), nn.SiLU(), nn.ConvTranspose2d(6, 4, 2), nn.PReLU()
    )
    layers.append(layers[4])  # one layer twice
    layers[6] = nn.Sequential(nn.Conv2d(4, 6, 1), layers[4])
    return layers


def tied() -> nn.Module:
    embedding = nn.Embedding(7, 4)
    head = nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    return nn.Sequential(embedding, nn.Linear(4, 4), nn.Tanh(), head)


def complex_layer() -> nn.Module:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight @ x.to(self.weight.dtype)).abs()

    return Spectral()


def squared_sum(model: nn.Module, sample: Tensor) -> Tensor:
    return model(sample).square().sum()


CASES = {
    "kernels": (convolutions, "kernel", lambda: torch.rand(1, 1, 9, 9)),
    "filters": (convolutions, "filter", lambda: torch.rand(1, 1, 9, 9)),
    "inputs": (convolutions, "input", lambda: torch.rand(1, 1, 9, 9)),
    "layers": (convolutions, "layer", lambda: torch.rand(1, 1, 9, 9)),
    "weights": (convolutions, "weight", lambda: torch.rand(1, 1, 9, 9)),
    "tied": (tied, "filter", lambda: torch.randint(0, 7, (5,))),
    "groups": (tied, {"1": Group({"weight": "o i -> o", "bias": "o -> o"}), "*": "layer"}, lambda: torch.arange(5)),
    "complex": (complex_layer, "kernel", lambda: torch.rand(4)),
}


def assert_equal(found: FilterAttribution, expected: FilterAttribution, rounding: float) -> None:
    for reduction in ("sum", "abs_of_sum"):
        scores = expected.scores(reduction)
        largest = float(scores.flat().abs().max())
        assert list(found.scores(reduction)) == list(scores)
        for name, value in scores.items():
            torch.testing.assert_close(found.scores(reduction)[name], value, rtol=0, atol=rounding * largest)
        errors = found.standard_errors(reduction).flat(), expected.standard_errors(reduction).flat()
        torch.testing.assert_close(*errors, rtol=0, atol=rounding**0.5 * largest)  # a root of a difference of squares


@pytest.mark.parametrize("kind", ROUNDING, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_a_call_that_keeps_everything(case: str, kind: torch.dtype) -> None:
    build, unit, sample = CASES[case]
    if case == "complex" and kind == torch.float32:
        pytest.skip("complex weights of the finer type only")
    base, target = [build() for _ in range(2)] if case == "complex" else networks(build, kind)
    data = [value.to(kind) if value.is_floating_point() else value for value in (sample() for _ in range(11))]
    attributor = FilterAttributor(base, unit=unit)
    everything = attributor.attribute(base, target, squared_sum, data, n_steps=5)
    signed = attributor.attribute(base, target, squared_sum, data, n_steps=5, keep="signed")
    assert_equal(signed, everything, 20 * ROUNDING[kind])
    for name in ("loss_base", "loss_target", "total", "remainder", "n_passes", "n_samples", "cosine"):
        assert getattr(signed, name) == pytest.approx(getattr(everything, name), rel=1e3 * ROUNDING[kind])
    assert signed.path_places == everything.path_places


@pytest.mark.parametrize("method", ["riemann_left", "riemann_right", "riemann_trapezoid"])
def test_scores_are_those_of_a_loop_by_hand(method: str) -> None:
    base, target = networks(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.float64)
    data = [torch.rand(3, dtype=torch.float64) for _ in range(3)]
    signed = {name: torch.zeros_like(value) for name, value in base.named_parameters()}
    for t, coefficient in rule(method, 6):
        for sample in data:
            model = copy.deepcopy(base)
            with torch.no_grad():
                for value, first, second in zip(*(m.parameters() for m in (model, base, target)), strict=True):
                    value.copy_(first + t * (second - first))
            squared_sum(model, sample).backward()
            for (name, value), first, second in zip(
                model.named_parameters(), base.parameters(), target.parameters(), strict=True
            ):
                signed[name] += coefficient / 3 * value.grad * (second - first).detach()
    attributor = FilterAttributor(base, unit="filter")
    found = attributor.attribute(base, target, squared_sum, data, method=method, n_steps=6, keep="signed")
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(found.scores("sum")[name], signed[name].sum(1), rtol=1e-12, atol=1e-13)
    rest = signed["0.bias"].sum() + signed["2.bias"].sum()
    assert found.remainder == pytest.approx(rest.item(), rel=1e-11)


def test_waypoints_add_the_signed_contributions_of_segments() -> None:
    base, target = networks(convolutions, torch.float64)
    corner = copy.deepcopy(base)
    with torch.no_grad():
        for value in corner.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    data = [torch.rand(1, 1, 9, 9, dtype=torch.float64) for _ in range(3)]
    attributor = FilterAttributor(base)
    settings = {"waypoints": [corner], "method": "riemann_trapezoid", "n_steps": 5}
    everything = attributor.attribute(base, target, squared_sum, data, **settings)
    signed = attributor.attribute(base, target, squared_sum, data, **settings, keep="signed")
    assert_equal(signed, everything, 1e-12)
    assert signed.n_segments == 2
    assert signed.path_places == everything.path_places


def test_bits_do_not_depend_on_the_samples_that_share_a_node() -> None:
    base, target = networks(convolutions)
    data = [torch.rand(1, 1, 9, 9) for _ in range(10)]
    attributor = FilterAttributor(base)
    alone = [attributor.attribute(base, target, squared_sum, [x], n_steps=3, keep="signed") for x in data]
    together = attributor.attribute(base, target, squared_sum, data, n_steps=3, keep="signed")
    total = sum(one.scores("sum").flat() for one in alone)
    assert torch.equal(together.scores("sum").flat(), total / 10)


def test_a_batch_counts_as_the_sum_of_its_rows() -> None:
    base, target = networks(convolutions, torch.float64)
    rows = torch.rand(12, 1, 9, 9, dtype=torch.float64)
    attributor = FilterAttributor(base)
    single = attributor.attribute(base, target, squared_sum, rows.split(1), n_steps=4, keep="signed")
    batches = attributor.attribute(base, target, squared_sum, rows.split(4), n_steps=4, keep="signed")
    torch.testing.assert_close(batches.scores("sum").flat(), 4 * single.scores("sum").flat(), rtol=1e-10, atol=1e-12)


def test_weights_are_written_once_for_a_block_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from filterattr.integral.path import Path as Line

    places: list[float] = []
    write = Line.write
    monkeypatch.setattr(Line, "write", lambda self, t, *a, **k: (places.append(t), write(self, t, *a, **k))[1])
    base, target = networks(convolutions)
    data = [torch.rand(1, 1, 9, 9) for _ in range(8)]
    FilterAttributor(base).attribute(base, target, squared_sum, data, n_steps=4, keep="signed")
    # both ends, four nodes, and base once more for the check that the loss repeats
    assert len(places) == 7


class TestWhatIsNotKept:
    def test_is_refused_and_the_setting_is_named(self) -> None:
        base, target = networks(convolutions)
        found = FilterAttributor(base).attribute(
            base, target, squared_sum, [torch.rand(1, 1, 9, 9)], n_steps=2, keep="signed"
        )
        assert found.is_signed
        for ask in (found.scores, found.standard_errors):
            with pytest.raises(SettingError, match=r'"sum_of_abs" were not kept.*keep="signed".*keep="all"'):
                ask()
        assert "signed scores alone" in repr(found)

    def test_is_not_in_a_file(self, tmp_path: Path) -> None:
        base, target = networks(convolutions)
        data = [torch.rand(1, 1, 9, 9) for _ in range(2)]
        found = FilterAttributor(base).attribute(base, target, squared_sum, data, n_steps=2, keep="signed")
        found.save(tmp_path / "a.safetensors")
        again = FilterAttribution.load(tmp_path / "a.safetensors")
        assert again.is_signed
        assert_equal(again, found, 0.0)
        assert [row.share for row in again.per_layer()] == [row.share for row in found.per_layer()]
        assert sum(row.share for row in found.per_layer()) == pytest.approx(1)

    @pytest.mark.parametrize(
        "setting", [{"aggregate": "pooled"}, {"method": "adaptive"}, {"internal_batch_size": 2}], ids=str
    )
    def test_other_estimators_are_refused(self, setting: dict[str, object]) -> None:
        base, target = networks(convolutions)
        with pytest.raises(SettingError, match=r'keep="signed" needs a rule with fixed nodes'):
            FilterAttributor(base).attribute(
                base, target, squared_sum, [torch.rand(1, 1, 9, 9)], keep="signed", **setting
            )

    def test_unknown_words_are_refused(self) -> None:
        base, target = networks(convolutions)
        with pytest.raises(SettingError, match=r'keep must be "all" or "signed"; got "?\'sum\''):
            FilterAttributor(base).attribute(base, target, squared_sum, keep="sum")


class TestJobs:
    def test_a_job_that_was_stopped_goes_on_with_the_same_bits(self, tmp_path: Path) -> None:
        base, target = networks(convolutions)
        data = [torch.rand(1, 1, 9, 9) for _ in range(20)]
        attributor = FilterAttributor(base)
        settings = {"n_steps": 3, "keep": "signed"}
        expected = attributor.attribute(base, target, squared_sum, data, **settings)
        calls = 0

        def stopping(model: nn.Module, sample: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 70:
                raise KeyboardInterrupt
            return squared_sum(model, sample)

        file = tmp_path / "job.safetensors"
        with pytest.raises(KeyboardInterrupt):
            attributor.attribute(base, target, stopping, data, **settings, checkpoint=file)
        calls = 1000
        resumed = attributor.attribute(base, target, stopping, data, **settings, checkpoint=file)
        assert calls < 1000 + 20 * 5  # eight samples were done
        assert torch.equal(resumed.scores("sum").flat(), expected.scores("sum").flat())
        assert torch.equal(resumed.standard_errors("sum").flat(), expected.standard_errors("sum").flat())

    def test_a_file_of_a_job_that_keeps_everything_is_another_job(self, tmp_path: Path) -> None:
        base, target = networks(convolutions)
        data, file = [torch.rand(1, 1, 9, 9)], tmp_path / "job.safetensors"
        attributor = FilterAttributor(base)
        attributor.attribute(base, target, squared_sum, data, n_steps=2, checkpoint=file)
        with pytest.raises(Exception, match="belongs to another job"):
            attributor.attribute(base, target, squared_sum, data, n_steps=2, checkpoint=file, keep="signed")


class TestFaults:
    def test_a_loss_that_writes_to_its_weights_behind_pytorchs_back_is_refused(self) -> None:
        base, target = networks(convolutions)

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            model[0].weight.data.mul_(0.9)
            return squared_sum(model, sample)

        data = [torch.rand(1, 1, 9, 9) for _ in range(3)]
        with pytest.raises(LossError, match="must be the same function at every node"):
            FilterAttributor(base).attribute(base, target, loss, data, n_steps=3, keep="signed")

    def test_weights_that_a_loss_clamps_are_written_again(self) -> None:
        base, target = networks(convolutions, torch.float64)

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            with torch.no_grad():
                model[0].weight.mul_(0.9)
            return squared_sum(model, sample)

        data = [torch.rand(1, 1, 9, 9, dtype=torch.float64) for _ in range(3)]
        attributor = FilterAttributor(base)
        everything = attributor.attribute(base, target, loss, data, n_steps=3)
        assert_equal(attributor.attribute(base, target, loss, data, n_steps=3, keep="signed"), everything, 1e-12)

    def test_numbers_that_are_not_finite_are_found_with_their_place(self) -> None:
        base, target = networks(convolutions)
        data = [torch.rand(1, 1, 9, 9) for _ in range(3)]
        data[2][:] = float("inf")
        with pytest.raises(NonFiniteError, match=r"at t = 0 \(sample 2\)"):
            FilterAttributor(base).attribute(base, target, squared_sum, data, n_steps=3, keep="signed")

    def test_gradients_that_are_not_finite_are_found_with_their_parameter(self) -> None:
        base, target = networks(lambda: nn.Linear(2, 2))

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            return squared_sum(model, sample) + (0 * model.weight[0, 0]).abs().sqrt()

        with pytest.raises(NonFiniteError, match=r"gradient of 'weight' must be finite.*\(sample 0\)"):
            FilterAttributor(base).attribute(base, target, loss, [torch.rand(2)], n_steps=3, keep="signed")

    def test_parameters_without_a_gradient_are_refused(self) -> None:
        base, target = networks(convolutions)
        loss = lambda model, x: model[:2](x).sum()  # noqa: E731
        with pytest.raises(LossError, match=r"differ in '2\.weight'"):
            FilterAttributor(base).attribute(base, target, loss, [torch.rand(1, 1, 9, 9)], n_steps=2, keep="signed")

    @pytest.mark.parametrize("keep", ["all", "signed"])
    @pytest.mark.parametrize("end", ["base", "target"])
    def test_an_end_that_the_loss_trains_is_refused(self, end: str, keep: str) -> None:
        model = networks(lambda: nn.Linear(100, 100, bias=False))[0]
        states = {
            role: networks(lambda: nn.Linear(100, 100, bias=False))[0].state_dict() for role in ("base", "target")
        }
        states["target"] = {name: value + 1 for name, value in states["target"].items()}

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            states[end]["weight"].mul_(1.001)
            return squared_sum(model, sample)

        with pytest.raises((ModelChangedError, LossError), match="'weight'"):
            FilterAttributor(model).attribute(**states, loss=loss, data=[torch.rand(100)], n_steps=2, keep=keep)

    @pytest.mark.parametrize("keep", ["all", "signed"])
    def test_base_and_target_are_not_written_to(self, keep: str) -> None:
        base, target = networks(lambda: nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1)))
        before = [copy.deepcopy(end.state_dict()) for end in (base, target)]
        FilterAttributor(base).attribute(base, target, squared_sum, [torch.rand(100)], n_steps=2, keep=keep)
        for end, state in zip((base, target), before, strict=True):
            assert all(torch.equal(value, state[name]) for name, value in end.state_dict().items())
            assert all(value._version == 0 or value.is_leaf for value in end.parameters())


def test_interrupts_inside_of_the_library_leave_no_trace() -> None:
    base, target = networks(convolutions)
    data = [torch.rand(1, 1, 9, 9) for _ in range(3)]
    before = Fingerprint(base)
    attributor = FilterAttributor(base)
    call = lambda: attributor.attribute(base, target, squared_sum, data, n_steps=2, keep="signed")  # noqa: E731
    expected = call().scores("sum").flat()

    def run(injection: Injection) -> bool:
        try:
            with injection.armed():
                call()
        except KeyboardInterrupt:
            return True
        return False

    def is_ours(name: str) -> bool:
        return name.startswith(SOURCES)

    dry = Injection(is_ours)
    run(dry)
    for at in range(1, dry.count, dry.count // 60):
        injection = Injection(is_ours, at)
        assert run(injection)
        assert before.changes(base) == [], injection.place
    assert torch.equal(call().scores("sum").flat(), expected)
