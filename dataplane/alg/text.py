"""What readers have in common: addresses as they are written, edits of a text, and a memory that forgets."""

from ipaddress import ip_address
from typing import TypeAlias, TypeVar

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


def spliced(data: bytes, edits: Edits) -> bytes:
    """The text with all of them made."""
    for (start, end), text in sorted(edits.items(), reverse=True):
        data = data[:start] + text + data[end:]
    return data


def remember(memory: dict[K, V], key: K, value: V, most: int) -> None:
    """As the newest of so many; the oldest goes."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]
