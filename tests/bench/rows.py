"""The ways of forwarding that are compared: each is a lab of its own that stays up while the others are measured."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.bench import callback
from tests.bench.ovs import OpenVSwitch, Unavailable
from tests.lab.lab import Lab, LabError, poll

SOURCES = "10.1.0.16"  # first of 128 client addresses that new flows come from; no kernel owns them
DESTINATIONS = "10.2.0.16"  # first of the server's 16 addresses that new flows go to
SERVER_ADDRESSES = [f"10.2.0.{host}" for host in range(16, 32)]
POOL = "192.0.2.0-192.0.2.127"  # a port for each new flow; outside the server's subnet, whose default route leads back
UDP_TIMEOUT = 10  # seconds, in every stateful row: the flows of one round are gone before the next but one
OTHER_RULES = 100  # security rules before the one that matches

NFT = """
table inet bench {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "in0" oifname "out0" ct state new accept
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "out0" masquerade
    }
}
"""


@dataclass
class Path:
    """A lab that is ready to forward; `session_bytes` is the memory of one session, where that is known."""

    lab: Lab
    session_bytes: Callable[[], float | None] = lambda: None
    flows: int = 0  # new flows that were sent over it: the number of the next


@contextmanager
def plain() -> Iterator[Path]:
    """Nothing but the kernel's routing; also the lab with the direct wire."""
    with served_lab(wire=True) as lab:
        yield Path(lab)


@contextmanager
def nftables() -> Iterator[Path]:
    """Connection tracking, a stateful filter and masquerade."""
    with served_lab() as lab:
        lab.run("firewall", ["nft", NFT], check=True)
        lab.sysctl("firewall", {"netfilter/nf_conntrack_udp_timeout": str(UDP_TIMEOUT)})
        yield Path(lab)


@contextmanager
def open_vswitch() -> Iterator[Path]:
    """Open vSwitch's userspace datapath, which forwards instead of the kernel. Raises Unavailable."""
    with served_lab() as lab:
        OpenVSwitch(lab).start(POOL, UDP_TIMEOUT)
        yield Path(lab)


@contextmanager
def python_callback() -> Iterator[Path]:
    """Every packet crosses a queue into Python."""
    with served_lab() as lab:
        queue = str(callback.QUEUE)
        lab.run("firewall", ["iptables", "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", queue], check=True)
        process = lab.popen("firewall", [sys.executable, callback.__file__])
        bound = ["grep", "-q", f"^ *{queue} ", "/proc/net/netfilter/nfnetlink_queue"]

        def is_bound() -> bool:
            if process.poll() is not None:
                raise LabError(f"the callback ended: {lab.output(process)}")
            return lab.run("firewall", bound).returncode == 0

        poll(is_bound, 10, "the queue to be bound")
        yield Path(lab)


@contextmanager
def ours(*, source_nat: bool, dispatch_cache: bool = True, offload: bool = False) -> Iterator[Path]:
    """The daemon: a hundred rules before the matching one, session start and end logged."""
    with served_lab() as lab, lab.firewall(configuration(source_nat, dispatch_cache, offload)) as firewall:
        yield Path(lab, lambda: firewall.json("show", "session", "info").get("bytes_per_session"))


def configuration(source_nat: bool, dispatch_cache: bool = True, offload: bool = False) -> dict[str, Any]:
    """The configuration of the daemon's rows."""
    return {
        "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
        "security-rules": [*(deny(number) for number in range(OTHER_RULES)), ALLOW],
        "nat-rules": [SOURCE_NAT] if source_nat else [],
        "settings": {
            "offload": offload,
            "dispatch-cache": dispatch_cache,
            "session": {"timeouts": {"udp": UDP_TIMEOUT}},
        },
    }


def deny(number: int) -> dict[str, Any]:
    """A rule that no packet of the bench matches."""
    return {
        **ALLOW,
        "name": f"other-{number}",
        "source": [f"172.{16 + number // 256}.{number % 256}.0/24"],
        "action": "deny",
    }


ALLOW: dict[str, Any] = {
    "name": "lan-out",
    "from": ["trust"],
    "to": ["untrust"],
    "source": ["10.1.0.0/24"],
    "destination": ["any"],
    "application": ["any"],
    "service": ["any"],
    "action": "allow",
    "log-start": True,
    "log-end": True,
}
SOURCE_NAT: dict[str, Any] = {
    "name": "lan-snat",
    "from": ["trust"],
    "to": "untrust",
    "source": ["10.1.0.0/24"],
    "destination": ["any"],
    "service": "any",
    "source-translation": {"type": "dynamic-ip-and-port", "addresses": [POOL]},
}

Rows = Mapping[str, tuple[str, Callable[[], AbstractContextManager[Path]]]]
# Row -> title and how to make it, in the order of the table; ratios are to the first.
ROWS: Rows = {
    "plain": ("plain kernel forwarding", plain),
    "nftables": ("nftables stateful, masquerade", nftables),
    "ovs": ("Open vSwitch userspace, NAT", open_vswitch),
    "python": ("netfilterqueue, Python callback", python_callback),
    "ours": ("this firewall", lambda: ours(source_nat=False)),
    "ours-snat": ("this firewall, source NAT", lambda: ours(source_nat=True)),
    "ours-python": ("the same, Python decides all", lambda: ours(source_nat=True, dispatch_cache=False)),
    "offload-snat": ("this firewall, NAT, offloaded", lambda: ours(source_nat=True, offload=True)),
}


def prepare(rows: Rows, stack: ExitStack, progress: Callable[[str], None]) -> tuple[dict[str, Path], dict[str, str]]:
    """Each row's lab, ready; a row whose software cannot be had is left out, and why."""
    paths: dict[str, Path] = {}
    absent: dict[str, str] = {}
    for name, (title, make) in rows.items():
        progress(f"starting: {title}")
        try:
            paths[name] = stack.enter_context(make())
        except Unavailable as error:
            absent[name] = str(error)
    return paths, absent


@contextmanager
def served_lab(wire: bool = False) -> Iterator[Lab]:
    """A lab whose server has the addresses of the bench and runs iperf3."""
    with Lab(server_addresses=SERVER_ADDRESSES, wire=wire) as lab:
        lab.serve("server", ["iperf3", "-s"], 5201)
        yield lab
