"""internal_batch_size=: several samples in one pass, each with its own gradient; the numbers of single passes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import filterattr
from filterattr import (
    FilterAttribution,
    FilterAttributor,
    FilterAttrWarning,
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
)
from tests.memory import allocated, needs_glibc
from tests.networks import image, relu_network, smooth_network, squared_sum
from tests.reference.slow_attribution import slow_attribution, unit_index
from tests.reliability.fingerprint import Fingerprint
from tests.reliability.interrupts import Injection

pytestmark = pytest.mark.filterwarnings(
    "ignore:the attributions should sum:filterattr.errors.FilterAttrWarning",
    "ignore:.* in train mode:filterattr.errors.FilterAttrWarning",
)

SOURCES = str(Path(filterattr.__file__).parent)
REDUCTIONS = ("sum_of_abs", "abs_of_sum", "sum")


def pair(make: Callable[[], nn.Module] = smooth_network) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return make(), make()


def plain_network(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3), *more)


def small(count: int, size: int = 8) -> list[Tensor]:
    return [image(seed, size).float() for seed in range(count)]


def attribute(
    ends: tuple[nn.Module, nn.Module], loss: Callable[..., Tensor], data: object, number: int, **options: object
) -> FilterAttribution:
    settings = {"n_steps": 4, "internal_batch_size": number, **options}
    return FilterAttributor(ends[0]).attribute(*ends, loss, data, **settings)


def assert_same(one: FilterAttribution, two: FilterAttribution, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert (one.n_samples, one.n_passes, one.path_places) == (two.n_samples, two.n_passes, two.path_places)
    for name in ("path_losses", "loss_base", "loss_target", "total", "remainder"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=rtol, atol=atol)
    for reduction in REDUCTIONS:
        torch.testing.assert_close(dict(two.scores(reduction)), dict(one.scores(reduction)), rtol=rtol, atol=atol)
        if one.n_samples > 1:
            spread = (dict(result.standard_errors(reduction)) for result in (two, one))
            torch.testing.assert_close(*spread, rtol=rtol, atol=1e3 * atol)


class Width:
    """How many samples share the pass that calls the loss; it counts the calls."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def look(self, tensor: Tensor) -> int:
        width = 1
        while _functorch.is_functorch_wrapped_tensor(tensor):
            if _functorch.is_batchedtensor(tensor):
                width = _functorch.get_unwrapped(tensor).shape[_functorch.maybe_get_bdim(tensor)]
            tensor = _functorch.get_unwrapped(tensor)
        self.seen.append(width)
        return width


