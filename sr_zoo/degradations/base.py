"""The base class of degradations: small immutable descriptions that can be applied, printed and stored as JSON."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from filterattr import FilterAttrError


class DegradationError(FilterAttrError, ValueError):
    """A parameter or an image does not suit a degradation; the message names it."""


Strengths: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Degradation(ABC):
    """Map a batch of images to a worse batch: ``(N, C, H, W)`` in [0, 1] to ``(N, C, h, w)``.

    A subclass is a frozen dataclass: its fields are the whole description. It registers itself under its class
    name, so that `from_config` can rebuild it. Random degradations draw from the generator they are given and from
    nothing else; the numbers are drawn on the generator's own device, so that one seed means one result wherever
    the images are. A class that only holds what several kinds share says so with ``abstract=True`` and stays
    unregistered.
    """

    _kinds: ClassVar[dict[str, type[Degradation]]] = {}

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        """Register the kind under its class name, unless it is the common part of several."""
        super().__init_subclass__(**options)
        if not abstract:
            Degradation._kinds[cls.__name__] = cls

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Degrade a batch.

        Args:
            images: Floating tensor of shape ``(N, C, H, W)``, values in [0, 1].
            generator: Source of randomness; ``None`` uses PyTorch's global one.

        Returns:
            A new tensor on the same device, of the same dtype.

        Raises:
            DegradationError: The images do not have four dimensions or are not floating.
        """
        _check_images(images)
        return self.apply(images, generator)

    def traced(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Strengths]:
        """Degrade a batch, and return the strength for each image; the same random numbers are drawn.

        Args:
            images: Floating tensor of shape ``(N, C, H, W)``, values in [0, 1].
            generator: Source of randomness; ``None`` uses PyTorch's global one.

        Returns:
            What calling the degradation returns, and the strengths. ``"blur"`` (standard deviation in pixels),
            ``"noise"`` (standard deviation on [0, 1]) and ``"jpeg"`` (``1 - quality / 100``) map to a ``float32``
            tensor of shape ``(N,)`` on the CPU. It is 0 for an image that was left unchanged. A kind that does not
            occur has no entry. Several of a kind add in squares, as the variances of blurs and of noises do.

        Raises:
            DegradationError: The images do not have four dimensions or are not floating.

        Example:
            >>> from sr_zoo.degradations import GaussianNoise, Sometimes
            >>> images, strengths = Sometimes(GaussianNoise(0.1), 0.5).traced(
            ...     torch.zeros(4, 1, 8, 8), torch.Generator().manual_seed(0)
            ... )
            >>> strengths
            {'noise': tensor([0.1000, 0.0000, 0.1000, 0.1000])}
        """
        _check_images(images)
        return self.apply_traced(images, generator)

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Degrade a batch that was checked already.

        Args:
            images: Floating tensor of shape ``(N, C, H, W)``, values in [0, 1].
            generator: Source of randomness; ``None`` uses PyTorch's global one.

        Returns:
            A new tensor ``(N, C, h, w)``.
        """

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Do what `apply` does, and say how strongly; kinds that hold other kinds are `Composite` and write this.

        Args:
            images: As for `apply`.
            generator: As for `apply`.

        Returns:
            As for `traced`.
        """
        drawn = {name: torch.full((len(images),), value, device="cpu") for name, value in self.strengths().items()}
        return self.apply(images, generator), drawn

    def strengths(self) -> dict[str, float]:
        """How strongly it degrades any image, by name; empty for what has no such number."""
        return {}

    def is_optical(self) -> bool:
        """Whether it happens in front of the sensor, as blur does: `evaluation_inputs` puts it before downsampling."""
        return False

    def config(self) -> dict[str, Any]:
        """Describe the degradation in plain values that JSON can hold: its kind and its fields."""
        return {"type": type(self).__name__, **asdict(self)}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the degradation from the fields of its `config`; kinds that hold other kinds override this.

        Args:
            fields: Field name to plain value.

        Returns:
            An equal degradation.
        """
        return cls(**fields)


@dataclass(frozen=True)
class Composite(Degradation, abstract=True):
    """A degradation that hands images on to others: it says how in `apply_traced`, and `apply` leaves the rest out."""

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Degrade, and forget how strongly."""
        return self.apply_traced(images, generator)[0]

    @abstractmethod
    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Degrade a batch that was checked already, and gather what the parts say."""

    def is_optical(self) -> bool:
        """Whether all its parts are."""
        held = (getattr(self, field.name) for field in dataclasses.fields(self))
        parts = [part for value in held for part in (value if isinstance(value, tuple) else (value,))]
        degradations = [part for part in parts if isinstance(part, Degradation)]
        return bool(degradations) and all(part.is_optical() for part in degradations)


def add_strengths(first: Strengths, second: Strengths) -> Strengths:
    """Combine what two steps did to the same images: squares add.

    Args:
        first: Name to ``(N,)``.
        second: The same, of a later step.

    Returns:
        The names of both.

    Example:
        >>> add_strengths({"blur": torch.tensor([3.0])}, {"blur": torch.tensor([4.0]), "noise": torch.tensor([0.5])})
        {'blur': tensor([5.]), 'noise': tensor([0.5000])}
    """
    both = {name: torch.hypot(first[name], second[name]) for name in first.keys() & second.keys()}
    return {name: both.get(name, value) for name, value in {**first, **second}.items()}


def from_config(config: Mapping[str, Any]) -> Degradation:
    """Rebuild a degradation from `Degradation.config`.

    Args:
        config: A dictionary with the key ``"type"`` and the fields of that type.

    Returns:
        An equal degradation.

    Raises:
        DegradationError: The type is unknown, or a field is unknown, missing or out of its range.

    Example:
        >>> from sr_zoo.degradations import GaussianBlur
        >>> from_config(GaussianBlur(sigma=2.0).config()) == GaussianBlur(sigma=2.0)
        True
    """
    try:
        fields = dict(config)
    except (TypeError, ValueError) as error:
        raise DegradationError(f"the description of a degradation must be a dictionary; got {config!r}.") from error
    kind = str(fields.pop("type", None))
    if kind not in Degradation._kinds:
        known = ", ".join(sorted(Degradation._kinds))
        raise DegradationError(f"the type of a degradation must be one of {known}; got {kind!r}.")
    try:
        return Degradation._kinds[kind].rebuild(fields)
    except KeyError as error:
        raise DegradationError(f"{kind} cannot be built from {fields}: {error} is missing.") from error
    except TypeError as error:
        raise DegradationError(f"{kind} cannot be built from {fields}: {error}.") from error


def _check_images(images: Tensor) -> None:
    """Refuse what is no batch of images."""
    if images.ndim != 4 or not images.is_floating_point():
        raise DegradationError(
            "images must be a floating tensor of shape (N, C, H, W) with values in [0, 1]; got shape "
            f"{tuple(images.shape)} of {images.dtype}. Add a batch dimension with image[None], divide 8-bit pixels by "
            "255."
        )


def check_range(owner: object, name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    """Refuse a parameter outside its range, by name.

    Args:
        owner: The degradation; its class is named in the message.
        name: The parameter's name.
        value: Its value.
        low: Smallest value allowed.
        high: Largest value allowed.
        whole: Whether it must be a whole number.

    Raises:
        DegradationError: The value is outside the range or not a plain number, which JSON could not hold.

    Example:
        >>> check_range(object(), "sigma", -1.0, 0.0, 10.0)
        Traceback (most recent call last):
        ...
        sr_zoo.degradations.base.DegradationError: object.sigma must be a number in [0, 10]; got -1.0.
    """
    if not isinstance(value, (int,) if whole else (int, float)) or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise DegradationError(f"{type(owner).__name__}.{name} must be a {kind} in [{low:g}, {high:g}]; got {value!r}.")
