"""The daemon, its configuration, and what the host gives them: interfaces, settings, memory, disk, time."""

import ctypes
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool import Ethtool

from dataplane.client import request
from dataplane.doctor.finding import FAIL, OK, WARN, Finding
from dataplane.doctor.patient import DEFAULT_CONFIG, Patient
from dataplane.errors import DataplaneError
from dataplane.policy.objects import Range, merge
from dataplane.routes import address_to_text
from dataplane.rules.sysctls import ROOT, wanted

SESSION_BYTES, SHARED_SESSION_BYTES = 254, 269  # without oversubscription, and with as much as there may be
CGROUP = Path("/sys/fs/cgroup")
MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30
LEAST_DISK, COMFORTABLE_DISK = 64 * MEBIBYTE, GIBIBYTE
LEAST_FILES = 1024  # queues, netlink, logs, sixteen operators, and some room
GRO, TSO = "rx-gro", "tx-tcp-segmentation"
RTPROT_RA = 9
CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)
TIMEX = 208  # bytes of its struct, and more than that is never written


def daemon(patient: Patient) -> Iterator[Finding]:
    if patient.pid is None:
        yield Finding("daemon", OK, f"none runs on {patient.runtime_dir}")
        return
    try:
        list(request(patient.runtime_dir, "show session meter", {}))
    except DataplaneError as error:
        yield Finding("daemon", FAIL, f"pid {patient.pid} does not answer: {error}", "look into its log; restart it")
    else:
        yield Finding("daemon", OK, f"pid {patient.pid} answers")


def configuration(patient: Patient) -> Iterator[Finding]:
    if patient.config is None:
        advice = f"name one with --config, or write {DEFAULT_CONFIG}"
        yield Finding("configuration", WARN, "there is none, so no interface is looked at", advice)
    else:
        source = patient.file or ("the daemon's" if patient.pid else DEFAULT_CONFIG)
        yield Finding(
            "configuration", OK, f"{source}: {len(patient.config.zones)} zones, {len(patient.named)} interfaces"
        )


def interfaces(patient: Patient) -> Iterator[Finding]:
    """They may come later; what is a part of something else never sees a packet under its own name."""
    for name in patient.named:
        if name not in patient.devices:
            advice = "a name misspelt? Else it belongs to its zone from the moment it is there"
            yield Finding("interfaces", WARN, f"{name} does not exist", advice)
            continue
        master = patient.devices[name].get_attr("IFLA_MASTER")
        if master and name not in patient.wire_ports:
            owner = next((other for other, device in patient.devices.items() if device["index"] == master), str(master))
            yield Finding(
                "interfaces",
                FAIL,
                f"{name} is a port of {owner}",
                f"its packets come in by {owner}: name that in the zone",
            )
        elif not patient.links[name].up:
            yield Finding("interfaces", WARN, f"{name} is down or has no carrier", f"ip link set {name} up")
        else:
            yield Finding("interfaces", OK, f"{name} is up, MTU {patient.links[name].mtu}")


def segmentation(patient: Patient) -> Iterator[Finding]:
    """A super-packet is looked up once, where its 44 packets would be looked up 44 times. A veth gets them whole."""
    if not patient.present:
        return
    with Ethtool() as ethtool:
        for name in patient.present:
            found = ethtool.get_features(name).features
            wanted_on = (TSO,) if _kind(patient.devices[name]) == "veth" else (GRO, TSO)
            off = [feature for feature in wanted_on if feature in found and not found[feature].enable]
            if off:
                words = " ".join(f"{feature} on" for feature in off)
                yield Finding("segmentation", WARN, f"{name}: {', '.join(off)} off", f"ethtool -K {name} {words}")
            else:
                yield Finding("segmentation", OK, f"{name}: super-packets stay whole")
            if "rx-lro" in found and found["rx-lro"].enable:
                yield Finding(
                    "segmentation", WARN, f"{name}: LRO is on and loses what it merges", f"ethtool -K {name} lro off"
                )


def _kind(device: Any) -> str | None:
    """What `ip link add type` was told, None for hardware."""
    information = device.get_attr("IFLA_LINKINFO")
    return None if information is None else information.get_attr("IFLA_INFO_KIND")


def settings(patient: Patient) -> Iterator[Finding]:
    """While the daemon runs they must be as it has set them; before that they are only worth knowing."""
    routed = [name for name in patient.present if name not in patient.wire_ports]
    if not routed:
        return
    rows = [(path, _read(path), value) for path, value in wanted(routed)]
    differing = [(path.replace("/", "."), now, value) for path, now, value in rows if now not in (None, value)]
    for name, now, value in differing:
        if patient.pid:
            advice = "sysctl.d or a network manager sets it back: stop that, and restart the daemon"
            yield Finding("settings", FAIL, f"{name} is {now}, which the daemon had set to {value}", advice)
        elif name.endswith(".rp_filter"):
            advice = "the daemon sets that while it runs; see that nothing sets it back"
            yield Finding("settings", WARN, f"{name} is {now} and must be {value}", advice)
    if not patient.pid and not _writable("net/ipv4/ip_forward"):
        yield Finding(
            "settings", FAIL, "/proc/sys/net is read-only", "mount it writable, or run outside this container"
        )
    if not differing:
        yield Finding("settings", OK, "forwarding, rp_filter, accept_local and send_redirects are as they must be")
    elif not patient.pid:
        yield Finding(
            "settings", OK, f"{len(differing)} settings will be changed while the daemon runs, then given back"
        )
    yield from _advertised(routed, patient)


