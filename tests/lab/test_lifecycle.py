"""From start to stop and everything that may go wrong between them: what the daemon takes from the host it gives back,
and at no moment does a packet cross that nobody has looked at.

The footprint is read before the daemon and after it and compared line by line (firewall.py); to it this file adds
routes and proxy entries.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netfilterqueue import NetfilterQueue
from scapy.layers.inet import IP, UDP

from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import CLIENT, OUT0, SERVER, Lab, poll
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, arrives, config, drain

POOL_FIRST, POOL = "10.2.0.100", "10.2.0.100-10.2.0.103"
POOL6 = "fd00:2::100"
INTERRUPTED = 130  # before the daemon catches signals: the interpreter's answer to a Ctrl-C
STRANGE = {  # what an operator might have set, each different from what the firewall needs
    "ipv4/ip_forward": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv4/conf/all/send_redirects": "1",
    "ipv4/conf/in0/send_redirects": "1",
    "ipv4/conf/in0/rp_filter": "1",
    "ipv4/conf/out0/rp_filter": "2",
    "ipv4/conf/out0/accept_local": "0",
    "ipv6/neigh/out0/proxy_delay": "80",
}


def with_pool() -> dict[str, Any]:
    """Source translation to addresses of out0's subnet that are nobody's, so that the firewall answers for them."""
    made = config(SHORT_TIMEOUTS)
    made["nat-rules"][0]["source-translation"] = {"type": "dynamic-ip-and-port", "addresses": [POOL]}
    v6 = {"type": "dynamic-ip-and-port", "addresses": [POOL6]}
    made["nat-rules"].append(
        {**made["nat-rules"][0], "name": "lan-snat6", "nat-type": "ipv6", "source": ["any"], "source-translation": v6}
    )
    return made


def routes(lab: Lab) -> str:
    """Every route, rule and proxy entry of the firewall's namespace."""
    commands = "ip route show table all; ip -6 route show table all; ip neigh show proxy; ip -6 neigh show proxy"
    return lab.run("firewall", ["sh", "-c", commands], check=True).stdout


@contextmanager
def nothing_left(lab: Lab, firewall: Firewall) -> Iterator[None]:
    """Routes and proxy entries are after the daemon what they were before it, and its runtime directory is empty."""
    before = routes(lab)
    yield
    assert routes(lab) == before
    assert list((firewall.directory / "runtime").iterdir()) == []


def interrupt(firewall: Firewall, number: signal.Signals) -> int:
    """The exit code that the signal leads to."""
    os.kill(firewall.pid, number)
    return firewall._daemon.wait(10)


def ip(lab: Lab, *words: str) -> None:
    lab.run("firewall", ["ip", *words], check=True)


def run_in_vain(lab: Lab, firewall: Firewall, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """`dataplane run` with the firewall's configuration, which is expected to end at once by itself."""
    directories = [f"--{kind}-dir={firewall.directory / kind}" for kind in ("runtime", "log", "state")]
    command = lab.command("firewall", [*wrapper, *PROGRAM, "run", f"--config={firewall.config}", *directories])
    return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)


# Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_gives_back_everything(lab, number):
    """Rules, settings, routes, answers for pool addresses, socket and pid file: all as before, byte for byte."""
    lab.sysctl("firewall", STRANGE)
    controls, firewall = Controls(lab), Firewall(lab, with_pool())
    with nothing_left(lab, firewall):
        firewall.start()
        assert POOL_FIRST in routes(lab)
        assert POOL6 in routes(lab)
        controls.assert_pass()
        established = Established(lab)
        assert interrupt(firewall, number) == 0
        firewall.assert_nothing_left()
    established.close()
    assert json.loads((firewall.directory / "log" / "traffic.json").read_text().splitlines()[-1])["event"] == "end"


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "python"])
def test_a_stop_in_the_middle_of_traffic(lab, cache):
    """Packets that still wait for a verdict, of a worker or of Python, do not keep the daemon."""
    lab.udp("server", 9)
    settings = config(SHORT_TIMEOUTS)
    settings["settings"]["dispatch-cache"] = cache
    firewall = Firewall(lab, settings)
    with nothing_left(lab, firewall):
        firewall.start()
        with flood(lab):
            poll(lambda: firewall.counter("session_installed") > 1000, 5, "traffic")
            firewall.stop()


