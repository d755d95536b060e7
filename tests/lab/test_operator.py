"""Every command that an operator types, against a live daemon with traffic in it; and who means no good.

The layouts of text have tests of their own (tests/test_text.py); here the words, the numbers and the exit codes count.
"""

import json
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.console import (
    CONTROL_PORT,
    IN_ORDER,
    Control,
    ask,
    attempt,
    counters,
    info,
    port,
    rule,
    session_of,
    sessions,
    zones,
)
from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import CLIENT, OUT0, SERVER, Lab, poll

WEB, DENIED = 80, 8300
CROWD_SIZE = 100_000
HALF_SECOND = "0.5"
NOBODY = "10.2.0.200"  # a phantom
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "services": {
        "control": port(CONTROL_PORT, "udp"),
        "denied": port(DENIED, "udp"),
        "crowd": port("1024-65535", "udp"),
    },
    "addresses": {"nobody": NOBODY},
    "security-rules": [
        rule("control", service=["control"], log_end=False),
        rule("no entry", "drop", service=["denied"], log_end=False),
        rule("crowd", destination=["nobody"], service=["crowd"], log_end=False),
        rule("out", from_=["trust"], to=["untrust"], log_end=False),
    ],
    "nat-rules": [
        {"name": "exempt", "from": ["trust"], "to": "untrust", "destination": ["nobody"]},
        {
            "name": "snat",
            "from": ["trust"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        },
    ],
    "host-inbound": {"trust": ["ping"], "untrust": ["ping"]},
    "settings": IN_ORDER | {"session": {"max-sessions": 131072, "timeouts": {"udp": 300, "tcp-time-wait": 1}}},
}
SHOWN = {  # command: what its text must contain
    "show session all": r"^ID +Application +State +Type Flag  Src\[Sport\]/Zone/Proto",
    "show session info": r"^Number of sessions supported: +131072$",
    "show session meter": r"^vsys1 +131072 +\d+ +0$",
    "show counter global": r"^pkt_recv +\d+ +\d+ info +packet +pktproc +Packets received$",
    "show running security-policy": r'^"no entry; index: 2" \{$',
    "show running nat-policy": rf'^ +translate-to "src: out0 {OUT0} \(dynamic-ip-and-port\)',
    "show running ippool": r"^snat +Dynamic IP/Port +\d+ +\d+ ",
    "show running config": r"^security-rules:$",
    "show rule-hit-count": r"^control \d+",
}


@dataclass
class Net:
    """A lab with the firewall in it."""

    lab: Lab
    firewall: Firewall
    control: Control

    def datagram(self, number: int, **options: Any) -> socket.socket:
        """A client's socket that has sent one datagram to that port of the server, and the firewall has decided."""
        sock = attempt(self.lab, (SERVER, number), socket.SOCK_DGRAM, **options)
        self.control()
        return sock


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Lab(server_phantoms=[NOBODY]) as lab, lab.firewall(CONFIG) as firewall:
        yield Net(lab, firewall, Control(lab))


@pytest.fixture(scope="module")
def web(net: Net) -> Iterator[dict[str, Any]]:
    """The session of a connection to port 80 that is held open; a denied datagram stands beside it."""
    with net.lab.listener("server", WEB) as listening, net.lab.connect("client", (SERVER, WEB)) as client:
        accepted, _ = listening.accept()
        with accepted, net.datagram(DENIED):
            client.sendall(b"GET / HTTP/1.0\r\n")
            assert accepted.recv(100)
            yield session_of(net.firewall, client, state="active")


# ---- show ----