class TestNumbers:
    @pytest.mark.parametrize("method", ["gausslegendre", "riemann_trapezoid", "riemann_right", "riemann_left"])
    @pytest.mark.parametrize("make", [smooth_network, relu_network])
    def test_are_those_of_the_slow_reference(self, make: Callable[[], nn.Module], method: str) -> None:
        base, target = pair(make)
        data = [image(seed, 5) for seed in range(5)]
        modules = dict(base.named_modules())
        units = {
            name: unit_index(modules[name.removesuffix(".weight")], "kernel")
            for name, parameter in base.named_parameters()
            if parameter.ndim > 1
        }
        slow = slow_attribution(base, target, squared_sum, data, method=method, n_steps=3, units=units)
        fast = attribute((base, target), squared_sum, data, 2, method=method, n_steps=3)
        assert (fast.loss_base, fast.loss_target) == pytest.approx((slow.loss_base, slow.loss_target), rel=1e-12)
        assert (fast.total, fast.remainder) == pytest.approx((slow.total, slow.remainder), rel=1e-10)
        for reduction in REDUCTIONS:
            for name, scores in slow.scores[reduction].items():
                for place, value in scores.items():
                    assert float(fast.scores(reduction)[name][place]) == pytest.approx(value, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("number", [2, 3, 7, 100])
    def test_are_those_of_single_passes_for_any_number(self, number: int) -> None:
        ends, data = pair(), [image(seed) for seed in range(7)]
        assert_same(attribute(ends, squared_sum, data, 1), attribute(ends, squared_sum, data, number))

    def test_hold_for_float32_bf16_and_complex_weights(self) -> None:
        ends, data = pair(plain_network), small(5)
        loss = lambda model, x: model(x).float().square().sum()  # noqa: E731
        assert_same(attribute(ends, loss, data, 1), attribute(ends, loss, data, 3), 2e-5, 1e-6)
        one, two = (attribute(ends, loss, data, number, precision="bf16") for number in (1, 3))
        torch.testing.assert_close(two.path_losses, one.path_losses, rtol=2e-2, atol=0)
        lines = pair(lambda: nn.Linear(3, 2, dtype=torch.complex128))
        rows = [torch.randn(3, dtype=torch.complex128) for _ in range(4)]
        modulus = lambda model, x: model(x).abs().square().sum()  # noqa: E731
        assert_same(attribute(lines, modulus, rows, 1), attribute(lines, modulus, rows, 4))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).eval(),
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.InstanceNorm2d(4)),
            lambda: nn.Sequential(weight_norm(nn.Conv2d(1, 2, 3)), nn.Upsample(scale_factor=2)),
            lambda: nn.Sequential(nn.Flatten(0, 2), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)),
        ],
    )  # fmt: skip
    def test_hold_for_other_layers(self, make: Callable[[], nn.Module]) -> None:
        ends, data = pair(lambda: make().double()), [image(seed) for seed in range(5)]
        loss = lambda model, x: model(x)[..., :3].cos().square().sum()  # noqa: E731
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            assert_same(attribute(ends, loss, data, 1), attribute(ends, loss, data, 3), 1e-7, 1e-9)

    def test_tied_unmoved_and_unselected_parameters(self) -> None:
        def make() -> nn.Module:
            first, second = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
            second.weight = first.weight
            return nn.Sequential(first, nn.SiLU(), second, nn.Conv2d(1, 2, 1)).double()

        base, target = pair(make)
        target[3].load_state_dict(base[3].state_dict())
        results = [attribute((base, target), squared_sum, [image(s) for s in range(4)], number) for number in (1, 4)]
        assert_same(*results)

    def test_equal_ends_score_nothing(self) -> None:
        base, _ = pair()
        with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
            result = attribute((base, base), squared_sum, [image(0), image(1)], 2)
        assert all(not scores.any() for scores in result.scores().values())


