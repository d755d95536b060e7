"""Names that only the daemon knows, for completing a line: zones, rules, sessions (commands/complete.py answers).

Whoever types waits for this, so nothing here lasts or fails: what is not answered within PATIENCE is no names, and a
daemon that did not answer is not asked again for FRESH seconds. A name that a terminal cannot show is left out.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from dataplane.client import request
from dataplane.errors import DataplaneError
from dataplane.text import printable

PATIENCE = 0.5  # seconds that a completion may wait for the daemon
FRESH = 1.0  # seconds that an answer is good for: one key pressed several times is one question
KEPT = 64  # answers


@dataclass(frozen=True, slots=True)
class LiveName:
    """A word that may be typed, and what it stands for."""

    word: str
    about: str


class LiveNames:
    """Asks the daemons and remembers their answers for a moment."""

    def __init__(self) -> None:
        self._answers: dict[tuple[Path, str, str], tuple[float, list[LiveName]]] = {}

    def like(self, runtime_dir: Path, kind: str, prefix: str) -> list[LiveName]:
        """Names of a kind that begin so; none when the daemon does not answer at once."""
        key = runtime_dir, kind, prefix
        until, names = self._answers.get(key, (0.0, []))
        if time.monotonic() < until:
            return names
        names = _ask(runtime_dir, kind, prefix)
        if len(self._answers) >= KEPT:
            self._answers.clear()
        self._answers[key] = time.monotonic() + FRESH, names
        return names


def _ask(runtime_dir: Path, kind: str, prefix: str) -> list[LiveName]:
    try:
        rows = list(request(runtime_dir, "complete", {"kind": kind, "prefix": prefix}, PATIENCE))
    except DataplaneError:
        return []
    pairs = (row for row in rows if isinstance(row, list) and len(row) == 2)
    return [LiveName(str(word), printable(str(about))) for word, about in pairs if str(word).isprintable()]


NAMES = LiveNames()
