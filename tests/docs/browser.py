"""A headless Chromium, where the machine has one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def command(profile: Path, *options: str) -> list[str]:
    """How to start it; skips the test that asks on a machine without."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    return [CHROMIUM, *flags, *options]


def content_of(address: str, profile: Path, *options: str) -> str:
    """What a page has become when its scripts have run; none of them may complain."""
    done = subprocess.run(
        command(profile, *options, "--dump-dom", address), capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