class TestWhatSharesAPass:
    def test_every_place_is_one_call_of_the_loss(self) -> None:
        width = Width()

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            width.look(x)
            return squared_sum(model, x)

        attribute(pair(), loss, [image(seed) for seed in range(8)], 4)
        # the first sample alone at base and at one node, then two ends and four nodes for each half
        assert width.seen == [1, 1] + 12 * [4]

    def test_other_shapes_types_and_numbers_begin_a_new_pass(self) -> None:
        width = Width()

        def loss(model: nn.Module, sample: dict[str, object]) -> Tensor:
            width.look(sample["x"])
            return sample["scale"] * squared_sum(model, sample["x"].double())

        data = [{"x": image(0, size), "scale": 1, "name": None} for size in (6, 6, 6, 5, 5)]
        data += [{"x": image(1, 5), "scale": 2.5, "name": None}, {"x": image(1, 5).float(), "scale": 2.5, "name": None}]
        data += [{"x": image(1, 5), "scale": torch.tensor(scale), "name": "a"} for scale in (1.0, 2.0)]
        together = attribute(pair(), loss, data, 100)
        assert width.seen == [1, 1] + 6 * [3] + 6 * [2] + 12 * [1] + 6 * [2]
        assert_same(attribute(pair(), loss, data, 1), together)

    def test_samples_without_tensors_and_no_data_are_single_passes(self) -> None:
        ends = pair()
        data = [image(0), image(1)]
        indexed = attribute(ends, lambda model, index: squared_sum(model, data[index]), [0, 1], 4)
        assert_same(attribute(ends, squared_sum, data, 1), indexed)
        without = attribute(ends, lambda model: squared_sum(model, data[0]), None, 4)
        assert_same(attribute(ends, squared_sum, data[:1], 1), without)

    def test_progress_counts_the_passes_of_all_samples(self) -> None:
        seen: list[tuple[int, int | None]] = []
        data = [image(seed, size) for seed, size in enumerate([5, 5, 5, 6, 6])]
        attribute(pair(), squared_sum, data, 2, progress=lambda *now: seen.append(now))
        assert seen == [(done, 20) for done in range(1, 21)]

    def test_the_old_name_works_and_says_the_new_one(self) -> None:
        ends, data = pair(), [image(seed) for seed in range(4)]
        expected = attribute(ends, squared_sum, data, 2)
        with pytest.warns(FutureWarning, match="say internal_batch_size=2") as seen:
            found = FilterAttributor(ends[0]).attribute(*ends, squared_sum, data, n_steps=4, samples_per_pass=2)
        assert [one.filename for one in seen if one.category is FutureWarning] == [__file__]
        assert dict(found.means["sum"]).keys() == dict(expected.means["sum"]).keys()
        for name, scores in expected.means["sum"].items():
            assert torch.equal(found.means["sum"][name], scores)
        with pytest.raises(SettingError, match="old name of internal_batch_size=; got 2 and 3"):
            attribute(ends, squared_sum, data, 3, samples_per_pass=2)


