"""The columns of the first table: their headings and how a figure is printed."""

from collections.abc import Callable
from dataclasses import dataclass

Figure = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Column:
    """A heading in two lines, how a figure is printed, and whether a larger one is better."""

    title: str
    unit: str
    figure: Figure
    more: bool = False


COLUMNS = {
    "tcp": Column("TCP one stream", "Gbit/s", "{:.2f}".format, more=True),
    "pps": Column("64-byte UDP", "packets/s", "{:,.0f}".format, more=True),
    "added": Column("added per packet", "ns", "{:,.0f}".format),
    "sessions": Column("new sessions", "1/s", "{:,.0f}".format, more=True),
    "connections": Column("TCP connections", "1/s", "{:,.0f}".format, more=True),
    "p50": Column("first pkt p50", "µs", "{:.1f}".format),
    "p99": Column("first pkt p99", "µs", "{:.1f}".format),
    "memory": Column("a session", "bytes", "{:.0f}".format),
}
