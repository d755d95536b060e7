"""What stands behind a bar: `| match ssl | last 5`.

A command writes its lines into the first pipe, each pipe hands on what it lets through, the last one is the screen.
Nothing is kept but what a pipe needs, so a list may be of any length. Enough, raised by whoever wants no more, ends
the command in the middle of its answer.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from dataplane.errors import UsageError
from dataplane.shell.tree import whole

MOST_KEPT = 100_000  # lines of `| last N`

PIPES = {  # name: (what follows it, what it does)
    "match": ("<regex>", "Show only lines that match, in either case"),
    "except": ("<regex>", "Leave out lines that match, in either case"),
    "count": ("", "Show only the number of lines"),
    "last": (f"<1-{MOST_KEPT}>", "Show only the last lines"),
    "json": ("", "Print JSON"),
    "no-more": ("", "Do not stop at the end of each page"),
    "watch": ("[1-3600]", "Repeat every so many seconds until a key is pressed"),
}


class Enough(Exception):
    """Nobody wants further lines."""


class Leave(Exception):
    """Nobody wants further commands."""


class Sink(Protocol):
    """Takes the lines of an answer, and is told when it is whole."""

    def line(self, text: str) -> None: ...

    def end(self) -> None: ...


Pipe = Callable[[Sink], Sink]


class Match:
    """Lines that match, or all others."""

    def __init__(self, pattern: re.Pattern[str], wanted: bool, onward: Sink) -> None:
        self._search, self._wanted, self._onward = pattern.search, wanted, onward

    def line(self, text: str) -> None:
        if (self._search(text) is not None) is self._wanted:
            self._onward.line(text)

    def end(self) -> None:
        self._onward.end()


class Count:
    """The number of lines."""

    def __init__(self, onward: Sink) -> None:
        self._lines, self._onward = 0, onward

    def line(self, text: str) -> None:
        self._lines += 1

    def end(self) -> None:
        self._onward.line(f"Count: {self._lines} lines")
        self._onward.end()


class Last:
    """The last so many lines."""

    def __init__(self, most: int, onward: Sink) -> None:
        self._kept: deque[str] = deque(maxlen=most)
        self._onward = onward

    def line(self, text: str) -> None:
        self._kept.append(text)

    def end(self) -> None:
        for text in self._kept:
            self._onward.line(text)
        self._onward.end()


class Output(io.TextIOBase):
    """Standard output while a command of the shell runs: whole lines go to a sink."""

    encoding = "utf-8"

    def __init__(self, sink: Sink) -> None:
        self._sink, self._rest = sink, ""
        self.used = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.used = True
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._sink.line(line)
        return len(text)

    def finish(self) -> None:
        """The command has ended; what it wrote last may lack its newline."""
        if self._rest:
            self._sink.line(self._rest)
        self._rest = ""
        self._sink.end()


def filter_of(name: str, words: Sequence[str]) -> Pipe:
    """A pipe that changes the lines; UsageError for words that it does not take."""
    if name in ("match", "except"):
        pattern, wanted = _pattern(name, words), name == "match"
        return lambda onward: Match(pattern, wanted, onward)
    if name == "count":
        no_words(name, words)
        return Count
    most = number_after(name, words, MOST_KEPT)
    return lambda onward: Last(most, onward)


def pipe_name(word: str) -> str:
    """The pipe that is meant, which may be cut short like a command."""
    return whole(word, PIPES)


def no_words(name: str, words: Sequence[str]) -> None:
    if words:
        raise UsageError(f"{name}: takes no words, not {words[0]!r}")


def number_after(name: str, words: Sequence[str], most: int, default: int | None = None) -> int:
    """The one number behind a word, from 1 to `most`."""
    if not words and default is not None:
        return default
    text = words[0] if len(words) == 1 else ""
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise UsageError(f"{name}: a number from 1 to {most} must follow")
    return int(text)


def _pattern(name: str, words: Sequence[str]) -> re.Pattern[str]:
    if len(words) != 1:
        raise UsageError(f"{name}: one regular expression must follow; one with blanks or bars is quoted")
    try:
        return re.compile(words[0], re.IGNORECASE)
    except re.error as error:
        raise UsageError(f"{name}: {words[0]!r} is not a regular expression: {error}") from None
