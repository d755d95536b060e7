"""How the figures grow: with the sessions that the table holds, and with the rules before the one that matches.

Sessions: a daemon whose table has exactly that size, filled over the network.  Most stay; EXPIRING of them are of an
application with a short timer, begun and therefore expired as fast as the daemon begins sessions, each logged.
`ager` is the processor time of the whole daemon from the first that expires to the last that is free again, `late` how
long after their time the last of them is seen free.  Look-ups are timed by lookup.c, without a daemon.

Rules: a policy whose last rule matches.  `load` reads and compiles the file in this process; the first packets meet one
daemon with the dispatch cache and one without.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as File
from statistics import median
from typing import Any

from dataplane.client import request
from dataplane.policy.compile import compile_policy
from dataplane.policy.load import load
from tests.bench.lookup import Lookup
from tests.bench.measure import ONE_FLOW, PORT, Meter
from tests.bench.rows import ALLOW, DESTINATIONS, SOURCE_NAT, SOURCES, Path, configuration, deny, served_lab
from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, LabError, poll
from tests.lab.witness import resident

SERIES = ("alone", "ours", "single", "bulk", "reached")  # the series of lookup.c
EXPIRING = 100_000
SHORT_PORT = 5002
SHORT = 20  # seconds: the queries are answered meanwhile
STAYS = 15_000  # seconds
FILL_RATE = 15_000  # sessions a second that the slowest machine should manage; fewer in all say nothing about a rate
ENOUGH = 0.999  # of the sessions; what is lost on the way is sent again
ATTEMPTS = 5
BYTES_EACH = 1024  # of free memory a session, for the daemon's table and DPDK's
SETTLE = 1.0  # seconds over which an idle daemon's processor time is taken

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How far the tables go."""

    sessions: Sequence[int]
    rules: Sequence[tuple[int, int]]  # security rules, NAT rules
    rounds: int


FULL = Sizes((1_000, 100_000, 1_000_000, 10_000_000), ((10, 1), (10_000, 1), (10, 1_000)), 5)
QUICK = Sizes((1_000, 100_000), ((10, 1), (2_000, 1), (10, 200)), 3)


def measure(meter: Meter, sizes: Sizes, directory: File, progress: Progress) -> dict[str, Any]:
    """Both tables. Raises LabError."""
    progress("building lookup.c")
    lookup = Lookup(directory)
    sessions = []
    for number in sizes.sessions:
        if number * BYTES_EACH > available_memory():
            progress(f"{number:,} sessions: left out, too little memory")
            continue
        progress(f"{number:,} sessions")
        sessions.append(of_sessions(meter, number) | look_ups(lookup, number, sizes.rounds))
    rules = []
    for security, nat in sizes.rules:
        progress(f"{security:,} security rules, {nat:,} NAT rules")
        rules.append(of_rules(meter, security, nat, sizes.rounds))
    return {"sessions": sessions, "rules": rules, "dpdk": lookup.dpdk}


