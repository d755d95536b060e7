"""`python -m tests.bench`: one table, every row measured in every round, in network namespaces.

A cell is the median of the rounds and its ratio to the first row's; below it stand the smallest and the largest figure.
How each column is measured: tcp is one iperf3 stream; the others come from traffic.c, whose head says how.
`added` is half of a UDP round trip less the same over a direct wire, measured right after it, so it includes the
time that a sleeping process takes to wake up.  New sessions are counted as first packets that arrive, connections when
they are opened, have carried one byte and are closed by both ends.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import FULL, QUICK, Effort, Meter, Round
from tests.bench.ovs import Unavailable
from tests.bench.rows import ROWS
from tests.bench.rows import Path as Forwarding
from tests.lab.lab import LabError

Figure = Callable[[float], str]
NONE = "—"
LOSS_WORTH_TELLING = 0.001


@dataclass(frozen=True, slots=True)
class Column:
    """A heading in two lines, and how a figure is printed."""

    title: str
    unit: str
    figure: Figure


COLUMNS = {
    "tcp": Column("TCP one stream", "Gbit/s", "{:.2f}".format),
    "pps": Column("64-byte UDP", "packets/s", "{:,.0f}".format),
    "added": Column("added per packet", "ns", "{:,.0f}".format),
    "sessions": Column("new sessions", "1/s", "{:,.0f}".format),
    "connections": Column("TCP connections", "1/s", "{:,.0f}".format),
    "p50": Column("first pkt p50", "µs", "{:.1f}".format),
    "p99": Column("first pkt p99", "µs", "{:.1f}".format),
    "memory": Column("a session", "bytes", "{:.0f}".format),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON when it is asked for; 0 when every row was measured."""
    options = parser().parse_args(arguments)
    if os.geteuid():
        print("bench: network namespaces need root", file=sys.stderr)
        return 1
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    try:
        rounds, absent = measure(options.rows, effort)
        report = summary(rounds, absent, effort)
    except LabError as error:
        print("\n".join(["", f"bench: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description="The firewall beside its alternatives.")
    made.add_argument("--rounds", type=positive, metavar="N", help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    made.add_argument("--quick", action="store_true", help="about a minute: fewer and shorter rounds")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file too")
    made.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    return made


def positive(text: str) -> int:
    """A number of rounds. Raises ValueError for less than one."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def measure(names: Sequence[str], effort: Effort) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """The rounds of every row, and why a row is absent. Raises LabError.

    Round-robin over the rows, so that what else the machine does meets all of them.
    """
    with ExitStack() as stack:
        meter = Meter(Path(stack.enter_context(tempfile.TemporaryDirectory())), effort)
        paths, absent = prepare([name for name in ROWS if name in names or name == "plain"], stack)
        rounds: dict[str, list[Round]] = {name: [] for name in paths}
        for number in range(effort.rounds):
            for name, path in paths.items():
                progress(f"round {number + 1} of {effort.rounds}: {ROWS[name][0]}")
                rounds[name].append(meter.round(path, paths["plain"].lab))
    progress("")
    return rounds, absent


def prepare(names: Sequence[str], stack: ExitStack) -> tuple[dict[str, Forwarding], dict[str, str]]:
    """Each row's lab, ready; a row whose software cannot be had is left out, and why."""
    paths: dict[str, Forwarding] = {}
    absent: dict[str, str] = {}
    for name in names:
        progress(f"starting: {ROWS[name][0]}")
        try:
            paths[name] = stack.enter_context(ROWS[name][1]())
        except Unavailable as error:
            absent[name] = str(error)
    return paths, absent


def progress(text: str) -> None:
    """One line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def summary(rounds: Mapping[str, Sequence[Round]], absent: Mapping[str, str], effort: Effort) -> dict[str, Any]:
    """What the table shows and --json writes: per row and column the median, smallest, largest, ratio and samples."""
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in rounds.items():
        cells = {key: cell([round_.figures[key] for round_ in measured]) for key in COLUMNS}
        for key, made in cells.items():
            base = rows.get("plain", {"cells": cells})["cells"][key]
            if made and base and base["median"]:
                made["ratio"] = made["median"] / base["median"]
        lost = {key: max(round_.lost[key] for round_ in measured) for key in measured[0].lost}
        rows[name] = {"title": ROWS[name][0], "cells": cells, "lost": lost}
    return {"machine": machine(), "rounds": effort.rounds, "rows": rows, "absent": dict(absent)}


def cell(samples: Sequence[float | None]) -> dict[str, Any] | None:
    """Median and spread of a column's samples, None for a row that has none."""
    known = [sample for sample in samples if sample is not None]
    if not known:
        return None
    return {"median": median(known), "min": min(known), "max": max(known), "ratio": None, "samples": known}


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]}


def show(report: Mapping[str, Any]) -> None:
    """The table, two lines a row."""
    host = report["machine"]
    print(f"{host['cpu']}, {host['cores']} cores, kernel {host['kernel']}; load {host['load']:.1f} at the end")
    print(f"median of {report['rounds']} interleaved rounds, (ratio to plain forwarding), smallest–largest below\n")
    print(line("", [column.title for column in COLUMNS.values()]))
    print(line("", [column.unit for column in COLUMNS.values()]))
    for row in report["rows"].values():
        cells = row["cells"].items()
        print(line(row["title"], [middle(COLUMNS[key].figure, made) for key, made in cells]))
        print(line("", [spread(COLUMNS[key].figure, made) for key, made in cells]))
    for row in report["rows"].values():
        for key, share in row["lost"].items():
            if share > LOSS_WORTH_TELLING:
                print(f"{row['title']}: {COLUMNS[key].title}: {share:.1%} of the packets were lost in the worst round")
    for name, reason in report["absent"].items():
        print(f"{ROWS[name][0]}: left out: {reason}")


def line(title: str, cells: Sequence[str]) -> str:
    """One line of the table."""
    return f"{title:<31}" + "".join(f"{text:>18}" for text in cells)


def middle(figure: Figure, made: Mapping[str, Any] | None) -> str:
    """The upper line of a cell."""
    if not made:
        return NONE
    ratio = "" if made["ratio"] is None else f" ({made['ratio']:.2f})"
    return figure(made["median"]) + ratio


def spread(figure: Figure, made: Mapping[str, Any] | None) -> str:
    """The lower line of a cell."""
    return f"{figure(made['min'])}–{figure(made['max'])}" if made and made["min"] != made["max"] else ""


if __name__ == "__main__":
    sys.exit(main())
