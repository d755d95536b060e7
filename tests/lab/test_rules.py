"""What is installed in the kernel does what it promises to packets, and leaves nothing of itself behind.

The hot queues are read by the test itself, so that it sees what a worker would see.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netfilterqueue import NetfilterQueue, Packet
from pyroute2 import IPRoute

from dataplane.errors import DataplaneError
from dataplane.routes import Link, address_from_text, read_links
from dataplane.rules import MARK_OWN, Hooks
from dataplane.rules.answering import Answering
from dataplane.rules.iptables import Iptables
from dataplane.rules.nftables import Nftables, queue_statement, ruleset
from dataplane.rules.probe import candidates, find_backend, remove_leavings
from dataplane.rules.sysctls import Sysctls
from tests.lab.lab import CLIENT, IN0, IN06, MACS, OUT0, OUT06, SERVER, SERVER6, Lab, poll

# ppp9 does not exist: rules for an interface that comes later are fine.
ZONES = ("in0", "out0", "ppp9")
CLOSED = Hooks(ZONES, first_queue=10, workers=2, slow_queue=12, fail_open=False)
OPEN = Hooks(ZONES, first_queue=10, workers=2, slow_queue=12, fail_open=True)
KINDS = [backend.name for backend in Iptables.variants()]
SO_MARK = 36
LISTINGS = (["iptables-save"], ["ip6tables-save"], ["nft", "list", "ruleset"])


@pytest.fixture(params=KINDS)
def iptables(request) -> Iptables:
    """Each kind of iptables that this host has."""
    return next(backend for backend in Iptables.variants() if backend.name == request.param)


def listing(lab: Lab) -> list[str]:
    """Every rule of every family; without comments, which carry the time."""
    lines = [line for argv in LISTINGS for line in lab.run("firewall", argv, check=True).stdout.splitlines()]
    return [line for line in lines if not line.startswith("#")]


def saved(lab: Lab, backend: Iptables, tool: str = "iptables") -> list[str]:
    suffix = "legacy" if "legacy" in backend.name else "nft"
    return lab.run("firewall", [f"{tool}-{suffix}-save"], check=True).stdout.splitlines()


class Queues:
    """Reads the hot queues of the firewall's namespace, keeps what came and accepts it."""

    def __init__(self, lab: Lab, hooks: Hooks) -> None:
        self.packets: list[bytes] = []
        self._queues = [NetfilterQueue() for _ in range(hooks.workers)]
        for number, queue in enumerate(self._queues, hooks.first_queue):
            queue.bind(number, self._take, range=4096)

    def saw(self, predicate: Callable[[bytes], bool]) -> bool:
        for queue in self._queues:
            queue.run(block=False)
        return any(map(predicate, self.packets))

    def close(self) -> None:
        for queue in self._queues:
            queue.unbind()

    def _take(self, packet: Packet) -> None:
        self.packets.append(packet.get_payload())
        packet.accept()


@contextmanager
def queues(lab: Lab, hooks: Hooks = CLOSED) -> Iterator[Queues]:
    with lab.inside("firewall"):
        readers = Queues(lab, hooks)
    try:
        yield readers
    finally:
        readers.close()


def crosses(source: socket.socket, to: tuple[str, int], server: socket.socket) -> bool:
    """Send one datagram; False if it has not arrived half a second later."""
    source.sendto(b"?", to)
    server.settimeout(0.5)
    try:
        server.recv(100)
    except TimeoutError:
        return False
    return True


# Finding a back end


def test_probe_finds_what_works_and_leaves_nothing(lab):
    """The probe asks the kernel and cleans up after itself."""
    before = listing(lab)
    with lab.inside("firewall"):
        backend = find_backend()
        backend.install(CLOSED)
        assert backend.installed()
        backend.remove()
        assert not backend.installed()
    assert listing(lab) == before


def test_probe_names_what_is_missing(lab, monkeypatch):
    """An operator reads which tool or expression each back end lacks."""
    monkeypatch.setattr("dataplane.rules.nftables.CHECK", "add rule inet nowhere nothing accept\n")
    monkeypatch.setattr("dataplane.rules.iptables.CHECK", "*mangle\n-A DATAPLANE-CHECK -j NOSUCHTARGET\nCOMMIT\n")
    with lab.inside("firewall"), pytest.raises(DataplaneError, match=r"nftables: .*; iptables \(.*NOSUCHTARGET"):
        find_backend()