@pytest.mark.parametrize("moment", [0.1, 0.25, 0.35, 0.45, 0.55])
def test_a_ctrl_c_during_the_start(lab, moment):
    """It reaches the programs too that the daemon has started; whatever had been installed by then is gone."""
    firewall = Firewall(lab, with_pool())
    (firewall.directory / "runtime").mkdir()
    with nothing_left(lab, firewall):
        before = firewall.footprint()
        directories = [f"--{kind}-dir={firewall.directory / kind}" for kind in ("runtime", "log", "state")]
        command = [*PROGRAM, "run", f"--config={firewall.config}", *directories]
        daemon = lab.popen("firewall", command, cwd=ROOT, start_new_session=True)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(moment)
        os.killpg(daemon.pid, signal.SIGINT)
        assert daemon.wait(10) in (0, INTERRUPTED, -signal.SIGINT)
        assert firewall.footprint() == before


def test_a_stop_after_the_interfaces_changed(lab):
    """Links went down and up, came, were renamed and vanished, addresses changed: what is left is as it was."""
    lab.sysctl("firewall", STRANGE)
    settings = with_pool()
    settings["zones"].append({"name": "dmz", "interfaces": ["dmz0"]})
    firewall = Firewall(lab, settings)
    before = firewall.footprint(), routes(lab)
    firewall.start()
    ip(lab, "link", "add", "dmz0", "type", "veth", "peer", "name", "dmz1")
    ip(lab, "link", "set", "dmz0", "up")
    poll(lambda: sysctl(lab, "ipv4/conf/dmz0/accept_local") == "1", 3, "the new interface to be set")
    ours = f"local {POOL_FIRST} dev out0 table local proto 143"
    ip(lab, "address", "add", f"{POOL_FIRST}/24", "dev", "out0")
    poll(lambda: ours not in routes(lab), 3, "an answer to be given up")
    ip(lab, "address", "delete", f"{POOL_FIRST}/24", "dev", "out0")
    poll(lambda: ours in routes(lab), 3, "the answer to come back")
    ip(lab, "link", "delete", "dmz0")
    firewall.stop()
    assert (firewall.footprint(), routes(lab)) == before


def test_an_interface_that_was_renamed_gets_its_settings_back(lab):
    """They belong to the interface and not to its name."""
    lab.sysctl("firewall", STRANGE)
    firewall = Firewall(lab, config(SHORT_TIMEOUTS))
    before = sysctls_of(lab, "in0")
    firewall.start()
    assert sysctls_of(lab, "in0") != before
    for words in (["down"], ["name", "inside0"], ["up"]):
        ip(lab, "link", "set", "in0" if words != ["up"] else "inside0", *words)
    assert interrupt(firewall, signal.SIGTERM) == 0
    assert sysctls_of(lab, "inside0") == before


def sysctl(lab: Lab, path: str) -> str:
    with lab.inside("firewall"):
        return Path("/proc/sys/net", path).read_text().strip()


def sysctls_of(lab: Lab, interface: str) -> dict[str, str]:
    """Every setting of an interface that may be read, by its path with the name left out."""
    settings = f"grep -Hs . /proc/sys/net/*/*/{interface}/*"
    lines = lab.run("firewall", ["sh", "-c", settings]).stdout.replace(f"/{interface}/", "/*/").splitlines()
    return dict(line.split(":", 1) for line in lines)


@contextmanager
def flood(lab: Lab) -> Iterator[None]:
    """New flows from the client without a pause."""
    over = threading.Event()
    packets = [bytes(IP(src=CLIENT, dst=SERVER) / UDP(sport=port, dport=9) / b"flood") for port in range(1024, 3024)]

    def pour() -> None:
        while not over.is_set():
            lab.inject("client", *packets)

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# Start


def test_nothing_crosses_unseen_between_start_and_stop(lab):
    """Where nothing was forwarded before, every packet that ever arrives has been translated: at no moment before, at
    or after the start and the stop did one slip through."""
    lab.sysctl("firewall", {"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"})
    lab.udp("server", 9)
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    with (
        lab.capture("server", "eth0", f"ip src {CLIENT}") as unseen,
        lab.capture("server", "eth0", f"ip src {OUT0}") as seen,
    ):
        with flood(lab):
            firewall.start()
            seen.wait(100, 5)
            firewall.stop()
        controls.assert_shut()
    assert unseen.frames() == []


