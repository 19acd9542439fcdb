"""Sums over samples: how they are added up over processes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from filterattr.jobs import sample_loop
from filterattr.jobs.sample_loop import SampleSums


def messages_of_the_first_version(totals: dict[str, Tensor], limit: int) -> list[list[int]]:
    """Lengths of the tensors of every message, by the rule as it was first written down."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for total in totals.values():
        batch.append(total.numel())
        if sum(batch) >= limit:
            batches.append(batch)
            batch = []
    return [*batches, batch] if batch else batches


@pytest.mark.parametrize("limit", [1, 7, 100, 10**6])
def test_the_messages_are_those_of_the_first_version(monkeypatch, generator, limit: int) -> None:
    monkeypatch.setattr(sample_loop, "_MESSAGE_NUMBERS", limit)
    lengths = torch.randint(0, 20, (60,), generator=generator).tolist()
    summed = SampleSums({str(index): torch.empty(length) for index, length in enumerate(lengths)})
    sent: list[Tensor] = []
    summed.add([(name, torch.rand(total.shape, generator=generator)) for name, total in summed.tensors.items()])
    before = {name: total.clone() for name, total in summed.tensors.items()}

    def double(message: Tensor) -> Tensor:
        sent.append(message.clone())
        return message * 2

    summed.merge(double)
    expected = messages_of_the_first_version(before, limit)
    assert [len(message) for message in sent[1:]] == [sum(batch) for batch in expected]
    torch.testing.assert_close(torch.cat(sent[1:]), torch.cat([total.reshape(-1) for total in before.values()]))
    for name, total in summed.tensors.items():
        torch.testing.assert_close(total, 2 * before[name], rtol=0, atol=0)
    assert summed.count == 2


@pytest.mark.slow
def test_many_small_sums_are_added_up_in_linear_time() -> None:
    def seconds(count: int) -> float:
        summed = SampleSums({str(index): torch.empty(1) for index in range(count)})
        begin = time.process_time()
        summed.merge(lambda message: message)
        return time.process_time() - begin

    seconds(100)
    assert seconds(25_000) < 5  # quadratic, it took minutes; about .4 s where nothing else runs
