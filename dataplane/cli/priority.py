"""The priority of a command that turns out to be long work: packets cannot wait, and who reads a long list can.

A processor that runs nothing but SCHED_IDLE counts as idle when somebody else wakes up, so a worker is not put behind
the list; a nice value alone would not do that. Both count only among the processes of one session where the kernel
groups them so (sched_autogroup_enabled, as on most hosts), and that group has a value of its own; so it is lowered too,
and all is put back at the end. Between control groups with a CPU weight none of it counts: there the host's owner has
decided who gets how much.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dataplane.cli.pace import Pace

LONG = 1 << 18  # bytes of an answer that are printed at the pace of any command
LOWEST = 19
AUTOGROUP = Path("/proc/self/autogroup")  # "/autogroup-7 nice 0"


def patiently(blocks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same blocks; from LONG bytes on they take what processor time nobody else wants, at the pace of pace.py."""
    left = iter(blocks)
    given = 0
    for block in left:
        given += len(block)
        yield block
        if given >= LONG:
            break
    pace = Pace()
    with lowered():
        for block in left:
            yield block
            pace.rest()


@contextmanager
def lowered() -> Iterator[None]:
    """The lowest priority, for this process and its session, as far as the kernel allows it and knows of it."""
    usual, policy, group = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), _group()
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _set_group(LOWEST)
    try:
        with _unwinding():
            yield
    finally:
        if group != LOWEST:  # else another list has lowered it, and puts it back
            _set_group(group)
        with suppress(PermissionError):  # the way back is root's, like the control socket
            os.sched_setscheduler(0, policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, usual)


@contextmanager
def _unwinding() -> Iterator[None]:
    """SIGTERM ends the process by an exception, or what `timeout` ends would leave its session where it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _group() -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(AUTOGROUP.read_text().split()[-1])
    return 0


def _set_group(nice: int) -> None:
    with suppress(OSError):
        AUTOGROUP.write_text(str(nice))