def test_ready_is_said_when_all_is_in_place(lab, monkeypatch):
    """systemd hears READY=1 when the socket answers and packets cross, and STOPPING=1 before they no longer do."""
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(lab.directory / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(lab.directory / "notify"))
        starting = threading.Thread(target=firewall.start)
        starting.start()
        assert systemd.recv(100) == b"READY=1"
        assert firewall.cli("show", "session", "info").returncode == 0
        controls.assert_pass()
        starting.join()
        firewall.stop()
        assert [systemd.recv(100)] == [b"STOPPING=1"]
        assert drain(systemd) == []


def test_an_abstract_notify_socket(lab, monkeypatch):
    """An address that begins with @ is in the abstract name space."""
    firewall = Firewall(lab, config())
    with lab.inside("firewall"):
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with systemd:
        systemd.bind(f"\0{lab.directory}")
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{lab.directory}")
        firewall.start()
        assert systemd.recv(100) == b"READY=1"
        firewall.stop()


OTHERS = (
    "iptables -t mangle -A PREROUTING -p tcp --dport 9999 -j MARK --set-mark 7",
    "iptables -t raw -A PREROUTING -i lo -j ACCEPT",
    "iptables -A FORWARD -p udp --dport 9998 -j DROP",
    "ip6tables -t mangle -N DATA && ip6tables -t mangle -A OUTPUT -j DATA",
    "nft add table inet others",
    "nft add chain inet others in '{ type filter hook prerouting priority -150; }'",
    "nft add rule inet others in tcp dport 9997 drop",
)


def test_other_peoples_rules_are_left_alone(lab):
    """Those that were there keep their order and go on working; those that come meanwhile stay when we go."""
    for rule in OTHERS[:4]:
        lab.run("firewall", ["sh", "-c", rule], check=True)
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    firewall.start()
    for rule in OTHERS[4:]:
        lab.run("firewall", ["sh", "-c", rule], check=True)
    listed = others(firewall)
    controls.assert_pass()
    dropped, passed = lab.udp("server", 9998), lab.udp("server", 9996)
    client = lab.udp("client")
    assert not arrives(client, dropped, 0.2)
    assert arrives(client, passed)
    assert interrupt(firewall, signal.SIGTERM) == 0
    assert others(firewall) == listed


def others(firewall: Firewall) -> list[str]:
    """The rules that are not ours, in their order, without counters and what iptables shows of an empty table."""
    kept = ("dport", "DATA ", "-i lo", "others", "hook prerouting priority -150")
    rules = [line for text in firewall.footprint().values() for line in text.splitlines()]
    rules = [re.sub(r"counter packets \d+ bytes \d+ ", "", line) for line in rules if "DATAPLANE" not in line]
    return [line for line in rules if any(word in line for word in kept)]


def test_conntrack_in_the_namespace_disturbs_nobody(lab):
    """A rule that asks conntrack makes it look at every packet; it neither sees our flows nor calls them invalid."""
    for rule in ("INVALID -j DROP", "NEW,ESTABLISHED -j ACCEPT"):
        lab.run("firewall", ["sh", "-c", f"iptables -A FORWARD -m conntrack --ctstate {rule}"], check=True)
    controls = Controls(lab)
    with lab.firewall(config(SHORT_TIMEOUTS)):
        controls.assert_pass()
        Established(lab).exchange()
        counted = lab.run("firewall", ["conntrack", "-C"], check=True).stdout
    assert int(counted) == 0


# Death


def test_after_a_kill_nothing_crosses(lab):
    """Fail-closed: no process is left, and neither old nor new flows get through until the next start."""
    controls, firewall = Controls(lab), Firewall(lab, with_pool())
    firewall.start()
    controls.assert_pass()
    established = Established(lab)
    with flood(lab):
        poll(lambda: firewall.counter("session_installed") > 100, 5, "traffic")
        pids = lab.pids("firewall")
        firewall.kill()
    assert firewall.pid in pids
    assert lab.pids("firewall") == set()
    controls.assert_shut()
    assert not arrives(established.datagrams, established.answers, 0.3)
    firewall.start()
    controls.assert_pass()
    firewall.stop()


