"""The bench's first table as a picture: one panel a column, one bar a row, its ratio to plain forwarding beside it.

`python -m tests.bench.plot REPORT.json FILE` draws what `python -m tests.bench --json REPORT.json` has measured; the
ending of FILE chooses the format.  Needs matplotlib, which `make bench` installs.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.columns import COLUMNS, Column

PANELS = 3  # beside each other
OWN = "this firewall"
COLOURS = {"other": "#9aa5b1", "plain": "#52606d", "own": "#2f6fb5"}
ROW_HEIGHT = 0.28  # inches
LOG_FROM = 20  # a panel whose largest figure is so many times its smallest would hide the small ones


def draw(report: Mapping[str, Any], file: Path) -> None:
    """Write the picture. Raises ImportError without matplotlib, ValueError for an ending that it does not know."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = report["rows"]
    shown = [key for key in COLUMNS if any(row["cells"].get(key) for row in rows.values())]
    lines = -(-len(shown) // PANELS)
    size = (13.5, lines * (ROW_HEIGHT * len(rows) + 0.9) + 0.8)
    with pyplot.rc_context({"font.size": 9, "svg.hashsalt": "bench"}):
        figure, axes = pyplot.subplots(lines, PANELS, figsize=size, squeeze=False, sharey=True, layout="constrained")
        for axis, key in zip(axes.flat, shown, strict=False):
            panel(axis, COLUMNS[key], [row["cells"].get(key) for row in rows.values()], list(rows))
        for axis in axes.flat[len(shown) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_yticks(range(len(rows)), [row["title"] for row in rows.values()])
        axes[0, 0].invert_yaxis()
        figure.supxlabel(footer(report), fontsize=8, color="#52606d")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=120)
        pyplot.close(figure)


def panel(axis: Any, column: Column, cells: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> None:
    """One column: bars of the medians, whiskers from the smallest to the largest round, the figures behind them."""
    largest = max(cell["max"] for cell in cells if cell)
    logarithmic = largest > LOG_FROM * min(cell["median"] for cell in cells if cell)
    better = "more is better" if column.more else "less is better"
    scale = ", logarithmic" if logarithmic else ""
    axis.set_title(f"{column.title}, {column.unit} ({better}{scale})", loc="left", fontsize=9, fontweight="bold")
    if logarithmic:
        axis.set_xscale("log")
    for place, (cell, name) in enumerate(zip(cells, names, strict=True)):
        if not cell:
            axis.annotate("—", (0.01, place), xycoords=("axes fraction", "data"), va="center", color="#7b8794")
            continue
        spread = [[cell["median"] - cell["min"]], [cell["max"] - cell["median"]]]
        axis.barh(place, cell["median"], height=0.72, color=colour(name))
        axis.errorbar(cell["median"], place, xerr=spread, color="#1f2933", linewidth=0.9, capsize=2)
        end = (max(cell["max"], cell["median"]), place)
        axis.annotate(label(column, cell), end, (4, 0), textcoords="offset points", va="center", fontsize=8)
    left = min(cell["min"] for cell in cells if cell) / 2 if logarithmic else 0
    right = left * (largest / left) ** 1.45 if logarithmic else largest * 1.38
    axis.set_xlim(left, right)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    if not logarithmic:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.locator_params(axis="x", nbins=5)


def colour(name: str) -> str:
    """Ours stand out, and what all are compared with is darker than the rest."""
    return COLOURS["own" if name.startswith(("ours", "offload")) else name if name in COLOURS else "other"]


def label(column: Column, cell: Mapping[str, Any]) -> str:
    """The figure and its ratio to plain forwarding."""
    ratio = "" if cell["ratio"] is None else f"  ×{cell['ratio']:.2f}"
    return column.figure(cell["median"]) + ratio


def footer(report: Mapping[str, Any]) -> str:
    """Where and how it was measured."""
    host = report["machine"]
    return (
        f"{host['cpu']}, {host['cores']} cores, Linux {host['kernel']}; network namespaces on one machine.  "
        f"Bar: median of {report['rounds']} interleaved rounds; whisker: smallest to largest; ×: to plain forwarding."
    )


def main(arguments: Sequence[str]) -> int:
    """Draw a report that was written before."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    draw(json.loads(Path(arguments[0]).read_text()), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
