"""What a flood that is refused leaves of the traffic that was there before.

RATE new flows a second, every one of them to be refused, cross each row's lab while an established TCP stream, and
then an established UDP ping-pong, go on: the share of the stream that is kept, and the ping-pong's 99th percentile.
nftables drops them in its forward chain, Open vSwitch by a flow, this firewall by a rule of the policy, which makes a
DISCARD session of each and a line in the log.  Plain forwarding refuses nothing: it delivers them to a socket that
nobody reads.

The generator is one more load on the machine beside the stream's two ends, so plain forwarding loses something too: it
is the yardstick.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from tests.bench.measure import ONE_FLOW, Meter, delays_of
from tests.bench.ovs import OpenVSwitch
from tests.bench.rows import (
    ALLOW,
    DESTINATIONS,
    NFT,
    POOL,
    SOURCES,
    UDP_TIMEOUT,
    Path,
    Rows,
    configuration,
    plain,
    prepare,
    served_lab,
)
from tests.lab.lab import CLIENT, SERVER, LabError, poll
from tests.lab.witness import received_packets

RATE = 50_000  # new flows a second
FLOOD_PORT = 5003  # that the flood goes to
LEAD = 1  # seconds of the stream that are left out: it is there before the flood, which begins meanwhile
LEAD_MS = 300  # the same of the ping-pong, a packet each
LOST = 100e6  # ns, what a lost packet of the ping-pong counts as: how long traffic.c waits for one
TRIAL_MS = 200
PATIENCE = 20  # seconds
REFUSE = f"udp dport {FLOOD_PORT} drop"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each measurement takes."""

    rounds: int
    tcp_seconds: int
    ping_ms: int


FULL = Effort(rounds=5, tcp_seconds=3, ping_ms=3000)
QUICK = Effort(rounds=2, tcp_seconds=1, ping_ms=1000)


@contextmanager
def nftables() -> Iterator[Path]:
    """As in the first table, and the flood dropped in the forward chain."""
    established = "ct state established,related accept"
    with served_lab() as lab:
        lab.run("firewall", ["nft", NFT.replace(established, f"{established}\n        {REFUSE}")], check=True)
        yield Path(lab)


@contextmanager
def open_vswitch() -> Iterator[Path]:
    """As in the first table, and the flood dropped before anything is committed. Raises Unavailable."""
    with served_lab() as lab:
        OpenVSwitch(lab).start(POOL, UDP_TIMEOUT, refused=[f"udp,tp_dst={FLOOD_PORT}"])
        yield Path(lab)


@contextmanager
def ours(offload: bool) -> Iterator[Path]:
    """As in the first table, and a rule that denies the flood before the one that allows; refusals are logged."""
    config = configuration(source_nat=True, offload=offload)
    flooded = {**ALLOW, "name": "flood", "service": ["flood"], "action": "deny"}
    config["services"] = {"flood": {"protocol": "udp", "destination-port": str(FLOOD_PORT)}}
    config["security-rules"].insert(-1, flooded)
    with served_lab() as lab, lab.firewall(config):
        yield Path(lab)


ROWS: Rows = {
    "plain": ("plain kernel forwarding", plain),
    "nftables": ("nftables, dropped in forward", nftables),
    "ovs": ("Open vSwitch userspace, NAT", open_vswitch),
    "ours-snat": ("this firewall, source NAT", lambda: ours(offload=False)),
    "offload-snat": ("this firewall, NAT, offloaded", lambda: ours(offload=True)),
}


Progress = Callable[[str], None]


def measure(meter: Meter, effort: Effort, progress: Progress) -> dict[str, Any]:
    """A line for each row, medians over interleaved rounds, and why a row is absent. Raises LabError."""
    with ExitStack() as stack:
        paths, absent = prepare(ROWS, stack, progress)
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
        for number in range(effort.rounds):
            for name, path in paths.items():
                progress(f"flood, round {number + 1} of {effort.rounds}: {ROWS[name][0]}")
                samples[name].append(one_round(meter, path, effort))
    rows = [
        {"name": name, "title": ROWS[name][0], "samples": rounds}
        | {key: median(round_[key] for round_ in rounds) for key in rounds[0]}
        for name, rounds in samples.items()
    ]
    return {"rows": rows, "absent": absent}


