"""Small tensors lie side by side in one buffer, and nobody can tell: not the loss, not its gradients, not the bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, LossError
from filterattr.integral.gradients import GradientSums
from filterattr.integral.path import SMALL, Path, side_by_side

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")


def pair(build) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return build(), build()


def mixed() -> nn.Module:
    """Sizes of one entry to more than a small one has, two types, and a channels_last filter."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 60, 3), nn.Conv2d(60, 30, 3), nn.PReLU(), nn.Conv2d(30, 1, 1)
    )
    layers[1].to(memory_format=torch.channels_last)
    layers[4].double()
    return layers


def loss_of_mixed(model: nn.Module, image: Tensor) -> Tensor:
    return model[4](model[:4](image).double()).square().sum()


def one_by_one(base: nn.Module, target: nn.Module, loss, nodes: list[tuple[float, float]]) -> dict[str, Tensor]:
    """Signed attributions of every weight with a copy of the model for every node, each weight moved by itself."""
    totals = {name: torch.zeros_like(value) for name, value in base.named_parameters()}
    ends = dict(base.named_parameters()), dict(target.named_parameters())
    for t, coefficient in nodes:
        model = copy.deepcopy(base)
        for name, value in model.named_parameters():
            value.data.copy_(torch.lerp(ends[0][name].detach(), ends[1][name].detach(), t))
        loss(model).backward()
        for name, value in model.named_parameters():
            totals[name].add_(value.grad, alpha=coefficient)
    return {
        name: total.mul_(ends[1][name].detach() - ends[0][name].detach()).double() for name, total in totals.items()
    }


def test_the_bits_are_those_of_tensors_one_by_one() -> None:
    base, target = pair(mixed)
    assert min(value.numel() for value in base.parameters()) == 1
    assert max(value.numel() for value in base.parameters()) > SMALL
    image = torch.rand(1, 3, 9, 9)
    attributor = FilterAttributor(base, unit="weight", select="*")
    found = attributor.attribute(
        base, target, lambda model: loss_of_mixed(model, image), n_steps=2, method="riemann_middle"
    )
    expected = one_by_one(base, target, lambda model: loss_of_mixed(model, image), [(0.25, 0.5), (0.75, 0.5)])
    for name, value in found.scores("sum").items():
        assert torch.equal(value, expected[name]), name


def test_the_loss_sees_leaves_of_the_models_layouts_that_begin_where_fresh_memory_does() -> None:
    base, target = pair(mixed)
    seen: list[dict[str, nn.Parameter]] = []

    def loss(model: nn.Module) -> Tensor:
        seen.append(dict(model.named_parameters()))
        return loss_of_mixed(model, torch.ones(1, 3, 9, 9))

    FilterAttributor(base).attribute(base, target, loss, n_steps=1)
    for name, own in base.named_parameters():
        for leaves in seen:
            assert leaves[name].stride() == own.stride()
            assert leaves[name].is_leaf
            assert leaves[name].data_ptr() % 64 == 0
    assert len({id(leaves["0.weight"]) for leaves in seen}) == len(seen)


def test_a_write_to_one_leaf_is_no_write_to_another() -> None:
    base, target = pair(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))

    def loss(model: nn.Module) -> Tensor:
        value = model[0].weight.square().sum()  # keeps the weight for the backward pass
        with torch.no_grad():
            model[1].bias.clamp_(-10, 10)
        return value + model(torch.ones(1, 3)).sum()

    found = FilterAttributor(base).attribute(base, target, loss, n_steps=16)
    assert found.completeness_error < 1e-5


def test_sparse_gradients_and_missing_ones_leave_their_neighbours_alone() -> None:
    def build() -> nn.Module:
        return nn.ModuleDict(
            {"words": nn.Embedding(9, 4, sparse=True), "idle": nn.Linear(2, 2), "head": nn.Linear(4, 2)}
        )

    base, target = pair(build)
    words = torch.tensor([1, 1, 5])
    loss = lambda model: model["head"](model["words"](words)).square().sum()  # noqa: E731
    with pytest.raises(LossError, match=r"'idle\.weight', 'idle\.bias', but no gradient"):
        FilterAttributor(base).attribute(base, target, loss)
    sparse = FilterAttributor(base).attribute(base, target, loss, allow_unused="idle.*").scores("sum")
    for end in (base, target):
        end["words"].sparse = False
    dense = FilterAttributor(base).attribute(base, target, loss, allow_unused="idle.*").scores("sum")
    assert all(torch.equal(value, dense[name]) for name, value in sparse.items())
    assert sparse["words.weight"].abs().sum() > 0
    assert sparse["head.weight"].abs().sum() > 0


def test_what_does_not_move_keeps_its_signs_of_zero() -> None:
    layers = [nn.Linear(2, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer.bias.data.copy_(torch.tensor([-0.0, 0.0]))
    layers[1].weight.data.add_(1)
    signs: list[Tensor] = []

    def loss(model: nn.Module) -> Tensor:
        signs.append(torch.signbit(model.bias.detach()))
        return model(torch.ones(1, 2)).sum()

    FilterAttributor(layers[0]).attribute(layers[0], layers[1], loss, n_steps=3)
    assert all(sign.tolist() == [True, False] for sign in signs)


def test_the_ends_of_a_path_become_parts_of_one_buffer_each() -> None:
    path = Path({"a": torch.zeros(3), "b": torch.ones(2, 2)}, {"a": torch.ones(3), "b": torch.zeros(2, 2)}, {})
    line, point, places = path.side_by_side()
    line.write(0.25, point)
    assert {name: value.tolist() for name, value in places.items()} == {"a": [0.25] * 3, "b": [[0.75] * 2] * 2}
    assert path.base["a"].untyped_storage().data_ptr() == path.base["b"].untyped_storage().data_ptr()
    assert path.base["b"].eq(1).all()
    assert len(point) == 1


def test_many_small_sums_are_added_at_once() -> None:
    sums = GradientSums({str(number): torch.empty(SMALL) for number in range(20)})
    leaves = {name: nn.Parameter(torch.empty(SMALL)) for name in sums.sums}
    for number, leaf in enumerate(leaves.values()):
        leaf.grad = torch.full((SMALL,), float(number))
    sums.collect(leaves, 0.5)
    assert all(value.eq(number / 2).all() for number, value in enumerate(sums.sums.values()))
    assert sums.reached == set(leaves)
    sums.reset()
    assert not any(value.any() for value in sums.sums.values())


def test_buffers_are_one_for_each_type() -> None:
    tensors = {"a": torch.zeros(5), "b": torch.zeros(2, dtype=torch.float64), "c": torch.zeros(())}
    buffers, views = side_by_side(tensors)
    assert [buffer.dtype for buffer in buffers] == [torch.float32, torch.float64]
    assert [buffer.numel() for buffer in buffers] == [128, 64]  # each begins at a multiple of 64 entries
    assert {name: view.shape for name, view in views.items()} == {name: value.shape for name, value in tensors.items()}
