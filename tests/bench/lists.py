"""What the operator's lists take from the traffic, and how long they take.

SESSIONS sessions lie in the table. One TCP stream crosses, alone, then beside somebody who types without a pause (the
whole list, those of one source, their number, each a process in a session of its own), then alone again. `kept` is the
stream's rate beside them as a share of the mean of the two rates alone, the median of the rounds; `worst` the same of
the lowest seconds; `cycles` how often all three were answered. `list` and `JSON` are the seconds that the whole list
takes when nothing else goes on, `list beside` what it takes beside the stream.
"""

import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from tests.bench.flood import output, running
from tests.bench.measure import ONE_FLOW, PORT, Meter
from tests.bench.rows import SOURCES, Path, served_lab
from tests.bench.scale import Daemon, fill, filled_configuration, unlogged, wall
from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import CLIENT, SERVER, Lab

SESSIONS = 100_000
LEAD = 1  # seconds of the stream that are left out
PATIENCE = 30  # seconds
COMMANDS = ((), ("filter", "source", SOURCES), ("filter", "source", SOURCES, "count", "yes"))
ROWS = {"queues": ("through the queues", False), "offload": ("offloaded", True)}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each measurement takes."""

    rounds: int
    seconds: int


FULL = Effort(rounds=5, seconds=10)
QUICK = Effort(rounds=2, seconds=5)


def measure(meter: Meter, effort: Effort, progress: Progress) -> list[dict[str, Any]]:
    """A line for each way that the stream goes. Raises LabError."""
    return [of_way(meter, effort, name, progress) for name in ROWS]


def of_way(meter: Meter, effort: Effort, name: str, progress: Progress) -> dict[str, Any]:
    title, offload = ROWS[name]
    with served_lab() as lab, unlogged(lab, crowded(offload)) as firewall:
        progress(f"lists, {title}: filling")
        meter.traffic(lab, "delay", CLIENT, SERVER, 1, 1000, ONE_FLOW)
        fill(meter, Path(lab), Daemon(firewall), SESSIONS, PORT)
        rounds = []
        for number in range(effort.rounds):
            progress(f"lists, {title}: round {number + 1} of {effort.rounds}")
            rounds.append(one_round(lab, firewall, effort))
    figures = {key: median(round_[key] for round_ in rounds) for key in rounds[0]}
    return {"name": name, "title": title, "rounds": rounds, **figures}


def crowded(offload: bool) -> dict[str, Any]:
    """Room for the stream beside the sessions that stay."""
    made = filled_configuration(SESSIONS)
    made["settings"]["session"]["max-sessions"] = 2 * SESSIONS
    made["settings"]["offload"] = offload
    return made


def one_round(lab: Lab, firewall: Firewall, effort: Effort) -> dict[str, float]:
    """The stream without, with and without somebody who lists, and how long lists take with and without it."""
    before, low = stream(lab, effort)
    with typist(firewall) as answered:
        beside, worst = stream(lab, effort)
    after, lowest = stream(lab, effort)
    alone = mean([before, after])
    return {
        "alone": alone,
        "beside": beside,
        "kept": beside / alone,
        "worst": worst / mean([low, lowest]),
        "cycles": len(answered) // len(COMMANDS),
        "text_s": wall(lambda: listed(firewall)),
        "json_s": wall(lambda: listed(firewall, "--json")),
        "beside_s": median(answered[:: len(COMMANDS)]),
    }


def stream(lab: Lab, effort: Effort) -> tuple[float, float]:
    """Gbit/s of one TCP stream, and of its slowest second."""
    command = ["iperf3", "-J", "-c", SERVER, "-t", str(effort.seconds), "-O", str(LEAD)]
    with running(lab.command("client", command)) as iperf:
        result = output(iperf, effort.seconds + PATIENCE)
    seconds = [part["sum"]["bits_per_second"] for part in result["intervals"] if not part["sum"]["omitted"]]
    return result["end"]["sum_received"]["bits_per_second"] / 1e9, min(seconds) / 1e9


def listed(firewall: Firewall, *words: str) -> subprocess.CompletedProcess[str]:
    """A list, in a session of its own as a terminal's is. What is printed goes nowhere."""
    command = [*PROGRAM, "show", "session", "all", "--runtime-dir", str(firewall.directory / "runtime"), *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        timeout=PATIENCE,
    )


@contextmanager
def typist(firewall: Firewall) -> Iterator[list[float]]:
    """Types COMMANDS again and again, to the end of the last; the seconds that each took so far. Raises LabError."""
    answered: list[float] = []
    end = threading.Event()

    def type_on() -> None:
        commands = itertools.cycle(COMMANDS)
        while not end.is_set():
            answered.append(wall(lambda: listed(firewall, *next(commands))))

    with ThreadPoolExecutor() as pool:
        typing = pool.submit(type_on)
        try:
            yield answered
        finally:
            end.set()
        typing.result()


def show(report: Sequence[Mapping[str, Any]]) -> None:
    """The table, a line a way."""
    print(f"\nBeside an operator who lists, filters and counts {SESSIONS:,} sessions without a pause\n")
    heads = ["TCP Gbit/s", "beside", "kept", "worst second", "cycles", "list s", "JSON s", "list beside"]
    print(f"{'':<20}" + "".join(f"{head:>13}" for head in heads))
    for row in report:
        cells = [
            f"{row['alone']:.2f}",
            f"{row['beside']:.2f}",
            f"{row['kept']:.3f}",
            f"{row['worst']:.3f}",
            f"{row['cycles']:.0f}",
            f"{row['text_s']:.2f}",
            f"{row['json_s']:.2f}",
            f"{row['beside_s']:.2f}",
        ]
        print(f"{row['title']:<20}" + "".join(f"{text:>13}" for text in cells))
