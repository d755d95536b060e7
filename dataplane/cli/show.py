"""`show`: what the running firewall knows."""

from pathlib import Path
from typing import cast

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.log import show_log
from dataplane.cli.output import emit, emit_list, emit_object, json_list
from dataplane.cli.words import filter_words, session_selection
from dataplane.client import request


@click.group()
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


show.add_command(show_log)
