"""The layouts of what is summed up and sampled."""

from typing import Any

from dataplane import text

RULE = "-" * 80


def sums(**changed: object) -> dict[str, Any]:
    return {"sessions": 2, "packets": 30, "bytes": 3000, "kbps": None} | changed


def samples(*values: int) -> dict[str, list[int]]:
    return {"average": list(values), "maximum": [value + 1 for value in values]}


def test_top_by_bytes():
    """A group a line, the total under all of them; a session without a rule's name has one here."""
    rows = [sums(rule="lan-out", percent=75.0), sums(rule="", sessions=1, bytes=1000, packets=10, percent=25.0)]
    done = {"groups": 2, "all": sums(sessions=3, bytes=4000, packets=40), "left_out": sums(sessions=0)}
    assert list(text.top(rows, "rule", "bytes", done)) == [
        RULE,
        "Rule                              Sessions       Packets             Bytes   Share",
        RULE,
        "lan-out                                  2            30              3000   75.0%",
        "(none)                                   1            10              1000   25.0%",
        RULE,
        "Total                                    3            40              4000",
        "Groups: 2, in the order of: bytes",
    ]


def test_top_by_rate_has_a_column_more():
    """And what found no room is said."""
    row = sums(source="10.1.0.5", percent=100.0, kbps=12.5)
    done = {"groups": 1048576, "all": row, "left_out": sums(sessions=7)}
    lines = list(text.top([row], "source", "rate", done))
    assert lines[1].split() == ["Source", "Sessions", "Packets", "Bytes", "kbps", "Share"]
    assert lines[3].split() == ["10.1.0.5", "2", "30", "3000", "12.5", "100.0%"]
    assert lines[-1] == "Not grouped, there are too many groups: 7 sessions"


def test_resources_of_seconds():
    """Newest first, `*` for what was not sampled; a line of values wraps after fifteen."""
    row = {
        "period": "second",
        "last": 3,
        "cpu": {
            "worker-0": samples(40, 10),
            "worker-1": samples(20, 0),
            "slowpath": samples(5, 4),
            "ager": samples(1, 1),
        },
        "utilization": {"session": samples(*range(16))},
    }
    assert list(text.resource_monitor([row])) == [
        "Resource monitoring sampling data (per second):",
        "",
        "CPU load sampling by group:",
        "flow_fastpath                  :    30%",
        "flow_slowpath                  :     5%",
        "flow_mgmt                      :     1%",
        "",
        "CPU load (%) during last 3 seconds:",
        "core    0   1   2   3",
        "       40  20   5   1",
        "       10   0   4   1",
        "        *   *   *   *",
        "Cores: 0 worker-0, 1 worker-1, 2 slowpath, 3 ager",
        "",
        "Resource utilization (%) during last 3 seconds:",
        "session:",
        "   0   1   2   3   4   5   6   7   8   9  10  11  12  13  14",
        "  15",
    ]


def test_resources_of_longer_periods():
    """Averages and maxima, each period in a section of its own; one that is not over yet says so."""
    week = {"period": "week", "last": 1, "cpu": {}, "utilization": {}}
    hour = {"period": "hour", "last": 1, "cpu": {"ager": samples(1)}, "utilization": {"nat pool": samples(3)}}
    assert list(text.resource_monitor([hour, week])) == [
        "Resource monitoring sampling data (per hour):",
        "",
        "CPU load sampling by group:",
        "flow_fastpath                  :     0%",
        "flow_slowpath                  :     0%",
        "flow_mgmt                      :     1%",
        "",
        "CPU load (%) during last 1 hours:",
        "core        0",
        "      avg max",
        "        1   2",
        "Cores: 0 ager",
        "",
        "Resource utilization (%) during last 1 hours:",
        "nat pool (average):",
        "   3",
        "nat pool (maximum):",
        "   4",
        "",
        "Resource monitoring sampling data (per week):",
        "",
        "No week is over yet",
    ]
