"""The operator's screen and keys, and two ways to fill the screen: page by page, or again and again.

Lines go out escaped (text.printable), whoever wrote them: a name never moves the cursor. A page is asked for before
the line that would be too many, so that an answer that just fits is not asked about.
"""

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_toolkit.utils import get_cwidth

from dataplane.shell.pipes import Enough, Leave
from dataplane.text import printable

MORE = "--more--"
HELP = "space: next page  return: next line  /: search  q: quit"
SEQUENCE = re.compile(rb"\x1b(?:[\[O][0-9;]*[A-Za-z~]|[^\[O])")
SEQUENCE_TIME = 0.05  # seconds between the bytes of one key
KEYS = {"\x1b[B": "\n", "\x1b[6~": " ", "\r": "\n", "\x1b[F": "G"}  # arrow down, page down, return, end
BACKSPACE = ("\x7f", "\b")
ERASE_LINE = "\r\x1b[K"
OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # without and with a cursor
HOME, ERASE_REST, ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


class Terminal:
    """Standard input and output, both a terminal."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines just now, at least enough to go on with."""
        columns, lines = os.get_terminal_size(self._out.fileno())
        return max(columns, 10), max(lines, 3)

    def write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def key(self, seconds: float | None = None) -> str | None:
        """The next key, waited for; None when none came in time. Leave when nobody can press one any more."""
        with self.keys():
            if not self._comes(seconds):
                return None
            key = self._byte()
            while not _is_whole(key) and self._comes(SEQUENCE_TIME):
                key += self._byte()  # no more than this key: the next one may be the prompt's
        text = key.decode(errors="replace")
        return KEYS.get(text, text)

    def ask(self, question: str) -> str:
        """A line, typed with an echo."""
        line = ""
        with self.keys():
            self.write(question)
            while (key := self.key()) not in ("\n", None):
                line = line[:-1] if key in BACKSPACE else line + (key if key and key.isprintable() else "")
                self.write(f"{ERASE_LINE}{question}{line}")
            self.write(ERASE_LINE)
        return line

    def _byte(self) -> bytes:
        try:
            byte = os.read(self._in, 1)
        except OSError:  # the terminal is gone
            byte = b""
        if not byte:
            raise Leave
        return byte

    def _comes(self, seconds: float | None) -> bool:
        return bool(select.select([self._in], [], [], seconds)[0])

    @contextmanager
    def keys(self) -> Iterator[None]:
        """Keys come one by one and unseen meanwhile. Ctrl-C stays what it is, and what was typed ahead is kept."""
        before = termios.tcgetattr(self._in)
        try:
            tty.setcbreak(self._in, termios.TCSADRAIN)
            yield
        finally:
            termios.tcsetattr(self._in, termios.TCSADRAIN, before)

    @contextmanager
    def other_screen(self) -> Iterator[None]:
        """What is shown meanwhile is gone afterwards."""
        self.write(OTHER_SCREEN)
        try:
            yield
        finally:
            self.write(FIRST_SCREEN)


class Pager:
    """Stops at the end of each page until a key is pressed."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._room: float = terminal.size[1] - 1
        self._sought: re.Pattern[str] | None = None

    def line(self, text: str) -> None:
        text = printable(text)
        if self._sought is not None and not self._sought.search(text):
            return None
        self._sought = None
        columns, lines = self._terminal.size
        height = max(-(-get_cwidth(text) // columns), 1)
        while self._room < min(height, lines - 1):
            self._turn(height, lines - 1)
            if self._sought is not None:
                return self.line(text)
        self._room -= height
        self._terminal.write(f"{text}\n")
        return None

    def end(self) -> None:
        if self._sought is not None:
            self._terminal.write("Pattern not found\n")

    def _turn(self, height: int, page: int) -> None:
        """One key at the end of a page, before a line that takes so many of the screen's."""
        with self._terminal.keys():
            self._terminal.write(MORE)
            key = self._terminal.key()
            self._terminal.write(ERASE_LINE)
        if key in (" ", "f"):
            self._room = page
        elif key in ("\n", "j"):
            self._room = height
        elif key == "G":
            self._room = float("inf")
        elif key == "/":
            self._seek(page)
        elif key in ("q", "Q", "\x04"):
            raise Enough
        else:
            self._terminal.write(f"{HELP}\n")

    def _seek(self, page: int) -> None:
        """Everything up to the next match is passed over."""
        try:
            self._sought = re.compile(self._terminal.ask("/"), re.IGNORECASE)
            self._room = page
        except re.error as error:
            self._terminal.write(f"not a regular expression: {error}\n")


class Still:
    """One screenful, cut to its size; the rest is not asked for."""

    def __init__(self, columns: int, most: int) -> None:
        self.lines: list[str] = []
        self._columns, self._most = columns, most

    def line(self, text: str) -> None:
        if len(self.lines) == self._most:
            raise Enough
        self.lines.append(_cut(printable(text), self._columns))

    def end(self) -> None:
        pass


def paint(terminal: Terminal, lines: list[str], footer: str) -> None:
    """Over what is there, without a flicker."""
    columns, height = terminal.size
    body = [*lines, *[""] * (height - 1 - len(lines)), _cut(f"{time.strftime('%H:%M:%S')}  {footer}", columns - 1)]
    terminal.write(HOME + "\r\n".join(f"{line}{ERASE_REST}" for line in body) + ERASE_BELOW)


def _is_whole(key: bytes) -> bool:
    """A character of UTF-8, or what a key that is none sends."""
    if key.startswith(b"\x1b"):
        return SEQUENCE.match(key) is not None
    try:
        key.decode()
    except UnicodeDecodeError:
        return len(key) > 3
    return True


def _cut(text: str, columns: int) -> str:
    if text.isascii():
        return text[:columns]
    while get_cwidth(text) > columns:
        text = text[:-1]
    return text
