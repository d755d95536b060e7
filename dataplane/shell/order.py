"""A line as an order: the command, what its output goes through, and whether it is repeated."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from dataplane.errors import UsageError
from dataplane.shell import line as lines
from dataplane.shell.pipes import PIPES, Pipe, filter_of, no_words, number_after, pipe_name
from dataplane.shell.tree import Place, Suggestion, complete, explain, find, visible, whole

WATCH = "watch"
INTERVAL = 2  # seconds
LONGEST = 3600
JSON = "--json"


@dataclass(frozen=True, slots=True)
class Order:
    """What one line asks for."""

    words: list[str]  # for click, every keyword written out
    pipes: list[Pipe]  # in the order of the line
    paged: bool = True
    interval: int | None = None  # seconds; None: once


def read(tree: click.Group, line: str) -> Order:
    """The order that a line spells; UsageError for one that makes no sense."""
    command, *stages = lines.split(line)
    words, interval = _without_watch(tree, command)
    place = find(tree, words)
    pipes: list[Pipe] = []
    paged, words = True, place.words
    for position, stage in enumerate(stages):
        if not stage:
            raise UsageError(f"| must be followed by one of {' '.join(PIPES)}")
        name, arguments = pipe_name(stage[0]), stage[1:]
        if name == "json":
            no_words(name, arguments)
            words = [*words, _json_option(place, first=position == 0)]
        elif name == "no-more":
            no_words(name, arguments)
            paged = False
        elif name == WATCH:
            interval = number_after(name, arguments, LONGEST, INTERVAL)
        else:
            pipes.append(filter_of(name, arguments))
    return Order(words, pipes, paged, interval)


def completions(tree: click.Group, typed: lines.Typed) -> list[Suggestion]:
    """What the word at the cursor may become."""
    if len(typed.stages) > 1:
        return [pipe for pipe in _pipes(typed) if pipe.word.startswith(typed.partial)]
    try:
        return complete(_place(tree, typed), typed.partial)
    except UsageError:
        return []


def help_lines(tree: click.Group, typed: lines.Typed) -> list[Suggestion]:
    """What `?` shows; UsageError where the words before the cursor make no sense."""
    if len(typed.stages) == 1:
        return explain(_place(tree, typed), typed.partial)
    if typed.stages[-1]:
        name = pipe_name(typed.stages[-1][0])
        return [Suggestion(*PIPES[name])] if PIPES[name][0] and len(typed.stages[-1]) == 1 else []
    return completions(tree, typed)


def _place(tree: click.Group, typed: lines.Typed) -> Place:
    words, _ = _without_watch(tree, typed.stages[0])
    return find(tree, words)


def _pipes(typed: lines.Typed) -> list[Suggestion]:
    if typed.stages[-1]:
        return []
    return [Suggestion(name, about) for name, (_, about) in PIPES.items()]


def _without_watch(tree: click.Group, words: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """`watch 5 show ...` is `show ...` every five seconds."""
    if not words or whole(words[0], visible(tree)) != WATCH:
        return words, None
    words = words[1:]
    if not words or not words[0].isdigit():
        return words, INTERVAL
    return words[1:], number_after(WATCH, words[:1], LONGEST)


def _json_option(place: Place, *, first: bool) -> str:
    if not first:
        raise UsageError("json: stands right behind the command")
    if not any(JSON in param.opts for param in place.command.params):
        raise UsageError(f"json: {' '.join(place.path)} has no such output")
    return JSON