def one_round(meter: Meter, path: Path, effort: Effort) -> dict[str, float]:
    """Both kinds of traffic without and with the flood, and how much of a flood alone arrives."""
    tcp = stream(meter, path, effort, flooded=False)
    tcp_flooded = stream(meter, path, effort, flooded=True)
    p99 = ping(meter, path, effort, flooded=False)
    p99_flooded = ping(meter, path, effort, flooded=True)
    rate, delivered = alone(meter, path)
    return {
        "tcp": tcp,
        "tcp_flooded": tcp_flooded,
        "kept": tcp_flooded / tcp,
        "p99": p99,
        "p99_flooded": p99_flooded,
        "rate": rate,
        "delivered": delivered,
    }


def stream(meter: Meter, path: Path, effort: Effort, *, flooded: bool) -> float:
    """Gbit/s of one stream that was there before."""
    seconds = effort.tcp_seconds
    command = ["iperf3", "-J", "-c", SERVER, "-t", str(seconds), "-O", str(LEAD)]
    before = received_packets(path.lab, "server")
    with running(path.lab.command("client", command)) as iperf:
        poll(lambda: received_packets(path.lab, "server") > before + RATE / 100, PATIENCE, "the stream to flow")
        with flood(meter, path, (seconds + LEAD) * 1000) if flooded else ExitStack():
            result = output(iperf, seconds + PATIENCE)
    figure: float = result["end"]["sum_received"]["bits_per_second"]
    return figure / 1e9


def ping(meter: Meter, path: Path, effort: Effort, *, flooded: bool) -> float:
    """99th percentile in µs of a UDP ping-pong that was there before; a lost packet counts as LOST."""
    milliseconds = effort.ping_ms + LEAD_MS
    command = meter.traffic_command(path.lab, "ping", CLIENT, SERVER, milliseconds, milliseconds, ONE_FLOW)
    with running(command) as pings, flood(meter, path, milliseconds) if flooded else ExitStack():
        result = output(pings, PATIENCE)
    delays = delays_of(result)[LEAD_MS:] + [LOST] * result["lost"]
    return quantiles(delays, n=100)[98] / 1000


def alone(meter: Meter, path: Path) -> tuple[float, float]:
    """Flows a second that the generator begins, and the share that the server's device sees."""
    before = received_packets(path.lab, "server")
    with flood(meter, path, TRIAL_MS) as process:
        result = output(process, PATIENCE)
    return result["packets"] / result["seconds"], (received_packets(path.lab, "server") - before) / result["packets"]


def flood(meter: Meter, path: Path, milliseconds: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """New flows that this path has never seen, paced."""
    first, path.flows = path.flows, path.flows + RATE * (milliseconds + 1000) // 1000
    numbers = (RATE, milliseconds, first, FLOOD_PORT)
    return running(meter.traffic_command(path.lab, "flood", SOURCES, DESTINATIONS, *numbers))


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, if it has not come to its end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def output(process: subprocess.Popen[str], seconds: float) -> Mapping[str, Any]:
    """The JSON that a process prints at its end. Raises LabError."""
    printed, complaint = process.communicate(timeout=seconds)
    if process.returncode:
        raise LabError(f"{process.args!r}: exit {process.returncode}: {complaint.strip() or printed.strip()}")
    result: Mapping[str, Any] = json.loads(printed)
    return result


def show(report: Mapping[str, Any]) -> None:
    """The table, a line a row."""
    print(f"\nBeside {RATE:,} new flows a second that are refused (plain forwarding delivers them)\n")
    heads = ["TCP Gbit/s", "flooded", "kept", "UDP p99 µs", "flooded", "flows 1/s", "delivered"]
    print(f"{'':<31}" + "".join(f"{head:>13}" for head in heads))
    for row in report["rows"]:
        cells = [
            f"{row['tcp']:.2f}",
            f"{row['tcp_flooded']:.2f}",
            f"{row['kept']:.2f}",
            f"{row['p99']:.1f}",
            f"{row['p99_flooded']:.1f}",
            f"{row['rate']:,.0f}",
            f"{row['delivered']:.1%}",
        ]
        print(f"{row['title']:<31}" + "".join(f"{cell:>13}" for cell in cells))
    for name, reason in report["absent"].items():
        print(f"{ROWS[name][0]}: left out: {reason}")
