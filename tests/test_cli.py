"""The commands as an operator types them, against a daemon of canned answers that records what it was asked."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from dataplane import text
from dataplane.cli import main
from dataplane.client import SOCKET_NAME
from dataplane.control import ControlServer
from dataplane.doctor.finding import Finding
from dataplane.errors import ConfigError, DataplaneError
from tests.test_text import (
    COUNTERS,
    DNS_RULE,
    PING_AND_PREDICT,
    columns,
    counter,
    nat_rule,
    predict,
    security_rule,
    session,
)

ROOT = Path(__file__).parent.parent
FLOW = "from trust to untrust source 10.1.0.5 destination 192.0.2.9 destination-port 443 protocol 6"
SENT_FLOW = {
    "from": "trust",
    "to": "untrust",
    "source": "10.1.0.5",
    "destination": "192.0.2.9",
    "destination_port": 443,
    "protocol": 6,
}

METER = {"vsys": "vsys1", "maximum": 262144, "current": 2, "throttled": 0}
HITS = {"rule": "lan-out", "hit_count": 3, "first_hit": "2026-01-01T00:00:00Z", "last_hit": "2026-01-01T00:00:00Z"}
POOL = {"rule": "snat", "address": "192.0.2.1", "type": "Dynamic IP", "used": 1, "available": 0, "ratio": 1}
TOP = {"source": "10.1.0.5", "sessions": 2, "bytes": 3000, "packets": 30, "kbps": None, "percent": 75.0}
QUEUE = {
    "queue": 2,
    "role": "slow",
    "packets": 290,
    "depth": 0,
    "highest": 9,
    "limit": 4096,
    "dropped": 0,
    "lost": 0,
    "overruns": None,
    "verdict_errors": None,
    "send_errors": None,
}
SAMPLES = {"average": [7, 5], "maximum": [7, 5]}
MONITOR = {"period": "second", "last": 2, "cpu": {"slowpath": SAMPLES}, "utilization": {"session": SAMPLES}}
DISCARD_TIMEOUTS = {"discard_tcp": 90, "discard_udp": 60, "discard_default": 60}
INFO = {"num_max": 10, "timeouts": dict.fromkeys((key for _, key in text.INFO_TIMEOUTS), 30) | DISCARD_TIMEOUTS}
CONFIG = {"zones": [{"name": "trust", "interfaces": ["in0"]}]}


class FakeDaemon:
    """Answers every command; `asked` holds (command, arguments) in order."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.rows: dict[str, list[object]] = {
            "show session all": [session(), predict()],
            "show session id": [session()],
            "show session info": [INFO],
            "show session meter": [METER],
            "show counter global": [counter("pkt_recv", 29, "info", "packet", "pktproc", "Packets received")],
            "show running security-policy": [security_rule()],
            "show running nat-policy": [nat_rule()],
            "show running ippool": [POOL],
            "show running config": [CONFIG],
            "show rule-hit-count": [HITS],
            "show session top": [TOP],
            "show counter queue": [QUEUE],
            "show running resource-monitor": [MONITOR],
            "clear rule-hit-count": [1],
            "clear session all": [2],
            "clear session id": [1],
            "test security-policy-match": [{"rule": "DNS Outbound", "action": "allow", "stanza": security_rule()}],
            "test nat-policy-match": [{"rule": None, "action": None, "stanza": None}],
        }
        self.server = ControlServer(directory / SOCKET_NAME, {command: self._handler(command) for command in self.rows})

    def _handler(self, command: str):
        def answer(arguments: dict[str, object]) -> Generator[object, None, dict[str, object]]:
            self.asked.append((command, arguments))
            for row in self.rows[command]:
                if isinstance(row, Exception):
                    raise row
                yield columns(cast(dict[str, Any], row)) if arguments.get("columns") else row
            return {"elapsed": 349.576, "groups": 12, "all": TOP, "left_out": {**TOP, "sessions": 0}}

        return answer


