"""Masks and channels of a selection, as pruning libraries take them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

from filterattr import FilterAttributor, blend
from filterattr.analysis import magnitude, pruning_masks


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3))


def test_torch_prunes_by_the_masks_as_a_blend_with_zeros() -> None:
    model, inputs = network(), torch.randn(1, 2, 8, 8)
    selection = magnitude(FilterAttributor(model), model).top(0.4)
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    expected = network()
    expected.load_state_dict(blend(model, zeros, selection))
    for name, mask in pruning_masks(selection).items():
        module, _, local = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(module), local, mask)
    assert torch.equal(model(inputs), expected(inputs))
    masked = sum(int((module.weight_mask == 0).sum()) for module in model if hasattr(module, "weight_mask"))
    assert masked == 9 * selection.count
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).square().sum().backward()
    optimizer.step()
    assert all(
        (module.weight[module.weight_mask == 0] == 0).all() for module in model if hasattr(module, "weight_mask")
    )


def test_keeping_prunes_all_others() -> None:
    model = network()
    selection = magnitude(FilterAttributor(model), model).top(0.4)
    masks, kept = pruning_masks(selection), pruning_masks(selection, keep=True)
    assert all(torch.equal(masks[name], ~kept[name]) for name in masks)


def test_channels_for_structured_pruning_are_where_a_filter_selection_says() -> None:
    """torch-pruning takes lists of output channels, ``idxs``. It is not installed: this is its documented form."""
    model = network()
    selection = magnitude(FilterAttributor(model, unit="filter"), model).top(3)
    idxs = {name: marks.nonzero().flatten().tolist() for name, marks in selection.items()}
    assert sum(map(len, idxs.values())) == 3
    norms = {"0.weight": model[0].weight.abs().sum((1, 2, 3)), "2.weight": model[2].weight.abs().sum((0, 2, 3))}
    chosen = [(name, place) for name, places in idxs.items() for place in places]
    best = sorted(
        ((value, name, place) for name in norms for place, value in enumerate(norms[name].tolist())), reverse=True
    )
    assert sorted(chosen) == sorted((name, place) for _, name, place in best[:3])
