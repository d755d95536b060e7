"""What the firewall says of itself is what has crossed it: counters, rates, top talkers and metrics beside a capture.

client ───── firewall ───── server        a scraper asks 127.0.0.1 in the firewall's namespace
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.console import Control, ask, counters, info, rule, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, end, poll
from tests.lab.offloaded import PLAIN, V4, Datagrams
from tests.promtool import complaints

METRICS = 9184
DENIED = 4444
RATE, PAYLOAD = 500, 1000  # datagrams a second, bytes
SCARCE = 4445
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "services": {
        "denied": {"protocol": "udp", "destination-port": DENIED},
        "scarce": {"protocol": "udp", "destination-port": SCARCE},
    },
    "security-rules": [
        rule("no entry", "drop", service=["denied"]),
        rule("out", from_=["trust"], to=["untrust"]),
    ],
    "nat-rules": [
        {
            "name": "scarce",
            "from": ["trust"],
            "to": "untrust",
            "service": "scarce",
            "source-translation": {
                "type": "dynamic-ip-and-port", "addresses": ["10.2.0.70"], "port-range": "5000-5000",
            },
        },
        {"name": "exempt", "from": ["trust"], "to": "untrust"},
    ],
    "settings": {"queue": {"workers": 1}, "session": {"max-sessions": 4096, "timeouts": {"udp": 60}}},
    "metrics": {"listen": f"127.0.0.1:{METRICS}"},
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as lab, lab.firewall(CONFIG) as firewall:
        yield lab, firewall


def scrape(lab: Lab) -> str:
    with lab.inside("firewall"):
        sock = socket.create_connection(("127.0.0.1", METRICS), timeout=10)
    with sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        said = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    return body.decode()


def told(lab: Lab) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names -> value."""
    samples = (sample for family in text_string_to_metric_families(scrape(lab)) for sample in family.samples)
    return {(each.name, *(each.labels[name] for name in sorted(each.labels))): each.value for each in samples}


def received(firewall: Firewall) -> tuple[int, int]:
    """Packets and bytes, those that come round from the slow path once."""
    now = counters(firewall)
    packets, octets = (now[f"{kind}_recv"] - now[f"{kind}_again"] + now[f"{kind}_offload"] for kind in ("pkt", "bytes"))
    return packets, octets


def sent(lab: Lab, port: int, n: int = 1) -> None:
    """First packets of as many flows to a port of the server."""
    for _ in range(n):
        with lab.udp("client") as client:
            client.sendto(b"question", (SERVER, port))


def test_a_scrape_is_what_prometheus_reads(net):
    """It says which program runs, and Prometheus's own linter has nothing to say."""
    lab, _ = net
    text = scrape(lab)
    assert re.search(r'^dataplane_build_info\{version="[^"]+"\} 1\.0$', text, re.MULTILINE)
    assert complaints(text) == ""


def test_every_packet_is_received_once(net):
    """First ones too, which come round a second time, and those that the kernel forwards by itself."""
    lab, firewall = net
    link_control = counters(firewall)["pkt_link_control"]
    before = received(firewall)
    with (
        lab.capture("firewall", "in0", f"src host {CLIENT} and udp") as inside,
        lab.capture("firewall", "out0", f"src host {SERVER} and udp") as outside,
    ):
        talk = Datagrams(lab, firewall, V4, PLAIN)
        with talk.client, talk.server:
            talk.offloaded()
            for _ in range(50):
                talk.exchange()
        sent(lab, DENIED, 3)
        poll(lambda: counters(firewall)["flow_policy_deny"] >= 1, 3, "a refusal")
        expected = 2 * talk.exchanges + 3
        poll(lambda: len(inside.packets()) + len(outside.packets()) >= expected, 5, "the captures to be whole")

        def agree() -> bool:
            packets, _ = received(firewall)
            control = counters(firewall)["pkt_link_control"] - link_control
            return packets - before[0] - control == len(inside.packets()) + len(outside.packets())

        poll(agree, 5, "counters and captures to agree")
    assert counters(firewall)["pkt_offload"] >= 100


@pytest.mark.parametrize("offload", [True, False])
def test_rates_are_those_of_the_stream(offload):
    """Packets, bits and, after a burst of new flows, connections a second; whichever path carries the stream."""
    config = {**CONFIG, "settings": {**CONFIG["settings"], "offload": offload}}
    with Lab() as lab, lab.firewall(config) as firewall:
        server = lab.serve("server", ["iperf3", "-s"], 5201)
        bits = RATE * PAYLOAD * 8
        words = [
            "iperf3",
            "-c",
            SERVER,
            "-u",
            "-b",
            str(bits),
            "-l",
            str(PAYLOAD),
            "-t",
            "60",
            "--pacing-timer",
            "2000",
        ]
        client = lab.popen("client", words)
        try:
            kilobits = RATE * (PAYLOAD + 28) * 8 / 1000

            def right() -> bool:
                now = info(firewall)
                return bool(abs(now["pps"] / RATE - 1) < 0.1 and abs(now["kbps"] / kilobits - 1) < 0.1)

            poll(right, 20, "the rates to be the stream's")
            (top, *_) = ask(firewall, "show session top", what="source", by="rate")
            assert (top["source"], round(top["kbps"] / kilobits, 1)) == (CLIENT, 1.0)
            assert (counters(firewall)["pkt_offload"] > 0) is offload
            sent(lab, 7000, 300)
            poll(lambda: info(firewall)["cps"] >= 100, 5, "the new connections to be seen")
        finally:
            end(client)
            end(server)


