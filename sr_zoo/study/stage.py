"""What a stage of a study is: what it needs, what it costs, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from filterattr import FilterSelection
from filterattr.analysis import Masking
from filterattr.display import Progress
from sr_zoo.study.archive import Archive, Results
from sr_zoo.study.samples import Sample, batches_of, row_errors
from sr_zoo.study.settings import Settings
from sr_zoo.study.subject import Subject


class Cost(NamedTuple):
    """What a stage takes, in passes of one crop of the study's size.

    Attributes:
        forwards: Forward passes.
        passes: Forward-backward passes.
    """

    forwards: float = 0.0
    passes: float = 0.0


@dataclass(frozen=True, eq=False)
class Context:
    """What a stage computes with.

    Attributes:
        subject: Networks, degradations and photographs.
        settings: How much is done.
        archive: Results of the stages before it.
        work: Folder for what it keeps while it works.
        progress: As in `FilterAttributor.attribute`.
    """

    subject: Subject
    settings: Settings
    archive: Archive
    work: Path
    progress: Progress = None

    @cached_property
    def search(self) -> Mapping[str, list[Sample]]:
        """Samples to find kernels on."""
        return self.subject.search_samples(self.settings)

    @cached_property
    def test(self) -> Mapping[str, list[Sample]]:
        """Samples to evaluate on."""
        return self.subject.test_samples(self.settings)

    @cached_property
    def found(self) -> Results:
        """Results of the search."""
        return self.archive.load("search")

    @property
    def sets(self) -> dict[str, FilterSelection]:
        """Function to its discovered kernels."""
        return {name: self.found[f"set_{name}"] for name in self.subject.functions}

    def masking(self, *conditions: str) -> Masking:
        """Masked networks on the test samples.

        Args:
            *conditions: Names of inputs; the functions by default.

        Returns:
            The masking.
        """
        subject = self.subject
        data = {name: batches_of(self.test[name]) for name in conditions or subject.functions}
        return Masking(subject.target, subject.base, subject.target, row_errors, data)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of its folder.
        title: What it asks, for the report and the progress.
        needs: Stages whose results it reads.
        uses: Settings that decide its results.
        cost: Estimates its cost.
        compute: Computes its results.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    cost: Callable[[Subject, Settings], Cost]
    compute: Callable[[Context], Results]
