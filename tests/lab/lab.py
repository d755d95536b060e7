"""The lab: a client, a firewall and a server, each in a network namespace of its own.

           client                          firewall                          server
    +----------------+        +--------------------------------+        +----------------+
    |           eth0 |--------| in0                       out0 |--------| eth0           |
    +----------------+        +--------------------------------+        +----------------+
      10.1.0.2/24           10.1.0.1/24              10.2.0.1/24           10.2.0.2/24
      fd00:1::2/64          fd00:1::1/64             fd00:2::1/64          fd00:2::2/64

      wire0 10.3.0.2/24 ------------- only with wire=True ------------ wire0 10.3.0.1/24

With bridge=True the firewall is a wire: in0 and out0 have no address, and the prefixes of the endpoints are 10.1.0.2/8
and 10.2.0.2/8, fd00:1::2/16 and fd00:2::2/16, so that each takes the other for a neighbour.

The firewall namespace forwards; without a daemon in it that is plain kernel forwarding, the control of every test.
Neighbours are permanent entries, so that no first packet waits for ARP or ND.  A phantom is an address that a
neighbour entry of the firewall leads to but no kernel owns: only the test speaks for it, no kernel answers with RST.

Namespaces are called PREFIX<pid>x<number>-<role>, so several labs run side by side and what a killed process has left
is known by its dead pid and removed by the next lab.  Sockets, captures and injected packets belong to the test's own
process: a thread steps into a namespace, opens the socket and steps out again (setns(2) holds for one thread).
"""

import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.capture import ETH_P_ALL, Capture
from tests.lab.firewall import Firewall
from tests.lab.polling import LabError, poll

__all__ = ["CLIENT", "CLIENT6", "IN0", "IN06", "OUT0", "OUT06", "SERVER", "SERVER6", "Lab", "LabError", "poll"]

PREFIX = "dplab"
ROLES = ("client", "firewall", "server")
NAME = re.compile(rf"{PREFIX}(\d+)x\d+-")

CLIENT, IN0, OUT0, SERVER = "10.1.0.2", "10.1.0.1", "10.2.0.1", "10.2.0.2"
CLIENT6, IN06, OUT06, SERVER6 = "fd00:1::2", "fd00:1::1", "fd00:2::1", "fd00:2::2"
WIRE_CLIENT, WIRE_SERVER = "10.3.0.2", "10.3.0.1"

MACS = {
    ("client", "eth0"): "02:00:00:00:01:02",
    ("firewall", "in0"): "02:00:00:00:01:01",
    ("firewall", "out0"): "02:00:00:00:02:01",
    ("server", "eth0"): "02:00:00:00:02:02",
    ("client", "wire0"): "02:00:00:00:03:02",
    ("server", "wire0"): "02:00:00:00:03:01",
}
INSIDE = (("client", "eth0"), ("firewall", "in0"))
OUTSIDE = (("server", "eth0"), ("firewall", "out0"))
WIRE = (("client", "wire0"), ("server", "wire0"))

# A namespace inherits IPv4 settings from its parent, so each that matters is set.  Rate limits would make a test of
# ICMP errors or challenge ACKs depend on what ran a moment before; a kernel that lacks a key does not need it.
SYSCTLS = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/icmp_ratelimit": "0",
    "ipv4/icmp_ratemask": "0",
    "ipv4/icmp_msgs_per_sec": "1000000",
    "ipv4/icmp_msgs_burst": "100000",
    "ipv4/tcp_invalid_ratelimit": "0",
    "ipv4/ip_forward": "0",
    "ipv6/icmp/ratelimit": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/conf/default/accept_dad": "0",
}
FORWARDING = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")

CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


