"""Which ports the firewall's own sockets hold, so that NAT never gives one of them away; and what its queues lost.

Read from /proc/net: one line per socket costs about a microsecond to parse, where pyroute2 decodes a message with a
dozen attributes for each, and its DiagSocket does not answer in every release.  A TCP socket that is bound but neither
listens nor connects is in neither.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# Of the calling thread: a thread may have entered another network namespace than its process.
PROC_NET = Path("/proc/thread-self/net")


def used_ports() -> tuple[frozenset[int], frozenset[int]]:
    """Local ports of all TCP and all UDP sockets of the namespace, of both families, in whatever state."""
    return _ports("tcp", "tcp6"), _ports("udp", "udp6")


class QueueState(NamedTuple):
    """One NFQUEUE in packets: those that wait, and since it was bound those that came and those that were dropped."""

    waiting: int
    full: int  # it held as many as it may
    lost: int  # its reader's buffer was full
    seen: int


NO_QUEUE = QueueState(0, 0, 0, 0)


def queue_states(queues: Collection[int]) -> dict[int, QueueState]:
    """By number, of those that are bound."""
    return {row[0]: QueueState(row[2], row[5], row[6], row[7]) for row in _queues() if row[0] in queues}


def bound_queues() -> dict[int, int]:
    """The netlink port of whoever reads it, by the number of each NFQUEUE of the namespace."""
    return {row[0]: row[1] for row in _queues()}


def _queues() -> list[list[int]]:
    """Number, port, waiting, mode, range, dropped, lost, ..."""
    return [list(map(int, line.split())) for line in (PROC_NET / "netfilter/nfnetlink_queue").read_text().splitlines()]


def _ports(*tables: str) -> frozenset[int]:
    return frozenset(port for table in tables for port in _local_ports(table))


def _local_ports(table: str) -> list[int]:
    """Lines read `sl: LOCAL:PORT REMOTE:PORT ...` in hexadecimal; a host without IPv6 has no tcp6 and udp6."""
    try:
        lines = (PROC_NET / table).read_text().splitlines()[1:]
    except FileNotFoundError:
        return []
    return [int(line.split(None, 2)[1].rpartition(":")[2], 16) for line in lines]