def test_probing_leaves_a_dead_predecessors_rules_in_force(lab):
    """Until the new rules are in, the old ones keep the door shut."""
    with lab.inside("firewall"):
        backend = find_backend()
        backend.install(CLOSED)
        find_backend()
        assert backend.installed()


def test_leavings_of_another_back_end_are_removed(lab, iptables):
    """Two sets of rules would queue each packet twice."""
    before = listing(lab)
    with lab.inside("firewall"):
        iptables.install(CLOSED)
        other = next(backend for backend in candidates() if backend.name != iptables.name)
        remove_leavings(keep=other)
        assert not iptables.installed()
    if "legacy" not in iptables.name:  # the legacy kernel keeps a table that was once asked for
        assert listing(lab) == before
    assert not [line for line in saved(lab, iptables) if "DATAPLANE" in line]


# The rules


@pytest.mark.parametrize("name", ["eth+", "a b", "in0\nCOMMIT", 'x"y', "", "sixteencharacter"])
def test_an_interface_name_that_would_be_syntax_is_refused(name):
    """No configuration can smuggle a pattern or a line into the rules."""
    with pytest.raises(DataplaneError, match="interface named"):
        Hooks((name,), 0, 2, 2, False)


def test_rules_come_first_and_go_without_touching_others(lab, iptables):
    """Installed twice they stand once, before the rules of others, which survive the removal."""
    suffix = "legacy" if "legacy" in iptables.name else "nft"
    for tool in (f"iptables-{suffix}", f"ip6tables-{suffix}"):
        for hook in ("PREROUTING", "OUTPUT"):
            lab.run("firewall", [tool, "-t", "mangle", "-A", hook, "-j", "MARK", "--set-mark", "0x1"], check=True)
            lab.run("firewall", [tool, "-t", "raw", "-A", hook, "-j", "ACCEPT"], check=True)
    before = [line for tool in ("iptables", "ip6tables") for line in saved(lab, iptables, tool) if line[0] in "-*"]
    with lab.inside("firewall"):
        iptables.install(OPEN)
        iptables.install(CLOSED)
        assert iptables.installed()
    for tool in ("iptables", "ip6tables"):
        rows = saved(lab, iptables, tool)
        mangle = rows[rows.index("*mangle") :]
        mangle = mangle[: mangle.index("COMMIT")]
        for hook in ("PREROUTING", "OUTPUT"):
            first, others, *more = [row for row in mangle if row.startswith(f"-A {hook} ")]
            assert (first, more) == (f"-A {hook} -j DATAPLANE-{hook}", [])
            assert "MARK" in others
        assert "-A DATAPLANE-PREROUTING -i ppp9 -j NFQUEUE --queue-balance 10:11" in mangle
        assert not [row for row in rows if "bypass" in row]
        assert "-A DATAPLANE-PREROUTING -i in0 -j CT --notrack" in rows
    with lab.inside("firewall"):
        iptables.remove()
        iptables.remove()
        assert not iptables.installed()
    after = [line for tool in ("iptables", "ip6tables") for line in saved(lab, iptables, tool) if line[0] in "-*"]
    assert after == before


def test_one_worker_has_one_queue(lab, iptables):
    """A balance over one queue is not valid; its number is."""
    with lab.inside("firewall"):
        iptables.install(Hooks(("in0",), 3, 1, 4, True))
    assert "-A DATAPLANE-PREROUTING -i in0 -j NFQUEUE --queue-num 3 --queue-bypass" in saved(lab, iptables)
    assert queue_statement(Hooks(("in0",), 3, 1, 4, True)) == "queue num 3 bypass"


def test_without_a_reader_closed_drops_and_open_passes(lab, iptables):
    """What a killed daemon leaves decides by itself whether traffic crosses."""
    server, client = lab.udp("server", 5000), lab.udp("client")
    assert crosses(client, (SERVER, 5000), server)
    with lab.inside("firewall"):
        iptables.install(CLOSED)
    assert not crosses(client, (SERVER, 5000), server)
    with lab.inside("firewall"):
        iptables.install(OPEN)
    assert crosses(client, (SERVER, 5000), server)


def test_own_marked_packets_are_not_queued(lab, iptables):
    """What the daemon sends itself leaves without asking; what others send from the firewall does not."""
    server, own = lab.udp("server", 5000), lab.udp("firewall")
    with lab.inside("firewall"):
        iptables.install(CLOSED)
    assert not crosses(own, (SERVER, 5000), server)
    own.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_OWN | 1)
    assert crosses(own, (SERVER, 5000), server)


