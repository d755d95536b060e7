"""Who is behind an address on a link: the kernel's neighbour table, kept by its events.

    kernel ── RTM_NEWNEIGH, RTM_DELNEIGH ──► follow(): what has changed ──► mac()

Events are read as bytes: a busy table changes its states all the time, and nothing but the addresses counts here. An
overrun socket is mended by a dump, after which everything counts as changed. What still waits in the socket then is
thrown away before: it is older than what was lost, and leaves the dump no room. Who overruns it again meanwhile gets
another dump in the next turn.
"""

import errno
import socket
import struct
from collections.abc import Iterator

from dataplane.routes import MAPPED, is_ipv4

Place = tuple[int, int]  # ifindex, address (128 bits, IPv4 mapped)

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, ifindex, state, flags, type
ATTRIBUTE = struct.Struct("=HH")
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
RTMGRP_NEIGH = 1 << 2
NDA_DST, NDA_LLADDR = 1, 2
NTF_USE = 1
STALE = 0x04
VALID = 0x02 | STALE | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
MAC_LENGTH = 6
BUFFER = 1 << 20  # bytes of events
EVENT = 256  # bytes that one takes there at least
TIMEOUT = 5  # seconds for a dump


class Neighbours:
    """The neighbours of the current namespace. One thread; OSError if the kernel does not answer."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", TIMEOUT, 0))
        self._socket.bind((0, RTMGRP_NEIGH))
        self._macs: dict[Place, bytes] = {}
        self._stale: set[Place] = set()
        self._changed: set[Place] = set()
        self._whole = self._dump()  # nothing was lost since

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def mac(self, ifindex: int, address: int) -> bytes | None:
        """The Ethernet address; None where there is none, or the neighbour does not answer."""
        return self._macs.get((ifindex, address))

    def follow(self) -> set[Place]:
        """Take in what has happened; the places whose Ethernet address is another one than before, or gone."""
        try:
            while True:
                self._read(self._socket.recv(1 << 16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._whole = False
        if not self._whole:
            self._changed |= self._macs.keys()
            self._drain()
            self._whole = self._dump()
        changed, self._changed = self._changed, set()
        return changed

    def use(self, ifindex: int, address: int) -> None:
        """Let the kernel find out whether a neighbour is still there, as it does for those that it sends to itself."""
        if (ifindex, address) not in self._stale:
            return
        ipv4 = is_ipv4(address)
        raw = (address & 0xFFFFFFFF).to_bytes(4) if ipv4 else address.to_bytes(16)
        family = socket.AF_INET if ipv4 else socket.AF_INET6
        attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(raw), NDA_DST) + raw
        self._send(RTM_NEWNEIGH, NLM_F_REQUEST, NEIGHBOUR.pack(family, ifindex, 0, NTF_USE, 0) + attribute)

    def _drain(self) -> None:
        for _ in range(2 * BUFFER // EVENT):  # the kernel doubles what it is asked for
            try:
                self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _dump(self) -> bool:
        """Begin anew with what is there; False if something was lost meanwhile."""
        self._macs.clear()
        self._stale.clear()
        self._send(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        whole, done = True, False
        while not done:
            try:
                done = self._read(self._socket.recv(1 << 16))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                whole = False
        return whole

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body)

    def _read(self, data: bytes) -> bool:
        """Take in the messages of one datagram; True at the end of a dump."""
        done = False
        for kind, body in _messages(data):
            done |= kind == NLMSG_DONE
            if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                self._take(kind, body)
        return done

    def _take(self, kind: int, body: bytes) -> None:
        family, ifindex, state, _, _ = NEIGHBOUR.unpack_from(body)
        attributes = dict(_attributes(body[NEIGHBOUR.size :]))
        if family not in (socket.AF_INET, socket.AF_INET6) or NDA_DST not in attributes:
            return
        address = int.from_bytes(attributes[NDA_DST]) | (MAPPED if family == socket.AF_INET else 0)
        place, mac = (ifindex, address), attributes.get(NDA_LLADDR, b"")
        alive = kind == RTM_NEWNEIGH and state & VALID and len(mac) == MAC_LENGTH
        if self._macs.get(place) != (mac if alive else None):
            self._changed.add(place)
        if alive:
            self._macs[place] = mac
        else:
            self._macs.pop(place, None)
        (self._stale.add if alive and state & STALE else self._stale.discard)(place)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        yield kind, data[at + HEADER.size : at + length]
        at += max(length + 3 & ~3, HEADER.size)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, ATTRIBUTE.size)