@pytest.mark.usefixtures("web")
class TestShow:
    @pytest.mark.parametrize("command", SHOWN)
    def test_as_text(self, net: Net, command: str) -> None:
        """Exit 0, nothing on standard error, and the line that one looks for."""
        done = net.firewall.cli(*command.split())
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(SHOWN[command], done.stdout, re.MULTILINE), done.stdout

    @pytest.mark.parametrize("command", SHOWN)
    def test_as_json(self, net: Net, command: str) -> None:
        """One document, of the keys that the contract has."""
        value = net.firewall.json(*command.split())
        keys = {
            "show session info": {"num_max", "num_active", "num_tcp", "num_discard", "timeouts", "pps", "kbps", "cps"},
            "show session meter": {"vsys", "maximum", "current", "throttled"},
            "show counter global": {"name", "value", "rate", "severity", "category", "aspect", "description"},
            "show running ippool": {"rule", "address", "type", "used", "available", "ratio"},
            "show rule-hit-count": {"rule", "hit_count", "first_hit", "last_hit"},
            "show running config": {"zones", "security-rules", "nat-rules", "host-inbound", "settings"},
        }
        first = value[0] if isinstance(value, list) else value
        assert keys.get(command, set()) <= first.keys()

    def test_one_session(self, net: Net, web: dict[str, Any]) -> None:
        """Text in PAN-OS's layout with the translation in the s2c flow; JSON the same as in the list."""
        done = net.firewall.cli("show", "session", "id", str(web["id"]))
        flows = re.findall(r"^ {16}(source|dst): +(\S+)", done.stdout, re.MULTILINE)
        assert flows == [("source", CLIENT), ("dst", SERVER), ("source", SERVER), ("dst", OUT0)]
        details = dict(re.findall(r"^ {8}(\S[^:]*?) *: (.*)$", done.stdout, re.MULTILINE))
        assert details["application"] == "web-browsing"
        assert (details["rule"], details["nat-rule"]) == ("out", "snat(vsys1)")
        assert (details["address/port translation"], details["end-reason"]) == ("source", "unknown")
        assert (details["ingress interface"], details["egress interface"]) == ("in0", "out0")
        shown = net.firewall.json("show", "session", "id", str(web["id"]))
        (listed,) = sessions(net.firewall, source_port=web["c2s"]["sport"], destination_port=WEB)
        assert {**shown, "time_to_live": 0} == {**listed, "time_to_live": 0}

    def test_two_lines_of_the_list(self, net: Net, web: dict[str, Any]) -> None:
        """Columns as measured on PAN-OS: id, application, state, type, flag; translated addresses in parentheses."""
        words = ("show", "session", "all", "filter", "application", "web-browsing")
        first, second = net.firewall.cli(*words).stdout.splitlines()[4:]
        c2s, s2c = web["c2s"], web["s2c"]
        assert [first[:13].strip(), first[13:28].strip(), first[28:36].strip(), first[36:42].strip()] == [
            str(web["id"]),
            "web-browsing",
            "ACTIVE",
            "FLOW",
        ]
        assert first[42:44] == "NS"
        assert first[47:] == f"{CLIENT}[{c2s['sport']}]/trust/6  ({OUT0}[{s2c['dport']}])"
        assert (second[:47].strip(), second[47:]) == ("vsys1", f"{SERVER}[80]/untrust  ({SERVER}[80])")

    def test_the_running_configuration_is_a_file_that_loads(self, net: Net, tmp_path: Path) -> None:
        """`show running config` can be checked, and says the same."""
        copy = tmp_path / "copy.yaml"
        copy.write_text(net.firewall.cli("show", "running", "config").stdout)
        checked = net.firewall.cli("check", str(copy))
        assert (checked.returncode, checked.stderr) == (0, "")
        shown = net.firewall.json("show", "running", "config")
        assert [one["name"] for one in shown["security-rules"]] == ["control", "no entry", "crowd", "out"]

    def test_hit_counts_start_with_name_and_count(self, net: Net) -> None:
        """A name may hold blanks; the defaults are listed last."""
        lines = net.firewall.cli("show", "rule-hit-count").stdout.splitlines()
        names = ["control", "no entry", "crowd", "out", "intrazone-default", "interzone-default"]
        assert [re.match(rf"{name} (\d+)", line) is not None for name, line in zip(names, lines, strict=True)] == [
            True
        ] * 6
        before = {row["rule"]: row["hit_count"] for row in net.firewall.json("show", "rule-hit-count")}
        net.datagram(DENIED).close()
        after = {row["rule"]: row["hit_count"] for row in net.firewall.json("show", "rule-hit-count")}
        assert (after["no entry"], after["out"]) == (before["no entry"] + 1, before["out"])

    def test_info_counts_the_sessions(self, net: Net) -> None:
        """By kind, as the list has them."""
        shown, listed = info(net.firewall), sessions(net.firewall)
        active = [session for session in listed if session["state"] == "ACTIVE"]
        assert shown["num_tcp"] == sum(session["c2s"]["proto"] == 6 for session in active)
        assert shown["num_udp"] == sum(session["c2s"]["proto"] == 17 for session in active)
        assert shown["num_discard"] == len(listed) - len(active)
        assert shown["timeouts"]["udp"] == 300

    def test_the_pool_counts_the_ports(self, net: Net) -> None:
        """A new translated session takes one; what is used and available is always the whole pool."""
        (before,) = net.firewall.json("show", "running", "ippool")
        with net.datagram(8310) as sock:
            session = session_of(net.firewall, sock)
            (after,) = net.firewall.json("show", "running", "ippool")
        ask(net.firewall, "clear session id", id=session["id"])
        assert (after["rule"], after["address"], after["ratio"]) == ("snat", OUT0, 1)
        assert after["used"] - before["used"] == 2  # and the control's
        assert before["used"] + before["available"] == after["used"] + after["available"] == 64512


