"""Degradations whose parameters, kind or order are drawn again for every image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_zoo.degradations.base import Composite, Degradation, DegradationError, Strengths, check_range, from_config
from sr_zoo.degradations.pipeline import Pipeline, check_degradations

Values = Mapping[str, Sequence[Any]] | Sequence[tuple[str, Sequence[Any]]]


@dataclass(frozen=True)
class Drawn(Composite):
    """Draw parameters of a degradation for every image of the batch.

    A name may stand for several fields that shall have the same value, separated by blanks: ``"sigma_x sigma_y"``.

    Args:
        degradation: What to apply; it keeps the fields that are not drawn.
        ranges: Field to ``(low, high)``, both ends included; whole numbers where the field is one.
        choices: Field to the values it may have, all equally likely.

    Raises:
        DegradationError: A field does not exist or is named twice, or a value that could be drawn makes no sense.

    Example:
        >>> from sr_zoo.degradations import GaussianBlur
        >>> blur = Drawn(GaussianBlur(), ranges={"sigma": (0.2, 3.0)}, choices={"kernel_size": (7, 21)})
        >>> _, strengths = blur.traced(torch.rand(3, 3, 32, 32), torch.Generator().manual_seed(0))
        >>> strengths["blur"].round(decimals=2)
        tensor([2.9200, 1.4900, 2.0100])
    """

    degradation: Degradation
    ranges: Values = ()
    choices: Values = ()

    def __post_init__(self) -> None:
        """Hold pairs, which cannot change, and try the ends of every range and every choice."""
        check_degradations(self, "degradation", (self.degradation,))
        for kind in ("ranges", "choices"):
            object.__setattr__(self, kind, _pairs(self, kind, getattr(self, kind)))
        own = {field.name for field in dataclasses.fields(self.degradation)}
        named = [name for names, _ in self._drawn() for name in names]
        wrong = sorted(set(named) - own) + sorted({name for name in named if named.count(name) > 1})
        if wrong or not named:
            raise DegradationError(
                f"Drawn must name fields of {type(self.degradation).__name__}, each once; got "
                f"{', '.join(wrong) or 'none'}. It has {', '.join(sorted(own)) or 'none'}."
            )
        for names, values in self._drawn():
            for value in values:
                dataclasses.replace(self.degradation, **dict.fromkeys(names, value))
        for names, (low, high) in self._drawn()[: len(self.ranges)]:
            if low > high:
                raise DegradationError(f"Drawn.ranges must go from low to high; got {low} to {high} for {names[0]}.")

    def _drawn(self) -> list[tuple[list[str], tuple[Any, ...]]]:
        """Fields and the values that bound or make up what can be drawn for them."""
        return [(names.split(), values) for names, values in (*self.ranges, *self.choices)]

    def config(self) -> dict[str, Any]:
        """Describe itself and what it holds."""
        pairs = {kind: {name: list(values) for name, values in getattr(self, kind)} for kind in ("ranges", "choices")}
        return {"type": "Drawn", "degradation": self.degradation.config(), **pairs}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the held degradation first."""
        return cls(**{**fields, "degradation": from_config(fields["degradation"])})

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Draw for the whole batch, then degrade image by image."""
        draws = _uniform((len(images), len(self._drawn())), images, generator).tolist()
        kinds = [dataclasses.replace(self.degradation, **self._values(row)) for row in draws]
        return one_by_one(self, kinds, images, generator)

    def _values(self, draws: Sequence[float]) -> dict[str, Any]:
        """Turn uniform numbers into values of fields."""
        drawn: dict[str, Any] = {}
        whole = {field.name for field in dataclasses.fields(self.degradation) if field.type in ("int", int)}
        for place, (names, values) in enumerate(self._drawn()):
            share = draws[place]
            if place >= len(self.ranges):
                value = values[int(share * len(values))]
            elif names[0] in whole:
                value = values[0] + int(share * (values[1] - values[0] + 1))
            else:
                value = values[0] + share * (values[1] - values[0])
            drawn |= dict.fromkeys(names, value)
        return drawn


@dataclass(frozen=True)
class OneOf(Composite):
    """Apply one of several degradations to every image of the batch.

    Args:
        degradations: The candidates.
        probabilities: Chance of each, in [0, 1] and of sum 1; all are equally likely if not given.

    Raises:
        DegradationError: There is no candidate, one is no degradation, or the probabilities do not suit.

    Example:
        >>> from sr_zoo.degradations import GaussianNoise, PoissonNoise
        >>> noise = OneOf((GaussianNoise(0.1), PoissonNoise(2.0)))
        >>> noise(torch.rand(4, 3, 16, 16)).shape
        torch.Size([4, 3, 16, 16])
    """

    degradations: tuple[Degradation, ...]
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the candidates and their chances."""
        candidates = _held(self, "degradations", self.degradations)
        probabilities = tuple(self.probabilities) or (1 / len(candidates),) * len(candidates)
        for probability in probabilities:
            check_range(self, "probabilities", probability, 0, 1)
        if len(probabilities) != len(candidates) or abs(sum(probabilities) - 1) > 1e-6:
            raise DegradationError(
                f"OneOf.probabilities must be one for each of the {len(candidates)} degradations, of sum 1; got "
                f"{probabilities}."
            )
        object.__setattr__(self, "degradations", candidates)
        object.__setattr__(self, "probabilities", probabilities)

    def config(self) -> dict[str, Any]:
        """Describe the candidates and their chances."""
        return {
            "type": "OneOf",
            "degradations": [one.config() for one in self.degradations],
            "probabilities": list(self.probabilities),
        }

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the candidates first."""
        return cls(**{**fields, "degradations": tuple(from_config(one) for one in fields["degradations"])})

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Draw for the whole batch, then degrade image by image."""
        ends = torch.tensor(self.probabilities, dtype=torch.float64, device="cpu").cumsum(0)
        ends[-1] = 1.0
        places = torch.searchsorted(ends, _uniform((len(images),), images, generator), right=True)
        return one_by_one(self, [self.degradations[place] for place in places.tolist()], images, generator)


