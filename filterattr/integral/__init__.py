r"""The integral of the loss gradient along the path from base to target, and what every unit has of it.

.. math:: A_i = (\theta_i - \bar\theta_i) \sum_j c_j \frac{\partial L(\gamma(t_j))}{\partial \gamma_i},
   \qquad \gamma(t) = \bar\theta + t\,(\theta - \bar\theta), \qquad A_k = \sum_{i \in k} A_i

This is the whole method; `filterattr.integral.node` adds seeds, threads, checks and messages to the loop.

Example:
    >>> import torch
    >>> from torch import nn
    >>> from filterattr import FilterAttributor
    >>> from filterattr.integral.gradients import Contributions
    >>> from filterattr.integral.gradients import GradientSums
    >>> from filterattr.integral.path import Path
    >>> from filterattr.integral.quadrature import Quadrature
    >>> from filterattr.model.swap import ParameterSwap, restoring
    >>> _ = torch.manual_seed(0)
    >>> (model, target), image = (nn.Conv2d(1, 3, 3, bias=False) for _ in range(2)), torch.rand(1, 1, 8, 8)
    >>> loss = lambda model: model(image).sigmoid().sum()
    >>> base, swap = {"weight": model.weight.detach().clone()}, ParameterSwap(model)
    >>> path = Path(base, {"weight": target.weight.detach()}, fixed={})  # gamma
    >>> sums, point = GradientSums(base), {"weight": torch.empty_like(model.weight)}
    >>> rule = Quadrature.rule("gausslegendre", 16)  # t_j and c_j
    >>> for t, coefficient in zip(rule.nodes, rule.coefficients):
    ...     path.write(t, point)
    ...     leaves = {name: nn.Parameter(value.detach()) for name, value in point.items()}
    ...     def evaluate():
    ...         with swap.holding(leaves):  # the model computes with the point
    ...             sums.take_all(loss(model), leaves, coefficient)  # backward; adds c_j times the gradient
    ...     restoring(evaluate, swap.restore)  # the model has its own weights again
    >>> contributions = {name: path.times_displacement(name, total) for name, total in sums.sums.items()}  # A_i
    >>> bool(abs(contributions["weight"].sum() - (loss(target) - loss(model))) < 1e-4)  # completeness
    True
    >>> filters = FilterAttributor(model, unit="filter")  # three units of nine weights
    >>> ((name, scores),) = Contributions(filters.scored_parameters()).per_unit(contributions.items())  # A_k
    >>> bool(scores["sum"].equal(filters.attribute(model, target, loss).scores("sum")[name]))
    True
"""
