"""YAML 1.2 text to plain values that remember their lines.

Only what the core schema of YAML 1.2 calls a value is one: `on`, `no` and 12:30 are strings, 010 is ten. A mapping's
keys are strings as written. Tags, a second document and keys that are no scalars are errors. Size, depth and the
growth of aliases are bounded, and an alias cannot stand inside its own anchor, so no text can take all memory or
recurse without end.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

MAX_CHARACTERS = 16 << 20
MAX_DEPTH = 32
MAX_NODES = 2_000_000
MAX_DIGITS = 20

_BOOLEANS = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGERS = ((re.compile(r"[-+]?[0-9]+"), 10), (re.compile(r"0o[0-7]+"), 8), (re.compile(r"0x[0-9a-fA-F]+"), 16))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the document down."""


@dataclass(frozen=True)
class Problem:
    """What is wrong at a path of a document."""

    path: Path
    message: str
    line: int | None = None
    """From 1; None for the line of the path itself."""


class Unreadable(Exception):
    """The text is no document at all; holds the line, from 1, and the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


@dataclass(slots=True)
class Node:
    """A value and the line (from 1) of its key, or of its place in a list."""

    line: int
    value: "Value"


Scalar = str | int | float | bool | None
Value = Scalar | list[Node] | dict[str, Node]


@dataclass
class Document:
    """A parsed text; problems are those that leave the rest of it readable."""

    root: Node
    problems: list[Problem] = field(default_factory=list)

    def plain(self) -> Any:
        """The document as new dicts, lists and scalars."""
        return _plain(self.root)

    def line(self, path: Path) -> int:
        """Line of the deepest part of the path that exists."""
        return self._nodes(path)[-1].line

    def _nodes(self, path: Path) -> list[Node]:
        nodes = [self.root]
        for part in path:
            child = _child(nodes[-1].value, part)
            if child is None:
                break
            nodes.append(child)
        return nodes


def describe(path: Path) -> str:
    """A path as an operator reads it, `security-rules[3].source`; what stands in a list inside goes by its name."""
    if len(path) > 2 and isinstance(path[-1], int):
        path = path[:-1]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _child(value: Value, part: str | int) -> Node | None:
    if isinstance(value, dict) and isinstance(part, str):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


def read(text: str) -> Document:
    """Parse one YAML document. Raises Unreadable."""
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(1, f"the file is larger than {MAX_CHARACTERS >> 20} MiB")
    try:
        return _Reader(YAML(typ="safe", pure=True).parse(text)).document()
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Unreadable(line, f"not YAML: {error.problem}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(line, f"not YAML: character U+{error.character:04X} is not allowed") from None
    except YAMLError as error:
        raise Unreadable(1, f"not YAML: {error}") from None


class _Reader:
    """Builds nodes from parser events; anchors are known from their end on."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[Value, int]] = {}
        self._nodes = 0
        self._problems: list[Problem] = []

    def document(self) -> Document:
        next(self._events)
        if isinstance(next(self._events), StreamEndEvent):
            raise Unreadable(1, "the file is empty")
        root = Node(1, self._value(next(self._events), ()))
        next(self._events)
        if isinstance(second := next(self._events), DocumentStartEvent):
            raise Unreadable(_line(second), "a second document begins here; a configuration is one document")
        return Document(root, self._problems)

    def _value(self, event: Event, path: Path) -> Value:
        self._count(1, event)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        assert isinstance(event, ScalarEvent | CollectionStartEvent)
        if event.tag is not None:
            raise Unreadable(_line(event), f"the tag {event.tag} is not used in a configuration")
        before = self._nodes
        value = self._untagged(event, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._nodes - before
        return value

    def _untagged(self, event: ScalarEvent | CollectionStartEvent, path: Path) -> Value:
        if isinstance(event, ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else str(event.value)
        if len(path) >= MAX_DEPTH:
            raise Unreadable(_line(event), f"nested deeper than {MAX_DEPTH} levels")
        return self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)

    def _sequence(self, path: Path) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(Node(_line(event), self._value(event, (*path, len(items)))))
        return items

    def _mapping(self, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise Unreadable(_line(event), "a key must be a plain word")
            key = str(event.value)
            value = self._value(next(self._events), (*path, key))
            if key in entries:
                first = entries[key].line
                self._problems.append(Problem((*path, key), f"duplicate key, first seen on line {first}", _line(event)))
            else:
                entries[key] = Node(_line(event), value)
        return entries

    def _alias(self, event: AliasEvent) -> Value:
        if event.anchor not in self._anchors:
            raise Unreadable(_line(event), f"the alias *{event.anchor} has no anchor before it")
        value, nodes = self._anchors[event.anchor]
        self._count(nodes, event)
        return value

    def _count(self, nodes: int, event: Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Unreadable(_line(event), f"more than {MAX_NODES} values, aliases included")


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str) -> Scalar:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for pattern, base in _INTEGERS:
        if len(text) <= MAX_DIGITS and pattern.fullmatch(text):
            return int(text, base)
    return float(text) if _FLOAT.fullmatch(text) else text
