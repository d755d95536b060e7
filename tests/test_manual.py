"""The manual: every command and every key has its place, and programs that read such pages have nothing to say."""

import shutil
import subprocess
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.cli import main
from dataplane.filters import SESSION_KEYS
from dataplane.manual.__main__ import main as write_pages
from dataplane.manual.configuration import field_meanings
from dataplane.manual.roff import escape, literal, prose
from dataplane.policy.model import Config


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("man")
    write_pages(directory)
    return directory


def read(path: Path) -> str:
    """What a reader sees, in wide lines."""
    command = ["mandoc", "-Tutf8", "-O", "width=200", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return subprocess.run(["col", "-b"], input=shown, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_nothing_to_warn_of(pages):
    """Neither errors nor warnings; long lines of source are style."""
    done = subprocess.run(["mandoc", "-T", "lint", *sorted(pages.iterdir())], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "STYLE: input text line longer" not in line] == []


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_groff_finds_nothing_to_warn_of(pages):
    """As Debian checks the pages of a package."""
    for path in pages.iterdir():
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(path)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_page_for_each_command(pages):
    """One that is added has its page."""
    commands = {f"dataplane-{name}.1" for name, command in main.commands.items() if not command.hidden}
    assert {path.name for path in pages.iterdir()} == commands | {"dataplane.1", "firewall.yaml.5"}


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_what_is_in_the_pages(pages):
    """Sub-commands with their words and options; exit codes; the keys of the shell."""
    shown = read(pages / "dataplane-show.1")
    assert "show session all" in shown
    assert all(f"\n       {key} " in shown for key in SESSION_KEYS)
    assert "--json" in shown
    assert "\n       4      No daemon answers.\n" in read(pages / "dataplane.1")
    shell = read(pages / "dataplane-cli.1")
    assert "| match <regex>" in shell
    assert "\n       ?      Show what may follow." in shell


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_every_key_of_the_configuration_is_described(pages):
    """With its type, its bounds, its default and what the model says about it."""
    shown = read(pages / "firewall.yaml.5")
    schema = Config.model_json_schema(by_alias=True)
    keys = {key for noun in (schema, *schema["$defs"].values()) for key in noun.get("properties", {})}
    assert {key for key in keys if f"\n       {key}" not in shown} == set()
    assert "number from 1 to 15999999; default 3600." in shown
    assert "A new session's source must be routed back into the zone it came from." in shown
    assert "mapping of names to lists of strings" in shown


def test_docstrings_below_fields_are_found(pages):
    """Those of a class that another extends as well."""
    meanings = field_meanings()
    assert meanings["Zone", "anti_spoof"].startswith("A new session's source")
    assert meanings["SipAlg", "media_from"] == meanings["MediaAlg", "media_from"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_never_a_request(text):
    """Nor an escape: what a description holds is shown as it is."""
    for line in (escape(text), prose(text), *literal(text)):
        assert "\n" not in line
        assert line.isascii()
        assert line in (".nf", ".fi") or not line.startswith((".", "'"))


def test_every_command_explains_itself():
    """In a first sentence that `?` shows whole beside the command's name."""

    def commands(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
        below = [(f"{path} {name}", command) for name, command in group.commands.items()]
        return below + [
            deeper for name, command in below if isinstance(command, click.Group) for deeper in commands(command, name)
        ]

    for name, command in commands(main, "dataplane"):
        first = command.get_short_help_str(1000)
        assert first, name
        assert len(first) <= 90, f"{name}: {first}"
