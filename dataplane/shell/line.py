"""One typed line: words, quotes and pipes.

    show session all filter rule "web only" | match ssl | last 5

Blanks part words unless a quote of either kind holds them together; inside it nothing else is special, so that a
regular expression is typed as it is. A bar that is not quoted parts the command from its pipes. There are no escapes,
variables or other wonders: what is typed here never reaches a shell.
"""

import re
from dataclasses import dataclass

from dataplane.errors import UsageError

TOKEN = re.compile(
    r"""
    \s+
    | (?P<bar> \| )
    | (?P<word> (?: [^\s|"'] | "[^"]*" | '[^']*' )* (?P<open> "[^"]*\Z | '[^']*\Z )? )
    """,
    re.VERBOSE,
)
QUOTED = re.compile(r""" "([^"]*)(?:"|\Z) | '([^']*)(?:'|\Z) """, re.VERBOSE)
PLAIN = re.compile(r"""[^\s|"'?]+""")


@dataclass(frozen=True, slots=True)
class Typed:
    """A line that is still being typed."""

    stages: list[list[str]]  # the finished words, parted at bars
    partial: str  # what there is of the word at the cursor
    start: int  # where it begins
    quoted: bool  # it is in a quote that is still open


def split(line: str) -> list[list[str]]:
    """The words of each stage; UsageError for a quote that is not closed."""
    typed = split_typed(f"{line} ")
    if typed.quoted:
        raise UsageError("a quote is not closed")
    return typed.stages


def split_typed(text: str) -> Typed:
    """A line up to the cursor, whatever it is worth."""
    stages: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        token = TOKEN.match(text, at)
        assert token is not None, "every character begins a token"
        if token["bar"]:
            stages.append([])
        elif token["word"]:
            word, quoted = _unquoted(token["word"]), token["open"] is not None
            if token.end() == len(text):
                return Typed(stages, word, at, quoted)
            stages[-1].append(word)
        at = token.end()
    return Typed(stages, "", at, False)


def quote(word: str) -> str:
    """The word as it must be typed."""
    if PLAIN.fullmatch(word):
        return word
    return '"{}"'.format(word.replace('"', '"\'"\'"'))


def _unquoted(word: str) -> str:
    return QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", word)
