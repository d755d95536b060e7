"""Prometheus's own linter of what a scrape says: of the PATH, or unpacked by `make test`."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parent.parent / "build" / "prometheus" / "usr" / "bin"


def complaints(text: str) -> str:
    """What it has to say, nothing being best; the test is skipped where it is not to be had."""
    program = shutil.which("promtool") or shutil.which("promtool", path=str(UNPACKED))
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}" + (f"exit {done.returncode}" if done.returncode else "")
