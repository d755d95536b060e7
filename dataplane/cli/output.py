"""How an answer is printed: laid out as it arrives, or as JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from dataplane import text
from dataplane.cli.priority import patiently
from dataplane.client import Answer
from dataplane.errors import DataplaneError


def emit(lines: Iterable[str]) -> None:
    """Print lines as they come; the flush meets a closed pipe here and not when the interpreter ends."""
    for line in lines:
        sys.stdout.write(f"{text.printable_lines(line)}\n")
    sys.stdout.flush()


def emit_list(rows: Answer, layout: Callable[[Iterable[text.Json]], Iterator[str]], as_json: bool) -> None:
    """Print rows as they arrive, laid out or as one JSON list."""
    emit(json_list(undecoded(rows)) if as_json else layout(cast(Iterable[text.Json], rows)))


def undecoded(rows: Answer) -> Iterator[str]:
    """Rows as the JSON that they came as, many at once."""
    return map(bytes.decode, patiently(rows.blocks()))


def decoded(rows: Answer) -> Iterator[list[list[object]]]:
    """Rows that are arrays, a list of them at a time."""
    return (json.loads(f"[{block}]") for block in undecoded(rows))


def emit_object(rows: Iterator[object], layout: Callable[[text.Json], Iterator[str]], as_json: bool) -> None:
    """Print the one row, laid out or as one JSON object."""
    row = only_row(rows)
    emit([json.dumps(row)] if as_json else layout(cast(text.Json, row)))


def emit_match(rows: Iterator[object], layout: Callable[[text.Json], Iterator[str]], as_json: bool) -> None:
    """The stanza is for readers of text; programs get the rule's name and the action."""
    match = cast(text.Json, only_row(rows))
    emit([json.dumps({key: match[key] for key in ("rule", "action")})] if as_json else layout(match))


def emit_cleared(rows: Iterator[object]) -> None:
    """Print the one row, a number of sessions."""
    emit([f"sessions cleared: {only_row(rows)}"])


def only_row(rows: Iterator[object]) -> object:
    """The one row of an answer that is one object."""
    only = list(rows)
    if len(only) != 1:
        raise DataplaneError(f"the daemon sent {len(only)} rows where one was due")
    return only[0]


def json_list(elements: Iterable[str]) -> Iterator[str]:
    """One list of what is JSON already, an element a line; several that are joined by commas will do for one."""
    held = ""
    for element in elements:
        yield f"{held}," if held else "["
        held = element
    yield from (held, "]") if held else ("[]",)