def test_top_talkers_sum_up_what_the_list_shows(net):
    """Sessions and bytes by rule, as one adds them up from `show session all`."""
    lab, firewall = net
    sent(lab, 7001, 5)
    sent(lab, DENIED, 2)

    def agree() -> bool:
        listed = [each for each in ask(firewall, "show session all", filter={}) if each["type"] == "FLOW"]
        shown = {row["rule"]: row for row in ask(firewall, "show session top", what="rule", by="sessions")}
        return all(
            shown.get(name, {"sessions": 0})["sessions"] == sum(each["rule"] == name for each in listed)
            for name in ("out", "no entry")
        )

    poll(agree, 5, "list and sums to agree")
    done = firewall.cli("show", "session", "top", "application", "by", "sessions", "last", "1")
    assert re.search(r"^unknown-udp +\d+ +\d+ +\d+ +[\d.]+%$", done.stdout, re.MULTILINE), done.stdout


def test_an_exhausted_pool_is_counted_where_it_is(net):
    """One port, and whoever comes second: the pool's failures, the counter, the metric and the record are one."""
    lab, firewall = net
    before = counters(firewall)["nat_dipp_alloc_failure"]
    sent(lab, SCARCE, 4)
    poll(lambda: counters(firewall)["nat_dipp_alloc_failure"] == before + 3, 5, "three to be refused")
    (pool,) = ask(firewall, "show running ippool")
    assert (pool["used"], pool["available"], pool["failures"]) == (1, 0, 3)
    poll(lambda: told(lab)["dataplane_nat_failures_total", "scarce"] == 3, 5, "the metric to be fresh")
    assert told(lab)["dataplane_nat_pool_used", "scarce", "dynamic-ip-and-port"] == 1
    poll(lambda: nat_pools(firewall) == [100], 5, "the pool to be seen full")


def nat_pools(firewall: Firewall) -> list[int]:
    """Percent of the fullest pool in use, as it was seen last."""
    (second,) = ask(firewall, "show running resource-monitor", period="second", last=1)
    return list(second["utilization"]["nat pool"]["average"])


def test_hits_of_nat_rules_are_counted_on_both_ways(net):
    """By Python for the first flow of a class, by the dispatch cache for the next ones; and they begin anew."""
    lab, firewall = net

    def hits() -> int:
        rows = ask(firewall, "show rule-hit-count", rule_base="nat")
        return next(int(row["hit_count"]) for row in rows if row["rule"] == "exempt")

    assert firewall.cli("clear", "rule-hit-count", "rule-base", "nat").stdout == "rules cleared: 2\n"
    cached = counters(firewall)["session_cached"]
    sent(lab, 7002, 20)
    poll(lambda: hits() == 20, 5, "twenty hits")
    assert counters(firewall)["session_cached"] > cached
    done = firewall.cli("show", "rule-hit-count", "rule-base", "nat")
    assert re.search(r"^exempt 20 first \S+Z last \S+Z$", done.stdout, re.MULTILINE), done.stdout


def test_queues_are_those_of_the_kernel(net):
    """One hot, one slow, and what the kernel says of each."""
    lab, firewall = net
    hot, slow = ask(firewall, "show counter queue")
    assert (hot["role"], slow["role"]) == ("hot", "slow")
    assert hot["packets"] > slow["packets"] > 0
    assert (hot["dropped"], hot["lost"], slow["dropped"], slow["lost"]) == (0, 0, 0, 0)
    assert told(lab)["dataplane_queue_packets_total", "1", "slow"] >= slow["packets"]


def test_first_packets_are_timed(net):
    """As many as the slow queue had, each within the second that it may take."""
    lab, firewall = net
    sent(lab, 7003)
    poll(lambda: info(firewall)["slow_path_p50_us"] > 0, 5, "a packet to be timed")
    now = info(firewall)
    assert 0 < now["slow_path_p50_us"] <= now["slow_path_p99_us"] <= 1_000_000
    assert now["ager_lag_ms"] < 5000
    seen = told(lab)
    assert seen["dataplane_slow_path_latency_seconds_count",] <= seen["dataplane_queue_packets_total", "1", "slow"]


def test_ends_have_their_reasons(net):
    """A cleared session ends with `unknown`, and the counter of that is one more."""
    lab, firewall = net
    before = counters(firewall)
    sent(lab, 7004)
    poll(lambda: ask(firewall, "clear session all", filter={"destination-port": "7004"}) == [1], 5, "it to be there")
    poll(lambda: counters(firewall)["session_end_unknown"] == before["session_end_unknown"] + 1, 5, "its end")
    now = counters(firewall)
    reasons = sum(value for name, value in now.items() if name.startswith("session_end_"))
    assert reasons == now["session_expired"]


def test_scrapers_that_mean_no_good_harm_nothing(net):
    """Many that say nothing, and garbage without end: traffic passes, first packets are decided, nothing is logged."""
    lab, firewall = net
    control, ending = Control(lab), threading.Event()

    def babble() -> None:
        while not ending.is_set():
            with lab.inside("firewall"), socket.socket() as sock:
                sock.settimeout(10)
                try:
                    sock.connect(("127.0.0.1", METRICS))
                    sock.sendall(os.urandom(300))
                except OSError:
                    pass  # cut off, as it should be

    with lab.inside("firewall"):
        silent = [socket.create_connection(("127.0.0.1", METRICS), timeout=10) for _ in range(20)]
    said = firewall.log()
    babbling = [threading.Thread(target=babble) for _ in range(3)]
    for thread in babbling:
        thread.start()
    try:
        for _ in range(50):
            control()
    finally:
        ending.set()
        for thread in babbling:
            thread.join()
        for sock in silent:
            sock.close()
    assert told(lab)["dataplane_sessions_limit",] == CONFIG["settings"]["session"]["max-sessions"]
    assert firewall.log() == said
