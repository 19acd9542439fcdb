"""precision="bf16": autocast around the loss alone, leaves and sums in their own types, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, LossError, SettingError
from filterattr.model.context import Autocast

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))


def picture() -> Tensor:
    return torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def error(model: nn.Module) -> Tensor:
    return model(picture()).float().square().sum()


def autocast_state() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def test_the_loss_runs_under_autocast_and_the_sums_are_those_of_autocast_by_hand() -> None:
    base, target = network(), network()

    def by_hand(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return error(model)

    found = FilterAttributor(base).attribute(base, target, error, precision="bf16")
    expected = FilterAttributor(base).attribute(base, target, by_hand)
    plain = FilterAttributor(base).attribute(base, target, error)
    assert all(torch.equal(value, expected.scores()[name]) for name, value in found.scores().items())
    assert found.loss_base == expected.loss_base != plain.loss_base
    torch.testing.assert_close(found.scores().flat(), plain.scores().flat(), rtol=0.1, atol=0.02 * abs(plain.total))
    assert found.scores()["0.weight"].dtype == torch.float64


def test_what_the_loss_sees_is_bfloat16_with_float32_leaves() -> None:
    base, target, seen = network(), network(), set()

    def loss(model: nn.Module) -> Tensor:
        output = model(picture())
        seen.add((output.dtype, model[0].weight.dtype, torch.is_autocast_enabled("cpu")))
        return output.float().square().sum()

    FilterAttributor(base).attribute(base, target, loss, n_steps=2, precision="bf16")
    assert seen == {(torch.bfloat16, torch.float32, True)}


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_autocast_comes_back_and_backward_does_not_see_ours(fails: bool) -> None:
    base, target, inside = network(), network(), []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, value):
            return value.clone()

        @staticmethod
        def backward(_ctx, gradient):
            inside.append(torch.is_autocast_enabled("cpu"))
            return gradient

    def loss(model: nn.Module) -> Tensor:
        if fails:
            raise KeyError("mine")
        return Probe.apply(error(model))

    def run() -> None:
        FilterAttributor(base).attribute(base, target, loss, n_steps=2, precision="bf16")

    before = autocast_state()
    if fails:
        with pytest.raises(KeyError, match="mine"):
            run()
    else:
        run()
        assert inside == [False, False]
    assert autocast_state() == before
    with torch.autocast("cpu", torch.float16, enabled=False):
        within = autocast_state()
        if not fails:
            run()
        assert autocast_state() == within


def test_a_mode_that_is_restored_twice_or_never_entered_changes_nothing() -> None:
    before = autocast_state()
    mode = Autocast(["cpu"])
    mode.restore()
    mode.enter()
    assert autocast_state() == (True, torch.bfloat16)
    mode.restore()
    mode.restore()
    assert autocast_state() == before


@pytest.mark.parametrize("precision", ["fp16", torch.bfloat16, 16])
def test_other_precisions_are_refused(precision: object) -> None:
    base, target = network(), network()
    with pytest.raises(SettingError, match='precision must be None or "bf16"; got'):
        FilterAttributor(base).attribute(base, target, error, precision=precision)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_types_that_autocast_leaves_alone_are_refused_by_name(dtype: torch.dtype) -> None:
    base, target = (nn.Linear(2, 2).to(dtype) for _ in range(2))
    with pytest.raises(SettingError, match=rf"needs float32 parameters, as autocast leaves {dtype} alone; found 'weig"):
        FilterAttributor(base).attribute(base, target, lambda model: model.weight.abs().sum(), precision="bf16")


def test_a_loss_that_itself_comes_out_in_bfloat16_is_refused() -> None:
    base, target = network(), network()
    with pytest.raises(LossError, match=r"must come out in float32; got torch.bfloat16.*model\(x\).float\(\)"):
        FilterAttributor(base).attribute(base, target, lambda model: model(picture()).sum(), precision="bf16")


def test_a_checkpoint_knows_its_precision(tmp_path) -> None:
    base, target = network(), network()
    options = {"checkpoint": tmp_path / "job.safetensors", "n_steps": 2}
    data = [picture()]
    attributor = FilterAttributor(base)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).float().square().sum()

    attributor.attribute(base, target, loss, data, precision="bf16", **options)
    with pytest.raises(ValueError, match="belongs to another job: it has precision bf16, here None"):
        attributor.attribute(base, target, loss, data, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_cuda() -> None:
    base, target = network().cuda(), network().cuda()

    def loss(model: nn.Module) -> Tensor:
        output = model(picture().cuda())
        assert output.dtype == torch.bfloat16
        return output.float().square().sum()

    FilterAttributor(base).attribute(base, target, loss, n_steps=2, precision="bf16")
    assert not torch.is_autocast_enabled("cuda")
