"""One round of one row: every column's figure, each bounded in packets and in time."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as File
from statistics import median, quantiles
from typing import Any

from tests.bench.rows import DESTINATIONS, SOURCES, Path
from tests.lab.lab import CLIENT, SERVER, WIRE_CLIENT, WIRE_SERVER, Lab, LabError

SOURCE = File(__file__).with_name("traffic.c")
COMPILE = ("gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

NEW_FLOWS = 50_000  # at most in one measurement: masquerade and the ager stay well below their limits
CONNECTIONS = 20_000  # likewise
FIRST_PACKETS = 1_000
ROUND_TRIPS = 5_000
DELAY_MS = 2_000  # at most for one series of delays
ONE_FLOW = -1
PORT = 5001  # of the server, as in traffic.c


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a round takes."""

    rounds: int
    tcp_seconds: int
    rate_ms: int


FULL = Effort(rounds=5, tcp_seconds=3, rate_ms=1000)
QUICK = Effort(rounds=3, tcp_seconds=1, rate_ms=500)


@dataclass(frozen=True, slots=True)
class Round:
    """Figures by column, None where a row has none, and the share of packets that never arrived by column."""

    figures: dict[str, float | None]
    lost: dict[str, float]


class Meter:
    """The compiled packet generator, the lab with the direct wire, and how long to measure."""

    def __init__(self, directory: File, effort: Effort) -> None:
        self._program = directory / "traffic"
        self.effort = effort
        done = subprocess.run([*COMPILE, "-o", self._program, SOURCE], capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"traffic.c does not compile: {done.stderr}")

    def round(self, path: Path, wired: Lab) -> Round:
        """Measure everything once; `wired` is the lab that has the direct wire to compare with."""
        lost: dict[str, float] = {}
        p50, p99 = self.first_packets(path, lost)
        figures = {
            "tcp": self.tcp(path.lab),
            "pps": self._packet_rate(path.lab, lost),
            "added": self._round_trip(path.lab, CLIENT, SERVER) - self._round_trip(wired, WIRE_CLIENT, WIRE_SERVER),
            "sessions": self.session_rate(path, lost),
            "connections": self._connection_rate(path, lost),
            "p50": p50,
            "p99": p99,
            "memory": path.session_bytes(),
        }
        return Round(figures, lost)

    def tcp(self, lab: Lab) -> float:
        """Gbit/s of one stream as its receiver counts them."""
        seconds = self.effort.tcp_seconds
        command = ["iperf3", "-J", "-c", SERVER, "-t", str(seconds)]
        done = lab.run("client", command, timeout=seconds + 20, check=True)
        received: float = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]
        return received / 1e9

    def _packet_rate(self, lab: Lab, lost: dict[str, float]) -> float:
        """Packets a second of one UDP flow, 64 bytes each."""
        result = self.traffic(lab, "rate", CLIENT, SERVER, 1 << 40, self.effort.rate_ms, ONE_FLOW)
        lost["pps"] = result["lost"] / (result["packets"] + result["lost"])
        return float(result["packets"] / result["seconds"])

    def session_rate(self, path: Path, lost: dict[str, float]) -> float:
        """First packets, each of a new UDP flow, that arrive in a second."""
        result = self.new_flows(path, "rate", NEW_FLOWS, self.effort.rate_ms)
        lost["sessions"] = result["lost"] / (result["packets"] + result["lost"])
        return float(result["packets"] / result["seconds"])

    def _connection_rate(self, path: Path, lost: dict[str, float]) -> float:
        """TCP connections a second that are opened, carry a byte and are closed by both ends."""
        result = self.traffic(path.lab, "connect", CLIENT, DESTINATIONS, CONNECTIONS, self.effort.rate_ms, ONE_FLOW)
        lost["connections"] = result["lost"] / (result["packets"] + result["lost"])
        return float(result["packets"] / result["seconds"])

    def first_packets(self, path: Path, lost: dict[str, float]) -> tuple[float, float]:
        """Median and 99th percentile, in µs, of one new flow's first packet at a time."""
        result = self.new_flows(path, "delay", FIRST_PACKETS, DELAY_MS)
        lost["p50"] = result["lost"] / (len(result["delays"]) + result["lost"])
        percentiles = quantiles(delays_of(result), n=100)
        return percentiles[49] / 1000, percentiles[98] / 1000

    def _round_trip(self, lab: Lab, source: str, destination: str) -> float:
        """Median of half a round trip, in ns."""
        return median(delays_of(self.traffic(lab, "delay", source, destination, ROUND_TRIPS, DELAY_MS, ONE_FLOW)))

    def new_flows(self, path: Path, mode: str, count: int, milliseconds: int) -> Mapping[str, Any]:
        """Flows that this path has never seen."""
        first, path.flows = path.flows, path.flows + count
        return self.traffic(path.lab, mode, SOURCES, DESTINATIONS, count, milliseconds, first)

    def traffic(
        self,
        lab: Lab,
        mode: str,
        source: str,
        destination: str,
        count: int,
        milliseconds: int,
        flow: int,
        port: int = PORT,
    ) -> Mapping[str, Any]:
        """One run of traffic.c to its end. Raises LabError."""
        command = self.traffic_command(lab, mode, source, destination, count, milliseconds, flow, port)
        done = subprocess.run(command, capture_output=True, text=True, timeout=milliseconds / 1000 + 10)
        if done.returncode:
            raise LabError(f"traffic {mode}: {done.stderr.strip()}")
        result: Mapping[str, Any] = json.loads(done.stdout)
        return result

    def traffic_command(self, lab: Lab, mode: str, source: str, destination: str, *numbers: int) -> list[str]:
        """The same as a command line."""
        ends = (lab.names["client"], lab.names["server"], source, destination)
        return [str(self._program), mode, *ends, *map(str, numbers)]


def delays_of(result: Mapping[str, Any]) -> list[float]:
    """The delays that were measured, in ns. Raises LabError if too few packets arrived."""
    if len(result["delays"]) < 2:
        raise LabError(f"{result['lost']} packets sent, none arrived")
    return [float(delay) for delay in result["delays"]]
