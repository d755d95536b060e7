"""Long answers wait for whoever else wants the processor, and only they; nothing of it lasts."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def nice_of(pid: int) -> str:
    """Of its session; 0 where the kernel knows of none."""
    group = Path("/proc", str(pid), "autogroup")
    return group.read_text().split()[-1] if group.exists() else "0"


def test_a_command_that_is_ended_leaves_its_session_as_it_was():
    """Told to go, as `timeout` does: the shell that is left has the priority that it had."""
    listing = (
        "import os, signal; from dataplane.cli.priority import lowered\n"
        "with lowered(): print(os.getpid(), flush=True); signal.pause()"
    )
    line = f"{sys.executable} -c '{listing}'; echo $?; cat"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", line], cwd=ROOT, start_new_session=True, **pipes) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        assert nice_of(shell.pid) == (str(LOWEST) if AUTOGROUP.exists() else "0")
        os.kill(pid, signal.SIGTERM)
        assert int(shell.stdout.readline()) == 128 + signal.SIGTERM
        assert nice_of(shell.pid) == "0"
        shell.stdin.close()


def test_two_lists_in_one_session(monkeypatch, tmp_path):
    """The second finds the session lowered and does not take that for how it was."""
    group = tmp_path / "autogroup"
    group.write_text("/autogroup-7 nice 0")
    monkeypatch.setattr("dataplane.cli.priority.AUTOGROUP", group)
    for call in ("setpriority", "sched_setscheduler"):  # of a process, and here both lists are one
        monkeypatch.setattr(os, call, lambda *_: None)
    first, second = lowered(), lowered()
    with first:
        assert group.read_text() == str(LOWEST)
        second.__enter__()
    assert group.read_text() == "0"
    second.__exit__(None, None, None)
    assert group.read_text() == "0"


def test_a_kernel_that_knows_no_groups(monkeypatch, tmp_path):
    """The process alone is lowered."""
    monkeypatch.setattr("dataplane.cli.priority.AUTOGROUP", tmp_path / "none" / "autogroup")
    usual = priority()
    with lowered():
        assert (priority(), os.sched_getscheduler(0)) == (LOWEST, os.SCHED_IDLE)
    assert (priority(), os.sched_getscheduler(0)) == (usual, os.SCHED_OTHER)
