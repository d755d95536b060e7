"""What may follow a command: KEY VALUE words, declared once for the parser, the completion, the help and the manual.

    @show_session.command("all", cls=WordsCommand)
    @words(SESSION_LIST)                              beside it: SESSION_LIST = Grammar({...}, filter=SESSION_KEYS)
    def show_session_all(words: tuple[str, ...], ...)

A key's kind of value is a parser of filters.py. Completion goes through click's own `shell_complete`, so a command
without such a declaration is completed as far as click knows it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dataplane.errors import UsageError
from dataplane.filters import Parser
from dataplane.live import NAMES

FILTER = "filter"
ABOUT_FILTER = "only what all of these pairs hold for"


@dataclass(frozen=True, slots=True)
class Expected:
    """What may stand next on a line."""

    words: Mapping[str, str] = field(default_factory=dict)  # and what each means
    hint: str = ""  # stands for what is not a fixed word
    about: str = ""
    live: str | None = None  # the daemon knows names that may stand here
    value: bool = False  # a key was said and its value is due
    complete: bool = True  # the line may as well end here


@dataclass(frozen=True, slots=True)
class Grammar:
    """Keys that may be said, each once, and those that may be said behind the word `filter`, if any."""

    keys: Mapping[str, Parser] = field(default_factory=dict)
    filter: Mapping[str, Parser] | None = None
    needed: tuple[str, ...] = ()  # keys without which the line makes no sense
    lead: str = FILTER  # the word that `filter` stands behind
    alone: Mapping[str, str] = field(default_factory=dict)  # words that are a whole line, and what each means

    @property
    def metavar(self) -> str:
        """The words as a line of usage."""
        pairs = [(f"{key} {_hint(parser)}", key in self.needed) for key, parser in self.keys.items()]
        shown = [pair if needed else f"[{pair}]" for pair, needed in pairs]
        pairs_of_filter = [] if self.filter is None else [f"[{self.lead} KEY VALUE ...]"]
        return " | ".join([*(["|".join(self.alone)] if self.alone else []), " ".join([*shown, *pairs_of_filter])])

    @property
    def every_key(self) -> dict[str, Parser]:
        """For a list of them."""
        return {**self.keys, **(self.filter or {})}

    def pairs(self, words: Sequence[str]) -> dict[str, str]:
        """KEY VALUE words as a mapping; UsageError for a line of another shape. Values are not looked at."""
        before, after = self._split(words)
        return pairs([*before, *after])

    def parts(self, words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The same, the pairs before `filter` and those behind it."""
        before, after = self._split(words)
        return pairs(before), pairs(after)

    def _split(self, words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        before, after = (words, ()) if self.filter is None else split_filter(words, self.lead)
        refuse_other(before, *self.keys)
        return before, after

    def value(self, said: Mapping[str, str], key: str, default: Any) -> Any:
        """What was said of a key of its own, parsed; UsageError where that is impossible."""
        if key not in said:
            return default
        try:
            return self.keys[key](said[key])
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None

    def ahead(self, said: Sequence[str]) -> Expected:
        """What may follow these words."""
        if said and said[0] in self.alone:
            return Expected()
        keys, filtering, used, index = self.keys, False, set(), 0
        while index < len(said):
            if said[index] == self.lead and self.filter is not None and not filtering:
                keys, filtering, index = self.filter, True, index + 1
            elif index + 1 == len(said):
                return _value(keys.get(said[index]))
            else:
                used.add(said[index])
                index += 2
        ahead = {key: _about(parser) for key, parser in keys.items() if key not in used}
        if not said:
            ahead = {**self.alone, **ahead}
        if self.filter is not None and not filtering:
            ahead[self.lead] = ABOUT_FILTER
        due = filtering and said[-1] == self.lead
        return Expected(ahead, complete=not due and not set(self.needed) - used)


class Words(click.Argument):
    """The words of a command, by their grammar."""

    def __init__(self, param_decls: Sequence[str], grammar: Grammar) -> None:
        super().__init__(param_decls, nargs=-1, metavar=grammar.metavar)
        self.grammar = grammar

    def expected(self, ctx: click.Context) -> Expected:
        """What may follow the words of a context that is only completed."""
        return self.grammar.ahead(ctx.params.get("words") or ())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        ahead = self.expected(ctx)
        items = [CompletionItem(word, help=about) for word, about in ahead.words.items() if word.startswith(incomplete)]
        return items + (_live_items(ctx, ahead.live, incomplete) if ahead.live else [])


class WordsCommand(click.Command):
    """A command whose help lists what its words may be."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for grammar in (param.grammar for param in self.params if isinstance(param, Words)):
            with formatter.section("Words"):
                formatter.write_dl([(f"{key} {_hint(kind)}", _about(kind)) for key, kind in grammar.every_key.items()])
        super().format_options(ctx, formatter)


def words(grammar: Grammar) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the argument `words`, a tuple of strings."""
    return click.argument("words", cls=Words, grammar=grammar)


def live_names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem[Any]]]:
    """For `shell_complete=` of an argument that is a name the daemon knows."""
    return lambda ctx, _param, incomplete: _live_items(ctx, kind, incomplete)


def split_filter(words: Sequence[str], lead: str = FILTER) -> tuple[Sequence[str], Sequence[str]]:
    """The words before and after `filter`, which stands where a key would and is said once."""
    said = [index for index in range(0, len(words), 2) if words[index] == lead]
    if not said:
        return words, ()
    after = words[said[0] + 1 :]
    if not after:
        raise UsageError(f"{lead}: KEY VALUE pairs must follow")
    if lead in after[::2]:
        raise UsageError(f"{lead}: said twice")
    return words[: said[0]], after


def refuse_other(words: Sequence[str], *known: str) -> None:
    """UsageError when a word that stands where a key would is not known there."""
    for word in words[::2]:
        if word not in known:
            raise UsageError(f"unexpected word {word!r}")


def pairs(words: Sequence[str]) -> dict[str, str]:
    """KEY VALUE words as a mapping; UsageError for a key that lacks its value or is said twice."""
    if len(words) % 2:
        raise UsageError(f"{words[-1]}: a value must follow")
    typed: dict[str, str] = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key in typed:
            raise UsageError(f"{key}: said twice")
        typed[key] = value
    return typed


def _value(parser: Parser | None) -> Expected:
    """An unknown key is for the parser to refuse."""
    fixed = dict.fromkeys(getattr(parser, "words", ()), "")
    live = getattr(parser, "live", None)
    return Expected(fixed, _hint(parser), _about(parser), live, value=True, complete=False)


def _hint(parser: Parser | None) -> str:
    return str(getattr(parser, "hint", "<value>"))


def _about(parser: Parser | None) -> str:
    return str(getattr(parser, "about", ""))


def _live_items(ctx: click.Context, kind: str, incomplete: str) -> list[CompletionItem[Any]]:
    where = _runtime_dir(ctx)
    found = NAMES.like(where, kind, incomplete) if where is not None else []
    return [CompletionItem(name.word, help=name.about) for name in found]


def _runtime_dir(ctx: click.Context) -> Path | None:
    """Click leaves an option that was not said out of a context that is only completed."""
    option = next((param for param in ctx.command.params if param.name == "runtime_dir"), None)
    if option is None:
        return None
    return Path(str(ctx.params.get("runtime_dir") or option.value_from_envvar(ctx) or option.get_default(ctx)))
