"""Open vSwitch's userspace datapath as a router: connection tracking and source NAT in one process, as here.

Both devices of the firewall namespace are ports of a bridge with datapath_type=netdev.  What it takes from them the
kernel must not forward too, so that an ingress hook, which comes after packet sockets, drops everything.  Its flows are
a router's: track, admit what the inside begins, then exchange the MAC addresses and count down the TTL.

Its ports are packet sockets that pass super-packets, served by one thread that sleeps while nothing comes, as the other
rows' programs do.  A poll-mode thread (AF_XDP, DPDK) would take a core for itself, from the other rows too.

Nothing is a service of the system: database, sockets and pid files lie in the lab's directory, and both processes end
with the lab.  PROGRAMS is where the Makefile unpacks the package without installing it.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.lab import MACS, Lab, LabError, poll

PROGRAMS = Path(__file__).parents[2] / "build" / "ovs"
PLACES = ("usr/sbin", "usr/bin", "usr/lib/openvswitch-switch")
SCHEMA = "usr/share/openvswitch/vswitch.ovsschema"
STARTS = 10.0  # seconds at most

ONLY_OVS = """
table netdev bench {
    chain in0 { type filter hook ingress device in0 priority 0; policy drop; }
    chain out0 { type filter hook ingress device out0 priority 0; policy drop; }
}
"""


class Unavailable(LabError):
    """What a row needs is not on this machine: the bench goes on without it."""


def program(name: str) -> str:
    """Where a program of the package is. Raises Unavailable."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *(str(PROGRAMS / place) for place in PLACES)])
    found = shutil.which(name, path=path)
    if not found:
        raise Unavailable(f"{name} is not installed (Debian: openvswitch-switch)")
    return found


def schema() -> str:
    """The layout of the database. Raises Unavailable."""
    for root in (PROGRAMS, Path("/")):
        if (root / SCHEMA).exists():
            return str(root / SCHEMA)
    raise Unavailable(f"{SCHEMA} is not installed (Debian: openvswitch-switch)")


def flows(pool: str, refused: Sequence[str]) -> list[str]:
    """OpenFlow: 0 tracks, 1 filters and translates, 2 routes. What matches `refused` begins no connection."""
    return [
        *(f"table=1,priority=15,{match},ct_state=+trk+new,actions=drop" for match in refused),
        "table=0,priority=10,ip,actions=ct(table=1,zone=1,nat)",
        "table=0,priority=0,actions=drop",
        "table=1,priority=20,ct_state=+trk+est-inv,ip,actions=goto_table:2",
        "table=1,priority=20,ct_state=+trk+rel-inv,ip,actions=goto_table:2",
        f"table=1,priority=10,in_port=in0,ct_state=+trk+new-inv,ip,actions=ct(commit,zone=1,nat(src={pool}),table=2)",
        "table=1,priority=0,actions=drop",
        _hop("in0", "out0", "server"),
        _hop("out0", "in0", "client"),
        "table=2,priority=0,actions=drop",
    ]


def _hop(from_port: str, to_port: str, host: str) -> str:
    near, far = MACS["firewall", to_port], MACS[host, "eth0"]
    return (
        f"table=2,priority=10,in_port={from_port},ip,"
        f"actions=dec_ttl,mod_dl_src:{near},mod_dl_dst:{far},output:{to_port}"
    )


class OpenVSwitch:
    """The two processes of one lab's firewall namespace."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._directory = lab.directory / "ovs"
        self._database = f"unix:{self._directory}/db.sock"

    def start(self, pool: str, udp_timeout: int, refused: Sequence[str] = ()) -> None:
        """Forward, with source translation to the pool. Raises Unavailable where that cannot be had."""
        names = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl")
        programs = {name: program(name) for name in names}
        self._directory.mkdir()
        try:
            self._start(programs, udp_timeout)
            self._forward(programs, flows(pool, refused))
        except LabError as error:
            raise Unavailable(f"Open vSwitch does not run here: {str(error).splitlines()[-1]}") from error

    def _start(self, programs: Mapping[str, str], udp_timeout: int) -> None:
        database = str(self._directory / "conf.db")
        self._run([programs["ovsdb-tool"], "create", database, schema()])
        self._serve(programs["ovsdb-server"], f"--remote=p{self._database}", database)
        self._configure(programs, "--no-wait", "init")
        # Super-packets, as every other row takes them from these devices; without it they would be cut off and dropped.
        self._configure(programs, "--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
        self._serve(programs["ovs-vswitchd"], self._database)
        bridge = ("set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure")
        self._configure(programs, "add-br", "br0", "--", *bridge)
        for port in ("in0", "out0"):
            self._configure(programs, "add-port", "br0", port)
        datapath = ("--id=@d", "create", "Datapath", "datapath_version=0")
        self._configure(programs, *datapath, "--", "set", "Open_vSwitch", ".", "datapaths:netdev=@d")
        timeouts = [f"{timer}={udp_timeout}" for timer in ("udp_first", "udp_single", "udp_multiple")]
        self._configure(programs, "add-zone-tp", "netdev", "zone=1", *timeouts)

    def _forward(self, programs: Mapping[str, str], lines: Sequence[str]) -> None:
        self._lab.run("firewall", ["nft", ONLY_OVS], check=True)
        file = self._directory / "flows"
        file.write_text("\n".join(lines) + "\n")
        bridge = f"unix:{self._directory}/br0.mgmt"
        self._run([programs["ovs-ofctl"], "-O", "OpenFlow14", "add-flows", bridge, str(file)])

    def _configure(self, programs: Mapping[str, str], *words: str) -> None:
        self._run([programs["ovs-vsctl"], f"--db={self._database}", f"--timeout={STARTS:.0f}", *words])

    def _run(self, argv: list[str]) -> None:
        self._lab.run("firewall", [*self._environment(), *argv], timeout=STARTS + 5, check=True)

    def _serve(self, argv0: str, *arguments: str) -> None:
        name = Path(argv0).name
        control = self._directory / f"{name}.ctl"
        options = [f"--unixctl={control}", f"--pidfile={self._directory}/{name}.pid", "--no-chdir"]
        process = self._lab.popen("firewall", [*self._environment(), argv0, *arguments, *options])

        def answers() -> bool:
            if process.poll() is not None:
                raise LabError(f"{name}: exit {process.returncode}: {self._lab.output(process).strip()}")
            return control.exists()

        poll(answers, STARTS, f"{name} to listen")

    def _environment(self) -> list[str]:
        return ["env", *(f"OVS_{kind}={self._directory}" for kind in ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR"))]