def test_icmp_errors_of_the_kernel_are_queued_even_on_loopback(lab, iptables):
    """An error about a translated packet goes to our own address, hence through lo (design fact 3)."""
    with lab.inside("firewall"):
        iptables.install(CLOSED)
    with queues(lab) as reader:

        def is_told(own: str, other: str, is_error: Callable[[bytes], bool]) -> bool:
            """Asked until it is true: the kernel limits how many errors it makes in a second, over all namespaces."""
            lab.udp("firewall", 0, own).sendto(b"nobody listens", (other, 9))
            return reader.saw(is_error)

        poll(lambda: is_told(IN0, OUT0, lambda packet: packet[0] >> 4 == 4 and packet[9] == 1), 3, "v4")
        poll(lambda: is_told(IN06, OUT06, lambda packet: packet[0] >> 4 == 6 and packet[40] == 1), 3, "v6")
    own = [packet for packet in reader.packets if not is_multicast(packet)]  # reports of who listens to what
    assert all(packet[9 if packet[0] >> 4 == 4 else 6] in (1, 58) for packet in own)


def is_multicast(packet: bytes) -> bool:
    """By its destination."""
    return packet[16] >> 4 == 0xE if packet[0] >> 4 == 4 else packet[24] == 0xFF


def send_fragmented(lab: Lab) -> None:
    """A datagram of 3,000 bytes in either family, which the client's MTU of 1,500 cuts."""
    lab.udp("client", 0).sendto(bytes(3000), (SERVER, 5000))
    lab.udp("client", 0, "::").sendto(bytes(3000), (SERVER6, 5000))


def is_fragment(packet: bytes) -> bool:
    """More fragments or an offset in IPv4, a fragment header in IPv6."""
    if packet[0] >> 4 == 4:
        return bool(int.from_bytes(packet[6:8]) & 0x3FFF)
    return packet[6] == 44


def test_control_without_defragmentation_fragments_are_queued(lab):
    """Queueing alone reassembles nothing: what the next test sees is the work of the rules."""
    for tool in ("iptables", "ip6tables"):
        rule = ["-A", "PREROUTING", "-i", "in0", "-j", "NFQUEUE", "--queue-num", "10"]
        lab.run("firewall", [tool, "-t", "mangle", *rule], check=True)
    with queues(lab) as reader:
        send_fragmented(lab)
        for version in (4, 6):
            poll(lambda: reader.saw(lambda packet: packet[0] >> 4 == version and is_fragment(packet)), 3, "a fragment")  # noqa: B023 - polled at once
    assert all(len(packet) <= 1500 for packet in reader.packets)


def test_fragments_are_queued_whole_and_connections_are_not_tracked(lab, iptables):
    """Defragmentation is on in both families, and conntrack is not, for anybody's traffic."""
    server = lab.udp("server", 5000)
    with lab.inside("firewall"):
        iptables.install(CLOSED)
    with queues(lab) as reader:
        send_fragmented(lab)
        poll(lambda: reader.saw(lambda packet: packet[0] >> 4 == 4 and len(packet) == 3028), 3, "a whole IPv4 datagram")
        poll(lambda: reader.saw(lambda packet: packet[0] >> 4 == 6 and len(packet) == 3048), 3, "a whole IPv6 datagram")
        assert len(server.recv(4000)) == 3000
    assert not any(map(is_fragment, reader.packets))
    assert not tracked(lab)


def tracked(lab: Lab) -> str:
    """Connections the firewall's kernel follows after one of its own over lo, which no rule of ours exempts."""
    lab.run("firewall", ["ping", "-c", "1", "127.0.0.1"], check=True)
    return lab.run("firewall", ["cat", "/proc/net/nf_conntrack"], check=True).stdout


def test_where_others_track_connections_zone_traffic_is_exempt(lab, iptables):
    """Conntrack would call half-translated flows invalid; it keeps what is not ours."""
    rule = ["-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"]
    lab.run("firewall", ["iptables-nft", *rule], check=True)
    server, client = lab.udp("server", 5000), lab.udp("client")
    with lab.inside("firewall"):
        iptables.install(OPEN)
    assert crosses(client, (SERVER, 5000), server)
    entries = tracked(lab)
    assert "src=127.0.0.1" in entries
    assert CLIENT not in entries


