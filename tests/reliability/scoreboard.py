"""How many cases of the reliability page each implementation fails: ``python -m tests.reliability.scoreboard``."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.reliability.drafts import IMPLEMENTATIONS, Implementation

_CASE = re.compile(r"test_case_(\d\d)")


class Against:
    """A pytest plugin that runs the cases against one implementation and keeps what failed.

    Args:
        implementation: What is put to the test.

    Attributes:
        failed: Case number to whether any of its tests failed.
    """

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.failed: dict[int, bool] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Hand the implementation to the fixture."""
        config.implementation = self.implementation

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome under the number of the case."""
        found = _CASE.search(report.nodeid)
        if found and not report.skipped:
            number = int(found[1])
            self.failed[number] = self.failed.get(number, False) or report.failed


def failures(implementation: Implementation, folder: Path = Path(__file__).parent) -> dict[int, bool]:
    """Run all cases that are not slow.

    Args:
        implementation: What is put to the test.
        folder: Where the cases are.

    Returns:
        Case number to whether it failed, in ascending order.
    """
    plugin = Against(implementation)
    options = ["-q", "-m", "not slow and not gpu", "-k", "test_case", "--no-header", "--tb=no", "--no-summary"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, "-W", "ignore", str(folder)], plugins=[plugin])
    return dict(sorted(plugin.failed.items()))


def main(names: Sequence[str]) -> None:
    """Print one line a case and the sums; every implementation has a process of its own.

    Args:
        names: Implementations to run, by name; all of them if there are none.
    """
    if len(names) == 1:
        json.dump(failures(IMPLEMENTATIONS[names[0]]), sys.stdout)
        return
    columns = {name: failures_apart(name) for name in names or IMPLEMENTATIONS}
    print("case  " + "  ".join(columns))
    for number in sorted({number for column in columns.values() for number in column}, key=int):
        cells = [("FAILS" if column.get(number) else "passes").ljust(len(name)) for name, column in columns.items()]
        print(f"{number:>4}  " + "  ".join(cells).rstrip())
    for name, column in columns.items():
        print(f"{name}: {sum(column.values())} of {len(column)} cases failed")


def failures_apart(name: str) -> dict[str, bool]:
    """Run one implementation in another process, so that what it leaves dirty disturbs nobody else.

    Args:
        name: Its name.

    Returns:
        Case number, as text, to whether it failed.
    """
    command = [sys.executable, "-m", "tests.reliability.scoreboard", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
