"""Estimates of the cost of a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of `FilterAttributor.attribute`; ``print`` shows it in words.

    Attributes:
        n_samples: Number of samples.
        n_passes: Number of forward-backward passes.
        seconds_per_pass: Duration of a pass, on the first sample, with the work of the library.
        n_units: Number of units with scores.
        weight_bytes: Bytes of the weights of the model.
        engine_bytes: Bytes during the integration, beyond a pass of the loss: the weights of a node, sums, and the
            change of the largest parameter. Copies of base and target, if their type or device differs from that of the
            model, are not included.
        score_bytes: Bytes of the scores and of the sums that they are computed from.
    """

    n_samples: int
    n_passes: int
    seconds_per_pass: float
    n_units: int
    weight_bytes: int
    engine_bytes: int
    score_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""
        return self.n_passes * self.seconds_per_pass

    def __str__(self) -> str:
        beyond = self.engine_bytes + self.score_bytes
        return (
            f"{self.n_passes} passes ({self.n_samples} samples), {self.seconds_per_pass:.3g} s each: "
            f"{_duration(self.seconds)}\n"
            f"{self.n_units} units\n"
            f"{_size(beyond)} beyond the model and a pass of the loss ({_size(self.engine_bytes)} while samples are "
            f"integrated, {_size(self.score_bytes)} for scores); the weights are {_size(self.weight_bytes)}"
        )


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} seconds"


def _size(number: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