# nft, on a kernel that need not have its queue expression


def test_nft_rules_without_the_queue_load_and_reassemble(lab):
    """The ruleset as it is, but for the queue statement: `accept` stands in its place where the kernel has none."""
    before = listing(lab)
    text = ruleset(CLOSED).replace(queue_statement(CLOSED), "accept")
    counter = (
        "table inet seen {\nchain seen {\ntype filter hook prerouting priority -140\nmeta length > 1500 counter\n}\n}\n"
    )
    for content in (text, text, counter):
        load(lab, content)
    server = lab.udp("server", 5000)
    send_fragmented(lab)
    assert len(server.recv(4000)) == 3000
    poll(
        lambda: "counter packets 2 " in lab.run("firewall", ["nft", "list", "table", "inet", "seen"]).stdout, 3, "both"
    )
    assert not tracked(lab)
    lab.run("firewall", ["nft", "delete", "table", "inet", "seen"], check=True)
    with lab.inside("firewall"):
        assert Nftables().installed()
        Nftables().remove()
        Nftables().remove()
        assert not Nftables().installed()
    assert listing(lab) == before


@pytest.mark.parametrize("hooks", [CLOSED, OPEN, Hooks((), 0, 1, 1, True), Hooks((), 0, 1, 1, False, ("vw0", "vw1"))])
def test_nft_understands_the_ruleset(lab, hooks):
    """At most the kernel may refuse, for lack of the queue expression; the text itself is sound."""
    done = subprocess.run(
        lab.command("firewall", ["nft", "-c", "-f", "-"]), input=ruleset(hooks), capture_output=True, text=True
    )
    assert "syntax" not in done.stderr
    assert done.returncode == 0 or "queue" in done.stderr


def load(lab: Lab, text: str) -> None:
    subprocess.run(lab.command("firewall", ["nft", "-f", "-"]), input=text, text=True, check=True)


# Sysctls


def settings() -> dict[str, bytes]:
    """Every readable setting of IPv4, IPv6 and their interfaces and neighbours in the current namespace."""
    values = {}
    for path in Path("/proc/sys/net").glob("ipv[46]/**/*"):
        try:
            values[str(path)] = path.read_bytes()
        except OSError:  # directories, and settings that cannot be read
            continue
    return values


def value(path: str) -> str:
    return Path("/proc/sys/net", path).read_text().strip()


def forbid_forwarding(lab: Lab) -> None:
    """A host that never forwarded, with settings of its own that switching forwarding on and off would lose."""
    lab.sysctl("firewall", {"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"})
    lab.sysctl("firewall", {"ipv4/conf/all/accept_redirects": "0", "ipv4/conf/in0/forwarding": "1"})
    lab.sysctl("firewall", {"ipv4/conf/all/send_redirects": "1", "ipv4/conf/out0/rp_filter": "1"})


def test_sysctls_are_set_and_restored_byte_for_byte(lab, tmp_path):
    """Also what the kernel changes by itself when forwarding is switched."""
    forbid_forwarding(lab)
    with lab.inside("firewall"):
        before = settings()
        sysctls = Sysctls(tmp_path)
        sysctls.apply(ZONES)
        assert [value(f"ipv4/{key}") for key in ("ip_forward", "conf/out0/accept_local", "conf/out0/rp_filter")] == [
            "1",
            "1",
            "0",
        ]
        assert value("ipv6/conf/out0/forwarding") == "1"
        sysctls.restore()
        assert settings() == before
    assert not list(tmp_path.iterdir())


def test_strict_filtering_of_the_host_becomes_loose_on_zone_interfaces(lab, tmp_path):
    """The kernel takes the larger of both values, so 0 on the interface would not be enough."""
    lab.sysctl("firewall", {"ipv4/conf/all/rp_filter": "1"})
    with lab.inside("firewall"):
        Sysctls(tmp_path).apply(ZONES)
        assert [value(f"ipv4/conf/{name}/rp_filter") for name in ("in0", "all")] == ["2", "1"]


def test_a_successor_restores_what_was_before_the_dead_daemon(lab, tmp_path):
    """The dead daemon's values stand in the kernel, the true ones in its file."""
    forbid_forwarding(lab)
    with lab.inside("firewall"):
        before = settings()
        Sysctls(tmp_path).apply(ZONES)
        successor = Sysctls(tmp_path)
        successor.apply(ZONES)
        successor.restore()
        assert settings() == before


