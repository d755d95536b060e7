"""What crosses an interface, read from a packet socket.

The socket listens from the moment it exists, and what it has received stays in its buffer until it is read: nothing is
missed before the first packet of a test or after the last, which a separate tcpdump process cannot promise.
tcpdump only compiles the filter.  The kernel also says which checksums it has left to the hardware (between two veth
devices they are never made), so that a valid one, a wrong one and one not yet made can be told apart.
"""

import ctypes
import socket
import struct
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tests.lab.polling import LabError, poll

if TYPE_CHECKING:
    from scapy.packet import Packet

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h; Python's socket module lacks them
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_OUTGOING = 4
TP_STATUS_CSUMNOTREADY = 1 << 3
TP_STATUS_VLAN_VALID = 1 << 4
AUXDATA = struct.Struct("IIIHHHH")  # status, length, captured, offset of MAC header, of network header, VLAN TCI, TPID
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33

BUFFER = 64 << 20  # bytes of kernel memory for what has not been read yet
LARGEST_FRAME = 1 << 18  # a GSO super-packet, BIG TCP included, and its headers

ETHERNET = 14  # bytes
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
CHECKSUMMED = {socket.AF_INET: (TCP, UDP, ICMP), socket.AF_INET6: (TCP, UDP, ICMPV6)}


@dataclass(frozen=True, slots=True)
class Datagram:
    """The IP header's fields that a checksum depends on."""

    family: int
    header: bytes
    source: bytes
    destination: bytes
    protocol: int
    payload: bytes
    fragment: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame from its Ethernet header on; `partial`: the kernel has not made its L4 checksum.

    The kernel takes the outermost 802.1Q tag out of the data: `tag` is its priority and id, None if there was none.
    """

    data: bytes
    outgoing: bool
    partial: bool
    tag: int | None = None

    @property
    def packet(self) -> "Packet":
        """The frame as scapy reads it."""
        from scapy.layers.l2 import Ether  # scapy takes a second to import, and the demo does without it

        return Ether(self.data)

    @property
    def datagram(self) -> Datagram | None:
        """The IPv4 or IPv6 datagram inside, IPv6 without extension headers; None for anything else."""
        kind = int.from_bytes(self.data[12:14], "big")
        if kind == 0x0800:
            return _ipv4(self.data[ETHERNET:])
        return _ipv6(self.data[ETHERNET:]) if kind == 0x86DD else None

    @property
    def source(self) -> str:
        """Source address as text, "" when the frame is not IP."""
        return str(ip_address(self.datagram.source)) if self.datagram else ""

    @property
    def destination(self) -> str:
        """Destination address as text, "" when the frame is not IP."""
        return str(ip_address(self.datagram.destination)) if self.datagram else ""

    def wrong_checksums(self) -> list[str]:
        """A line for the IP and the L4 checksum each, if it is wrong; one not yet made is not judged."""
        datagram = self.datagram
        if datagram is None:
            return []
        wrong = []
        if datagram.family == socket.AF_INET and ones_complement(datagram.header) != 0xFFFF:
            wrong.append(f"IP header: {self.source} > {self.destination}")
        if not self.partial and not datagram.fragment and not _l4_is_valid(datagram):
            wrong.append(f"protocol {datagram.protocol}: {self.source} > {self.destination}")
        return wrong


class Capture:
    """A packet socket on one interface; must be made inside the namespace of that interface."""

    def __init__(self, interface: str, expression: str = "") -> None:
        self._frames: list[Frame] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        if expression:
            _attach_filter(self._socket, expression)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self) -> list[Frame]:
        """Every frame so far, in order. Raises LabError when the kernel's buffer has overflowed."""
        if self._socket.fileno() >= 0:
            self._drain()
        return list(self._frames)

    def received(self) -> list[Frame]:
        """The frames that came in through the interface."""
        return [frame for frame in self.frames() if not frame.outgoing]

    def packets(self) -> "list[Packet]":
        """Every frame so far as scapy reads it."""
        return [frame.packet for frame in self.frames()]

    def wrong_checksums(self) -> list[str]:
        """A line for every wrong checksum so far."""
        return [line for frame in self.frames() for line in frame.wrong_checksums()]

    def wait(self, count: int, seconds: float = 3) -> list[Frame]:
        """The frames, once there are at least so many of them."""
        poll(lambda: len(self.frames()) >= count, seconds, f"{count} frames captured")
        return self.frames()

    def close(self) -> None:
        """Take what has arrived and listen no more; `frames()` stays readable."""
        try:
            self._drain()
        finally:
            self._socket.close()

    def _drain(self) -> None:
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(LARGEST_FRAME, 128)
            except BlockingIOError:
                break
            (said,) = [AUXDATA.unpack_from(body) for _, kind, body in ancillary if kind == PACKET_AUXDATA]
            status, tci = said[0], said[5]
            partial = bool(status & TP_STATUS_CSUMNOTREADY)
            tag = tci if status & TP_STATUS_VLAN_VALID else None
            self._frames.append(Frame(data, address[2] == PACKET_OUTGOING, partial, tag))
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            raise LabError(f"the capture lost {dropped} frames: narrow its filter")


def ones_complement(data: bytes) -> int:
    """The folded 16-bit one's complement sum of RFC 1071; 0xffff over data that holds its own checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ipv4(data: bytes) -> Datagram | None:
    if len(data) < 20:
        return None
    header = data[: (data[0] & 15) * 4]
    length, _, fragment = struct.unpack_from("!HHH", data, 2)
    payload = data[len(header) : length]
    return Datagram(socket.AF_INET, header, data[12:16], data[16:20], data[9], payload, bool(fragment & 0x3FFF))


def _ipv6(data: bytes) -> Datagram | None:
    if len(data) < 40:
        return None
    length = int.from_bytes(data[4:6], "big")
    return Datagram(socket.AF_INET6, data[:40], data[8:24], data[24:40], data[6], data[40 : 40 + length], False)


def _l4_is_valid(datagram: Datagram) -> bool:
    if datagram.protocol not in CHECKSUMMED[socket.AddressFamily(datagram.family)]:
        return True
    if datagram.family == socket.AF_INET and datagram.protocol == UDP and datagram.payload[6:8] == b"\0\0":
        return True  # RFC 768: the sender made none
    pseudo = struct.pack("!II", len(datagram.payload), datagram.protocol)
    if datagram.protocol == ICMP:
        return ones_complement(datagram.payload) == 0xFFFF
    return ones_complement(datagram.source + datagram.destination + pseudo + datagram.payload) == 0xFFFF


def _attach_filter(listener: socket.socket, expression: str) -> None:
    compiled = subprocess.run(["tcpdump", "-y", "EN10MB", "-ddd", expression], capture_output=True, text=True)
    if compiled.returncode:
        raise LabError(compiled.stderr.strip())
    lines = [tuple(map(int, line.split())) for line in compiled.stdout.splitlines()[1:]]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(lines), ctypes.addressof(program)))