def _advertised(names: list[str], patient: Patient) -> Iterator[Finding]:
    """A host that forwards does not believe router advertisements any more."""
    indices = {patient.links[name].ifindex: name for name in names}
    with IPRoute() as netlink:
        learned = {row.get_attr("RTA_OIF") for row in netlink.get_routes(family=socket.AF_INET6, proto=RTPROT_RA)}
    for ifindex in learned & indices.keys():
        name = indices[ifindex]
        if _read(f"net/ipv6/conf/{name}/accept_ra") == "1":
            advice = f"sysctl net.ipv6.conf.{name}.accept_ra=2"
            yield Finding("settings", WARN, f"{name} has routes from advertisements, which forwarding ends", advice)


def addresses(patient: Patient) -> Iterator[Finding]:
    """What NAT translates to must come back: an address of ours, one in our subnets, or one that is routed to us."""
    if patient.policy is None:
        return
    near = merge([span for link in patient.links.values() for span in link.subnets])
    far = [part for wanted_range in patient.policy.answered for part in _without(wanted_range, near)]
    for first, last in far:
        shown = address_to_text(first) if first == last else f"{address_to_text(first)}-{address_to_text(last)}"
        advice = "the neighbouring routers need a route to it by this firewall"
        yield Finding("addresses", WARN, f"{shown} is in no subnet of this host", advice)
    if patient.policy.answered and not far:
        yield Finding("addresses", OK, "every translated address is in a subnet of this host")
    for name in ("all", *patient.present):
        if patient.policy.answered and _read(f"net/ipv4/conf/{name}/arp_ignore") not in (None, "0"):
            advice = f"sysctl net.ipv4.conf.{name}.arp_ignore=0"
            yield Finding("addresses", WARN, f"arp_ignore of {name} silences pool addresses", advice)


def _without(wanted_range: Range, near: list[Range]) -> Iterator[Range]:
    """The parts of a range that none of the sorted, disjoint others covers."""
    first, last = wanted_range
    for low, high in near:
        if high < first or low > last:
            continue
        if first < low:
            yield first, low - 1
        first = high + 1
    if first <= last:
        yield first, last


def memory(patient: Patient) -> Iterator[Finding]:
    """The table is taken whole at the start."""
    if patient.config is None:
        return
    sessions = patient.config.settings.session.max_sessions
    shared = patient.config.settings.nat.oversubscription > 1
    need = sessions * (SHARED_SESSION_BYTES if shared else SESSION_BYTES)
    shown = f"{need // MEBIBYTE} MiB for {sessions} sessions"
    if patient.pid:
        yield Finding("memory", OK, f"{shown}, taken already")
        return
    free = min(_available(), _cgroup_room())
    if need > free:
        yield Finding("memory", FAIL, f"{shown}, of {free // MEBIBYTE} MiB", "lower settings.session.max-sessions")
    elif need > free // 2:
        yield Finding("memory", WARN, f"{shown}, more than half of {free // MEBIBYTE} MiB", "lower max-sessions")
    else:
        yield Finding("memory", OK, f"{shown}, of {free // MEBIBYTE} MiB")


def _available() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def _cgroup_room() -> int:
    """Bytes that the tightest control group above this process still grants; very many without one (version 2)."""
    unified = next(
        (row[3:] for row in Path("/proc/self/cgroup").read_text().splitlines() if row.startswith("0::")), "/"
    )
    rooms = [1 << 62]
    group = CGROUP / unified.lstrip("/")
    for each in (group, *group.parents):
        if each != CGROUP and CGROUP not in each.parents:
            break
        try:
            limit = (each / "memory.max").read_text().strip()
            used = int((each / "memory.current").read_text())
        except FileNotFoundError:
            continue
        rooms += [] if limit == "max" else [int(limit) - used]
    return min(rooms)


def files(patient: Patient) -> Iterator[Finding]:
    limit = resource.prlimit(patient.pid or 0, resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < LEAST_FILES:
        yield Finding("files", WARN, f"at most {limit} may be open", f"LimitNOFILE={LEAST_FILES}, or ulimit -n")
    else:
        yield Finding("files", OK, f"{limit} may be open")


def disk(patient: Patient) -> Iterator[Finding]:
    """A full one costs log records, never a packet."""
    place = next(each for each in (patient.log_dir, *patient.log_dir.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    shown = f"{free // MEBIBYTE} MiB are free for {patient.log_dir}"
    if free < LEAST_DISK:
        yield Finding("disk", FAIL, shown, "make room: log records will be lost")
    elif free < COMFORTABLE_DISK:
        yield Finding("disk", WARN, shown, "let logrotate run more often")
    else:
        yield Finding("disk", OK, shown)


def clock(_: Patient) -> Iterator[Finding]:
    """Logs of two machines can be laid side by side only if their clocks agree."""
    nothing_to_set = ctypes.create_string_buffer(TIMEX)
    if ctypes.CDLL(None).adjtimex(nothing_to_set) == CLOCK_UNSYNCHRONISED:
        yield Finding("clock", WARN, "nobody keeps it right", "run chrony or systemd-timesyncd")
    else:
        yield Finding("clock", OK, "it is kept right")


def _read(path: str) -> str | None:
    try:
        return (ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None


def _writable(path: str) -> bool:
    """Opened and not written: root may open anything but what a read-only mount holds."""
    try:
        (ROOT / path).open("r+").close()
    except OSError:
        return False
    return True
