"""`debug dataplane packet-diag`: which packets are captured and explained."""

from collections.abc import Sequence
from pathlib import Path

import click

from dataplane import filters, text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit_list, emit_object
from dataplane.cli.words import CAPTURE, PACKET_FILTER
from dataplane.client import request
from dataplane.errors import UsageError
from dataplane.grammar import WordsCommand, words

PLACES = filters.number(1, 4)  # of filters


@click.group()
def debug() -> None:
    """Look into the running firewall."""


@debug.group("dataplane")
def dataplane_group() -> None:
    """Look into the path of packets."""


@dataplane_group.group("packet-diag")
def packet_diag() -> None:
    """Capture packets on their way and explain each decision."""


# ---- set ----


@packet_diag.group("set")
def set_group() -> None:
    """Say which packets are meant and what is wanted of them."""


@set_group.command("filter", cls=WordsCommand)
@words(PACKET_FILTER)
@runtime_dir_option
def set_filter(words: tuple[str, ...], runtime_dir: Path) -> None:
    """Add one of up to four filters, or switch them on or off.

    Keys: source, destination, source-port, destination-port, protocol, ingress-interface, as a packet comes in. The
    answers of its session are meant as well. While the filter is on, such sessions are not offloaded.
    """
    _send(runtime_dir, "debug dataplane packet-diag set filter", _switch(words) or _match(words))


@set_group.command("capture", cls=WordsCommand)
@words(CAPTURE)
@runtime_dir_option
def set_capture(words: tuple[str, ...], runtime_dir: Path) -> None:
    """Say what is captured at a stage, or switch capture on or off.

    Stages: receive, firewall, transmit, drop. They may share a file. Files of the same name are begun anew.
    """
    _send(runtime_dir, "debug dataplane packet-diag set capture", _switch(words) or _stage(words))


@set_group.command("log")
@click.argument("words", nargs=-1, metavar="on|off | feature flow basic")
@runtime_dir_option
def set_log(words: tuple[str, ...], runtime_dir: Path) -> None:
    """Choose the flow log, or switch it on or off."""
    _send(runtime_dir, "debug dataplane packet-diag set log", _switch(words) or _feature(words))


# ---- clear ----


@packet_diag.group("clear")
def clear_group() -> None:
    """Forget what was set."""


@clear_group.command("filter")
@click.argument("index", metavar="INDEX|all")
@runtime_dir_option
def clear_filter(index: str, runtime_dir: Path) -> None:
    """Forget one filter, or every one."""
    _send(
        runtime_dir,
        "debug dataplane packet-diag clear",
        {"what": "filter", "index": None if index == "all" else _place(index)},
    )


@clear_group.command("capture")
@click.argument("which", type=click.Choice(["all"]), metavar="all")
@runtime_dir_option
def clear_capture(which: str, runtime_dir: Path) -> None:
    """Stop capture and forget its stages; files stay."""
    del which
    _send(runtime_dir, "debug dataplane packet-diag clear", {"what": "capture"})


@clear_group.command("log")
@runtime_dir_option
def clear_log(runtime_dir: Path) -> None:
    """Stop the flow log and forget what it holds."""
    _send(runtime_dir, "debug dataplane packet-diag clear", {"what": "log"})


@clear_group.command("all")
@runtime_dir_option
def clear_all(runtime_dir: Path) -> None:
    """Stop everything; forget filters, stages and log."""
    _send(runtime_dir, "debug dataplane packet-diag clear", {"what": "all"})


# ---- show ----


@packet_diag.group("show")
def show_group() -> None:
    """Show what is set, and what came of it."""


@show_group.command("setting")
@json_option
@runtime_dir_option
def show_setting(as_json: bool, runtime_dir: Path) -> None:
    """Show filters, log and stages, with what was captured."""
    emit_object(request(runtime_dir, "debug dataplane packet-diag show setting", {}), text.diagnosis_setting, as_json)


@show_group.command("log")
@json_option
@runtime_dir_option
def show_log(as_json: bool, runtime_dir: Path) -> None:
    """Show what was decided about each packet, step by step."""
    emit_list(request(runtime_dir, "debug dataplane packet-diag show log", {}), text.diagnosis_log, as_json)


# ---- words ----


def _send(runtime_dir: Path, command: str, arguments: dict[str, object]) -> None:
    for row in request(runtime_dir, command, arguments):
        click.echo(" ".join(f"{key} {value}" for key, value in row.items()) if isinstance(row, dict) else row)


def _switch(words: Sequence[str]) -> dict[str, object]:
    return {"on": words[0] == "on"} if len(words) == 1 and words[0] in ("on", "off") else {}


def _match(words: Sequence[str]) -> dict[str, object]:
    said, match = PACKET_FILTER.parts(words)
    if not match:
        raise UsageError("filter: on, off, or [index N] match KEY VALUE ... must follow")
    filters.parse_packet_filter(match)
    return {"index": PACKET_FILTER.value(said, "index", None), "match": match}


def _stage(words: Sequence[str]) -> dict[str, object]:
    settings = CAPTURE.pairs(words)
    if "stage" not in settings:
        raise UsageError("capture: on, off, or stage STAGE file NAME ... must follow")
    stage = CAPTURE.value(settings, "stage", None)
    del settings["stage"]
    filters.parse_stage(settings)
    return {"stage": stage, "settings": settings}


def _feature(words: Sequence[str]) -> dict[str, object]:
    if words[:1] != ("feature",) or len(words) < 2:
        raise UsageError("log: on, off, or feature flow basic must follow")
    return {"feature": " ".join(words[1:])}


def _place(word: str) -> int:
    try:
        return int(str(PLACES(word)))
    except ValueError as error:
        raise UsageError(f"index: {error}") from None
