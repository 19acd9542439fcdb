"""Running sums over samples: they can be put on disk, taken up again, and added up over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from filterattr.errors import StorageError, name_some


class SampleSums:
    """Named ``float64`` tensors, added up over samples.

    Attributes:
        tensors: Name to sum.
        count: Number of samples in them.

    Args:
        shapes: Name to a tensor whose shape and device the sum takes; it may be on the meta device for its shape
            alone, which puts the sum on the CPU.

    Example:
        >>> sums = SampleSums({"loss": torch.zeros(2)})
        >>> sums.add([("loss", torch.tensor([1.0, 2.0]))])
        >>> sums.add([("loss", torch.tensor([3.0, 4.0]))])
        >>> sums.tensors, sums.count
        ({'loss': tensor([4., 6.], dtype=torch.float64)}, 2)
    """

    def __init__(self, shapes: Mapping[str, Tensor]) -> None:
        self.tensors = {name: torch.zeros_like(like, dtype=torch.float64) for name, like in shapes.items()}
        self.count = 0

    def add(self, terms: Iterable[tuple[str, Tensor]]) -> None:
        """Add one sample.

        Args:
            terms: Every name once, with what is added; they may be made one after the other, so that few are alive.
        """
        for name, term in terms:
            self.tensors[name].add_(term)
        self.count += 1

    def load(self, tensors: Mapping[str, Tensor], count: object) -> None:
        """Take up sums that were put away.

        Args:
            tensors: Name to sum; further names are ignored.
            count: Number of samples in them.

        Raises:
            StorageError: A sum is missing or of another type or shape, or the count is negative or no number.
        """
        misfits = [
            name
            for name, total in self.tensors.items()
            if name not in tensors or tensors[name].shape != total.shape or tensors[name].dtype != total.dtype
        ]
        if misfits or not isinstance(count, int) or count < 0:
            raise StorageError(
                f"stored sums must hold every quantity in its shape; got {count!r} samples, without "
                f"{name_some(misfits) or 'gaps'}. The file was not written by this version."
            )
        for name, total in self.tensors.items():
            total.copy_(tensors[name])
        self.count = count

    def merge(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replace all sums by their totals over processes.

        Args:
            add_up: Turns one vector of this process into the sum of all processes' vectors.
        """
        parts = [total.reshape(-1).cpu() for total in self.tensors.values()]
        flat = add_up(torch.cat([torch.tensor([self.count], dtype=torch.float64), *parts]))
        self.count = int(flat[0])
        for total, part in zip(
            self.tensors.values(), torch.split(flat[1:], [part.numel() for part in parts]), strict=True
        ):
            total.copy_(part.reshape(total.shape))
