"""IPFIX beside an independent reader: scapy takes apart what libfixbuf has put together."""

import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.netflow import NetflowFlowsetV9, NetflowHeader

from dataplane.errors import DataplaneError
from dataplane.policy.model import IpfixCollector
from dataplane.policy.servers import parse_collector
from dataplane.sinks.base import Sink
from dataplane.sinks.transport import Transport
from tests.test_sinks import Lost, Receiver, line, until

fixbuf = pytest.importorskip("dataplane.sinks.fixbuf")
ipfix = pytest.importorskip("dataplane.sinks.ipfix")
TEMPLATES = {ipfix.TEMPLATE_V4: ipfix.FIELDS_V4, ipfix.TEMPLATE_V6: ipfix.FIELDS_V6}
INDICES = {"in0": 3, "out0": 4}
TEMPLATE_SET = 2
REVERSE = (29305).to_bytes(4)


@pytest.fixture(autouse=True)
def library():
    """Without the library there is nothing to test."""
    try:
        fixbuf.Encoder(TEMPLATES, 1)
    except Exception as error:
        pytest.skip(str(error))


def exporter(to: str, refresh: float = 60) -> Any:
    encoder = fixbuf.Encoder(TEMPLATES, 7)
    return ipfix.Ipfix(Transport(parse_collector(to)), encoder, lambda name: INDICES.get(name, 0), refresh)


SRC, DST, SPORT, DPORT, PROTO = 8, 12, 7, 11, 4
OCTETS, PACKETS, START, END, EVENT_TIME = 1, 2, 152, 153, 323
NAT_SRC, NAT_DST, NAT_SPORT, NAT_DPORT = 225, 226, 227, 228
INGRESS, EGRESS, FLOW, END_REASON, NAT_EVENT, FIREWALL_EVENT = 10, 14, 148, 136, 230, 233
SRC6, DST6, NAT_SRC6, NAT_DST6 = 27, 28, 281, 282
"""IANA's numbers of the information elements; a reverse one (RFC 5103) is negative here."""


def templates(message: bytes) -> dict[int, list[tuple[int, int]]]:
    """Template -> (element, length) of each field, as scapy reads them."""
    flowsets = [flowset for n in (1, 2) if (flowset := NetflowHeader(message).getlayer(NetflowFlowsetV9, n))]
    return {
        template.templateID: [
            (-field.fieldType if field.enterpriseBit else field.fieldType, field.fieldLength)
            for field in template.template_fields
        ]
        for flowset in flowsets
        for template in flowset.templates
    }


def records(*messages: bytes) -> list[dict[int, bytes]]:
    """Element -> value of every data record, read by the templates that came before."""
    known: dict[int, list[tuple[int, int]]] = {}
    found = []
    for message in messages:
        at = 16
        while at < len(message):
            number, length = int.from_bytes(message[at : at + 2]), int.from_bytes(message[at + 2 : at + 4])
            if number == TEMPLATE_SET:
                known |= templates(message)
            else:
                found += split(message[at + 4 : at + length], known[number])
            at += length
    return found


def split(data: bytes, fields: list[tuple[int, int]]) -> list[dict[int, bytes]]:
    found = []
    while len(data) >= sum(length for _, length in fields):
        record = {}
        for number, length in fields:
            record[number], data = data[:length], data[length:]
        found.append(record)
    return found


def numbers(record: dict[int, bytes], *elements: int) -> list[int]:
    return [int.from_bytes(record[element]) for element in elements]


def messages_of(lines: bytes) -> list[bytes]:
    """The templates and what the lines become."""
    outlet = exporter("udp://127.0.0.1:1")
    return [outlet._templates, *(payload for payload, _ in outlet.pack(lines, lines.count(b"\n")))]


def test_the_templates_hold_every_field():
    """Both families, in the order in which records are packed; reverse elements name RFC 5103's enterprise."""
    message, *_ = messages_of(b"")
    found = templates(message)
    assert [len(found[number]) for number in (256, 257)] == [len(ipfix.FIELDS_V4), len(ipfix.FIELDS_V6)]
    assert {SRC, DST, NAT_SRC, NAT_DST, OCTETS, -OCTETS, PACKETS, -PACKETS} <= {number for number, _ in found[256]}
    assert sum(length for _, length in found[257]) == ipfix.PACK_V6.size
    assert REVERSE in message


def test_a_translated_session():
    """Addresses before and after, counts of both directions, why it ended, what became of the translation."""
    (found,) = records(*messages_of(line(7)))
    addresses = [socket.inet_ntoa(found[element]) for element in (SRC, DST, NAT_SRC, NAT_DST)]
    assert addresses == ["10.1.0.2", "10.2.0.2", "10.2.0.1", "10.2.0.2"]
    assert numbers(found, SPORT, DPORT, NAT_SPORT, NAT_DPORT) == [4000, 53, 40000, 53]
    assert numbers(found, OCTETS, -OCTETS, PACKETS, -PACKETS) == [60, 120, 1, 1]
    assert numbers(found, START, INGRESS, EGRESS, FLOW) == [1_767_225_600_000, 3, 4, 7]
    assert numbers(found, PROTO, END_REASON, NAT_EVENT, FIREWALL_EVENT) == [17, 1, 5, 2]
    assert found[END] == found[EVENT_TIME]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"event": "start", "session_end_reason": None}, [0, 4, 1]),
        ({"session_end_reason": "tcp-fin"}, [3, 5, 2]),
        ({"session_end_reason": "tcp-rst-from-server"}, [3, 5, 2]),
        ({"session_end_reason": "unknown"}, [4, 5, 2]),
        ({"session_end_reason": "policy-deny"}, [4, 5, 2]),
        ({"event": "drop", "session_end_reason": "resources-unavailable", "flags": ""}, [5, 0, 3]),
        ({"event": "deny", "session_end_reason": "policy-deny", "flags": ""}, [4, 0, 3]),
        ({"flags": ""}, [1, 0, 2]),
    ],
)
def test_the_events(changes, expected):
    """flowEndReason, natEvent, firewallEvent."""
    (found,) = records(*messages_of(line(**changes)))
    assert numbers(found, END_REASON, NAT_EVENT, FIREWALL_EVENT) == expected


