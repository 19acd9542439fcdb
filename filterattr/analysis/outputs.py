r"""Outputs of a masked network: how far they return to base on one function, and leave target on all others.

.. math:: \mathrm{reverted}_D(S) = 1 - \frac{\sum_x d(f_S(x), f_{\mathrm{base}}(x))}
                                            {\sum_x d(f_{\mathrm{target}}(x), f_{\mathrm{base}}(x))}, \qquad
          \mathrm{moved}_{D'}(S) = \frac{\sum_x d(f_S(x), f_{\mathrm{target}}(x))}
                                        {\sum_x d(f_{\mathrm{base}}(x), f_{\mathrm{target}}(x))}

The `removed` share of a loss cannot distinguish a return to base from damage, because both raise the loss. The
reverted and moved shares of the outputs can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis.ends import ChangingState, Ends
from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.resampling import Array, Bootstrap, p_value
from filterattr.analysis.results import Null, bounded, spread
from filterattr.errors import LossError, NonFiniteError, SettingError, name_some
from filterattr.intervention import EditableState, swapped
from filterattr.jobs.progress import Progress, counted
from filterattr.model.fitting import Side
from filterattr.model.random_state import seed_all
from filterattr.model.state_dict import StateLike
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import read_only

Output: TypeAlias = Callable[[nn.Module, Any], Tensor]
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
DistanceName: TypeAlias = Literal["squared", "kl", "js"]
NULLS: tuple[Null, ...] = get_args(Null)


class SampleDistances(NamedTuple):
    """Distances of the outputs of a network from those of base and target.

    Attributes:
        to_base: Function to the distance from base for every sample, shape ``(n_samples,)``.
        to_target: Function to the distance from target for every sample.
    """

    to_base: Mapping[str, Array]
    to_target: Mapping[str, Array]


class Outputs(Ends):
    """Outputs of masked networks, compared with those of base and target.

    Args:
        model: The network of both checkpoints.
        base: Weights before the fine-tuning.
        target: Weights after it.
        output: ``output(model, sample)`` returns the output of the network for a sample, such as an image or logits, as
            one tensor. All networks see the same random numbers, and the caller's generators are not changed.
        data: Name of a function to its samples, as for `filterattr.analysis.masking.Masking`. Add inputs that need no
            function (clean images, general text) as a function, too: no set should move their outputs.
        distance: ``"squared"`` sums squared differences. For logits, with the classes on the last axis, ``"kl"`` is the
            Kullback-Leibler divergence of the network from base or target, and ``"js"`` the Jensen-Shannon divergence,
            which is at most log 2. Or a function of two outputs, of the network and of base or target, that returns one
            number.
        per_row: Count every row of an output, along its first axis, as a sample. A function for ``distance`` then
            returns one number per row, shape ``(N,)``.
        buffers: As for `filterattr.analysis.masking.Masking`.
        keep: Keep the outputs of base and target, on their device. ``False`` computes them again for every network,
            which takes three passes instead of one, and no memory.

    Attributes:
        apart_from_base: Function to the distance of target from base for every sample: the denominator of `reverted`.
        apart_from_target: Function to the distance of base from target for every sample: the denominator of `moved`.
            Both are equal if the distance is symmetric.
        n_samples: Function to number of samples.

    Raises:
        SettingError: A function has no samples, or the distance is unknown.
        LossError: The output is no tensor, or the distance is neither one number nor one number per row.
        NonFiniteError: An output of base or target is infinite or not a number.

    Example:
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> inputs = {"first": [torch.tensor([1.0, 0.0])], "second": [torch.tensor([0.0, 1.0])]}
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), inputs)
        >>> first = weight_change(FilterAttributor(base, unit="filter"), base, target).select({"weight": [0]})
        >>> outputs.reverted(first), outputs.moved(first)
        ({'first': 1.0, 'second': 0.0}, {'first': 1.0, 'second': 0.0})
    """

    def __init__(
        self,
        model: nn.Module,
        base: StateLike,
        target: StateLike,
        output: Output,
        data: Mapping[str, Sequence[Any]],
        *,
        distance: DistanceName | Distance = "squared",
        per_row: bool = False,
        buffers: Side | None = None,
        keep: bool = True,
    ) -> None:
        super().__init__(model, base, target, data, buffers=buffers)
        if not callable(distance) and distance not in get_args(DistanceName):
            raise SettingError(
                f"distance must be a function or one of {', '.join(get_args(DistanceName))}; got {distance!r}."
            )
        self.output = output
        self._distance = distance
        self._per_row = per_row
        self._places = [(name, place) for name, samples in self.data.items() for place in range(len(samples))]
        self._kept = {place: self._ends_at(*place) for place in self._places} if keep else None
        at_base, at_target = self.sample_distances(self._base), self.sample_distances(self._target)
        self.apart_from_base, self.apart_from_target = read_only(at_target.to_base), read_only(at_base.to_target)
        self.n_samples = read_only({name: len(values) for name, values in self.apart_from_base.items()})

    @torch.no_grad()
    def sample_distances(
        self, state: Mapping[str, Tensor] | EditableState, functions: Iterable[str] | None = None
    ) -> SampleDistances:
        """Compute the distances of the outputs of any weights from those of base and target.

        Args:
            state: The weights.
            functions: Functions whose samples are used; all by default.

        Returns:
            One distance per sample, float64; infinite instead of NaN.
        """
        names = tuple(self.data if functions is None else functions)
        distances: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
        places = [place for place in self._places if place[0] in distances]
        if self._kept is not None:
            with swapped(self.model, state, seed=0) as model:
                for place in places:
                    self._add(distances, place, self._said(model, *place), self._kept[place])
        else:
            for place in places:
                ends = self._ends_at(*place)
                with swapped(self.model, state, seed=0) as model:
                    self._add(distances, place, self._said(model, *place), ends)
        known = {
            name: [np.nan_to_num(values, nan=np.inf, posinf=np.inf) for values in both]
            for name, both in distances.items()
        }
        return SampleDistances(*({name: both[side] for name, both in known.items()} for side in (0, 1)))

    def changing(self) -> Callable[..., SampleDistances]:
        """Make a function that returns the distances for a selection, for many selections of the same units.

        Returns:
            The function. Its second argument names the functions to measure. From one selection to the next it writes
            only the units that differ.
        """
        state = ChangingState(self)
        return lambda selection, functions=None: self.sample_distances(state.with_units(selection), functions)

    def measure(self, selection: FilterSelection, bootstrap: Bootstrap | None = None) -> MeasuredOutputs:
        """Mask a selection and measure the outputs, with intervals over the samples.

        Args:
            selection: The units to set back to base.
            bootstrap: Draws of the samples; `bootstrap` by default.

        Returns:
            The reverted and moved shares of every function.
        """
        distances = self.sample_distances(self.masked(selection))
        return MeasuredOutputs(self, distances, bootstrap or self.bootstrap())

    def reverted(self, selection: FilterSelection) -> dict[str, float]:
        """Measure how far an ablation returns the outputs to base.

        Args:
            selection: The units to set back to base.

        Returns:
            Function to share: 1 is exactly base; 0 is as far from base as target; below 0 is damage, further from base
            than target. NaN if the outputs of base and target are equal.
        """
        return self.shares(selection)[0]

    def moved(self, selection: FilterSelection) -> dict[str, float]:
        """Measure how far an ablation moves the outputs away from target.

        Args:
            selection: The units to set back to base.

        Returns:
            Function to share: 0 is exactly target; 1 is as far from target as base; above 1 is damage. NaN if the
            outputs of base and target are equal.
        """
        return self.shares(selection)[1]

    def shares(
        self, selection: FilterSelection, functions: Iterable[str] | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure both of an ablation in the same forward passes.

        Args:
            selection: The units to set back to base.
            functions: Functions whose samples are used; all by default.

        Returns:
            What `reverted` and what `moved` return, of these functions.
        """
        distances = self.sample_distances(self.masked(selection), functions)
        return (
            {name: 1 - _part(values, self.apart_from_base[name]) for name, values in distances.to_base.items()},
            {name: _part(values, self.apart_from_target[name]) for name, values in distances.to_target.items()},
        )

    def ends_at(self, name: str, place: int) -> tuple[Tensor, Tensor]:
        """Outputs of base and target for a sample; computed again if they were not kept.

        Args:
            name: The function.
            place: Index of the sample.

        Returns:
            The outputs of base and of target.
        """
        base, target = self._ends_at(name, place) if self._kept is None else self._kept[name, place]
        return base.clone(), target.clone()

    def distance_from(self, end: Tensor, model: nn.Module, name: str, place: int) -> Tensor:
        """Distance of the output of a network from that of base or target, with its autograd graph.

        Args:
            end: The output of base or target.
            model: The network, with the weights to measure.
            name: The function.
            place: Index of the sample.

        Returns:
            One number: the sum over the rows of a batch.
        """
        return self._values(self._said(model, name, place), end).sum()

    def _said(self, model: nn.Module, name: str, place: int) -> Tensor:
        """The output of a network for a sample of a function."""
        seed_all(place)
        said = self.output(model, self.data[name][place])
        if not isinstance(said, Tensor):
            raise LossError(f"output must return one tensor; got {type(said).__name__}.")
        return said

    @torch.no_grad()
    def _ends_at(self, name: str, place: int) -> tuple[Tensor, Tensor]:
        """The outputs of base and target for a sample of a function."""
        ends = []
        for role, state in (("base", self._base), ("target", self._target)):
            with swapped(self.model, state, seed=0) as model:
                ends.append(self._said(model, name, place).detach())
            if not bool(torch.isfinite(ends[-1]).all()):
                raise NonFiniteError(f"the output of {role} must be finite ({name!r}, sample {place}).")
        return ends[0], ends[1]

    def _add(
        self,
        distances: Mapping[str, tuple[list[float], list[float]]],
        place: tuple[str, int],
        said: Tensor,
        ends: tuple[Tensor, Tensor],
    ) -> None:
        """Append the distances of an output from base and target to those of its function."""
        for values, end in zip(distances[place[0]], ends, strict=True):
            values += [float(value) for value in self._values(said, end).reshape(-1).tolist()]

    def _values(self, said: Tensor, end: Tensor) -> Tensor:
        """The distance of an output from that of base or target: one number, or one per row."""
        if callable(self._distance):
            values = torch.as_tensor(self._distance(said, end))
        else:
            values = _BUILT_IN[self._distance](said, end)
            values = values.flatten(1).sum(1) if self._per_row and values.ndim > 1 else values
            values = values if self._per_row else values.sum()
        if values.ndim != int(self._per_row):
            expected = "one number per row, shape (N,)" if self._per_row else "one number"
            raise LossError(f"the distance must be {expected}; got shape {tuple(values.shape)}.")
        return values


