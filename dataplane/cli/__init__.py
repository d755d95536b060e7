"""The commands, in the words of PAN-OS.

A command that asks the daemon imports nothing beyond click and the client, so that it answers at once.
"""

import click

from dataplane.cli.base import Program
from dataplane.cli.clear import clear
from dataplane.cli.debug import debug
from dataplane.cli.match import test_group
from dataplane.cli.service import check, run
from dataplane.cli.show import show


@click.group(cls=Program)
@click.version_option(package_name="dataplane")
def main() -> None:
    """A session-based firewall."""


for command in (run, check, show, clear, test_group, debug):
    main.add_command(command)
