"""Three devices with one policy between the same phantoms, so that one recipe can be asked of each.

    ours      the daemon: source NAT on out0, nothing new comes in
    kernel    nftables: conntrack, masquerade, nothing new comes in
    plain     forwarding, which translates and forbids nothing: the control of every "must be dropped"

    client side                                  server side
      200, 201   appear as the interface           200 - 202
      202        of a pool of four                 100 - 103   the pool
      203        of a pool with four ports         110         ports 3000-3003
      208 - 211  for recipes that run beside the others, each with 208 - 211 of the server side
      everybody  as himself                        204         exempt

All of them are phantoms.  The link to the server is the narrow one.
"""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.lab.capture import Capture
from tests.lab.console import IN_ORDER, port, rule, zones
from tests.lab.lab import OUT0, Lab, poll

NAMES = ("ours", "kernel", "plain")
OTHER = {"client": "server", "server": "client"}
CONTROL = 7  # a UDP port that lets in whoever calls
NARROW = 1280  # MTU
MAIN, ASIDE = 200, range(208, 212)  # numbers of phantoms
PORTS = (3000, 3003)
QUERY_TIMEOUT = 2  # seconds that an ICMP query is remembered


def inside(number: int) -> str:
    return f"10.1.0.{number}"


def outside(number: int) -> str:
    return f"10.2.0.{number}"


NEIGHBOUR, POOLED, TINY = inside(201), inside(202), inside(203)
SECOND, THIRD, EXEMPT = outside(201), outside(202), outside(204)
POOL, FOUR_PORTS = (outside(100), outside(103)), outside(110)

_OUTWARD = {"from": ["trust"], "to": "untrust"}
_DYNAMIC = {"type": "dynamic-ip-and-port"}
CONFIG = {
    "zones": zones(),
    "services": {"control": port(CONTROL, "udp")},
    "security-rules": [
        rule("out", from_=["trust"], to=["untrust"]),
        rule("in", from_=["untrust"], to=["trust"], service=["control"]),
    ],
    "nat-rules": [
        {"name": "exempt", **_OUTWARD, "destination": [EXEMPT]},
        {
            "name": "pool",
            **_OUTWARD,
            "source": [POOLED],
            "source-translation": _DYNAMIC | {"addresses": ["-".join(POOL)]},
        },
        {
            "name": "tiny",
            **_OUTWARD,
            "source": [TINY],
            "source-translation": _DYNAMIC | {"addresses": [FOUR_PORTS], "port-range": "{}-{}".format(*PORTS)},
        },
        {"name": "rest", **_OUTWARD, "source-translation": _DYNAMIC | {"interface": "out0"}},
    ],
    # Whatever opens a session goes through one queue, so a control that was sent later arrives later.
    "settings": {"session": {"timeouts": {"icmp": QUERY_TIMEOUT}}, **IN_ORDER},
}

KERNEL = f"""table ip oracle {{
    chain forward {{
        type filter hook forward priority filter; policy drop
        ct state invalid drop
        ct state established,related accept
        iifname in0 accept
        udp dport {CONTROL} accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop
        ct state established,related accept
    }}
    chain out {{
        type nat hook postrouting priority srcnat
        ip daddr {EXEMPT} accept
        ip saddr {POOLED} snat to {POOL[0]}-{POOL[1]} persistent
        ip saddr {TINY} ip protocol udp snat to {FOUR_PORTS}:{PORTS[0]}-{PORTS[1]}
        oifname out0 masquerade
    }}
}}"""


@contextmanager
def device(name: str) -> Iterator[Lab]:
    """A lab with that device in the middle."""
    numbers = (*range(MAIN, MAIN + 5), *ASIDE)
    clients, servers = map(inside, numbers), map(outside, numbers)
    with Lab(client_phantoms=list(clients), server_phantoms=list(servers), mtu=(1500, NARROW)) as lab:
        if name == "ours":
            with lab.firewall(CONFIG):
                yield lab
            return
        if name == "kernel":
            lab.sysctl("firewall", {"netfilter/nf_conntrack_icmp_timeout": str(QUERY_TIMEOUT)})
            lab.run("firewall", ["nft", KERNEL], check=True)
        yield lab


