"""Standard error, as the journal of systemd reads it: with JOURNAL_STREAM set, each line begins with its priority.

`<4>` is a warning, as in sd-daemon(3); the journal takes it off. Elsewhere the word stands there for people.
"""

import logging
import os
import sys

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
DEBUG = 7


class Priority(logging.Formatter):
    """The message with its priority before each line, lest a traceback's lines be notices."""

    def format(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in PRIORITIES if record.levelno >= level), DEBUG)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def handler() -> logging.Handler:
    """Writes to standard error in the form that its reader wants."""
    made = logging.StreamHandler(sys.stderr)
    if is_journal(os.environ.get("JOURNAL_STREAM", "")):
        made.setFormatter(Priority("%(name)s: %(message)s"))
    else:
        made.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return made


def is_journal(stream: str) -> bool:
    """Whether standard error is what JOURNAL_STREAM names, `device:inode`: a child may have inherited the variable."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
