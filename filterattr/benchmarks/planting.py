"""Pairs of networks whose carriers are known: two functions are trained into chosen units, everything else drifts.

1. *Base* learns the first task with all of its weights.
2. The chosen units of function A, and no other weight, learn a second task, and those of B a third one, in turns. Each
   learns with the other one present or absent, and while what the network says to all other inputs is held.
3. All other weights drift: every unit by a random step as long as that of a carrier, and weights in no unit by as
   much for each weight. So the size of a change says nothing about who carries what.
4. The drift settles: the units that drifted are trained to say what the network said before, with either function
   present or absent, and stay as far from base as they were. So the carriers are the truth still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam

from filterattr.analysis.knockout import unit_labels
from filterattr.attribution import FilterAttributor
from filterattr.benchmarks.families import N_CLASSES, Family
from filterattr.intervention import blend, swapped, train_only
from filterattr.names import Names
from filterattr.results.scores import FilterScores, FilterSelection
from filterattr.units.unit import sum_over_units, units_of

State = dict[str, Tensor]
FUNCTIONS = ("A", "B")
GENERAL = "general"
_BATCH, _STEPS, _HOLDING, _RATE, _DONE = 16, 80, 3.0, 1e-3, 0.3
_ROUNDS, _STEPS_OF_A_ROUND, _ABSENT = 60, 5, 0.3
_SETTLING = 100


@dataclass(frozen=True)
class PlantedPair:
    """A pair, its tasks, and who carries them.

    Attributes:
        attributor: Says which units there are; holds a network that both ends fit.
        base: Weights that can do the first task alone.
        target: Weights that can do all three.
        carriers: Function to the units that were trained for it: the truth.
        search: Task to samples for scores: pairs of an input and its class, in batches of one.
        held_out: Task to one batch of other samples.
    """

    attributor: FilterAttributor
    base: State
    target: State
    carriers: Mapping[str, FilterSelection]
    search: Mapping[str, list[tuple[Tensor, Tensor]]]
    held_out: Mapping[str, list[tuple[Tensor, Tensor]]]


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a batch: what the pairs are trained with, and scores are found with.

    Args:
        model: The network.
        sample: Inputs and their classes.

    Returns:
        The mean over the batch.

    Example:
        >>> round(loss(lambda x: 0 * x, (torch.ones(2, 4), torch.tensor([0, 3]))).item(), 4)
        1.3863
    """
    return nn.functional.cross_entropy(model(sample[0]), sample[1])


