r"""Bootstrap intervals over samples, paired for all numbers that are computed on the same samples.

A draw takes n of n samples with replacement. It is stored as the number of times that each sample was drawn. So the
mean of a draw is a matrix product, and two numbers of the same draw can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from filterattr.analysis.record import Estimate
from filterattr.errors import SettingError

Array: TypeAlias = NDArray[np.float64]


class Bootstrap:
    """Bootstrap draws of the samples, shared by all numbers that are compared.

    Args:
        sizes: Name of a function to its number of samples. With ``paired``, functions with the same number share their
            draws; sample i of all of them should then come from one source (one photograph, one sentence).
        draws: Number of draws.
        confidence: Share of the draws inside an interval.
        seed: Seed of the draws.
        paired: See ``sizes``.

    Raises:
        SettingError: A number is out of range.

    Example:
        >>> bootstrap = Bootstrap({"task": 4}, draws=500)
        >>> print(bootstrap.estimate(2.5, bootstrap.means("task", [1.0, 2.0, 3.0, 4.0])))
        2.50 [1.37, 3.50]

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        draws: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        paired: bool = True,
    ) -> None:
        if draws < 2 or not 0 < confidence < 1:
            raise SettingError(
                f"a bootstrap needs at least 2 draws and a confidence between 0 and 1; got {draws} and {confidence}."
            )
        self.draws = draws
        self.confidence = confidence
        generator = np.random.default_rng(seed)
        shared: dict[int, Array] = {}
        self._shares: dict[str, Array] = {}
        for name, size in sizes.items():
            if not paired or size not in shared:
                shared[size] = generator.multinomial(size, np.full(size, 1 / size), size=draws) / size
            self._shares[name] = shared[size]

    def means(self, name: str, values: Sequence[float] | Array) -> Array:
        """Compute the mean of some values in every draw.

        Args:
            name: The function of the samples.
            values: One number per sample.

        Returns:
            One mean per draw, shape ``(draws,)``; NaN for a single sample, which has no spread.
        """
        shares = self._shares[name]
        if shares.shape[1] < 2:
            return np.full(self.draws, np.nan)
        result: Array = shares @ np.asarray(values, dtype=np.float64)
        return result

    def estimate(self, value: float, drawn: Array) -> Estimate:
        """Compute the interval of a number.

        Args:
            value: The number, from all samples.
            drawn: The same number in every draw.

        Returns:
            The number with its percentile interval, as `interval` computes it.
        """
        return interval(value, drawn, self.confidence)


def interval(value: float, drawn: Array, confidence: float) -> Estimate:
    """Percentile interval of draws.

    Args:
        value: The number.
        drawn: Its draws, shape ``(draws,)``.
        confidence: Share of the draws inside the interval.

    Returns:
        The number with its interval; the ends are NaN if a draw is NaN.

    Example:
        >>> import numpy as np
        >>> print(interval(0.5, np.linspace(0.0, 1.0, 101), 0.9))
        0.50 [0.05, 0.95]
    """
    if np.isnan(drawn).any():
        return Estimate(float(value))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high))


def p_value(observed: float, null: Sequence[float]) -> float:
    """Chance that the statistic of a random draw is at least as large as the observed one.

    Args:
        observed: The statistic of the selection; larger is more extreme.
        null: The same statistic of random draws.

    Returns:
        ``(1 + #{null >= observed}) / (1 + draws)``, in (0, 1].

    Example:
        >>> p_value(0.8, [0.1, 0.2, 0.9])
        0.5
    """
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))
