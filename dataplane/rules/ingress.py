"""The offload program at the ingress of the zones' interfaces, beside everybody else's filters.

It needs a clsact qdisc. One that was there already is somebody's and stays; one that we made goes when our filter goes,
unless somebody has put another filter into it meanwhile. Which ones we made is remembered on disk before a successor of
a killed daemon could need it: until then the dead one's filter goes on forwarding what it knows, and the successor's
replaces it.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.ffi import PROGRAMS, check, ffi, lib
from dataplane.rules import Record

HOOKS = (0xFFFFFFF2, 0xFFFFFFF3)  # a clsact's ingress and egress
Port = tuple[int, int, bool]  # ifindex, zone id, whether it belongs to a virtual wire

log = logging.getLogger(__name__)


class Ingress:
    """The program of one table, and where it is attached in the current namespace."""

    def __init__(self, runtime_dir: Path) -> None:
        self._record = Record(runtime_dir / "ingress.json")
        self._made: dict[int, bool] = dict(self._record.load() or ())
        self._program = ffi.NULL

    def load(self, table: Any, sessions: int) -> None:
        """Put the program into the kernel, for at most so many sessions; DataplaneError if it cannot be."""
        for path in PROGRAMS:
            self._program = lib.program_load(table, str(path).encode(), sessions)
            if self._program != ffi.NULL:
                return
        check(self._program, "offload")

    def set(self, ports: Iterable[Port]) -> None:
        """Be attached to these interfaces and no others."""
        wanted = {ifindex: (zone, wire) for ifindex, zone, wire in ports}
        for ifindex in self._made.keys() - wanted.keys():
            self._detach(ifindex)
        attached = {ifindex: place for ifindex, place in wanted.items() if self._attach(ifindex)}
        rows = [(ifindex, zone, wire) for ifindex, (zone, wire) in attached.items()]
        lib.program_set_ports(self._program, rows, len(rows))
        self._save()

    def remove(self) -> None:
        """Take the filters away, a dead predecessor's too."""
        for ifindex in list(self._made):
            self._detach(ifindex)
        self._record.delete()

    def _attach(self, ifindex: int) -> bool:
        result = lib.program_attach(self._program, ifindex)
        if result < 0:
            log.warning("interface %d cannot be offloaded: %s", ifindex, os.strerror(-result))
            return False
        self._made[ifindex] = bool(result) or self._made.get(ifindex, False)
        return True

    def _detach(self, ifindex: int) -> None:
        lib.program_detach(ifindex)
        if self._made.pop(ifindex):
            _remove_qdisc(ifindex)

    def _save(self) -> None:
        self._record.save(sorted(self._made.items()))


def _remove_qdisc(ifindex: int) -> None:
    """An interface that is gone has taken its qdisc along."""
    try:
        with IPRoute() as netlink:
            if not any(netlink.get_filters(index=ifindex, parent=hook) for hook in HOOKS):
                netlink.tc("del", "clsact", ifindex)
    except NetlinkError as error:
        log.info("a qdisc could not be removed: %s", error)
