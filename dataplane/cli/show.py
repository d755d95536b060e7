"""`show`: what the running firewall knows."""

import json
from pathlib import Path
from typing import cast

import click

from dataplane import filters, text
from dataplane.cli import statistics
from dataplane.cli.base import caller, json_option, runtime_dir_option
from dataplane.cli.log import show_log
from dataplane.cli.output import decoded, emit, emit_list, emit_object, json_list, undecoded
from dataplane.cli.words import COUNTER_LIST, SESSION_LIST, session_selection
from dataplane.client import request
from dataplane.grammar import WordsCommand, live_names, words


@click.group()
def show() -> None:
    """Show what the running firewall knows."""


@show.group("session")
def show_session() -> None:
    """Show sessions: all, one, or how many there are."""


@show_session.command("all", cls=WordsCommand)
@words(SESSION_LIST)
@json_option
@runtime_dir_option
def show_session_all(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List sessions, or count them.

    Two lines each, in the order of their ids. A session is listed when every pair of the filter holds; `count yes`
    prints how many there are.
    """
    arguments = session_selection(words)
    columns = not (as_json or arguments["count"])
    rows = request(runtime_dir, "show session all", arguments | {"columns": columns})
    if arguments["count"]:
        emit(map(str, rows))
    elif columns:
        emit(text.session_all(decoded(rows)))
    else:
        emit(json_list(undecoded(rows)))


@show_session.command("id")
@click.argument("number", type=click.IntRange(0, 2**32 - 1), metavar="ID", shell_complete=live_names("session"))
@json_option
@runtime_dir_option
def show_session_id(number: int, as_json: bool, runtime_dir: Path) -> None:
    """Show every detail of one session."""
    emit_object(request(runtime_dir, "show session id", {"id": number}), text.session_id, as_json)


@show_session.command("info")
@json_option
@runtime_dir_option
def show_session_info(as_json: bool, runtime_dir: Path) -> None:
    """Show the session table's use, timeouts and settings."""
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
    """Show the application layer gateways.

    Which applications open further sessions for themselves, by what ports, and how many do just now.
    """
    emit_list(request(runtime_dir, "show alg", {}), text.alg, as_json)


@show.group("counter")
def show_counter() -> None:
    """Show counters."""


@show_counter.command("global", cls=WordsCommand)
@words(COUNTER_LIST)
@json_option
@runtime_dir_option
def show_counter_global(words: tuple[str, ...], as_json: bool, runtime_dir: Path) -> None:
    """List the global counters, or one.

    `delta yes` in the filter counts since your last such call, by terminal.
    """
    name, selection = COUNTER_LIST.parts(words)
    filters.parse_counter_filter(selection)
    answer = request(runtime_dir, "show counter global", {"filter": selection, "caller": caller(), **name})
    rows = cast(list[text.Json], list(answer))
    emit(json_list(map(json.dumps, rows)) if as_json else text.counters(rows, cast(float, answer.done["elapsed"])))


@show.group("running")
def show_running() -> None:
    """Show the policy in force."""


@show_running.command("security-policy")
@json_option
@runtime_dir_option
def show_running_security_policy(as_json: bool, runtime_dir: Path) -> None:
    """List the security rules, the predefined ones last."""
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
    """List the NAT rules' pools and how much of each is used."""
    emit_list(request(runtime_dir, "show running ippool", {}), text.ippool, as_json)


@show_running.command("config")
@json_option
@runtime_dir_option
def show_running_config(as_json: bool, runtime_dir: Path) -> None:
    """Show the configuration as a file that `run` takes."""
    emit_object(request(runtime_dir, "show running config", {}), text.config, as_json)


show_session.add_command(statistics.session_top)
show_counter.add_command(statistics.counter_queue)
show_running.add_command(statistics.resource_monitor)
show.add_command(statistics.rule_hit_count)
show.add_command(show_log)