class Way:
    """The way through one device between a phantom client and the phantom server of the same number.

    outside: whom the server must see.
    """

    def __init__(self, lab: Lab, name: str, number: int, ends: dict[str, Capture]) -> None:
        self.name, self.client, self.server = name, inside(number), outside(number)
        self.outside = self.client if name == "plain" else OUT0
        self._lab, self._ends = lab, ends
        self._ports = itertools.count(20000, 2)

    def port(self) -> int:
        """An even port of the client's that no recipe has used."""
        return next(self._ports)

    def cross(self, ns: str, *packets: Packet | bytes) -> list[Packet]:
        """Send at one end; what has come out at the other when a datagram that was sent later has."""
        token, end = random.randbytes(16), self._ends[OTHER[ns]]
        before = len(end.received())
        addresses = {"client": (self.client, self.server), "server": (self.server, self.client)}[ns]
        control = IP(src=addresses[0], dst=addresses[1]) / UDP(sport=self.port(), dport=CONTROL) / Raw(token)
        self._lab.inject(ns, *packets, control)
        poll(lambda: any(frame.data.endswith(token) for frame in end.received()[before:]), 3, "the control")
        frames = [frame for frame in end.received()[before:] if not frame.data.endswith(token)]
        if self.name != "plain":
            assert [line for frame in frames for line in frame.wrong_checksums()] == []
        return [frame.packet.payload for frame in frames]

    def returned(self, ns: str, *packets: Packet) -> tuple[list[Packet], Packet]:
        """The same, and the first packet that comes back to the sender."""
        end = self._ends[ns]
        before = len(end.received())
        crossed = self.cross(ns, *packets)
        poll(lambda: len(end.received()) > before, 3, "an answer")
        return crossed, end.received()[before].packet.payload

    def send(self, ns: str, *packets: Packet | bytes) -> None:
        self._lab.inject(ns, *packets)

    def arrived(self, ns: str) -> list[Packet]:
        """Everything that has come to one end."""
        return [frame.packet.payload for frame in self._ends[ns].received()]


@contextmanager
def way_through(lab: Lab, name: str, number: int = MAIN) -> Iterator[Way]:
    """Two ways do not see each other's packets."""
    aside = " or ".join(f"host {inside(n)} or host {outside(n)}" for n in ASIDE)
    own = f"host {inside(number)} or host {outside(number)}"
    expression = f"ip and not ({aside})" if number == MAIN else own
    with lab.capture("client", "eth0", expression) as client, lab.capture("server", "eth0", expression) as server:
        yield Way(lab, name, number, {"client": client, "server": server})


class Stream:
    """A TCP connection through a device: both ends know what was said."""

    def __init__(self, way: Way) -> None:
        self._way, self._port = way, way.port()
        self._next: dict[str, int] = {}
        self._seen = (way.outside, self._port)  # the client, by the server

    def open(self) -> bool:
        """The three segments of the handshake, with numbers of their own each time; whether all have crossed."""
        self._next = {}
        return all([self.say("client", "S"), self.say("server", "SA"), self.say("client", "A")])

    def works(self) -> bool:
        """Whether data cross both ways."""
        return all([self.say("client", "PA", b"question"), self.say("server", "PA", b"answer")])

    def say(self, ns: str, flags: str, data: bytes = b"") -> list[Packet]:
        """The next segment of one end, as it comes out at the other."""
        crossed = self.forge(ns, flags, data)
        self._next[ns] = (self._next[ns] + len(data) + ("S" in flags)) % 2**32
        if ns == "client" and crossed:
            self._seen = (crossed[0].src, crossed[0][TCP].sport)
        return crossed

    def forge(self, ns: str, flags: str, data: bytes = b"", seq: int = 0, ack: int = 0, **fields: int) -> list[Packet]:
        """A segment that the end in whose name it comes knows nothing of; seq, ack: distance from what is right."""
        here, there = (self._next.setdefault(end, random.getrandbits(32)) for end in (ns, OTHER[ns]))
        numbers = {"seq": (here + seq) % 2**32, "ack": (there + ack) % 2**32 if "A" in flags else 0}
        if ns == "client":
            addresses, ports = IP(src=self._way.client, dst=self._way.server), {"sport": self._port, "dport": 80}
        else:
            addresses, ports = IP(src=self._way.server, dst=self._seen[0]), {"sport": 80, "dport": self._seen[1]}
        return self._way.cross(ns, addresses / TCP(flags=flags, **ports, **numbers, **fields) / Raw(data))
