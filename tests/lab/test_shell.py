"""The interactive shell of a real daemon with traffic through it: an operator finds a session and ends it.

client ── in0 firewall out0 ── server        `dataplane cli` at a pseudo-terminal in the firewall's namespace
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.console import CONTROL_PORT, IN_ORDER, attempt, port, rule, session_of, sessions, zones
from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import SERVER, Lab, poll
from tests.terminal import CTRL_D, Terminal

WEB = 80
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "services": {"control": port(CONTROL_PORT, "udp"), "web": port(WEB)},
    "security-rules": [
        rule("control", service=["control"], log_end=False),
        rule("web only", from_=["trust"], to=["untrust"], service=["web"]),
    ],
    "settings": IN_ORDER,
}
PROMPT = f"@{socket.gethostname().partition('.')[0]}>"


@pytest.fixture(scope="module")
def net() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as lab, lab.firewall(CONFIG) as firewall:
        yield lab, firewall


@pytest.fixture
def web(net: tuple[Lab, Firewall]) -> Iterator[dict[str, Any]]:
    """The session of a connection that is held open."""
    lab, firewall = net
    with lab.listener("server", WEB) as listening, lab.connect("client", (SERVER, WEB)) as client, ExitStack() as stack:
        stack.enter_context(listening.accept()[0])
        yield session_of(firewall, client, state="active")


@pytest.fixture
def terminal(net: tuple[Lab, Firewall]) -> Iterator[Terminal]:
    """The shell, past its first prompt."""
    _, firewall = net
    environment = {"XDG_STATE_HOME": str(firewall.directory), "DATAPLANE_RUNTIME_DIR": runtime_dir(firewall)}
    with Terminal([*PROGRAM, "cli"], environment) as made:
        yield made.sees(PROMPT)


def runtime_dir(firewall: Firewall) -> str:
    return str(firewall.directory / "runtime")


def script(net: tuple[Lab, Firewall], *lines: str) -> subprocess.CompletedProcess[str]:
    """The shell with these lines on its standard input."""
    _, firewall = net
    return subprocess.run(
        [*PROGRAM, "cli"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        env={**os.environ, "DATAPLANE_RUNTIME_DIR": runtime_dir(firewall)},
    )


def test_a_session_is_found_shown_counted_and_ended(net, web, terminal):
    """By the names and numbers that the daemon completes."""
    _, firewall = net
    number = str(web["id"])
    terminal.types("show session all filter rule ?").sees("web only").sees("allow")
    terminal.types("we\t| match web-browsing\r").sees(f"{number} ").sees("/trust/6")
    terminal.sees(PROMPT).types("show session all filter from tr\tdestination-port 80 | match ACTIVE | count\r")
    terminal.sees("Count: 1 lines").sees(PROMPT)
    terminal.types(f"show session id {number[:-1]}?").sees(f"{number} ").sees(f"to {SERVER}")
    terminal.types(f"{number[-1]}\r").sees(f"Session{number:>16}").sees("--more--").types("q").sees(PROMPT)
    terminal.types(f"clear session id {number}\r").sees("sessions cleared: 1").sees(PROMPT)
    poll(lambda: not sessions(firewall, application="web-browsing"), 5, "the session to be gone")
    terminal.types(CTRL_D)
    assert terminal.ends() == 0


def test_a_script_of_the_same_words(net, web):
    """Cut short, piped and as JSON; what fails does not keep the next line from being obeyed."""
    number = web["id"]
    done = script(
        net,
        "sh sess all fi app web-browsing | m ^[0-9] | c",
        f'show session id {number} | json | match ".id.: ?{number}," | count',
        "show session all filter from nowhere | except '^(-|ID|Vsys)'",
        "show session id 4000000000",
        f"clear session id {number}",
    )
    assert done.stdout.splitlines() == ["Count: 1 lines", "Count: 1 lines", "sessions cleared: 1"]
    assert done.stderr == "session 4000000000 does not exist\n"
    assert done.returncode == 1


def test_watch_follows_the_sessions(net, terminal):
    """A session that begins meanwhile appears by itself."""
    lab, firewall = net
    terminal.types("watch 1 show session all filter destination-port 8080\r").sees("every 1 s")
    with attempt(lab, (SERVER, 8080), socket.SOCK_STREAM):
        terminal.sees("DISCARD").types(" ").sees(PROMPT)
    assert sessions(firewall, destination_port=8080)


def test_the_prompt_survives_its_daemon(net, terminal):
    """Completion and commands say nothing or why; the next daemon answers at the same prompt."""
    _, firewall = net
    firewall.stop()
    terminal.types("show session all filter from t\t\r").sees("no daemon answers").sees(PROMPT)
    firewall.start()
    terminal.types("show session info | match supported\r").sees("Number of sessions supported")
