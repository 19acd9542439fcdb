r"""The loss as a function of the place on the path, :math:`t \mapsto L(\gamma(t))`, and its gradient there."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from filterattr.errors import LossError, ModelChangedError, NonFiniteError, is_out_of_memory, name_some
from filterattr.integral.gradients import GradientAccumulator
from filterattr.integral.path import Path
from filterattr.loss.checks import Agreement, Loss, agreement_of, check_scalar, first_nonfinite_output
from filterattr.loss.out_of_memory import advice, sizes_of
from filterattr.loss.repeats import changed_by, roots_of
from filterattr.loss.sample_watch import SampleWatch, fresh
from filterattr.model.context import Autocast, keep_freed_memory
from filterattr.model.random_state import RandomState, Turn, seed_all
from filterattr.model.swap import ParameterSwap, WriteGuard, restoring

G = TypeVar("G", bound=GradientAccumulator)
T = TypeVar("T")


@dataclass
class Visit:
    """One sample on the path.

    Attributes:
        arguments: What the loss gets after the model.
        seed: Seed of the sample's randomness, the same at every place.
        where: The sample, for messages.
        watch: Finds out whether the loss changes the sample.
        sizes: Shapes of its tensors.
        losses: Place to loss, float64.
        coefficients: Place to coefficient, where a gradient was taken.
        is_quiet: Whether the loss is known to draw nothing.
    """

    arguments: tuple[Any, ...] = ()
    seed: int = 0
    where: str = ""
    watch: SampleWatch | None = None
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    losses: dict[float, Tensor] = field(default_factory=dict)
    coefficients: dict[float, float] = field(default_factory=dict)
    is_quiet: bool = False


class PathNode(Generic[G]):
    """The user's loss at places of the path, for one sample at a time; the model is given back after every pass.

    Args:
        model: The model that the loss is given.
        swap: Exchanges its weights.
        path: The path.
        loss: The user's loss.
        gradients: Takes the gradients, of the parameters that change along the path.
        autocast: What the loss is evaluated in; the default leaves that to the user.

    Attributes:
        swap: Exchanges the weights of the model.
        path: The path.
        moved: The parameters that change along the path.
        visit: The current sample, and what was seen of it.
        keeps_points: Whether the weights of a place stay as they are for the next pass at the same place.
        doubt: Why the loss may be another function at every node; empty if nothing says so.
        gradients: What the gradients of the current sample add up to, for the parameters that change along the path;
            the others count exactly 0 and cost neither time nor memory.
        give_back: What gives the model back after every pass, for `restoring`.
    """

    def __init__(
        self,
        model: nn.Module,
        swap: ParameterSwap,
        path: Path,
        loss: Loss,
        gradients: G,
        autocast: Autocast | None = None,
    ) -> None:
        keep_freed_memory()
        self.path = path
        self.moved = path.moved()
        self.gradients = gradients
        self.visit = Visit()
        self.doubt = ""
        self._model = model
        self.swap = swap
        self._loss = loss
        self._autocast = autocast if autocast is not None and autocast.is_used else None
        # autocast keeps its casts of every weight that it has seen
        self._turn = Turn()
        modes = () if self._autocast is None else (self._autocast.restore,)
        self.give_back = (*modes, swap.restore, torch.clear_autocast_cache)
        self._line, self._point, self._weights = path.side_by_side()
        self.keeps_points = False
        self._written: float | None = None  # the place whose weights the memory holds
        self._is_rest_written = False
        self._ends = WriteGuard(end for corner in (path.base, *path.waypoints, path.target) for end in corner.items())
        self._n_started = 0
        self._is_traced = False
        self._fitted: list[tuple[int, ...]] = []

    def start(self, arguments: tuple[Any, ...], seed: int, index: int) -> None:
        """Turn to another sample.

        Args:
            arguments: What the loss gets after the model.
            seed: Seed of the sample's randomness, the same at every place.
            index: Number of the sample, for messages.
        """
        self.visit = Visit(arguments, seed)
        if arguments:
            self.visit.watch = SampleWatch(arguments, index, with_arrays=not self._n_started)
            self.visit.where, self.visit.sizes = f" (sample {index})", sizes_of(arguments)
        self._n_started += 1
        self.gradients.reset()

    def evaluate(self, t: float, coefficient: float | None = None) -> Tensor:
        """Evaluate the loss at one place, and add its gradient to the sums.

        Args:
            t: Place on the path.
            coefficient: What the gradient is multiplied with; ``None`` leaves it out.

        Returns:
            The loss, float64, on its device.

        Raises:
            LossError: The loss is no real scalar that depends on the model.
            ModelChangedError: The loss replaced or trained parameters.
            RuntimeError: PyTorch's own error for lack of memory passes through; a note at it says what would help.
        """
        visit = self.visit
        try:
            leaves, tensors = self.leaves_at(t)
            moved = {name: leaves[name] for name in self.moved} if coefficient is not None else {}
            turns = self._turns()

            def one_pass() -> Tensor:
                seeded = self._begin(turns)
                with self.swap.holding(tensors):
                    value = self.compute(visit.arguments)
                    if moved and coefficient is not None:
                        self.gradients.take_all(value, moved, coefficient)
                    self._keep_written(t, leaves)
                    # draws of other threads cannot lie in between: this one has its turn
                    visit.is_quiet = seeded.is_untouched() if seeded else visit.is_quiet
                    return value.detach().to(torch.float64)

            give_back = (*self.give_back, *(turn.release for turn in turns))
            visit.losses[t] = restoring(one_pass, *give_back, tensors.clear, leaves.clear, moved.clear)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                device = next(iter(self.path.base.values())).device
                where, narrow = f"t = {t:.4g}{visit.where}", self._autocast is not None
                error.add_note(advice(error, where, visit.arguments, device, self._fitted, narrow=narrow))
            raise
        if visit.watch is not None:
            visit.watch.check()
        if coefficient is not None:
            visit.coefficients[t] = coefficient
            if visit.sizes:
                self._fitted = max(self._fitted, visit.sizes, key=lambda sizes: sum(map(math.prod, sizes)))
        return visit.losses[t]

    def loss_of_end(self, t: float) -> float:
        """Evaluate the loss of the present sample at base or target with all buffers of that end.

        Args:
            t: 0 for base, 1 for target.

        Returns:
            The loss.
        """
        value = self._at(t, self.path.end_buffers.get(t, {}), lambda: float(self.compute(self.visit.arguments).item()))
        if self.visit.watch is not None:
            self.visit.watch.check()
        return value

    def _at(self, t: float, buffers: Mapping[str, Tensor], work: Callable[[], T]) -> T:
        """Do something while the model holds the weights of a place, and some other buffers."""
        leaves, tensors = self.leaves_at(t)
        tensors |= {name: value.clone() for name, value in buffers.items()}
        turns = self._turns()

        def holding() -> T:
            self._begin(turns)
            with self.swap.holding(tensors):
                return work()

        releases = [turn.release for turn in turns]
        return restoring(holding, *self.give_back, *releases, tensors.clear, leaves.clear)

    def losses_at(self, places: Sequence[float]) -> list[float]:
        """Fetch losses of the current sample, and refuse infinite ones wherever it has been visited.

        Args:
            places: Places that were visited.

        Returns:
            The losses there.

        Raises:
            ModelChangedError: Something has written to base or target.
            NonFiniteError: With the place on the path, and where in the network the trouble starts.
        """
        self.check_ends()
        values = torch.stack(list(self.visit.losses.values())).tolist()  # the device is waited for once
        losses = dict(zip(self.visit.losses, values, strict=True))
        for t, value in losses.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss must be finite along the whole path; got {value} at t = {t:.4g}{self.visit.where}"
                    f"{self._first_trouble(t)}."
                )
        return [losses[t] for t in places]

    def check_gradients(self) -> None:
        """Refuse infinite gradients; looking at the sums is enough, as they stay infinite.

        Raises:
            NonFiniteError: With the parameters, and the place on the path.
        """
        nonfinite = self.gradients.find_nonfinite()
        if not nonfinite:
            return
        place = ""
        for t, coefficient in list(self.visit.coefficients.items()):
            self.gradients.reset()
            self.evaluate(t, coefficient)
            there = self.gradients.find_nonfinite()
            if there:
                nonfinite, place = there, f" at t = {t:.4g}"
                break
        raise NonFiniteError(
            f"the gradient of {name_some(nonfinite)} must be finite; got {next(iter(nonfinite.values()))}{place}"
            f"{self.visit.where}."
        )

    def check_used(self, allow_unused: Collection[str]) -> None:
        """Refuse parameters that changed but got no gradient: they would silently count as unimportant.

        Args:
            allow_unused: First names of parameters that may.

        Raises:
            LossError: There are others; they are named.
        """
        silent = [name for name in self.moved if name not in self.gradients.reached and name not in allow_unused]
        if silent:
            raise LossError(
                f"base and target differ in {name_some(silent)}, but no gradient of the loss reaches "
                f"{'it' if len(silent) == 1 else 'them'}. The loss must compute with the model it is given, without "
                "no_grad, detach, copies or reentrant checkpointing; allow parameters that are truly unused with "
                "allow_unused=[...]."
            )

    def check_repeats(self) -> None:
        """Evaluate the loss once more at the first place: it must be the same function at every node.

        A difference that may be rounding, but is larger than it should be here, goes into `doubt`.

        Raises:
            LossError: It is not, by more than rounding; what has changed is named, as far as it can be found.
        """
        t, first = next(iter(self.visit.losses.items()))
        values = [first, *self.visit.losses.values(), self.evaluate(t)]
        self.visit.losses[t] = first
        *known, again = torch.stack(values).tolist()
        agreement = agreement_of(known, again, self._kinds(), is_on_processor=first.device.type == "cpu")
        if agreement is Agreement.SAME:
            return
        text = (
            f"the loss must be the same function at every node, but it is {known[0]:.9g} and {again:.9g} at "
            f"t = {t:.4g}, at first and after {len(known) - 1} evaluations{self.visit.where}. {self._cause(t, first)}"
        )
        if agreement is Agreement.NONE:
            raise LossError(text)
        self.doubt = text

    def _cause(self, t: float, known: Tensor) -> str:
        """Say why two evaluations at one place differ, as far as another one can tell."""
        state = RandomState()
        changed = changed_by(lambda: self.evaluate(t), roots_of(self._loss, self._model, self.visit.arguments))
        is_same_draw = state.is_untouched()
        self.visit.losses[t] = known
        if changed:
            return f"Every evaluation changes {name_some(changed)}. Keep it as it is, or create it inside of the loss."
        if not is_same_draw:
            return "Every evaluation draws another number of random numbers. Draw the same ones every time."
        return (
            "Nothing that the loss refers to has changed: it may draw from a generator without a seed, read a clock, "
            "or write to a file. Draw with torch.rand and the like, whose seed is the same at every node."
        )

    def _kinds(self) -> set[torch.dtype]:
        """The types that the loss computes in."""
        narrow = {torch.bfloat16} if self._autocast is not None else set()
        return {value.dtype for value in self.path.base.values()} | narrow

    def compute(self, arguments: tuple[Any, ...], *, differentiable: bool = True) -> Tensor:
        """Run the loss in its precision, while the model holds what it shall; `give_back` brings the user's back.

        Args:
            arguments: What the loss gets after the model.
            differentiable: Whether it must depend on what the model holds.

        Returns:
            The loss.

        Raises:
            LossError: It is no real scalar, or does not depend on the model.
        """
        if self._autocast is not None:
            self._autocast.enter()
        value = self._loss(self._model, *(fresh(arguments) if arguments else ()))
        if self._autocast is not None:
            self._autocast.restore()
        check_scalar(value, is_lowered=self._autocast is not None)
        if differentiable and not value.requires_grad:
            raise LossError(
                f"the loss depends on no parameter of the path ({name_some(self.path.base)}). It must call the model "
                "it is given, without no_grad, inference_mode, detach or reentrant checkpointing."
            )
        if differentiable and not self._is_traced:
            self.swap.check_graph(value)
            self._is_traced = True
        return value

    def _turns(self) -> tuple[Turn, ...]:
        """The turn that must be taken, where there are other threads."""
        return (self._turn,) if threading.active_count() > 1 else ()

    def _begin(self, turns: tuple[Turn, ...]) -> RandomState | None:
        """Seed the generators, and keep other threads from them.

        Args:
            turns: From `_turns`, asked once for a pass, so that what is taken is given back.

        Returns:
            The random state, if it shall be looked at whether the sample needs any: then it waits for its turn at all
            places, and otherwise for no thread that draws.
        """
        if all(turn.take(wait=not self.visit.is_quiet) for turn in turns):
            seed_all(self.visit.seed)
        return RandomState() if turns and not self.visit.losses else None

    def leaves_at(self, t: float) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """The weights of one place; their memory is that of every place, as fresh memory costs more than to fill it.

        Args:
            t: Place on the path.

        Returns:
            Name to fresh leaf for what moves or could, and name to tensor for every slot: these leaves, and clones of
            what stays the same along any path.
        """
        if t != self._written:
            self._line.write(t, self._point, only_moved=self._is_rest_written)
        self._written, self._is_rest_written = None, False
        # no detach(): leaves in one buffer would count each other's writes
        leaves = {name: nn.Parameter(value.data) for name, value in self._weights.items()}
        tensors: dict[str, Tensor] = dict(leaves)
        for name, value in self.path.fixed.items():  # clones, so that no place sees what another wrote
            is_parameter = name in self.swap.parameters
            tensors[name] = nn.Parameter(value.clone(), requires_grad=False) if is_parameter else value.clone()
        return leaves, tensors

    def _keep_written(self, t: float, leaves: Mapping[str, Tensor]) -> None:
        """Remember what need not be written again, unless the loss has written to its weights."""
        if not any(leaf._version for leaf in leaves.values()):
            # along a chain of segments what rests in one of them moves in another
            self._is_rest_written = t not in (0.0, 1.0) and not self.path.waypoints
            self._written = t if self.keeps_points else None

    def check_ends(self) -> None:
        """Make sure that nobody has written to base, target or waypoints since the beginning.

        Raises:
            ModelChangedError: The loss or another thread has; the parameters are named.
        """
        written = self._ends.written()
        if not written:
            return
        raise ModelChangedError(
            "base, target and waypoints must stay as they are during the call, but something has written to "
            f"{name_some(sorted(set(written)))}. Pass copies of weights that a training goes on with."
        )

    def _first_trouble(self, t: float) -> str:
        """Name the module whose output is the first that is not finite."""
        name = self._at(t, {}, lambda: first_nonfinite_output(self._model, lambda: self.compute(self.visit.arguments)))
        if name is None:
            return ""
        return f", first seen in the output of '{name}'" if name else ", first seen in the output of the model"
