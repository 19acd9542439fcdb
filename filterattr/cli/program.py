"""How a program ends: its exit status, and one sentence on the error stream after a failure."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TextIO

from filterattr.errors import FilterAttrError, FilterAttrWarning, is_out_of_memory


def run_program(name: str, work: Callable[[], None], *, less_memory: str) -> int:
    """Run the work of a program.

    Args:
        name: Name of the program in messages.
        work: The work.
        less_memory: Advice for the message after a lack of memory.

    Returns:
        The exit status: 0 after success; 2 if an argument cannot be used or the machine refuses, with one sentence on
        the error stream that says why; 130 after an interrupt.

    Example:
        >>> run_program("program", lambda: print("done"), less_memory="fewer samples")
        done
        0
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, name)
            work()
    except FilterAttrError as error:
        return _refuse(name, str(error))
    except BrokenPipeError:  # whoever read the output has gone; what is left must not fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        return _refuse(name, _about_files(error))
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _refuse(name, f"there is not enough memory: use {less_memory} ({reason}).")
    return 0


def _show(
    name: str,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of the library in one line; other warnings show where they come from."""
    is_ours = issubclass(category, FilterAttrWarning)
    text = f"{name}: {message}\n" if is_ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _about_files(error: OSError) -> str:
    names = [f"'{name}'" for name in (error.filename, error.filename2) if name is not None]
    return (
        ": ".join([" and ".join(names), error.strerror or str(error)] if names else [error.strerror or str(error)])
        + "."
    )


def _refuse(name: str, message: str) -> int:
    sys.stderr.write(f"{name}: {message}\n")
    return 2
