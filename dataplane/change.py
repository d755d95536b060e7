"""One line of what a commit would do or has done. Light, for the command that prints it knows no policy."""

from typing import NamedTuple

LONGEST_WAIT = 86400  # seconds until a commit must be confirmed


class Change(NamedTuple):
    """What has become of one thing in a configuration."""

    section: str
    kind: str
    """added, removed, changed, moved or renamed."""
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.section}: {self.kind} {self.name}" + (f" ({self.detail})" if self.detail else "")
