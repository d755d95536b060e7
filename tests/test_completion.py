"""Completion in the operator's own shell: real shells with the script of this program, against a daemon of names."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.cli.completion import INSIDE, open_quote
from dataplane.client import SOCKET_NAME
from dataplane.control import ControlServer

ROOT = Path(__file__).parent.parent
NAMES = [
    ["web only", "allow"],
    ["wild*", "deny"],
    ["w$(touch pwned)", "deny"],
    ["w;'\"", "deny"],
    ["w\\!`touch pwned`'", "deny"],
]


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
    typed = shlex.join(words)
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
    assert as_words(directory, offered) == [name for name, _ in NAMES]


@pytest.mark.parametrize("typed", ["'w", '"w', "w'", 'w"'])
def test_bash_keeps_a_name_in_the_quotes_that_are_open(directory, typed):
    """Nor does a name that is completed within quotes run what it spells."""
    offered = in_bash(directory, "dataplane", "show", "session", "all", "filter", "rule", typed)
    quote = typed.strip("w")
    assert as_words(directory, [f"{quote}{name}{quote}" for name in offered]) == [name for name, _ in NAMES]


def test_a_name_in_quotes_of_c(directory):
    """Of $'w click makes a name that begins with a dollar, so this is not about the names that it offers."""
    assert [open_quote(word) for word in ("$'w", r"$'w\'", r"\$'w", '$"w')] == ["$'", "$'", "'", '"']
    written = ["$'" + INSIDE["$'"](name) + "'" for name, _ in NAMES]
    assert as_words(directory, written) == [name for name, _ in NAMES]


def as_words(directory: Path, typed: list[str]) -> list[str]:
    """What bash makes of each, none of which may have run anything."""
    script = "for word in {}; do printf '%s\\n' \"$word\"; done".format(" ".join(typed))
    words = run(directory, ["bash", "--norc", "-c"], script)
    assert not (directory / "pwned").exists()
    return words


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
