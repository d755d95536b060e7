"""The commands, in the words of PAN-OS.

A command that asks the daemon imports nothing beyond click and the client, so that it answers at once; `run` and
`check` import their part of the product when they are called.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import click

from dataplane import filters, text
from dataplane.client import request
from dataplane.errors import DataplaneError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


class Program(click.Group):
    """Ends a command that fails with the failure's reason on standard error and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DataplaneError as error:
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
            ctx.exit(0)  # `| head` has seen what it wanted


runtime_dir_option = click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    envvar="DATAPLANE_RUNTIME_DIR",
    default="/run/dataplane",
    show_default=True,
    show_envvar=True,
    help="Where the daemon's control socket is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Program)
@click.version_option(package_name="dataplane")
def main() -> None:
    """A session-based firewall."""


@main.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="The configuration to start with.")
@runtime_dir_option
@click.option("--log-dir", type=click.Path(path_type=Path), default="/var/log/dataplane", show_default=True)
@click.option("--state-dir", type=click.Path(path_type=Path), default="/var/lib/dataplane", show_default=True)
@click.pass_context
def run(ctx: click.Context, config: Path, runtime_dir: Path, log_dir: Path, state_dir: Path) -> None:
    """Run the firewall in the foreground, in this network namespace."""
    from dataplane import stopping

    stopping.listen()
    from dataplane import daemon

    ctx.exit(daemon.run(config, runtime_dir, log_dir, state_dir))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Validate a configuration file; needs neither root nor a daemon."""
    from dataplane.policy.load import load

    load(file)
    click.echo(f"{file}: valid")


@main.group()
def show() -> None:
    """What the running firewall knows."""


@show.group("session")
def show_session() -> None:
    """Sessions."""


@show_session.command("all")
@click.argument("words", nargs=-1, metavar="[start-at ID] [filter KEY VALUE ...]")
@json_option
@runtime_dir_option
def show_session_all(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List sessions; `count yes` in the filter prints their number instead."""
    arguments = session_selection(words)
    rows = request(runtime_dir, "show session all", arguments)
    if arguments["count"]:
        emit(map(str, rows))
    else:
        emit_list(rows, text.session_all, as_json)


@show_session.command("id")
@click.argument("number", type=click.IntRange(0, 2**32 - 1), metavar="ID")
@json_option
@runtime_dir_option
def show_session_id(number: int, as_json: bool, runtime_dir: Path) -> None:
    """Show every detail of one session."""
    emit_object(request(runtime_dir, "show session id", {"id": number}), text.session_id, as_json)


@show_session.command("info")
@json_option
@runtime_dir_option
def show_session_info(as_json: bool, runtime_dir: Path) -> None:
    """Show the session table's use, the timeouts and settings in force."""
    emit_object(request(runtime_dir, "show session info", {}), text.session_info, as_json)


@show_session.command("meter")
@json_option
@runtime_dir_option
def show_session_meter(as_json: bool, runtime_dir: Path) -> None:
    """Show how many sessions each vsys may have and has."""
    emit_list(request(runtime_dir, "show session meter", {}), text.session_meter, as_json)


@show.command("alg")
@json_option
@runtime_dir_option
def show_alg(as_json: bool, runtime_dir: Path) -> None:
    """Show which applications open further sessions for themselves, and how many do just now."""
    emit_list(request(runtime_dir, "show alg", {}), text.alg, as_json)


@show.group("counter")
def show_counter() -> None:
    """Counters."""