def available_memory() -> int:
    """Bytes that processes may still take."""
    lines = File("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def look_ups(lookup: Lookup, sessions: int, rounds: int) -> dict[str, Any]:
    """Medians in ns by the names of lookup.c, and every round."""
    result = lookup.measure(sessions, rounds)
    rounds_by_name = {name: result[name] for name in SERIES if name in result}
    figures = {f"lookup_{name}": median(samples) for name, samples in rounds_by_name.items()}
    return {**figures, "lookup_rounds": rounds_by_name}


# ---- sessions ----


def of_sessions(meter: Meter, number: int) -> dict[str, Any]:
    """One line of the first table. Raises LabError."""
    with served_lab() as lab, unlogged(lab, filled_configuration(number)) as firewall:
        daemon = Daemon(firewall)
        start = restart(firewall)
        info = daemon.info()
        path = Path(lab)
        meter.traffic(lab, "delay", CLIENT, SERVER, 1, 1000, ONE_FLOW)
        expiring = EXPIRING if number >= EXPIRING else 0
        began = time.monotonic()
        fill(meter, path, daemon, number - expiring, PORT)
        figures: dict[str, Any] = {
            "sessions": number,
            "start": start,
            "bytes": info["bytes_per_session"],
            "fill": (number - expiring) / (time.monotonic() - began) if number - expiring >= FILL_RATE else None,
        }
        stays = daemon.allocated()
        if expiring:
            figures |= expire(meter, path, daemon, number)
        figures |= {"held": daemon.allocated(), "resident": resident(firewall.pid)}
        figures |= {
            "count": wall(lambda: firewall.cli("show", "session", "all", "filter", "count", "yes", timeout=120)),
            "find": wall(lambda: firewall.cli("show", "session", "all", "filter", "source", CLIENT, timeout=120)),
            "commit": commit(firewall, filled_configuration(number)),
        }
        if expiring:
            figures |= daemon.watch_expiry(stays, figures.pop("due"))
        return figures


def filled_configuration(number: int) -> dict[str, Any]:
    """A table of exactly that size, no accelerated ageing; only what expires is logged."""
    quiet = {**ALLOW, "log-start": False, "log-end": False}
    short = {**quiet, "name": "short", "application": ["short"], "log-end": True}
    made = configuration(source_nat=False)
    made["applications"] = {"short": {"default-ports": [f"udp/{SHORT_PORT}"], "udp-timeout": SHORT}}
    made["security-rules"] = [short, quiet]
    made["settings"]["session"] = {
        "max-sessions": number,
        "timeouts": {"udp": STAYS},
        "accelerated-aging": {"enabled": False},
    }
    return made


@contextmanager
def unlogged(lab: Lab, config: Mapping[str, Any]) -> Iterator[Firewall]:
    """A daemon that is killed at the end: ten million sessions would be ended and counted one by one."""
    firewall = Firewall(lab, config)
    try:
        firewall.start()
        yield firewall
    except BaseException as error:
        error.add_note(f"the daemon said: {firewall.log()}")
        raise
    finally:
        firewall.kill()


def restart(firewall: Firewall) -> float:
    """Seconds from the daemon's start until it answers; the first one has read the namespace's footprint already."""
    firewall.stop()
    return wall(firewall.start)


def wall(call: Callable[[], Any]) -> float:
    """Seconds that a call takes. Raises LabError when a command fails."""
    began = time.monotonic()
    done = call()
    took = time.monotonic() - began
    if getattr(done, "returncode", 0):
        raise LabError(f"{done.args}: exit {done.returncode}: {done.stderr}")
    return took


def commit(firewall: Firewall, config: Mapping[str, Any]) -> float:
    """Seconds that the daemon takes to commit one rule more, which ends nothing: every live session is judged anew."""
    more = {**config, "security-rules": [{**deny(0), "name": "one-more"}, *config["security-rules"]]}
    order = {"config": more, "user": "bench", "source": "bench"}
    return wall(lambda: list(request(firewall.directory / "runtime", "commit", order)))


def fill(meter: Meter, path: Path, daemon: "Daemon", target: int, port: int) -> None:
    """Send first packets until the table holds the target. Raises LabError if it does not get there."""
    for _ in range(ATTEMPTS):
        missing = target - daemon.allocated()
        if missing <= target * (1 - ENOUGH):
            return
        milliseconds = 2000 + missing * 1000 // FILL_RATE
        meter.traffic(path.lab, "rate", SOURCES, DESTINATIONS, missing, milliseconds, path.flows, port)
        path.flows += missing
    raise LabError(f"{daemon.allocated()} sessions instead of {target}")


def expire(meter: Meter, path: Path, daemon: "Daemon", target: int) -> dict[str, Any]:
    """Begin the sessions that will expire; over how many seconds, and when the last of them is due."""
    began = time.monotonic()
    fill(meter, path, daemon, target, SHORT_PORT)
    ended = time.monotonic()
    return {"begun_within": ended - began, "due": ended + SHORT}


class Daemon:
    """What is asked of the daemon and of the kernel about it."""

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall

    def info(self) -> dict[str, Any]:
        """`show session info`, without a process for it."""
        [row] = request(self._firewall.directory / "runtime", "show session info", {})
        assert isinstance(row, dict)
        return row

    def allocated(self) -> int:
        """Sessions in the table."""
        number: int = self.info()["num_active"]
        return number

    def processor_time(self) -> float:
        """Seconds, of all threads."""
        words = File(f"/proc/{self._firewall.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def watch_expiry(self, left: int, due: float) -> dict[str, Any]:
        """Wait until only so many are left. Raises LabError if that does not happen."""
        full = self.allocated()
        before, began = self.processor_time(), time.monotonic()
        poll(lambda: self.allocated() < full or time.monotonic() - began > SETTLE, SHORT, "an idle second")
        idle = (self.processor_time() - before) / (time.monotonic() - began)
        poll(lambda: self.allocated() < full, 2 * SHORT, "the first session to expire")
        before, began = self.processor_time(), time.monotonic()
        poll(lambda: self.allocated() <= left, 2 * SHORT, "the last session to expire")
        ended = time.monotonic()
        busy = self.processor_time() - before - idle * (ended - began)
        return {"expired": full - self.allocated(), "ager": busy, "late": ended - due}


# ---- rules ----


def of_rules(meter: Meter, security: int, nat: int, rounds: int) -> dict[str, Any]:
    """One line of the second table. Raises LabError."""
    figures: dict[str, Any] = {"security": security, "nat": nat}
    for name, cached in (("cached", True), ("python", False)):
        config = many_rules(security, nat, cached)
        with served_lab() as lab, lab.firewall(config) as firewall:
            if cached:
                figures |= {"load": load_time(firewall.config, rounds), "start": restart(firewall)}
                figures |= {"commit": commit(firewall, config)}
            figures |= {f"{key}_{name}": figure for key, figure in first_packets(meter, Path(lab), rounds).items()}
    return figures


def many_rules(security: int, nat: int, dispatch_cache: bool) -> dict[str, Any]:
    """As in the first table, with so many rules of each kind, the last of which matches."""
    made = configuration(source_nat=True, dispatch_cache=dispatch_cache)
    made["security-rules"] = [*(deny(number) for number in range(security - 1)), ALLOW]
    made["nat-rules"] = [*(other_nat(number) for number in range(nat - 1)), SOURCE_NAT]
    return made


def other_nat(number: int) -> dict[str, Any]:
    """A NAT rule that no packet of the bench matches."""
    return {**SOURCE_NAT, "name": f"other-{number}", "source": deny(number)["source"]}


def load_time(file: File, rounds: int) -> float:
    """Seconds from a file to a compiled policy."""
    return median(wall(lambda: compile_policy(load(file))) for _ in range(rounds))


def first_packets(meter: Meter, path: Path, rounds: int) -> dict[str, float]:
    """Medians over rounds: delay of a new flow's first packet in µs, new sessions a second."""
    delays, rates = [], []
    for _ in range(rounds):
        delays.append(meter.first_packets(path, {})[0])
        rates.append(meter.session_rate(path, {}))
    return {"p50": median(delays), "rate": median(rates)}


# ---- what is printed ----

MILLE = 1000


def show(report: Mapping[str, Any]) -> None:
    """Both tables, a line a size."""
    print("\nBy sessions in the table\n")
    heads = [
        "bytes each",
        "resident MB",
        "start s",
        "fill 1/s",
        "alone ns",
        "burst ns",
        "rte_hash ns",
        "bulk ns",
        "reached ns",
        "burst : bulk",
    ]
    heads += ["count ms", "find one ms", "commit ms", "ager s", "of expired", "begun in s", "late s"]
    print(line("sessions", heads))
    for row in report["sessions"]:
        print(line(f"{row['sessions']:,}", session_cells(row)))
    if report["dpdk"]:
        print(f"rte_hash: DPDK is {report['dpdk']}")
    print("\nBy rules before the one that matches\n")
    heads = ["load ms", "start s", "commit ms", "1st pkt µs", "Python µs", "new/s", "Python new/s"]
    print(line("security + NAT", heads))
    for row in report["rules"]:
        print(line(f"{row['security']:,} + {row['nat']:,}", rule_cells(row)))


def session_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of one size."""
    ours, bulk = row.get("lookup_ours"), row.get("lookup_bulk")
    return [
        cell("{:.0f}", row["bytes"]),
        cell("{:,.0f}", row["resident"] / 1e6),
        cell("{:.2f}", row["start"]),
        cell("{:,.0f}", row["fill"]),
        *(cell("{:.0f}", row.get(f"lookup_{name}")) for name in SERIES),
        cell("{:.2f}", ours and bulk and ours / bulk),
        cell("{:.0f}", row["count"] * MILLE),
        cell("{:.0f}", row["find"] * MILLE),
        cell("{:.0f}", row["commit"] * MILLE),
        cell("{:.2f}", row.get("ager")),
        cell("{:,}", row.get("expired")),
        cell("{:.2f}", row.get("begun_within")),
        cell("{:.2f}", row.get("late")),
    ]


def rule_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of one policy."""
    return [
        cell("{:,.0f}", row["load"] * MILLE),
        cell("{:.2f}", row["start"]),
        cell("{:.0f}", row["commit"] * MILLE),
        cell("{:.1f}", row["p50_cached"]),
        cell("{:.1f}", row["p50_python"]),
        cell("{:,.0f}", row["rate_cached"]),
        cell("{:,.0f}", row["rate_python"]),
    ]


def cell(layout: str, figure: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "—" if figure is None else layout.format(figure)


def line(title: str, cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"{title:>16}" + "".join(f"{text:>13}" for text in cells)
