"""Samples that are alike, stacked so that a function of one sample can be mapped over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from filterattr.jobs.samples import Sample

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class SampleBatch:
    """Several samples as one, with one more dimension in front of every tensor.

    Attributes:
        tensors: The stacked tensors, without history.

    Args:
        samples: At least one; they are `alike`.

    Example:
        >>> stack = SampleBatch([Sample(({"x": torch.tensor(float(i)), "scale": 2},), 0, i) for i in range(3)])
        >>> stack.tensors
        (tensor([0., 1., 2.]),)
        >>> stack.arguments([torch.tensor(5.0)])
        ({'x': tensor(5.), 'scale': 2},)
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._leaves, self._structure = tree_flatten(samples[0].arguments)
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        rows = [tree_flatten(sample.arguments)[0] for sample in samples]
        self.tensors = tuple(torch.stack([row[place].detach() for row in rows]) for place in self._places)

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """Arguments of the samples' structure, with other tensors.

        Args:
            tensors: One for each of `tensors`.
        """
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return tuple(tree_unflatten(leaves, self._structure))


def batchable_runs(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Cut samples where they cannot be stacked with the one before.

    Args:
        samples: In order.

    Yields:
        The same samples in the same order, in runs of at least one.

    Example:
        >>> samples = [Sample((torch.zeros(size),), 0, number) for number, size in enumerate([2, 2, 3])]
        >>> [[sample.number for sample in run] for run in batchable_runs(samples)]
        [[0, 1], [2]]
    """
    run: list[Sample] = []
    for sample in samples:
        if run and not _alike(run[0], sample):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def _alike(first: Sample, second: Sample) -> bool:
    """Whether two samples have the same structure, tensors of the same kinds, and the same of everything else."""
    (leaves, structure), (others, other) = tree_flatten(first.arguments), tree_flatten(second.arguments)
    return (
        structure == other
        and any(isinstance(leaf, Tensor) for leaf in leaves)
        and all(_same_kind(first, second) for first, second in zip(leaves, others, strict=True))
    )


def _same_kind(first: Any, second: Any) -> bool:
    if first is second and not isinstance(first, Tensor):
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        kinds = [(tensor.shape, tensor.dtype, tensor.device, tensor.layout) for tensor in (first, second)]
        return kinds[0] == kinds[1] and first.layout == torch.strided
    return isinstance(first, _PLAIN) and bool(first == second)
