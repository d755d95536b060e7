"""`python -m tests.bench`: its tables, one after the other, in network namespaces.

First the ways of forwarding side by side, every row measured in every round; then how figures grow (scale.py), what a
flood leaves (flood.py), and what an operator's lists leave (lists.py).

How each column is measured: tcp is one iperf3 stream; the others come from traffic.c, whose head says how.
`added` is half of a UDP round trip less the same over a direct wire, measured right after it, so it includes the
time that a sleeping process takes to wake up.  New sessions are counted as first packets that arrive, connections when
they are opened, have carried one byte and are closed by both ends.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench import flood, lists, scale
from tests.bench.measure import FULL, QUICK, Meter, Round
from tests.bench.plot import draw
from tests.bench.report import machine, show, summary
from tests.bench.rows import ROWS, prepare
from tests.lab.lab import LabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON and the plot when they are asked for; 0 when everything was measured."""
    options = parser().parse_args(arguments)
    if os.geteuid():
        print("bench: network namespaces need root", file=sys.stderr)
        return 1
    if options.plot and not find_spec("matplotlib"):
        print("bench: --plot needs matplotlib: pip install --group bench", file=sys.stderr)
        return 1
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    report: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as directory:
            meter = Meter(Path(directory), effort)
            for table in tables(options, meter, Path(directory)):
                report |= table
                write(report, options)
    except (LabError, ImportError, OSError, ValueError) as error:
        print("\n".join(["", f"bench: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return 0


def tables(options: argparse.Namespace, meter: Meter, directory: Path) -> Iterator[dict[str, Any]]:
    """Each table that is asked for, printed as soon as it is there. Raises LabError."""
    if not options.scale:
        report = summary(*measure(meter, options.rows or list(ROWS)))
        progress("")
        show(report)
        yield report
    if options.rows is None:
        grown = scale.measure(meter, scale.QUICK if options.quick else scale.FULL, directory, progress)
        progress("")
        scale.show(grown)
        yield {"machine": machine(), "scale": grown}
        flooded = flood.measure(meter, flood.QUICK if options.quick else flood.FULL, progress)
        progress("")
        flood.show(flooded)
        yield {"flood": flooded}
        listed = lists.measure(meter, lists.QUICK if options.quick else lists.FULL, progress)
        progress("")
        lists.show(listed)
        yield {"lists": listed}


def write(report: Mapping[str, Any], options: argparse.Namespace) -> None:
    """The files that are asked for. Raises ImportError, OSError, ValueError."""
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot and "rows" in report:
        draw(report, options.plot)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description="The firewall beside its alternatives.")
    made.add_argument(
        "--rounds", type=positive, metavar="N", help=f"of the first table; default {FULL.rounds}, quick {QUICK.rounds}"
    )
    made.add_argument("--quick", action="store_true", help="a few minutes: fewer and shorter rounds, smaller tables")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file too")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the table: .svg, .png, .pdf")
    made.add_argument("--scale", action="store_true", help="only what follows the first table")
    listed = f"only the first table, with these rows: {', '.join(ROWS)}; all without a name"
    made.add_argument("--rows", nargs="*", choices=list(ROWS), metavar="ROW", help=listed)
    return made


def positive(text: str) -> int:
    """A number of rounds. Raises ValueError for less than one."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def measure(meter: Meter, names: Sequence[str]) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """The rounds of every row, and why a row is absent. Raises LabError.

    Round-robin over the rows, so that what else the machine does meets all of them.
    """
    rounds_wanted = meter.effort.rounds
    with ExitStack() as stack:
        wanted = {name: row for name, row in ROWS.items() if name in names or name == "plain"}
        paths, absent = prepare(wanted, stack, progress)
        rounds: dict[str, list[Round]] = {name: [] for name in paths}
        for number in range(rounds_wanted):
            for name, path in paths.items():
                progress(f"round {number + 1} of {rounds_wanted}: {ROWS[name][0]}")
                rounds[name].append(meter.round(path, paths["plain"].lab))
    return rounds, absent


def progress(text: str) -> None:
    """One line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
