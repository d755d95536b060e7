"""The metrics of an engine without a kernel: names, values, formats; and the server, with bad scrapers."""

import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from dataplane import exporter, metrics
from dataplane.counters import DESCRIPTIONS
from dataplane.engine import Engine
from dataplane.errors import ConfigError, DataplaneError
from dataplane.exporter import Exporter
from dataplane.ffi import lib
from dataplane.flow import Translation
from dataplane.metrics import ALONE, TOGETHER, TRAFFIC, Scrapes
from dataplane.policy.listen import Listen, parse_listen
from dataplane.policy.load import parse
from dataplane.policy.model import MetricsSettings
from dataplane.routes import address_from_text as address
from tests.promtool import complaints
from tests.test_commands import OUTSIDE, Bench

DASHBOARD = Path(__file__).parent.parent / "config" / "grafana" / "dataplane.json"
GET = b"GET /metrics HTTP/1.1\r\nHost: firewall\r\n\r\n"


@pytest.fixture
def bench():
    made = Bench()
    made.engine.resources.loads = SimpleNamespace(seconds=lambda: {"worker-0": 1.25, "ager": 0.5})
    made.engine.ager.behind = 0.25
    yield made
    made.table.close()


def scraped(bench: Bench) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names -> value."""
    _, body = Scrapes(cast(Engine, bench.engine)).text("")
    samples = (sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples)
    return {(each.name, *(each.labels[name] for name in sorted(each.labels))): each.value for each in samples}


# ---- what is told ----


def test_every_counter_is_told(bench):
    """As a label of what it belongs to, or by itself; none is forgotten."""
    for number in range(lib.COUNTERS):
        bench.table.count(number, number + 1)
    told, counters = scraped(bench), bench.table.counters()
    for name, value in counters.items():
        severity, category, *_ = DESCRIPTIONS[name]
        prefix = next((prefix for prefix in TOGETHER if name.startswith(prefix) and name not in ALONE), None)
        if severity == "drop":
            assert told["dataplane_drops_total", category, name] == value
        elif prefix:
            assert told[f"{TOGETHER[prefix][0]}_total", name.removeprefix(prefix)] == value
        elif name not in TRAFFIC:
            assert told[(f"dataplane_{name}_total",)] == value
    assert told["dataplane_received_packets_total", "offload"] == counters["pkt_offload"]


def test_a_packet_that_comes_round_is_received_once(bench):
    """The second time it is no other packet."""
    for counter, n in ((lib.PKT_RECV, 5), (lib.PKT_AGAIN, 2), (lib.BYTES_RECV, 500), (lib.BYTES_AGAIN, 120)):
        bench.table.count(counter, n)
    told = scraped(bench)
    assert told["dataplane_received_packets_total", "queue"] == 3
    assert told["dataplane_received_bytes_total", "queue"] == 380


def test_sessions_by_what_they_are(bench):
    """State, type and protocol; and application, of those that have any."""
    bench.open("10.1.0.2:4000", "8.8.8.8:53", application="dns")
    bench.open("10.1.0.2:4001", "8.8.8.8:443", 6, application="ssl")
    bench.open("10.1.0.3:4002", "8.8.8.8:53", discard=True, application="dns")
    told = scraped(bench)
    assert told["dataplane_sessions", "udp", "active", "flow"] == 1
    assert told["dataplane_sessions", "tcp", "active", "flow"] == 1
    assert told["dataplane_sessions", "icmp", "active", "flow"] == 0
    assert told["dataplane_sessions", "udp", "discard", "flow"] == 1
    assert {key[1]: n for key, n in told.items() if key[0] == "dataplane_application_sessions"} == {"dns": 2, "ssl": 1}
    assert told["dataplane_session_table_utilization_ratio",] == 3 / 20000


def test_pools_and_rules(bench):
    """What is used of each pool, and who was hit how often; a rule that never was is there with 0."""
    translation = Translation(source=address(OUTSIDE), ports=(5000, 5099))
    bench.open("10.1.0.2:4000", "8.8.8.8:53", nat_rule="snat", translation=translation)
    bench.hits.add(bench.names.rules.find("web only"), 3)
    bench.engine.nat.hit(bench.names.nat_rules.find("snat"))
    bench.engine.nat.failed(bench.names.nat_rules.find("out"), "nat_dipp_alloc_failure")
    told = scraped(bench)
    assert told["dataplane_nat_pool_used", "snat", "dynamic-ip-and-port"] == 1
    assert told["dataplane_nat_pool_capacity", "snat", "dynamic-ip-and-port"] == 200
    assert told["dataplane_rule_hits_total", "security", "web only"] == 3
    assert told["dataplane_rule_hits_total", "security", "no-dns"] == 0
    assert told["dataplane_rule_hits_total", "nat", "snat"] == 1
    assert told["dataplane_nat_failures_total", "out"] == 1


def test_latency_is_a_histogram(bench):
    """Cumulative, with an infinite bucket, a count and a sum."""
    for seconds in (0.0002, 0.002, 3.0):
        bench.engine.latency.add(seconds)
    told = scraped(bench)
    name = "dataplane_slow_path_latency_seconds"
    assert [told[f"{name}_bucket", le] for le in ("0.0001", "0.00025", "0.0025", "1.0", "+Inf")] == [0, 1, 2, 2, 3]
    assert told[f"{name}_count",] == 3
    assert told[f"{name}_sum",] == pytest.approx(3.0022)


def test_names_that_need_care_arrive(bench):
    """Quotes, backslashes and line ends in a rule's name are the parser's to undo."""
    odd = 'a "b" \\ c'
    bench.engine.policy = SimpleNamespace(security_rules=[SimpleNamespace(name=odd)], nat_rules=[], pools=[])
    assert scraped(bench)["dataplane_rule_hits_total", "security", odd] == 0


def test_the_format_is_the_scrapers_choice(bench):
    """OpenMetrics is parsed by its own, stricter rules."""
    scrapes = Scrapes(cast(Engine, bench.engine))
    kind, body = scrapes.text("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert "dataplane_drops" in {family.name for family in open_metrics(body.decode())}
    assert scrapes.text("text/html")[0].startswith("text/plain")


def test_the_work_is_done_once_a_second(bench, monkeypatch):
    """However many ask within it."""
    now = [100.0]
    monkeypatch.setattr("dataplane.metrics.time.monotonic", lambda: now[0])
    scrapes = Scrapes(cast(Engine, bench.engine))
    first = scrapes.text("")
    bench.table.count(lib.FLOW_POLICY_DENY)
    assert scrapes.text("") == first
    now[0] += metrics.FRESH
    assert scrapes.text("") != first


def test_conventions(bench):
    """Prefix, help, no unit that is not a base unit."""
    _, body = Scrapes(cast(Engine, bench.engine)).text("")
    for family in text_string_to_metric_families(body.decode()):
        assert re.fullmatch(r"(dataplane|process)_[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|milliseconds|kb|kbps|percent|count|total)$", family.name)


def test_prometheus_agrees(bench):
    """Its linter has nothing to say."""
    _, body = Scrapes(cast(Engine, bench.engine)).text("")
    assert complaints(body.decode()) == ""


# ---- the dashboard ----


def test_the_dashboard_is_one_by_grafanas_schema():
    """Grafana's own types read all of it: what they do not know would be missing when they write it again."""
    register_default_plugins()
    written = json.loads(DASHBOARD.read_text())
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(written)))
    assert_keeps(written, read)


