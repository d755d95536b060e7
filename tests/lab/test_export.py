"""What other programs make of the exported logs: nfdump of IPFIX, syslog-ng of syslog and of PAN-OS's CSV.

                   firewall namespace
client ──── in0 [ dataplane ] out0 ──── server
                    │  127.0.0.1
                    ├─ 4739/udp ──► nfcapd ──► nfdump
                    └─ 6514/udp ──► syslog-ng: RFC 5424, then its panos-parser()
"""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dataplane.sinks.pancsv import COLUMNS
from tests.lab.console import CONTROL_PORT, IN_ORDER, Control, ask, attempt, counters, port, record, rule, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, CLIENT6, OUT0, SERVER, SERVER6, Lab, poll
from tests.test_readback import ids

COLLECTOR, SYSLOG, DEAD = 4739, 5514, 5515
DENIED = 8100
UNPACKED = Path(__file__).parents[2] / "build" / "syslog-ng"
SCL = UNPACKED / "usr/share/syslog-ng/include/scl/paloalto/panos.conf"
INFO = "ident"  # what nfcapd calls the exporter


def config(**log: object) -> dict[str, Any]:
    """Source translation for IPv4; one service is denied."""
    return {
        "zones": zones(),
        "services": {"denied": port(DENIED, "udp"), "control": port(CONTROL_PORT, "udp")},
        "security-rules": [
            rule("control", service=["control"], log_end=False),
            rule("no, never", "deny", service=["denied"]),
            rule("out", log_start=True, from_=["trust"], to=["untrust"]),
        ],
        "nat-rules": [
            {
                "name": "snat",
                "from": ["trust"],
                "to": "untrust",
                "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
            }
        ],
        "settings": IN_ORDER | {"session": {"timeouts": {"udp": 1, "icmp": 1, "tcp-time-wait": 1}}},
        "log": log,
    }


@dataclass
class Sent:
    """What crossed the firewall: a translated exchange, one of IPv6, a refusal."""

    nat_port: int
    sports: dict[str, int]


def traffic(lab: Lab, firewall: Firewall, control: Control) -> Sent:
    """One datagram there and two back, over IPv4 and IPv6; one that is denied; until all of it is logged."""
    control()
    nat_port, sports = 0, {}
    for kind, number, to, any_address in (("v4", 9001, SERVER, "0.0.0.0"), ("v6", 9002, SERVER6, "::")):
        with lab.udp("server", number, any_address) as receiver, lab.udp("client", 0, any_address) as sender:
            sender.sendto(b"question", (to, number))
            _, peer = receiver.recvfrom(100)
            for _ in range(2):
                receiver.sendto(b"answer", peer)
                sender.recv(100)
            sports[kind] = sender.getsockname()[1]
            nat_port = peer[1] if kind == "v4" else nat_port
    attempt(lab, (SERVER, DENIED), socket.SOCK_DGRAM).close()
    for number in (9001, 9002):
        record(firewall, 5, event="end", dport=number)
    record(firewall, 5, dport=DENIED)
    return Sent(nat_port, sports)


@pytest.fixture
def control(lab: Lab) -> Control:
    return Control(lab)


def flows(directory: Path) -> list[dict[str, Any]]:
    """What nfdump reads of what nfcapd has written."""
    found: list[dict[str, Any]] = []
    for path in sorted(directory.glob("nfcapd.2*")):
        done = subprocess.run(["nfdump", "-r", str(path), "-o", "json"], capture_output=True, text=True, timeout=20)
        text = done.stdout[done.stdout.find("[") :]
        found += json.loads(text) if text.strip() else []
    return found


