"""What the bench makes of its rounds: cells, ratios, and the picture."""

import pytest

from tests.bench import scale
from tests.bench.columns import COLUMNS
from tests.bench.measure import Round
from tests.bench.report import show, summary


def round_of(**figures: float) -> Round:
    return Round({**dict.fromkeys(COLUMNS), **figures}, {"pps": 0.0})


def report_of_two():
    """Plain forwarding, a firewall at half of it, and a row that this machine has not."""
    rounds = {
        "plain": [round_of(tcp=speed, p99=5.0) for speed in (9.0, 10.0, 30.0)],
        "ours": [round_of(tcp=speed, p99=900.0, memory=253) for speed in (4.0, 5.0, 5.5)],
    }
    return summary(rounds, {"ovs": "ovs-vswitchd is not installed"})


def test_a_cell_is_the_median_of_its_rounds_and_its_ratio_to_plain():
    """One round that something else disturbed does not move the figure."""
    cells = report_of_two()["rows"]["ours"]["cells"]
    assert (cells["tcp"]["median"], cells["tcp"]["ratio"]) == (5.0, 0.5)
    assert (cells["memory"]["median"], cells["memory"]["ratio"]) == (253, None)
    assert cells["pps"] is None


def test_a_row_that_was_left_out_is_said_in_one_line(capsys):
    show(report_of_two())
    [line] = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line == "Open vSwitch userspace, NAT: left out: ovs-vswitchd is not installed"


def test_the_plot_names_every_row_that_was_measured(tmp_path):
    """Columns that nothing was measured for have no panel; rows without a figure in a panel leave a gap."""
    matplotlib = pytest.importorskip("matplotlib")
    from tests.bench.plot import draw

    file = tmp_path / "bench.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(report_of_two(), file)
    text = file.read_text()
    assert text.count("plain kernel forwarding") >= 1
    assert "this firewall" in text
    assert "×0.50" in text
    assert COLUMNS["pps"].title not in text


def test_a_table_of_growth_has_a_cell_under_every_heading(capsys):
    """A small table has nothing that expires, and without DPDK there is nothing to compare with."""
    row = {"sessions": 1000, "bytes": 263, "resident": 6e7, "start": 0.8, "fill": None, "lookup_ours": 22.0}
    row |= {"count": 0.07, "find": 0.08, "commit": 0.2}
    scale.show({"sessions": [row], "rules": [], "dpdk": "not installed"})
    printed = capsys.readouterr().out.splitlines()
    [heads, cells] = [line for line in printed if "bytes each" in line or "1,000" in line]
    assert len(heads) == len(cells)
    assert cells.split()[1:5] == ["263", "60", "0.80", "—"]
    assert "rte_hash: DPDK is not installed" in printed