def test_a_killed_daemon_that_fails_open_lets_everything_pass(lab):
    """Asked for by the operator: a dead firewall is then plain forwarding, before and after the next start."""
    settings = config(SHORT_TIMEOUTS)
    settings["settings"]["queue"] = {"fail-open": True}
    controls, firewall = Controls(lab), Firewall(lab, settings)
    firewall.start()
    controls.assert_pass()
    firewall.kill()
    controls.assert_pass()
    with lab.capture("server", "eth0", "tcp") as capture:
        controls.assert_pass()
        assert {frame.source for frame in capture.received()} == {CLIENT}
    firewall.start()
    controls.assert_pass()
    firewall.stop()


def test_the_successor_gives_back_what_the_dead_one_took(lab):
    """Settings and answers of a daemon that was killed twice are restored to what they were before the first."""
    lab.sysctl("firewall", STRANGE)
    controls, firewall = Controls(lab), Firewall(lab, with_pool())
    before = routes(lab)
    for _ in range(2):
        firewall.start()
        controls.assert_pass()
        firewall.kill()
    assert POOL_FIRST in routes(lab)
    firewall.config = firewall.write_config(config(SHORT_TIMEOUTS))
    firewall.start()
    assert not {POOL_FIRST, POOL6} & set(routes(lab).split())
    controls.assert_pass()
    firewall.stop()
    assert routes(lab) == before


def test_the_successor_may_use_other_queues(lab):
    """The dead one's rules are replaced whole: none leads to a queue that nobody reads."""
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    firewall.start()
    firewall.kill()
    settings = config(SHORT_TIMEOUTS)
    settings["settings"]["queue"] = {"first": 40, "workers": 1}
    firewall.config = firewall.write_config(settings)
    firewall.start()
    controls.assert_pass()
    firewall.stop()


def test_a_successor_that_cannot_start_leaves_the_door_shut(lab):
    """Its queues are taken: it says so and ends, and the dead one's rules still drop everything."""
    controls, firewall = Controls(lab), Firewall(lab, config(SHORT_TIMEOUTS))
    firewall.start()
    firewall.kill()
    with queue_reader(lab, 1):
        failed = run_in_vain(lab, firewall)
        assert failed.returncode == 1
        assert "NFQUEUE 1" in failed.stderr
        assert "Traceback" not in failed.stderr
        controls.assert_shut()
    firewall.start()
    controls.assert_pass()
    firewall.stop()


@contextmanager
def queue_reader(lab: Lab, number: int) -> Iterator[None]:
    """Another program that reads the queue."""
    with lab.inside("firewall"):
        reader = NetfilterQueue()
        reader.bind(number, lambda packet: packet.drop())
    try:
        yield
    finally:
        reader.unbind()


# Refusing to start


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_queue_that_is_taken(lab, number):
    """The error names the queue; nothing is left behind."""
    firewall = Firewall(lab, config())
    before = firewall.footprint()
    with queue_reader(lab, number):
        failed = run_in_vain(lab, firewall)
    assert failed.returncode == 1
    assert f"NFQUEUE {number}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert firewall.footprint() == before


