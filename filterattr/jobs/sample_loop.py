"""The samples of a job and their sums: shared out over processes, remembered on disk, taken up where they stopped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from filterattr.errors import FilterAttrWarning, SettingError, StorageError, name_some
from filterattr.files.fingerprint import fingerprint
from filterattr.jobs.checkpoint import JobFile, StoredJob
from filterattr.jobs.distributed import LockstepGroup, Message, ProcessGroup
from filterattr.jobs.samples import Sample
from filterattr.model.random_state import RandomState, Turn, derive_seed
from filterattr.model.swap import restoring

_LOSS_TOLERANCE = 1e-4
_LOSS_ROUNDING = 1e-5  # of the larger loss: what a small difference of large numbers may be off by
_DIGEST_BYTES = 32
_MESSAGE_NUMBERS = 2**20


class SampleSums:
    """Named ``float64`` tensors, added up over samples.

    Attributes:
        tensors: Name to sum.
        count: Number of samples in them.

    Args:
        shapes: Name to a tensor whose shape and device the sum takes; it may be on the meta device for its shape
            alone, which puts the sum on the CPU.
        single: Names of sums that are kept in float32, because few digits of them are needed.
        later: Names of sums that files of older versions lack; what was not written is NaN.

    Example:
        >>> sums = SampleSums({"loss": torch.zeros(2)})
        >>> sums.add([("loss", torch.tensor([1.0, 2.0]))])
        >>> sums.add([("loss", torch.tensor([3.0, 4.0]))])
        >>> sums.tensors, sums.count
        ({'loss': tensor([4., 6.], dtype=torch.float64)}, 2)
    """

    def __init__(self, shapes: Mapping[str, Tensor], single: Iterable[str] = (), later: Iterable[str] = ()) -> None:
        narrow = frozenset(single)
        self._later = frozenset(later)
        self.tensors = {
            name: torch.zeros_like(
                like,
                dtype=torch.float32 if name in narrow else torch.float64,
                memory_format=torch.contiguous_format,
                requires_grad=False,
            )
            for name, like in shapes.items()
        }
        self.count = 0

    def add(self, terms: Iterable[tuple[str, Tensor]], count: int = 1) -> None:
        """Add one sample, or several.

        Args:
            terms: Every name once, with what is added; they may be made one after the other, so that few are alive.
            count: Of how many samples they are the sum.
        """
        for name, term in terms:
            self.tensors[name].add_(term)
        self.count += count

    def load(self, tensors: Mapping[str, Tensor], count: object) -> None:
        """Take up sums that were written.

        Args:
            tensors: Name to sum; further names are ignored.
            count: Number of samples in them.

        Raises:
            StorageError: A sum is missing or of another type or shape, or the count is negative or no number.
        """
        misfits = [
            name
            for name, total in self.tensors.items()
            if (name not in tensors and name not in self._later)
            or (name in tensors and (tensors[name].shape != total.shape or tensors[name].dtype != total.dtype))
        ]
        if misfits or not isinstance(count, int) or count < 0:
            raise StorageError(
                f"stored sums must hold every quantity in its shape; got {count!r} samples, without "
                f"{name_some(misfits) or 'gaps'}. The file was not written by this version."
            )
        for name, total in self.tensors.items():
            total.copy_(tensors[name]) if name in tensors else total.fill_(math.nan if count else 0.0)
        self.count = count

    def merge(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace all sums by their totals over processes.

        Args:
            add_up: Turns one vector of this process into the sum of all processes' vectors.
        """
        self.count = int(add_up(torch.tensor([self.count], device="cpu")))
        for batch in self._batches():
            flat = add_up(torch.cat([total.reshape(-1).cpu().double() for total in batch]))
            for total, part in zip(batch, torch.split(flat, [total.numel() for total in batch]), strict=True):
                total.copy_(part.reshape(total.shape))

    def _batches(self) -> Iterator[list[Tensor]]:
        """Few large messages are faster than many small ones, and need less memory than a single one."""
        batch: list[Tensor] = []
        length = 0
        for total in self.tensors.values():
            batch.append(total)
            length += total.numel()
            if length >= _MESSAGE_NUMBERS:
                yield batch
                batch, length = [], 0
        if batch:
            yield batch


