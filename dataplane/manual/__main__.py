"""`python -m dataplane.manual DIRECTORY`."""

import sys
from pathlib import Path

from dataplane.manual.commands import command_pages
from dataplane.manual.configuration import configuration_page


def main(directory: Path) -> None:
    """Write every page."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in {**command_pages(), "firewall.yaml.5": configuration_page()}.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
