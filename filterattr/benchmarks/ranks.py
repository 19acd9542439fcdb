"""Ranks of adapters by contribution against equal ones: ``python -m filterattr.benchmarks.ranks``.

Three small networks learn a domain and are then adapted to another one with LoRA, by PEFT. Their adapters have the same
number of parameters, which are divided among the layers by one of six criteria. Prints what each gains over equal ranks
on samples that nobody saw, and writes every number to a CSV file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis import Budget, load_scipy
from filterattr.benchmarks.adapting import Batch, Domains, Task, adaptation_tasks
from filterattr.benchmarks.allocating import EVA, UNIFORM, Components, allocations
from filterattr.benchmarks.tables import first_line, markdown, write_csv
from filterattr.errors import FilterAttrWarning, SettingError, name_some
from filterattr.export import lora_arguments
from filterattr.jobs.progress import Progress, counted

RATES = (1e-2, 3e-2)  # every criterion has the better one, by samples that are not measured
State = dict[str, Tensor]
_SCALING = 2.0
_WARM_UP = 20


class Row(NamedTuple):
    """One line of the CSV file.

    Attributes:
        task: The network and its domains.
        seed: Of base, of the batches and of the adapters.
        criterion: What divided the parameters.
        parameters: Number of parameters of the adapters.
        rate: The learning rate.
        loss: On the samples that are measured: nats, or decibels of the squared error.
        before: The loss of base there.
        ranks: Rank of every layer, in the order of the network.
    """

    task: str
    seed: int
    criterion: str
    parameters: int
    rate: float
    loss: float
    before: float
    ranks: str


def run(names: Sequence[str], seeds: Iterable[int], *, shorten: int = 1, progress: Progress = None) -> list[Row]:
    """Train the networks, divide the parameters, and train the adapters.

    Args:
        names: Tasks.
        seeds: Of each task.
        shorten: Divide the steps of all trainings by this.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in networks.

    Returns:
        One row a task, seed and criterion.

    Raises:
        SettingError: A task is unknown, or PEFT or scikit-learn are not installed.
    """
    known = adaptation_tasks()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingError(f"a task must be one of {name_some(known, 10)}; got {name_some(unknown)}.")
    _peft()
    pairs = [(name, seed) for name in names for seed in seeds]
    domains = {name: known[name].domains() for name in names}
    rows: list[Row] = []
    with counted(progress, len(pairs), "network", title="adapting") as step:
        for name, seed in pairs:
            rows += _adapted(name, _shortened(known[name], shorten), domains[name], seed)
            step()
    return rows


def _shortened(task: Task, shorten: int) -> Task:
    base, short, adapters = (max(2, steps // shorten) for steps in task.steps)
    return dataclasses.replace(task, steps=(base, short, adapters))


def _adapted(name: str, task: Task, domains: Domains, seed: int) -> Iterator[Row]:
    """The rows of one network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.build()
    base = _learned(model, task, domains.old, task.steps[0], task.rates[0], seed)
    before = _measured(model, task, domains.test)
    short = _learned(model, task, domains.new, task.steps[1], task.rates[1], seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)  # a short fine-tuning has barriers, and that is no news
        model.load_state_dict(base)
        ranks = allocations(task, model, base, short, domains, seed)
    is_linear = all(isinstance(model.get_submodule(name), nn.Linear) for name in ranks.components)  # as PEFT asks for
    for criterion, budget in ranks.budgets.items():
        words = " ".join(map(str, budget.amounts().values()))
        starts: dict[str, Mapping[str, Components] | None] = {criterion: None}
        if criterion == EVA and is_linear:
            starts[f"{EVA}, with its start"] = ranks.components
        for title, start in starts.items():
            trained = [_trained(model, task, budget, domains, rate, seed, start) for rate in RATES]
            _, measured, rate = min(trained)
            yield Row(name, seed, title, budget.total, rate, measured, before, words)


