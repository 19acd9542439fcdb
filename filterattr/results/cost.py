"""What a call will cost, told beforehand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostEstimate:
    """What `FilterAttributor.attribute` will take; ``print`` says it in words.

    Attributes:
        n_samples: Number of samples.
        n_passes: Forward-backward passes.
        seconds_per_pass: Seconds of one of them, on the first sample, the library's own work included.
        n_units: Number of units that get scores.
        weight_bytes: Bytes of the model's weights.
        engine_bytes: Bytes that are held while samples are integrated, beyond a pass of the loss: the weights of a
            node, sums, and the change of the largest parameter. Ends that are not of the model's type and device are
            copied, which is not counted here.
        score_bytes: Bytes of the scores and of what they are made of.
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
