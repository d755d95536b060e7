"""Text as man(7) wants it: every character that means something there is spelled out."""

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc

SPECIAL = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"})
CODE = re.compile(r"`([^`]+)`")


def escape(text: str) -> str:
    """For any place of a page: on one line, and never a request."""
    plain = " ".join(text.split()).translate(SPECIAL)
    plain = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in plain)
    return f"\\&{plain}" if plain.startswith(".") else plain


def literal(text: str) -> Iterator[str]:
    """Lines as they are, blanks and all."""
    yield ".nf"
    for line in text.splitlines():
        yield "\\&" + "".join(escape(word) if word.strip(" ") else word for word in re.split("( +)", line))
    yield ".fi"


def bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def prose(text: str) -> str:
    """A paragraph; what is in backquotes is typed, so it is bold."""
    pieces = CODE.split(text)
    return "".join(bold(piece) if index % 2 else escape_inside(piece) for index, piece in enumerate(pieces))


def escape_inside(text: str) -> str:
    """A piece of a paragraph, whose blanks at either end count."""
    lead, trail = (" " if text[:1].isspace() else ""), (" " if text[-1:].isspace() else "")
    return lead + escape(text) + (trail if text.strip() else "")


def paragraphs(text: str) -> Iterator[str]:
    """A docstring: paragraphs, and those behind `\\b` line by line."""
    for number, paragraph in enumerate(cleandoc(text).split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(prose, paragraph.splitlines()[1:]), ".fi")
        else:
            yield prose(" ".join(paragraph.split("\n")))


def section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A section, unless it is empty."""
    body = list(lines)
    if body:
        yield f".SH {escape(title)}"
        yield from body


def items(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, already marked up, each with a paragraph."""
    for term, text in pairs:
        yield from (".TP", term, text or r"\&")


def page(name: str, number: int, title: str, body: Iterable[str], date: str, version: str) -> str:
    """A whole page. `title` ends the line that apropos(1) shows."""
    head = [
        f'.TH "{escape(name.upper())}" {number} {date} "dataplane {escape(version)}"',
        ".SH NAME",
        rf"{escape(name)} \- {prose(title)}",
    ]
    return "\n".join([*head, *body]) + "\n"
