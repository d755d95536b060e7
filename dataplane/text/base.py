"""What every layout uses."""

import json
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

RULE = "-" * 80
PLAIN = bytes(range(ord(" "), ord("~") + 1)) + b"\n"


def yes_no(value: bool) -> str:
    """As PAN-OS says it."""
    return "yes" if value else "no"


def printable(line: str) -> str:
    """A line that a terminal shows and never obeys: what is not printable is spelled as JSON would, an escape \\u001b.

    Names come from configurations, interfaces and the network. In JSON the spelling means the same.
    """
    return line if line.isprintable() else "".join(map(_spelled, line))


def printable_lines(lines: str) -> str:
    """The same for several lines at once, which are plain ASCII as a rule: that is found out at memory's speed."""
    plain = lines.isascii() and not lines.encode().translate(None, PLAIN)
    if plain or lines.replace("\n", "").isprintable():
        return lines
    return "\n".join(map(printable, lines.split("\n")))


def _spelled(char: str) -> str:
    if char.isprintable():
        return char
    return json.dumps(char)[1:-1] if char != "\x7f" else "\\u007f"  # which JSON itself need not spell
