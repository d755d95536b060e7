"""What may go wrong beside the straight way of an offloaded packet: fragments, tags, last hops, bulk, its end, counts.

Where nothing else is said the sessions are offloaded before the test begins, and source-translated.
"""

import hashlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scapy.layers.inet import UDP, fragment
from scapy.layers.inet6 import IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.lab.capture import ETHERNET
from tests.lab.console import ask, counters, record, rule, sessions
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, MACS, Lab, poll
from tests.lab.offloaded import (
    HEADERS,
    HIDDEN,
    PAYLOAD,
    PLAIN,
    V4,
    V6,
    Datagrams,
    Net,
    config,
    connection,
    datagrams,
)
from tests.lab.test_wires import put

BIG = random.Random(5).randbytes(3000)
BULK = random.Random(6).randbytes(50 << 20)
PATIENCE = 30  # seconds for one transfer
BRIEF, BRIEF_PORT = 2, 6000  # seconds after which a silent session ends, and where those are
TAG = 6
SAMPLE = {4: "tcp[7] & 0xe0 = 0", 6: "ip6[6] = 6 and ip6[47] & 0xe0 = 0"}  # by sequence number: an eighth


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    made = config()
    made["applications"] = {"brief": {"default-ports": [f"udp/{BRIEF_PORT}-{BRIEF_PORT + 1}"], "udp-timeout": BRIEF}}
    with lab.firewall(made) as running:
        yield running


@pytest.fixture(params=(V4, V6), ids=("ipv4", "ipv6"))
def net(request: pytest.FixtureRequest) -> Net:
    chosen: Net = request.param
    return chosen


def offloaded_since(firewall: Firewall, before: int, count: int) -> None:
    """The kernel has forwarded so many packets, no more and no less."""
    poll(lambda: counters(firewall)["pkt_offload"] - before >= count, 3, "the sum of all sessions")
    assert counters(firewall)["pkt_offload"] - before == count


# Fragments


def pieces(whole: Packet) -> list[Packet]:
    if "IP" in whole:
        return list(fragment(whole, 1400))
    cut = whole.copy()
    cut["IPv6"].remove_payload()
    made: list[Packet] = fragment6(cut / IPv6ExtHdrFragment(id=77) / whole[UDP], 1400)
    return made


def test_fragments_come_to_the_queues_both_ways(lab, firewall, net):
    """A datagram in three pieces arrives whole, its answer too, and the flow goes on without them."""
    with datagrams(lab, firewall, net) as talk:
        before = counters(firewall)
        lab.inject("client", *pieces(talk.datagram() / Raw(BIG)))
        assert talk.server.recv(5000) == BIG
        lab.inject("server", *pieces(talk.answer() / Raw(BIG[::-1])))
        assert talk.client.recv(5000) == BIG[::-1]
        assert counters(firewall)["pkt_recv"] - before["pkt_recv"] >= 2
        talk.exchange()
        session = talk.session()
        assert session["offload"] is True
        assert (session["packets_c2s"], session["packets_s2c"]) == (talk.exchanges + 1, talk.exchanges + 1)
        whole = HEADERS[net.version] + len(BIG)
        assert session["bytes_c2s"] == talk.exchanges * (HEADERS[net.version] + PAYLOAD) + whole


def test_large_datagrams_of_real_hosts(lab, firewall, net):
    """Both kernels cut what they send; nobody notices, and small ones between them keep to the offload."""
    with datagrams(lab, firewall, net) as talk:
        before = counters(firewall)
        for number in range(20):
            text = random.randbytes(2000 + 900 * (number % 5))
            talk.client.send(text)
            received, peer = talk.server.recvfrom(65536)
            talk.server.sendto(received, peer)
            assert talk.client.recv(65536) == received == text
            talk.exchange()
        offloaded_since(firewall, before["pkt_offload"], 40)
        assert counters(firewall)["pkt_recv"] - before["pkt_recv"] >= 40
        assert talk.session()["offload"] is True


# Tags on virtual wires


def wired(**wire: object) -> dict[str, Any]:
    """Left may go right."""
    return {
        **config(),
        "zones": [{"name": "left", "interfaces": ["in0"]}, {"name": "right", "interfaces": ["out0"]}],
        "virtual-wires": [{"name": "vw0", "interfaces": ["in0", "out0"], **wire}],
        "security-rules": [rule("out", from_=["left"], to=["right"])],
        "nat-rules": [],
    }


def tagged(packet: Packet, tag: int | None) -> Packet:
    head = Ether(src=MACS["client", "eth0"], dst=MACS["server", "eth0"])
    return head / (packet if tag is None else Dot1Q(vlan=tag) / packet)


