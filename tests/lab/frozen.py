"""Stopping some threads of a process and not others, which no signal can do: as a tracer, by ptrace(2).

A thread is only ever stopped where it waits in the kernel: stopped in user space it might hold a lock of the session
table, and whoever spins for that lock would wait for the test and not for the product.
"""

import ctypes
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab.polling import poll

# linux/ptrace.h
PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 17, 0x4206, 0x4207
WALL = 0x40000000  # __WALL: wait for threads too
RECVMMSG = {"x86_64": 299, "aarch64": 243}[platform.machine()]
POLL = 7  # of x86_64; where poll(2) is made of ppoll(2) the timeout is behind a pointer
IN_USER_SPACE = -1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@contextmanager
def frozen(tids: Iterable[int]) -> Iterator[None]:
    """The threads stand still inside the context. The process must be a child that nobody waits for meanwhile."""
    with ExitStack() as stack:
        for tid in tids:
            _ptrace(PTRACE_SEIZE, tid)
            stack.callback(_ptrace, PTRACE_DETACH, tid)
            _stop(tid)
            while _system_call(tid) == IN_USER_SPACE:
                _ptrace(PTRACE_CONT, tid)
                _stop(tid)
        yield


def python_threads(pid: int, workers: int) -> set[int]:
    """Every thread of an idle daemon but its hot workers, which are the ones that wait in recvmmsg(2)."""

    def threads() -> dict[int, int]:
        return {int(path.name): _system_call(int(path.name)) for path in Path(f"/proc/{pid}/task").iterdir()}

    def all_workers_idle() -> dict[int, int]:
        found = threads()
        return found if list(found.values()).count(RECVMMSG) == workers else {}

    found = poll(all_workers_idle, 5, f"{workers} workers to wait for packets")
    return {tid for tid, call in found.items() if call != RECVMMSG}


def polling_thread(pid: int, milliseconds: int) -> int:
    """The one thread of an idle daemon that waits in poll(2) with this timeout."""

    def found() -> list[int]:
        tasks = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        calls = {tid: Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split() for tid in tasks}
        return [tid for tid, call in calls.items() if call[:1] == [str(POLL)] and int(call[3], 16) == milliseconds]

    return poll(found, 5, f"a thread that polls for {milliseconds} ms")[0]


def _stop(tid: int) -> None:
    _ptrace(PTRACE_INTERRUPT, tid)
    os.waitpid(tid, WALL)


def _system_call(tid: int) -> int:
    """The number of the call in which a thread waits, IN_USER_SPACE for one that runs."""
    first = Path(f"/proc/{tid}/syscall").read_text().split()[0]
    return IN_USER_SPACE if first == "running" else int(first)


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None):
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of thread {tid}")