class TestFilters:
    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("nat source", True),
            ("nat none", False),
            ("nat destination", False),
            ("ip6 no", True),
            ("ip6 yes", False),
            ("type flow", True),
            ("type predict", False),
            ("state active", True),
            ("state discard", False),
            ("from trust", True),
            ("from untrust", False),
            ("to untrust", True),
            ("to trust", False),
            ("source 10.1.0.0/24", True),
            ("source 10.2.0.0/24", False),
            ("destination 10.2.0.2", True),
            ("destination 10.2.0.1", False),
            ("source-port {sport}", True),
            ("source-port 1", False),
            ("destination-port 80", True),
            ("destination-port 81", False),
            ("protocol 6", True),
            ("protocol 17", False),
            ("application web-browsing", True),
            ("application dns", False),
            ("rule out", True),
            ("rule control", False),
            ("nat-rule snat", True),
            ("nat-rule exempt", False),
            ("ingress-interface in0", True),
            ("ingress-interface out0", False),
            ("egress-interface out0", True),
            ("egress-interface in0", False),
            ("max-kb 1", True),
            ("min-kb 1", False),
            ("min-age 4194304", False),
        ],
    )
    def test_each_key(self, net: Net, web: dict[str, Any], words: str, found: bool) -> None:
        """The held connection is in the list, or it is not."""
        key, value = words.format(sport=web["c2s"]["sport"]).split()
        listed = ask(net.firewall, "show session all", filter={key: value})
        assert (web["id"] in [session["id"] for session in listed]) == found

    def test_pairs_on_the_command_line(self, net: Net, web: dict[str, Any]) -> None:
        """All of them must hold; a value may hold blanks; `count yes` prints a number; `start-at` skips."""
        command = ("show", "session", "all", "filter", "protocol", "6", "rule", "out", "destination-port", "80")
        assert [session["id"] for session in net.firewall.json(*command)] == [web["id"]]
        denied = net.firewall.json("show", "session", "all", "filter", "rule", "no entry")
        assert {session["state"] for session in denied} == {"DISCARD"}
        assert net.firewall.cli(*command, "count", "yes").stdout == "1\n"
        assert net.firewall.json(*command, "count", "yes") == 1
        later = ("show", "session", "all", "start-at", str(web["id"] + 1), "filter", "destination-port", "80")
        assert net.firewall.json(*later) == []

    def test_the_oldest_by_age(self, net: Net, web: dict[str, Any]) -> None:
        """`min-age` is in seconds since the session began."""

        def old_enough() -> bool:
            return web["id"] in [session["id"] for session in sessions(net.firewall, min_age=1)]

        poll(old_enough, 3, "the connection to be a second old")
        with net.datagram(8311) as sock:
            young = session_of(net.firewall, sock)["id"]
            assert young not in [session["id"] for session in sessions(net.firewall, min_age=3600)]


class TestCounters:
    def test_filters(self, net: Net) -> None:
        """Severity, category, aspect and value; text counts what it shows."""
        words = ("show", "counter", "global", "filter", "severity", "drop", "value", "non-zero")
        net.datagram(DENIED).close()
        rows = net.firewall.json(*words)
        assert {row["severity"] for row in rows} == {"drop"}
        assert all(row["value"] > 0 for row in rows)
        assert "flow_policy_deny" in [row["name"] for row in rows]
        assert f"Total counters shown: {len(rows)}" in net.firewall.cli(*words).stdout
        tcp = net.firewall.json("show", "counter", "global", "filter", "category", "tcp", "aspect", "pktproc")
        assert "tcp_flag_zero" in [row["name"] for row in tcp]

    def test_delta(self, net: Net) -> None:
        """Only what happened since the last delta."""
        words = ("show", "counter", "global", "filter", "delta", "yes", "value", "non-zero")
        net.firewall.json(*words)
        net.datagram(DENIED).close()
        delta = {row["name"]: row["value"] for row in net.firewall.json(*words)}
        assert delta["flow_policy_deny"] == 1
        assert counters(net.firewall)["flow_policy_deny"] > 1
        assert re.search(r"^Elapsed time since last sampling: \d+\.\d+ seconds$", net.firewall.cli(*words).stdout, re.M)


