"""One rank of the jobs in test_distributed.py.

``python -m tests.filterattr.jobs.rank_worker FOLDER RANK SIZE CASE...``.

Every case leaves ``CASE.RANK.json`` with the error or nothing, and ``CASE.RANK`` with the result.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from filterattr import FilterAttribution, FilterAttributor

TIMEOUT = 200.0  # of the group: a busy machine must not look like a dead rank
SHORT_TIMEOUT = 20.0  # where a rank hangs on purpose


def network(seed: int, channels: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, channels, 3), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(channels, 1, 3)
    return nn.Sequential(*layers).double()


def samples(count: int, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(1, 1, size, size, dtype=torch.float64, generator=generator) for _ in range(count)]


def squared(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(image).square().sum()


def attribute(data, loss=squared, *, base_seed: int = 1, distributed: bool = True, **options) -> FilterAttribution:
    base, target = network(base_seed), network(2)
    torch.manual_seed(5)
    return FilterAttributor(MODEL).attribute(
        base, target, loss, data, **{"n_steps": 3, "distributed": distributed, **options}
    )


MODEL = network(0)


def failing(at: int, rank: int, error: type[BaseException] = ValueError):
    """A loss that fails at one sample; only the rank that works on it sees that."""
    data = samples(6)

    def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        if torch.equal(image, data[at]):
            raise error(f"sample {at} is bad on rank {rank}")
        return squared(model, image)

    return loss


def shuffled(rank: int) -> FilterAttribution:
    loader = DataLoader(TensorDataset(torch.stack(samples(5))), shuffle=True)
    base, target = network(1), network(2)
    torch.manual_seed(5 + rank)  # the first rank decides
    loss = lambda model, batch: squared(model, batch[0][0])  # noqa: E731
    return FilterAttributor(MODEL).attribute(base, target, loss, loader, n_steps=3, distributed=True)


def wrapped() -> FilterAttribution:
    """Models as distributed training has them; DistributedDataParallel itself would reduce gradients on its own."""
    model, base, target = (DistributedDataParallel(network(seed)) for seed in range(3))
    torch.manual_seed(5)
    return FilterAttributor(model).attribute(base, target, squared, samples(5), n_steps=3, distributed=True)


def stubborn(rank: int, folder: Path) -> FilterAttribution:
    """Broken off at sample 4, then taken up again."""
    path = folder / "kept.safetensors"
    try:
        attribute(samples(6), failing(4, rank), checkpoint=path)
    except (RuntimeError, ValueError):
        pass
    else:
        raise RuntimeError("the first call should have failed")
    calls = []

    def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return squared(model, image)

    result = attribute(samples(6), loss, checkpoint=path)
    done_before = 2 + rank  # sample 5 was finished while sample 4 failed
    if len(calls) != 2 + (3 - done_before) * 5:  # both ends of the first sample again
        raise RuntimeError(f"the loss was called {len(calls)} times")
    return result


def pooled(data: list[torch.Tensor], loss=squared, **options) -> FilterAttribution:
    return attribute(data, loss, n_steps=1, aggregate="pooled", **options)


def together(data: list[torch.Tensor], number: int, **options) -> FilterAttribution:
    """Several samples in one pass; dropout would make that impossible."""
    base, target, model = (network(seed).eval() for seed in (1, 2, 0))
    options = {"n_steps": 3, "distributed": True, **options}
    return FilterAttributor(model).attribute(base, target, squared, data, internal_batch_size=number, **options)


def stopped(so_far: FilterAttribution) -> bool:
    return so_far.n_samples >= 24


def taken_up_at_different_places(rank: int, folder: Path) -> FilterAttribution:
    """Rank 1 fails while its file is older than that of rank 0."""
    path = folder / "pooled.safetensors"
    data = samples(80)

    def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        if rank == 1 and torch.equal(image, data[31]):  # rank 0 writes after this round, rank 1 does not
            raise ValueError("sample 31 is bad on rank 1")
        return squared(model, image)

    try:
        pooled(data, loss, checkpoint=path)
    except (RuntimeError, ValueError):
        pass
    else:
        raise RuntimeError("the first call should have failed")
    return pooled(data, checkpoint=path, until=lambda so_far: so_far.n_samples >= 48)


def dying(rank: int, how: Callable[[], None]) -> FilterAttribution:
    def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        if rank == 1 and torch.equal(image, samples(6)[3]):
            how()
        return squared(model, image)

    return attribute(samples(6), loss)


def cases(rank: int, size: int, folder: Path) -> dict[str, Callable[[], FilterAttribution]]:
    data = samples(6)
    return {
        "uneven": lambda: attribute(samples(5)),
        "even": lambda: attribute(samples(6)),
        "few": lambda: attribute(samples(1)),
        "alone": lambda: attribute(None, lambda model: squared(model, data[0])),
        "empty": lambda: attribute([]),
        "iterator": lambda: attribute(iter(samples(5))),
        "wrapped": wrapped,
        "shuffled": lambda: shuffled(rank),
        "raising": lambda: attribute(data, failing(3, rank)),
        "all raising": lambda: attribute(data, lambda *_: torch.zeros(3)),
        "bad base": lambda: attribute(data, base_seed=1 + rank),
        "bad steps": lambda: attribute(data, n_steps=3 + rank),
        "bad setting": lambda: attribute(data, method="simpson" if rank == 1 else "gausslegendre"),
        "bad order": lambda: attribute(data[::-1] if rank else data),
        "bad number": lambda: attribute(data[: 4 + rank]),
        "bad share": lambda: attribute(data[rank::size]),
        "bad sample": lambda: attribute([object()]),
        "one checkpoint": lambda: attribute(data, checkpoint=folder / "one" if rank else None),
        "kept": lambda: stubborn(rank, folder),
        "kept again": lambda: attribute(data, checkpoint=folder / "kept.safetensors"),
        "kept other": lambda: attribute(data, checkpoint=folder / "kept.safetensors", n_steps=4),
        "adaptive": lambda: attribute(samples(5), method="adaptive", n_steps=63, tolerance=1e-5),
        "pooled": lambda: pooled(samples(21)),
        "pooled stopped": lambda: pooled(samples(40), until=stopped),
        "pooled kept": lambda: taken_up_at_different_places(rank, folder),
        "bad until": lambda: pooled(samples(40), until=stopped if rank else None),
        "together": lambda: together(samples(11), 2),
        "together few": lambda: together(samples(3), 4),
        "together kept": lambda: together(samples(5 + 2 * size), 2, checkpoint=folder / "together"),
        "bad together": lambda: together(samples(6), 2 + rank),
        "killed": lambda: dying(rank, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        "exiting": lambda: dying(rank, lambda: sys.exit(3)),
        "hanging": lambda: dying(rank, lambda: time.sleep(2 * SHORT_TIMEOUT)),
    }


def fingerprint() -> list[object]:
    return [
        (name, id(value), value.detach().numpy().tobytes(), value.grad, value.requires_grad)
        for name, value in [*MODEL.named_parameters(), *MODEL.named_buffers()]
    ]


def main(folder: Path, rank: int, size: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SHORT_TIMEOUT if names == ["hanging"] else TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timeout)
    for name in names:
        before, start, report = fingerprint(), time.perf_counter(), {"error": None, "text": ""}
        try:
            cases(rank, size, folder)[name]().save(folder / f"{name}.{rank}")
        except BaseException as error:  # noqa: BLE001 - the report is what this is for
            report = {"error": type(error).__name__, "text": str(error)}
        report["seconds"] = time.perf_counter() - start
        report["clean"] = fingerprint() == before
        (folder / f"{name}.{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
