"""Naive models in plain Python, to stand beside the clever structures of C: checksums, a port pool, a session table."""

from collections.abc import Iterable
from dataclasses import dataclass, field

ICMP = 1


# ---- checksums ----


def ones_sum(data: bytes) -> int:
    """The 16-bit one's complement sum of RFC 1071, an odd byte padded with zero."""
    total = sum(data[0::2]) * 256 + sum(data[1::2])
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~ones_sum(data) & 0xFFFF


def adjusted(check: int, old: bytes, new: bytes) -> int:
    """The checksum after `old` became `new`: equation 3 of RFC 1624, word by word."""
    total = ~check & 0xFFFF
    for at in range(0, len(old), 2):
        total += (~int.from_bytes(old[at : at + 2]) & 0xFFFF) + int.from_bytes(new[at : at + 2])
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, proto: int, length: int) -> bytes:
    """Of IPv4 (RFC 9293 section 3.1) or IPv6 (RFC 8200 section 8.1); they sum up alike."""
    return source + destination + length.to_bytes(4) + proto.to_bytes(4)


def transport_is_valid(packet: bytes, l4: int, proto: int) -> bool:
    """Whether the checksum of a transport header without IPv6 routing headers before it is right."""
    source, destination = (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])
    segment = packet[l4:]
    if proto == ICMP:
        return ones_sum(segment) == 0xFFFF
    return ones_sum(pseudo_header(source, destination, proto, len(segment)) + segment) == 0xFFFF


# ---- ports ----


class PortPool:
    """Ports of one address and protocol."""

    def __init__(self, first: int, last: int, reserved: Iterable[int] = ()) -> None:
        self.free = set(range(first, last + 1)) - set(reserved)

    def take(self, port: int) -> None:
        self.free.remove(port)

    def give(self, port: int) -> None:
        self.free.add(port)


# ---- sessions ----


@dataclass(frozen=True, order=True)
class Key:
    """A flow as it looks on the wire; the protocol is always UDP here."""

    src: str
    sport: int
    dst: str
    dport: int
    zone: int

    def mirror(self, zone: int) -> "Key":
        return Key(self.dst, self.dport, self.src, self.sport, zone)


@dataclass
class Entry:
    """One session; `lent` is the port that the pool gave it."""

    keys: tuple[Key, Key]
    state: str
    deadline: int
    lent: int | None = None
    packets: list[int] = field(default_factory=lambda: [0, 0])


class SessionTable:
    """Slots, look-up and life of sessions as design.md section 4 says, with nothing but dicts and lists."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free = list(range(1, slots + 1))
        self.entries: dict[int, Entry] = {}
        self.discarded: list[int] = []  # oldest first

    def alive(self) -> dict[int, Entry]:
        return {i: entry for i, entry in self.entries.items() if entry.state in ("ACTIVE", "DISCARD")}

    def find(self, key: Key) -> tuple[int, int] | None:
        """(id, direction) of the live session that has this key; what was refused has no return flow."""
        flows = ((i, entry, entry.keys[: 1 if entry.state == "DISCARD" else 2]) for i, entry in self.alive().items())
        return next(((i, entry.keys.index(key)) for i, entry, keys in flows if key in keys), None)

    def occupied(self, key: Key) -> bool:
        """Whether a session that is not a refusal has this key."""
        return (found := self.find(key)) is not None and self.entries[found[0]].state == "ACTIVE"

    def make_way(self, key: Key) -> None:
        """A refusal of what a new session expects as its answer ends."""
        found = self.find(key)
        if found is not None and not self.occupied(key):
            self.close(found[0])

    def take_slot(self, discard: bool) -> int | None:
        """The next slot, old DISCARD sessions making room; None when the table stays full."""
        if discard and len(self.discarded) >= max(self.slots // 10, 1):
            self.release(self.discarded.pop(0))
        if not self.free and self.discarded:
            self.release(self.discarded.pop(0))
        return self.free.pop(0) if self.free else None

    def give_back(self, slot: int) -> None:
        """An install that failed after it had a slot."""
        self.free.append(slot)

    def insert(self, slot: int, entry: Entry) -> None:
        self.entries[slot] = entry
        if entry.state == "DISCARD":
            self.discarded.append(slot)

    def close(self, session_id: int) -> bool:
        entry = self.alive().get(session_id)
        if entry is None:
            return False
        if entry.state == "DISCARD":
            self.discarded.remove(session_id)
        entry.state = "CLOSING"
        return True

    def expire(self, now: int) -> set[int]:
        """Sessions that are CLOSED from now on: those in CLOSING, and those whose deadline has come."""
        for session_id, entry in self.alive().items():
            if now >= entry.deadline:
                self.close(session_id)
        ended = {i for i, entry in self.entries.items() if entry.state == "CLOSING"}
        for session_id in ended:
            self.entries[session_id].state = "CLOSED"
        return ended

    def release(self, session_id: int) -> None:
        del self.entries[session_id]
        self.free.append(session_id)

    def lent(self) -> set[int]:
        return {entry.lent for entry in self.entries.values() if entry.lent is not None}
