"""dataplane(1), and a page for each command right below it that shows all that is below that."""

from collections.abc import Iterator

import click

from dataplane.cli import main
from dataplane.errors import ConfigError, DataplaneError, Unreachable, UsageError
from dataplane.grammar import Words
from dataplane.manual.dated import DATE, VERSION
from dataplane.manual.roff import bold, escape, items, page, paragraphs, prose, section
from dataplane.shell.pipes import PIPES

EXIT_CODES = (
    ("0", "The command did what it was asked."),
    (str(DataplaneError.exit_code), "It failed; standard error says why."),
    (str(UsageError.exit_code), "It makes no sense, so nothing was asked or done."),
    (str(ConfigError.exit_code), "A configuration is invalid, in the lines that standard error names."),
    (str(Unreachable.exit_code), "No daemon answers."),
)
FILES = (
    ("/run/dataplane/control.sock", "Where the daemon is asked; for root alone."),
    ("/var/log/dataplane/traffic.json", "The sessions that began, ended or were denied, a JSON object a line."),
    ("/var/log/dataplane/system.json", "What the daemon says about itself."),
    ("~/.local/state/dataplane/history", "What was typed in the shell."),
)
KEYS = (
    ("?", "Show what may follow."),
    ("Tab", "Complete the word, with names that the daemon knows as well."),
    ("Ctrl-C", "Drop the line, or interrupt the command that runs."),
    ("Ctrl-D, exit, quit", "Leave."),
    ("space, return, /, q", "At the end of a page: the next page, the next line, search, no more."),
)


def command_pages() -> dict[str, str]:
    """File name -> text."""
    pages = {"dataplane.1": _program_page()}
    for name, command in _below(main):
        pages[f"dataplane-{name}.1"] = _command_page(name, command)
    return pages


def _program_page() -> str:
    commands = list(_below(main))
    listed = (
        (f"{bold(f'dataplane {name}')}", f"{prose(_title(command))} See {_see(name)}.") for name, command in commands
    )
    body = (
        *section("SYNOPSIS", [rf"{bold('dataplane')} \fICOMMAND\fR [\fIWORD\fR ...]"]),
        *section("DESCRIPTION", paragraphs(main.help or "")),
        *section("COMMANDS", items(listed)),
        *section("OPTIONS", items(_options(main))),
        *section("EXIT STATUS", items((bold(code), prose(text)) for code, text in EXIT_CODES)),
        *section("ENVIRONMENT", items([(bold("DATAPLANE_RUNTIME_DIR"), prose("For `--runtime-dir`."))])),
        *section("FILES", items((rf"\fI{escape(path)}\fR", prose(text)) for path, text in FILES)),
        *section("SEE ALSO", [", ".join([*(_see(name) for name, _ in commands), r"\fBfirewall.yaml\fR(5)"])]),
    )
    return page("dataplane", 1, "session firewall in the manner of PAN-OS", body, DATE, VERSION)


def _command_page(name: str, command: click.Command) -> str:
    leaves = list(_leaves(["dataplane", name], command))
    body = [
        *section("SYNOPSIS", _synopsis(leaves)),
        *section("DESCRIPTION", paragraphs(command.help or "")),
    ]
    if isinstance(command, click.Group):
        body += section("COMMANDS", (line for path, leaf in leaves for line in _leaf(path, leaf)))
    else:
        body += section("OPTIONS", [*items(_words(command)), *items(_options(command))])
    if name == "cli":
        body += section("KEYS", items((bold(key), prose(text)) for key, text in KEYS))
        body += section("PIPES", items(_pipes()))
    body += section("SEE ALSO", [r"\fBdataplane\fR(1), \fBfirewall.yaml\fR(5)"])
    return page(f"dataplane-{name}", 1, _title(command).rstrip("."), body, DATE, VERSION)


def _pipes() -> Iterator[tuple[str, str]]:
    for name, (words, about) in PIPES.items():
        yield f"{bold(f'| {name}')} {escape(words)}".rstrip(), prose(about)


def _leaf(path: list[str], command: click.Command) -> Iterator[str]:
    yield f".SS {escape(' '.join(path[1:]))}"
    yield from paragraphs(command.help or "")
    yield from items(_words(command))
    yield from items(_options(command))


def _synopsis(leaves: list[tuple[list[str], click.Command]]) -> Iterator[str]:
    for number, (path, command) in enumerate(leaves):
        if number:
            yield ".br"
        arguments = [param for param in command.params if isinstance(param, click.Argument)]
        context = click.Context(command)
        shown = " ".join(escape(param.make_metavar(context)) for param in arguments)
        flags = " ".join(f"[{bold(param.opts[0])}]" for param in _own_options(command) if param.is_flag)
        yield " ".join(filter(None, [bold(" ".join(path)), shown, flags]))


def _words(command: click.Command) -> Iterator[tuple[str, str]]:
    for param in command.params:
        if isinstance(param, Words):
            for key, kind in param.grammar.every_key.items():
                hint, about = getattr(kind, "hint", "<value>"), getattr(kind, "about", "")
                yield f"{bold(key)} {escape(hint)}", prose(about)


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    context = click.Context(command)
    for param in _own_options(command):
        record = param.get_help_record(context)
        if record:
            yield bold(record[0]), prose(record[1])


def _own_options(command: click.Command) -> Iterator[click.Option]:
    return (param for param in command.params if isinstance(param, click.Option) and not param.hidden)


def _below(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    return ((name, group.commands[name]) for name in sorted(group.commands) if not group.commands[name].hidden)


def _leaves(path: list[str], command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
    """Whatever can be run, with its whole name."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield path, command
    if isinstance(command, click.Group):
        for name, below in _below(command):
            yield from _leaves([*path, name], below)


def _title(command: click.Command) -> str:
    return command.get_short_help_str(200)


def _see(name: str) -> str:
    return rf"{bold(f'dataplane-{name}')}(1)"