@pytest.fixture
def daemon(tmp_path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path)
    daemon.server.start()
    yield daemon
    daemon.server.stop()


@pytest.fixture
def dataplane(tmp_path, monkeypatch):
    """Runs one command against the daemon of this test."""
    monkeypatch.setenv("DATAPLANE_RUNTIME_DIR", str(tmp_path))

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, words)

    return run


SHOWS = [
    ("show session all", "show session all", "504          ftp-data       ACTIVE  PRED "),
    ("show session id 20", "show session id", "Session              20"),
    ("show session info", "show session info", "Number of sessions supported:                    10"),
    ("show session meter", "show session meter", "vsys1                 262144           2           0"),
    ("show counter global", "show counter global", "Total counters shown: 1"),
    ("show running security-policy", "show running security-policy", '"DNS Outbound; index: 3" {'),
    ("show running nat-policy", "show running nat-policy", '"DMZ-PROXY-NAT; index: 1" {'),
    ("show running ippool", "show running ippool", "VSYS 1 has 1 NAT rules"),
    ("show running config", "show running config", "  - name: trust"),
    ("show rule-hit-count", "show rule-hit-count", "lan-out 3 first"),
    ("show session top source", "show session top", "10.1.0.5                                         2"),
    ("show counter queue", "show counter queue", "2     slow           290       0       9   4096"),
    ("show running resource-monitor", "show running resource-monitor", "flow_slowpath                  :     7%"),
]
OBJECTS = {"show session id", "show session info", "show running config"}


@pytest.mark.parametrize(("typed", "command", "line"), SHOWS, ids=[show[1] for show in SHOWS])
def test_show(daemon, dataplane, typed, command, line):
    """Every show asks its command and prints its layout."""
    done = dataplane(*typed.split())
    assert done.exit_code == 0
    assert any(printed.startswith(line) for printed in done.stdout.splitlines())
    assert [asked for asked, _ in daemon.asked] == [command]


@pytest.mark.parametrize(("typed", "command", "_line"), SHOWS, ids=[show[1] for show in SHOWS])
def test_show_json(daemon, dataplane, typed, command, _line):
    """--json prints the daemon's rows unchanged: one list, or one object where there is one."""
    done = dataplane(*typed.split(), "--json")
    assert done.exit_code == 0
    rows = daemon.rows[command]
    assert json.loads(done.stdout) == (rows[0] if command in OBJECTS else rows)


def test_layouts_are_those_of_the_samples(daemon, dataplane):
    """From the socket to the screen nothing is added."""
    daemon.rows["show counter global"] = [
        counter("pkt_recv", 29, "info", "packet", "pktproc", "Packets received"),
        counter("pkt_sent", 21, "info", "packet", "pktproc", "Packets transmitted"),
        counter("flow_rcv_dot1q_tag_err", 1, "drop", "flow", "parse", "Packets dropped: 802.1q tag not configured"),
        counter("flow_no_interface", 1, "drop", "flow", "parse", "Packets dropped: invalid interface"),
    ]
    assert dataplane("show", "session", "all").stdout == PING_AND_PREDICT
    assert dataplane("show", "counter", "global").stdout == COUNTERS
    assert dataplane("show", "running", "security-policy").stdout == DNS_RULE


