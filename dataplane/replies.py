"""What the firewall answers to a packet that it refuses: a TCP RST or an ICMP unreachable to the sender.

Both are sent through raw sockets with the whole IP header, the RST in the destination's name, and carry MARK_OWN so
that our own rules let them pass. Neither answers a RST, an ICMP error, or what came from or to a group of hosts
(RFC 1122 section 3.2.2). The rate is bounded as PAN-OS bounds it: a flood of refused packets makes no flood of answers.
"""

import socket
import struct
import time

from dataplane.routes import is_ipv4

UNREACHABLE_RATE = 200  # a second, PAN-OS: ICMP Unreachable Packet Rate
QUOTE_IPV4 = 548  # bytes of the refused packet: the error stays within 576 (RFC 1812 section 4.3.2.3)
QUOTE_IPV6 = 1232  # within 1280 (RFC 4443 section 3.1)
HOP_LIMIT = 64
TCP, ICMP, ICMPV6 = 6, 1, 58
RST, SYN, ACK, FIN = 4, 2, 16, 1


class RateLimit:
    """At most `rate` events a second, saved up for one second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._last = time.monotonic()

    def allows(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Replies:
    """Sends answers; slow path thread only."""

    def __init__(self, mark: int) -> None:
        self._sockets = {
            4: _raw_socket(socket.AF_INET, mark),
            6: _raw_socket(socket.AF_INET6, mark) if socket.has_ipv6 else None,
        }
        self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._frames.setblocking(False)
        self._limit = RateLimit(UNREACHABLE_RATE)

    def close(self) -> None:
        self._frames.close()
        for sock in self._sockets.values():
            if sock is not None:
                sock.close()

    def send(self, packet: bytes | None) -> bool:
        """Send a packet that tcp_reset() or unreachable() built.

        False if there is none, the rate forbids it, or the kernel cannot send it.
        """
        if packet is None or not self._limit.allows():
            return False
        family = packet[0] >> 4
        sock = self._sockets[family]
        destination = packet[16:20] if family == 4 else packet[24:40]
        if sock is None:
            return False
        address = socket.inet_ntop(sock.family, destination)
        try:
            sock.sendto(packet, (address, 0) if family == 4 else (address, 0, 0, 0))
        except OSError:  # no way back to the sender: he may have chosen the address
            return False
        return True

    def send_over_wire(self, packet: bytes | None, port: str, neighbour: bytes) -> bool:
        """The same without a route: out of a port of a virtual wire to the MAC address that the refused packet came
        from, without a tag."""
        if packet is None or not self._limit.allows():
            return False
        ipv4 = packet[0] >> 4 == 4
        whole = _with_checksum(packet[:20], 10, b"") + packet[20:] if ipv4 else packet
        try:
            self._frames.sendto(whole, (port, 0x0800 if ipv4 else 0x86DD, 0, 0, neighbour))
        except OSError:  # the port is down
            return False
        return True


def tcp_reset(packet: bytes, l4: int) -> bytes | None:
    """The RST that refuses a TCP packet, in the destination's name; None where none may be sent.

    `l4`: offset of the TCP header.
    """
    sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", packet, l4)
    source, destination = _addresses(packet)
    if flags & RST or _names_a_group(source) or _names_a_group(destination):
        return None
    payload = _ip_length(packet) - l4 - (offset >> 4) * 4
    if flags & ACK:
        header = struct.pack("!HHIIBBHHH", dport, sport, ack, 0, 5 << 4, RST, 0, 0, 0)
    else:
        acked = seq + payload + bool(flags & SYN) + bool(flags & FIN) & 0xFFFFFFFF
        header = struct.pack("!HHIIBBHHH", dport, sport, 0, acked, 5 << 4, RST | ACK, 0, 0, 0)
    return _datagram(
        destination, source, TCP, _with_checksum(header, 16, _pseudo(destination, source, TCP, len(header)))
    )


def tcp_acknowledgement(packet: bytes, l4: int, acked: int, window: int) -> bytes:
    """An ACK for the sender of a TCP packet, in the destination's name. `acked`: the sequence number expected next."""
    sport, dport, _, seq = struct.unpack_from("!HHII", packet, l4)
    source, destination = _addresses(packet)
    header = struct.pack("!HHIIBBHHH", dport, sport, seq, acked, 5 << 4, ACK, window, 0, 0)
    return _datagram(
        destination, source, TCP, _with_checksum(header, 16, _pseudo(destination, source, TCP, len(header)))
    )


def unreachable(packet: bytes, own_address: int) -> bytes | None:
    """`communication administratively prohibited` from an address of ours; None where none may be sent."""
    source, destination = _addresses(packet)
    ipv4 = len(source) == 4
    if is_ipv4(own_address) != ipv4 or _names_a_group(source) or _names_a_group(destination):
        return None
    own = own_address.to_bytes(16)[-len(source) :]
    if ipv4:
        message = struct.pack("!BBHI", 3, 13, 0, 0) + packet[:QUOTE_IPV4]
        return _datagram(own, source, ICMP, _with_checksum(message, 2, b""))
    message = struct.pack("!BBHI", 1, 1, 0, 0) + packet[:QUOTE_IPV6]
    return _datagram(own, source, ICMPV6, _with_checksum(message, 2, _pseudo(own, source, ICMPV6, len(message))))


def _ip_length(packet: bytes) -> int:
    length: int = struct.unpack_from("!H", packet, 2 if packet[0] >> 4 == 4 else 4)[0]
    return length if packet[0] >> 4 == 4 else length + 40


def _addresses(packet: bytes) -> tuple[bytes, bytes]:
    if packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    return packet[8:24], packet[24:40]


def _names_a_group(address: bytes) -> bool:
    """Multicast, broadcast, unspecified: nobody in particular."""
    if len(address) == 4:
        return address[0] >= 224 or address[0] == 0
    return address[0] == 0xFF or not any(address)


def _pseudo(source: bytes, destination: bytes, proto: int, length: int) -> bytes:
    return source + destination + struct.pack("!IBBBB", length, 0, 0, 0, proto)


def _with_checksum(message: bytes, at: int, pseudo: bytes) -> bytes:
    """The message with its checksum, which is now 0, filled in (RFC 1071)."""
    data = pseudo + message + b"\0" * (len(message) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return message[:at] + struct.pack("!H", ~total & 0xFFFF) + message[at + 2 :]


def _datagram(source: bytes, destination: bytes, proto: int, payload: bytes) -> bytes:
    """An IP packet; the kernel fills in IPv4's identification and checksum."""
    if len(source) == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, HOP_LIMIT, proto, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, len(payload), proto, HOP_LIMIT)
    return header + source + destination + payload


def _raw_socket(family: int, mark: int) -> socket.socket:
    """IPPROTO_RAW: we bring the IP header, of either family."""
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    sock.setblocking(False)
    return sock
