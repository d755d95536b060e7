"""The priority of a command that turns out to be long work: packets cannot wait, and who reads a long list can.

A nice value counts only among the processes of one session where the kernel groups them so (sched_autogroup_enabled, as
on most hosts), and that group has a value of its own; so both are lowered, and put back at the end. Between control
groups with a CPU weight neither counts: there the host's owner has decided who gets how much.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONG = 1 << 18  # bytes of an answer that are printed at the pace of any command
LOWEST = 19
AUTOGROUP = Path("/proc/self/autogroup")  # "/autogroup-7 nice 0"


def patiently(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same blocks; from LONG bytes on they take what processor time nobody else wants."""
    left = iter(blocks)
    given = 0
    for block in left:
        given += len(block)
        yield block
        if given >= LONG:
            break
    with lowered():
        yield from left


@contextmanager
def lowered() -> Iterator[None]:
    """The lowest priority, for this process and its session, as far as the kernel allows it and knows of it."""
    usual, group = os.getpriority(os.PRIO_PROCESS, 0), _group()
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    _set_group(LOWEST)
    try:
        yield
    finally:
        _set_group(group)
        with suppress(PermissionError):  # the way back is root's, like the control socket
            os.setpriority(os.PRIO_PROCESS, 0, usual)


def _group() -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(AUTOGROUP.read_text().split()[-1])
    return 0


def _set_group(nice: int) -> None:
    with suppress(OSError):
        AUTOGROUP.write_text(str(nice))
