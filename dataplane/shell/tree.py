"""The command tree as it is typed: words may be cut short, and at every place it can be said what may follow.

The tree is click's own, so a command is in the shell as soon as it is in the program.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete

from dataplane.errors import UsageError
from dataplane.grammar import Words
from dataplane.text import printable

COMMAND, KEY, OTHER = ">", "+", " "  # PAN-OS's marks


@dataclass(frozen=True, slots=True)
class Place:
    """Where some words lead: a command, and the words behind its name."""

    command: click.Command
    path: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return [*self.path, *self.rest]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What may be typed next: a word, or a hint (`<1-65535>`) that stands for one."""

    word: str
    about: str = ""
    mark: str = OTHER


def find(tree: click.Group, words: Sequence[str]) -> Place:
    """The place, every keyword written out; UsageError for a word that is no command or may be several."""
    command: click.Command = tree
    path: list[str] = []
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        path.append(whole(word, visible(command)))
        command = command.commands[path[-1]]
    rest = list(words[len(path) :])
    return Place(command, path, rest if isinstance(command, click.Group) else _written_out(command, rest))


def visible(group: click.Group) -> dict[str, str]:
    """The commands of a group, and what each does."""
    return {name: command.get_short_help_str(90) for name, command in group.commands.items() if not command.hidden}


def whole(word: str, known: Iterable[str]) -> str:
    """The one of `known` that is meant; UsageError where none or several may be."""
    if word in known:
        return word
    meant = [name for name in known if name.startswith(word)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(f"{word!r} may be {' '.join(meant)}")
    raise UsageError(f"{word!r} is none of {' '.join(known)}")


def complete(place: Place, partial: str) -> list[Suggestion]:
    """Words that may stand next and begin so."""
    if isinstance(place.command, click.Group):
        names = visible(place.command).items()
        return [Suggestion(name, about, COMMAND) for name, about in names if name.startswith(partial)]
    items = ShellComplete(place.command, {}, "", "").get_completions(place.rest, partial)
    keys = _keys(place)
    return [found for item in items for found in _suggestions(item, partial, keys)]


def explain(place: Place, partial: str) -> list[Suggestion]:
    """The same, and what stands for words that are not fixed, and whether the line may end here."""
    known = complete(place, partial)
    if isinstance(place.command, click.Group):
        return known
    context = _context(place)
    hint, finished = _open_end(place.command, context)
    if hint and all(word.word != hint.word for word in known):
        known.insert(0, hint)
    ends = [Suggestion("|", "Pipe the output through"), Suggestion("<Enter>", "Finish input")]
    return known + (ends if finished and not partial else [])


def rows(suggestions: Sequence[Suggestion]) -> Iterator[str]:
    """As `?` shows them."""
    width = min(max((len(found.word) for found in suggestions), default=0), 30)
    for found in suggestions:
        yield printable(f"{found.mark} {found.word:<{width}}  {found.about}".rstrip())


def _context(place: Place) -> click.Context:
    """The command's parameters as far as they are said; nothing is run, refused or asked for."""
    return place.command.make_context(place.command.name, list(place.rest), resilient_parsing=True)


def _open_end(command: click.Command, context: click.Context) -> tuple[Suggestion | None, bool]:
    """What stands for the next word, unless that is one of a few, and whether none is needed."""
    for param in command.params:
        if isinstance(param, Words):
            ahead = param.expected(context)
            hint = Suggestion(ahead.hint, ahead.about) if ahead.value and not ahead.words else None
            return hint, ahead.complete
        if isinstance(param, click.Argument) and (param.nargs == -1 or context.params.get(param.name or "") is None):
            return Suggestion(param.make_metavar(context)), not param.required
    return None, True


def _keys(place: Place) -> Mapping[str, str]:
    declared = next((param for param in place.command.params if isinstance(param, Words)), None)
    if declared is None:
        return {}
    ahead = declared.expected(_context(place))
    return {} if ahead.value else ahead.words


def _suggestions(item: CompletionItem[Any], partial: str, keys: Mapping[str, str]) -> Iterator[Suggestion]:
    if item.type in ("file", "dir"):
        yield from _paths(partial)
    else:
        yield Suggestion(str(item.value), item.help or "", KEY if item.value in keys else OTHER)


def _paths(partial: str) -> Iterator[Suggestion]:
    """Files that begin so; a directory's name ends in a slash, for more to follow."""
    head, tail = os.path.split(partial)
    try:
        found = sorted(Path(head).expanduser().iterdir())
    except OSError:
        return
    for path in found:
        if path.name.startswith(tail) and path.name.isprintable() and (tail or not path.name.startswith(".")):
            yield Suggestion(os.path.join(head, path.name) + ("/" if path.is_dir() else ""))


def _written_out(command: click.Command, words: Sequence[str]) -> list[str]:
    """The words of a command, with keys and fixed values written out; what is none of them stays as it was typed."""
    declared = next((param for param in command.params if isinstance(param, Words)), None)
    if declared is None:
        return list(words)
    said: list[str] = []
    out: list[str] = []
    options = {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}
    value_of_option = False
    for word in words:
        if value_of_option or word.startswith("--"):
            option = options.get(word)
            value_of_option = not value_of_option and option is not None and not option.is_flag
            out.append(word)
            continue
        fixed = declared.grammar.ahead(said).words
        said.append(whole(word, fixed) if any(known.startswith(word) for known in fixed) else word)
        out.append(said[-1])
    return out
