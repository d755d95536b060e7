"""`doctor`: what this host lacks, and what collides. It imports its part of the product when it is called."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataplane.cli.base import json_option, runtime_dir_option
from dataplane.text import printable

if TYPE_CHECKING:
    from dataplane.doctor import Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The configuration to examine the host for.")
@runtime_dir_option
@click.option("--log-dir", type=click.Path(path_type=Path), default="/var/log/dataplane", show_default=True)
@json_option
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, runtime_dir: Path, log_dir: Path, as_json: bool) -> None:
    """Examine this host without changing it, and say what to do.

    Without --config the running daemon's configuration counts, or /etc/dataplane/firewall.yaml. Exits 1 if something
    that the firewall needs is missing.
    """
    from dataplane.doctor import FAIL, Patient, examine

    findings = []
    for finding in examine(Patient(config, runtime_dir, log_dir)):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        click.echo(_json(findings))
    ctx.exit(any(finding.status == FAIL for finding in findings))


def _line(finding: "Finding") -> str:
    """Programs, rules and interfaces of others have any name."""
    status = click.style(f"{finding.status:<4}", fg=COLOURS[finding.status])
    advice = f" -> {finding.advice}" if finding.advice else ""
    return f"{status}  {finding.check:<13}  {printable(finding.message + advice)}"


def _json(findings: Iterable["Finding"]) -> str:
    return json.dumps([finding._asdict() for finding in findings], indent=1)