class MeasuredOutputs:
    """The reverted and moved shares of one network, in every draw of the bootstrap.

    Args:
        outputs: Base, target and samples.
        distances: Distances of the network, as `Outputs.sample_distances` returns them.
        bootstrap: The draws.

    Example:
        >>> base, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), {"copying": list(torch.rand(8, 2))})
        >>> back = MeasuredOutputs(outputs, outputs.sample_distances(outputs.base), outputs.bootstrap())
        >>> print(back.reverted("copying"))
        1.00 [1.00, 1.00]
    """

    def __init__(self, outputs: Outputs, distances: SampleDistances, bootstrap: Bootstrap) -> None:
        self._bootstrap = bootstrap
        self._reverted: dict[str, tuple[float, Array]] = {}
        self._moved: dict[str, tuple[float, Array]] = {}
        for name in outputs.data:
            value, drawn = _parts(bootstrap, name, distances.to_base[name], outputs.apart_from_base[name])
            self._reverted[name] = 1 - value, 1 - drawn
            self._moved[name] = _parts(bootstrap, name, distances.to_target[name], outputs.apart_from_target[name])

    def reverted(self, name: str) -> Estimate:
        """Reverted share of a function.

        Args:
            name: The function.

        Returns:
            The share with its interval, as in `Outputs.reverted`.
        """
        return self._bootstrap.estimate(*self._reverted[name])

    def moved(self, name: str) -> Estimate:
        """Moved share of a function.

        Args:
            name: The function.

        Returns:
            The share with its interval, as in `Outputs.moved`.
        """
        return self._bootstrap.estimate(*self._moved[name])

    def more_reverted(self, name: str, other: MeasuredOutputs) -> Estimate:
        """Difference of two networks in the reverted share, draw by draw.

        Args:
            name: The function.
            other: The network to compare with, on the same draws.

        Returns:
            The difference with its interval; positive if this network is closer to base.
        """
        (value, drawn), (other_value, other_drawn) = self._reverted[name], other._reverted[name]
        return self._bootstrap.estimate(value - other_value, drawn - other_drawn)


