r"""The loss as a function of the place on the path, :math:`t \mapsto L(\gamma(t))`, and its gradient there."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from filterattr.errors import LossError, NonFiniteError, is_out_of_memory, name_some
from filterattr.integral.gradients import GradientAccumulator
from filterattr.integral.path import Path
from filterattr.loss.checks import Loss, check_scalar, first_nonfinite_output
from filterattr.loss.out_of_memory import advice, sizes_of
from filterattr.loss.repeats import changed_by, roots_of
from filterattr.loss.sample_watch import SampleWatch, fresh
from filterattr.model.context import Autocast
from filterattr.model.random_state import RandomState, Turn, seed_all
from filterattr.model.swap import ParameterSwap, restoring

G = TypeVar("G", bound=GradientAccumulator)

_LARGEST_BLOCK = 30 * 2**20  # glibc looks no further than 32 MiB


class PathNode(Generic[G]):
    """The user's loss at places of the path, one sample at a time; the model is given back after every place.

    Args:
        model: The model that the loss is given.
        slots: Its slots.
        path: The path.
        loss: The user's loss.
        gradients: Takes the gradients, of the parameters that change along the path.
        autocast: What the loss is evaluated in; the default leaves that to the user.

    Attributes:
        slots: The slots of the model.
        path: The path.
        moved: The parameters that change along the path.
        losses: Place to loss of the current sample, float64.
        doubt: Why the loss may be another function at every node; empty if nothing says so.
        gradients: What the gradients of the current sample add up to, for the parameters that change along the path;
            the others count exactly 0 and cost neither time nor memory.
        give_back: What gives the model back after every pass, for `restoring`.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: ParameterSwap,
        path: Path,
        loss: Loss,
        gradients: G,
        autocast: Autocast | None = None,
    ) -> None:
        _keep_freed_memory()
        self.path = path
        self.moved = path.moved()
        self.gradients = gradients
        self.losses: dict[float, Tensor] = {}
        self.doubt = ""
        self._model = model
        self.slots = slots
        self._loss = loss
        self._autocast = autocast if autocast is not None and autocast.is_used else None
        # autocast keeps its casts of every weight that it has seen
        self._turn = Turn()
        modes = () if self._autocast is None else (self._autocast.restore,)
        self.give_back = (*modes, slots.restore, torch.clear_autocast_cache)
        self._line, self._point, self._weights = path.side_by_side()
        self._coefficients: dict[float, float] = {}
        self._arguments: tuple[Any, ...] = ()
        self._seed = 0
        self._is_quiet = False
        self._sample: SampleWatch | None = None
        self._n_started = 0
        self._is_traced = False
        self._where = ""
        self._sizes: list[tuple[int, ...]] = []
        self._fitted: list[tuple[int, ...]] = []

    def start(self, arguments: tuple[Any, ...], seed: int, index: int) -> None:
        """Turn to another sample.

        Args:
            arguments: What the loss gets after the model.
            seed: Seed of the sample's randomness, the same at every place.
            index: Number of the sample, for messages.
        """
        self._arguments, self._seed = arguments, seed
        self._sample = SampleWatch(arguments, index, with_arrays=not self._n_started) if arguments else None
        self._n_started += 1
        self._where = f" (sample {index})" if arguments else ""
        self._sizes = sizes_of(arguments) if arguments else []
        self.losses, self._coefficients, self._is_quiet = {}, {}, False
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
        try:
            leaves, tensors = self.leaves_at(t)
            moved = {name: leaves[name] for name in self.moved} if coefficient is not None else {}
            turns = self._turns()

            def one_pass() -> Tensor:
                seeded = self._begin(turns)
                with self.slots.holding(tensors):
                    value = self.compute(self._arguments)
                    if moved and coefficient is not None:
                        self.gradients.take_all(value, moved, coefficient)
                    # draws of other threads cannot lie in between: this one has its turn
                    self._is_quiet = seeded.is_untouched() if seeded else self._is_quiet
                    return value.detach().to(torch.float64)

            give_back = (*self.give_back, *(turn.release for turn in turns))
            self.losses[t] = restoring(one_pass, *give_back, tensors.clear, leaves.clear, moved.clear)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                device = next(iter(self.path.base.values())).device
                where, narrow = f"t = {t:.4g}{self._where}", self._autocast is not None
                error.add_note(advice(error, where, self._arguments, device, self._fitted, narrow=narrow))
            raise
        if self._sample is not None:
            self._sample.check()
        if coefficient is not None:
            self._coefficients[t] = coefficient
            self._fitted = max(self._fitted, self._sizes, key=lambda sizes: sum(map(math.prod, sizes)))
        return self.losses[t]

    def loss_of_end(self, t: float) -> float:
        """Evaluate the loss of the present sample at base or target with all buffers of that end.

        Args:
            t: 0 for base, 1 for target.

        Returns:
            The loss.
        """
        leaves, rest = self.leaves_at(t)
        rest |= {name: value.clone() for name, value in self.path.end_buffers.get(t, {}).items()}
        tensors = {**leaves, **rest}
        turns = self._turns()

        def one_pass() -> float:
            self._begin(turns)
            with self.slots.holding(tensors):
                return float(self.compute(self._arguments).detach())

        give_back = (*self.give_back, *(turn.release for turn in turns))
        value = restoring(one_pass, *give_back, tensors.clear, leaves.clear)
        if self._sample is not None:
            self._sample.check()
        return value

    def losses_at(self, places: Sequence[float]) -> list[float]:
        """Fetch losses of the current sample, and refuse infinite ones wherever it has been visited.

        Args:
            places: Places that were visited.

        Returns:
            The losses there.

        Raises:
            NonFiniteError: With the place on the path, and where in the network the trouble starts.
        """
        values = torch.stack(list(self.losses.values())).tolist()  # the device is waited for once
        found = dict(zip(self.losses, values, strict=True))
        for t, value in found.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss must be finite along the whole path; got {value} at t = {t:.4g}{self._where}"
                    f"{self._first_trouble(t)}."
                )
        return [found[t] for t in places]

    def check_gradients(self) -> None:
        """Refuse infinite gradients; looking at the sums is enough, as they stay infinite.

        Raises:
            NonFiniteError: With the parameters, and the place on the path.
        """
        found = self.gradients.find_nonfinite()
        if not found:
            return
        place = ""
        for t, coefficient in list(self._coefficients.items()):
            self.gradients.reset()
            self.evaluate(t, coefficient)
            there = self.gradients.find_nonfinite()
            if there:
                found, place = there, f" at t = {t:.4g}"
                break
        raise NonFiniteError(
            f"the gradient of {name_some(found)} must be finite; got {next(iter(found.values()))}{place}{self._where}."
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
        t, first = next(iter(self.losses.items()))
        count = len(self.losses)
        values = [first, *self.losses.values(), self.evaluate(t)]
        self.losses[t] = first
        before, *known, again = torch.stack(values).tolist()
        gap, size, change = abs(again - before), max(map(abs, known)), max(known) - min(known)
        rounding = self._rounding()
        if gap <= self._silence(rounding, change / (size or 1.0)) * size:
            return
        text = (
            f"the loss must be the same function at every node, but it is {before:.9g} and {again:.9g} at t = {t:.4g}, "
            f"at first and after {count} evaluations{self._where}. {self._cause(t, first)}"
        )
        if not gap <= rounding * size:
            raise LossError(text)
        self.doubt = text

    def _cause(self, t: float, known: Tensor) -> str:
        """Say why two evaluations at one place differ, as far as another one can tell."""
        state = RandomState()
        changed = changed_by(lambda: self.evaluate(t), roots_of(self._loss, self._model, self._arguments))
        is_same_draw = state.is_untouched()
        self.losses[t] = known
        if changed:
            return (
                f"Every evaluation changes {name_some(changed)}. Keep it as it is, or make it anew inside of the loss."
            )
        if not is_same_draw:
            return "Every evaluation draws another number of random numbers. Draw the same ones every time."
        return (
            "Nothing that the loss refers to has changed: it may draw from a generator without a seed, read a clock, "
            "or write to a file. Draw with torch.rand and the like, whose seed is the same at every node."
        )

    def _rounding(self) -> float:
        """What two evaluations of the same may differ by, where the order of sums is not fixed."""
        kinds = {value.dtype for value in self.path.base.values()}
        if self._autocast is not None:
            kinds.add(torch.bfloat16)
        rounding = math.sqrt(max(torch.finfo(kind).eps for kind in kinds))
        return rounding if self._is_on_cpu() else max(rounding, 1e-3)

    def _silence(self, rounding: float, change: float) -> float:
        """What two evaluations may differ by without a word; both are relative to the largest loss.

        Where sums have a fixed order, two evaluations of the same have the same bits.
        """
        least = min(rounding, 4 * rounding**2 + 1e-3 * change)
        return min(least, max(8 * rounding**2, 1e-10)) if self._is_on_cpu() else least

    def _is_on_cpu(self) -> bool:
        return next(iter(self.path.base.values())).device.type == "cpu"

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
            self.slots.check_graph(value)
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
        if all(turn.take(wait=not self._is_quiet) for turn in turns):
            seed_all(self._seed)
        return RandomState() if turns and not self.losses else None

    def leaves_at(self, t: float) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """The weights of one place; their memory is that of every place, as fresh memory costs more than to fill it.

        Args:
            t: Place on the path.

        Returns:
            Name to fresh leaf for what moves or could, and name to tensor for every slot: these leaves, and clones of
            what stays the same along any path.
        """
        self._line.write(t, self._point)
        # no detach(): leaves in one buffer would count each other's writes
        leaves = {name: nn.Parameter(value.data) for name, value in self._weights.items()}
        tensors: dict[str, Tensor] = dict(leaves)
        for name, value in self.path.fixed.items():  # clones, so that no place sees what another wrote
            is_parameter = name in self.slots.parameters
            tensors[name] = nn.Parameter(value.clone(), requires_grad=False) if is_parameter else value.clone()
        return leaves, tensors

    def _first_trouble(self, t: float) -> str:
        """Name the module whose output is the first that is not finite."""
        leaves, tensors = self.leaves_at(t)
        turns = self._turns()

        def search() -> str | None:
            self._begin(turns)
            with self.slots.holding(tensors):
                return first_nonfinite_output(self._model, lambda: self.compute(self._arguments))

        releases = [turn.release for turn in turns]
        name = restoring(search, *self.give_back, *releases, tensors.clear, leaves.clear)
        if name is None:
            return ""
        return f", first seen in the output of '{name}'" if name else ", first seen in the output of the model"


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what a pass frees for the next pass, instead of giving it back and asking for it again.

    Its allocator gives the top of the heap back once that is twice as large as the largest block that was ever freed;
    with the activations of every pass that cost 3 to 6 % of the time. The block is never touched, and so costs nothing;
    glibc remembers it, so that once is enough.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device="cpu")
