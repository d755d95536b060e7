"""IPFIX (RFC 7011): one flow record for each record of the traffic log, both directions in one (RFC 5103).

    event    flow record                                    natEvent (if translated)     firewallEvent
    start    counts of the first packet, no flowEndReason   4  NAT44 session create      1  created
    end      the whole session                              5  NAT44 session delete      2  deleted
    deny,    the first packet                               -                            3  denied
    drop

natEvent: RFC 8158, IANA's registry "NAT Event Type", which has no NAT66: there it is 1 and 2, a translation of
whatever kind that is created and deleted. firewallEvent: IANA element 233. Addresses and ports after
translation are the elements of RFC 8158; they repeat the others where nothing was translated. What a session of TCP
or UDP has for ports, one of ICMP has for its identifier. flowEndMilliseconds is the moment of the record: a session
that aged out sent its last packet a timeout earlier. Interfaces are indices of this host.

Templates are sent first, after each reconnection and every `refresh` seconds. libfixbuf encodes (fixbuf.py).
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator

from dataplane.sinks.base import Outlet, Parcel
from dataplane.sinks.fixbuf import Encoder
from dataplane.sinks.record import TrafficRecord, milliseconds, records
from dataplane.sinks.transport import Transport

TEMPLATE_V4, TEMPLATE_V6 = 256, 257

COMMON = (
    ("sourceTransportPort", 2),
    ("destinationTransportPort", 2),
    ("postNAPTSourceTransportPort", 2),
    ("postNAPTDestinationTransportPort", 2),
    ("octetDeltaCount", 8),
    ("reverseOctetDeltaCount", 8),
    ("packetDeltaCount", 8),
    ("reversePacketDeltaCount", 8),
    ("flowStartMilliseconds", 8),
    ("flowEndMilliseconds", 8),
    ("observationTimeMilliseconds", 8),
    ("ingressInterface", 4),
    ("egressInterface", 4),
    ("flowId", 8),
    ("protocolIdentifier", 1),
    ("flowEndReason", 1),
    ("natEvent", 1),
    ("firewallEvent", 1),
)
ADDRESSES = ("source{}Address", "destination{}Address", "postNATSource{}Address", "postNATDestination{}Address")
FIELDS_V4 = (*((name.format("IPv4"), 4) for name in ADDRESSES), *COMMON)
FIELDS_V6 = (*((name.format("IPv6"), 16) for name in ADDRESSES), *COMMON)
PACK_V4 = struct.Struct("=4I4H7QIIQ4B")  # the library turns the bytes of numbers, of which an IPv4 address is one
PACK_V6 = struct.Struct("=16s16s16s16s4H7QIIQ4B")

IDLE_TIMEOUT, END_OF_FLOW, FORCED_END, LACK_OF_RESOURCES = 1, 3, 4, 5
END_REASONS = {
    "aged-out": IDLE_TIMEOUT,
    "tcp-fin": END_OF_FLOW,
    "tcp-rst-from-client": END_OF_FLOW,
    "tcp-rst-from-server": END_OF_FLOW,
    "tcp-reuse": END_OF_FLOW,
    "resources-unavailable": LACK_OF_RESOURCES,
}
"""flowEndReason (RFC 5102, 5.11.3) by session_end_reason; the others are ends that the firewall forced."""
NAT_EVENTS = {("start", False): 4, ("end", False): 5, ("start", True): 1, ("end", True): 2}  # (event, IPv6)
FIREWALL_EVENTS = {"start": 1, "end": 2, "deny": 3, "drop": 3}

InterfaceIndex = Callable[[str], int]


class Ipfix(Outlet):
    """One collector."""

    patient = True

    def __init__(self, transport: Transport, encoder: Encoder, index_of: InterfaceIndex, refresh: float) -> None:
        self._transport = transport
        self._encoder = encoder
        self._index_of = index_of
        self._refresh = refresh
        self._templates = encoder.templates()
        self._due = 0.0  # when the templates are sent again, monotonic

    def pack(self, lines: bytes, records: int) -> Iterator[Parcel]:
        del records
        packed_records = list(self._packed(lines))  # first all of them: what fails must leave nothing in the encoder
        yield from self._encoder.messages(packed_records)

    def send(self, payload: bytes) -> None:
        now = time.monotonic()
        if not self._transport.is_open or now >= self._due:
            self._transport.send(self._stamped(payload))
            self._due = now + self._refresh
        self._transport.send(payload)

    def close(self) -> None:
        self._transport.close()

    def tells_of_earlier(self, error: OSError) -> bool:
        """A refusal over UDP answers the message before."""
        return not self._transport.stream and isinstance(error, ConnectionRefusedError)

    def _stamped(self, payload: bytes) -> bytes:
        """The templates with the export time and sequence number of the message that they go before."""
        return self._templates[:4] + payload[4:12] + self._templates[12:]

    def _packed(self, lines: bytes) -> Iterator[tuple[int, bytes]]:
        indices: dict[str | None, int] = {None: 0}
        for record in records(lines):
            for name in (record.ingress_interface, record.egress_interface):
                if name is not None and name not in indices:
                    indices[name] = self._index_of(name)
            yield packed(record, indices[record.ingress_interface], indices[record.egress_interface])


def packed(record: TrafficRecord, ingress: int, egress: int) -> tuple[int, bytes]:
    """(template, record) in the order of FIELDS_V4 or FIELDS_V6."""
    ipv6 = ":" in record.src
    addresses = (record.src, record.dst, record.nat_src, record.nat_dst)
    made = milliseconds(record.time)
    values = (
        record.sport,
        record.dport,
        record.nat_sport,
        record.nat_dport,
        record.bytes_sent,
        record.bytes_received,
        record.packets_sent,
        record.packets_received,
        milliseconds(record.start),
        made,
        made,
        ingress,
        egress,
        record.session_id,
        record.proto,
        0 if record.event == "start" else END_REASONS.get(record.session_end_reason or "", FORCED_END),
        NAT_EVENTS.get((record.event, ipv6), 0) if record.flags else 0,
        FIREWALL_EVENTS[record.event],
    )
    if ipv6:
        return TEMPLATE_V6, PACK_V6.pack(*(socket.inet_pton(socket.AF_INET6, each) for each in addresses), *values)
    numbers = (int.from_bytes(socket.inet_pton(socket.AF_INET, each)) for each in addresses)
    return TEMPLATE_V4, PACK_V4.pack(*numbers, *values)