def test_a_record_of_another_namespace_is_not_used(lab, tmp_path):
    """What one kernel state was says nothing about another."""
    with lab.inside("firewall"):
        Sysctls(tmp_path).apply(ZONES)
    with lab.inside("client"):
        before = settings()
        Sysctls(tmp_path).restore()
        assert settings() == before


def test_an_interface_may_vanish_before_the_restore(lab, tmp_path):
    """Its settings went with it."""
    forbid_forwarding(lab)
    with lab.inside("firewall"):
        sysctls = Sysctls(tmp_path)
        sysctls.apply(ZONES)
        subprocess.run(["ip", "link", "delete", "out0"], check=True)
        sysctls.restore()
        assert value("ipv4/ip_forward") == "0"


# Answering for NAT addresses

POOL, POOL6 = "10.2.0.50", "fd00:2::50"
ADDRESSES = [address_from_text(text) for text in (POOL, POOL6)]


def answered(lab: Lab, address: str) -> bool:
    """The server asks who has the address; True if the firewall's out0 says so."""
    lab.run("server", ["ping", "-c", "1", "-W", "1", address])
    neighbour = lab.run("server", ["ip", "neigh", "show", address]).stdout
    lab.run("server", ["ip", "neigh", "flush", "to", address])
    return MACS["firewall", "out0"] in neighbour


def links() -> tuple[Link, ...]:
    """Those of the current namespace."""
    with IPRoute() as netlink:
        return read_links(netlink)


def state(lab: Lab) -> list[str]:
    """All that may hold an answer: addresses, local routes, proxy entries."""
    queries = ("address", "route show table all", "-6 route show table all", "neigh show proxy", "-6 neigh show proxy")
    fields = ["ip", "-o"]
    return [lab.run("firewall", [*fields, *query.split()], check=True).stdout for query in queries]


def test_pool_addresses_are_answered_for_and_forgotten(lab, tmp_path):
    """ARP and ND reach the firewall as long as the pool exists, and the address never becomes the host's."""
    with lab.inside("firewall"):
        before, sysctls = state(lab), settings()
        answering = Answering(tmp_path)
        assert not answered(lab, POOL)
        answering.set(
            [*ADDRESSES, *map(address_from_text, (OUT0, OUT06, SERVER[:-1] + "55", "10.2.0.255", "192.0.2.7"))],
            links(),
        )
        assert [answered(lab, address) for address in (POOL, POOL6)] == [True, True]
        assert state(lab)[0] == before[0]
        answering.set(ADDRESSES[:1], links())
        assert [answered(lab, address) for address in (POOL, POOL6, "10.2.0.55")] == [True, False, False]
        answering.clear()
        assert not answered(lab, POOL)
        assert (state(lab), settings()) == (before, sysctls)
    assert not list(tmp_path.iterdir())


def test_a_successor_drops_what_its_predecessor_answered_for(lab, tmp_path):
    """A killed daemon's entries are found again in the runtime directory."""
    with lab.inside("firewall"):
        before, sysctls = state(lab), settings()
        Answering(tmp_path).set(ADDRESSES, links())
        Answering(tmp_path).set([address_from_text("10.2.0.60")], links())
        assert [answered(lab, address) for address in (POOL, POOL6, "10.2.0.60")] == [False, False, True]
        Answering(tmp_path).clear()
        assert (state(lab), settings()) == (before, sysctls)


def test_a_link_that_was_down_answers_again(lab, tmp_path):
    """The kernel takes the proxy entries of a link that goes down, but not always its addresses."""
    with lab.inside("firewall"):
        Path("/proc/sys/net/ipv6/conf/out0/keep_addr_on_down").write_text("1")
        answering = Answering(tmp_path)
        answering.set(ADDRESSES, links())
        for change in ("down", "up"):
            subprocess.run(["ip", "link", "set", "out0", change], check=True)
        assert f"{POOL6} dev out0" not in state(lab)[4]
        answering.set(ADDRESSES, links())
        assert [answered(lab, address) for address in (POOL, POOL6)] == [True, True]
        answering.clear()


def test_an_interface_may_vanish_while_it_answers(lab, tmp_path):
    """The kernel has dropped the entries already."""
    with lab.inside("firewall"):
        answering = Answering(tmp_path)
        answering.set(ADDRESSES, links())
        subprocess.run(["ip", "link", "delete", "out0"], check=True)
        answering.set(ADDRESSES, links())
        answering.clear()