# ---- clear ----


class TestClear:
    def test_by_id(self, net: Net) -> None:
        """The session ends; the next packet of its flow begins another."""
        with net.lab.udp("server", 8320), net.datagram(8320) as sock:
            first = session_of(net.firewall, sock)
            done = net.firewall.cli("clear", "session", "id", str(first["id"]))
            assert (done.returncode, done.stdout) == (0, "sessions cleared: 1\n")
            poll(lambda: sessions(net.firewall, destination_port=8320) == [], 3, "the session to be gone")
            ended = net.firewall.json("show", "session", "id", str(first["id"]))
            assert (ended["in_ager"], ended["end_reason"]) == (False, "unknown")
            again = net.firewall.cli("clear", "session", "id", str(first["id"]))
            assert (again.returncode, again.stdout) == (1, "")
            sock.send(b"again")
            net.control()
            assert session_of(net.firewall, sock)["id"] != first["id"]

    def test_by_filter(self, net: Net, web: dict[str, Any]) -> None:
        """Only what the filter means; the number is told."""
        with net.datagram(8321), net.datagram(8321), net.datagram(8322):
            done = net.firewall.cli("clear", "session", "all", "filter", "destination-port", "8321")
            assert (done.returncode, done.stdout) == (0, "sessions cleared: 2\n")
            poll(lambda: sessions(net.firewall, destination_port=8321) == [], 3, "the two to be gone")
            assert len(sessions(net.firewall, destination_port=8322)) == 1
        assert web["id"] in [session["id"] for session in sessions(net.firewall)]
        assert net.firewall.cli("clear", "session", "all", "filter", "rule", "no such rule").stdout.endswith(": 0\n")

    def test_a_cleared_connection_is_cut(self, net: Net) -> None:
        """What comes for it later is a first packet that is no SYN."""
        with net.lab.listener("server", 8323) as listening, net.lab.connect("client", (SERVER, 8323)) as client:
            accepted, _ = listening.accept()
            with accepted, net.control.around(net.firewall):
                number = session_of(net.firewall, client)["id"]
                before = counters(net.firewall)["flow_tcp_non_syn_drop"]
                ask(net.firewall, "clear session id", id=number)
                client.sendall(b"into the void")
                poll(lambda: counters(net.firewall)["flow_tcp_non_syn_drop"] > before, 3, "a drop")
                accepted.setblocking(False)
                with pytest.raises(BlockingIOError):
                    accepted.recv(100)


# ---- test ...-match ----


class TestMatch:
    FLOW = ("from", "trust", "to", "untrust", "source", CLIENT, "destination", SERVER, "protocol", "17")

    def test_security(self, net: Net) -> None:
        """The rule that would decide, as a stanza and as JSON; a default is a rule too."""
        command = ("test", "security-policy-match", *self.FLOW, "destination-port", str(DENIED))
        assert net.firewall.json(*command) == {"rule": "no entry", "action": "drop"}
        assert net.firewall.cli(*command).stdout.startswith('"no entry; index: 2" {\n')
        inward = ("from", "untrust", "to", "trust", "source", SERVER, "destination", CLIENT)
        back = ("test", "security-policy-match", *inward, "protocol", "6", "destination-port", "80")
        back_as_ssl = (*back, "application", "ssl")
        assert net.firewall.json(*back_as_ssl) == {"rule": "interzone-default", "action": "deny"}
        assert net.firewall.cli(*back).returncode == 0

    def test_nat(self, net: Net) -> None:
        """Translated, exempt, or no rule at all: exit 0 each time."""
        command = ("test", "nat-policy-match", *self.FLOW, "destination-port", "53")
        assert net.firewall.json(*command) == {"rule": "snat", "action": "translate"}
        exempt = [NOBODY if word == SERVER else word for word in command]
        assert net.firewall.json(*exempt)["rule"] == "exempt"
        inward = [{"trust": "untrust", "untrust": "trust"}.get(word, word) for word in command]
        assert net.firewall.json(*inward) == {"rule": None, "action": None}
        assert net.firewall.cli(*inward).returncode == 0

    def test_the_answer_is_what_a_packet_gets(self, net: Net) -> None:
        """The same flow, asked and sent."""
        asked = net.firewall.json("test", "security-policy-match", *self.FLOW, "destination-port", "53")
        with net.datagram(53) as sock:
            assert session_of(net.firewall, sock)["rule"] == asked["rule"]


