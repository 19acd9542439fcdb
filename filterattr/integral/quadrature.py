r"""Nodes and coefficients on [0, 1]: :math:`\int_0^1 f(t)\,dt \approx \sum_j c_j f(t_j)`, :math:`\sum_j c_j = 1`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from filterattr.errors import SettingError

Rule = tuple[tuple[float, ...], tuple[float, ...]]

_SMALLEST_NESTED = 7


def _gauss_legendre(count: int) -> Rule:
    """Roots of the Legendre polynomial, moved from [-1, 1]; exact up to degree ``2 count - 1``."""
    roots, weights = np.polynomial.legendre.leggauss(count)
    return tuple((roots + 1) / 2), tuple(weights / 2)


def _riemann(offset: float) -> Callable[[int], Rule]:
    """Equal cells, each seen at one place: 0 is its left end, 1 its right end."""

    def rule(count: int) -> Rule:
        return tuple((j + offset) / count for j in range(count)), (1 / count,) * count

    return rule


def _trapezoid(count: int) -> Rule:
    """Both end points with half the coefficient of the inner nodes; exact up to degree 1."""
    if count < 2:
        raise SettingError(f"riemann_trapezoid needs n_steps of at least 2; got {count}.")
    cell = 1 / (count - 1)
    inner = (cell,) * (count - 2)
    return tuple(j / (count - 1) for j in range(count)), (cell / 2, *inner, cell / 2)


RULES: dict[str, Callable[[int], Rule]] = {
    "gausslegendre": _gauss_legendre,
    "riemann_left": _riemann(0.0),
    "riemann_middle": _riemann(0.5),
    "riemann_right": _riemann(1.0),
    "riemann_trapezoid": _trapezoid,
}


@dataclass(frozen=True)
class Quadrature:
    r"""A rule for :math:`\int_0^1 f(t)\,dt \approx \sum_j c_j f(t_j)`.

    The names are Captum's. Captum's trapezoid coefficients sum to ``(n - 1) / n``; these sum to 1.

    Attributes:
        method: Name of the rule.
        nodes: Places :math:`t_j` in [0, 1], ascending.
        coefficients: :math:`c_j`, of sum 1.
    """

    method: str
    nodes: tuple[float, ...]
    coefficients: tuple[float, ...]

    @classmethod
    def rule(cls, method: str, n_steps: int) -> Quadrature:
        """Build a rule.

        Args:
            method: ``"gausslegendre"``, ``"riemann_left"``, ``"riemann_middle"``, ``"riemann_right"`` or
                ``"riemann_trapezoid"``.
            n_steps: Number of nodes, at least 1 (2 for the trapezoid).

        Returns:
            The rule.

        Raises:
            SettingError: The name is unknown or the number is too small.

        Example:
            >>> Quadrature.rule("riemann_right", 4).nodes
            (0.25, 0.5, 0.75, 1.0)
            >>> Quadrature.rule("simpson", 4)
            Traceback (most recent call last):
            ...
            filterattr.errors.SettingError: method must be one of gausslegendre, riemann_left, ...
        """
        if method not in RULES:
            raise SettingError(f"method must be one of {', '.join(RULES)}; got {method!r}.")
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise SettingError(f"n_steps must be a whole number of at least 1; got {n_steps!r}.")
        return cls(method, *_cached(method, n_steps))


@lru_cache(maxsize=64)
def _cached(method: str, n_steps: int) -> Rule:
    """Gauss nodes of a high order take a while to find."""
    nodes, coefficients = RULES[method](n_steps)
    return tuple(map(float, nodes)), tuple(map(float, coefficients))


@dataclass(frozen=True)
class NestedQuadrature:
    r"""A rule that is refined again and again, and keeps every node and the ratios of their coefficients.

    The trapezoid rule in s, after the substitution :math:`t = s^3 (10 - 15 s + 6 s^2)`: the derivative of t and its own
    derivative vanish at both ends. So the ends drop out, and the error falls with the fourth power of the number of
    cells if f is smooth. Halving the cells keeps all nodes and halves all coefficients, so that one sum over the nodes
    is enough for every refinement. Where f has kinks, as with ReLU, it needs as many nodes as any other rule.

    Attributes:
        nodes: For each refinement the places that it adds, ascending.
        densities: For each of these the derivative of t, which its coefficient is proportional to.
        scales: For each refinement what turns all densities so far into coefficients of sum 1.

    Example:
        >>> rule = NestedQuadrature.up_to(10)
        >>> [len(nodes) for nodes in rule.nodes]
        [3, 4]
        >>> sum(map(sum, rule.densities)) * rule.scales[-1]
        1.0
    """

    nodes: tuple[tuple[float, ...], ...]
    densities: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]

    @classmethod
    def up_to(cls, n_steps: int) -> NestedQuadrature:
        """Build as many refinements as fit.

        Args:
            n_steps: The largest number of nodes, at least 7; 3, 7, 15, 31, 63, ... are used.

        Returns:
            The rule.

        Raises:
            SettingError: The number is too small to compare two refinements.
        """
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < _SMALLEST_NESTED:
            raise SettingError(
                f"n_steps must be a whole number of at least {_SMALLEST_NESTED} for a rule that is refined (it uses 3, "
                f"7, 15, 31, ... nodes, and must compare two of these); got {n_steps!r}."
            )
        nodes: list[tuple[float, ...]] = []
        densities: list[tuple[float, ...]] = []
        scales: list[float] = []
        cells, total = 4, 0.0
        while cells - 1 <= n_steps:
            step = 2 if nodes else 1  # every other place is known already
            places = [j / cells for j in range(1, cells, step)]
            nodes.append(tuple(s**3 * (10 + s * (6 * s - 15)) for s in places))
            densities.append(tuple(30 * (s * (1 - s)) ** 2 for s in places))
            total += sum(densities[-1])
            scales.append(1 / total)
            cells *= 2
        return cls(tuple(nodes), tuple(densities), tuple(scales))