def test_json_list_has_an_element_a_line(daemon, dataplane):
    """A list of any length can be read line by line; an empty one is still a list."""
    lines = dataplane("show", "session", "all", "--json").stdout.splitlines()
    assert [lines[0], lines[-1]] == ["[", "]"]
    assert [json.loads(line.removesuffix(","))["id"] for line in lines[1:-1]] == [20, 504]
    daemon.rows["show session all"] = []
    assert dataplane("show", "session", "all", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("", {"filter": {}, "start_at": 0, "count": False}),
        ("filter state active", {"filter": {"state": "active"}, "start_at": 0, "count": False}),
        (
            "filter source 10.1.0.0/24 destination-port 80 count yes",
            {"filter": {"source": "10.1.0.0/24", "destination-port": "80"}, "start_at": 0, "count": True},
        ),
        ("filter count no", {"filter": {}, "start_at": 0, "count": False}),
        ("start-at 7", {"filter": {}, "start_at": 7, "count": False}),
        ("start-at 7 filter rule filter", {"filter": {"rule": "filter"}, "start_at": 7, "count": False}),
        ("filter from trust start-at 7", {"filter": {"from": "trust"}, "start_at": 7, "count": False}),
        ("count yes", {"filter": {}, "start_at": 0, "count": True}),
    ],
)
def test_session_filter_words(daemon, dataplane, typed, sent):
    """`filter` is said once; start-at and count stand on either side of it; values go as typed."""
    daemon.rows["show session all"] = [2] if sent["count"] else []
    assert dataplane("show", "session", "all", *typed.split()).exit_code == 0
    assert daemon.asked == [("show session all", sent | {"columns": not sent["count"]})]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_count_prints_one_number(daemon, dataplane, as_json):
    """With and without --json."""
    daemon.rows["show session all"] = [2]
    assert dataplane("show", "session", "all", "filter", "count", "yes", *as_json).stdout == "2\n"


def test_counter_filter_words(daemon, dataplane):
    """The daemon gets the words of the filter."""
    dataplane("show", "counter", "global", "filter", "severity", "drop", "delta", "yes")
    ((command, arguments),) = daemon.asked
    assert (command, arguments["filter"]) == ("show counter global", {"severity": "drop", "delta": "yes"})
    assert arguments["caller"].split()[0] == str(os.getuid())


def test_counter_by_name(daemon, dataplane):
    """One counter, in the same layout."""
    assert "Total counters shown: 1" in dataplane("show", "counter", "global", "name", "pkt_recv").stdout
    assert daemon.asked[0][1]["name"] == "pkt_recv"


def test_top(daemon, dataplane):
    """What is summed up and by which sum; the total is the last line's."""
    done = dataplane("show", "session", "top", "source", "by", "rate", "last", "3", "filter", "protocol", "6")
    assert daemon.asked == [
        ("show session top", {"what": "source", "by": "rate", "last": 3, "filter": {"protocol": "6"}})
    ]
    assert "10.1.0.5" in done.stdout
    assert "Groups: 12, in the order of: rate" in done.stdout


@pytest.mark.parametrize(
    "typed",
    [
        "show session top",
        "show session top colour",
        "show session top source by name",
        "show session top source by",
        "show session top source last 0",
        "show session top source last many",
        "show session top source filter colour red",
        "show session top source filter count yes",
        "show running resource-monitor year",
        "show running resource-monitor second first 5",
        "show running resource-monitor week last 14",
        "show rule-hit-count rule-base pbf",
        "show rule-hit-count rule x",
        "clear rule-hit-count rule",
        "show counter global called pkt_recv",
    ],
)
def test_words_of_statistics_that_make_no_sense(daemon, dataplane, typed):
    """Refused before the daemon is asked."""
    assert dataplane(*typed.split()).exit_code == 2
    assert daemon.asked == []


def test_resource_monitor_of_one_period(daemon, dataplane):
    """The daemon gets the period and how many of it."""
    dataplane("show", "running", "resource-monitor", "minute", "last", "5")
    assert daemon.asked == [("show running resource-monitor", {"period": "minute", "last": 5})]


def test_hits_of_a_base(daemon, dataplane):
    """Of security rules unless NAT's are wanted, shown or cleared."""
    dataplane("show", "rule-hit-count", "rule-base", "nat")
    cleared = dataplane("clear", "rule-hit-count", "rule-base", "nat", "rule", "out going")
    assert cleared.stdout == "rules cleared: 1\n"
    assert daemon.asked == [
        ("show rule-hit-count", {"rule_base": "nat"}),
        ("clear rule-hit-count", {"rule_base": "nat", "rule": "out going"}),
    ]


