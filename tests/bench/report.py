"""From rounds to the first table: what it shows, and what --json writes.

A cell is the median of the rounds and its ratio to the first row's; below it stand the smallest and the largest figure.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.columns import COLUMNS, Figure
from tests.bench.measure import Round
from tests.bench.rows import ROWS

NONE = "—"
LOSS_WORTH_TELLING = 0.001


def summary(rounds: Mapping[str, Sequence[Round]], absent: Mapping[str, str]) -> dict[str, Any]:
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
    return {"machine": machine(), "rounds": max(map(len, rounds.values())), "rows": rows, "absent": dict(absent)}


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
