r"""Sums over the nodes of a path that need no more memory than two of their terms.

.. math:: \sum_j g_j \cdot (v_{j+1} - v_j) \approx \int g \cdot dv
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

Product: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_KERNELS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_WEIGHT_GRADIENTS = {3: grad.conv1d_weight, 4: grad.conv2d_weight, 5: grad.conv3d_weight}


class ConductanceSum:
    r"""Add up :math:`\sum_j ((1 - \lambda)\, g_j + \lambda\, g_{j+1}) \cdot (v_{j+1} - v_j)` in float64.

    Values come first and derivatives second, for one or more nodes at a time. With :math:`\lambda = 0` it is the left
    rule, whose error falls with the number of nodes; with :math:`\lambda = 1/2` the trapezoid rule, whose error falls
    with its square.

    Args:
        product: What "times" means; it is given a derivative and a step.
        late: :math:`\lambda`, the share of the derivative at the far end of a step.

    Example:
        >>> sums = ConductanceSum(torch.mul)
        >>> for value, derivative in ((0.0, 1.0), (2.0, 3.0), (3.0, 5.0)):
        ...     sums.see(torch.tensor([[value]]))
        ...     sums.take(torch.tensor([[derivative]]))
        >>> sums.total  # 1 * (2 - 0) + 3 * (3 - 2)
        tensor([5.], dtype=torch.float64)
    """

    def __init__(self, product: Product, late: float = 0.0) -> None:
        self._total: Tensor | None = None
        self._product = product
        self._late = late
        self._values: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None
        self._step: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum so far, in the shape of a product."""
        if self._total is None:
            raise RuntimeError("a step needs two nodes.")
        return self._total

    def see(self, values: Tensor) -> None:
        """Take the values of the next nodes, shape ``(nodes, ...)``; what belonged to the last ones is let go."""
        self._values = values
        if self._last is not None:
            value, derivative = self._last
            step = single(values[0]) - value
            self._add(1 - self._late, derivative, step)
            self._step = step if self._late else None
            self._last = None

    def take(self, derivatives: Tensor) -> None:
        """Take the derivatives at the nodes whose values came last, in the same shape."""
        if self._values is None:
            raise RuntimeError("see() comes before take().")
        if self._step is not None:
            self._add(self._late, single(derivatives[0]), self._step)
        for j in range(len(self._values) - 1):
            step = single(self._values[j + 1]) - single(self._values[j])
            mixed = torch.lerp(single(derivatives[j]), single(derivatives[j + 1]), self._late)
            self._add(1.0, mixed, step)
        self._last = single(_owned(self._values)), single(_owned(derivatives))
        self._values = self._step = None

    def _add(self, coefficient: float, derivative: Tensor, step: Tensor) -> None:
        term = self._product(derivative, step)
        if self._total is None:
            self._total = torch.zeros_like(term, dtype=torch.float64)
        self._total.add_(term, alpha=coefficient)


class KernelSplit:
    r"""The product that splits a layer's output over its input channels: one number per sample and kernel.

    A convolution or linear layer puts out :math:`y_o = \sum_i W_{oi} * x_i + b_o`, so a step of its input moves its
    output by :math:`\sum_i W_{oi} * \Delta x_i`, and

    .. math:: \langle g_o, W_{oi} * \Delta x_i \rangle = \langle \partial_{W_{oi}} \langle g, W * \Delta x \rangle,
       W_{oi} \rangle

    needs one gradient of the weights instead of one feature map per kernel.

    Args:
        layer: The layer.
        n_samples: Number of samples; rows of the layer's input and output belong to them in blocks.
        arrange: Brings the rows of either into such blocks.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> step, derivative = torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0]])
        >>> kernels = KernelSplit(layer, 1)(derivative, step)
        >>> torch.testing.assert_close(kernels[0], 2 * layer.weight.detach() * step)
    """

    def __init__(self, layer: nn.Module, n_samples: int, arrange: Callable[[Tensor], Tensor] | None = None) -> None:
        self._layer = layer
        self._n_samples = n_samples
        self._arrange = arrange

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer has kernels."""
        return isinstance(layer, _WITH_KERNELS)

    def explains(self, argument: Tensor, output: Tensor) -> bool:
        """Whether a layer puts out what its weight and bias make of what it is given, up to rounding.

        Args:
            argument: What the layer was given.
            output: What it put out.

        Returns:
            ``False`` for layers that compute with another weight, or where hooks change what they put out.
        """
        kind = next(kind for kind in _WITH_KERNELS if isinstance(self._layer, kind))
        with torch.no_grad():
            expected: Tensor = kind.forward(self._layer, argument)  # type: ignore[arg-type]
        if expected.shape != output.shape:
            return False
        precision = max(torch.finfo(tensor.dtype).eps for tensor in (argument, output, expected))
        gap = float((expected.double() - output.double()).abs().max())
        return gap <= math.sqrt(precision) * float(output.double().abs().max())

    def __call__(self, derivative: Tensor, step: Tensor) -> Tensor:
        """Multiply.

        Args:
            derivative: With respect to the layer's output, of its shape.
            step: Of the layer's input, of its shape.

        Returns:
            Shape ``(n_samples, out, in)``, with input channels counted inside their group.
        """
        weight = single(self._layer.weight.detach())  # type: ignore[operator]
        if self._arrange is not None:
            derivative, step = self._arrange(derivative), self._arrange(step)
        if isinstance(self._layer, nn.Linear):
            split = (self._n_samples, -1)
            derivative, step = (tensor.reshape(*split, tensor.shape[-1]) for tensor in (derivative, step))
            return torch.einsum("nko,nki->noi", derivative, step) * weight
        gradients = [
            self._weight_gradient(weight, *pair)
            for pair in zip(derivative.tensor_split(self._n_samples), step.tensor_split(self._n_samples), strict=True)
        ]
        return self._sum_positions(torch.stack(gradients) * weight)

    def _weight_gradient(self, weight: Tensor, derivative: Tensor, step: Tensor) -> Tensor:
        """Gradient of ``<derivative, layer(step)>`` with respect to the weight."""
        layer: nn.Conv2d = self._layer  # type: ignore[assignment]
        padding = layer.padding
        if isinstance(layer, _TRANSPOSED):
            derivative, step = step, derivative  # a transposed convolution is the transpose of a convolution
        elif isinstance(padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            step = functional.pad(step, layer._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * (weight.ndim - 2)
        gradient: Tensor = _WEIGHT_GRADIENTS[weight.ndim](  # type: ignore[no-untyped-call]
            step, weight.shape, derivative, layer.stride, padding, layer.dilation, layer.groups
        )
        return gradient

    def _sum_positions(self, weights: Tensor) -> Tensor:
        """Sum over the positions of a kernel, and put output channels first."""
        summed = weights.flatten(3).sum(3, dtype=torch.float64)
        if not isinstance(self._layer, _TRANSPOSED):
            return summed
        samples, inputs, outputs = summed.shape  # outputs of one group
        groups = self._layer.groups
        return summed.reshape(samples, groups, inputs // groups, outputs).transpose(2, 3).flatten(1, 2)


def single(tensor: Tensor) -> Tensor:
    """At least single precision: what is smaller would lose what little a step changes."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _owned(rows: Tensor) -> Tensor:
    """The last of several rows, without keeping the others alive."""
    return rows[-1] if len(rows) == 1 else rows[-1].clone()