def test_clear(daemon, dataplane):
    """The number that was cleared, for all that a filter means or for one."""
    assert dataplane("clear", "session", "all", "filter", "application", "dns").stdout == "sessions cleared: 2\n"
    assert dataplane("clear", "session", "id", "20").stdout == "sessions cleared: 1\n"
    assert daemon.asked == [
        ("clear session all", {"filter": {"application": "dns"}}),
        ("clear session id", {"id": 20}),
    ]


def test_security_policy_match(daemon, dataplane):
    """The words become a packet; text shows the rule, JSON its name and action."""
    assert dataplane("test", "security-policy-match", *FLOW.split(), "application", "ssl").stdout == DNS_RULE
    done = dataplane("test", "security-policy-match", *FLOW.split(), "--json")
    assert json.loads(done.stdout) == {"rule": "DNS Outbound", "action": "allow"}
    assert [arguments for _, arguments in daemon.asked] == [
        {**SENT_FLOW, "application": "ssl"},
        {**SENT_FLOW, "application": None},
    ]


def test_nat_policy_match(daemon, dataplane):
    """No match is an answer, not a failure."""
    done = dataplane("test", "nat-policy-match", *FLOW.split())
    assert (done.exit_code, done.stdout) == (0, "No rule matches\n")
    done = dataplane("test", "nat-policy-match", *FLOW.split(), "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"rule": None, "action": None})
    assert [arguments for _, arguments in daemon.asked] == [SENT_FLOW, SENT_FLOW]


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("show session all filter state banana", "banana"),
        ("show session all filter protocol 300", "300"),
        ("show session all filter source 10.0.0.300", "10.0.0.300"),
        ("show session all filter ssl-decrypt yes", "unknown filter key 'ssl-decrypt'"),
        ("show session all filter state", "state: a value must follow"),
        ("show session all filter", "KEY VALUE"),
        ("show session all filter state active state closed", "state: said twice"),
        ("show session all filter state active filter nat none", "filter: said twice"),
        ("show session all start-at 5 filter start-at 6", "start-at: said twice"),
        ("show session all start-at zero", "zero"),
        ("show session all state active", "unexpected word 'state'"),
        ("show session all everything", "unexpected word 'everything'"),
        ("show session all --wide", "--wide"),
        ("show session id", "ID"),
        ("show session id seven", "seven"),
        ("show session id 4294967296", "4294967296"),
        ("show session info now", "now"),
        ("show session", ""),
        ("show wisdom", "wisdom"),
        ("show counter global filter severity loud", "loud"),
        ("show counter global severity drop", "unexpected word 'severity'"),
        ("clear session all filter count yes", "count"),
        ("clear session all start-at 5", "unexpected word 'start-at'"),
        ("clear session all filter state banana", "banana"),
        ("test security-policy-match from trust to untrust", "missing: source, destination, protocol"),
        (f"test nat-policy-match {FLOW} application ssl", "application"),
        (f"test security-policy-match {FLOW} protocol 17", "protocol: said twice"),
        ("test security-policy-match filter active", "unexpected word 'filter'"),
        ("commit confirm --check", "confirm takes no options"),
        ("commit confirm --confirm 60", "confirm takes no options"),
        ("run", "--config"),
        ("check", "FILE"),
    ],
)
def test_nonsense_exits_2_before_the_daemon_is_asked(daemon, dataplane, typed, reason):
    """The reason is on standard error and nothing on standard output."""
    done = dataplane(*typed.split())
    assert done.exit_code == 2
    assert done.stdout == ""
    assert reason in done.stderr
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("refusal", "exit_code", "stderr"),
    [
        (DataplaneError("session 7 is unknown"), 1, "session 7 is unknown\n"),
        (ConfigError(["a.yaml:1: zones: none", "a.yaml:2: b: c"]), 3, "a.yaml:1: zones: none\na.yaml:2: b: c\n"),
        (ValueError("seven"), 1, "internal error: seven\n"),
    ],
)
def test_what_the_daemon_refuses(daemon, dataplane, refusal, exit_code, stderr):
    """Its reason and exit code are the command's, and no half of a layout is printed first."""
    for command in ("show session all", "show session id", "clear session id"):
        daemon.rows[command] = [refusal]
    for words in (
        ["show", "session", "all", "--json"],
        ["show", "session", "id", "7"],
        ["clear", "session", "id", "7"],
    ):
        done = dataplane(*words)
        assert (done.exit_code, done.stdout, done.stderr) == (exit_code, "", stderr)