def test_ipv6_has_a_template_of_its_own():
    """And the general events of a translation."""
    spelled = ["fd00::1", "2001:db8::2", "2001:db8::1", "2001:db8::2"]
    changes: dict[str, Any] = dict(zip(("src", "dst", "nat_src", "nat_dst"), spelled, strict=True))
    (found,) = records(*messages_of(line(1, **changes)))
    addresses = [socket.inet_ntop(socket.AF_INET6, found[element]) for element in (SRC6, DST6, NAT_SRC6, NAT_DST6)]
    assert addresses == spelled
    assert numbers(found, END_REASON, NAT_EVENT, FIREWALL_EVENT) == [1, 2, 2]


def test_messages_are_full_numbered_and_no_longer_than_a_packet():
    """The sequence number counts the records before; families may alternate."""
    mixed = line() + line(src="fd00::1", dst="fd00::2", nat_src="fd00::1", nat_dst="fd00::2", flags="")
    outlet = exporter("udp://127.0.0.1:1")
    before = 0
    for payload, n in [*outlet.pack(line() * 100, 100), *outlet.pack(mixed * 50, 100)]:
        assert len(payload) <= fixbuf.MESSAGE
        assert int.from_bytes(payload[2:4]) == len(payload)
        assert (int.from_bytes(payload[8:12]), int.from_bytes(payload[12:16])) == (before, 7)
        before += n
    assert before == 200


def test_a_record_of_two_families_costs_no_other():
    """There is no template for it; it leaves nothing behind in the encoder."""
    lost, receiver = Lost(), Receiver()
    sink = Sink("ipfix", exporter(f"udp://127.0.0.1:{receiver.port}"), lost)
    sink.write_lines(line(1) + line(2, nat_src="::") + line(3), 3)
    sink.start()
    until(lambda: sink.status()["written"] == 2)
    sink.stop()
    found = records(*(receiver.socket.recv(65536) for _ in range(3)))
    assert [numbers(each, FLOW) for each in found] == [[1], [3]]
    assert lost.records == 1


def test_templates_come_first_and_again():
    """To a collector that has missed them, or has been started anew."""
    receiver = Receiver()
    outlet = exporter(f"udp://127.0.0.1:{receiver.port}", refresh=0)
    (payload,) = [payload for payload, _ in outlet.pack(line(), 1)]
    for _ in range(2):
        outlet.send(payload)
        first, data = (receiver.socket.recv(65536) for _ in range(2))
        assert (int.from_bytes(first[16:18]), data) == (TEMPLATE_SET, payload)
        assert first[4:12] == data[4:12]
    outlet.close()


def test_a_collector_over_tcp():
    """Messages follow each other; their own length parts them."""
    lost = Lost()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = Sink("ipfix", exporter(f"tcp://127.0.0.1:{listener.getsockname()[1]}"), lost)
        sink.start()
        sink.write_lines(line(1) + line(2), 2)
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            until(lambda: sink.status()["written"] == 2)
            sink.stop()
            received = stream.read()
    messages = []
    while received:
        length = int.from_bytes(received[2:4])
        messages.append(received[:length])
        received = received[length:]
    assert len(records(*messages)) == 2
    assert lost.records == 0


def test_a_collector_that_is_dead_is_counted():
    """And the sink ends in time."""
    lost, receiver = Lost(), Receiver()
    sink = Sink("ipfix", exporter(f"udp://127.0.0.1:{receiver.port}"), lost, limit=100)
    receiver.socket.close()
    sink.start()
    for n in range(50):
        sink.write_lines(line(n) * 20, 20)
    until(lambda: lost.records)
    sink.stop()
    assert not sink.is_alive()
    assert sink.status()["waiting"] == 0


def test_an_encoder_that_is_not_used_any_more_gives_its_memory_back():
    """A firewall whose collectors change with each commit does not grow by it."""
    spent = []
    for _ in range(2):
        for _ in range(100):
            fixbuf.Encoder(TEMPLATES, 1).templates()
        spent.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert spent[1] - spent[0] < 4 << 20


def test_a_host_without_the_library_is_told_its_name(monkeypatch):
    """Before anything runs."""

    def refuse(*words: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr("cffi.FFI.dlopen", refuse)
    with pytest.raises(DataplaneError, match="libfixbuf9"):
        fixbuf.Encoder(TEMPLATES, 1)


def test_the_settings_have_defaults():
    """RFC 7011's port."""
    assert parse_collector("udp://collector.example").port == 4739
    assert IpfixCollector(to="tcp://[2001:db8::1]:9995").domain == 1