def assert_keeps(written: Any, read: Any, place: str = "") -> None:
    if isinstance(written, Mapping):
        for key, value in written.items():
            assert key in read, f"{place}.{key}"
            assert_keeps(value, read[key], f"{place}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(read), place
        for at, (mine, its) in enumerate(zip(written, read, strict=True)):
            assert_keeps(mine, its, f"{place}[{at}]")
    else:
        assert written == read, place


def test_every_metric_of_the_dashboard_exists(bench):
    """And a panel has its own number and place."""
    bench.open("10.1.0.2:4000", "8.8.8.8:53", application="dns")
    names = {key[0] for key in scraped(bench)}
    written = json.loads(DASHBOARD.read_text())
    used = set(re.findall(r"\bdataplane_[a-z_]+", json.dumps(written["panels"]) + json.dumps(written["templating"])))
    assert used
    assert used <= names
    assert len({panel["id"] for panel in written["panels"]}) == len(written["panels"])


# ---- where it listens ----


@pytest.mark.parametrize(
    ("text", "where", "local"),
    [
        ("127.0.0.1:9184", Listen("127.0.0.1", 9184), True),
        ("127.8.0.1:1", Listen("127.8.0.1", 1), True),
        ("[::1]:9184", Listen("::1", 9184), True),
        ("unix:/run/dataplane/metrics.sock", Listen(path="/run/dataplane/metrics.sock"), True),
        ("0.0.0.0:9184", Listen("0.0.0.0", 9184), False),
        ("[::]:9184", Listen("::", 9184), False),
        ("10.1.0.1:9184", Listen("10.1.0.1", 9184), False),
    ],
)
def test_where_it_may_listen(text, where, local):
    """An address of the loopback, a Unix socket, or what other hosts reach."""
    assert parse_listen(text) == where
    assert where.is_local is local


@pytest.mark.parametrize(
    "text",
    ["", "9184", ":9184", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "localhost:9184", "::1:9184", "[127.0.0.1]:1",
     "127.0.0.1:+1", "127.0.0.1:١", "unix:", "unix:metrics.sock", "unix:/a\nb", "unix:/" + "x" * 107],
)  # fmt: skip
def test_where_it_may_not(text):
    """Refused with the line that says so."""
    with pytest.raises(ValueError, match=r"."):
        parse_listen(text)
    with pytest.raises(ConfigError, match=r"x\.yaml:2: metrics\.listen"):
        parse(f"zones: [{{name: a, interfaces: [b]}}]\nmetrics: {{listen: {json.dumps(text)}}}", "x.yaml")


def test_other_hosts_only_by_permission():
    """It reads everything and is not encrypted, so one has to mean it."""
    text = "zones: [{name: a, interfaces: [b]}]\nmetrics: {listen: '10.1.0.1:9184', allow-remote: %s}"
    with pytest.raises(ConfigError, match=r"x\.yaml:2: metrics\.listen: other hosts could reach 10\.1\.0\.1:9184"):
        parse(text % "false", "x.yaml")
    assert parse(text % "true", "x.yaml").metrics.allow_remote


# ---- the server ----


@pytest.fixture
def server(bench, tmp_path) -> Iterator[Path]:
    path = tmp_path / "metrics.sock"
    served = exporter_of(bench, f"unix:{path}")
    served.start()
    yield path
    served.stop()
    assert not path.exists()


def exporter_of(bench: Bench, listen: str | None) -> Exporter:
    bench.engine.config = bench.engine.config.model_copy(update={"metrics": MetricsSettings(listen=listen)})
    return Exporter(cast(Engine, bench.engine))


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(str(path))
    return made


def answer(sock: socket.socket) -> bytes:
    """All that comes; a connection that is cut off ends it too."""
    parts = []
    try:
        while part := sock.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def exchange(path: Path, request: bytes) -> bytes:
    with connected(path) as sock:
        sock.sendall(request)
        return answer(sock)


def test_a_scrape(server):
    """Headers that fit the body, and the connection ends."""
    head, _, body = exchange(server, GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nServer: dataplane\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert list(text_string_to_metric_families(body.decode()))
    assert server.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"HEAD /metrics HTTP/1.1", b"200"),
        (b"GET /metrics?name=x HTTP/1.0", b"200"),
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/../../etc/passwd HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"501"),
        (b"GET /metrics HTTP/9.9", b"505"),
        (b"GET /metrics", b"200"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"one two three four", b"400"),
    ],
)
def test_requests_that_are_others(server, request_line, status):
    """Each gets its answer, and a scrape works after it."""
    said = exchange(server, request_line + b"\r\n\r\n")
    assert status in said.split(b"\r\n")[0] or request_line == b"GET /metrics"
    assert b"200 OK" in exchange(server, GET)