class SampleEstimator(Protocol):
    """What the loop needs of the computation."""

    sums: SampleSums
    keeps_every: int
    samples_per_pass: int

    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Add samples to the sums and return their losses along the path, base first and target last."""

    def skip_sample(self) -> None:
        """Note that a sample is in the sums already."""

    def losses_at_ends(self, arguments: tuple[Any, ...], seed: int, index: int) -> tuple[float, float]:
        """Return the losses of a sample at base and at target."""

    def is_due(self, before: int, count: int) -> bool:
        """Whether `is_enough` is to be asked, after so many samples of all processes."""

    def is_enough(self, add_up: Callable[[Tensor], Tensor]) -> bool:
        """Whether further samples are not needed."""


class SampleLoop:
    """Feed samples to a computation, each exactly once over all processes and all interrupted calls.

    Rank r of n takes the samples r, r + n, r + 2 n and so on, in every round as many as the computation wants at once.
    The data source sees the random stream of the first start of the job on its first rank, and every sample has a seed
    of its own that does not depend on who computes it.

    Args:
        estimator: The computation.
        ranks: The processes.
        file: Where the state of this process is kept, if anywhere.
        caller: The random state that the job begins with.
    """

    def __init__(
        self, estimator: SampleEstimator, ranks: ProcessGroup, file: JobFile | None, caller: RandomState
    ) -> None:
        self.estimator = estimator
        self.ranks = ranks
        self.file = file
        self._caller = caller
        self._turn = Turn()
        self._random_state = caller.of_processor()
        self._digests: list[str] = []  # of the samples of this process that are in the sums
        self._first_losses = (0.0, 0.0)
        self._unwritten = False
        self._met = 0  # samples of this process that the loop has come to

    def run(self, data: Iterable[Any] | None) -> None:
        """Go through all samples; the sums then hold those of all processes.

        Args:
            data: The samples; ``None`` means one that is empty.

        Raises:
            SettingError: There are no samples, or their content cannot be compared although that is needed.
            StorageError: The file cannot be written, is damaged, or belongs to another job.
            DistributedError: Another process failed, or was given other samples.
        """
        stored, answers = self.ranks.run_on_all(self._take_up)
        self._share_random_state(stored, answers)
        seed = derive_seed(self._random_state)
        take = partial(next, iter([()]), None) if data is None else self._source(data)
        round_size = self.ranks.n_shares * self.estimator.samples_per_pass
        begin, number = 0, round_size
        while number == round_size:
            number, answers = self.ranks.run_round(partial(self._round, take, begin, seed))
            self.ranks.agree(answers, "data")
            begin += number
            if self.estimator.is_due(begin - number, begin) and self._is_enough():
                break
        if begin == 0:
            raise SettingError("data must hold at least one sample; it is empty.")
        if self._unwritten:
            self._write()
        if self.ranks.n_shares > 1:
            self.estimator.sums.merge(self.ranks.add_up)

    def _is_enough(self) -> bool:
        """Ask the computation whether it can stop; all processes come to the same answer.

        Sums that hold more samples than the loop has come to were taken from a file, and were not enough at this point.
        """
        _, answers = self.ranks.run_on_all(lambda: (None, {"ahead": self.estimator.sums.count > self._met}))
        if any(answer["ahead"] for answer in answers):
            return False
        _, answers = self.ranks.run_on_all(lambda: (None, {"enough": self.estimator.is_enough(self.ranks.add_up)}))
        return any(answer["enough"] for answer in answers)

    def _take_up(self) -> tuple[bool, Message]:
        """Load what is done already, or make sure before all work that it can be kept."""
        if self.file is None:
            return False, {"random state": None}
        stored = self.file.read()
        if stored is None:
            self._write()
            return False, {"random state": None}
        self._load(stored, self.file)
        different = [
            f"{name} {stored.environment.get(name)}, now {value}"
            for name, value in self.file.environment.items()
            if stored.environment.get(name, value) != value
        ]
        if different:
            warnings.warn(
                f"'{self.file.path}' was begun with {', '.join(different)}; the result may differ from that of an "
                "uninterrupted run in the last digits.",
                FilterAttrWarning,
                stacklevel=7,  # that of the caller of FilterAttributor.attribute
            )
        return True, {"random state": fingerprint(self._random_state)}

    def _load(self, stored: StoredJob, file: JobFile) -> None:
        count, losses = stored.numbers.get("n_samples"), stored.numbers.get("first_losses")
        self.estimator.sums.load(stored.tensors, count)
        digests, random_state = (stored.tensors.get(name) for name in ("samples", "random_state"))
        try:
            if digests is None or digests.shape != (count, _DIGEST_BYTES) or digests.dtype != torch.uint8:
                raise ValueError("digests of samples")
            self._digests = [bytes(row).hex() for row in digests.numpy()]
            self._random_state = torch.Generator().set_state(random_state).get_state()  # type: ignore[arg-type]
            base, target = losses  # type: ignore[misc]
            self._first_losses = float(base), float(target)
        except (TypeError, ValueError, RuntimeError) as error:
            raise StorageError(f"'{file.path}' is not a complete checkpoint: {error}.") from error

    def _share_random_state(self, is_stored: bool, answers: list[Message]) -> None:
        """All processes go on with the random state of the one that began; it decides about shuffled data."""
        begun = [rank for rank, answer in enumerate(answers) if answer["random state"]]
        self.ranks.agree([answers[rank] for rank in begun] or [{}], "checkpoints of one job")
        shared = self.ranks.from_rank(begun[0] if begun else 0, self._random_state)
        if not is_stored:
            self._random_state = shared

    def _round(self, take: Callable[[], tuple[Any, ...] | None], begin: int, seed: int) -> tuple[int, Message]:
        """Take samples for every process and work on the own ones."""
        round_size = self.ranks.n_shares * self.estimator.samples_per_pass
        collect = partial(self._collect, take, begin, seed, round_size)
        digests, taken = self.ranks.before_round(collect) if isinstance(self.ranks, LockstepGroup) else collect()[0]
        new = [(sample, digest) for sample, digest in taken if not self._is_done(sample, digest)]
        if new:
            self._keep([digest for _, digest in new], self.estimator.add_samples([sample for sample, _ in new]))
        if len(digests) < round_size and self._met < len(self._digests):
            raise self._other_job(f"it holds {len(self._digests)} samples, data has only {self._met} (for this rank)")
        return len(digests), self._told(digests)

    def _told(self, digests: list[str]) -> Message:
        """What the other processes shall know of the samples of a round."""
        if self.ranks.size == 1:
            return {}
        return {"number of samples": len(digests), "sample": fingerprint(digests)}

    def _collect(
        self, take: Callable[[], tuple[Any, ...] | None], begin: int, seed: int, round_size: int
    ) -> tuple[tuple[list[str], list[tuple[Sample, str]]], Message]:
        """Take samples for every process: digests of all, and the samples of this one."""
        digests: list[str] = []
        taken: list[tuple[Sample, str]] = []
        for place in range(round_size):
            arguments = take()
            if arguments is None:
                break
            index = begin + place
            digests.append(self._digest(arguments, index))
            if place % self.ranks.n_shares == self.ranks.share:
                taken.append((Sample(arguments, seed + index, index), digests[-1]))
        return (digests, taken), self._told(digests)

    def _source(self, data: Iterable[Any]) -> Callable[[], tuple[Any, ...] | None]:
        """Begin with the data; every call takes a sample, in the random stream of their own."""
        stream, samples = restoring(partial(self._begun, data), self._turn.release)
        return lambda: restoring(partial(self._next, samples, stream), self._turn.release)

    def _begun(self, data: Iterable[Any]) -> tuple[RandomState, Iterator[tuple[Any, ...]]]:
        """The random state is what the source of the data sees first."""
        self._turn.take()
        self._caller.restore()
        torch.set_rng_state(self._random_state)
        return RandomState(), ((sample,) for sample in data)

    def _next(self, samples: Iterator[tuple[Any, ...]], stream: RandomState) -> tuple[Any, ...] | None:
        """Take a sample, in the random stream of the data source."""
        self._turn.take()
        stream.restore()
        arguments = next(samples, None)
        if arguments is not None:
            stream.update()
        return arguments

    def _digest(self, arguments: tuple[Any, ...], index: int) -> str:
        """Digest of a sample, where somebody will compare it."""
        if self.file is None and self.ranks.size == 1:
            return ""
        return fingerprint(arguments[0] if arguments else None, f"sample {index}")

    def _keep(self, digests: list[str], losses: list[list[float]]) -> None:
        """Note what was added to the sums, and put them on the disk."""
        if self.file is None:
            return
        if not self._digests:
            self._first_losses = losses[0][0], losses[0][-1]
        self._digests += digests
        self._unwritten = True
        if self._met % self.estimator.keeps_every == 0:
            self._write()

    def _is_done(self, sample: Sample, digest: str) -> bool:
        """Whether a sample is in the sums that were taken from the file."""
        place, self._met = self._met, self._met + 1
        if place >= len(self._digests):
            return False
        if self._digests[place] != digest:
            raise self._other_job(
                f"sample {sample.number} is another one than it was; data must come in the same order (seed what "
                "shuffles)"
            )
        if place == 0:
            self._check_losses(self.estimator.losses_at_ends(*sample))
        self.estimator.skip_sample()
        return True

    def _check_losses(self, values: tuple[float, float]) -> None:
        """Functions cannot be compared; what they return can, at both ends: at one of them two losses may agree."""
        largest = max(map(abs, self._first_losses))
        for end, before, value in zip(("base", "target"), self._first_losses, values, strict=True):
            tolerance = max(_LOSS_TOLERANCE * abs(before), _LOSS_ROUNDING * largest)
            if not math.isclose(value, before, rel_tol=0, abs_tol=tolerance):
                raise self._other_job(f"the loss of its first sample at {end} was {before:.6g} and is {value:.6g} now")

    def _other_job(self, reason: str) -> StorageError:
        path = self.file.path if self.file is not None else None
        return StorageError(
            f"'{path}' belongs to another job: {reason}. Give every job a file of its own, or delete this one."
        )

    def _write(self) -> None:
        """Put the present state on the disk."""
        if self.file is None:
            return
        tensors: dict[str, Tensor] = dict(self.estimator.sums.tensors)
        flat = bytearray.fromhex("".join(self._digests))
        tensors["samples"] = (
            torch.frombuffer(flat, dtype=torch.uint8) if flat else torch.empty(0, dtype=torch.uint8, device="cpu")
        ).reshape(-1, _DIGEST_BYTES)
        tensors["random_state"] = self._random_state
        self._unwritten = False
        self.file.write(tensors, {"n_samples": self.estimator.sums.count, "first_losses": list(self._first_losses)})


def job_environment(device: torch.device, samples_per_pass: int = 1) -> dict[str, Any]:
    """Say what decides about the last bits of a result.

    Args:
        device: Where the model is.
        samples_per_pass: How many samples are evaluated at once.

    Returns:
        Names to values for `JobFile`.

    Example:
        >>> sorted(job_environment(torch.device("cpu")))
        ['device', 'processor', 'samples_per_pass', 'threads', 'torch']
    """
    return {
        "samples_per_pass": samples_per_pass,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }
