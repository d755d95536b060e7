"""The line that is being typed: prompt, history, completion and `?`, by prompt-toolkit."""

import getpass
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from dataplane.shell.line import quote, split_typed
from dataplane.shell.tree import Suggestion

MOST_HISTORY = 1 << 20  # bytes; then a new file is begun and the old one kept beside it

Words = Callable[[str], list[Suggestion]]
Help = Callable[[str], Iterable[str]]


class Prompt:
    """Reads lines at a terminal; `words` and `help_on` are asked about the text before the cursor."""

    def __init__(self, words: Words, help_on: Help) -> None:
        self.text = f"{user()}@{socket.gethostname().partition('.')[0]}> "
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("", self.text)]),
            history=history(),
            completer=_LineCompleter(words),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=self._keys(help_on),
        )

    def read(self) -> str:
        """A line; EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        return self._session.prompt()

    def _keys(self, help_on: Help) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("?", filter=Condition(lambda: _asks_for_help(self._session.default_buffer.document)))
        def explain(event: KeyPressEvent) -> None:
            typed = event.current_buffer.document.text_before_cursor
            lines = [f"{self.text}{typed}?", *help_on(typed), ""]
            run_in_terminal(lambda: print("\n".join(lines)))

        return keys


class _LineCompleter(Completer):
    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The one word that may stand here is followed by a blank, unless it is a directory."""
        del complete_event
        start = split_typed(document.text_before_cursor).start - len(document.text_before_cursor)
        found = self._words(document.text_before_cursor)
        for suggestion in found:
            blank = " " if len(found) == 1 and not suggestion.word.endswith("/") else ""
            yield Completion(quote(suggestion.word) + blank, start, display=suggestion.word)


def _asks_for_help(document: Document) -> bool:
    """In quotes and behind a bar's word, where a regular expression stands, a question mark is one."""
    typed = split_typed(document.text_before_cursor)
    return not typed.quoted and not (len(typed.stages) > 1 and typed.stages[-1] and typed.partial)


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container's, without a name


def state_file() -> Path:
    """The history of this user, where XDG puts it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dataplane" / "history"


def history() -> History:
    """What was typed before, kept for its user alone; forgotten at the end where no file can be had."""
    try:
        path = state_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MOST_HISTORY:
            path.replace(path.with_suffix(".old"))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (OSError, RuntimeError):  # or no home
        return InMemoryHistory()
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)
    return _KeptHistory(path)


class _KeptHistory(FileHistory):
    def store_string(self, string: str) -> None:
        """A full disk, or bytes that are no text, cost the memory of a line, not the line."""
        try:
            super().store_string(string)
        except (OSError, UnicodeError):
            pass