@show_counter.command("global")
@click.argument("words", nargs=-1, metavar="[filter KEY VALUE ...]")
@json_option
@runtime_dir_option
def show_counter_global(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List the counters; `delta yes` in the filter counts since the last such call."""
    selection = filter_words(words)
    filters.parse_counter_filter(selection)
    answer = request(runtime_dir, "show counter global", {"filter": selection})
    rows = cast(list[text.Json], list(answer))
    emit(json_list(rows) if as_json else text.counters(rows, cast(float, answer.done["elapsed"])))


@show.group("running")
def show_running() -> None:
    """The policy in force."""


@show_running.command("security-policy")
@json_option
@runtime_dir_option
def show_running_security_policy(as_json: bool, runtime_dir: Path) -> None:
    """List the security rules, the two predefined ones last."""
    emit_list(request(runtime_dir, "show running security-policy", {}), text.security_policy, as_json)


@show_running.command("nat-policy")
@json_option
@runtime_dir_option
def show_running_nat_policy(as_json: bool, runtime_dir: Path) -> None:
    """List the NAT rules."""
    emit_list(request(runtime_dir, "show running nat-policy", {}), text.nat_policy, as_json)


@show_running.command("ippool")
@json_option
@runtime_dir_option
def show_running_ippool(as_json: bool, runtime_dir: Path) -> None:
    """List the addresses of the NAT rules' pools and how much of each is used."""
    emit_list(request(runtime_dir, "show running ippool", {}), text.ippool, as_json)


@show_running.command("config")
@json_option
@runtime_dir_option
def show_running_config(as_json: bool, runtime_dir: Path) -> None:
    """Show the configuration in force as a file that `run` would take."""
    emit_object(request(runtime_dir, "show running config", {}), text.config, as_json)


@show.command("rule-hit-count")
@json_option
@runtime_dir_option
def show_rule_hit_count(as_json: bool, runtime_dir: Path) -> None:
    """List how often each rule decided and when."""
    emit_list(request(runtime_dir, "show rule-hit-count", {}), text.rule_hit_count, as_json)


@main.group()
def clear() -> None:
    """End what the running firewall holds."""


@clear.group("session")
def clear_session() -> None:
    """Sessions."""


@clear_session.command("all")
@click.argument("words", nargs=-1, metavar="[filter KEY VALUE ...]")
@runtime_dir_option
def clear_session_all(words: tuple[str, ...], runtime_dir: Path) -> None:
    """End every session, or those that the filter means."""
    selection = filter_words(words)
    for key in ("start-at", "count"):
        if key in selection:
            raise UsageError(f"{key}: only a list of sessions takes it")
    filters.parse_filter(selection)
    emit_cleared(request(runtime_dir, "clear session all", {"filter": selection}))


@clear_session.command("id")
@click.argument("number", type=click.IntRange(0, 2**32 - 1), metavar="ID")
@runtime_dir_option
def clear_session_id(number: int, runtime_dir: Path) -> None:
    """End one session."""
    emit_cleared(request(runtime_dir, "clear session id", {"id": number}))


@main.group("test")
def test_group() -> None:
    """Ask which rule would match a first packet, without sending one."""


MATCH_WORDS = "from Z to Z source IP destination IP destination-port N protocol N"


@test_group.command("security-policy-match")
@click.argument("words", nargs=-1, metavar=f"{MATCH_WORDS} [application A]")
@json_option
@runtime_dir_option
def test_security_policy_match(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show the security rule that would match."""
    arguments = match_arguments(words, application=True)
    emit_match(request(runtime_dir, "test security-policy-match", arguments), text.security_match, as_json)


@test_group.command("nat-policy-match")
@click.argument("words", nargs=-1, metavar=MATCH_WORDS)
@json_option
@runtime_dir_option
def test_nat_policy_match(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """Show the NAT rule that would match."""
    arguments = match_arguments(words, application=False)
    emit_match(request(runtime_dir, "test nat-policy-match", arguments), text.nat_match, as_json)


def session_selection(words: Sequence[str]) -> dict[str, object]:
    """The arguments of `show session all`; `start-at` and `count` may also stand before `filter`."""
    before, after = split_filter(words)
    refuse_other(before, "start-at", "count")
    selection = pairs([*before, *after])
    chosen = filters.parse_filter(selection)
    only = {key: word for key, word in selection.items() if key not in ("start-at", "count")}
    return {"filter": only, "start_at": chosen.start_at, "count": chosen.count}


def filter_words(words: Sequence[str]) -> dict[str, str]:
    """The pairs of a command that takes nothing but a filter."""
    before, after = split_filter(words)
    refuse_other(before)
    return pairs(after)


def match_arguments(words: Sequence[str], *, application: bool) -> dict[str, object]:
    """The arguments of a `test ...-match`."""
    typed = pairs(words)
    match = filters.parse_match(typed, application=application)
    arguments: dict[str, object] = {key: typed[key] for key in ("from", "to", "source", "destination")}
    arguments |= {"destination_port": match.destination_port, "protocol": match.protocol}
    return arguments | ({"application": match.application} if application else {})


def split_filter(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words before and after `filter`, which stands where a key would and is said once."""
    said = [index for index in range(0, len(words), 2) if words[index] == "filter"]
    if not said:
        return words, ()
    after = words[said[0] + 1 :]
    if not after:
        raise UsageError("filter: KEY VALUE pairs must follow")
    if "filter" in after[::2]:
        raise UsageError("filter: said twice")
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


def emit(lines: Iterable[str]) -> None:
    """Print lines as they come; the flush meets a closed pipe here and not when the interpreter ends."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def emit_list(rows: Iterable[object], layout: Callable[[Iterable[text.Json]], Iterator[str]], as_json: bool) -> None:
    """Print rows as they arrive, laid out or as one JSON list."""
    emit(json_list(rows) if as_json else layout(cast(Iterable[text.Json], rows)))


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


def json_list(rows: Iterable[object]) -> Iterator[str]:
    """One JSON list, an element a line."""
    held = ""
    for row in rows:
        yield f"{held}," if held else "["
        held = json.dumps(row)
    yield from (held, "]") if held else ("[]",)