@pytest.mark.parametrize("rows", [[], [session(), session()], [session(), DataplaneError("the table is gone")]])
def test_an_object_is_printed_once_its_answer_is_whole(daemon, dataplane, rows):
    """None, two, or one with an error behind it is a failure and prints nothing."""
    daemon.rows["show session id"] = rows
    done = dataplane("show", "session", "id", "7")
    assert (done.exit_code, done.stdout) == (1, "")


def test_no_daemon_exits_4(dataplane, tmp_path):
    """The message names the socket that was tried."""
    done = dataplane("show", "session", "all")
    assert (done.exit_code, done.stdout) == (4, "")
    assert str(tmp_path / SOCKET_NAME) in done.stderr


def test_runtime_dir_option_beats_the_environment(daemon, tmp_path, monkeypatch):
    """Two daemons on one machine are told apart by option or by environment."""
    monkeypatch.setenv("DATAPLANE_RUNTIME_DIR", str(tmp_path / "other"))
    words = ["show", "session", "all", "filter", "state", "active"]
    assert CliRunner().invoke(main, words).exit_code == 4
    for place in (len(words), 3):
        typed = [*words[:place], "--runtime-dir", str(tmp_path), *words[place:]]
        assert CliRunner().invoke(main, typed).exit_code == 0


def test_run_hands_its_paths_to_the_daemon(dataplane, tmp_path, monkeypatch):
    """And ends with the engine's exit code."""
    calls: list[tuple[Path, ...]] = []

    def run(*paths: Path) -> int:
        calls.append(paths)
        return 7

    daemon: Any = ModuleType("dataplane.daemon")
    daemon.run = run
    monkeypatch.setitem(sys.modules, "dataplane.daemon", daemon)
    monkeypatch.setattr("dataplane.daemon", daemon, raising=False)
    monkeypatch.setattr("dataplane.stopping.listen", lambda: None)  # pytest's own Ctrl-C stays pytest's
    assert dataplane("run", "--config", "firewall.yaml").exit_code == 7
    assert dataplane("run", "--config", "f", "--log-dir", "l", "--state-dir", "s", "--runtime-dir", "r").exit_code == 7
    assert calls == [
        (Path("firewall.yaml"), tmp_path, Path("/var/log/dataplane"), Path("/var/lib/dataplane")),
        (Path("f"), Path("r"), Path("l"), Path("s")),
    ]


def test_check(dataplane, monkeypatch):
    """One line for a valid file; every problem of an invalid one, unadorned, on standard error."""

    def load(path: Path) -> None:
        if path.name == "bad.yaml":
            raise ConfigError(["bad.yaml:3: zones[0].name: missing", "bad.yaml:9: log: unknown key 'x'"])

    loader: Any = ModuleType("dataplane.policy.load")
    loader.load = load
    monkeypatch.setitem(sys.modules, "dataplane.policy.load", loader)
    done = dataplane("check", "good.yaml")
    assert (done.exit_code, done.stdout) == (0, "good.yaml: valid\n")
    done = dataplane("check", "bad.yaml")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "bad.yaml:3: zones[0].name: missing\nbad.yaml:9: log: unknown key 'x'\n"


