"""Rules: coefficients sum to 1, polynomials up to the stated degree are exact, names and errors."""

from __future__ import annotations

import math

import pytest

from filterattr import SettingError
from filterattr.integral.quadrature import Quadrature

DEGREES = {
    "riemann_left": lambda n: 0,
    "riemann_right": lambda n: 0,
    "riemann_middle": lambda n: 1,
    "riemann_trapezoid": lambda n: 1,
    "gausslegendre": lambda n: 2 * n - 1,
}


@pytest.mark.parametrize("method", DEGREES)
@pytest.mark.parametrize("n_steps", [2, 3, 8, 50, 300])
def test_coefficients_are_positive_and_sum_to_one(method: str, n_steps: int) -> None:
    rule = Quadrature.rule(method, n_steps)
    assert math.fsum(rule.coefficients) == pytest.approx(1, abs=1e-14)
    assert min(rule.coefficients) > 0
    assert list(rule.nodes) == sorted(rule.nodes)
    assert 0 <= rule.nodes[0] <= rule.nodes[-1] <= 1
    assert len(rule.nodes) == len(rule.coefficients) == n_steps


@pytest.mark.parametrize("method", DEGREES)
@pytest.mark.parametrize("n_steps", [2, 3, 7])
def test_polynomials_are_exact_up_to_the_degree_of_the_rule_and_no_further(method: str, n_steps: int) -> None:
    rule = Quadrature.rule(method, n_steps)
    degree = DEGREES[method](n_steps)

    def error(power: int) -> float:
        terms = (c * t**power for t, c in zip(rule.nodes, rule.coefficients, strict=True))
        return abs(math.fsum(terms) - 1 / (power + 1))

    assert max(error(power) for power in range(degree + 1)) < 1e-13
    assert error(degree + 1) > 1e-9


@pytest.mark.parametrize(
    ("method", "order"),
    [("riemann_left", 1), ("riemann_right", 1), ("riemann_middle", 2), ("riemann_trapezoid", 2)],
)
def test_error_falls_at_the_order_of_the_rule(method: str, order: int) -> None:
    errors = []
    for n_steps in (16, 32):
        rule = Quadrature.rule(method, n_steps + (method == "riemann_trapezoid"))
        estimate = math.fsum(c * math.exp(t) for t, c in zip(rule.nodes, rule.coefficients, strict=True))
        errors.append(abs(estimate - (math.e - 1)))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


def test_right_rule_is_the_published_one() -> None:
    assert Quadrature.rule("riemann_right", 4).nodes == (0.25, 0.5, 0.75, 1.0)
    assert Quadrature.rule("riemann_right", 100).nodes[-1] == 1.0


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"])
def test_rules_that_captum_has_right_are_the_same(method: str) -> None:
    captum = pytest.importorskip("captum.attr._utils.approximation_methods")
    step_sizes, places = captum.approximation_parameters(method)
    rule = Quadrature.rule(method, 20)
    # Captum keeps the Riemann rules in single precision
    assert rule.nodes == pytest.approx(places(20), abs=1e-15 if method == "gausslegendre" else 1e-7)
    assert rule.coefficients == pytest.approx(step_sizes(20), abs=1e-15 if method == "gausslegendre" else 1e-7)


@pytest.mark.parametrize("n_steps", [0, -1, 2.5, True, "8", None])
def test_numbers_of_nodes_that_make_no_sense_are_refused(n_steps: object) -> None:
    with pytest.raises(SettingError, match="n_steps must be a whole number of at least 1"):
        Quadrature.rule("gausslegendre", n_steps)  # type: ignore[arg-type]


def test_unknown_rule_and_too_short_trapezoid_are_refused() -> None:
    with pytest.raises(SettingError, match=r"method must be one of gausslegendre, .*'simpson'"):
        Quadrature.rule("simpson", 4)
    with pytest.raises(SettingError, match="riemann_trapezoid needs n_steps of at least 2"):
        Quadrature.rule("riemann_trapezoid", 1)
