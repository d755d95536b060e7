"""NAT addresses that lie in an interface's subnet are answered for (ARP, ND) without becoming addresses of the host.

IPv4: a route of type `local`, which is what arp_process() looks for.  A proxy entry would not do: the kernel uses it
only for a destination that is routed out of another interface.  IPv6: a proxy neighbour entry, which also joins the
solicited-node group; it needs proxy_ndp and forwarding, and proxy_delay 0, or each answer waits up to 0.8 s for a
better one.

With the `local` route a packet that no NAT rule translates would be delivered to the host, so the slow path treats
these addresses as the host's.  Limit: an operator's arp_ignore of 1 or more silences addresses that no interface has.
"""

import errno
import socket
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import DataplaneError
from dataplane.routes import LOCAL, Link, address_from_text, address_to_text, is_ipv4
from dataplane.rules import Record
from dataplane.rules.sysctls import Sysctls

PROTOCOL = 143  # who made the route: a number without an owner in rt_protos
# Beside, and behind, the kernel's own entry (priority 0) if the address is given to the host later.
PRIORITY = 1024
NTF_PROXY = 8
GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}

Answer = tuple[int, int]  # address, ifindex
Answers = set[Answer]  # the method `set` hides the type in the class


class Answering:
    """The addresses that are answered for in the current namespace; remembered in `runtime_dir` for a successor."""

    def __init__(self, runtime_dir: Path) -> None:
        self._record = Record(runtime_dir / "answering.json")
        self._sysctls = Sysctls(runtime_dir, "answering-sysctls")
        self._held: Answers = {(address, ifindex) for address, ifindex in self._record.load() or ()}

    def set(self, addresses: Iterable[int], links: Iterable[Link]) -> None:
        """Answer for those of `addresses` that lie in a subnet of `links` and are nobody's, and for no others.

        To be called again whenever links have changed, with what is known of them then: were they read here, what
        changes between two calls and changes back would be seen by one side only.  The kernel is asked what is there:
        a link that goes down loses its proxy entries.  Raises DataplaneError if the kernel refuses.
        """
        links = tuple(links)
        wanted = _answers(addresses, links)
        with IPRoute() as netlink:
            stale = self._held - wanted
            self._hold(self._held | wanted)
            for answer in stale:
                _remove(netlink, answer)
            self._sysctls.put(_settings(wanted, links))
            for answer in wanted - _present(netlink):
                _add(netlink, answer)
        self._hold(wanted)

    def clear(self) -> None:
        """Answer for none, a dead predecessor's included."""
        with IPRoute() as netlink:
            for answer in self._held:
                _remove(netlink, answer)
        self._held = set()
        self._record.delete()
        self._sysctls.restore()

    def _hold(self, answers: Answers) -> None:
        self._held = answers
        self._record.save(sorted(answers))


def _answers(addresses: Iterable[int], links: Iterable[Link]) -> Answers:
    """Each address with the interface whose subnet holds it, but for the host's own and broadcast addresses."""
    taken = {address for link in links for address in link.addresses}
    subnets = [(first, last, link.ifindex) for link in links for first, last in link.subnets if first < last]
    taken |= {last for first, last, _ in subnets if is_ipv4(last) and last - first > 1}
    return {
        (address, ifindex)
        for address in addresses
        if address not in taken
        for first, last, ifindex in subnets
        if first <= address <= last
    }


def _present(netlink: IPRoute) -> Answers:
    """What the kernel answers for by our entries, or by the operator's proxy entries."""
    routes = netlink.get_routes(family=socket.AF_INET, table=LOCAL, proto=PROTOCOL)
    proxies = netlink.get_neighbours(family=socket.AF_INET6, flags=NTF_PROXY)
    return {(address_from_text(row.get_attr("RTA_DST")), row.get_attr("RTA_OIF")) for row in routes} | {
        (address_from_text(row.get_attr("NDA_DST")), row["ifindex"]) for row in proxies
    }


def _settings(answers: Iterable[Answer], links: Iterable[Link]) -> list[tuple[str, str]]:
    """Sysctls of the interfaces that answer for an IPv6 address."""
    indices = {ifindex for address, ifindex in answers if not is_ipv4(address)}
    names = [link.name for link in links if link.ifindex in indices]
    proxy = [(f"net/ipv6/conf/{name}/proxy_ndp", "1") for name in names]
    return proxy + [(f"net/ipv6/neigh/{name}/proxy_delay", "0") for name in names]


def _add(netlink: IPRoute, answer: Answer) -> None:
    try:
        _change(netlink, "replace", answer)
    except NetlinkError as error:
        if error.code not in GONE:
            raise DataplaneError(f"cannot answer for {address_to_text(answer[0])}: {error}") from error


def _remove(netlink: IPRoute, answer: Answer) -> None:
    try:
        _change(netlink, "del", answer)
    except NetlinkError as error:
        if error.code not in GONE:
            raise DataplaneError(f"cannot stop answering for {address_to_text(answer[0])}: {error}") from error


def _change(netlink: IPRoute, command: str, answer: Answer) -> None:
    address, ifindex = answer
    text = address_to_text(address)
    if not is_ipv4(address):
        netlink.neigh(command, dst=text, ifindex=ifindex, flags=NTF_PROXY)
        return
    mine = {"table": LOCAL, "type": "local", "scope": "host", "proto": PROTOCOL, "priority": PRIORITY}
    netlink.route(command, dst=f"{text}/32", oif=ifindex, **mine)
