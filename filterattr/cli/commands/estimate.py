"""``estimate``: the cost of an attribution, measured on one sample."""

from __future__ import annotations

import argparse
import warnings

from filterattr.cli.answers import answer
from filterattr.cli.commands.task import task_of
from filterattr.errors import FilterAttrWarning


def run(options: argparse.Namespace) -> None:
    """Attribute one sample at few nodes, and extrapolate its cost."""
    task = task_of(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)  # few nodes are inexact on purpose
        cost = task.attributor.estimate(task.base, task.target, task.loss, task.samples, **task.settings)
    answer(options, str(cost), {**vars(cost), "minutes": cost.seconds / 60})