def test_the_doctor_shows_a_name_and_never_obeys_it(dataplane, monkeypatch):
    """A program that reads our queue may call itself anything."""
    finding = Finding("readers", "fail", "NFQUEUE 1 is read by \x1b[2Jx (pid 812)", "end that program")
    monkeypatch.setattr("dataplane.doctor.examine", lambda _patient: [finding])
    done = dataplane("doctor")
    assert done.exit_code == 1
    assert done.stdout == "fail  readers        NFQUEUE 1 is read by \\u001b[2Jx (pid 812) -> end that program\n"


def test_version(dataplane):
    """The one that the package was built with."""
    assert version("dataplane") in dataplane("--version").stdout


def command_line(*words: str) -> list[str]:
    return [sys.executable, "-m", "dataplane", *words]


def buffered_environment() -> dict[str, str]:
    """Standard output as an operator has it: what is left in the buffer is written at the very end."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_a_pipe_that_closes_is_silent(daemon, tmp_path):
    """`show session all | head -1` prints one line and no complaint."""
    daemon.rows["show session all"] = [session()] * 5000
    words = command_line("show", "session", "all", "--json", "--runtime-dir", str(tmp_path))
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, env=buffered_environment(), **pipes) as show:
        assert show.stdout is not None
        assert show.stderr is not None
        assert show.stdout.readline() == b"[\n"
        show.stdout.close()
        assert show.stderr.read() == b""
    assert show.returncode == 0


def test_a_pipe_that_was_closed_is_silent(daemon, tmp_path):
    """The whole output fits in the buffer, so that only the last flush meets the closed pipe."""
    words = command_line("show", "session", "all", "--runtime-dir", str(tmp_path))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, env=buffered_environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", b'"zo\xeb \\u540d"'), ("ascii", b'"zo\\u00eb \\u540d"')])
def test_a_terminal_without_the_characters_of_a_name(daemon, tmp_path, encoding, shown):
    """They are spelled as JSON spells them, which it may read again."""
    daemon.rows["show session all"] = [session() | {"rule": "zoë 名"}]
    words = command_line("show", "session", "all", "--json", "--runtime-dir", str(tmp_path))
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout
    assert json.loads(done.stdout.decode(encoding))[0]["rule"] == "zoë 名"


def test_an_interrupt_is_quiet(daemon, tmp_path):
    """Ctrl-C while the daemon takes its time: 130, as a shell expects, and no traceback."""
    asked, done = threading.Event(), threading.Event()

    def slow(_arguments: dict[str, object]) -> Iterator[object]:
        asked.set()
        done.wait(20)
        yield session()

    (tmp_path / "slow").mkdir()
    server = ControlServer(tmp_path / "slow" / SOCKET_NAME, {"show session all": slow})
    server.start()
    words = command_line("show", "session", "all", "--runtime-dir", str(tmp_path / "slow"))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as show:
        assert asked.wait(20)
        os.kill(show.pid, signal.SIGINT)
        output = show.communicate(timeout=20)
    assert (show.returncode, output) == (130, (b"", b""))
    done.set()
    server.stop()


def test_a_show_loads_nothing_that_it_does_not_need(daemon, tmp_path):
    """A whole command, not only its imports: neither the daemon's libraries nor its modules come in."""
    code = (
        "import sys; from dataplane import cli\n"
        "cli.main(['show', 'session', 'all', '--runtime-dir', sys.argv[1]], standalone_mode=False)\n"
        "print(' '.join(sys.modules), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stderr.split())
    assert "dataplane.client" in loaded
    assert not loaded & {
        "prompt_toolkit",
        "pydantic",
        "pyroute2",
        "rich",
        "ruamel",
        "ruamel.yaml",
        "msgspec",
        "cffi",
        "asyncio",
        "logging",
    }
    assert {name.split(".")[1] for name in loaded if name.startswith("dataplane.")} == {
        *("change", "cli", "client", "errors", "filters", "grammar", "live", "text")
    }