class Lab:
    """The three namespaces, what runs in them and the sockets opened there; a context manager that removes it all.

    client_addresses, server_addresses: further addresses of the endpoints, inside their subnets.
    client_phantoms, server_phantoms: addresses on that side that no kernel owns.
    mtu: of every link, or of (in0's link, out0's link).
    bridge: the firewall is a wire, see above.  offload: checksum and segmentation offloads of every device.
    """

    def __init__(
        self,
        *,
        client_addresses: Sequence[str] = (),
        server_addresses: Sequence[str] = (),
        client_phantoms: Sequence[str] = (),
        server_phantoms: Sequence[str] = (),
        mtu: int | tuple[int, int] = 1500,
        offload: bool = True,
        wire: bool = False,
        bridge: bool = False,
    ) -> None:
        self._name = f"{PREFIX}{os.getpid()}x{next(_numbers)}-"
        self.names = {role: self._name + role for role in ROLES}
        self._addresses = {"client": client_addresses, "server": server_addresses}
        self._phantoms = {"client": client_phantoms, "server": server_phantoms}
        self._mtus = (mtu, mtu) if isinstance(mtu, int) else mtu
        self._offload = offload
        self._wire = wire
        self._bridge = bridge
        self._stack = ExitStack()
        self._processes: dict[int, Path] = {}  # pid -> its output

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process, close every socket and remove the namespaces; a second call does nothing."""
        self._stack.close()

    # Programs

    def command(self, ns: str, argv: Sequence[str]) -> list[str]:
        """`argv` as the command line that runs it in the namespace of that role."""
        return ["ip", "netns", "exec", self.names[ns], *argv]

    def run(
        self, ns: str, argv: Sequence[str], timeout: float = 20, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; with `check`, raise LabError with its output unless it succeeds."""
        done = subprocess.run(self.command(ns, argv), capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr or done.stdout}".strip())
        return done

    def popen(self, ns: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program that ends with the lab at the latest; `output()` gives what it has written."""
        path = self.directory / f"{len(self._processes)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                self.command(ns, argv), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options
            )
        self._processes[process.pid] = path
        self._stack.callback(end, process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Everything that a program started with `popen()` has written so far."""
        return self._processes[process.pid].read_text(errors="replace")

    def serve(self, ns: str, argv: Sequence[str], port: int, protocol: str = "tcp") -> subprocess.Popen[bytes]:
        """Start a server and return once it listens on the port."""
        process = self.popen(ns, argv)
        flag = {"tcp": "-t", "udp": "-u"}[protocol]

        def listens() -> bool:
            if process.poll() is not None:
                raise LabError(f"{' '.join(argv)}: exit {process.returncode}: {self.output(process)}")
            return bool(self.run(ns, ["ss", "-Hnl", flag, f"sport = :{port}"]).stdout)

        poll(listens, 10, f"{argv[0]} to listen on {protocol} port {port}")
        return process

    def started(self) -> set[int]:
        """The pids of every program started with `popen()`, ended or not."""
        return set(self._processes)

    def pids(self, ns: str) -> set[int]:
        """Every process in the namespace."""
        return namespace_pids(self.names[ns])

    # Sockets

    @contextmanager
    def inside(self, ns: str) -> Iterator[None]:
        """What this thread opens here (sockets, /proc/sys/net) belongs to the namespace."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.names[ns]}") as away:
            _setns(away.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def udp(self, ns: str, port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        """A bound UDP socket with a timeout of 3 s, closed with the lab; address "::" makes it IPv6."""
        return self._bound(ns, socket.SOCK_DGRAM, address, port)

    def listener(self, ns: str, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A listening TCP socket with a timeout of 3 s, closed with the lab."""
        listening = self._bound(ns, socket.SOCK_STREAM, address, port)
        listening.listen(128)
        return listening

    def connect(self, ns: str, to: tuple[str, int], port: int = 0, timeout: float = 3) -> socket.socket:
        """A connected TCP socket, closed with the lab; OSError as connect(2) reports it."""
        connected = self._bound(ns, socket.SOCK_STREAM, "::" if ":" in to[0] else "0.0.0.0", port)
        connected.settimeout(timeout)
        connected.connect(to)
        return connected

    @contextmanager
    def capture(self, ns: str, interface: str = "eth0", expression: str = "") -> Iterator[Capture]:
        """Everything that crosses the interface and matches the tcpdump expression; readable afterwards too."""
        with self.inside(ns):
            capture = Capture(interface, expression)
        try:
            yield capture
        finally:
            capture.close()

    def inject(self, ns: str, *datagrams: Any) -> None:
        """Send IP datagrams (bytes, or scapy packets) from an endpoint to its next hop, whatever they contain."""
        peer = self._next_hop(ns)
        addresses = bytes.fromhex((peer + MACS[ns, "eth0"]).replace(":", ""))
        with self.inside(ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            out.bind(("eth0", ETH_P_ALL))
            for data in map(bytes, datagrams):
                kind = b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00"
                out.send(addresses + kind + data)

    def reaches(self, ns: str, *addresses: str) -> None:
        """An endpoint knows its next hop as the way to these addresses of its subnet, too."""
        self._batch(ns, _neighbours("eth0", self._next_hop(ns), *addresses))

    # The firewall namespace

    @contextmanager
    def firewall(self, config: Mapping[str, Any] | Path, *options: str) -> Iterator[Firewall]:
        """The daemon, ready, with further options for `run`; it must stop cleanly and leave nothing behind."""
        firewall = Firewall(self, config, options)
        try:
            firewall.start()
            yield firewall
            firewall.stop()
        except BaseException as error:
            error.add_note(f"the daemon said: {firewall.log()}")
            firewall.kill()
            raise

    def sysctl(self, ns: str, settings: Mapping[str, str]) -> None:
        """Set what /proc/sys/net has of these, by path: {"ipv4/ip_forward": "1"}."""
        with self.inside(ns):
            for key, value in settings.items():
                with suppress(FileNotFoundError):
                    Path("/proc/sys/net", key).write_text(value)

    def set_offloads(self, on: bool) -> None:
        """Checksum and segmentation offloads of every device, which decide whether super-packets are seen."""
        flags = [word for feature in OFFLOADS for word in (feature, "on" if on else "off")]
        for ns, interface in (*INSIDE, *OUTSIDE):
            self.run(ns, ["ethtool", "-K", interface, *flags], check=True)

    def set_mtu(self, ns: str, interface: str, mtu: int) -> None:
        """Change one device's MTU, for path-MTU tests."""
        self.run(ns, ["ip", "link", "set", interface, "mtu", str(mtu)], check=True)

    # Building

    def _build(self) -> None:
        remove_leavings()
        self.directory = Path(tempfile.mkdtemp(prefix=self._name))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        for role, name in self.names.items():
            self._stack.callback(remove_namespace, name)
            _ip("netns", "add", name)
            self.sysctl(role, SYSCTLS)
        if not self._bridge:
            self.sysctl("firewall", FORWARDING)
        self._link(INSIDE, self._mtus[0])
        self._link(OUTSIDE, self._mtus[1])
        if self._wire:
            self._link(WIRE, self._mtus[0])
        for role in ROLES:
            self._batch(role, self._bridge_settings(role) if self._bridge else self._settings(role))
        if not self._offload:
            self.set_offloads(False)
        if self._bridge:
            poll(self._is_connected, 5, "carrier on in0 and out0")

    def _is_connected(self) -> bool:
        """No neighbour entry waits for the ports of a wire, so a packet sent before they have a carrier is lost."""
        shown = [self.run("firewall", ["ip", "-o", "link", "show", port]).stdout for port in ("in0", "out0")]
        return all(" state UP " in line for line in shown)

    def _link(self, ends: tuple[tuple[str, str], tuple[str, str]], mtu: int) -> None:
        (ns, name), (peer_ns, peer_name) = ends
        near = [name, "address", MACS[ns, name], "mtu", str(mtu)]
        far = [peer_name, "address", MACS[peer_ns, peer_name], "mtu", str(mtu), "netns", self.names[peer_ns]]
        _ip("-n", self.names[ns], "link", "add", *near, "type", "veth", "peer", "name", *far)

    def _settings(self, role: str) -> list[str]:
        """The lines of `ip -batch` that give a namespace its addresses, neighbours and routes."""
        lines = ["link set lo up"]
        if role == "firewall":
            lines += _addresses("in0", IN0, IN06) + _addresses("out0", OUT0, OUT06)
            for side, device in (("client", "in0"), ("server", "out0")):
                own = (CLIENT, CLIENT6) if side == "client" else (SERVER, SERVER6)
                lines += _neighbours(device, MACS[side, "eth0"], *own, *self._addresses[side], *self._phantoms[side])
            return lines
        own, gateways, router = {
            "client": ((CLIENT, CLIENT6), (IN0, IN06), MACS["firewall", "in0"]),
            "server": ((SERVER, SERVER6), (OUT0, OUT06), MACS["firewall", "out0"]),
        }[role]
        lines += _addresses("eth0", *own, *self._addresses[role]) + _neighbours("eth0", router, *gateways)
        lines += [f"route add default via {gateway}" for gateway in gateways]
        if self._wire:
            near, far = (WIRE_CLIENT, WIRE_SERVER) if role == "client" else (WIRE_SERVER, WIRE_CLIENT)
            other = "server" if role == "client" else "client"
            lines += _addresses("wire0", near) + _neighbours("wire0", MACS[other, "wire0"], far)
        return lines

    def _next_hop(self, role: str) -> str:
        """The MAC address to which an endpoint sends what is for the other."""
        if self._bridge:
            return MACS[{"client": "server", "server": "client"}[role], "eth0"]
        return MACS["firewall", {"client": "in0", "server": "out0"}[role]]

    def _bridge_settings(self, role: str) -> list[str]:
        if role == "firewall":
            return ["link set lo up", "link set in0 up", "link set out0 up"]
        own, other = {
            "client": ((CLIENT, CLIENT6), (SERVER, SERVER6)),
            "server": ((SERVER, SERVER6), (CLIENT, CLIENT6)),
        }[role]
        prefixes = [f"{a}/16 nodad" if ":" in a else f"{a}/8" for a in (*own, *self._addresses[role])]
        lines = ["link set lo up", "link set eth0 up", *(f"address add dev eth0 {prefix}" for prefix in prefixes)]
        return lines + _neighbours("eth0", self._next_hop(role), *other)

    def _batch(self, ns: str, lines: Sequence[str]) -> None:
        command = ["ip", "-n", self.names[ns], "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{self.names[ns]}: {done.stderr.strip()}")

    def _bound(self, ns: str, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.inside(ns):
            made = socket.socket(family, kind)
        self._stack.callback(made.close)
        if port or kind is socket.SOCK_STREAM:  # for UDP the kernel might choose a port that another socket of ours has
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(3)
        made.bind((address, port))
        return made


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that has not ended three seconds later."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def remove_leavings() -> None:
    """Remove the namespaces and directories of labs whose process was killed."""
    for path in (*Path("/run/netns").glob(f"{PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        owner = NAME.match(path.name)
        if not owner or Path("/proc", owner[1]).exists():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove_namespace(path.name)


def namespace_pids(name: str) -> set[int]:
    """Every process in a named network namespace, none if there is no such namespace."""
    listing = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    return set(map(int, listing.split()))


def remove_namespace(name: str) -> None:
    """Kill what runs in the namespace and delete it; it may not exist, and another lab may be faster."""
    for pid in namespace_pids(name) - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _addresses(device: str, *addresses: str) -> list[str]:
    prefixes = [f"{address}/64 nodad" if ":" in address else f"{address}/24" for address in addresses]
    return [f"link set {device} up", *(f"address add dev {device} {prefix}" for prefix in prefixes)]


def _neighbours(device: str, mac: str, *addresses: str) -> list[str]:
    return [f"neighbour replace {address} lladdr {mac} dev {device} nud permanent" for address in addresses]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