class Doubled(torch.autograd.Function):
    """What users write; vmap would need one line more."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(_ctx: object, slope: Tensor) -> Tensor:
        return 2 * slope


class TestRefusals:
    @pytest.mark.parametrize("number", [0, -1, True, 2.0, "4"])
    def test_the_number_must_be_whole_and_positive(self, number: object) -> None:
        with pytest.raises(SettingError, match="internal_batch_size must be a whole number of at least 1"):
            attribute(pair(), squared_sum, [image()], number)

    @pytest.mark.parametrize("options", [{"aggregate": "pooled"}, {"method": "adaptive", "n_steps": 31}])
    def test_nodes_must_be_the_same_for_all_samples(self, options: dict[str, object]) -> None:
        with pytest.raises(SettingError, match="internal_batch_size=2 needs the same nodes for all samples"):
            attribute(pair(), squared_sum, [image()], 2, **options)

    def test_waypoints_are_refused(self) -> None:
        with pytest.raises(SettingError, match="internal_batch_size=2 needs a straight path"):
            attribute(pair(), squared_sum, [image()], 2, waypoints=[smooth_network()])

    @pytest.mark.parametrize(
        ("make", "loss", "cause"),
        [
            (lambda: plain_network(nn.Dropout(0.5)), squared_sum, "it draws random numbers"),
            (lambda: plain_network(nn.BatchNorm2d(2)), squared_sum, "it writes in place"),
            (plain_network, lambda m, x: m(x + torch.rand(8)).sum(), "it draws random numbers"),
            (plain_network, lambda m, x: m(x).sum() * m(x).sum().item(), "it reads values of tensors"),
            (plain_network, lambda m, x: m(x).sum() if m(x).sum() > 0 else m(x).mean(), "it reads values of tensors"),
            (plain_network, lambda m, x: m(x)[m(x) > 0].sum(), "it reads values of tensors"),
            (plain_network, lambda m, x: m(x).sum() * len(x.numpy()), "it reads values of tensors"),
            (plain_network, lambda m, x: checkpoint(m, x, use_reentrant=False).sum(), "activation checkpointing"),
            (plain_network, lambda m, x: Doubled.apply(m(x)).sum(), "no rule for vmap"),
            (plain_network, lambda m, x: m(x.requires_grad_()).sum(), "derivatives of its own"),
            (plain_network, lambda m, x: m(x * random.random()).sum(), "Python's or NumPy's random numbers"),
            (plain_network, lambda m, x: m(x * float(np.random.rand())).sum(), "NumPy's random numbers"),  # noqa: NPY002
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )  # fmt: skip
    def test_a_loss_that_cannot_be_mapped_is_named_at_once(
        self, make: Callable[[], nn.Module], loss: Callable[..., Tensor], cause: str
    ) -> None:
        ends, calls = pair(make), []

        def counted(model: nn.Module, x: Tensor) -> Tensor:
            calls.append(1)
            return loss(model, x)

        before = Fingerprint(ends[0])
        with pytest.raises(LossError, match=f"internal_batch_size.*{cause}|{cause}.*internal_batch_size"):
            attribute(ends, counted, small(4), 4)
        assert before.changes(ends[0]) == []
        assert len(calls) <= 4
        attribute(ends, loss, small(4), 1)

    def test_what_is_unknown_is_quoted(self) -> None:
        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if _functorch.is_functorch_wrapped_tensor(x):
                raise NotImplementedError("my own kernel knows no batches")
            return squared_sum(model, x)

        with pytest.raises(
            LossError, match=r"PyTorch says: my own kernel knows no batches\. Leave internal_batch_size out"
        ):
            attribute(pair(plain_network), loss, small(2), 2)

    def test_a_loss_with_a_memory_of_its_own_is_found_out(self) -> None:
        calls: list[int] = []

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            calls.append(1)
            return squared_sum(model, x) * (1 if len(calls) < 4 else 2)

        with pytest.raises(LossError, match=r"the first sample gets [0-9.e-]+ instead of [0-9.e-]+ at t = 0"):
            attribute(pair(plain_network), loss, small(2), 2)

    def test_a_gradient_that_gets_lost_is_found_out(self) -> None:
        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if not _functorch.is_functorch_wrapped_tensor(x):
                return squared_sum(model, x)
            with torch.no_grad():
                hidden = model[:2](x)
            return model[2:](hidden).square().sum()

        with pytest.raises(LossError, match="the first sample gets a gradient that is off by"):
            attribute(pair(plain_network), loss, small(2), 2)

    def test_errors_of_the_user_pass_through(self) -> None:
        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if _functorch.is_functorch_wrapped_tensor(x):
                raise ConnectionError("the power is gone")
            return squared_sum(model, x)

        ends = pair(plain_network)
        before = Fingerprint(ends[0])
        with pytest.raises(ConnectionError, match="the power is gone"):
            attribute(ends, loss, small(2), 2)
        assert before.changes(ends[0]) == []
        attribute(ends, squared_sum, small(2), 2)

    def test_a_loss_that_trains_is_refused(self) -> None:
        ends = pair(plain_network)

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if _functorch.is_functorch_wrapped_tensor(x):
                model[0].weight = nn.Parameter(torch.zeros(4, 1, 3, 3))
            return squared_sum(model, x)

        before = Fingerprint(ends[0])
        with pytest.raises(ModelChangedError, match=r"0\.weight"):
            attribute(ends, loss, small(2), 2)
        assert before.changes(ends[0]) == []

    @pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8])
    def test_an_interrupt_leaves_everything_as_it_was(self, at: int) -> None:
        ends, calls = pair(plain_network), []

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            calls.append(1)
            output = squared_sum(model, x)
            if len(calls) == at + 1:
                raise KeyboardInterrupt
            return output

        before = Fingerprint(ends[0])
        with pytest.raises(KeyboardInterrupt):
            attribute(ends, loss, small(4), 2)
        assert before.changes(ends[0]) == []
        assert not _functorch.is_functorch_wrapped_tensor(torch.zeros(1) + 1)


class TestChecks:
    def test_a_sample_that_is_not_finite_is_named_with_its_place(self) -> None:
        ends, data = pair(plain_network), small(6)
        data[4] = data[4] / 0
        with pytest.raises(NonFiniteError, match=r"at t = 0 \(sample 4\), first seen in the output of '0'"):
            attribute(ends, squared_sum, data, 3)
        roots = lambda model, x: (model(x) * 0).square().sum().sqrt() + x.sum()  # noqa: E731
        with pytest.raises(NonFiniteError, match=r"gradient of .* at t = .*\(sample 0\)"):
            attribute(ends, roots, small(6), 3)

    def test_unused_parameters_are_named_or_allowed(self) -> None:
        ends = pair(plain_network)
        loss = lambda model, x: model[0](x).square().sum()  # noqa: E731
        with pytest.raises(LossError, match=r"2\.weight.*no gradient of the loss reaches"):
            attribute(ends, loss, small(4), 2)
        one, two = (attribute(ends, loss, small(4), number, allow_unused=["2.*"]) for number in (1, 2))
        assert_same(one, two, 2e-5, 1e-6)

    @pytest.mark.parametrize("value", [None, 3.0, torch.zeros(3), torch.zeros(())])
    def test_a_loss_that_is_none_is_refused_as_ever(self, value: object) -> None:
        with pytest.raises(LossError, match=r"scalar|depends on no parameter"):
            attribute(pair(plain_network), lambda *_: value, small(4), 2)

    def test_a_warning_tells_of_too_few_nodes(self) -> None:
        with pytest.warns(FilterAttrWarning, match="the attributions should sum to the loss change"):
            attribute(pair(), squared_sum, [image(0), image(1)], 2, method="riemann_right", n_steps=2)


class TestGoingOn:
    def test_a_later_group_that_cannot_be_mapped_loses_nothing(self) -> None:
        def loss(model: nn.Module, sample: tuple[Tensor, str]) -> Tensor:
            value = squared_sum(model, sample[0])
            return value * (1 + float(value.detach() > 0)) if sample[1] == "hard" else value

        ends = pair()
        data = [(image(seed), "easy") for seed in range(3)] + [(image(seed), "hard") for seed in range(3)]
        with pytest.warns(
            FilterAttrWarning, match=r"reads values of tensors.*going on with internal_batch_size=1"
        ) as seen:
            together = attribute(ends, loss, data, 3)
        assert seen[0].filename == __file__
        assert_same(attribute(ends, loss, data, 1), together)

    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_a_lack_of_memory_halves_the_number_until_it_fits(self, limit: int) -> None:
        width = Width()

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if width.look(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return squared_sum(model, x)

        ends, data = pair(), [image(seed) for seed in range(13)]
        before = Fingerprint(ends[0])
        with pytest.warns(FilterAttrWarning, match="need more memory in one pass than there is") as seen:
            together = attribute(ends, loss, data, 8)
        fits = {1: 1, 2: 2, 3: 2}[limit]
        *_, last = [text for one in seen if "more memory" in (text := str(one.message))]
        assert f"going on with internal_batch_size={fits}" in last
        assert max(width.seen[width.seen.index(8) + 2 :]) <= 4
        assert before.changes(ends[0]) == []
        assert_same(attribute(ends, squared_sum, data, 1), together)

    def test_memory_that_runs_out_later_loses_no_finished_sample(self) -> None:
        width, calls = Width(), []

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if width.look(x) == 4:
                calls.append(1)
                if len(calls) > 9:  # in the second group
                    raise MemoryError("gone")
            return squared_sum(model, x)

        ends, data = pair(), [image(seed) for seed in range(12)]
        with pytest.warns(FilterAttrWarning, match="4 samples need more memory .* going on with internal_batch_size=2"):
            together = attribute(ends, loss, data, 4)
        assert len(calls) == 10
        assert_same(attribute(ends, squared_sum, data, 1), together)

    def test_a_single_sample_that_does_not_fit_gets_the_note_of_single_passes(self) -> None:
        error = torch.OutOfMemoryError("CUDA out of memory.")

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise error
            return squared_sum(model, x)

        data = [torch.rand(5, 1, 8, 8) for _ in range(4)]
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            attribute(pair(plain_network), loss, data, 4)
        assert "one pass at t = 0 (sample 0), which holds tensors of shape (5, 1, 8, 8)." in error.__notes__[0]

    @pytest.mark.parametrize("at", [0, 3, 5])
    def test_a_broken_job_goes_on_with_the_same_bits(self, tmp_path: Path, at: int) -> None:
        ends, path = pair(plain_network), tmp_path / "job.safetensors"
        fails, widths = [True], Width()

        def samples():
            for number, sample in enumerate(small(7)):
                if number == at and fails[0]:
                    raise ConnectionError("the power is gone")
                yield sample

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            widths.look(x)
            return squared_sum(model, x)

        whole = attribute(ends, loss, small(7), 2)
        with pytest.raises(ConnectionError, match="the power is gone"):
            attribute(ends, loss, samples(), 2, checkpoint=path)
        fails[0] = False
        widths.seen.clear()
        resumed = attribute(ends, loss, samples(), 2, checkpoint=path)
        done = at // 2 * 2
        # what is finished is asked once at both ends; the first new sample that shares a pass is compared again
        groups, single = divmod(7 - done, 2)
        assert len(widths.seen) == 2 * bool(done) + 2 * bool(groups) + 6 * (groups + single)
        for one, two in ((whole, tmp_path / "whole"), (resumed, tmp_path / "resumed")):
            one.save(two)
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
        widths.seen.clear()
        attribute(ends, loss, samples(), 2, checkpoint=path)
        assert widths.seen == [1, 1]

    def test_another_number_goes_on_with_a_warning(self, tmp_path: Path) -> None:
        ends, path = pair(), tmp_path / "job.safetensors"
        data = [image(seed) for seed in range(7)]
        attribute(ends, squared_sum, data[:3], 2, checkpoint=path)
        with pytest.warns(FilterAttrWarning, match="begun with samples_per_pass 2, now 4"):
            result = attribute(ends, squared_sum, data, 4, checkpoint=path)
        assert_same(attribute(ends, squared_sum, data, 1), result)


def test_interrupts_inside_of_the_library_leave_no_trace() -> None:
    ends, data = pair(plain_network), small(4)
    before = Fingerprint(ends[0])

    def run(injection: Injection) -> bool:
        try:
            with injection.armed():
                attribute(ends, squared_sum, data, 2, n_steps=2)
        except KeyboardInterrupt:
            return True
        return False

    def is_ours(name: str) -> bool:
        return name.startswith(SOURCES)

    expected = attribute(ends, squared_sum, data, 2, n_steps=2).scores().flat()
    dry = Injection(is_ours)
    run(dry)
    for at in range(1, dry.count, dry.count // 60):
        injection = Injection(is_ours, at)
        assert run(injection)
        assert before.changes(ends[0]) == [], injection.place
    assert torch.equal(attribute(ends, squared_sum, data, 2, n_steps=2).scores().flat(), expected)


@needs_glibc
@pytest.mark.slow
def test_what_is_held_while_the_loss_runs_is_one_copy_for_each_sample_of_a_pass() -> None:
    width, layers = 256, 8
    one = layers * width * width * 4

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def copies(number: int) -> float:
        ends, data = pair(make), [torch.rand(1, width) for _ in range(8)]
        attributor, seen = FilterAttributor(ends[0], unit="filter"), []

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            seen.append(allocated())
            return squared_sum(model, x)

        before = allocated()
        attributor.attribute(*ends, loss, data, n_steps=2, internal_batch_size=number)
        return (max(seen) - before) / one

    copies(2)  # PyTorch loads a good deal when it first maps anything
    two, eight = copies(2), copies(8)
    assert 6 - 0.3 < eight - two < 6 + 0.3
