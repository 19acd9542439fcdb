r"""Rankings from gradients at one point in weight space: Taylor, SNIP, Fisher, and paths of the input.

Each takes the gradient :math:`g(x)` of the loss of one sample at fixed weights, turns it into one number per unit, and
averages over the samples, as the attribution does. The attribution adds the path of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.attribution import FilterAttributor
from filterattr.errors import LossError, NonFiniteError, SettingError, StateMismatchError, name_some
from filterattr.integral.quadrature import Quadrature
from filterattr.intervention import swapped
from filterattr.jobs.samples import series
from filterattr.loss.checks import Loss
from filterattr.model.context import GradientMode
from filterattr.model.state_dict import StateLike, completed, state_for
from filterattr.model.swap import ParameterSwap, refuse_behind, restoring
from filterattr.results.scores import FilterScores
from filterattr.units.unit import sum_over_units

Along: TypeAlias = Callable[[Any, float], Any]
Gradients: TypeAlias = Mapping[str, Tensor]
Form: TypeAlias = Callable[[str, Tensor], Tensor]


def taylor(
    attributor: FilterAttributor, state: StateLike, loss: Loss, data: Iterable[Any] | None = None
) -> FilterScores:
    r"""Score a unit by the gradient times the weight: :math:`\sum_k |g_k \theta_k|`, at any weights.

    This is the first-order estimate of the change of the loss if the unit is deleted. On an untrained network it is
    SNIP. It costs one forward-backward pass per sample.

    Args:
        attributor: Defines the units.
        state: The weights, usually target.
        loss: As in `FilterAttributor.attribute`.
        data: As there.

    Returns:
        The scores, a mean over the samples.

    Raises:
        SettingError: There are no samples.
        LossError: The loss is no scalar, or does not depend on the model.
        NonFiniteError: A gradient is infinite or not a number.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> state = {"weight": torch.tensor([[2.0, -3.0]])}
        >>> taylor(FilterAttributor(layer), state, lambda model: model(torch.ones(2)).sum())["weight"]
        tensor([[2., 3.]], dtype=torch.float64)

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019; Lee, Ajanthan and Torr,
        "SNIP", ICLR 2019.
    """
    weights = state_for(attributor.model, state, "state")

    def form(name: str, gradient: Tensor) -> Tensor:
        return direction_of(gradient, weights[name].to(gradient.device)).abs()

    return _averaged(attributor, weights, loss, data, form)


def fisher(
    attributor: FilterAttributor,
    target: StateLike,
    loss: Loss,
    data: Iterable[Any] | None = None,
    *,
    base: StateLike | None = None,
) -> FilterScores:
    r"""Score a unit by its squared gradients: the mean over samples of :math:`\sum_k g_k^2`.

    The gradient of every sample is squared, not the mean gradient. It costs one forward-backward pass per sample.

    Args:
        attributor: Defines the units.
        target: The weights at which gradients are taken.
        loss: As in `FilterAttributor.attribute`. The result is the Fisher information if the loss is a negative
            log-likelihood.
        data: As there.
        base: If given, the gradients are multiplied by the change: :math:`\sum_k (g_k\,(\theta_k - \bar\theta_k))^2`.

    Returns:
        The scores.

    Raises:
        SettingError: There are no samples.
        LossError: The loss is no scalar, or does not depend on the model.
        NonFiniteError: A gradient is infinite or not a number.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> samples = [torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])]
        >>> fisher(FilterAttributor(layer), layer, lambda model, x: model(x).sum(), samples)["weight"]
        tensor([[1., 2.]], dtype=torch.float64)

    References:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018; Kirkpatrick et al.,
        "Overcoming catastrophic forgetting in neural networks", PNAS 2017.
    """
    weights = state_for(attributor.model, target, "target")
    change = None if base is None else _change(attributor, base, weights)

    def form(name: str, gradient: Tensor) -> Tensor:
        return (gradient if change is None else direction_of(gradient, change[name].to(gradient.device))).abs().square()

    return _averaged(attributor, weights, loss, data, form)


def input_path(
    attributor: FilterAttributor,
    target: StateLike,
    loss: Loss,
    data: Iterable[Any],
    along: Along,
    *,
    base: StateLike | None = None,
    method: str = "gausslegendre",
    n_steps: int = 16,
) -> FilterScores:
    r"""Integrate the gradient of the weights while the *input* moves and the weights stay at target.

    .. math:: \sum_k \Bigl| c_k \int_0^1 \frac{\partial L(\theta, x(t))}{\partial \theta_k}\, dt \Bigr|

    Without ``base``, :math:`c_k = 1`. With the sum of the output as the loss
    (``loss=lambda model, pair: model(pair[0]).sum()``), these are the "integrated gradients" of the published code.
    With ``base``, :math:`c_k = \theta_k - \bar\theta_k`. With the loss of the attribution, the scores then have the
    unit of the loss and can be compared with the attribution. Neither form is complete, because the input moves and not
    the weights. It costs ``n_steps`` forward-backward passes per sample.

    Args:
        attributor: Defines the units.
        target: The weights.
        loss: ``loss(model, sample)``.
        data: Samples.
        along: A function of a sample and t that returns the sample at this place of the path. At t = 0 the input does
            not need the function; at t = 1 it does.
        base: Weights before the fine-tuning; if given, the gradients are multiplied by the change.
        method: As in `FilterAttributor.attribute`.
        n_steps: As there.

    Returns:
        The scores, a mean over the samples.

    Raises:
        SettingError: There are no samples, or a rule is unknown.
        LossError: The loss is no scalar, or does not depend on the model.
        NonFiniteError: A gradient is infinite or not a number.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> scores = input_path(FilterAttributor(layer), layer, lambda model, x: model(x).sum(),
        ...                     [torch.tensor([1.0, 2.0])], lambda x, t: t * x)
        >>> torch.testing.assert_close(scores["weight"], torch.tensor([[0.5, 1.0]], dtype=torch.float64))

    References:
        Xie et al., NeurIPS 2021, section 4.2 (as a ranking to compare with); Sundararajan et al., "Axiomatic
        Attribution for Deep Networks", ICML 2017.
    """
    weights = state_for(attributor.model, target, "target")
    rule = Quadrature.rule(method, n_steps)
    change = None if base is None else _change(attributor, base, weights)

    def form(name: str, gradient: Tensor) -> Tensor:
        return (gradient if change is None else direction_of(gradient, change[name].to(gradient.device))).abs()

    pairs = list(zip(rule.nodes, rule.coefficients, strict=True))
    return _averaged(attributor, weights, loss, data, form, [(along, t, coefficient) for t, coefficient in pairs])


def _averaged(
    attributor: FilterAttributor,
    state: Mapping[str, Tensor],
    loss: Loss,
    data: Iterable[Any] | None,
    form: Form,
    places: Iterable[tuple[Along | None, float, float]] = ((None, 0.0, 1.0),),
) -> FilterScores:
    """Turn the gradient of every sample into scores, and average them."""
    parameters = attributor.scored_parameters()
    samples: Iterable[tuple[Any, ...]] = [()] if data is None else ((sample,) for sample in series(data))
    totals: dict[str, Tensor] = {}
    count = 0
    for arguments in samples:
        sums: dict[str, Tensor] = {}
        for along, t, coefficient in places:
            moved = arguments if along is None else (along(arguments[0], t),)
            for name, gradient in sample_gradient(attributor.model, state, loss, moved, list(parameters)).items():
                sums[name] = coefficient * gradient if name not in sums else sums[name] + coefficient * gradient
        infinite = [name for name, gradient in sums.items() if not bool(torch.isfinite(gradient).all())]
        if infinite:
            raise NonFiniteError(f"the gradient of {name_some(infinite)} must be finite (sample {count}).")
        formed = {name: form(name, sums[name]) for name in parameters}
        for name, score in sum_over_units(formed, parameters).items():
            totals[name] = score.cpu() if name not in totals else totals[name] + score.cpu()
        count += 1
    if count == 0:
        raise SettingError("data must hold at least one sample; it is empty.")
    return FilterScores({name: total / count for name, total in totals.items()}, parameters)


def sample_gradient(
    model: nn.Module, state: StateLike, loss: Loss, arguments: tuple[Any, ...], names: Iterable[str], seed: int = 0
) -> dict[str, Tensor]:
    """Gradient of the loss of one sample at fixed weights. The model and the caller's randomness are not changed.

    Args:
        model: The model, not wrapped.
        state: The weights. Parameters that it does not name keep the weights of the model.
        loss: The loss.
        arguments: Arguments of the loss after the model.
        names: Parameters to take gradients of.
        seed: Seed of the randomness inside the loss.

    Returns:
        Parameter name to gradient, in double precision; 0 if the loss does not depend on the parameter.

    Raises:
        LossError: The loss is no real scalar, or depends on none of the parameters.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> loss = lambda model, x: model(x).sum()
        >>> sample_gradient(layer, layer, loss, (torch.tensor([3.0, 4.0]),), ["weight"])["weight"]
        tensor([[3., 4.]], dtype=torch.float64)
    """
    full = completed(state_for(model, state, "state"), model)
    originals = dict(model.named_parameters())
    mode = GradientMode()

    def differentiate() -> dict[str, Tensor]:
        mode.enter()
        with swapped(model, full, seed=seed) as inner:
            parameters = ParameterSwap(inner).parameters
            return _gradient(inner, {name: parameters[name] for name in names}, originals, loss, arguments)

    return restoring(differentiate, mode.restore)


def _gradient(
    model: nn.Module,
    leaves: Mapping[str, nn.Parameter],
    originals: Mapping[str, nn.Parameter],
    loss: Loss,
    arguments: tuple[Any, ...],
) -> dict[str, Tensor]:
    """Differentiate the loss of a model that holds copies of its parameters."""
    missing = [name for name, leaf in leaves.items() if leaf is originals.get(name)]
    if missing:
        raise StateMismatchError(f"the state dict of the model must hold {name_some(missing)}.")
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    value = loss(model, *arguments)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point() or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise LossError(
            f"loss must return one real scalar that depends on the model; got {got}. Return the tensor itself, and "
            "call the model that is given."
        )
    refuse_behind(value, originals)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf, dtype=_wide(leaf), requires_grad=False)
        if gradient is None
        else (gradient.to_dense() if gradient.is_sparse else gradient).to(_wide(leaf))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _change(attributor: FilterAttributor, base: StateLike, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Change of the scored parameters, in double precision."""
    before = state_for(attributor.model, base, "base")
    names = list(attributor.scored_parameters())
    misfits = [
        name
        for name in names
        if any(name not in end for end in (before, target)) or before[name].shape != target[name].shape
    ]
    if misfits:
        raise StateMismatchError(
            f"base and target must both hold the scored parameters in the same shapes; {name_some(misfits)} do not."
        )
    return {
        name: target[name].detach().to(_wide(target[name])) - before[name].detach().to(target[name].device)
        for name in names
    }


def direction_of(gradient: Tensor, change: Tensor) -> Tensor:
    """Derivative of the loss in the direction of single weights.

    Args:
        gradient: The gradient.
        change: The change of every weight; the same shape.

    Returns:
        The product. It is real for complex weights, too.

    Example:
        >>> direction_of(torch.tensor([1 + 2j]), torch.tensor([3 + 4j]))
        tensor([11.])
    """
    product = gradient.conj() * change.detach()
    return product.real if product.is_complex() else product


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