def test_without_rights(lab):
    """root without capabilities is told what it may not do."""
    firewall = Firewall(lab, config())
    before = firewall.footprint()
    failed = run_in_vain(lab, firewall, "setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert failed.returncode == 1
    assert "permi" in failed.stderr.lower()
    assert "Traceback" not in failed.stderr
    assert firewall.footprint() == before


def test_a_second_daemon_does_not_touch_the_first(lab):
    """Neither on the same runtime directory, nor on another one with queues that overlap."""
    controls = Controls(lab)
    settings = config(SHORT_TIMEOUTS)
    settings["settings"]["queue"] = {"first": 1, "workers": 2}
    with lab.firewall(config(SHORT_TIMEOUTS)) as first, controls.unharmed(first):
        second = run_in_vain(lab, first)
        assert second.returncode == 1
        assert str(first.pid) in second.stderr
        overlapping = run_in_vain(lab, Firewall(lab, settings))
        assert overlapping.returncode == 1
        assert "NFQUEUE 1" in overlapping.stderr
        with lab.capture("server", "eth0", f"src {CLIENT}") as unseen:
            controls.assert_pass()
            assert unseen.frames() == []


def test_a_wrong_configuration_is_refused_whole(lab):
    """Exit code 3, every mistake with its line and path, and the host is untouched."""
    settings = config()
    settings["security-rules"][1]["source"] = ["nowhere"]
    settings["nat-rules"][0]["to"] = "heaven"
    settings["zones"][0]["colour"] = "blue"
    settings["settings"]["session"]["max-sessions"] = -1
    firewall = Firewall(lab, settings)
    before = firewall.footprint()
    failed = run_in_vain(lab, firewall)
    assert failed.returncode == 3
    for path in ("security-rules[1].source", "nat-rules[0].to", "zones[0].colour", "settings.session.max-sessions"):
        assert f": {path}: " in failed.stderr
    assert failed.stderr.count(str(firewall.config)) == 4
    assert firewall.footprint() == before
    assert not (firewall.directory / "runtime").exists()


def test_a_missing_configuration(lab):
    """Exit code 3, as for a wrong one."""
    firewall = Firewall(lab, Path("/nonexistent/firewall.yaml"))
    failed = run_in_vain(lab, firewall)
    assert failed.returncode == 3
    assert "/nonexistent/firewall.yaml" in failed.stderr


# Interfaces, addresses and routes that change


class TestChanges:
    """One daemon whose zones have interfaces that are not there yet.

         firewall                                server
    late0 10.4.0.1/24 (untrust) ---------- late0 10.4.0.2/24
    dmz0  10.5.0.1/24 (dmz)     ---------- dmz0  10.5.0.2/24        192.0.2.1 on lo
    """

    LINKS = (("late0", "10.4.0"), ("dmz0", "10.5.0"))
    INNER = "192.0.2.1"

    @pytest.fixture(scope="class")
    @classmethod
    def lab(cls) -> Iterator[Lab]:
        with Lab() as made:
            made.run("server", ["ip", "address", "add", f"{cls.INNER}/32", "dev", "lo"], check=True)
            yield made

    @pytest.fixture(scope="class")
    @classmethod
    def controls(cls, lab: Lab) -> Controls:
        return Controls(lab)

    @pytest.fixture(scope="class")
    @classmethod
    def firewall(cls, lab: Lab) -> Iterator[Firewall]:
        settings = config(SHORT_TIMEOUTS)
        settings["zones"][1]["interfaces"].append("late0")
        settings["zones"].append({"name": "dmz", "interfaces": ["dmz0"]})
        settings["security-rules"][1]["to"] = ["untrust", "dmz"]
        made = Firewall(lab, settings)
        made.start()
        yield made
        for name, _ in cls.LINKS:
            lab.run("firewall", ["ip", "link", "delete", name])
        lab.run("firewall", ["ip", "route", "flush", cls.INNER])
        assert interrupt(made, signal.SIGTERM) == 0

    @pytest.fixture
    def links(self, lab: Lab, firewall: Firewall) -> Iterator[None]:
        """Both new links, and a route to INNER over out0."""
        for name, net in self.LINKS:
            self.add_link(lab, name, net)
        ip(lab, "route", "replace", self.INNER, "via", SERVER)
        poll(lambda: self.reaches(lab, self.INNER), 3, "the route to be seen")
        yield
        for name, _ in self.LINKS:
            ip(lab, "link", "delete", name)

    @staticmethod
    def add_link(lab: Lab, name: str, net: str) -> None:
        peer = ["peer", "name", name, "netns", lab.names["server"]]
        lab.run("firewall", ["ip", "link", "add", name, "type", "veth", *peer], check=True)
        for ns, host in (("firewall", 1), ("server", 2)):
            lab.run(ns, ["ip", "address", "add", f"{net}.{host}/24", "dev", name], check=True)
            lab.run(ns, ["ip", "link", "set", name, "up"], check=True)
        if name == "dmz0":
            lab.run("server", ["ip", "route", "add", "10.1.0.0/24", "via", f"{net}.1"], check=True)

    @staticmethod
    def reaches(lab: Lab, address: str) -> bool:
        return lab.run("client", ["ping", "-n", "-c", "1", "-W", "0.3", address]).returncode == 0

    def test_an_interface_that_comes_later(self, lab, firewall, controls):
        """It belongs to its zone from the moment it is there; so does another one of its name after it."""
        for _ in range(2):
            with controls.unharmed(firewall):
                self.add_link(lab, "dmz0", "10.5.0")
                poll(lambda: self.reaches(lab, "10.5.0.2"), 5, "the new zone to be reached")
                ip(lab, "link", "delete", "dmz0")
                assert not self.reaches(lab, "10.5.0.2")

    def test_an_interface_that_goes_down_and_up(self, lab, firewall, controls):
        """Sessions over it outlive it."""
        with controls.unharmed(firewall):
            established = Established(lab)
            ip(lab, "link", "set", "out0", "down")
            assert not self.reaches(lab, SERVER)
            ip(lab, "link", "set", "out0", "up")
            poll(lambda: self.reaches(lab, SERVER), 5, "the link to come back")
            established.exchange()
            established.close()

    def test_an_interface_that_loses_its_name(self, lab, firewall, controls):
        """Under another name it is in no zone, and nothing crosses; with its name it has its zone back."""
        with controls.unharmed(firewall):
            self.rename(lab, "in0", "other0")
            poll(lambda: not self.reaches(lab, SERVER), 3, "the zone to go")
            controls.assert_shut()
            self.rename(lab, "other0", "in0")
            poll(lambda: self.reaches(lab, SERVER), 5, "the zone to come back")

    @staticmethod
    def rename(lab: Lab, old: str, new: str) -> None:
        ip(lab, "link", "set", old, "down")
        ip(lab, "link", "set", old, "name", new)
        ip(lab, "link", "set", new, "up")

    def test_an_address_that_changes(self, lab, firewall, controls):
        """Translation to an interface follows its address."""
        with controls.unharmed(firewall):
            self.change_address(lab, OUT0, "10.2.0.77")
            poll(lambda: self.seen_from(lab) == "10.2.0.77", 5, "the new address to be used")
            self.change_address(lab, "10.2.0.77", OUT0)
            poll(lambda: self.seen_from(lab) == OUT0, 5, "the old address to be used again")

    @staticmethod
    def change_address(lab: Lab, old: str, new: str) -> None:
        ip(lab, "address", "delete", f"{old}/24", "dev", "out0")
        ip(lab, "address", "add", f"{new}/24", "dev", "out0")

    @staticmethod
    def seen_from(lab: Lab) -> str:
        """The source address that a new flow has at the server, "" if it does not arrive."""
        with lab.udp("client") as client, lab.udp("server") as server:
            client.sendto(b"?", (SERVER, server.getsockname()[1]))
            server.settimeout(0.3)
            try:
                return str(server.recvfrom(100)[1][0])
            except TimeoutError:
                return ""

    def test_a_route_that_moves_within_its_zone(self, lab, firewall, controls, links):
        """Its sessions go on over the other interface."""
        with controls.unharmed(firewall):
            established = Established(lab, self.INNER)
            session = self.session_of(firewall, established)
            assert session["egress_interface"] == "out0"
            ip(lab, "route", "replace", self.INNER, "via", "10.4.0.2")
            poll(
                lambda: self.session_of(firewall, established)["egress_interface"] == "late0",
                3,
                "the session to follow",
            )
            established.exchange()
            assert self.session_of(firewall, established)["id"] == session["id"]
            established.close()

    def test_a_route_that_moves_to_another_zone(self, lab, firewall, controls, links):
        """Its sessions end, as the rule that allowed them was about the old zone; new ones are decided anew."""
        with controls.unharmed(firewall):
            established, before = Established(lab, self.INNER), firewall.counter("session_zonechange")
            ip(lab, "route", "replace", self.INNER, "via", "10.5.0.2")
            poll(lambda: firewall.counter("session_zonechange") >= before + 3, 3, "the sessions to end")
            established.server.settimeout(0.5)
            with pytest.raises(TimeoutError):
                established.exchange_stream()
            assert Established(lab, self.INNER).peer[0] == CLIENT  # no NAT rule leads to the dmz
            established.close()

    @staticmethod
    def session_of(firewall: Firewall, established: Established) -> dict[str, Any]:
        """The session of its stream."""
        (found,) = firewall.sessions(source_port=established.client.getsockname()[1], protocol=6)
        return found


def test_two_daemons_in_two_namespaces(lab):
    """Each has its rules, its queues of the same numbers and its runtime directory; one stops, the other goes on."""
    with Lab() as other, lab.firewall(config(SHORT_TIMEOUTS)) as one:
        here, there = Controls(lab), Controls(other)
        with here.unharmed(one):
            with other.firewall(config(SHORT_TIMEOUTS)):
                here.assert_pass()
                there.assert_pass()
            here.assert_pass()