def plant(family: Family, seed: int, *, n_search: int = 16, n_held_out: int = 64) -> PlantedPair:
    """Make a pair.

    Args:
        family: The kind of network.
        seed: Of everything in it.
        n_search: Samples for scores, of every task.
        n_held_out: Samples for measures.

    Returns:
        The pair; the caller's random numbers are untouched.

    Example:
        >>> from filterattr.benchmarks import families
        >>> pair = plant(families()["LoRA"], 0)
        >>> pair.carriers["A"].count, (pair.carriers["A"] & pair.carriers["B"]).count
        (6, 0)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build()
    generator = torch.Generator().manual_seed(seed)
    attributor = FilterAttributor(model, unit=family.unit(model), select=family.select)
    tasks = {name: _Task(family, generator) for name in (GENERAL, *FUNCTIONS)}
    carriers = _carriers(family, attributor, generator)
    named = Names(name for name, _ in model.named_parameters())
    everything = dict(model.named_parameters())
    _learn_first(model, [everything[name] for name in named.first_of(family.trained)], tasks[GENERAL], generator)
    base = _weights(model)
    for name in FUNCTIONS:
        tasks[name].make_hard_for(model)
    learners = [_Learner(model, base, tasks, carriers, name) for name in FUNCTIONS]
    for _ in range(_ROUNDS):
        for learner in learners:
            learner.learn(generator)
        if all(learner.is_done for learner in learners):
            break
    before = _weights(model)
    _drift(attributor, base, carriers["A"] | carriers["B"], set(named.first_of(family.drifting)), generator)
    _settle(attributor, base, before, carriers, list(tasks.values()), generator)
    return PlantedPair(
        attributor,
        base,
        _weights(model),
        carriers,
        {name: [task.batch(1, generator) for _ in range(n_search)] for name, task in tasks.items()},
        {name: [task.batch(n_held_out, generator)] for name, task in tasks.items()},
    )


@torch.no_grad()
def is_learnt(pair: PlantedPair) -> bool:
    """Whether the carriers are the truth still, on the samples for scores.

    Target must be better than base at both functions, and at least half of that must be gone where the carriers of the
    function are back at base. Where the drift came to carry a function, nobody knows which units do.

    Args:
        pair: The pair.

    Example:
        >>> from filterattr.benchmarks import families
        >>> is_learnt(plant(families()["LoRA"], 0))
        True
    """
    model = pair.attributor.model

    def losses(state: State) -> dict[str, float]:
        with swapped(model, state) as network:
            return {name: sum(loss(network, sample).item() for sample in pair.search[name]) for name in FUNCTIONS}

    before, after = losses(pair.base), losses(pair.target)
    masked = {name: losses(blend(pair.target, pair.base, chosen)) for name, chosen in pair.carriers.items()}
    gains = {name: before[name] - after[name] for name in FUNCTIONS}
    return all(gains[name] > 0 and masked[name][name] - after[name] >= gains[name] / 2 for name in FUNCTIONS)


class _Task:
    """Inputs of some classes, each near one of a few prototypes."""

    def __init__(self, family: Family, generator: torch.Generator) -> None:
        self._blur = family.blur
        self._prototypes = family.prototypes(generator, N_CLASSES)
        self._classes = torch.arange(N_CLASSES)

    @torch.no_grad()
    def make_hard_for(self, model: nn.Module) -> None:
        """Give every prototype a class that the network does not take it for."""
        self._classes = (model(self._prototypes).argmax(1) + 1) % N_CLASSES

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        places = torch.randint(N_CLASSES, (size,), generator=generator)
        return self._blur(self._prototypes[places], generator), self._classes[places]


def _carriers(family: Family, attributor: FilterAttributor, generator: torch.Generator) -> dict[str, FilterSelection]:
    """Draw the units that will carry each function."""
    parameters = attributor.scored_parameters()
    like = FilterScores({key: torch.zeros(shape) for key, shape in units_of(parameters).items()}, parameters)
    count = family.n_carriers
    order = torch.randperm(like.n_units, generator=generator)
    if family.layout == "one layer":
        sizes = [tensor.numel() for tensor in like.values()]
        start = sum(sizes[: len(sizes) // 2])
        order = start + torch.randperm(sizes[len(sizes) // 2], generator=generator)
    second = count // 2 if family.layout == "overlapping" else count
    return {
        name: _marked(like, order[first : first + count]) for name, first in zip(FUNCTIONS, (0, second), strict=True)
    }


def _marked(like: FilterScores, places: Tensor) -> FilterSelection:
    """The units at these flat places."""
    flat = torch.zeros(like.n_units, dtype=torch.bool).index_fill_(0, places, value=True)
    parts = torch.split(flat, [tensor.numel() for tensor in like.values()])
    marked = {key: part.reshape(tensor.shape) for (key, tensor), part in zip(like.items(), parts, strict=True)}
    return FilterSelection(marked, like.parameters)


def _learn_first(model: nn.Module, trained: list[nn.Parameter], task: _Task, generator: torch.Generator) -> None:
    """Train the network on the task that base can do, and not until it is sure of everything."""
    optimizer = Adam(trained, lr=5e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        value = loss(model, task.batch(_BATCH, generator))
        torch.autograd.backward(value)
        optimizer.step()
        if value.item() < _DONE / 3:
            break
    model.zero_grad()


class _Learner:
    """Trains the carriers of one function, with those of the other present or absent, and nothing said elsewhere."""

    def __init__(
        self,
        model: nn.Module,
        base: State,
        tasks: Mapping[str, _Task],
        carriers: Mapping[str, FilterSelection],
        name: str,
    ) -> None:
        (other,) = (function for function in FUNCTIONS if function != name)
        self._model, self._base, self._chosen = model, base, carriers[name]
        self._tasks = [tasks[name], tasks[GENERAL], tasks[other]]
        self._carriers, self._others = carriers[name].weights(), (carriers[other] - carriers[name]).weights()
        self._labels = {
            name: (scored.key(name), unit_labels(scored)) for name, scored in self._chosen.parameters.items()
        }
        self._optimizer = Adam(model.parameters(), lr=_RATE)
        self._last = math.inf

    @property
    def is_done(self) -> bool:
        """Whether its task was done in every step of the last round."""
        return self._last < _DONE

    def learn(self, generator: torch.Generator) -> None:
        if self.is_done:
            return
        self._last = 0.0
        with train_only(self._model, self._chosen, self._optimizer):
            for _ in range(_STEPS_OF_A_ROUND):
                self._optimizer.zero_grad()
                torch.autograd.backward(self._loss(generator))
                self._optimizer.step()
        self._optimizer.zero_grad()

    def _loss(self, generator: torch.Generator) -> Tensor:
        """Of the task, and how much the carriers change what is said to the inputs of the others."""
        batches = [task.batch(_BATCH, generator) for task in self._tasks]
        inputs = torch.cat([x for x, _ in batches])
        held: dict[str, Tensor] = dict(self._model.named_parameters())
        if bool(torch.rand((), generator=generator) < 0.5):
            held = self._without(held, self._others)
        held = self._without(held, self._some(generator))
        said = functional_call(self._model, held, (inputs,))
        with torch.no_grad():
            before = functional_call(self._model, self._without(held, self._carriers), (inputs,))
        moved = (said[_BATCH:] - before[_BATCH:]).square().mean()
        value = nn.functional.cross_entropy(said[:_BATCH], batches[0][1])
        self._last = max(self._last, value.item())
        total: Tensor = value + _HOLDING * moved
        return total

    def _some(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of a few carriers; without them for a step, all of the others learn to carry a part."""
        few = {key: torch.rand(units.shape, generator=generator) < _ABSENT for key, units in self._chosen.kept.items()}
        return {
            name: self._carriers[name] & few[key].reshape(-1)[labels] for name, (key, labels) in self._labels.items()
        }

    def _without(self, held: Mapping[str, Tensor], marked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _replaced(held, self._base, marked)


def _drift(
    attributor: FilterAttributor, base: State, carriers: FilterSelection, drifting: set[str], generator: torch.Generator
) -> None:
    """Move every weight that carries nothing; per weight, a unit moves as far as a carrier that is drawn for it."""
    model, scored = attributor.model, attributor.scored_parameters()
    moved = sum_over_units({name: (model.get_parameter(name).detach() - base[name]).abs() for name in scored}, scored)
    sizes = sum_over_units({name: torch.ones_like(base[name]) for name in scored}, scored)
    lengths = torch.cat([(moved[key] / sizes[key])[carriers[key]] for key in moved])
    steps = {name: torch.randn(base[name].shape, generator=generator) for name, _ in model.named_parameters()}
    drawn = sum_over_units({name: steps[name].abs() for name in scored}, scored)
    wanted = {key: lengths[torch.randint(len(lengths), size.shape, generator=generator)] for key, size in sizes.items()}
    factors = {key: (wanted[key] * sizes[key] / drawn[key]) * ~carriers[key] for key in sizes}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in scored:
                factor = factors[scored[name].key(name)].reshape(-1)[unit_labels(scored[name])]
                parameter.add_(steps[name] * factor)
            elif name in drifting:
                parameter.add_(steps[name] * lengths.mean() / steps[name].abs().mean())


def _settle(
    attributor: FilterAttributor,
    base: State,
    before: State,
    carriers: Mapping[str, FilterSelection],
    tasks: list[_Task],
    generator: torch.Generator,
) -> None:
    """Train the units that drifted to say what the network said before; each stays as far from base as it is."""
    model, scored = attributor.model, attributor.scored_parameters()
    others = ~(carriers["A"] | carriers["B"])
    wanted = _lengths(model, base, others)
    optimizer = Adam(model.parameters(), lr=_RATE)
    with train_only(model, others, optimizer):
        for _ in range(_SETTLING):
            inputs = torch.cat([task.batch(_BATCH, generator)[0] for task in tasks])
            absent: dict[str, Tensor] = {}
            for chosen in carriers.values():
                if bool(torch.rand((), generator=generator) < 0.5):
                    absent = {name: marked | absent.get(name, marked) for name, marked in chosen.weights().items()}
            now = {**dict(model.named_parameters())}
            with torch.no_grad():
                said_before = functional_call(model, _replaced(before, base, absent), (inputs,))
            said = functional_call(model, _replaced(now, base, absent), (inputs,))
            optimizer.zero_grad()
            torch.autograd.backward((said - said_before).square().mean())
            optimizer.step()
            with torch.no_grad():
                factors = {
                    key: wanted[key] / length.clamp(min=1e-12) for key, length in _lengths(model, base, others).items()
                }
                for name, how in scored.items():
                    factor = torch.where(others.kept[how.key(name)], factors[how.key(name)], 1.0)
                    parameter = model.get_parameter(name)
                    parameter.copy_(base[name] + (parameter - base[name]) * how.unit.spread(factor, how.shape))
    optimizer.zero_grad()


def _lengths(model: nn.Module, base: State, units: FilterSelection) -> dict[str, Tensor]:
    """How far every unit is from base."""
    change = {name: (model.get_parameter(name).detach() - base[name]).abs() for name in units.parameters}
    return sum_over_units(change, units.parameters)


def _replaced(held: Mapping[str, Tensor], base: State, marked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of which those that are marked are at base."""
    return {
        name: torch.where(marked[name], base[name], value) if name in marked else value for name, value in held.items()
    }


def _weights(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
