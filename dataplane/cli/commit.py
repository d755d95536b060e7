"""`commit`, `rollback` and `show config`: from a file to the policy in force, and back."""

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click

from dataplane import text
from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.cli.output import emit, emit_list, emit_object, only_row
from dataplane.client import request
from dataplane.errors import UsageError

LONGEST_WAIT = 86400  # seconds

check_option = click.option(
    "--check", is_flag=True, help="Only print what would change, and how many sessions would end."
)
confirm_option = click.option(
    "--confirm",
    type=click.IntRange(1, LONGEST_WAIT),
    metavar="SECONDS",
    help="Take it back by itself unless `dataplane commit confirm`, or another commit, comes in time.",
)
force_option = click.option("--force", is_flag=True, help="Even if that cuts connections to the firewall itself.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False, metavar="[FILE | confirm]")
@check_option
@confirm_option
@force_option
@json_option
@runtime_dir_option
def commit(file: Path | None, check: bool, confirm: int | None, force: bool, as_json: bool, runtime_dir: Path) -> None:
    """Put FILE in force, whole or not at all.

    By default the file that the daemon was started with. `commit confirm` keeps a commit that was made with --confirm.
    """
    if str(file) == "confirm":
        if check or confirm or force:
            raise UsageError("commit confirm: takes no --check, --confirm or --force")
        emit_object(request(runtime_dir, "commit confirm", {"user": user()}), text.confirmed, as_json)
        return
    arguments = candidate(file, runtime_dir)
    if check:
        emit_object(request(runtime_dir, "commit check", arguments), text.commit_preview, as_json)
        return
    order = {"user": user(), "confirm": confirm, "force": force}
    emit_object(request(runtime_dir, "commit", arguments | order), text.committed, as_json)


@click.command()
@click.argument("back", type=click.IntRange(1, 10_000), default=1, metavar="[N]")
@check_option
@confirm_option
@force_option
@json_option
@runtime_dir_option
def rollback(back: int, check: bool, confirm: int | None, force: bool, as_json: bool, runtime_dir: Path) -> None:
    """Put an earlier version in force again.

    That of N commits ago (1: the one before); itself a commit.
    """
    if check:
        emit_object(request(runtime_dir, "commit check", {"back": back}), text.commit_preview, as_json)
        return
    order = {"back": back, "user": user(), "confirm": confirm, "force": force}
    emit_object(request(runtime_dir, "rollback", order), text.committed, as_json)


@click.group("config")
def show_config() -> None:
    """Show what a commit would change, and earlier versions."""


@show_config.command("diff")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
@runtime_dir_option
def show_config_diff(file: Path | None, as_json: bool, runtime_dir: Path) -> None:
    """Show what FILE would change in what is in force.

    By default the file that the daemon was started with.
    """
    lines = cast(Iterator[str], request(runtime_dir, "show config diff", candidate(file, runtime_dir)))
    emit([json.dumps(list(lines))] if as_json else lines)


@show_config.command("versions")
@json_option
@runtime_dir_option
def show_config_versions(as_json: bool, runtime_dir: Path) -> None:
    """List the commits that `rollback` can go back to.

    The newest first.
    """
    emit_list(request(runtime_dir, "show config versions", {}), text.versions, as_json)


@show_config.command("version")
@click.argument("number", type=click.IntRange(1, 2**32 - 1), metavar="VERSION")
@json_option
@runtime_dir_option
def show_config_version(number: int, as_json: bool, runtime_dir: Path) -> None:
    """Show the configuration of one commit.

    As a file that `run` takes.
    """
    emit_object(request(runtime_dir, "show config version", {"version": number}), text.config, as_json)


def candidate(file: Path | None, runtime_dir: Path) -> dict[str, Any]:
    """The configuration in a file, read and checked here: the daemon has better things to do than to read YAML."""
    if file is None:
        answer = cast(text.Json, only_row(request(runtime_dir, "show config file", {})))
        file = Path(answer["file"])
    from dataplane.policy.load import load

    config = load(file).model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"config": config, "source": str(file.absolute())}


def user() -> str:
    """Who asks, for the list of versions."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
