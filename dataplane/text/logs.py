"""The logs as PAN-OS lays them out."""

from collections.abc import Iterable, Iterator

from dataplane.text.base import Json

WIDE = "=" * 100


def traffic_log(rows: Iterable[Json]) -> Iterator[str]:
    """`show log traffic`: three lines for each record."""
    yield _traffic("Time", "App", "From", "Src Port", "Source")
    yield _traffic("Rule", "Action", "To", "Dst Port", "Destination")
    yield _traffic("", "Event", "Session ID", "Bytes", "Session End Reason")
    yield WIDE
    for row in rows:
        yield _traffic(_moment(row["time"]), row["application"], row["from"], row["sport"], _translated(row, "src"))
        yield _traffic(row["rule"], row["action"], row["to"], row["dport"], _translated(row, "dst"))
        octets = row["bytes_sent"] + row["bytes_received"]
        yield _traffic("", row["event"], row["session_id"], octets, row["session_end_reason"] or "n/a")


def system_log(rows: Iterable[Json]) -> Iterator[str]:
    """`show log system`: one line for each record."""
    yield f"{'Time':<20}{'Severity':<10}{'Object':<24}Description"
    yield WIDE
    for row in rows:
        yield f"{_moment(row['time']):<20}{row['severity']:<10}{row['source']:<23} {row['message']}"


def log_status(rows: Iterable[Json]) -> Iterator[str]:
    """`show log status`: one line for each sink, and why one fails."""
    yield f"{'Sink':<44}{'State':<9}{'Written':>12}{'Lost':>12}{'Waiting':>9}"
    for row in rows:
        yield f"{row['sink']:<43} {row['state']:<9}{row['written']:>12}{row['lost']:>12}{row['waiting']:>9}"
        if row["error"]:
            yield f"    {row['error']}"


def _traffic(first: object, second: object, third: object, fourth: object, fifth: object) -> str:
    cells = (str("" if cell is None else cell) for cell in (first, second, third, fourth))
    return "".join(f"{cell:<{width - 1}} " for cell, width in zip(cells, (20, 16, 16, 18), strict=True)) + str(fifth)


def _translated(row: Json, side: str) -> str:
    """The address, and what it was translated to."""
    port = "sport" if side == "src" else "dport"
    if (row[side], row[port]) == (row[f"nat_{side}"], row[f"nat_{port}"]):
        return str(row[side])
    return f"{row[side]} ({row[f'nat_{side}']}[{row[f'nat_{port}']}])"


def _moment(time: str) -> str:
    """2026-01-01T00:00:00.000Z as 2026/01/01 00:00:00, which is UTC."""
    return time[:19].replace("-", "/").replace("T", " ")
