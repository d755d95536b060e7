"""What else on this host has a hand in packets: rules, readers of queues, programs; and what a dead daemon left."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from dataplane.doctor.finding import FAIL, OK, WARN, Finding
from dataplane.doctor.patient import Patient
from dataplane.policy.model import MAX_WORKERS, Config
from dataplane.rules import has_ipv6, run
from dataplane.rules.iptables import PREFIX, Iptables
from dataplane.rules.probe import candidates
from dataplane.sockets import bound_queues
from dataplane.wires import is_ours

OURS = {("inet", "dataplane"), ("bridge", "dataplane")}  # tables of nft
INGRESS = 0xFFFFFFF2  # parent of a filter
OUR_PRIORITY = 65000
IPTABLES_QUEUE = re.compile(r"-j NFQUEUE(?: --queue-(?:num|balance) (\d+)(?::(\d+))?)?")
TRACKED = Path("net/netfilter/nf_conntrack_max")


def conntrack(_: Patient) -> Iterator[Finding]:
    """No harm: what belongs to our zones is exempt from it by our own rules."""
    loaded = (Path("/proc/sys") / TRACKED).exists()
    yield Finding(
        "conntrack", OK, "loaded; the zones' interfaces are exempt while the daemon runs" if loaded else "not loaded"
    )


def our_queues(config: Config | None) -> range:
    """The numbers that may be ours: with `workers: auto` as many as there are processors, at most."""
    if config is None:
        return range(0)
    workers = config.settings.queue.workers
    count = workers if isinstance(workers, int) else min(len(_processors()), MAX_WORKERS)
    return range(config.settings.queue.first, config.settings.queue.first + count + 1)


def _processors() -> list[str]:
    return re.findall(r"^processor\s", Path("/proc/cpuinfo").read_text(), re.MULTILINE) or [""]


def rules(patient: Patient) -> Iterator[Finding]:
    """Other people's, in hooks that our packets pass."""
    queues = our_queues(patient.config)
    found = [*_iptables_rules(queues), *(_nft_rules(queues) if shutil.which("nft") else ())]
    yield from found or [Finding("rules", OK, "no other rule queues, drops or translates what is forwarded")]


def _iptables_rules(queues: range) -> Iterator[Finding]:
    """By the save format: nft shows a target of iptables without its numbers."""
    for backend in Iptables.variants():
        for tool in ("iptables", "ip6tables") if has_ipv6() else ("iptables",):
            for row in run([f"{tool}{backend.suffix}-save"]).splitlines():
                yield from _iptables_row(f"{tool} ({backend.kind})", backend.kind, row, queues)


def _iptables_row(where: str, kind: str, row: str, queues: range) -> Iterator[Finding]:
    if kind == "legacy" and row.startswith(":FORWARD DROP"):  # nft shows those of the other kind
        yield _dropping(f"{where}: FORWARD")
    said = IPTABLES_QUEUE.search(row)
    if said is None or PREFIX in row:
        return
    first = int(said[1] or 0)
    yield from _queueing(f"{where}: {row}", range(first, int(said[2] or first) + 1), queues)


def _nft_rules(queues: range) -> Iterator[Finding]:
    listed = json.loads(run(["nft", "-j", "list", "ruleset"]))["nftables"]
    things = [(kind, thing) for entry in listed for kind, thing in entry.items() if kind != "metainfo"]
    hooked = {
        (thing["family"], thing["table"], thing["name"]): thing
        for kind, thing in things
        if kind == "chain" and "hook" in thing and (thing["family"], thing["table"]) not in OURS
    }
    for (family, table, name), chain in hooked.items():
        if chain["hook"] == "forward" and chain["policy"] == "drop":
            yield _dropping(f"nft: table {family} {table}, chain {name}")
    translating = {place[:2] for place, chain in hooked.items() if chain["type"] == "nat"}
    yield from _nft_contents(things, translating, queues)