def test_a_tagged_frame_of_an_offloaded_session_keeps_its_tag():
    """It goes through the queues, one of a tag that is not allowed nowhere, and the untagged ones stay offloaded."""
    with (
        Lab(bridge=True) as bridged,
        bridged.firewall(wired(**{"tag-allowed": [0, TAG]})) as running,
        datagrams(bridged, running, V4, PLAIN) as talk,
        bridged.capture("server", "eth0", "") as arrived,
    ):
        before = counters(running)
        put(bridged, "client", tagged(talk.datagram() / b"tagged", TAG), tagged(talk.datagram() / b"refused", TAG + 1))
        put(bridged, "client", tagged(talk.datagram() / b"plain", None))

        def seen() -> list[tuple[int | None, bytes]]:
            frames = [frame for frame in arrived.received() if frame.source == CLIENT]
            return sorted((frame.tag or 0, bytes(frame.packet[Raw])[:7]) for frame in frames)

        assert talk.server.recv(100) == b"plain"  # its kernel knows no tags
        poll(lambda: len(seen()) == 2, 3, "two frames")
        assert seen() == [(0, b"plain"), (TAG, b"tagged")]
        offloaded_since(running, before["pkt_offload"], 1)
        assert counters(running)["pkt_recv"] - before["pkt_recv"] == 1
        talk.exchange()


def test_where_only_tags_are_allowed_nothing_untagged_is_forwarded():
    """A busy flow of tagged frames opens no way for untagged frames of the same addresses and ports."""
    with Lab(bridge=True) as bridged, bridged.firewall(wired(**{"tag-allowed": [TAG]})) as running:
        talk = Datagrams(bridged, running, V4, PLAIN)
        with talk.client, talk.server, bridged.capture("server", "eth0", "") as arrived:

            def is_judged() -> bool:
                put(bridged, "client", tagged(talk.datagram() / b"tagged", TAG))
                return bool(arrived.received()) and talk.session()["offload_reason"] in ("tagged", None)

            poll(is_judged, 3, "the offload to have looked at the session")
            assert (talk.session()["offload"], talk.session()["offload_reason"]) == (False, "tagged")
            put(bridged, "client", tagged(talk.datagram() / b"untagged", None))
            put(bridged, "client", tagged(talk.datagram() / b"last", TAG))
            poll(lambda: bytes(arrived.received()[-1].packet[Raw]).startswith(b"last"), 3, "the last frame")
            assert {frame.tag for frame in arrived.received() if frame.source == CLIENT} == {TAG}


# The last hop


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_time_to_live_of_one(lab, firewall, net, side):
    """Ends here in both directions; the sender hears of it in the words of its own packet; two is enough to arrive."""
    field = "ttl" if net is V4 else "hlim"
    with datagrams(lab, firewall, net) as talk, lab.capture(side, "eth0", "icmp or icmp6") as heard:
        made = talk.datagram if side == "client" else talk.answer
        lab.inject(side, made(**{field: 1}) / b"dies")
        (frame,) = poll(lambda: heard.received(), 3, "time exceeded")
        quoted = bytes(frame.packet)[ETHERNET + (28 if net is V4 else 48) :]
        own, offset = bytes(made(**{field: 1}) / b"dies"), 20 if net is V4 else 40
        assert quoted[offset : offset + 4] == own[offset : offset + 4]  # ports
        assert (
            quoted[offset - 2 * (4 if net is V4 else 16) : offset]
            == own[offset - 2 * (4 if net is V4 else 16) : offset]
        )
        lab.inject(side, made(**{field: 2}) / b"lives")
        receiver = talk.server if side == "client" else talk.client
        assert receiver.recv(100) == b"lives"
        talk.exchange()


# Bulk


def receive(through: socket.socket) -> str:
    """The digest of as many bytes as are sent; nobody closes before, for what is half closed is not offloaded."""
    digest, buffer, left = hashlib.sha256(), memoryview(bytearray(1 << 20)), len(BULK)
    while left:
        size = through.recv_into(buffer, min(left, len(buffer)))
        assert size
        digest.update(buffer[:size])
        left -= size
    return digest.hexdigest()


@pytest.mark.parametrize("offloads", [True, False], ids=["super-packets", "segments"])
def test_fifty_megabytes_each_way(lab, firewall, net, offloads):
    """The same bytes at both ends, by the kernel, and each checksum on the far side is right or left to the device."""
    lab.set_offloads(offloads)
    before = counters(firewall)
    try:
        with connection(lab, firewall, net) as ends, ThreadPoolExecutor(4) as pool:
            for end in ends:
                end.settimeout(PATIENCE)
            with lab.capture("server", "eth0", SAMPLE[net.version]) as sample:
                jobs = [pool.submit(end.sendall, data) for end, data in zip(ends, (BULK, BULK[::-1]), strict=True)]
                got = [pool.submit(receive, end) for end in ends]
                assert [job.result() for job in got] == [
                    hashlib.sha256(data).hexdigest() for data in (BULK[::-1], BULK)
                ]
                for job in jobs:
                    job.result()
    finally:
        lab.set_offloads(True)
    received = sample.received()
    assert len(received) > 5
    assert sample.wrong_checksums() == []
    assert any(frame.partial for frame in received) == offloads
    assert {frame.source for frame in received} == {net.outside}
    poll(lambda: counters(firewall)["bytes_offload"] - before["bytes_offload"] > 2 * len(BULK), 3, "the sum")
    assert counters(firewall)["pkt_recv"] - before["pkt_recv"] < 100