@pytest.mark.skipif(not shutil.which("nfcapd"), reason="nfdump is not installed")
def test_nfdump_reads_the_flow_records(lab: Lab, control: Control) -> None:
    """Both families, both directions, the translation and its events; not one message is missed or malformed."""
    directory = lab.directory / "nfcapd"
    directory.mkdir()
    argv = ["nfcapd", "-w", str(directory), "-b", "127.0.0.1", "-p", str(COLLECTOR), "-t", "3600", "-I", INFO]
    collector = lab.serve("firewall", argv, COLLECTOR, "udp")
    with lab.firewall(config(ipfix=[{"to": f"udp://127.0.0.1:{COLLECTOR}", "template-refresh": 1}])) as firewall:
        sent = traffic(lab, firewall, control)
        status = {row["sink"]: row for row in ask(firewall, "show log status")}
        mine = status[f"ipfix udp://127.0.0.1:{COLLECTOR}"]
        expected = status["traffic.json"]["written"]
        poll(lambda: ipfix_written(firewall) == expected, 5, "the records to be exported")
        logged = firewall.traffic_log()
    collector.send_signal(signal.SIGTERM)
    collector.wait(10)
    output = lab.output(collector)
    assert "Sequence Errors: 0, Bad Packets: 0" in output, output
    found = flows(directory)
    assert len(found) >= expected
    assert mine["state"] == "up"
    by_event = {
        (flow.get("src4_addr") or flow.get("src6_addr"), flow["dst_port"], flow.get("nat_event_id")): flow
        for flow in found
    }
    v4 = by_event[CLIENT, 9001, "5"]
    end = next(each for each in logged if each["event"] == "end" and each["dport"] == 9001)
    assert (v4["dst4_addr"], v4["src_port"], v4["proto"]) == (SERVER, sent.sports["v4"], 17)
    assert (v4["src4_xlt_ip"], v4["src_xlt_port"], v4["dst4_xlt_ip"]) == (OUT0, str(sent.nat_port), SERVER)
    assert (v4["in_packets"], v4["in_bytes"]) == (end["packets_sent"], end["bytes_sent"]) == (1, 36)
    assert (v4["out_packets"], v4["out_bytes"]) == (end["packets_received"], end["bytes_received"]) == (2, 68)
    assert v4["nat_event"] == "NAT44 session delete"
    assert by_event[CLIENT, 9001, "4"]["nat_event"] == "NAT44 session create"
    indices = {link["ifname"]: link["ifindex"] for link in links(lab)}
    assert (v4["input_snmp"], v4["output_snmp"]) == (indices["in0"], indices["out0"])
    assert any(flow.get("src6_addr") == CLIENT6 and flow["dst_port"] == 9002 for flow in found)
    assert any(flow["dst_port"] == DENIED and flow.get("nat_event_id", "0") == "0" for flow in found)


def ipfix_written(firewall: Firewall) -> int:
    (row,) = [row for row in ask(firewall, "show log status") if row["sink"].startswith("ipfix")]
    return int(row["written"])


def links(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.run("firewall", ["ip", "-j", "link"]).stdout)
    return found


@pytest.mark.skipif(not SCL.exists(), reason="syslog-ng is not unpacked")
def test_syslog_ng_reads_syslog_and_the_csv(lab: Lab, control: Control) -> None:
    """RFC 5424's header and structured data; the fields of PAN-OS by the list that syslog-ng has of them."""
    output = lab.directory / "parsed.json"
    lab.serve("firewall", syslog_ng(lab.directory, output), SYSLOG, "udp")
    log = {"csv": True, "syslog": [{"to": f"udp://127.0.0.1:{SYSLOG}", "format": "csv", "facility": "local4"}]}
    with lab.firewall(config(**log)) as firewall:
        sent = traffic(lab, firewall, control)
        expected = len(firewall.traffic_log())
        poll(lambda: output.exists() and len(output.read_text().splitlines()) >= expected, 10, "the parsed messages")
        lines = (firewall.directory / "log" / "traffic.csv").read_text().splitlines()
    parsed = [json.loads(line) for line in output.read_text().splitlines()]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in csv.reader(lines, strict=True)]
    assert len(rows) == expected
    end = next(each for each in parsed if panos(each, "subtype") == "end" and panos(each, "dport") == "9001")
    assert (end["FACILITY"], end["PROGRAM"], end["MSGID"]) == ("local4", "paloalto_panos", "TRAFFIC")
    assert int(end["_SDATA"]["meta"]["sequenceId"]) >= 1
    assert (panos(end, "src"), panos(end, "sport"), panos(end, "proto")) == (CLIENT, str(sent.sports["v4"]), "udp")
    assert (panos(end, "natsrc"), panos(end, "natsport")) == (OUT0, str(sent.nat_port))
    assert (panos(end, "rule"), panos(end, "from"), panos(end, "to")) == ("out", "trust", "untrust")
    assert (panos(end, "bytes_sent"), panos(end, "bytes_received"), panos(end, "packets")) == ("36", "68", "3")
    assert (panos(end, "session_end_reason"), panos(end, "flags")) == ("aged-out", "0x400000")
    denied = next(each for each in parsed if panos(each, "dport") == str(DENIED))
    assert (panos(denied, "rule"), panos(denied, "action")) == ("no, never", "deny")
    row = next(each for each in rows if each["subtype"] == "end" and each["dport"] == "9001")
    shared = [name for name in COLUMNS if panos(end, name) and name != "seqno"]
    assert len(shared) >= 30
    assert {name: panos(end, name) for name in shared} == {name: row[name] for name in shared}