@dataclass(frozen=True)
class Reversion(Record):
    """The effect of a set on its function and on all others, with null distributions.

    Attributes:
        function: The function of the set.
        count: Number of units in the set.
        reverted: Reverted share of the function.
        moved: Every other function to its moved share.
        null_reverted: Kind of null to the shares of the function that its random sets revert.
        null_moved: Kind of null to other function to the shares that the same sets move, if they were measured.
        n_samples: Function to number of samples.
    """

    function: str
    count: int
    reverted: Estimate
    moved: Mapping[str, Estimate]
    null_reverted: Mapping[str, tuple[float, ...]]
    null_moved: Mapping[str, Mapping[str, tuple[float, ...]]]
    n_samples: Mapping[str, int]

    @property
    def p_values(self) -> dict[str, float]:
        """Kind of null to its p-value, the chance that a random set reverts as much."""
        return {null: p_value(self.reverted.value, drawn) for null, drawn in self.null_reverted.items()}

    def rows(self) -> list[Row]:
        """One row per function; the row of the function of the set holds the p-values."""
        shares = [("reverted", self.function, self.reverted), *(("moved", *pair) for pair in self.moved.items())]
        return [
            {
                "function": self.function,
                "count": self.count,
                "measure": measure,
                "on": name,
                **spread("share", share),
                "bounded": bounded(share.value),
                **{f"p {null}": self.p_values.get(null) if measure == "reverted" else None for null in NULLS},
            }
            for measure, name, share in shares
        ]