# The end


def test_a_cleared_session_is_over_on_the_wire(lab, firewall, net):
    """Once `clear session` has answered nothing comes back by it: the server may not begin anything."""
    with datagrams(lab, firewall, net, PLAIN) as talk, lab.capture("client", "eth0", "udp") as arrived:
        talk.server.connect(talk.outside)
        talk.server.send(b"in time")
        assert talk.client.recv(100) == b"in time"
        ask(firewall, "clear session id", id=talk.session()["id"])
        seen = len(arrived.received())
        for _ in range(20):
            talk.server.send(b"too late")
        poll(lambda: sessions(firewall, source_port=PLAIN, state="discard"), 3, "the server to be refused")
        assert len(arrived.received()) == seen


def test_a_busy_stream_is_cut_by_clear(lab, firewall):
    """While it is flooded from the client's side: what arrives after the answer belongs to another session."""
    with datagrams(lab, firewall, V4) as talk:
        old = talk.session()["id"]
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                talk.client.send(b"x" * 100)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            for _ in range(5):
                ask(firewall, "clear session id", id=talk_session(firewall, talk)["id"])
            poll(lambda: talk_session(firewall, talk)["offload"], 3, "the newest to be offloaded")
        finally:
            stop.set()
            flooding.join()
        assert talk_session(firewall, talk)["id"] != old
        poll(lambda: len(firewall.traffic_log(event="end", sport=talk.client.getsockname()[1])) >= 5, 3, "the records")


def talk_session(firewall: Firewall, talk: Datagrams) -> dict[str, Any]:
    """The one that is alive now, which may take a packet."""
    source = talk.client.getsockname()[1]
    return poll(lambda: sessions(firewall, source_port=source, state="active"), 3, "a session")[0]


# Counts


def test_counts_are_those_of_a_capture(lab, firewall, net):
    """Of mixed sizes both ways: at once in the session, in a second in the counters, and in the end record."""
    sizes = [random.Random(8).randrange(1, 1400) for _ in range(1500)]
    with datagrams(lab, firewall, net) as talk:
        start, before = talk.session(), counters(firewall)
        with lab.capture("firewall", "in0", "udp") as inside, lab.capture("firewall", "out0", "udp") as outside:
            for size in sizes:
                talk.client.send(bytes(size))
                peer = talk.server.recvfrom(2000)[1]
                talk.server.sendto(bytes(size // 2 + 1), peer)
                talk.client.recv(2000)
            session = talk.session()
        for side, capture in (("c2s", inside), ("s2c", outside)):
            frames = capture.received()
            assert session[f"packets_{side}"] - start[f"packets_{side}"] == len(frames) == len(sizes)
            assert session[f"bytes_{side}"] - start[f"bytes_{side}"] == sum(len(f.data) - ETHERNET for f in frames)
        assert inside.wrong_checksums() == outside.wrong_checksums() == []
        poll(lambda: counters(firewall)["pkt_offload"] - before["pkt_offload"] == 2 * len(sizes), 1.5, "the sum")
        source = talk.client.getsockname()[1]
        ask(firewall, "clear session id", id=session["id"])
        end = record(firewall, event="end", sport=source, dport=HIDDEN)
    assert (end["bytes_sent"], end["bytes_received"]) == (session["bytes_c2s"], session["bytes_s2c"])
    assert counters(firewall)["pkt_recv"] == before["pkt_recv"]


# Time


def test_a_busy_session_outlives_its_timeout_and_a_silent_one_does_not(lab, firewall, net):
    """Both are offloaded, with two seconds to live: one is spoken on until the other has died of silence."""
    with datagrams(lab, firewall, net, BRIEF_PORT) as busy:
        opened = busy.session()
        assert opened["timeout"] == BRIEF
        with datagrams(lab, firewall, net, BRIEF_PORT + 1) as silent:
            source = silent.client.getsockname()[1]
            before = counters(firewall)["pkt_recv"]

            def has_died() -> Any:
                busy.exchange()
                return firewall.traffic_log(event="end", sport=source)

            (end,) = poll(has_died, 2 * BRIEF + 2, "the silent one's end")
        assert (end["session_end_reason"], end["packets_sent"]) == ("aged-out", silent.exchanges)
        session = busy.session()
        assert (session["id"], session["offload"]) == (opened["id"], True)
        assert session["packets_s2c"] == busy.exchanges
        assert counters(firewall)["pkt_recv"] == before