@dataclass(frozen=True)
class Shuffled(Composite):
    """Apply all of several degradations to every image, each image in an order of its own.

    Args:
        steps: The degradations; all orders are equally likely.

    Raises:
        DegradationError: There is no step, or one is no degradation.

    Example:
        >>> from sr_zoo.degradations import GaussianBlur, GaussianNoise
        >>> shuffled = Shuffled((GaussianBlur(2.0), GaussianNoise(0.1)))
        >>> shuffled(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])

    References:
        Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution", ICCV 2021.
    """

    steps: tuple[Degradation, ...]

    def __post_init__(self) -> None:
        """Check the steps."""
        object.__setattr__(self, "steps", _held(self, "steps", self.steps))

    def config(self) -> dict[str, Any]:
        """Describe the steps."""
        return {"type": "Shuffled", "steps": [step.config() for step in self.steps]}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the steps first."""
        return cls(**{**fields, "steps": tuple(from_config(step) for step in fields["steps"])})

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Draw for the whole batch, then degrade image by image."""
        orders = _uniform((len(images), len(self.steps)), images, generator).argsort(dim=1).tolist()
        pipelines = [Pipeline(tuple(self.steps[place] for place in order)) for order in orders]
        return one_by_one(self, pipelines, images, generator)


def one_by_one(
    owner: object, degradations: Sequence[Degradation], images: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Strengths]:
    """Degrade every image of a batch by a degradation of its own, and make one batch of the results.

    Args:
        owner: Who asks; its class is named in the message.
        degradations: As many as there are images.
        images: Shape ``(N, C, H, W)``.
        generator: Source of randomness.

    Returns:
        The batch, and the strengths of all; 0 where an image has none of a kind.

    Raises:
        DegradationError: The results have different sizes.
    """
    if not len(images):
        return images.clone(), {}
    parts = [one.traced(images[i : i + 1], generator) for i, one in enumerate(degradations)]
    sizes = {tuple(image.shape[-2:]) for image, _ in parts}
    if len(sizes) > 1:
        raise DegradationError(
            f"{type(owner).__name__} must make images of one size, so that they stay one batch; it made "
            f"{', '.join(f'{height}x{width}' for height, width in sorted(sizes))}. Give it one image at a time."
        )
    names = [name for _, drawn in parts for name in drawn]
    absent = torch.zeros(1, device="cpu")
    strengths = {name: torch.cat([drawn.get(name, absent) for _, drawn in parts]) for name in dict.fromkeys(names)}
    return torch.cat([image for image, _ in parts]), strengths


def _uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers from the generator, on the CPU."""
    device = images.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64).cpu()


def _held(owner: object, name: str, degradations: Iterable[Degradation]) -> tuple[Degradation, ...]:
    """Hold degradations in a tuple; at least one."""
    held = tuple(degradations)
    check_degradations(owner, name, held)
    if not held:
        raise DegradationError(f"{type(owner).__name__}.{name} must hold at least one degradation; got none.")
    return held


def _pairs(owner: object, kind: str, values: Values) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Turn a mapping into pairs; a range has two ends, a choice at least one value."""
    try:
        pairs = tuple((str(name), tuple(ends)) for name, ends in dict(values).items())
    except (TypeError, ValueError) as error:
        raise DegradationError(f"{type(owner).__name__}.{kind} must map fields to values; got {values!r}.") from error
    wrong = [name for name, ends in pairs if (len(ends) != 2 if kind == "ranges" else not ends)]
    if wrong:
        wanted = "two ends" if kind == "ranges" else "at least one value"
        raise DegradationError(f"{type(owner).__name__}.{kind} must have {wanted} for each field; not so {wrong}.")
    return pairs