def reversion(
    outputs: Outputs,
    selection: FilterSelection,
    of: str,
    *,
    generator: torch.Generator | None = None,
    nulls: Sequence[Null] = NULLS,
    draws: int = 99,
    null_moves: bool = True,
    bootstrap: Bootstrap | None = None,
    progress: Progress = None,
) -> Reversion:
    """Mask the set of one function, measure all outputs, and compare with random sets.

    Args:
        outputs: The networks and held-out samples.
        selection: The set.
        of: The function of the set; all other functions of ``outputs`` should stay at target.
        generator: Source of the random sets, on the CPU; without it there is no null.
        nulls: ``"random"`` draws the same number of units, ``"layer-matched"`` the same number in every parameter.
        draws: Random sets of each kind; each set costs one forward pass per sample.
        null_moves: Measure the moved shares of the random sets, too; ``False`` saves their passes.
        bootstrap: For the intervals; `Outputs.bootstrap` by default.
        progress: As in `FilterAttributor.attribute`, counted in sets.

    Returns:
        The reverted and moved shares, with intervals and p-values.

    Raises:
        SettingError: The function or a null is unknown, or there are fewer than two draws.

    Example:
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(4))
        >>> inputs = {"first": torch.eye(4)[:1], "rest": torch.eye(4)[1:]}
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), inputs)
        >>> first = weight_change(FilterAttributor(base, unit="filter"), base, target).select({"weight": [0]})
        >>> found = reversion(outputs, first, "first", generator=torch.Generator().manual_seed(0), draws=9)
        >>> found.reverted.value, found.moved["rest"].value, found.p_values["random"] < 1
        (1.0, 0.0, True)
    """
    unknown = [null for null in nulls if null not in NULLS]
    if of not in outputs.data or unknown or (generator is not None and draws < 2):
        raise SettingError(
            f"reversion needs a function of {name_some(outputs.data)}, nulls of {name_some(NULLS)} and at least 2 "
            f"draws; got {of!r}, {name_some(nulls) or 'none'} and {draws}."
        )
    others = [name for name in outputs.data if name != of]
    nulls = nulls if generator is not None else ()
    seen = others if null_moves else []
    distances_of = outputs.changing()
    measured = MeasuredOutputs(outputs, distances_of(selection), bootstrap or outputs.bootstrap())
    reverted: dict[str, tuple[float, ...]] = {}
    moved: dict[str, dict[str, tuple[float, ...]]] = {}
    with counted(progress, draws * len(nulls), "set") as step:
        for null in nulls:
            drawn = []
            for _ in range(draws):
                chosen = selection.random(generator, layer_matched=null == "layer-matched")  # type: ignore[arg-type]
                drawn.append(distances_of(chosen, (of, *seen)))
                step()
            base, target = outputs.apart_from_base, outputs.apart_from_target
            reverted[null] = tuple(1 - _part(draw.to_base[of], base[of]) for draw in drawn)
            moved[null] = {name: tuple(_part(draw.to_target[name], target[name]) for draw in drawn) for name in seen}
    return Reversion(
        function=of,
        count=selection.count,
        reverted=measured.reverted(of),
        moved={name: measured.moved(name) for name in others},
        null_reverted=reverted,
        null_moved=moved,
        n_samples=outputs.n_samples,
    )