def test_a_head_without_a_body(server):
    """HEAD gets the headers alone."""
    assert exchange(server, GET.replace(b"GET", b"HEAD")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "said", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000, b"\n" * 9000], ids=len
)
def test_who_says_too_little_or_too_much_is_cut_off(server, said):
    """Without an answer."""
    with connected(server) as sock:
        try:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, OSError):
            pass  # cut off while he spoke
        assert answer(sock) == b""
    assert b"200 OK" in exchange(server, GET)


def test_who_is_slow_holds_up_a_scrape_only_so_long(server, monkeypatch):
    """More of them than there are threads, one of whom says a byte now and then: all of them are cut off."""
    monkeypatch.setattr(exporter, "READ_TIMEOUT", 0.5)
    slow = [connected(server) for _ in range(exporter.CONNECTIONS * 2)]
    ending = threading.Event()

    def drip() -> None:
        while not ending.wait(0.05):
            try:
                slow[0].send(b"G")
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert b"200 OK" in exchange(server, GET)
        assert [answer(sock) for sock in slow] == [b""] * len(slow)
    finally:
        ending.set()
        dripping.join()
        for sock in slow:
            sock.close()


def test_who_never_reads_holds_one_thread_only_so_long(server, monkeypatch):
    """His answer does not fit into the socket's buffers."""
    monkeypatch.setattr(exporter, "SEND_TIMEOUT", 0.3)
    monkeypatch.setattr(Scrapes, "text", lambda _self, _accept: ("text/plain", bytes(8 << 20)))
    deaf = [connected(server) for _ in range(exporter.CONNECTIONS)]
    for sock in deaf:
        sock.sendall(GET)
    assert exchange(server, GET).endswith(bytes(1000))
    for sock in deaf:
        sock.close()


