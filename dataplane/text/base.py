"""What every layout uses."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

RULE = "-" * 80


def printable(line: str) -> str:
    """A line that a terminal shows and never obeys: what is not printable is spelled out, as \\x1b for an escape.

    Names come from configurations, interfaces and the network; JSON needs none of this, it spells everything.
    """
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