def _part(values: Array, apart: Array) -> float:
    """The quotient of two sums of distances; NaN if the second is 0."""
    total = float(apart.sum())
    return float(values.sum()) / total if total else float("nan")


def _parts(bootstrap: Bootstrap, name: str, values: Array, apart: Array) -> tuple[float, Array]:
    """The same quotient for all samples, and for every draw."""
    drawn = bootstrap.means(name, apart)
    return _part(values, apart), bootstrap.means(name, values) / np.where(drawn == 0, np.nan, drawn)


def _squared(said: Tensor, end: Tensor) -> Tensor:
    wide = torch.complex128 if said.is_complex() else torch.float64
    return (said.to(wide) - end.to(wide)).abs().square()


def _kullback_leibler(said: Tensor, end: Tensor) -> Tensor:
    return _divergence(_log_shares(end), _log_shares(said))


def _jensen_shannon(said: Tensor, end: Tensor) -> Tensor:
    first, second = _log_shares(said), _log_shares(end)
    middle = torch.logaddexp(first, second) - np.log(2)
    return (_divergence(first, middle) + _divergence(second, middle)) / 2


def _log_shares(logits: Tensor) -> Tensor:
    return logits.to(torch.float64).log_softmax(-1)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the second from the first; a class with probability 0 adds 0."""
    return torch.where(first.isneginf(), 0.0, first.exp() * (first - second)).sum(-1)


_BUILT_IN: Mapping[str, Distance] = {"squared": _squared, "kl": _kullback_leibler, "js": _jensen_shannon}
