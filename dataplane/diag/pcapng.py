"""The few blocks of a pcapng file (draft-ietf-opsawg-pcapng) that a capture consists of, comments included.

By hand: what Python has for writing them knows no verdicts, or has not been looked after for years.
"""

import struct
from typing import NamedTuple

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER = 0x1A2B3C4D
LINKTYPE_RAW = 101  # a packet begins with its IP header
NANOSECONDS = 9  # if_tsresol: tens to the power of minus this

COMMENT = 1
SECTION_APPLICATION = 4
INTERFACE_NAME, INTERFACE_DESCRIPTION, INTERFACE_RESOLUTION = 2, 3, 9
PACKET_FLAGS, PACKET_VERDICT = 2, 7
INBOUND, OUTBOUND = 1, 2

# The other kinds of epb_verdict are codes of eBPF programs, and none of those has judged a packet that is captured. Of
# this kind a reader shows the bytes: they are the verdict's name.
VERDICT_OF_THE_DEVICE = 0
MAX_COMMENT = 0xFFFF

Options = list[tuple[int, bytes]]


class Copied(NamedTuple):
    """A packet as it is written down."""

    interface: int  # by the order of the interface blocks before it
    when: int  # nanoseconds since 1970
    data: bytes
    length: int  # bytes that it had
    outbound: bool
    comment: str
    verdict: str  # empty: none yet


def section(application: str, comment: str) -> bytes:
    """What a file begins with."""
    options = [(COMMENT, comment.encode()), (SECTION_APPLICATION, application.encode())]
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1), options)


def interface(name: str, description: str, snaplen: int) -> bytes:
    """The next interface that packets may name."""
    options = [(INTERFACE_NAME, name.encode()), (INTERFACE_RESOLUTION, bytes([NANOSECONDS]))]
    if description:
        options.append((INTERFACE_DESCRIPTION, description.encode()))
    return _block(INTERFACE, struct.pack("<HHI", LINKTYPE_RAW, 0, snaplen), options)


def packet(copied: Copied) -> bytes:
    """One packet with its comment."""
    head = (copied.interface, copied.when >> 32, copied.when & 0xFFFFFFFF, len(copied.data), copied.length)
    options = [
        (COMMENT, copied.comment.encode()[:MAX_COMMENT]),
        (PACKET_FLAGS, struct.pack("<I", OUTBOUND if copied.outbound else INBOUND)),
    ]
    if copied.verdict:
        options.append((PACKET_VERDICT, bytes([VERDICT_OF_THE_DEVICE]) + copied.verdict.encode()))
    return _block(PACKET, struct.pack("<5I", *head) + _padded(copied.data), options)


def _block(kind: int, body: bytes, options: Options) -> bytes:
    listed = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    content = body + listed + bytes(4)
    length = len(content) + 12
    return struct.pack("<II", kind, length) + content + struct.pack("<I", length)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
