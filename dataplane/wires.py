"""Virtual wires: two ports joined by a bridge that nobody on either side can tell from a cable.

    neighbour ─── eth1 ─┐ vw1 ┌─ eth2 ─── neighbour        STP off, no learning, no snooping, no address, no IPv6

Neither MAC addresses nor groups are learned: whatever comes in at one port leaves by the other, link-local control
frames (BPDU, LLDP, LACP) included, all but Ethernet's own PAUSE.  The bridge hands IP to the rules by its own switch
(nf_call_iptables), so that the host's other bridges stay as they were.  What may pass is said by rules/.

The device bears our alias, by which a successor of a killed daemon knows it for its own and takes it over as it stands:
meanwhile its packets meet a queue that nobody reads.  Whether a port was up before is remembered on disk.

Link-state pass-through: a port that is held down has no carrier of its own to look at, so at most one of the two is:

    both up ── one loses its link ──► the other is held down ── the link is back ──► both up, GRACE for the released

Within GRACE a port that has not had a link yet (auto-negotiation takes seconds) counts as if it had one, or two ports
that wait for each other would never settle.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import DataplaneError
from dataplane.policy.model import VirtualWire
from dataplane.routes import Links, is_link_local, read_links
from dataplane.rules import Record, frames
from dataplane.rules.sysctls import Sysctls

ALIAS = "dataplane virtual wire"
IFF_UP = 1
FORWARD_ALL_BUT_PAUSE = 0xFFFD  # of 01-80-C2-00-00-0X, by X
BRIDGE = {
    "br_stp_state": 0,
    "br_mcast_snooping": 0,
    "br_nf_call_iptables": 1,
    "br_nf_call_ip6tables": 1,
    "br_nf_call_arptables": 0,
}
GRACE = 5.0  # seconds

log = logging.getLogger(__name__)


class Wires:
    """The wires of a configuration in the current namespace; `runtime_dir` remembers their ports for a successor.

    build() and remove() raise DataplaneError. follow() is for the monitor's thread.
    """

    def __init__(self, wires: Sequence[VirtualWire], runtime_dir: Path) -> None:
        self._wires = wires
        self._record = Record(runtime_dir / "wires.json")
        self._sysctls = Sysctls(runtime_dir, "wire-sysctls")
        self._was_up: dict[str, bool] = self._record.load() or {}  # by port
        self._pairs: list[Pair] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(wire.name for wire in self._wires)

    @property
    def ports(self) -> frozenset[str]:
        return frozenset(port for wire in self._wires for port in wire.interfaces)

    def peers(self, links: Links) -> dict[int, int]:
        """The port at the other end by interface index, of wires whose ports are both there."""
        found: dict[int, int] = {}
        for wire in self._wires:
            ends = [links.by_name(port) for port in wire.interfaces]
            if ends[0] is not None and ends[1] is not None:
                found |= {ends[0].ifindex: ends[1].ifindex, ends[1].ifindex: ends[0].ifindex}
        return found

    def only_tagged(self, links: Links) -> frozenset[int]:
        """The ports of wires over which no frame passes without a tag, by interface index."""
        ports = [port for wire in self._wires if not frames.takes_untagged(wire) for port in wire.interfaces]
        return frozenset(link.ifindex for link in map(links.by_name, ports) if link is not None)

    def build(self) -> None:
        """Make the bridges and join their ports; a dead predecessor's are taken over, or removed if not wanted."""
        with _kernel() as netlink:
            devices = _devices(netlink)
            bridges = {name for name, message in devices.items() if is_ours(message)}
            self._check(netlink, devices)
            if not bridges <= set(self.names) or self._was_up.keys() != self.ports:
                self.remove()
                devices = _devices(netlink)
            if not self._wires:
                return
            frames.install(self._wires)
            self._sysctls.put(_bridging())
            for wire in self._wires:
                self._remember(wire, devices)
                if wire.name not in devices:
                    netlink.link("add", ifname=wire.name, kind="bridge", **BRIDGE)
                    netlink.link("set", ifname=wire.name, ifalias=ALIAS)
                self._sysctls.put((f"net/ipv6/conf/{name}/disable_ipv6", "1") for name in (wire.name, *wire.interfaces))
                _join(netlink, wire)
        self._pairs = [Pair(wire.interfaces) for wire in self._wires]

    def remove(self) -> None:
        """Take the bridges away; their ports are what they were before."""
        for pair in self._pairs:
            pair.stop()
        with _kernel() as netlink:
            devices = _devices(netlink)
            for message in filter(is_ours, devices.values()):
                netlink.link("del", index=message["index"])
            for port, was_up in self._was_up.items():
                if port in devices:
                    netlink.link("set", index=devices[port]["index"], state="up" if was_up else "down")
        self._was_up = {}
        self._sysctls.restore()
        frames.remove()
        self._record.delete()

    def follow(self, links: Links) -> None:
        """Pass on what has become of the ports' links."""
        for pair in self._pairs:
            pair.follow(links)

    def _check(self, netlink: IPRoute, devices: Mapping[str, Any]) -> None:
        """Whether the ports can be had, before anything is changed."""
        ours = {message["index"] for message in devices.values() if is_ours(message)}
        addressed = {link.name for link in read_links(netlink) if not all(map(is_link_local, link.addresses))}
        for wire in self._wires:
            if wire.name in devices and not is_ours(devices[wire.name]):
                raise DataplaneError(f"virtual wire {wire.name}: an interface of that name exists already")
            for port in wire.interfaces:
                if port not in devices:
                    raise DataplaneError(f"virtual wire {wire.name}: there is no interface {port}")
                if devices[port].get_attr("IFLA_MASTER") not in (None, *ours):
                    raise DataplaneError(f"virtual wire {wire.name}: {port} belongs to another bridge or bond")
                if port in addressed:
                    raise DataplaneError(f"virtual wire {wire.name}: {port} has an address, which would be cut off")

    def _remember(self, wire: VirtualWire, devices: Mapping[str, Any]) -> None:
        for port in wire.interfaces:
            self._was_up.setdefault(port, bool(devices[port]["flags"] & IFF_UP))
        self._record.save(self._was_up)


