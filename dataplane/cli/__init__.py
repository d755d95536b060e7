"""The commands, in the words of PAN-OS.

A command that asks the daemon imports nothing beyond click and the client, so that it answers at once.
"""

import click

from dataplane.cli.base import Program
from dataplane.cli.clear import clear
from dataplane.cli.commit import commit, rollback, show_config
from dataplane.cli.doctor import doctor
from dataplane.cli.match import test_group
from dataplane.cli.service import check, run
from dataplane.cli.show import show


@click.group(cls=Program)
@click.version_option(package_name="dataplane")
def main() -> None:
    """A session-based firewall."""


show.add_command(show_config)
for command in (run, check, commit, rollback, show, clear, test_group, doctor):
    main.add_command(command)
