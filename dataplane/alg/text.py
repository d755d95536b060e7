"""What readers have in common: addresses as they are written, edits of a text, the beginnings of words, what goes by
unread, and a memory that forgets."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import TypeAlias, TypeVar

from dataplane.alg.base import Piece
from dataplane.policy.objects import IPV4, is_ipv4

K = TypeVar("K")
V = TypeVar("V")

Edits: TypeAlias = dict[tuple[int, int], bytes]
"""From where to where, and what has to stand there."""


def literal(text: bytes) -> int | None:
    """The number of an address literal; None for a name, and for an IPv4 address in IPv6 clothes."""
    try:
        address = ip_address(text.decode())
    except ValueError:
        return None
    if address.version == 4:
        return IPV4[0] | int(address)
    return None if address.scope_id or is_ipv4(int(address)) else int(address)


def address_of(octets: bytes) -> int:
    """The number of an address of four or sixteen octets."""
    return int.from_bytes(octets) | (IPV4[0] if len(octets) == 4 else 0)


def spliced(data: bytes, edits: Edits) -> bytes:
    """The text with all of them made."""
    parts, position = [], 0
    for (start, end), text in sorted(edits.items()):
        parts += [data[position:start], text]
        position = end
    return b"".join([*parts, data[position:]])


def may_become(data: bytes, words: Iterable[bytes]) -> bool:
    """Whether the beginning of a line is, or may still become, one of these words in capitals."""
    begun = data.upper()
    return any(begun.startswith(word[: len(begun)]) for word in words)


def pass_by(rest: list[int], side: int, size: int, data: bytes) -> Piece:
    """As much as has come of `size` bytes that nobody reads; `rest` keeps by side what has yet to come."""
    taken = min(size, len(data))
    rest[side] = size - taken
    return Piece(taken)


def remember(memory: dict[K, V], key: K, value: V, most: int) -> None:
    """As the newest of so many; the oldest goes."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]
