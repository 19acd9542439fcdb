"""One rank of the jobs in test_sharded.py.

``python -m tests.filterattr.estimators.shard_worker FOLDER RANK SIZE CASE...``.

Every case leaves ``CASE.RANK.json`` with the error or nothing, and ``CASE.RANK`` with the result.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from filterattr import FilterAttribution, FilterAttributor, Group, blend, swapped, train_only
from tests.memory import allocated, peak_of
from tests.reliability.interrupts import Injection

TIMEOUT = 30.0
HEADS = {
    "heads": Group({"q.*": "(heads d) ... -> heads", "o.weight": "o (heads d) -> heads"}, heads=3),
    "conv1.weight": "input",
    "*": "kernel",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
        self.heads = nn.ModuleDict({"q": nn.Linear(5, 6), "o": nn.Linear(6, 3)})

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.norm(self.conv1(image)))
        return self.heads["o"](nn.functional.silu(self.heads["q"](self.conv2(hidden).mean((2, 3)))))


def network(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def sharded(seed: int) -> Net:
    model = network(seed)
    for layer in (model.conv1, model.norm, model.conv2, *model.heads.values()):
        fully_shard(layer)
    return fully_shard(model)


def samples(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(2, 2, 10, 10, generator=generator) for _ in range(count)]


def squared(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(image).square().sum()


def both(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Computes with every weight twice."""
    return (model(image) * model(image.flip(-1))).square().sum()


def attribute(model, base=None, target=None, loss=squared, data=None, *, unit=None, **options) -> FilterAttribution:
    base, target = network(1) if base is None else base, network(2) if target is None else target
    torch.manual_seed(5)
    attributor = FilterAttributor(model, unit=unit)
    return attributor.attribute(
        base, target, loss, samples() if data is None else data, **{"n_steps": 4, "progress": False, **options}
    )


