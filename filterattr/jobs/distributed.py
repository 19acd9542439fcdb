"""Samples over the ranks of `torch.distributed`: all ranks go on together, or all of them raise.

After every piece of work the ranks tell each other how it went, in one small message of fixed size. A rank that failed
thus stops the others at once, and a rank that died surfaces as an error of the backend, at the latest after the
timeout of the process group. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from filterattr.errors import DistributedError, FilterAttrError, SettingError

T = TypeVar("T")
Message: TypeAlias = Mapping[str, Any]

_MESSAGE_BYTES = 4096
_TEXT_LIMIT = 600
_SIGNS = "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting"


class ProcessGroup:
    """The processes that share a job; the default is this one alone.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        n_shares: Into how many shares the samples are split.
        share: Which of them this process works on.

    Args:
        rank: Number of this process.
        size: Number of processes.
        device: Where tensors must be for the backend to send them.
        group: The processes, as `torch.distributed` knows them; ``None`` for all.

    Example:
        >>> ProcessGroup().run_on_all(lambda: ("done", {"steps": 3}))
        ('done', [{'steps': 3}])
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.share, self.n_shares = rank, size
        self._device = device
        self._group = group

    @classmethod
    def joined(cls) -> ProcessGroup:
        """Join the default process group.

        Returns:
            This process and the others.

        Raises:
            SettingError: There is no process group.
        """
        if not dist.is_available() or not dist.is_initialized():
            raise SettingError(
                "distributed=True needs a process group: start the script with torchrun and call "
                "torch.distributed.init_process_group first."
            )
        return cls(dist.get_rank(), dist.get_world_size(), _device_of(None))

    def run_on_all(self, work: Callable[[], tuple[T, Message]]) -> tuple[T, list[Message]]:
        """Do a piece of work on every rank, and go on only if it went well on all of them.

        An interrupt or an exit is not reported, so that nothing holds it up; the others notice when the process ends.

        Args:
            work: Returns a result, and what the other ranks shall know of it (small, JSON).

        Returns:
            The result of this rank, and what every rank told, in rank order.

        Raises:
            DistributedError: Another rank raised, died or did not answer in time.
            Exception: What ``work`` raised here.
        """
        if self.size == 1:
            result, message = work()
            return result, [message]
        try:
            result, message = work()
        except Exception as error:
            self._report(error)
            raise
        answers = self._exchange({"message": message})
        failures = {rank: answer["error"] for rank, answer in enumerate(answers) if "error" in answer}
        if failures:
            told = "; ".join(f"rank {rank}: {text}" for rank, text in list(failures.items())[:3])
            raise DistributedError(f"{len(failures)} of {self.size} ranks failed, so that all of them stop: {told}")
        return result, [answer["message"] for answer in answers]

    run_round = run_on_all  # for the samples of a round

    def agree(self, answers: list[Message], purpose: str) -> None:
        """Make sure that all ranks told the same; every rank finds the same.

        Args:
            answers: Messages in rank order.
            purpose: What must be the same, for the message.

        Raises:
            DistributedError: They differ; in what and where is named.
        """
        for name in answers[0]:
            others = [rank for rank, answer in enumerate(answers) if answer.get(name) != answers[0][name]]
            if others:
                raise DistributedError(
                    f"{purpose} must be the same on all ranks; rank {others[0]} has another {name} than rank 0. Seed "
                    "and load alike everywhere; the samples are shared out by attribute()."
                )

    def from_rank(self, source: int, tensor: Tensor) -> Tensor:
        """Hand one rank's tensor to all.

        Args:
            source: The rank that gives.
            tensor: Its tensor; on the other ranks, one of the same type and shape.

        Returns:
            The source's values, on the CPU.

        Raises:
            DistributedError: A rank died or did not answer in time.
        """
        if self.size == 1:
            return tensor
        sent = tensor.detach().to(self._device, copy=True)
        _call(lambda: dist.broadcast(sent, src=self._global_rank(source), group=self._group))
        return sent.cpu()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in rank order: all ranks get the same bits, in every run.

        Args:
            tensor: The part of this rank; of the same type and shape everywhere.

        Returns:
            The sum, on the CPU.

        Raises:
            DistributedError: A rank died or did not answer in time.
        """
        if self.size == 1:
            return tensor
        total = torch.zeros_like(tensor, device="cpu")
        for source in range(self.size):
            total += self.from_rank(source, tensor)
        return total

    def _global_rank(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _report(self, error: Exception) -> None:
        """Tell the others that this rank failed; that they cannot be told does not hide why."""
        try:
            self._exchange({"error": f"{type(error).__name__}: {error}"[:_TEXT_LIMIT]})
        except DistributedError as lost:
            error.add_note(f"The other ranks could not be told: {lost}")

    def _exchange(self, message: Message) -> list[dict[str, Any]]:
        """Send one message to all and get theirs, in rank order."""
        text = json.dumps(message).encode()
        if len(text) > _MESSAGE_BYTES:
            text = json.dumps({"error": f"a message of {len(text)} bytes is too long"}).encode()
        sent = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device="cpu")
        sent[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        sent = sent.to(self._device)
        gathered = [torch.empty_like(sent) for _ in range(self.size)]
        _call(lambda: dist.all_gather(gathered, sent, group=self._group))
        return [json.loads(bytes(part.cpu().numpy()).rstrip(b"\0")) for part in gathered]


class LockstepGroup(ProcessGroup):
    """Processes that work on the same samples together, because each holds a part of the model.

    The backward pass of one waits for those of the others. An error that all come to is raised by all. What only one
    comes to is raised there at once; the others wait for it in the middle of a pass, until its process ends or the
    timeout of the group is over.

    Args:
        group: The processes, as `torch.distributed` knows them.
    """

    def __init__(self, group: Any) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group), _device_of(group), group)
        self.share, self.n_shares = 0, 1

    def run_round(self, work: Callable[[], tuple[T, Message]]) -> tuple[T, list[Message]]:
        """Work on the samples of a round; nothing is told after it, as its passes need all processes anyway.

        Args:
            work: As for `run_on_all`.

        Returns:
            Its result, and what it told.

        Raises:
            DistributedError: Another rank died or did not answer in time.
        """
        try:
            result, message = work()
        except FilterAttrError:
            raise
        except RuntimeError as error:
            if _is_lost(error):
                raise _lost(error) from error
            raise
        return result, [message]

    def before_round(self, work: Callable[[], tuple[T, Message]]) -> T:
        """Take the samples of a round; all go on together, if they have taken the same ones.

        Args:
            work: Returns them, and what the other ranks shall know of them.

        Returns:
            The samples.

        Raises:
            DistributedError: Another rank has failed, or has taken others.
        """
        samples, answers = self.run_on_all(work)
        self.agree(answers, "data")
        return samples


def _device_of(group: Any) -> str:
    """Where tensors must be for the backend to send them."""
    return f"cuda:{torch.cuda.current_device()}" if dist.get_backend(group) == "nccl" else "cpu"


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error in the middle of a pass is one of a backend, so that other ranks do not answer."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)


def _call(collective: Callable[[], object]) -> None:
    """Turn the many errors of the backends into one."""
    try:
        collective()
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> DistributedError:
    return DistributedError(
        f"the other ranks do not answer ({str(error).splitlines()[0][:300]}): a process died, left or is stuck. "
        "Start all of them again; a checkpoint keeps what was finished."
    )
