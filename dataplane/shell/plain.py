"""Lines as they come, to whatever standard output is."""

import sys

from dataplane.shell.pipes import Leave
from dataplane.text import printable


class Plain:
    """The screen of a shell without a terminal, or of a command that is not paged."""

    def __init__(self) -> None:
        self._out = sys.stdout

    def line(self, text: str) -> None:
        try:
            self._out.write(f"{printable(text)}\n")
        except BrokenPipeError:
            raise Leave from None  # whoever read along has seen what it wanted

    def end(self) -> None:
        self._out.flush()