def _nft_contents(things: list[tuple[str, Any]], translating: set[Any], queues: range) -> Iterator[Finding]:
    """Of tables that are not ours."""
    told = set()
    for kind, thing in things:
        place = (thing.get("family"), thing.get("table"))
        where = f"nft: table {place[0]} {place[1]}"
        if place in OURS:
            continue
        if kind == "flowtable":
            advice = "a flow that it carries passes every rule by: keep the zones' interfaces out of it"
            yield Finding("rules", WARN, f"{where}: flowtable {thing['name']}", advice)
        elif kind == "rule" and not thing["chain"].startswith(PREFIX):
            if place in translating and place not in told:
                told.add(place)
                advice = "it sees nothing of the zones' traffic, which is not tracked: translate by nat-rules"
                yield Finding("rules", WARN, f"{where} translates addresses", advice)
            for expression in thing["expr"]:
                if "queue" in expression:
                    yield from _queueing(f"{where}, chain {thing['chain']}", _nft_numbers(expression["queue"]), queues)


def _nft_numbers(queue: Any) -> range:
    number = queue.get("num", 0) if isinstance(queue, dict) else 0
    first, last = number["range"] if isinstance(number, dict) else (number, number)
    return range(first, last + 1)


def _dropping(where: str) -> Finding:
    advice = "it drops what this firewall allows: accept the zones' interfaces there"
    return Finding("rules", WARN, f"{where} has the policy drop", advice)


def _queueing(where: str, theirs: range, ours: range) -> Iterator[Finding]:
    if shared := sorted(set(theirs) & set(ours)):
        advice = "packets of that rule would be taken for the zones': another number there, or settings.queue.first"
        yield Finding("rules", FAIL, f"{where}: queue {', '.join(map(str, shared))} is one of ours", advice)


def readers(patient: Patient) -> Iterator[Finding]:
    """A queue has one reader; ours, if the daemon runs."""
    if patient.pid or patient.config is None:
        return
    taken = {number: owner for number, owner in bound_queues().items() if number in our_queues(patient.config)}
    for number, owner in taken.items():
        advice = "end that program, or choose other numbers by settings.queue.first"
        yield Finding("readers", FAIL, f"NFQUEUE {number} is read by {_program(owner)}", advice)
    if not taken:
        yield Finding("readers", OK, "our queues are free")


def _program(port: int) -> str:
    """A netlink socket's port is the pid of its process, unless that has several."""
    try:
        return f"{Path(f'/proc/{port}/comm').read_text().strip()} (pid {port})"
    except OSError:
        return f"the owner of netlink port {port}"


def filters(patient: Patient) -> Iterator[Finding]:
    """What is attached to the zones' interfaces and sees packets before us."""
    found = [finding for name in patient.present for finding in _attached(name, patient.devices[name])]
    if patient.present:
        yield from found or [Finding("filters", OK, "nothing else is attached to the zones' interfaces")]


def _attached(name: str, device: Any) -> Iterator[Finding]:
    xdp = device.get_attr("IFLA_XDP")
    if xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED"):
        advice = "it sees packets first, and veth and some others lose GSO by it"
        yield Finding("filters", WARN, f"{name} has an XDP program", advice)
    with IPRoute() as netlink:
        priorities = {row["info"] >> 16 for row in netlink.get_filters(index=device["index"], parent=INGRESS)}
    for priority in sorted(each for each in priorities if each < OUR_PRIORITY):
        advice = "it decides before us: see `tc filter show dev " + name + " ingress`"
        yield Finding("filters", WARN, f"{name} has a tc filter of preference {priority}", advice)


def leavings(patient: Patient) -> Iterator[Finding]:
    """Without a daemon its rules drop everything: on purpose, until somebody decides. A reader of our queues may be a
    daemon on another runtime directory, whose rules they are."""
    if patient.pid or bound_queues():
        return
    found = [f"rules of {backend.name}" for backend in candidates() if backend.installed()]
    found += [f"the bridge {name}" for name, device in patient.devices.items() if is_ours(device)]
    with IPRoute() as netlink:
        for name, device in patient.devices.items():
            rows = netlink.get_filters(index=device["index"], parent=INGRESS)
            if any(row["info"] >> 16 == OUR_PRIORITY for row in rows):
                found.append(f"the offload program on {name}")
    if found:
        advice = "start the daemon, which takes over, and stop it if none is wanted"
        yield Finding("leavings", WARN, f"of a daemon that is dead: {', '.join(found)}", advice)
    else:
        yield Finding("leavings", OK, "no dead daemon has left anything in the kernel")
