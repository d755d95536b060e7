"""Completion in the operator's own shell: real shells with the script of this program, against a daemon of names."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.client import SOCKET_NAME
from dataplane.control import ControlServer

ROOT = Path(__file__).parent.parent
NAMES = [["web only", "allow"], ["wild*", "deny"], ["w$(touch pwned)", "deny"], ["w;'\"", "deny"]]


@pytest.fixture
def directory(tmp_path) -> Iterator[Path]:
    """With `dataplane` on its path, and a daemon that knows rules."""

    def complete(arguments: dict[str, object]) -> Iterator[object]:
        yield from (name for name in NAMES if name[0].startswith(str(arguments["prefix"])))

    program = tmp_path / "bin" / "dataplane"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m dataplane "$@"\n')
    program.chmod(0o755)
    server = ControlServer(tmp_path / SOCKET_NAME, {"complete": complete})
    server.start()
    yield tmp_path
    server.stop()


def run(directory: Path, shell: list[str], script: str, **variables: str) -> list[str]:
    """The lines that a shell prints."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DATAPLANE_RUNTIME_DIR": str(directory), **variables}
    command = [*shell, script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def in_bash(directory: Path, *words: str) -> list[str]:
    """What Tab offers for the last word."""
    typed = " ".join(map("'{}'".format, words))
    return run(
        directory,
        ["bash", "--norc", "-c"],
        f"source <(dataplane completion bash); COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        '_dataplane_completion dataplane; printf "%s\\n" "${COMPREPLY[@]}"',
    )


def test_bash_completes_commands_and_keys(directory):
    """From the tree of the program."""
    assert in_bash(directory, "dataplane", "show", "ses") == ["session"]
    assert in_bash(directory, "dataplane", "show", "session", "all", "filter", "sta") == ["state", "start-at"]


def test_bash_completes_names_as_one_word(directory):
    """What a rule is called is neither split nor expanded nor run."""
    offered = in_bash(directory, "dataplane", "show", "session", "all", "filter", "rule", "w")
    script = "for word in {}; do printf '%s\\n' \"$word\"; done".format(" ".join(offered))
    assert run(directory, ["bash", "--norc", "-c"], script) == [name for name, _ in NAMES]
    assert not (directory / "pwned").exists()


def test_zsh_completes(directory):
    """Its script is understood; what the script asks is answered with a word and what that means."""
    load = "autoload -U compinit; compinit -u -d zcompdump; source <(dataplane completion zsh)"
    assert run(directory, ["zsh", "-f", "-c"], load) == []
    asked = {"COMP_WORDS": "dataplane show session all filter rule we", "COMP_CWORD": "6"}
    lines = run(directory, ["sh", "-c"], "_DATAPLANE_COMPLETE=zsh_complete exec dataplane", **asked)
    assert lines == ["plain", "web only", "allow"]


def test_fish_completes(directory):
    """Names with blanks included."""
    script = "dataplane completion fish | source; complete -C 'dataplane show session all filter rule we'"
    assert run(directory, ["fish", "--no-config", "-c"], script) == ["web only\tallow"]
