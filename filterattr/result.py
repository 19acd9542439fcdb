"""What an attribution returns: scores and selections of units, and the numbers that say whether to believe them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from filterattr.engine.storage import read_tensors, write_tensors
from filterattr.engine.units import Unit
from filterattr.errors import SettingError, StorageError, name_some

if TYPE_CHECKING:
    import pandas as pd

Reduction: TypeAlias = Literal["sum_of_abs", "abs_of_sum", "sum"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
Scale: TypeAlias = Literal["loss", "share", "strict"]


@dataclass(frozen=True)
class ScoredParameter:
    """How one parameter is scored.

    Attributes:
        unit: What its units are.
        shape: Shape of the parameter, not of its scores.
        group: Name of the group whose units it shares with other parameters, if any.
    """

    unit: Unit
    shape: tuple[int, ...]
    group: str | None = None

    @cached_property
    def units_shape(self) -> torch.Size:
        """Shape of its scores."""
        return self.unit.reduce(torch.empty(self.shape, device="meta")).shape


def units_of(parameters: Mapping[str, ScoredParameter]) -> dict[str, torch.Size]:
    """List what has scores: parameters, and groups of parameters that share their units.

    Args:
        parameters: Parameter name to how it is scored.

    Returns:
        Name of the parameter or group to the shape of its scores; a group stands where its first member does.
    """
    units: dict[str, torch.Size] = {}
    for name, scored in parameters.items():
        units.setdefault(scored.group or name, scored.units_shape)
    return units


def sum_over_units(values: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> dict[str, Tensor]:
    """Sum tensors of the parameters' shapes over the weights of every unit; members of a group add up.

    Args:
        values: Parameter name to a floating tensor of its shape.
        parameters: Parameter name to how it is scored.

    Returns:
        Name of the parameter or group to one number per unit.

    Example:
        >>> half = lambda group: ScoredParameter(Unit("o i -> o"), (2, 3), group)
        >>> ones = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
        >>> sum_over_units(ones, {"a": half("both"), "b": half("both")})
        {'both': tensor([6., 6.])}
    """
    sums: dict[str, Tensor] = {}
    for name, scored in parameters.items():
        own = scored.unit.reduce(values[name])
        key = scored.group or name
        sums[key] = sums[key] + own if key in sums else own
    return sums


class _PerParameter(Mapping[str, Tensor]):
    """Name of a parameter or group to a tensor with one entry per unit; the common part of scores and selections."""

    _kind: ClassVar[str]
    _dtype: ClassVar[torch.dtype | None] = None

    def __init__(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> None:
        units = units_of(parameters)
        if list(tensors) != list(units):
            raise SettingError(
                f"every scored parameter needs one tensor; got {name_some(tensors)} for {name_some(units)}."
            )
        self._tensors = MappingProxyType(dict(tensors))
        self.parameters = MappingProxyType(dict(parameters))

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def save(self, path: str | Path) -> None:
        """Write them to a file (safetensors with a digest); needs the safetensors package.

        Args:
            path: Where to write.

        Raises:
            StorageError: The disk refuses, or safetensors is not installed.
        """
        write_tensors(path, self._kind, self._tensors, {"parameters": _described(self.parameters)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The same, on the CPU.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        tensors, description = read_tensors(path, cls._kind)
        with _incomplete(path, cls._kind):
            parameters = _parameters_of(description)
            units = units_of(parameters)
            return cls({name: _checked(tensors, name, shape, cls._dtype) for name, shape in units.items()}, parameters)

    @property
    def n_units(self) -> int:
        """Number of units over all parameters."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    def only(self, *globs: str) -> Self:
        """Narrow to some parameters and groups: a fraction of what is left, a ranking or a null is then among these.

        Args:
            *globs: Names as they stand in the scores, such as ``"blocks.*.attention"``; a parameter or group stays
                if one of them matches.

        Returns:
            The same, in the same order, for those alone.

        Raises:
            SettingError: A glob matches nothing, or there is none.

        Example:
            >>> one = ScoredParameter(Unit("... -> ..."), (2,))
            >>> like = {"0.attention": one, "0.mlp": one, "1.attention": one}
            >>> scores = FilterScores({name: torch.rand(2) for name in like}, like)
            >>> list(scores.only("*.attention"))
            ['0.attention', '1.attention']
            >>> scores.only("*.mlp").top(0.5)
            FilterSelection(1 of 2 units in 1 parameters)
        """
        unmatched = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in self)]
        if unmatched or not globs:
            raise SettingError(
                f"only() needs globs that each match a name of {name_some(self)}; got {name_some(unmatched) or 'none'}."
            )
        kept = {name: tensor for name, tensor in self.items() if any(fnmatchcase(name, glob) for glob in globs)}
        parameters = {name: scored for name, scored in self.parameters.items() if (scored.group or name) in kept}
        return type(self)(kept, parameters)

    def flat(self) -> Tensor:
        """Join all entries in the order of parameter, output, input: shape ``(n_units,)``."""
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors.values()])

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """Undo `flat`."""
        sizes = [tensor.numel() for tensor in self._tensors.values()]
        parts = torch.split(flat, sizes)
        return {
            name: part.reshape(tensor.shape) for (name, tensor), part in zip(self._tensors.items(), parts, strict=True)
        }

    def _check_same_units(self, other: _PerParameter) -> None:
        if self.parameters != other.parameters:
            different = [
                name
                for name in {**self.parameters, **other.parameters}
                if self.parameters.get(name) != other.parameters.get(name)
            ]
            raise SettingError(
                "both sides must score the same parameters by the same units; they differ in "
                f"{name_some(different) or 'their order'}."
            )


class FilterScores(_PerParameter):
    """One score per unit: parameter name to a ``float64`` tensor, in the unit of the loss.

    A kernel of any convolution is found at ``scores[name][o, i]``. Scores of equal layout can be added, subtracted
    (the discriminative score of equation 7 of the paper) and multiplied by numbers.

    Args:
        tensors: Parameter name to scores.
        parameters: Parameter name to how it is scored, in the same order.

    Example:
        >>> scores = FilterScores(
        ...     {"conv.weight": torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=torch.float64)},
        ...     {"conv.weight": ScoredParameter(Unit("o i ... -> o i"), (2, 2, 3, 3))},
        ... )
        >>> scores.top(2)["conv.weight"]
        tensor([[ True, False],
                [False,  True]])
        >>> scores.to_index()
        array([3, 0, 2, 1])
    """

    _kind = "scores"

    def __repr__(self) -> str:
        return f"FilterScores({self.n_units} units in {len(self)} parameters)"

    def __sub__(self, other: FilterScores) -> FilterScores:
        self._check_same_units(other)
        return FilterScores({name: self[name] - other[name] for name in self}, self.parameters)

    def __add__(self, other: FilterScores) -> FilterScores:
        self._check_same_units(other)
        return FilterScores({name: self[name] + other[name] for name in self}, self.parameters)

    def __mul__(self, factor: float) -> FilterScores:
        return FilterScores({name: self[name] * factor for name in self}, self.parameters)

    __rmul__ = __mul__

    def __neg__(self) -> FilterScores:
        return self * -1.0

    def order(self) -> Tensor:
        """Flat places of the units from the highest to the lowest score; ties by parameter, output, input."""
        return torch.sort(self.flat(), descending=True, stable=True).indices

    def top(self, amount: float) -> FilterSelection:
        """Select the units with the highest scores.

        Args:
            amount: A ``float`` in [0, 1] is a fraction of all units (rounded to the nearest whole number), an ``int``
                their number. So ``top(1)`` is one unit and ``top(1.0)`` is all of them.

        Returns:
            The selection. Among equal scores the earlier parameter, output and input channel win.

        Raises:
            SettingError: The fraction is outside [0, 1], or the number is negative or larger than all.

        Example:
            >>> like = {"w": ScoredParameter(Unit("... -> ..."), (4,))}
            >>> FilterScores({"w": torch.tensor([0.1, 0.4, 0.3, 0.2])}, like).top(0.5)["w"]
            tensor([False,  True,  True, False])
        """
        flat = torch.zeros(self.n_units, dtype=torch.bool)
        flat[self.order()[: _count(amount, self.n_units)]] = True
        return FilterSelection(self._split(flat), self.parameters)

    def select(self, places: Mapping[str, Iterable[int | tuple[int, ...]]]) -> FilterSelection:
        """Select units by hand.

        Args:
            places: Name of a parameter or group to the places of its units: numbers, or tuples as in the column
                ``unit`` of `to_frame`. A place that names the first axes only takes all units there: of kernels, ``3``
                is every kernel of output channel 3, ``(3, 0)`` is one. Negative numbers count from the end.

        Returns:
            The selection.

        Raises:
            SettingError: A name or place does not exist.

        Example:
            >>> like = {"w": ScoredParameter(Unit("o i ... -> o i"), (3, 2, 3, 3))}
            >>> FilterScores({"w": torch.zeros(3, 2)}, like).select({"w": [0, (2, 1)]})["w"]
            tensor([[ True,  True],
                    [False, False],
                    [False,  True]])
        """
        chosen = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in self.items()}
        findings = []
        for name, wanted in places.items():
            if name not in chosen:
                findings.append(f"there is no '{name}', only {name_some(self)}")
                continue
            shape = tuple(chosen[name].shape)
            for place in wanted:
                inside = place if isinstance(place, tuple) else (place,)
                if _exists(inside, shape):
                    chosen[name][inside] = True
                else:
                    findings.append(f"'{name}' has units of shape {shape} and none at {place!r}")
        if findings:
            more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
            raise SettingError("every place must be that of a unit: " + "; ".join(findings[:5]) + more + ".")
        return FilterSelection(chosen, self.parameters)

    def to_index(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Flat places from the most to the least important, as in the index files of the published code.

        Parameters follow each other in the order of the network, output channels inside a parameter, input channels
        inside an output channel. ``numpy.savetxt(path, scores.to_index(), fmt="%d")`` writes such a file.

        Returns:
            ``int64`` of shape ``(n_units,)``.
        """
        index: np.ndarray[tuple[int], np.dtype[np.int64]] = self.order().numpy()
        return index

    @classmethod
    def from_index(cls, index: str | Path | Sequence[int], like: _PerParameter) -> FilterScores:
        """Make scores from a flat index file: the first place gets the highest score, the last one 0.

        Args:
            index: A text file with one place per line, or the places themselves.
            like: Scores or a selection with the same units.

        Returns:
            Scores whose order is that of the file: ``n_units - 1`` down to 0.

        Raises:
            SettingError: It is no permutation of all places.

        Example:
            >>> parameters = {"w": ScoredParameter(Unit("... -> ..."), (3,))}
            >>> like = FilterSelection({"w": torch.zeros(3, dtype=torch.bool)}, parameters)
            >>> FilterScores.from_index([2, 0, 1], like).to_index()
            array([2, 0, 1])
        """
        if isinstance(index, str | Path):
            try:
                index = np.loadtxt(index, dtype=np.int64, ndmin=1).tolist()
            except (OSError, ValueError) as error:
                raise SettingError(f"an index file must hold one whole number a line: {error}.") from error
        places = torch.tensor(index, dtype=torch.int64)
        total = like.n_units
        if len(places) != total or not torch.equal(places.sort().values, torch.arange(total)):
            raise SettingError(
                f"an index must name each of the {total} units once; got {len(places)} places"
                + (f" from {int(places.min())} to {int(places.max())}" if len(places) else "")
                + ". It belongs to a network with other units."
            )
        flat = torch.empty(total, dtype=torch.float64)
        flat[places] = torch.arange(total - 1, -1, -1, dtype=torch.float64)
        return cls(like._split(flat), like.parameters)

    def to_frame(self) -> pd.DataFrame:
        """Table with one row per unit; needs pandas.

        Returns:
            Columns ``parameter``, ``unit`` (its place in the parameter's scores, such as ``(3, 0)``) and ``score``,
            from the highest to the lowest score.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        rows = [
            (name, place, float(value))
            for name, tensor in self.items()
            for place, value in np.ndenumerate(tensor.numpy())
        ]
        frame = pd.DataFrame(rows, columns=["parameter", "unit", "score"])
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)


class FilterSelection(_PerParameter):
    """A set of units: parameter name to a boolean tensor with one entry per unit.

    ``|``, ``&``, ``-`` and ``~`` are those of sets. ``len(selection)`` is the number of parameters, as for every
    mapping; `count` is the number of chosen units.

    Args:
        tensors: Parameter name to booleans.
        parameters: Parameter name to how it is scored, in the same order.

    Example:
        >>> like = {"w": ScoredParameter(Unit("... -> ..."), (4,))}
        >>> first = FilterSelection({"w": torch.tensor([True, True, False, False])}, like)
        >>> second = FilterSelection({"w": torch.tensor([False, True, True, False])}, like)
        >>> (first & second).count, (first | second).count, (first - second).count, (~first).count
        (1, 3, 1, 2)
        >>> first.overlap(second), round(first.jaccard(second), 3)
        (0.5, 0.333)
    """

    _kind = "selection"
    _dtype = torch.bool

    def __repr__(self) -> str:
        return f"FilterSelection({self.count} of {self.n_units} units in {len(self)} parameters)"

    def __or__(self, other: FilterSelection) -> FilterSelection:
        self._check_same_units(other)
        return FilterSelection({name: self[name] | other[name] for name in self}, self.parameters)

    def __and__(self, other: FilterSelection) -> FilterSelection:
        self._check_same_units(other)
        return FilterSelection({name: self[name] & other[name] for name in self}, self.parameters)

    def __sub__(self, other: FilterSelection) -> FilterSelection:
        self._check_same_units(other)
        return FilterSelection({name: self[name] & ~other[name] for name in self}, self.parameters)

    def __invert__(self) -> FilterSelection:
        return FilterSelection({name: ~self[name] for name in self}, self.parameters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FilterSelection):
            return NotImplemented
        return self.parameters == other.parameters and torch.equal(self.flat(), other.flat())

    __hash__ = None  # type: ignore[assignment]

    @property
    def count(self) -> int:
        """Number of chosen units."""
        return sum(int(tensor.sum()) for tensor in self.values())

    def overlap(self, other: FilterSelection) -> float:
        """Share of the smaller set that is also in the other.

        Args:
            other: A selection of the same units.

        Returns:
            A number in [0, 1]; 1 if one of them is empty.
        """
        smaller = min(self.count, other.count)
        return (self & other).count / smaller if smaller else 1.0

    def jaccard(self, other: FilterSelection) -> float:
        """Size of the intersection over size of the union.

        Args:
            other: A selection of the same units.

        Returns:
            A number in [0, 1]; 1 if both are empty.
        """
        union = (self | other).count
        return (self & other).count / union if union else 1.0

    def per_layer(self) -> dict[str, int]:
        """Count the chosen units of every parameter."""
        return {name: int(tensor.sum()) for name, tensor in self.items()}

    def weights(self) -> dict[str, Tensor]:
        """Mark the weights of the chosen units.

        Returns:
            Parameter name to a boolean tensor of the parameter's own shape.
        """
        return {
            name: scored.unit.expand(self[scored.group or name], scored.shape)
            for name, scored in self.parameters.items()
        }

    def random(self, generator: torch.Generator, *, layer_matched: bool = False) -> FilterSelection:
        """Draw as many units at random: the null that a selection has to beat.

        Args:
            generator: Source of randomness, on the CPU.
            layer_matched: Draw as many in each parameter as this selection has there, so that only the choice inside
                the layers is random.

        Returns:
            A selection of the same size.

        Example:
            >>> like = {"w": ScoredParameter(Unit("... -> ..."), (100,))}
            >>> chosen = FilterSelection({"w": torch.arange(100) < 7}, like)
            >>> chosen.random(torch.Generator().manual_seed(0)).count
            7
        """
        if layer_matched:
            drawn = {
                name: _draw(tensor.numel(), int(tensor.sum()), generator).reshape(tensor.shape)
                for name, tensor in self.items()
            }
            return FilterSelection(drawn, self.parameters)
        return FilterSelection(self._split(_draw(self.n_units, self.count, generator)), self.parameters)


class LayerSummary(NamedTuple):
    """One row of `FilterAttribution.per_layer`.

    Attributes:
        name: The parameter.
        n_units: Its number of units.
        sum: Signed attribution of the whole parameter.
        sum_of_abs: Sum of its units' ``sum_of_abs`` scores.
        share: Its part of that sum over all parameters, in [0, 1].
    """

    name: str
    n_units: int
    sum: float
    sum_of_abs: float
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class FilterAttribution:
    """The result of `FilterAttributor.attribute`; it cannot be changed.

    Losses and attributions are means over the samples, in the unit of the loss.

    Attributes:
        loss_base: Loss at t = 0.
        loss_target: Loss at t = 1.
        remainder: Signed attribution of everything that is not scored, such as biases.
        total: Signed attribution of all parameters; completeness says that it is ``loss_target - loss_base``.
        completeness_error: ``|total - (loss_target - loss_base)| / max(|loss_target - loss_base|, 1e-3 sum |a|)``
            (the denominator is at least the rounding of the losses, 1e-12 of the largest), numerator and denominator
            summed over the samples, so that errors of different samples do not cancel.
        path_places: The places t on the path at which the loss was seen, from 0 to 1.
        path_losses: The losses there.
        cosine: Cosine of the angle between all weights of base and target. Below about .9 masking a few filters tends
            to damage the network rather than to remove one function.
        n_samples: Number of samples.
        n_passes: Number of forward-backward passes.
        method: Name of the quadrature.
        n_steps: Number of its nodes, in every segment.
        parameters: Parameter name to how it is scored.
        means: Reduction to parameter name to mean scores over the samples.
        mean_squares: The same for the squared scores.
        n_segments: Number of straight parts of the path, 1 without waypoints; each is as long in ``path_places``.
        aggregate: ``"per_sample"`` or ``"pooled"``. A pooled attribution has seen no sample at both ends, so that its
            losses and its completeness error are NaN.
        precision: ``"bf16"`` if the loss was evaluated under autocast by this library.
        tolerance: What ``method="adaptive"`` was to reach.
        n_unsettled: Number of samples that did not reach it; ``n_steps`` is then the most nodes that a sample took.
        agreement: Of a pooled attribution, the share of its top 1 % that infinitely many samples would keep, estimated
            from two halves of the samples.
    """

    loss_base: float
    loss_target: float
    remainder: float
    total: float
    completeness_error: float
    path_places: tuple[float, ...]
    path_losses: tuple[float, ...]
    cosine: float
    n_samples: int
    n_passes: int
    method: str
    n_steps: int
    parameters: Mapping[str, ScoredParameter]
    means: Mapping[Reduction, Mapping[str, Tensor]]
    mean_squares: Mapping[Reduction, Mapping[str, Tensor]]
    n_segments: int = 1
    aggregate: str = "per_sample"
    precision: str | None = None
    tolerance: float | None = None
    n_unsettled: int = 0
    agreement: float | None = None

    def __repr__(self) -> str:
        units = sum(tensor.numel() for tensor in self.means["sum"].values())
        rule = f"{self.method} {self.n_steps}{f' in each of {self.n_segments} segments' * (self.n_segments > 1)}"
        if self.tolerance is not None:
            rule = f"{self.method} to {self.tolerance:g} with {self.mean_steps:.3g} nodes in the mean"
        if self.aggregate == "pooled":
            rule += f", pooled, agreement {self.agreement:.3g}"
        return (
            f"FilterAttribution({units} units in {len(self.parameters)} parameters, {self.n_samples} samples, {rule})\n"
            f"  loss            {self.loss_base:.6g} (base) -> {self.loss_target:.6g} (target), "
            f"barrier {self.barrier:.3g}\n"
            f"  attribution     {self.total:.6g} in all, {self.remainder:.6g} of it not scored\n"
            f"  completeness    relative error {self.completeness_error:.2g}\n"
            f"  cosine          {self.cosine:.4f} between base and target"
        )

    @property
    def mean_steps(self) -> float:
        """Mean number of nodes of a sample; ``n_steps`` unless the nodes are refined."""
        return self.n_passes / (self.n_samples * self.n_segments)

    @property
    def barrier(self) -> float:
        """Height of the loss on the path above the higher of its ends; 0 if there is no barrier.

        End points of unrelated trainings have a high one, and an attribution along such a path means little.
        """
        return max(self.path_losses) - max(self.loss_base, self.loss_target)

    def scores(self, reduction: Reduction = "sum_of_abs") -> FilterScores:
        r"""Scores of all units.

        Args:
            reduction: How the weights k of a unit become one number, for every sample before the mean over samples:
                ``"sum_of_abs"`` is :math:`\sum_k |A_k|` (the paper's), ``"abs_of_sum"`` is :math:`|\sum_k A_k|`,
                ``"sum"`` is :math:`\sum_k A_k`, which is signed and complete.

        Returns:
            The scores.

        Raises:
            SettingError: The reduction is unknown.

        References:
            Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution", NeurIPS
            2021, equation 6.
        """
        if reduction not in REDUCTIONS:
            raise SettingError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}.")
        return FilterScores(self.means[reduction], self.parameters)

    def standard_errors(self, reduction: Reduction = "sum_of_abs") -> FilterScores:
        """Standard error of every score over the samples.

        Args:
            reduction: As in `scores`.

        Returns:
            The standard errors of the means.

        Raises:
            SettingError: There was only one sample, or the reduction is unknown.
        """
        scores = self.scores(reduction)
        if self.n_samples < 2:
            raise SettingError("a standard error needs at least two samples; got 1.")
        squares = self.mean_squares[reduction]
        variances = {name: (squares[name] - value.square()).clamp_min(0) for name, value in scores.items()}
        errors = {name: (value / (self.n_samples - 1)).sqrt() for name, value in variances.items()}
        return FilterScores(errors, self.parameters)

    def per_layer(self) -> list[LayerSummary]:
        """Summarise every scored parameter.

        Returns:
            One row a parameter, in the order of the network.
        """
        sizes = {name: float(tensor.sum()) for name, tensor in self.means["sum_of_abs"].items()}
        whole = math.fsum(sizes.values())
        return [
            LayerSummary(
                name,
                tensor.numel(),
                float(tensor.sum()),
                sizes[name],
                sizes[name] / whole if whole else 0.0,
            )
            for name, tensor in self.means["sum"].items()
        ]

    def save(self, path: str | Path) -> None:
        """Write the result to a file (safetensors with a digest); needs the safetensors package.

        Args:
            path: Where to write.

        Raises:
            StorageError: The disk refuses, or safetensors is not installed.
        """
        tensors = {
            f"{statistic}/{reduction}/{name}": tensor
            for statistic in ("means", "mean_squares")
            for reduction, scores in getattr(self, statistic).items()
            for name, tensor in scores.items()
        }
        description: dict[str, Any] = {name: getattr(self, name) for name in (*_PLAIN_FIELDS, *_OPTIONAL_FIELDS)}
        description["parameters"] = _described(self.parameters)
        write_tensors(path, "attribution", tensors, description)

    @classmethod
    def load(cls, path: str | Path) -> FilterAttribution:
        """Read a result that `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal result, on the CPU.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        tensors, description = read_tensors(path, "attribution")
        with _incomplete(path, "attribution"):
            parameters = _parameters_of(description)
            fields = {name: _plain(name, description[name]) for name in _PLAIN_FIELDS}
            fields |= {name: _optional(name, description[name]) for name in _OPTIONAL_FIELDS}
            means, mean_squares = (
                {
                    reduction: {
                        name: _checked(tensors, f"{statistic}/{reduction}/{name}", shape, torch.float64)
                        for name, shape in units_of(parameters).items()
                    }
                    for reduction in REDUCTIONS
                }
                for statistic in ("means", "mean_squares")
            )
            return cls(**fields, parameters=parameters, means=means, mean_squares=mean_squares)


# name to what a file must hold for it; a list becomes a tuple
_PLAIN_FIELDS: dict[str, type] = {
    "loss_base": float,
    "loss_target": float,
    "remainder": float,
    "total": float,
    "completeness_error": float,
    "path_places": list,
    "path_losses": list,
    "cosine": float,
    "n_samples": int,
    "n_passes": int,
    "method": str,
    "n_steps": int,
    "n_segments": int,
    "aggregate": str,
    "n_unsettled": int,
}
_OPTIONAL_FIELDS: dict[str, type] = {"precision": str, "tolerance": float, "agreement": float}


def _plain(name: str, value: Any) -> Any:
    """Check one plain field of a file."""
    items = value if isinstance(value, list) else [value]
    kind = _PLAIN_FIELDS[name]
    if isinstance(value, list) != (kind is list) or not all(
        type(item) is (float if kind is list else kind) for item in items
    ):
        raise TypeError(f"{name} must be {kind.__name__}")
    return tuple(value) if kind is list else value


def _optional(name: str, value: Any) -> Any:
    """Check one field of a file that may be missing in the result, but not in the file."""
    if value is not None and type(value) is not _OPTIONAL_FIELDS[name]:
        raise TypeError(f"{name} must be {_OPTIONAL_FIELDS[name].__name__}")
    return value


def _described(parameters: Mapping[str, ScoredParameter]) -> list[list[Any]]:
    """Turn parameters into JSON."""
    return [
        [name, scored.unit.pattern, dict(scored.unit.sizes), list(scored.shape), scored.group]
        for name, scored in parameters.items()
    ]


def _parameters_of(description: Mapping[str, Any]) -> dict[str, ScoredParameter]:
    """Undo `_described`."""
    parameters = {}
    for name, pattern, sizes, shape, group in description["parameters"]:
        if not isinstance(name, str) or not isinstance(pattern, str) or not isinstance(group, str | None):
            raise TypeError("names and patterns must be texts")
        parameters[name] = ScoredParameter(Unit(pattern, dict(sizes)), tuple(shape), group)
    if not parameters:
        raise ValueError("no parameters")
    return parameters


def _checked(tensors: Mapping[str, Tensor], key: str, shape: torch.Size, dtype: torch.dtype | None) -> Tensor:
    """Take one tensor out of a file's content, if it fits its units."""
    tensor = tensors[key]
    if tensor.shape != shape or dtype not in (None, tensor.dtype):
        raise ValueError(f"'{key}' is {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor


@contextmanager
def _incomplete(path: str | Path, kind: str) -> Iterator[None]:
    """A file whose digest is right can still be made up: whatever does not fit together refuses it."""
    try:
        yield
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StorageError(f"'{path}' is not a complete {kind}: {error!r}.") from error


def contrast(
    scores: Mapping[str, FilterScores], of: str, against: str | None = None, *, scale: Scale = "loss"
) -> FilterScores:
    r"""Discriminative score of one function against others: what its filters do more for it than for the rest.

    :math:`S_D = F_D - \lambda R_D` with :math:`R_D = \frac{1}{K - 1} \sum_{D' \ne D} F_{D'}` the mean of the other
    functions, or the one named by ``against``. Sort it in descending order with `FilterScores.top`.

    Args:
        scores: Name of a function (a degradation, a task) to the scores found with its samples; every function on the
            same number of samples, as the differences are taken between means.
        of: The function in question.
        against: The one to compare with; ``None`` means the mean of all others.
        scale: ``"loss"`` is the paper's, :math:`\lambda = 1`. Where a function has larger scores in all (noise, say),
            units that matter for everything come out as its own. ``"share"`` compares parts of the whole,
            :math:`\lambda = \sum F_D / \sum R_D`. ``"strict"`` takes the larger :math:`\lambda` of both: a unit is
            specific only if it does more for the function in the unit of the loss and as a part of the whole.

    Returns:
        The difference, in the unit of the loss.

    Raises:
        SettingError: A name or scale is unknown, there is nothing to compare with, or the units differ.

    Example:
        >>> like = {"w": ScoredParameter(Unit("... -> ..."), (2,))}
        >>> scores = {
        ...     "blur": FilterScores({"w": torch.tensor([3.0, 1.0])}, like),
        ...     "noise": FilterScores({"w": torch.tensor([4.0, 4.0])}, like),
        ... }
        >>> contrast(scores, "noise")["w"]
        tensor([1., 3.])
        >>> contrast(scores, "noise", scale="strict")["w"]
        tensor([-2.,  2.])

    References:
        Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution", NeurIPS 2021,
        equation 7 (``scale="loss"``).
    """
    others = [name for name in scores if name != of] if against is None else [against]
    unknown = [name for name in (of, *others) if name not in scores]
    if unknown or of in others or not others:
        raise SettingError(
            f"contrast needs a function and another one to compare with, both among {name_some(scores)}; "
            f"got of={of!r}, against={against!r}."
        )
    if scale not in get_args(Scale):
        raise SettingError(f"scale must be one of {', '.join(get_args(Scale))}; got {scale!r}.")
    rest = scores[others[0]]
    for name in others[1:]:
        rest = rest + scores[name]
    rest = rest * (1 / len(others))
    own_sum, rest_sum = (float(one.flat().abs().sum()) for one in (scores[of], rest))
    ratio = own_sum / rest_sum if rest_sum else 1.0
    factor = {"loss": 1.0, "share": ratio, "strict": max(1.0, ratio)}[scale]
    return scores[of] - rest * factor


def _count(amount: float, total: int) -> int:
    """Turn a fraction or a number of units into a number."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise SettingError(f"the amount must be a fraction (float) or a number (int); got {amount!r}.")
    if isinstance(amount, int):
        if not 0 <= amount <= total:
            raise SettingError(f"the number of units must lie in [0, {total}]; got {amount}.")
        return amount
    if not 0 <= amount <= 1:
        raise SettingError(
            f"a fraction of units must lie in [0, 1]; got {amount}. One per cent is 0.01; a number of units is an int."
        )
    return math.floor(amount * total + 0.5)


def _exists(place: tuple[object, ...], shape: tuple[int, ...]) -> bool:
    """Whether a place, or the start of one, lies in a shape."""
    return len(place) <= len(shape) and all(
        isinstance(number, int | np.integer) and not isinstance(number, bool) and -size <= number < size
        for number, size in zip(place, shape, strict=False)
    )


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` of ``total`` places uniformly, without repetition."""
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=generator)[:count]] = True
    return chosen