class Pair:
    """The links of one wire's two ports, which share one fate."""

    def __init__(self, ports: tuple[str, ...]) -> None:
        self._ports = ports
        self._lock = threading.Lock()
        self._held: int | None = None  # which of the two is down because the other has no link
        self._had_link = [False, False]  # since it was released
        self._links = Links()
        self._timer: threading.Timer | None = None
        self._give_grace()

    def stop(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._links = Links()

    def follow(self, links: Links) -> None:
        with self._lock:
            self._links = links
            self._decide()

    def _decide(self) -> None:
        ends = [self._links.by_name(port) for port in self._ports]
        up = [link is not None and link.up for link in ends]
        if self._held is not None:
            if up[not self._held]:
                self._release(self._held)
            elif up[self._held]:
                self._set(self._held, "down")
            return
        grace = time.monotonic() < self._grace_end
        lost = [not up[end] and (self._had_link[end] or not grace) for end in (0, 1)]
        self._had_link = [had or now for had, now in zip(self._had_link, up, strict=True)]
        if lost[0] != lost[1]:
            self._hold(lost.index(False))

    def _hold(self, end: int) -> None:
        log.warning("%s is down, as %s has lost its link", self._ports[end], self._ports[not end])
        self._held = end
        self._set(end, "down")

    def _release(self, end: int) -> None:
        log.warning("%s is up again, as %s has its link back", self._ports[end], self._ports[not end])
        self._held = None
        self._had_link[end] = False
        self._give_grace()
        self._set(end, "up")

    def _give_grace(self) -> None:
        self._grace_end = time.monotonic() + GRACE
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(GRACE, self._grace_over)
        self._timer.daemon = True
        self._timer.start()

    def _grace_over(self) -> None:
        with self._lock:
            self._decide()

    def _set(self, end: int, state: str) -> None:
        link = self._links.by_name(self._ports[end])
        if link is None:
            return
        try:
            with _kernel() as netlink:
                netlink.link("set", index=link.ifindex, state=state)
        except DataplaneError as error:
            log.warning("%s cannot be set %s: %s", link.name, state, error)


@contextmanager
def _kernel() -> Iterator[IPRoute]:
    """A netlink socket whose complaints are DataplaneErrors."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise DataplaneError(f"virtual wires: {error}") from error


def _bridging() -> list[tuple[str, str]]:
    """How br_netfilter reads frames: IP behind a tag is IP, the device of arrival is the bridge, PPPoE is not opened.

    Raises DataplaneError where the kernel has no br_netfilter: the wires would be open to everything.
    """
    if not Path("/proc/sys/net/bridge").exists():
        raise DataplaneError("virtual wires need the kernel's br_netfilter (modprobe br_netfilter)")
    return [
        ("net/bridge/bridge-nf-filter-vlan-tagged", "1"),
        ("net/bridge/bridge-nf-pass-vlan-input-dev", "0"),
        ("net/bridge/bridge-nf-filter-pppoe-tagged", "0"),
    ]


def _devices(netlink: IPRoute) -> dict[str, Any]:
    return {message.get_attr("IFLA_IFNAME"): message for message in netlink.get_links()}


def is_ours(message: Any) -> bool:
    return bool(message.get_attr("IFLA_IFALIAS") == ALIAS)


def _join(netlink: IPRoute, wire: VirtualWire) -> None:
    """The ports become the bridge's only ones, and all three go up."""
    devices = _devices(netlink)
    bridge = devices[wire.name]["index"]
    for name, message in devices.items():
        if message.get_attr("IFLA_MASTER") == bridge and name not in wire.interfaces:
            netlink.link("set", index=message["index"], master=0)
    for port in wire.interfaces:
        index = devices[port]["index"]
        netlink.link("set", index=index, master=bridge)
        netlink.brport("set", index=index, learning=0, IFLA_BRPORT_GROUP_FWD_MASK=FORWARD_ALL_BUT_PAUSE)
        netlink.link("set", index=index, state="up")
    netlink.link("set", index=bridge, state="up")
