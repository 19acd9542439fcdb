"""Running sums over samples: they can be put on disk, taken up again, and added up over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from filterattr.errors import StorageError, name_some

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
