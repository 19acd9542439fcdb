"""Scores of units, selections, and the contrast between the scores of several functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from filterattr.errors import FilterAttrWarning, SettingError, gathered, name_some
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.names import Names
from filterattr.results.cells import TOP, bars, cell, highest, lines
from filterattr.results.stored import complete, described, parameters_of, stored_tensor
from filterattr.units.unit import ReadOnly, ScoredParameter, units_of

if TYPE_CHECKING:
    import pandas as pd

_MANY = 2**20  # below, sets are drawn as in all versions before
_PLACES = 3  # of a layer, when a selection is shown
Scale: TypeAlias = Literal["loss", "share", "strict"]


class _PerParameter(ReadOnly[str, Tensor]):
    """Name of a parameter or group to a tensor with one entry per unit; the common part of scores and selections.

    The tensors that it returns are copies: take one once if it is needed often.
    """

    _kind: ClassVar[str]
    _dtype: ClassVar[torch.dtype | None] = None

    def __init__(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, ScoredParameter]) -> None:
        units = units_of(parameters)
        if list(tensors) != list(units):
            raise SettingError(
                f"every scored parameter needs one tensor; got {name_some(tensors)} for {name_some(units)}."
            )
        super().__init__(tensors)
        self.parameters = ReadOnly(parameters)

    def save(self, path: str | Path) -> None:
        """Write the content to a file (safetensors with a digest).

        Args:
            path: The file to write.

        Raises:
            StorageError: The file cannot be written, or the memory does not suffice.
        """
        write_tensors(path, self._kind, self.kept, {"parameters": described(self.parameters)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal object, on the CPU.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        tensors, description = read_tensors(path, cls._kind)
        with complete(path, cls._kind):
            parameters = parameters_of(description)
            units = units_of(parameters)
            return cls(
                {name: stored_tensor(tensors, name, shape, cls._dtype) for name, shape in units.items()}, parameters
            )

    @property
    def n_units(self) -> int:
        """Number of units over all parameters."""
        return sum(tensor.numel() for tensor in self.kept.values())

    def only(self, *globs: str) -> Self:
        """Keep some parameters and groups only. Fractions, rankings and nulls then refer to these.

        Args:
            *globs: Globs of the names in the scores, such as ``"blocks.*.attention"``. A parameter or group is kept if
                one of them matches.

        Returns:
            Scores or a selection of these parameters, in the same order.

        Raises:
            SettingError: A glob matches nothing, or there is none.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> one = ScoredParameter(Unit("... -> ..."), (2,))
            >>> like = {"0.attention": one, "0.mlp": one, "1.attention": one}
            >>> scores = FilterScores({name: torch.rand(2) for name in like}, like)
            >>> list(scores.only("*.attention"))
            ['0.attention', '1.attention']
            >>> scores.only("*.mlp").top(0.5)
            FilterSelection(1 of 2 units in 1 parameters)
        """
        names = Names(self)
        unmatched = names.unknown(globs)
        if unmatched or not globs:
            raise SettingError(
                f"only() needs globs that each match a name of {name_some(self)}; got "
                f"{names.describe_some(unmatched) or 'none'}."
            )
        wanted = names.first_of(globs)
        kept = {name: tensor for name, tensor in self.kept.items() if name in wanted}
        parameters = {name: scored for name, scored in self.parameters.items() if scored.key(name) in kept}
        return type(self)(kept, parameters)

    def flat(self) -> Tensor:
        """Join all entries in the order of parameter, output, input: shape ``(n_units,)``."""
        return torch.cat([tensor.reshape(-1) for tensor in self.kept.values()])

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """Undo `flat`."""
        sizes = [tensor.numel() for tensor in self.kept.values()]
        parts = torch.split(flat, sizes)
        return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(self.kept.items(), parts, strict=True)}

    def check_same_units(self, other: _PerParameter) -> None:
        """Check that two objects have the same units.

        Args:
            other: Scores or a selection.

        Raises:
            SettingError: The units differ; the message names the parameters.
        """
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

    The score of a kernel of any convolution is ``scores[name][o, i]``. Scores of the same units can be added,
    subtracted (the discriminative score of equation 7 of the paper) and multiplied by numbers.

    Args:
        tensors: Parameter name to scores.
        parameters: Parameter name to how it is scored, in the same order.

    Example:
        >>> from filterattr import ScoredParameter, Unit
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

    def __str__(self) -> str:
        rows = [[name, str(place), f"{value:.6g}"] for name, place, value in highest(self.kept)]
        return f"{self!r}; the highest:\n{lines([['parameter', 'unit', 'score'], *rows])}"

    def _repr_html_(self) -> str:
        """Show the highest scores in a notebook."""
        rows = highest(self.kept)
        most = max((abs(value) for *_, value in rows), default=0.0) or 1.0
        shown = [((name, str(place), f"{value:.4g}"), value / most) for name, place, value in rows]
        return cell(f"{self!r}; the highest", bars(("parameter", "unit", "score"), shown))

    def __sub__(self, other: FilterScores) -> FilterScores:
        self.check_same_units(other)
        return FilterScores({name: kept - other.kept[name] for name, kept in self.kept.items()}, self.parameters)

    def __add__(self, other: FilterScores) -> FilterScores:
        self.check_same_units(other)
        return FilterScores({name: kept + other.kept[name] for name, kept in self.kept.items()}, self.parameters)

    def __mul__(self, factor: float) -> FilterScores:
        return FilterScores({name: kept * factor for name, kept in self.kept.items()}, self.parameters)

    __rmul__ = __mul__

    def __neg__(self) -> FilterScores:
        return self * -1.0

    def order(self) -> Tensor:
        """Flat indices of the units from the highest to the lowest score; ties by parameter, output, input."""
        return torch.sort(self.flat(), descending=True, stable=True).indices

    def top(
        self, amount: float | None = None, *, until: float | None = None, parts: FilterScores | None = None
    ) -> FilterSelection:
        """Select the units with the highest scores.

        Args:
            amount: A ``float`` in [0, 1] is a fraction of all units, rounded; an ``int`` is a number of units. So
                ``top(1)`` is one unit, and ``top(1.0)`` is all units.
            until: Instead of an amount: take the fewest units whose parts add up to this. With the scores of
                `filterattr.signed_contrast`, it is the share of the function that masking is expected to remove.
            parts: The numbers to add up for ``until``; the scores themselves by default. Scores with a price for
                collateral effects are smaller than the parts that units carry:
                ``signed_contrast(found, "blur").top(until=0.8, parts=signed_contrast(found, "blur", collateral=0))``.

        Returns:
            The selection. Among equal scores, the first in the order of parameter, output and input channel are taken.
            A `FilterAttrWarning` is given if only some of the units with score 0 are taken.

        Raises:
            SettingError: The fraction is outside [0, 1], the number is negative or larger than the number of units, or
                scores are NaN. Or both or neither of ``amount`` and ``until`` are given, or the units with positive
                scores do not add up to ``until``.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> like = {"w": ScoredParameter(Unit("... -> ..."), (4,))}
            >>> scores = FilterScores({"w": torch.tensor([0.1, 0.4, 0.3, 0.2])}, like)
            >>> scores.top(0.5)["w"]
            tensor([False,  True,  True, False])
            >>> scores.top(until=0.8)["w"]
            tensor([False,  True,  True,  True])
        """
        if (amount is None) == (until is None) or (parts is not None and until is None):
            raise SettingError(
                f"top() takes an amount, or until= with parts= if need be; got amount {amount!r}, until={until!r}"
                f"{'' if parts is None else ' and parts'}."
            )
        scores = self._rankable()
        count = (
            self._count_until(until, self if parts is None else parts)
            if amount is None
            else count_of(amount, self.n_units)
        )
        chosen = mark_top(scores, count)
        self._check_zeros(scores, chosen, count)
        return FilterSelection(self._split(chosen), self.parameters)

    def _count_until(self, until: float | None, parts: FilterScores) -> int:
        """Number of the highest units whose parts add up to something; none with a score of 0 or less is needed."""
        self.check_same_units(parts)
        order = self.order()
        order = order[self.flat()[order] > 0].cpu()
        reached = parts._rankable().double()[order].cumsum(0)
        if not isinstance(until, int | float) or not until > 0 or not bool((reached >= until).any()):
            most = f"{float(reached.max()):.3g}" if len(reached) else "nothing"
            raise SettingError(
                f"until must be above 0 and no more than the {len(order)} units with a positive score come to, {most}; "
                f"got {until!r}."
            )
        return int((reached >= until).nonzero()[0]) + 1

    def tops(self, amounts: Iterable[float]) -> Iterator[FilterSelection]:
        """Select the units with the highest scores for several sizes, with a single sort.

        Args:
            amounts: As in `top`, ascending.

        Yields:
            The selection of `top` for each amount.

        Raises:
            SettingError: As in `top`, or the amounts do not ascend.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> like = {"w": ScoredParameter(Unit("... -> ..."), (3,))}
            >>> scores = FilterScores({"w": torch.tensor([0.1, 0.4, 0.3])}, like)
            >>> [selection["w"].tolist() for selection in scores.tops([1, 2])]
            [[False, True, False], [False, True, True]]
        """
        counts = [count_of(amount, self.n_units) for amount in amounts]
        if counts != sorted(counts):
            raise SettingError(f"the amounts must ascend; got {counts} units.")
        scores, order = self._rankable(), self.order().cpu()
        chosen = torch.zeros(len(scores), dtype=torch.bool, device="cpu")
        for before, count in pairwise([0, *counts]):
            chosen[order[before:count]] = True
            self._check_zeros(scores, chosen, count)
            yield FilterSelection(self._split(chosen.clone()), self.parameters)

    def _rankable(self) -> Tensor:
        """All scores on the CPU, none of them NaN."""
        scores = self.flat().cpu()
        n_unknown = int(torch.isnan(scores).sum())
        if n_unknown:
            raise SettingError(f"scores must be numbers to be ranked; {n_unknown} are NaN.")
        return scores

    def _check_zeros(self, scores: Tensor, chosen: Tensor, count: int) -> None:
        """Make sure that scores, and not the order of the network, say which units are the highest."""
        if not 0 < count < len(scores) or bool(torch.count_nonzero(scores) == len(scores)):
            return  # nothing to tell apart, found without a copy
        if scores[chosen].min() != 0 or scores[~chosen].max() != 0:
            return
        n_positive = int((scores > 0).sum())
        if n_positive or scores.min() == 0:  # not the least of a reversed ranking
            cure = f"Select no more than top({n_positive})." if n_positive else "There is nothing to select."
            warnings.warn(
                f"{count - n_positive} of the {count} selected units have score 0 and are taken for their place in the "
                f"network alone; {n_positive} of all have more. {cure}",
                FilterAttrWarning,
                stacklevel=3,
            )

    def select(self, places: Mapping[str, Iterable[int | tuple[int, ...]]]) -> FilterSelection:
        """Select units by hand.

        Args:
            places: Name of a parameter or group to the places of its units: numbers, or tuples as in the column
                ``unit`` of `to_frame`. A place with fewer axes takes all units there: ``3`` takes all kernels of output
                channel 3, ``(3, 0)`` takes one kernel. Negative numbers count from the end.

        Returns:
            The selection.

        Raises:
            SettingError: A name or place does not exist.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> like = {"w": ScoredParameter(Unit("o i ... -> o i"), (3, 2, 3, 3))}
            >>> FilterScores({"w": torch.zeros(3, 2)}, like).select({"w": [0, (2, 1)]})["w"]
            tensor([[ True,  True],
                    [False, False],
                    [False,  True]])
        """
        chosen = {name: torch.zeros(tensor.shape, dtype=torch.bool, device="cpu") for name, tensor in self.kept.items()}
        findings = []
        for name, wanted in places.items():
            if name not in chosen:
                findings.append(f"there is no {Names(self).describe(name)}, only {name_some(self)}")
                continue
            shape = tuple(chosen[name].shape)
            for place in wanted:
                inside = place if isinstance(place, tuple) else (place,)
                if _exists(inside, shape):
                    chosen[name][inside] = True
                else:
                    findings.append(f"'{name}' has units of shape {shape} and none at {place!r}")
        if findings:
            raise SettingError(f"every place must be that of a unit: {gathered(findings)}.")
        return FilterSelection(chosen, self.parameters)

    def to_index(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return flat indices from the most to the least important unit, as in the index files of the published code.

        Parameters follow each other in the order of the network, output channels inside a parameter, input channels
        inside an output channel. ``numpy.savetxt(path, scores.to_index(), fmt="%d")`` writes such a file.

        Returns:
            ``int64`` of shape ``(n_units,)``.
        """
        index: np.ndarray[tuple[int], np.dtype[np.int64]] = self.order().numpy()
        return index

    @classmethod
    def from_index(cls, index: str | Path | Sequence[int], like: _PerParameter) -> FilterScores:
        """Make scores from a flat index file: the first index gets the highest score, the last index gets 0.

        Args:
            index: A text file with one index per line, or the indices themselves.
            like: Scores or a selection with the same units.

        Returns:
            Scores in the order of the file: ``n_units - 1`` down to 0.

        Raises:
            SettingError: The indices are no permutation of all units.

        Example:
            >>> from filterattr import ScoredParameter, Unit
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
        places = torch.tensor(index, dtype=torch.int64, device="cpu")
        total = like.n_units
        if len(places) != total or not torch.equal(places.sort().values, torch.arange(total, device="cpu")):
            raise SettingError(
                f"an index must name each of the {total} units once; got {len(places)} places"
                + (f" from {int(places.min())} to {int(places.max())}" if len(places) else "")
                + ". It belongs to a network with other units."
            )
        flat = torch.empty(total, dtype=torch.float64, device="cpu")
        flat[places] = torch.arange(total - 1, -1, -1, dtype=torch.float64, device="cpu")
        return cls(like._split(flat), like.parameters)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per unit; needs pandas.

        Returns:
            Columns ``parameter``, ``unit`` (its place in the parameter's scores, such as ``(3, 0)``) and ``score``,
            from the highest to the lowest score.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        rows = [
            (name, place, float(value))
            for name, tensor in self.kept.items()
            for place, value in np.ndenumerate(tensor.numpy())
        ]
        frame = pd.DataFrame(rows, columns=["parameter", "unit", "score"])
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)


class FilterSelection(_PerParameter):
    """A set of units: parameter name to a boolean tensor with one entry per unit.

    ``|``, ``&``, ``-`` and ``~`` work as for sets. ``len(selection)`` is the number of parameters, as for every
    mapping; `count` is the number of selected units.

    Args:
        tensors: Parameter name to booleans.
        parameters: Parameter name to how it is scored, in the same order.

    Example:
        >>> from filterattr import ScoredParameter, Unit
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

    def __str__(self) -> str:
        rows = [[name, f"{count} of {total}", places] for name, count, total, places in self._fullest()]
        return f"{self!r}{'; most in:' if rows else ''}\n{lines(rows) if rows else ''}".rstrip()

    def _repr_html_(self) -> str:
        """Show in a notebook where the chosen units are."""
        shown = [
            ((name, f"{count} of {total}", places), count / total) for name, count, total, places in self._fullest()
        ]
        return cell(f"{self!r}; most in", bars(("parameter", "chosen", "units"), shown))

    def _fullest(self) -> list[tuple[str, int, int, str]]:
        """The parameters with most chosen units: how many of how many, and the places of the first."""
        counts = {name: count for name, count in self.per_layer().items() if count}
        rows = []
        for name in sorted(counts, key=lambda name: -counts[name])[:TOP]:
            tensor = self.kept[name]
            first = [tuple(place) for place in tensor.nonzero()[:_PLACES].tolist()]
            more = ", ..." if counts[name] > _PLACES else ""
            rows.append((name, counts[name], tensor.numel(), ", ".join(map(str, first)) + more))
        return rows

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per selected unit; needs pandas.

        Returns:
            Columns ``parameter`` and ``unit`` (its place in the parameter's scores, such as ``(3, 0)``), in the order
            of the network.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        rows = [(name, tuple(place)) for name, tensor in self.kept.items() for place in tensor.nonzero().tolist()]
        return pd.DataFrame(rows, columns=["parameter", "unit"])

    def __or__(self, other: FilterSelection) -> FilterSelection:
        self.check_same_units(other)
        return FilterSelection({name: kept | other.kept[name] for name, kept in self.kept.items()}, self.parameters)

    def __and__(self, other: FilterSelection) -> FilterSelection:
        self.check_same_units(other)
        return FilterSelection({name: kept & other.kept[name] for name, kept in self.kept.items()}, self.parameters)

    def __sub__(self, other: FilterSelection) -> FilterSelection:
        self.check_same_units(other)
        return FilterSelection({name: kept & ~other.kept[name] for name, kept in self.kept.items()}, self.parameters)

    def __invert__(self) -> FilterSelection:
        return FilterSelection({name: ~kept for name, kept in self.kept.items()}, self.parameters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FilterSelection):
            return NotImplemented
        return self.parameters == other.parameters and torch.equal(self.flat(), other.flat())

    __hash__ = None  # type: ignore[assignment]

    @property
    def count(self) -> int:
        """Number of selected units."""
        return sum(int(tensor.sum()) for tensor in self.kept.values())

    def overlap(self, other: FilterSelection) -> float:
        """Share of the smaller set that is also in the other set.

        Args:
            other: A selection of the same units.

        Returns:
            A number in [0, 1]; 1 if one set is empty.
        """
        smaller = min(self.count, other.count)
        return (self & other).count / smaller if smaller else 1.0

    def jaccard(self, other: FilterSelection) -> float:
        """Size of the intersection divided by size of the union.

        Args:
            other: A selection of the same units.

        Returns:
            A number in [0, 1]; 1 if both sets are empty.
        """
        union = (self | other).count
        return (self & other).count / union if union else 1.0

    def per_layer(self) -> dict[str, int]:
        """Count the selected units of every parameter."""
        return {name: int(tensor.sum()) for name, tensor in self.kept.items()}

    def weights(self) -> dict[str, Tensor]:
        """Mark the weights of the selected units.

        Returns:
            Parameter name to a boolean tensor of the shape of the parameter.
        """
        return {
            name: scored.unit.expand(self.kept[scored.key(name)], scored.shape)
            for name, scored in self.parameters.items()
        }

    def random(self, generator: torch.Generator, *, layer_matched: bool = False) -> FilterSelection:
        """Draw a random selection of the same size, to compare with.

        Args:
            generator: Source of randomness, on the CPU.
            layer_matched: Draw the same number of units in each parameter, so that only the choice inside the layers is
                random.

        Returns:
            A selection of the same size.

        Example:
            >>> from filterattr import ScoredParameter, Unit
            >>> like = {"w": ScoredParameter(Unit("... -> ..."), (100,))}
            >>> chosen = FilterSelection({"w": torch.arange(100) < 7}, like)
            >>> chosen.random(torch.Generator().manual_seed(0)).count
            7
        """
        sparse = self.n_units >= _MANY
        if layer_matched:
            drawn = {
                name: _draw(tensor.numel(), int(tensor.sum()), generator, sparse=sparse).reshape(tensor.shape)
                for name, tensor in self.kept.items()
            }
            return FilterSelection(drawn, self.parameters)
        return FilterSelection(self._split(_draw(self.n_units, self.count, generator, sparse=sparse)), self.parameters)


def contrast(
    scores: Mapping[str, FilterScores], of: str, against: str | None = None, *, scale: Scale = "loss"
) -> FilterScores:
    r"""Discriminative scores: the scores of one function minus those of other functions.

    With absolute scores, a unit that carries a function cannot be distinguished from a unit that harms it; see
    `filterattr.signed_contrast` for scores that keep their sign.

    :math:`S_D = F_D - \lambda R_D` with :math:`R_D = \frac{1}{K - 1} \sum_{D' \ne D} F_{D'}` the mean of the other
    functions, or the one named by ``against``. Sort it in descending order with `FilterScores.top`.

    Args:
        scores: Name of a function (a degradation, a task) to its scores. The scores are means over samples, so all
            functions should have the same number of samples.
        of: The function D.
        against: The function to compare with; ``None`` takes the mean of all others.
        scale: ``"loss"`` is the paper's, :math:`\lambda = 1`. If a function has larger scores in total (such as noise),
            units that all functions use then seem specific to it. ``"share"`` compares shares of all scores,
            :math:`\lambda = \sum F_D / \sum R_D`. ``"strict"`` takes the larger :math:`\lambda` of both: a unit is
            specific only if its score is larger in the unit of the loss and as a share of all scores.

    Returns:
        The difference, in the unit of the loss.

    Raises:
        SettingError: A name or scale is unknown, there is nothing to compare with, or the units differ.

    Example:
        >>> from filterattr import ScoredParameter, Unit
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
    own_sum, rest_sum = (float(each.flat().abs().sum()) for each in (scores[of], rest))
    ratio = own_sum / rest_sum if rest_sum else 1.0
    factor = {"loss": 1.0, "share": ratio, "strict": max(1.0, ratio)}[scale]
    return scores[of] - rest * factor


def count_of(amount: float, total: int) -> int:
    """Turn a fraction or a number of units into a number.

    Args:
        amount: A fraction (``float``) or a number (``int``).
        total: Number of all units.

    Returns:
        The number.

    Raises:
        SettingError: It is neither, or too large.

    Example:
        >>> count_of(0.5, 10), count_of(1, 10)
        (5, 1)
    """
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


def mark_top(scores: Tensor, count: int) -> Tensor:
    """Mark the highest scores; the earlier one wins among equals. Takes linear time, as nothing is sorted.

    Args:
        scores: One-dimensional, without NaN.
        count: How many.

    Returns:
        Booleans of the same shape.

    Example:
        >>> mark_top(torch.tensor([0.3, 0.1, 0.3, 0.3]), 2)
        tensor([ True, False,  True, False])
    """
    if not 0 < count < len(scores):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    rank = len(scores) - count
    if scores.device.type == "cpu":  # several times as fast as PyTorch's
        least = float(np.partition(scores.detach().numpy(), rank)[rank])
    else:
        least = float(scores.kthvalue(rank + 1).values)
    chosen = scores > least
    ties = (scores == least).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def _draw(total: int, count: int, generator: torch.Generator, *, sparse: bool) -> Tensor:
    """Choose ``count`` of ``total`` places uniformly, without repetition."""
    if not sparse:
        places = torch.randperm(total, generator=generator, device="cpu")[:count]
        return torch.zeros(total, dtype=torch.bool, device="cpu").index_fill_(0, places, value=True)
    # a permutation of all would take most of the time of a null; the smaller part is drawn, in or out
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device="cpu")))
    drawn = random.choice(total, min(count, total - count), replace=False, shuffle=False)
    chosen = torch.full((total,), count > total - count, device="cpu")
    return chosen.index_fill_(0, torch.from_numpy(drawn), value=count <= total - count)
