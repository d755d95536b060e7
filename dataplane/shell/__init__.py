"""`dataplane cli`: the program's commands at a prompt, in the manner of PAN-OS.

    admin@host> sh sess all filter state active | match ssl

At a terminal with prompt, completion, `?`, pages and `watch`; from a pipe or a file one line after the other, and the
exit code of the last command that failed. A command that fails, or that Ctrl-C interrupts, prints why and the next one
is read. The command tree is handed in, because the shell is one of its commands.

prompt-toolkit is loaded at a terminal alone.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import click

from dataplane.errors import DataplaneError, UsageError
from dataplane.shell import order as orders
from dataplane.shell.line import split_typed
from dataplane.shell.order import INTERVAL, LONGEST, Order
from dataplane.shell.pipes import Enough, Leave, Output, Sink
from dataplane.shell.plain import Plain
from dataplane.shell.tree import Suggestion, rows
from dataplane.text import printable

if TYPE_CHECKING:
    from dataplane.shell.terminal import Terminal

INTERRUPTED = 130  # 128 + SIGINT
OUTSIDE = ("run", "cli", "completion")  # commands that make no sense in here


def run(program: click.Group) -> int:
    """Read and obey until the end; the exit code."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _at_terminal(program)
    shell, failed = Shell(program), 0
    try:
        for line in _lines():
            failed = shell.obey(line) or failed
            if failed == INTERRUPTED:
                break
    except Leave:
        pass
    sys.stdout.flush()  # a closed pipe is met here, where the program expects it
    return failed


class Shell:
    """Obeys lines, one at a time."""

    def __init__(self, program: click.Group, terminal: "Terminal | None" = None) -> None:
        self._terminal = terminal
        inside = {name: command for name, command in program.commands.items() if name not in OUTSIDE}
        self.tree = type(program)(commands=inside | {command.name or "": command for command in _own_commands()})

    def obey(self, line: str) -> int:
        """Do what one line says; its exit code. Leave ends the shell, nothing else does."""
        if not line.strip() or line.lstrip().startswith("#"):
            return 0
        try:
            order = orders.read(self.tree, line)
            if order.interval is not None:
                return self._watch(order, order.interval)
            return self._once(order, self._screen(order))
        except DataplaneError as error:
            complain(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED

    def words(self, typed: str) -> list[Suggestion]:
        """What the word at the end may become."""
        return orders.completions(self.tree, split_typed(typed))

    def help_on(self, typed: str) -> Iterator[str]:
        """What may follow, a line each."""
        try:
            yield from rows(orders.help_lines(self.tree, split_typed(typed)))
        except UsageError as error:
            yield printable(str(error))

    def _screen(self, order: Order) -> Sink:
        if self._terminal is None or not order.paged:
            return Plain()
        from dataplane.shell.terminal import Pager

        return Pager(self._terminal)

    def _once(self, order: Order, screen: Sink) -> int:
        """Run the command into its pipes; a failure without a line has nothing to count."""
        for pipe in reversed(order.pipes):
            screen = pipe(screen)
        output = Output(screen)
        try:
            with redirect_stdout(output):
                code = self._invoke(order.words)
            if output.used or not code:
                output.finish()
        except Enough:
            return 0
        return code

    def _invoke(self, words: list[str]) -> int:
        try:
            code = self.tree.main(words, prog_name="", standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError:
            complain("the command goes on; one of these must follow:")
            complain("\n".join(self.help_on(f"{' '.join(words)} ")))
            return UsageError.exit_code
        except click.ClickException as error:
            complain(error.format_message())
            return error.exit_code
        except click.Abort:
            return INTERRUPTED
        except (Enough, Leave):
            raise
        except Exception as error:  # a command's bug ends the command, not the shell
            complain(f"internal error: {error!r}")
            return DataplaneError.exit_code
        return code if isinstance(code, int) else 0

    def _watch(self, order: Order, seconds: int) -> int:
        """Show one screenful again and again, errors too: the daemon may come back."""
        if self._terminal is None:
            raise UsageError("watch: needs a terminal")
        from dataplane.shell.terminal import Still, paint

        footer = f"every {seconds} s; any key ends"
        with self._terminal.other_screen(), self._terminal.keys():
            while True:
                columns, lines = self._terminal.size
                still = Still(columns, lines - 1)
                with redirect_stderr(Output(still)):
                    code = self._once(order, still)
                paint(self._terminal, still.lines, footer)
                if code == INTERRUPTED or self._terminal.key(seconds) is not None:
                    return 0


def complain(text: str) -> None:
    """On standard error, escaped."""
    for line in text.splitlines():
        click.echo(printable(line), err=True)


def _at_terminal(program: click.Group) -> int:
    """Exit codes are for scripts: an operator has seen what failed."""
    from dataplane.shell.prompt import Prompt
    from dataplane.shell.terminal import Terminal

    shell = Shell(program, Terminal())
    prompt = Prompt(shell.words, shell.help_on)
    while True:
        try:
            for line in prompt.read().splitlines():  # several when they were pasted
                shell.obey(line)
        except KeyboardInterrupt:
            continue
        except (EOFError, Leave):
            return 0


def _lines() -> Iterator[str]:
    """Standard input, whatever bytes it holds."""
    for line in sys.stdin.buffer:
        yield line.decode(errors="backslashreplace").rstrip("\r\n")


def _own_commands() -> Iterator[click.Command]:
    def leave() -> None:
        raise Leave

    for name in ("exit", "quit"):
        yield click.Command(name, callback=leave, help="Leave the shell.")
    yield click.Command(
        "watch", help=f"Repeat a command: watch [1-{LONGEST}] COMMAND, every {INTERVAL} seconds by default."
    )
