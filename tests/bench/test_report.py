"""What the bench makes of its rounds: cells, ratios, and the picture."""

import pytest

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