def panos(parsed: dict[str, Any], name: str) -> str:
    """A field by the name that panos-parser() gives it."""
    return str(parsed.get("_panos", parsed.get("panos", {})).get(name, ""))


def syslog_ng(directory: Path, output: Path) -> list[str]:
    """The command line of a syslog-ng that is unpacked, not installed: installed it would be the host's own."""
    settings = directory / "syslog-ng.conf"
    settings.write_text(
        f"""@version: 3.38
@include "{SCL}"
source s {{ network(ip("127.0.0.1") port({SYSLOG}) transport("udp") flags(syslog-protocol)); }};
log {{
  source(s);
  parser {{ panos-parser(prefix("panos.")); }};
  destination {{ file("{output}" template("$(format-json --scope rfc5424 --key panos.*)\\n")); }};
}};
"""
    )
    libraries = [
        UNPACKED / "usr/lib/x86_64-linux-gnu",
        UNPACKED / "usr/lib/syslog-ng",
        UNPACKED / "lib/x86_64-linux-gnu",
    ]
    program, modules = UNPACKED / "usr/sbin/syslog-ng", UNPACKED / "usr/lib/syslog-ng/3.38"
    files = [f"--persist-file={directory / 'persist'}", f"--pidfile={directory / 'pid'}"]
    return [
        "env",
        f"LD_LIBRARY_PATH={':'.join(map(str, libraries))}",
        str(program),
        f"--module-path={modules}",
        f"--cfgfile={settings}",
        *files,
        f"--control={directory / 'control'}",
        "--foreground",
        "--no-caps",
        "--stderr",
    ]


def test_dead_servers_and_a_full_disk_delay_no_packet(lab: Lab, control: Control) -> None:
    """Everything fails at once: traffic passes, every loss is counted, and what comes back is said."""
    log = {
        "csv": True,
        "syslog": [{"to": f"tcp://127.0.0.1:{DEAD}"}, {"to": f"unix://{lab.directory}/nobody"}],
        "ipfix": [{"to": f"tcp://127.0.0.1:{DEAD + 1}"}],
    }
    with lab.firewall(config(**log)) as firewall, control.around(firewall):
        logs = firewall.directory / "log"
        (logs / "traffic.csv").mkdir()
        traffic(lab, firewall, control)
        poll(lambda: failing(firewall) == 4, 5, "four sinks to fail")
        poll(lambda: counters(firewall)["log_record_lost"] > 0, 5, "a loss to be counted")
        (logs / "traffic.csv").rmdir()
        with lab.listener("firewall", DEAD, "127.0.0.1") as listening:
            listening.accept()[0].recv(100)
            hear(firewall, f"syslog tcp://127.0.0.1:{DEAD} takes records again")
        assert failing(firewall) >= 2


def test_a_full_disk_tears_no_record(lab: Lab, control: Control) -> None:
    """The file system is full, then it is not: traffic passes all the while, and every line is whole."""
    small = lab.directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        with lab.firewall(config(csv=True), f"--log-dir={small}") as firewall, control.around(firewall):
            filler = small / "filler"
            filler.write_bytes(bytes((2 << 20) - (64 << 10)))
            flood(lab, 300).wait(30)
            poll(lambda: counters(firewall)["log_record_lost"] > 0, 10, "a record to be lost")
            control()
            filler.unlink()
            with lab.udp("client") as sender:
                sender.sendto(b"x", (SERVER, 9005))
            log = small / "traffic.json"
            poll(lambda: log.exists() and '"dport":9005' in log.read_text(), 10, "a record that is written again")
        *lines, rest = log.read_text().split("\n")
        assert rest == ""
        assert all(json.loads(each)["event"] for each in lines)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_system_log_tells_of_the_host_of_exhaustion_and_of_the_stop(lab: Lab, control: Control) -> None:
    """An address that comes and goes, a pool of one port, and the last words."""
    settings = config()
    settings["nat-rules"][0]["source-translation"]["port-range"] = "40000-40000"
    with lab.firewall(settings) as firewall:
        control()
        for number in range(2):
            attempt(lab, (SERVER, 9006), socket.SOCK_DGRAM, port=9100 + number).close()
        hear(firewall, "a NAT pool has no port left")
        for verb, word in (("add", "got"), ("del", "lost")):
            lab.run("firewall", ["ip", "address", verb, "10.9.9.9/32", "dev", "in0"], check=True)
            hear(firewall, f"interface in0 has {word} 10.9.9.9")
        poll(lambda: not ask(firewall, "show session all", filter={"destination-port": "9006"}), 10, "all to end")
    said = [
        json.loads(line)["message"] for line in (firewall.directory / "log" / "system.json").read_text().splitlines()
    ]
    assert any("stopping" in message for message in said)
    assert sum("has no port left" in message for message in said) <= 2