def test_a_collector_that_fails_ends_one_scrape(server, monkeypatch, caplog):
    """And is in the log."""

    def fail(_self: Scrapes, _accept: str) -> tuple[str, bytes]:
        raise RuntimeError("no")

    with monkeypatch.context() as broken:
        broken.setattr(Scrapes, "text", fail)
        assert exchange(server, GET) == b""
    assert "an answer failed" in caplog.text
    assert b"200 OK" in exchange(server, GET)


def test_it_makes_no_thread_for_a_client(server):
    """However many there are."""
    before = threading.active_count()
    crowd = [connected(server) for _ in range(20)]
    assert threading.active_count() == before
    for sock in crowd:
        sock.close()


def test_over_tcp(bench):
    """Of either family; a port that somebody has is an error that names it."""
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with socket.create_server((host, 0), family=family) as taken:
            port = taken.getsockname()[1]
            listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            with pytest.raises(DataplaneError, match="Address already in use"):
                exporter_of(bench, listen).start()
        served = exporter_of(bench, listen)
        served.start()
        with socket.create_connection((host, port), timeout=10) as sock:
            sock.sendall(GET)
            assert b"200 OK" in answer(sock)
        served.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=10)


def test_what_a_dead_one_has_left_is_replaced_and_what_is_alive_is_not(bench, tmp_path):
    """A socket that nobody answers at makes room; a file is somebody's."""
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first, second = (exporter_of(bench, f"unix:{path}") for _ in range(2))
    first.start()
    with pytest.raises(DataplaneError, match="another daemon answers"):
        second.start()
    second.stop()
    assert b"200 OK" in exchange(path, GET)
    first.stop()
    path.write_text("mine")
    with pytest.raises(DataplaneError, match="is not a socket"):
        first.start()


def test_without_a_place_nothing_listens(bench):
    """Off is the default, and stopping what was not started does nothing."""
    served = exporter_of(bench, None)
    before = threading.active_count()
    served.start()
    served.stop()
    assert threading.active_count() == before


def test_stopping_cuts_off_who_is_served(bench, tmp_path):
    """Nobody holds up the end of the daemon."""
    path = tmp_path / "metrics.sock"
    served = exporter_of(bench, f"unix:{path}")
    served.start()
    with connected(path) as sock:
        assert b"200 OK" in exchange(path, GET)  # who came later is served, so this one is
        served.stop()
        assert answer(sock) == b""
