"""Small networks for the cases, and the numbers they must have by the slowest and plainest computation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.integral.quadrature import Quadrature


def ends(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A model, and two state dicts of two others like it."""
    model, base, target = (build() for _ in range(3))
    return model, base.state_dict(), target.state_dict()


def convolutions(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Conv2d(3, 2, 3)).to(dtype)


def dropping() -> nn.Module:
    """Draws random numbers in every forward pass."""
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def picture(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(7)).to(dtype)


def squared(inputs: Tensor) -> Callable[[nn.Module], Tensor]:
    """The loss most cases use."""
    return lambda model: model(inputs).square().sum()


def by_hand(
    model: nn.Module,
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    loss: Callable[[Any], Tensor],
    n_steps: int = 8,
    method: str = "gausslegendre",
) -> dict[str, Tensor]:
    """The attribution of every weight: a fresh copy of the model for every node, nothing shared, float64 sums."""
    rule = Quadrature.rule(method, n_steps)
    names = [name for name, _ in model.named_parameters()]
    values = dict.fromkeys(names, 0.0)
    for t, coefficient in zip(rule.nodes, rule.coefficients, strict=True):
        network = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(_wide(base[name]) + t * (_wide(target[name]) - _wide(base[name])))
                parameter.requires_grad_()
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(loss(network), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            change = _wide(target[name]) - _wide(base[name])
            product = _wide(gradient.to_dense() if gradient.is_sparse else gradient).conj() * change
            values[name] = values[name] + coefficient * (product.real if product.is_complex() else product)
    return values


def assert_values(outcome: Any, expected: Mapping[str, Tensor], rtol: float = 1e-9) -> None:
    """Compare every weight's attribution."""
    assert list(outcome.values) == list(expected)
    for name, value in expected.items():
        size = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(outcome.values[name].double(), value.double(), rtol=rtol, atol=rtol * size)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
