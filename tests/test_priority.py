"""Long answers wait for whoever else wants the processor, and only they; nothing of it lasts."""

import os
import subprocess
import sys
from pathlib import Path

from dataplane.cli.priority import AUTOGROUP, LONG, LOWEST, lowered, patiently

ROOT = Path(__file__).parent.parent


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_a_short_answer_keeps_its_pace():
    """Below LONG bytes nothing changes."""
    usual = priority()
    assert [(block, priority()) for block in patiently([b"a", b"b" * (LONG - 2)])] == [
        (b"a", usual),
        (b"b" * (LONG - 2), usual),
    ]


def test_a_long_answer_waits_and_then_is_as_before():
    """From LONG bytes on, until its end."""
    usual = priority()
    seen = [priority() for _ in patiently([b"a" * LONG, b"b", b"c"])]
    assert seen == [usual, LOWEST, LOWEST]
    assert priority() == usual


def test_an_answer_that_is_not_read_to_its_end():
    """A closed pipe, or Ctrl-C, puts back what was lowered."""
    usual = priority()
    blocks = patiently([b"a" * LONG, b"b", b"c"])
    next(blocks), next(blocks)
    assert priority() == LOWEST
    blocks.close()
    assert priority() == usual


def test_the_session_is_lowered_too():
    """In a session of its own, as a terminal has; where the kernel knows of none, nothing is written."""
    code = (
        "from dataplane.cli.priority import AUTOGROUP, lowered\n"
        "read = lambda: AUTOGROUP.read_text().split()[-1] if AUTOGROUP.exists() else '-'\n"
        "print(read())\n"
        "with lowered(): print(read())\n"
        "print(read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, start_new_session=True
    )
    assert done.stdout.split() == (["0", "19", "0"] if AUTOGROUP.exists() else ["-", "-", "-"])


def test_a_kernel_that_knows_no_groups(monkeypatch, tmp_path):
    """The process alone is lowered."""
    monkeypatch.setattr("dataplane.cli.priority.AUTOGROUP", tmp_path / "none" / "autogroup")
    usual = priority()
    with lowered():
        assert priority() == LOWEST
    assert priority() == usual