class Failing:
    """A loss that fails in one of its calls, in the forward or in the backward pass."""

    def __init__(self, how: Callable[[], object], call: int, *, backward: bool = False) -> None:
        self.how, self.left, self.backward = how, call, backward

    def __call__(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0 and not self.backward:
            model.conv1(image)  # which leaves the pass half done
            self.how()
        value = model(image)
        if self.left < 0:
            value.register_hook(lambda _: self.how())
        return value.square().sum()


def throw(error: BaseException) -> None:
    raise error


def shifted() -> dict[str, torch.Tensor]:
    """A target that moves in the last rows of one parameter alone, which one rank holds."""
    state = {name: value.clone() for name, value in network(1).state_dict().items()}
    state["conv2.weight"][1] += 1
    return state


def taught(model: nn.Module) -> FilterAttribution:
    """The loss uses a network that learns elsewhere, and whose gradient is not ours."""
    teacher = nn.Linear(3, 1)
    teacher.weight.grad = mine = torch.ones(1, 3)
    found = attribute(model, loss=lambda model, image: teacher(model(image)).square().sum())
    if teacher.weight.grad is not mine or not bool((mine == 1).all()) or teacher.bias.grad is not None:
        raise RuntimeError("the gradient of the teacher has changed")
    return found


def twice(model: nn.Module, error: BaseException, **how: object) -> FilterAttribution:
    """Broken off everywhere, then done again."""
    try:
        attribute(model, loss=Failing(lambda: throw(error), 5, **how))
    except type(error):
        return attribute(model)
    raise RuntimeError("the first call should have failed")


def from_file(model: nn.Module, folder: Path, rank: int) -> FilterAttribution:
    from safetensors.torch import save_file

    for seed in (1, 2):
        save_file(network(seed).state_dict(), folder / f"{seed}.{rank}.safetensors")
    return attribute(model, folder / f"1.{rank}.safetensors", folder / f"2.{rank}.safetensors", keep="signed")


def stack(seed: int, *, is_split: bool) -> nn.Module:
    """Forty layers, in float32 sixty megabytes."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(640, 640, bias=False) for _ in range(40)))
    if is_split:
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    return model


def memory(folder: Path, name: str, keep: str, *, is_split: bool) -> None:
    """What this process holds for a call, weights included, at most."""
    data = [torch.rand(1, 640) for _ in range(2)]
    attribute(
        stack(0, is_split=is_split),
        *(stack(seed, is_split=is_split) for seed in (0, 1)),
        data=data,
        n_steps=1,
        unit="filter",
    )
    gc.collect()
    before = allocated()

    def work() -> None:
        model, base, target = (stack(seed, is_split=is_split) for seed in range(3))
        attribute(model, base, target, data=data, unit="filter", keep=keep, n_steps=2)

    peak = peak_of(work) - before
    (folder / name).write_text(str(peak))


def interrupted_anywhere(model: nn.Module, count: int = 150) -> FilterAttribution:
    """Calls that are interrupted at random instructions of the modules that write to the model."""
    is_meant = lambda file: file.endswith(("/sharded.py", "/swap.py", "/node.py"))  # noqa: E731
    run = lambda: attribute(model, data=samples(1), n_steps=2, keep="signed")  # noqa: E731
    run()
    counting, before, draw = Injection(is_meant), fingerprint(model), random.Random(3)
    with counting.armed():
        run()
    n_met = 0
    for _ in range(count):
        injection = Injection(is_meant, draw.randrange(1, counting.count))
        try:
            with injection.armed():
                run()
        except KeyboardInterrupt:
            n_met += 1
        if fingerprint(model) != before:
            raise RuntimeError(f"an interrupt at {injection.place} has changed the model")
    if n_met < count / 2:
        raise RuntimeError(f"only {n_met} of {count} interrupts arrived")
    return attribute(model)


def frozen() -> nn.Module:
    model = network(0)
    model.heads["q"].requires_grad_(False)
    return fully_shard(model)


def half_sharded() -> nn.Module:
    model = network(0)
    fully_shard(model.conv1)
    return model


def replicated(model: nn.Module) -> dict[str, torch.Tensor]:
    mesh = model.conv1.weight.device_mesh
    return {
        name: distribute_tensor(value, mesh, [Replicate()]) if "norm" not in name else value
        for name, value in network(1).state_dict().items()
    }


def by_columns(size: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 5), nn.SiLU(), nn.Linear(5, 3, bias=False))
    place = lambda parameter: Shard(1) if parameter.ndim == 2 and parameter.shape[1] % size == 0 else None  # noqa: E731
    return fully_shard(model, shard_placement_fn=place)


def columns(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 5), nn.SiLU(), nn.Linear(5, 3, bias=False))


def cases(rank: int, size: int, folder: Path, model: nn.Module) -> dict[str, Callable[[], FilterAttribution | None]]:
    data = samples()
    die = lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None  # noqa: E731
    interrupt = lambda: throw(KeyboardInterrupt()) if rank == 1 else None  # noqa: E731
    plain_mesh = init_device_mesh("cpu", (size,))
    square = lambda: init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicas", "shards"))  # noqa: E731
    return {
        "all": lambda: attribute(model),
        "signed": lambda: attribute(model, keep="signed"),
        "heads": lambda: attribute(model, unit=HEADS),
        "heads signed": lambda: attribute(model, unit=HEADS, keep="signed"),
        "layers": lambda: attribute(model, unit="layer", keep="signed"),
        "inputs": lambda: attribute(model, unit="input"),
        "weights": lambda: attribute(model, unit="weight"),
        "corner": lambda: attribute(model, waypoints=[network(3)]),
        "corner signed": lambda: attribute(model, waypoints=[network(3)], keep="signed"),
        "columns": lambda: attribute(
            by_columns(size), columns(1), columns(2), data=[torch.ones(1, 8)], unit={"0.*": "input", "*": "kernel"}
        ),
        "one part moves": lambda: attribute(model, network(1), shifted(), keep="signed"),
        "from the model": lambda: attribute(model, model, network(2)),
        "from its state": lambda: attribute(model, model.state_dict(), network(2)),
        "from sharded": lambda: attribute(model, sharded(1), sharded(2).state_dict(), keep="signed"),
        "from files": lambda: from_file(model, folder, rank),
        "in one group": lambda: attribute(fully_shard(network(0))),
        "on a mesh": lambda: attribute(fully_shard(network(0), mesh=plain_mesh)),
        "twice": lambda: attribute(model, loss=both, keep="signed"),
        "twice all": lambda: attribute(model, loss=both),
        "taught": lambda: taught(model),
        "after an error": lambda: twice(model, ValueError("bad")),
        "after an error in backward": lambda: twice(model, ValueError("bad"), backward=True),
        "no scalar": lambda: attribute(model, loss=lambda model, image: model(image)),
        "infinite": lambda: attribute(model, loss=lambda model, image: model(image).square().sum() / 0),
        "bad gradient": lambda: attribute(
            model,
            keep="signed",
            loss=lambda model, image: model(image).square().sum().add((model(image) * 0).sum().sqrt()),
        ),
        "used by itself": lambda: attribute(
            model, loss=lambda model, image: squared(model, image) + model.heads["o"].bias.sum()
        ),
        "unused": lambda: attribute(model, loss=lambda model, image: model.conv1(image).sum()),
        "bad shape": lambda: attribute(model, nn.Sequential(nn.Conv2d(1, 1, 1))),
        "bad layout": lambda: attribute(model, replicated(model)),
        "bad on one": lambda: attribute(model, network(1) if rank else {}),
        "bad data": lambda: attribute(model, data=data[: 2 + rank]),
        "bad steps": lambda: attribute(model, n_steps=3 + rank),
        "pooled": lambda: attribute(model, aggregate="pooled", n_steps=1),
        "adaptive": lambda: attribute(model, method="adaptive", n_steps=None),
        "together": lambda: attribute(model, internal_batch_size=2),
        "distributed": lambda: attribute(model, distributed=True),
        "checkpoint": lambda: attribute(model, checkpoint=folder / "job"),
        "frozen": lambda: attribute(frozen()),
        "half sharded": lambda: attribute(half_sharded()),
        "two dimensions": lambda: attribute(fully_shard(network(0), mesh=square())),
        "swapped": lambda: swapped(model, network(1)).__enter__(),
        "blend": lambda: blend(network(1), model, attribute(network(0)).scores().top(0.1)) and None,
        "train only": lambda: train_only(
            model, attribute(network(0)).scores().top(0.1), torch.optim.SGD(model.parameters(), 0.1)
        ).__enter__(),
        "interrupted anywhere": lambda: interrupted_anywhere(model),
        "memory all": lambda: memory(folder, f"bytes all {size} {rank}", "all", is_split=size > 1),
        "memory signed": lambda: memory(folder, f"bytes signed {size} {rank}", "signed", is_split=size > 1),
        "killed": lambda: attribute(model, loss=Failing(die, 5)),
        "killed in backward": lambda: attribute(model, loss=Failing(die, 5, backward=True)),
        "interrupted": lambda: attribute(model, loss=Failing(interrupt, 5)),
        "interrupted in backward": lambda: attribute(model, loss=Failing(interrupt, 5, backward=True)),
    }


def fingerprint(model: nn.Module) -> list[object]:
    """Everything about the model that must stay; parts of parameters, as each rank holds them."""
    parameters = [
        (name, id(value), value.detach().to_local().numpy().tobytes(), id(value.grad), value.requires_grad,
         id(value._post_accumulate_grad_hooks), type(value).__name__)
        for name, value in model.named_parameters()
    ]  # fmt: skip
    buffers = [(name, id(value), value.numpy().tobytes()) for name, value in model.named_buffers()]
    return parameters + buffers


def main(folder: Path, rank: int, size: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size, timeout=timeout
    )
    model = sharded(0)
    squared(model, samples()[0]).backward()  # gradients of the user's own, and a lazy start that is over
    model.heads["q"].weight.register_post_accumulate_grad_hook(
        lambda _: throw(RuntimeError("a hook of the user's has run"))
    )
    for name in names:
        before, start, report = fingerprint(model), time.perf_counter(), {"error": None, "text": ""}
        try:
            found = cases(rank, size, folder, model)[name]()
            if found is not None:
                found.save(folder / f"{name}.{rank}")
        except BaseException as error:  # noqa: BLE001 - the report is what this is for
            report = {"error": type(error).__name__, "text": str(error)}
        report["seconds"] = time.perf_counter() - start
        report["clean"] = fingerprint(model) == before
        (folder / f"{name}.{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
