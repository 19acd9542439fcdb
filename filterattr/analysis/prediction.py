r"""Predict which function an input needs, from the network alone, without labels.

The output of target is the reference. The loss of one sample is the distance of the output at :math:`\gamma(t)` from
the output of target, :math:`\lVert F(\gamma(t), x) - F(\theta, x) \rVert^2`. It falls to 0 at target, and its
attribution scores the units for this one input. Three read-outs compare these scores with the set of every function:

overlap
    share of the set among the top units of the sample.
mass
    share of all scores of the sample that lies in the set.
response
    distance that the output moves when the set is set back to base, as a share of the distance between base and target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.results import spread
from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError, name_some
from filterattr.intervention import blend, swapped
from filterattr.jobs.progress import Progress, counted
from filterattr.model.state_dict import StateLike, copied, state_for
from filterattr.results.attribution import without_doubts
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import Immutable, Reduction, read_only

ReadOut: TypeAlias = Literal["overlap", "mass", "response"]
READ_OUTS: tuple[ReadOut, ...] = get_args(ReadOut)
UNSURE = "unsure"


def squared_distance(output: Any, reference: Any) -> Tensor:
    r"""The default distance of two outputs: :math:`\lVert a - b \rVert^2`.

    Args:
        output: A tensor.
        reference: A tensor of the same shape.

    Returns:
        A scalar.

    Example:
        >>> squared_distance(torch.tensor([1.0, 2.0]), torch.zeros(2))
        tensor(5.)
    """
    distance: Tensor = (output - reference).square().sum()
    return distance


@dataclass(frozen=True)
class Signals(Record):
    """The read-outs of one sample.

    Attributes:
        overlap: Function to share of its set among the top units of the sample, in [0, 1].
        mass: Function to share of the sample's scores in its set, in [0, 1].
        response: Function to the distance that masking its set moves the output; 1 is the distance of base from target.
    """

    overlap: Mapping[str, float]
    mass: Mapping[str, float]
    response: Mapping[str, float]

    def rows(self) -> list[Row]:
        """One row per function."""
        return [
            {"function": name, **{read_out: getattr(self, read_out)[name] for read_out in READ_OUTS}}
            for name in self.overlap
        ]


@dataclass(frozen=True)
class Prediction(Immutable):
    """The prediction for one sample.

    Attributes:
        answer: The function, or ``"unsure"``.
        probabilities: Function to probability; without calibration, the read-outs as shares of their sum.
    """

    answer: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Calibration(Record):
    """A multinomial logistic regression from read-outs to labels.

    Attributes:
        labels: The possible answers. A label need not be a function with a set; an example is "clean".
        functions: The functions whose read-outs are features.
        read_outs: The read-outs that are features.
        means: Mean of every feature on the labelled samples.
        scales: Standard deviation of every feature on the labelled samples.
        weights: Label to one weight per feature.
        biases: Label to bias.
        unsure_below: Answers with a lower probability are ``"unsure"``.
    """

    labels: tuple[str, ...]
    functions: tuple[str, ...]
    read_outs: tuple[ReadOut, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: Mapping[str, tuple[float, ...]]
    biases: Mapping[str, float]
    unsure_below: float

    @classmethod
    def fit(
        cls,
        labelled: Mapping[str, Sequence[Signals]],
        *,
        read_outs: Sequence[ReadOut] = READ_OUTS,
        penalty: float = 0.1,
        unsure_below: float = 0.6,
    ) -> Calibration:
        r"""Fit to a small labelled set.

        Minimises the mean cross-entropy plus ``penalty`` times :math:`\lVert W \rVert^2 / 2` on standardised features.
        The penalty makes the minimum unique, and keeps probabilities away from 0 and 1 if few samples separate
        perfectly.

        Args:
            labelled: Label to signals of its samples.
            read_outs: Which read-outs to use.
            penalty: Above 0.
            unsure_below: Probability under which an answer is ``"unsure"``.

        Returns:
            The calibration.

        Raises:
            SettingError: There are fewer than two labels, one has no samples, or a setting is out of range.

        Example:
            >>> near, far = ({"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8})
            >>> labelled = {"a": [Signals(near, near, near)] * 5, "b": [Signals(far, far, far)] * 5}
            >>> Calibration.fit(labelled).predict(Signals(near, near, near)).answer
            'a'
        """
        empty = [label for label, signals in labelled.items() if not signals]
        if len(labelled) < 2 or empty or penalty <= 0 or not read_outs or not 0 <= unsure_below < 1:
            raise SettingError(
                f"calibration needs two labels with samples, read-outs, a penalty above 0 and unsure_below in [0, 1); "
                f"got {name_some(labelled) or 'none'}, without samples {name_some(empty) or 'none'}, {read_outs}, "
                f"{penalty}, {unsure_below}."
            )
        labels = tuple(labelled)
        functions = tuple(next(iter(labelled.values()))[0].overlap)
        rows = [_features(signal, functions, read_outs) for signals in labelled.values() for signal in signals]
        places = torch.tensor([k for k, signals in enumerate(labelled.values()) for _ in signals], device="cpu")
        features = torch.tensor(rows, dtype=torch.float64, device="cpu")
        means, scales = features.mean(0), features.std(0, correction=0)
        scales = torch.where(scales > 0, scales, 1.0)
        weights, biases = _logistic((features - means) / scales, places, len(labels), penalty)
        return cls(
            labels=labels,
            functions=functions,
            read_outs=tuple(read_outs),
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            weights={label: tuple(row) for label, row in zip(labels, weights.tolist(), strict=True)},
            biases=dict(zip(labels, biases.tolist(), strict=True)),
            unsure_below=unsure_below,
        )

    def predict(self, signals: Signals) -> Prediction:
        """Predict the label of one sample.

        Args:
            signals: The read-outs that `FunctionPredictor.signals` returned.

        Returns:
            The most probable label, or ``"unsure"``.
        """
        features = _features(signals, self.functions, self.read_outs)
        standard = [
            (value - mean) / scale for value, mean, scale in zip(features, self.means, self.scales, strict=True)
        ]
        logits = [
            self.biases[label] + math.fsum(w * x for w, x in zip(self.weights[label], standard, strict=True))
            for label in self.labels
        ]
        probabilities = torch.tensor(logits, dtype=torch.float64, device="cpu").softmax(0).tolist()
        return _answer(dict(zip(self.labels, probabilities, strict=True)), self.unsure_below)

    def rows(self) -> list[Row]:
        """One row per label and feature."""
        names = [f"{read_out} {function}" for read_out in self.read_outs for function in self.functions]
        return [
            {"label": label, "feature": name, "weight": weight, "bias": self.biases[label]}
            for label in self.labels
            for name, weight in zip(names, self.weights[label], strict=True)
        ]


def largest_wins(signals: Signals, read_out: ReadOut = "overlap", *, unsure_below: float = 0.0) -> Prediction:
    """Predict the function with the largest read-out; no labels are used.

    Args:
        signals: The read-outs that `FunctionPredictor.signals` returned.
        read_out: Name of the read-out.
        unsure_below: Smallest share of the sum of all read-outs that the largest must have.

    Returns:
        The function; ``"unsure"`` also if two read-outs are equal.

    Raises:
        SettingError: The read-out is unknown.

    Example:
        >>> values = {"blur": 0.6, "noise": 0.2}
        >>> largest_wins(Signals(values, values, values)).answer
        'blur'
    """
    if read_out not in READ_OUTS:
        raise SettingError(f"read_out must be one of {', '.join(READ_OUTS)}; got {read_out!r}.")
    values: Mapping[str, float] = getattr(signals, read_out)
    total = math.fsum(values.values())
    return _answer({name: value / total if total else 1 / len(values) for name, value in values.items()}, unsure_below)


class FunctionPredictor:
    """Read out which function an input needs, from the scores of its units.

    Args:
        attributor: Defines the units.
        base: Weights that lack the functions.
        target: Weights that have them.
        sets: Function to the units that were found for it, on other samples.
        respond: ``respond(model, sample)`` returns the output of the model; by default ``model(sample)``.
        distance: ``distance(output, reference)`` returns a scalar; by default the squared distance.
        amount: Size of the top set of a sample; by default the size of the largest set.
        reduction: As in `FilterAttribution.scores`.
        n_steps: Nodes of the integral; one forward-backward pass each per sample.

    Raises:
        SettingError: There are fewer than two sets, or one is empty.
        StateMismatchError: Base or target does not fit the sets.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> base, target = {"weight": torch.zeros(2, 2)}, {"weight": torch.eye(2)}
        >>> attributor = FilterAttributor(layer, unit="weight")
        >>> like = attributor.attribute(base, target, lambda m: m(torch.ones(2)).square().sum()).scores()
        >>> sets = {name: FilterSelection({"weight": torch.eye(2)[[k]].bool() & torch.eye(2).bool()}, like.parameters)
        ...         for k, name in enumerate(("first", "second"))}
        >>> predictor = FunctionPredictor(attributor, base, target, sets)
        >>> largest_wins(predictor.signals(torch.tensor([3.0, 0.1]))).answer
        'first'

    References:
        Xie et al., NeurIPS 2021, section 4.4 (overlap).
    """

    def __init__(
        self,
        attributor: FilterAttributor,
        base: StateLike,
        target: StateLike,
        sets: Mapping[str, FilterSelection],
        *,
        respond: Callable[[nn.Module, Any], Any] | None = None,
        distance: Callable[[Any, Any], Tensor] = squared_distance,
        amount: float | None = None,
        reduction: Reduction = "sum_of_abs",
        n_steps: int = 8,
    ) -> None:
        empty = [name for name, chosen in sets.items() if not chosen.count]
        if len(sets) < 2 or empty:
            raise SettingError(
                f"at least two sets are needed, none of them empty; got {name_some(sets) or 'none'}, empty: "
                f"{name_some(empty) or 'none'}."
            )
        self.attributor = attributor
        self.sets = read_only(sets)
        self.amount = max(chosen.count for chosen in sets.values()) if amount is None else amount
        self.reduction: Reduction = reduction
        self.n_steps = n_steps
        self._base = copied(state_for(attributor.model, base, "base"))
        self._target = copied(state_for(attributor.model, target, "target"))
        self._masked = {name: blend(self._target, self._base, chosen) for name, chosen in sets.items()}
        self._respond = respond or _call
        self._distance = distance

    def signals(self, sample: Any) -> Signals:
        """Attribute one sample and compute its read-outs; no label is needed.

        Args:
            sample: A sample that ``respond`` takes.

        Returns:
            The three read-outs for every function.
        """
        reference = self._answer_of(self._target, sample)

        def loss(model: nn.Module) -> Tensor:
            return self._distance(self._respond(model, sample), reference)

        with without_doubts():  # a single sample need not tell target from base
            attribution = self.attributor.attribute(
                self._base, self._target, loss, n_steps=self.n_steps, progress=False
            )
        scores = attribution.scores(self.reduction)
        sizes = scores.flat().abs()
        total = float(sizes.sum())
        top = scores.top(self.amount if total else 0)
        apart = attribution.loss_base
        moved = {
            name: float(self._distance(self._answer_of(state, sample), reference))
            for name, state in self._masked.items()
        }
        return Signals(
            overlap={name: (top & chosen).count / chosen.count for name, chosen in self.sets.items()},
            mass={
                name: float(sizes[chosen.flat()].sum()) / total if total else 0.0 for name, chosen in self.sets.items()
            },
            response={name: value / apart if apart else 0.0 for name, value in moved.items()},
        )

    def signals_of(
        self, samples: Mapping[str, Iterable[Any]], *, progress: Progress = None
    ) -> dict[str, tuple[Signals, ...]]:
        """Compute the read-outs of many samples. The labels are keys only; they are not used.

        Args:
            samples: Label to samples.
            progress: As in `FilterAttributor.attribute`, counted in samples.

        Returns:
            Label to signals.
        """
        listed = {label: list(some) for label, some in samples.items()}
        by_label: dict[str, tuple[Signals, ...]] = {}
        with counted(progress, sum(map(len, listed.values())), "sample") as step:
            for label, some in listed.items():
                signals = []
                for sample in some:
                    signals.append(self.signals(sample))
                    step()
                by_label[label] = tuple(signals)
        return by_label

    @torch.no_grad()
    def _answer_of(self, state: Mapping[str, Tensor], sample: Any) -> Any:
        with swapped(self.attributor.model, state, seed=0) as model:
            return self._respond(model, sample)


@dataclass(frozen=True)
class Confusion(Record):
    """A confusion matrix: predictions for samples whose function is known.

    Attributes:
        method: Name of the method, such as ``"overlap"`` or ``"calibrated"``.
        counts: True label to answer to number of samples; the answers include ``"unsure"``.
        confidence: Level of the intervals of accuracies, in (0, 1).
    """

    method: str
    counts: Mapping[str, Mapping[str, int]]
    confidence: float = 0.95

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return sum(sum(row.values()) for row in self.counts.values())

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers among all samples, with Wilson's interval; ``"unsure"`` counts as wrong."""
        return wilson(self._right(), self.n_samples, self.confidence)

    @property
    def accuracy_if_sure(self) -> Estimate:
        """Share of right answers among those that are not ``"unsure"``."""
        return wilson(self._right(), self.n_samples - self._unsure(), self.confidence)

    @property
    def unsure_share(self) -> Estimate:
        """Share of samples that were answered with ``"unsure"``."""
        return wilson(self._unsure(), self.n_samples, self.confidence)

    def _right(self) -> int:
        return sum(row.get(label, 0) for label, row in self.counts.items())

    def _unsure(self) -> int:
        return sum(row.get(UNSURE, 0) for row in self.counts.values())

    def rows(self) -> list[Row]:
        """One row per true label and answer, with the share among the samples of the label."""
        return [
            {
                "method": self.method,
                "label": label,
                "answer": answer,
                "count": count,
                **spread("share", wilson(count, sum(row.values()), self.confidence)),
            }
            for label, row in self.counts.items()
            for answer, count in row.items()
        ]


def confusion(
    signals: Mapping[str, Sequence[Signals]], predict: Callable[[Signals], Prediction], *, method: str
) -> Confusion:
    """Count the predictions for labelled samples. Use other samples than those of the calibration.

    Args:
        signals: True label to signals.
        predict: `largest_wins`, or `Calibration.predict`.
        method: Name of the method.

    Returns:
        The matrix.

    Example:
        >>> values = {"a": 0.6, "b": 0.2}
        >>> found = confusion({"a": [Signals(values, values, values)] * 9}, largest_wins, method="overlap")
        >>> print(found.accuracy)
        1.00 [0.70, 1.00]
    """
    answers = {label: [predict(signal).answer for signal in some] for label, some in signals.items()}
    seen = dict.fromkeys([*signals, *(answer for row in answers.values() for answer in row if answer != UNSURE)])
    columns = [*seen, UNSURE]
    return Confusion(
        method, {label: {answer: row.count(answer) for answer in columns} for label, row in answers.items()}
    )


def wilson(count: int, total: int, confidence: float = 0.95) -> Estimate:
    """A share with Wilson's score interval, which is valid near 0 and 1, too.

    Args:
        count: The number of successes.
        total: The number of trials.
        confidence: Confidence level of the interval.

    Returns:
        The share with its interval; NaN if ``total`` is 0.

    Example:
        >>> print(wilson(99, 100))
        0.99 [0.95, 1.00]

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if not total:
        return Estimate(math.nan)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # at the ends rounding would leave the share outside
    return Estimate(share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def _call(model: nn.Module, sample: Any) -> Any:
    return model(sample)


def _answer(probabilities: Mapping[str, float], unsure_below: float) -> Prediction:
    ordered = sorted(probabilities.values(), reverse=True)
    best = max(probabilities, key=lambda name: probabilities[name])
    is_tied = len(ordered) > 1 and ordered[0] == ordered[1]
    return Prediction(UNSURE if is_tied or ordered[0] < unsure_below else best, dict(probabilities))


def _features(signals: Signals, functions: Sequence[str], read_outs: Sequence[ReadOut]) -> list[float]:
    return [getattr(signals, read_out)[function] for read_out in read_outs for function in functions]


def _logistic(features: Tensor, labels: Tensor, n_labels: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by Newton-like steps: small, convex, and the same on every machine."""
    with torch.inference_mode(False), torch.enable_grad():
        features, labels = features.clone(), labels.clone()
        weights = torch.zeros(n_labels, features.shape[1], dtype=torch.float64, requires_grad=True, device="cpu")
        biases = torch.zeros(n_labels, dtype=torch.float64, requires_grad=True, device="cpu")
        optimizer = torch.optim.LBFGS(
            [weights, biases], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            fit = nn.functional.cross_entropy(features @ weights.T + biases, labels)
            value = fit + penalty * weights.square().sum() / 2
            torch.autograd.backward(value)
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach(), biases.detach()