# ---- what goes wrong ----


class TestExitCodes:
    @pytest.mark.parametrize(
        "words",
        [
            "show session all filter",
            "show session all filter colour red",
            "show session all filter protocol",
            "show session all filter protocol tcp",
            "show session all filter source 10.1.0.300",
            "show session all filter state sleeping",
            "show session all filter destination-port 65536",
            "show session all filter protocol 6 protocol 17",
            "show session all filter min-kb 0",
            "show session all sideways",
            "show session id first",
            "show session",
            "show nothing",
            "show counter global filter severity loud",
            "show counter global filter delta maybe",
            "clear session all filter count yes",
            "clear session id -1",
            "clear everything",
            "test security-policy-match from trust",
            "test security-policy-match from nowhere to untrust source 1.1.1.1 destination 2.2.2.2 protocol 1",
            "test nat-policy-match from trust to untrust source x destination 2.2.2.2 protocol 1",
            "dance",
        ],
    )
    def test_nonsense(self, net: Net, words: str) -> None:
        """Exit 2, the reason on standard error, nothing on standard output."""
        done = net.firewall.cli(*words.split())
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.strip()

    @pytest.mark.parametrize("words", ["show session id 131073", "show session id 131072", "clear session id 131072"])
    def test_an_unknown_session(self, net: Net, words: str) -> None:
        """Exit 1: never used, or beyond the table."""
        done = net.firewall.cli(*words.split())
        assert (done.returncode, done.stdout) == (1, "")
        assert "does not exist" in done.stderr

    @pytest.mark.parametrize("words", ["show session all", "show counter global --json", "clear session all"])
    def test_no_daemon(self, net: Net, tmp_path: Path, words: str) -> None:
        """Exit 4; the directory may be named on every subcommand."""
        done = net.firewall.cli(*words.split(), "--runtime-dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (4, "")
        assert str(tmp_path) in done.stderr

    def test_check_reports_every_problem_with_its_line(self, net: Net, tmp_path: Path) -> None:
        """Exit 3, each problem once: FILE:LINE: PATH: message, lists counted from 0. `run` refuses the same."""
        file = tmp_path / "bad.yaml"
        file.write_text(
            "zones:\n"
            "  - {name: trust, interfaces: [in0]}\n"
            "  - {name: untrust, interfaces: [out0], colour: red}\n"
            "security-rules:\n"
            "  - name: lan-out\n"
            "    from: [trust]\n"
            "    to: [nowhere]\n"
            "    source: [dmz]\n"
            "    action: permit\n"
            "settings: {session: {max-sessions: 0}}\n"
        )
        done = net.firewall.cli("check", str(file))
        lines = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (3, "")
        for line, path in (
            (3, "zones[1].colour"),
            (7, "security-rules[0].to"),
            (8, "security-rules[0].source"),
            (9, "security-rules[0].action"),
            (10, "settings.session.max-sessions"),
        ):
            assert [text for text in lines if text.startswith(f"{file}:{line}: {path}: ")], (path, lines)
        assert f"{file}:8: security-rules[0].source: unknown address 'dmz'" in lines
        run = net.lab.run("firewall", [*PROGRAM, "run", f"--config={file}", *directories(tmp_path)])
        assert (run.returncode, run.stderr) == (3, done.stderr)

    @pytest.mark.parametrize("text", [None, "", "zones: [", "- a list\n"])
    def test_a_file_that_is_none(self, net: Net, tmp_path: Path, text: str | None) -> None:
        """Missing, empty, broken, not a mapping: exit 3, and the file is named."""
        file = tmp_path / "none.yaml"
        if text is not None:
            file.write_text(text)
        done = net.firewall.cli("check", str(file))
        assert (done.returncode, done.stdout) == (3, "")
        assert str(file) in done.stderr

    @pytest.mark.parametrize("file", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.name)
    def test_the_shipped_files_are_valid(self, net: Net, file: Path) -> None:
        """No root and no daemon needed."""
        done = net.firewall.cli("check", str(file))
        assert (done.returncode, done.stderr) == (0, "")


def directories(path: Path) -> list[str]:
    """Options of `run` for a place of its own."""
    return [f"--{kind}-dir={path / kind}" for kind in ("runtime", "log", "state")]


# ---- the other daemons ----


def test_a_second_daemon_on_the_same_directory(net: Net, tmp_path: Path) -> None:
    """Exit 1 before it touches anything; the first goes on."""
    runtime = net.firewall.directory / "runtime"
    command = [
        *PROGRAM,
        "run",
        f"--config={net.firewall.config}",
        f"--runtime-dir={runtime}",
        *directories(tmp_path)[1:],
    ]
    with net.control.around(net.firewall):
        before = net.firewall.footprint()
        done = net.lab.run("firewall", command)
        assert (done.returncode, done.stdout) == (1, "")
        assert str(net.firewall.pid) in done.stderr
        assert rules_of(net.firewall) == rules_in(before)
        assert net.firewall.cli("show", "session", "info").returncode == 0


def test_a_second_daemon_in_the_same_namespace(net: Net, tmp_path: Path) -> None:
    """Its queues are taken: exit 1 with the reason, and the first one's rules and settings stay."""
    command = [*PROGRAM, "run", f"--config={net.firewall.config}", *directories(tmp_path)]
    with net.control.around(net.firewall):
        before = net.firewall.footprint()
        done = net.lab.run("firewall", command)
        assert (done.returncode, done.stdout) == (1, "")
        assert "NFQUEUE" in done.stderr
        assert rules_of(net.firewall) == rules_in(before)
        with net.datagram(DENIED) as sock:
            assert session_of(net.firewall, sock)["state"] == "DISCARD"


def rules_of(firewall: Firewall) -> dict[str, str]:
    return rules_in(firewall.footprint())


def rules_in(footprint: dict[str, str]) -> dict[str, str]:
    """Rules and settings, without the counters that nft shows."""
    return {what: footprint[what] for what in ("iptables", "ip6tables", "sysctls")}


def test_two_daemons_side_by_side(net: Net) -> None:
    """In two namespaces with two directories: each has its own sessions, and one's end is not the other's."""
    with Lab() as other_lab, other_lab.firewall(CONFIG) as other:
        control = Control(other_lab)
        with net.control.around(net.firewall), net.lab.udp("server", 8330), net.datagram(8330) as sock:
            with control.around(other):
                assert sessions(other, destination_port=8330) == []
                ask(other, "clear session all", filter={})
                assert session_of(net.firewall, sock)["state"] == "ACTIVE"
            other.stop()
            sock.send(b"still here")
            net.control()
            assert session_of(net.firewall, sock)["packets_c2s"] == 2
        assert other.cli("show", "session", "info").returncode == 4
        other.start()


# ---- the control socket ----


def test_only_root_may_ask(net: Net) -> None:
    """The socket's mode is 0600; nor may others read the logs and the versions of the policy."""
    path = net.firewall.directory / "runtime" / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for kind in ("log", "state"):
        assert not stat.S_IMODE((net.firewall.directory / kind).stat().st_mode) & stat.S_IRWXO
    assert path.is_socket()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"not json\n",
        b"[1, 2]\n",
        b"\x00\xff\xfe\n",
        b'{"command": 7}\n',
        b'{"command": "show session all", "arguments": 7}\n',
        b'{"command": "show session all", "arguments": {"filter": {"protocol": {"a": [1]}}}}\n',
        b'{"command": "show session id", "arguments": {"id": 99999999999999999999999999}}\n',
        b'{"command": "show session id", "arguments": {"id": -1}}\n',
        b'{"command": "show session id"}\n',
        b'{"command": "show session all", "arguments": {"start_at": -1}}\n',
        b'{"command": "clear session all", "arguments": {"filter": null}}\n',
        b'{"command": "test nat-policy-match", "arguments": {"from": {}}}\n',
        b'{"command": "no such command"}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 70_000 + b"\n",
        b'{"command": "show session info"}',
    ],
    ids=range(17),
)
def test_a_request_that_makes_no_sense(net: Net, line: bytes) -> None:
    """Refused with exit code 2; it harms nobody, and what is valid is answered as before."""
    with net.control.around(net.firewall):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(5)
            asking.connect(str(net.firewall.directory / "runtime" / "control.sock"))
            try:
                asking.sendall(line)
                asking.shutdown(socket.SHUT_WR)
            except BrokenPipeError:
                pass  # refused before it was read to its end
            with asking.makefile("rb") as answer:
                (refusal,) = map(json.loads, answer)
        assert refusal["exit_code"] == 2
        assert info(net.firewall)["num_max"] == 131072
