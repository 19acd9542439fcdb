"""One training in several processes: each computes a share of every batch, and all have the same weights always."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sr_zoo.training.recipe import Batch, TrainingError


@dataclass(frozen=True)
class Processes:
    """The processes that share a training; this one alone unless said otherwise.

    Every process draws the whole batch, whose random numbers depend on one another, and keeps a share of it. So the
    batch of an iteration does not depend on the number of processes, and the result does only in the last bits.

    Args:
        rank: Number of this process.
        count: Number of processes.

    Example:
        >>> from sr_zoo.training import Batch
        >>> batch = Batch(torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 16, 16), {"blur": torch.arange(6.0)})
        >>> Processes(rank=1, count=3).share(batch).strengths
        {'blur': tensor([2., 3.])}
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        """Refuse a batch that cannot be shared out evenly; uneven shares would need weights.

        Args:
            batch_size: Patches in the batch.

        Raises:
            TrainingError: It is no multiple of the number of processes.
        """
        if batch_size % self.count:
            raise TrainingError(
                f"the batch must be a multiple of the number of processes; got {batch_size} and {self.count}."
            )

    def share(self, batch: Batch) -> Batch:
        """Take this process's part of a batch.

        Args:
            batch: The whole batch.

        Returns:
            ``len(batch) / count`` of its patches.
        """
        size = len(batch.degraded) // self.count
        mine = slice(self.rank * size, (self.rank + 1) * size)
        strengths = {name: values[mine] for name, values in batch.strengths.items()}
        return Batch(batch.degraded[mine], batch.reference[mine], strengths)

    def average(self, parameters: Sequence[nn.Parameter], losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average gradients, in place, and losses over all processes, in one message.

        Args:
            parameters: Those that have a gradient now.
            losses: Name to scalar.

        Returns:
            The mean losses.
        """
        if self.count == 1:
            return losses
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        values = [value.detach().float().view(1) for value in losses.values()]
        message = torch.cat([gradient.flatten() for gradient in gradients] + values)
        dist.all_reduce(message)
        message /= self.count
        start = 0
        for gradient in gradients:
            gradient.copy_(message[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()
        return dict(zip(losses, message[start:], strict=True))

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that ``torchrun`` started, if it did.

    Args:
        device: Where this training computes; of several GPUs each process takes one.

    Yields:
        The processes, and this one's device.

    Example:
        >>> with joined_processes(torch.device("cpu")) as (processes, device):
        ...     print(processes, device)
        Processes(rank=0, count=1) cpu
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # set by torchrun alone
        yield Processes(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
        dist.barrier()
    finally:
        dist.destroy_process_group()