def _trained(
    model: nn.Module,
    task: Task,
    budget: Budget,
    domains: Domains,
    rate: float,
    seed: int,
    start: Mapping[str, Components] | None,
) -> tuple[float, float, float]:
    """Train adapters of these ranks: the loss on samples for choices and on those that are measured, and the rate."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of PEFT about its neighbours
        torch.manual_seed(seed)
        adapted = with_adapters(copy.deepcopy(model), budget, start)
    _learned(adapted, task, domains.new, task.steps[2], rate, seed)
    return _measured(adapted, task, domains.search), _measured(adapted, task, domains.test), rate


def with_adapters(model: nn.Module, budget: Budget, start: Mapping[str, Components] | None = None) -> nn.Module:
    """Give a network adapters of PEFT.

    Args:
        model: The network.
        budget: The ranks.
        start: Linear layer to the directions in which adapters of EVA begin; others begin in random ones.

    Returns:
        The network of PEFT.

    Raises:
        SettingError: PEFT is not installed.
    """
    peft = _peft()
    arguments = lora_arguments(budget, model, scaling=_SCALING)
    if start is None:
        plain: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**arguments))
        return plain
    adapted: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**arguments, init_lora_weights="eva"))
    ranks = {name.removesuffix(".weight"): rank for name, rank in budget.amounts().items() if rank}
    directions = {f"base_model.model.{name}": start[name].directions[:rank].float() for name, rank in ranks.items()}
    peft.initialize_lora_eva_weights(adapted, eva_state_dict=directions)
    return adapted


def _learned(model: nn.Module, task: Task, data: Batch, steps: int, rate: float, seed: int) -> State:
    """Train what needs a gradient; every criterion sees the same batches."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], weight_decay=0.0)
    for step in range(steps):
        rows = torch.randint(len(data[0]), (task.batch,), generator=generator)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / _WARM_UP) * (1 - step / steps)
        optimizer.zero_grad()
        task.loss(model, tuple(value[rows] for value in data)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _measured(model: nn.Module, task: Task, data: Batch) -> float:
    with torch.no_grad():
        return task.loss(model, data).item()


def table(rows: Sequence[Row]) -> str:
    """Write means over seeds as a table in Markdown.

    Args:
        rows: Of `run`.

    Returns:
        The loss of base, that of uniform ranks, and the difference of every other criterion from uniform ranks, with
        an interval of 95% (Student, paired by seeds). The lower, the better.

    Example:
        >>> rows = [Row("digits", 0, name, 64, 0.01, loss, 3.0, "1 1")
        ...         for name, loss in {"uniform": 0.5, "EVA": 0.25}.items()]
        >>> print(table(rows))
        | ranks | digits | parameters |
        | --- | --- | --- |
        | no adapters | 3.000 |  |
        | uniform | 0.500 | 1.000 |
        | EVA | -0.250 | 1.000 |
        <BLANKLINE>
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    lines = [["ranks", *tasks, "parameters"]]
    lines.append(["no adapters", *(f"{np.mean([r.before for r in rows if r.task == task]):.3f}" for task in tasks), ""])
    for criterion in dict.fromkeys(row.criterion for row in rows):
        those = [row for row in rows if row.criterion == criterion]
        cells = [_cell([row for row in those if row.task == task], rows) for task in tasks]
        shares = [row.parameters / _uniform(row, rows).parameters for row in those]
        lines.append([criterion, *cells, f"{np.mean(shares):.3f}"])
    return markdown(lines)


def _cell(those: Sequence[Row], rows: Sequence[Row]) -> str:
    """The loss of uniform ranks; of others, the difference from it."""
    if not those:
        return ""
    if those[0].criterion == UNIFORM:
        return f"{np.mean([row.loss for row in those]):.3f}"
    differences = [row.loss - _uniform(row, rows).loss for row in those]
    mean = f"{np.mean(differences):+.3f}"
    if len(differences) < 2:
        return mean
    half = load_scipy().t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / math.sqrt(len(differences))
    return f"{mean} [{np.mean(differences) - half:+.3f}, {np.mean(differences) + half:+.3f}]"


def _uniform(row: Row, rows: Sequence[Row]) -> Row:
    return next(r for r in rows if (r.task, r.seed, r.criterion) == (row.task, row.seed, UNIFORM))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line.

    Args:
        arguments: Those of the command line by default.

    Returns:
        The exit status, 0.

    Example:
        >>> main(["--help"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    parser = argparse.ArgumentParser(prog="python -m filterattr.benchmarks.ranks", description=first_line(__doc__))
    parser.add_argument("--tasks", nargs="+", default=list(adaptation_tasks()), help="default: all", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each task (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("ranks.csv"), help="CSV file (default: %(default)s)")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = run(options.tasks, seeds, shorten=100 if options.quick else 1, progress=True)
    write_csv(Row._fields, rows, options.out)
    sys.stdout.write(f"{table(rows)}\nwrote {options.out}\n")
    return 0


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise SettingError("this needs PEFT: pip install 'filterattr[ranks]'.") from error


if __name__ == "__main__":
    sys.exit(main())