def hear(firewall: Firewall, text: str) -> None:
    """Wait until the system log has it."""

    def says() -> bool:
        return any(text in row["message"] for row in ask(firewall, "show log system", last=50))

    poll(says, 10, f"the system log to say: {text}")


def failing(firewall: Firewall) -> int:
    return sum(row["state"] == "failing" for row in ask(firewall, "show log status"))


def test_rotation_under_load_and_a_signal_lose_nothing(lab: Lab, control: Control) -> None:
    """The log rotates by itself and is moved away by hand, SIGUSR1 comes; each session is in exactly one file."""
    count = 3000
    with lab.firewall(config(rotate={"size-mb": 1, "keep": 20})) as firewall, control.around(firewall):
        path = firewall.directory / "log" / "traffic.json"
        with lab.udp("server", 9003), lab.udp("server", 9004) as other:
            senders = flood(lab, count)
            poll(lambda: path.exists() and path.stat().st_size > 100_000, 10, "the log to grow")
            path.rename(path.with_name("moved.json"))
            os.kill(firewall.pid, signal.SIGUSR1)
            senders.wait(60)
            other.close()
        poll(lambda: not ask(firewall, "show session all", filter={"destination-port": "9003"}), 20, "all to end")
        poll(lambda: len(written(path)) >= 2 * count, 10, "every record")
        found = written(path)
        hear(firewall, "the logs are opened anew")
    assert path.with_name("traffic.json.1").exists()
    assert len(found) == len(set(found)) == 2 * count


def written(path: Path) -> list[tuple[int, str]]:
    """(source port, event) of every record in every file; a torn one would not parse."""
    found = []
    for file in [*path.parent.glob("traffic.json*"), path.with_name("moved.json")]:
        *lines, rest = file.read_text().split("\n")
        assert rest == ""
        found += [(each["sport"], each["event"]) for each in map(json.loads, lines) if each["dport"] == 9003]
    return found


def flood(lab: Lab, count: int) -> subprocess.Popen[bytes]:
    """One datagram from each of `count` ports."""
    code = (
        "import socket\n"
        f"for number in range(20000, 20000 + {count}):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        sock.bind(('0.0.0.0', number))\n"
        f"        sock.sendto(b'x', ('{SERVER}', 9003))\n"
    )
    return lab.popen("client", ["python3", "-c", code])


def test_the_log_is_read_back_by_the_command(lab: Lab, control: Control) -> None:
    """Newest first, filtered, as text and as JSON."""
    with lab.firewall(config()) as firewall:
        sent = traffic(lab, firewall, control)
        found = firewall.json("show", "log", "traffic", "filter", "src", f"{CLIENT}/24", "event", "end")
        assert {each["dport"] for each in found} == {9001}
        assert found[0] == record(firewall, event="end", dport=9001)
        everything = firewall.json("show", "log", "traffic", "last", "100")
        assert everything == firewall.traffic_log()[::-1]
        assert ids(firewall.directory / "log" / "traffic.json", sport=str(sent.sports["v6"]))
        shown = firewall.cli("show", "log", "traffic", "filter", "dport", str(DENIED))
        assert "no, never" in shown.stdout
        assert "ready" in firewall.cli("show", "log", "system").stdout
        assert firewall.cli("show", "log", "traffic", "filter", "nonsense", "1").returncode == 2
        (row,) = [row for row in firewall.json("show", "log", "status") if row["sink"] == "traffic.json"]
        assert (row["state"], row["lost"]) == ("up", 0)
