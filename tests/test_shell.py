"""The interactive shell: lines and pipes as data, scripts on standard input, an operator at a real terminal."""

import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.cli import main
from dataplane.client import SOCKET_NAME
from dataplane.control import ControlServer
from dataplane.errors import DataplaneError, UsageError
from dataplane.shell import Shell
from dataplane.shell.line import quote, split, split_typed
from dataplane.shell.order import read
from tests.terminal import CTRL_C, CTRL_D, ROOT, Terminal
from tests.test_cli import FakeDaemon
from tests.test_text import session

PROGRAM = [sys.executable, "-m", "dataplane", "cli"]
NAMES = {
    "zone": [["trust", "in0"], ["untrust", "out0"]],
    "rule": [["lan-out", "allow"], ["web only", "deny"]],
    "application": [["dns", ""], ["ssl", ""]],
    "session": [["20", "ping 192.168.1.20 to 1.1.1.1"], ["504", "ftp-data"]],
    "interface": [["in0", ""], ["\x1b[2Jevil", ""]],
}


class Endless(list[object]):
    """Rows of sessions without an end; `made` says how many were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.begun, self.ended = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[object]:
        self.begun.set()
        try:
            while True:
                self.made += 1
                yield {**session(), "id": self.made}
        finally:
            self.ended.set()

    def silently(self, arguments: dict[str, object]) -> Iterator[object]:
        """No row and no end until the test has gone."""
        self.ended.wait(5)
        yield from arguments


SAID = [  # words that mean something somewhere, and some that never do
    *("show", "sh", "s", "session", "all", "id", "counter", "global", "clear", "test", "nat-policy-match", "exit"),
    *("filter", "fi", "state", "st", "active", "rule", "web only", "'web only'", '"', "'", "|", "||", "match", "last"),
    *("json", "watch", "5", "-", "--", "--json", "--runtime-dir", "/nowhere", "--help", "check", "/", "\x1b[2J", "é"),
]
PROMPT = f"@{socket.gethostname().partition('.')[0]}>"
PING = "20           ping           ACTIVE  FLOW  NS   192.168.1.20[1]/Inside/1  (10.2.62.150[1])"
PREDICTED = f"{'vsys1':<47}172.16.59.100[16889]/L3-Inside  (172.16.59.100[16889])"
ESCAPE = "\x1b[2J"  # clears a screen that obeys it


class NamingDaemon(FakeDaemon):
    """Knows names as well; `known` is what it was asked to complete."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.known: list[tuple[object, object]] = []
        handlers = {command: self._handler(command) for command in self.rows} | {"complete": self._complete}
        self.server = ControlServer(directory / SOCKET_NAME, handlers)

    def _complete(self, arguments: dict[str, object]) -> Iterator[object]:
        self.known.append((arguments["kind"], arguments["prefix"]))
        names = NAMES.get(str(arguments["kind"]), [])
        yield from (name for name in names if name[0].startswith(str(arguments["prefix"])))


@pytest.fixture
def daemon(tmp_path, monkeypatch) -> Iterator[NamingDaemon]:
    monkeypatch.setenv("DATAPLANE_RUNTIME_DIR", str(tmp_path))
    daemon = NamingDaemon(tmp_path)
    daemon.server.start()
    yield daemon
    daemon.server.stop()


@pytest.fixture
def shell(monkeypatch, tmp_path) -> Shell:
    monkeypatch.setenv("DATAPLANE_RUNTIME_DIR", str(tmp_path))
    return Shell(main)


def words(shell: Shell, typed: str) -> list[str]:
    """What the word at the end of the line may become."""
    return [suggestion.word for suggestion in shell.words(typed)]


# ---- a line ----


@pytest.mark.parametrize(
    ("line", "stages"),
    [
        ("show session all", [["show", "session", "all"]]),
        ('filter rule "web only"|match a', [["filter", "rule", "web only"], ["match", "a"]]),
        ("x | match 'a|b \"c\" ?'", [["x"], ["match", 'a|b "c" ?']]),
        ("x | match \\d+$(reboot)`id`", [["x"], ["match", "\\d+$(reboot)`id`"]]),
        ("a'b c'\"d e\"f", [["ab cd ef"]]),
        ("x '' |", [["x", ""], []]),
    ],
)
def test_a_line_is_words_and_bars(line, stages):
    """Quotes hold together, and nothing else means anything."""
    assert split(line) == stages


@pytest.mark.parametrize("line", ['x "', "x 'a b", "x \"a' | match b"])
def test_a_quote_is_closed(line):
    """What is left open is no word."""
    with pytest.raises(UsageError, match="quote"):
        split(line)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_a_quoted_word_is_read_back(typed):
    """Whatever a name holds, completion types it so that it is that name again."""
    assert split(" ".join(map(quote, typed))) == [typed]


@given(st.text())
def test_every_half_of_a_line_can_be_looked_at(text):
    """Tab and `?` may be pressed anywhere."""
    typed = split_typed(text)
    assert 0 <= typed.start <= len(text)


# ---- commands cut short ----


@pytest.mark.parametrize(
    ("line", "full"),
    [
        ("sh sess all", "show session all"),
        ("sh sess id 7", "show session id 7"),
        ("sh sess all fi stat act", "show session all filter state active"),
        ("sh sess all --json fi nat so", "show session all --json filter nat source"),
        ("sh sess all --runtime-dir fi fi nat so", "show session all --runtime-dir fi filter nat source"),
        ("sh sess all fi rule st", "show session all filter rule st"),
        ("te sec from trust", "test security-policy-match from trust"),
    ],
)
def test_words_may_be_cut_short(shell, line, full):
    """As long as they can mean one keyword alone; names are never guessed."""
    assert read(shell.tree, line).words == full.split()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("c", "may be check .*clear"),
        ("show session all filter s active", "'s' may be state source source-port start-at"),
        ("sh r", "may be running .*rule-hit-count"),
        ("show wisdom", "none of"),
        ("run --config x", "none of"),
        ("cli", "none of"),
        ("show alg |", "followed by one of"),
        ("show alg | tee x", "none of"),
        ("show alg | match", "one regular expression"),
        ("show alg | match a b", "one regular expression"),
        ("show alg | match (", "not a regular expression"),
        ("show alg | last 0", "1 to 100000"),
        ("show alg | last", "1 to 100000"),
        ("show alg | count 3", "takes no words"),
        ("show alg | match x | json", "right behind the command"),
        ("clear session all | json", "no such output"),
        ("show alg | watch 0", "1 to 3600"),
        ("watch 99999 show alg", "1 to 3600"),
    ],
)
def test_nonsense_is_refused_before_anything_is_run(shell, capsys, line, reason):
    """With exit code 2 and the reason."""
    assert shell.obey(line) == 2
    assert re.search(reason, capsys.readouterr().err)


# ---- what may follow ----


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("sh", ["show"]),
        ("show ses", ["session"]),
        ("show session i", ["id", "info"]),
        ("sh sess all ", ["start-at", "count", "filter"]),
        ("show session all filter so", ["source", "source-port"]),
        ("show session all filter source 10.0.0.0/8 so", ["source-port"]),
        ("show session all filter state ", ["initial", "opening", "active", "discard", "closing", "closed"]),
        ("show session all filter rule ", ["lan-out", "web only"]),
        ('show session all filter rule "web', ["web only"]),
        ("show session all filter from trust to u", ["untrust"]),
        ("show session all filter ingress-interface ", ["in0"]),
        ("show session id 5", ["504"]),
        ("clear session all filter ap", ["application"]),
        ("clear session all filter cou", []),
        ("show counter global filter severity d", ["drop"]),
        ("test nat-policy-match protocol 6 app", []),
        ("show session all filter source ", []),
        ("show session all --j", ["--json"]),
        ("show wisdom ", []),
        ("show session all | co", ["count"]),
        ("show session all | match co", []),
        ("watch 5 show ses", ["session"]),
        ("completion ", []),
        ("ex", ["exit"]),
    ],
)
def test_completion(daemon, shell, typed, found):
    """Keywords from the tree, names from the daemon; a name that a terminal would obey is nobody's word."""
    assert words(shell, typed) == found


def test_files_are_completed(shell, tmp_path):
    """A directory's name goes on."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "fire wall.yaml").touch()
    assert words(shell, f"check {tmp_path}/e") == [f"{tmp_path}/etc/"]
    assert words(shell, f"check {tmp_path}/etc/") == [f"{tmp_path}/etc/fire wall.yaml"]


def test_a_command_without_a_grammar_is_completed_as_far_as_click_knows_it(shell):
    """Words of any shape are nobody's error."""
    shell.tree.add_command(click.Command("plain", params=[click.Argument(["words"], nargs=-1, metavar="[any WORD]")]))
    assert words(shell, "plain a") == []
    assert list(shell.help_on("plain ")) == [
        "  [any WORD]",
        "  |           Pipe the output through",
        "  <Enter>     Finish input",
    ]
    assert read(shell.tree, "plain fi").words == ["plain", "fi"]


@given(st.lists(st.sampled_from(SAID)), st.sampled_from(["", " "]))
def test_anything_may_be_asked_about(typed, end):
    """Tab and `?` answer in the middle of any nonsense, and what is completed begins with what was typed."""
    shell, line = Shell(main), " ".join(typed) + end
    assert all(len(text) < 500 for text in shell.help_on(line))
    partial = split_typed(line).partial
    assert all(word.startswith(partial) for word in words(shell, line))


def test_names_are_asked_once_for_several_keys(daemon, shell):
    """An answer is good for a moment."""
    for _ in range(5):
        words(shell, "show session all filter from ")
    assert daemon.known == [("zone", "")]


def test_no_daemon_is_no_names(shell):
    """Neither an error nor a wait."""
    assert words(shell, "show session all filter from ") == []


def test_help_says_what_may_follow(daemon, shell):
    """Commands, keys, values and what stands for them, and whether the line may end."""
    assert next(shell.help_on("show session ")) == "> all    List sessions, or count them."
    keys = list(shell.help_on("show session all filter "))
    assert "+ from               zone that the first packet came from" in keys
    assert not any("<Enter>" in line for line in keys)
    assert list(shell.help_on("show session all filter protocol ")) == [
        "  <1-255>  IP protocol: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6"
    ]
    assert list(shell.help_on("show session all filter from t")) == [
        "  <name>  zone that the first packet came from",
        "  trust   in0",
    ]
    assert list(shell.help_on("show session all "))[-1].split() == ["<Enter>", "Finish", "input"]
    assert not any("<Enter>" in line for line in shell.help_on("test nat-policy-match from trust "))
    assert list(shell.help_on("show session all | match ")) == ["  <regex>  Show only lines that match, in either case"]
    assert next(shell.help_on("show wisdom ")).startswith("'wisdom' is none of session ")


# ---- scripts ----


def script(directory: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """The shell with these lines on its standard input."""
    environment = {**os.environ, "DATAPLANE_RUNTIME_DIR": str(directory)}
    return subprocess.run(
        PROGRAM, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, env=environment, cwd=ROOT
    )


def test_a_script_goes_on_after_a_failure(daemon, tmp_path):
    """And ends with the exit code of the last command that failed."""
    daemon.rows["show session id"] = [DataplaneError("session 7 does not exist")]
    done = script(
        tmp_path, "show bogus", "show session id 7", "", "# not a command", "clear session all", "exit", "show alg"
    )
    assert done.stdout == "sessions cleared: 2\n"
    nonsense, missing = done.stderr.splitlines()
    assert nonsense.startswith("'bogus' is none of session ")
    assert missing == "session 7 does not exist"
    assert done.returncode == 1
    assert script(tmp_path, "clear session all").returncode == 0
    assert script(tmp_path / "nobody", "clear session all").returncode == 4


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("show session all | match inside/1", [PING]),
        ("show session all | match ^[0-9] | count", ["Count: 2 lines"]),
        ("show session all | match VSYS1 | last 1", [PREDICTED]),
        ("show session all | except '^(-|vsys|ID|[0-9])'", []),
        ("show session all | json | match '\"id\": ?504' | count", ["Count: 1 lines"]),
        ("show session all --json | last 1 | no-more", ["]"]),
        ("show session all | m ftp | c", ["Count: 1 lines"]),
        ("show session all filter count yes | json", ["20"]),
    ],
)
def test_pipes(daemon, tmp_path, line, printed):
    """Several may follow one another; regular expressions are typed as they are."""
    if "count yes" in line:
        daemon.rows["show session all"] = [20]
    done = script(tmp_path, line)
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (printed, "", 0)


def test_a_list_that_nobody_reads_on_ends_the_shell(daemon, tmp_path):
    """As `| head` ends any command: without a word."""
    daemon.rows["show session all"] = [session()] * 5000
    environment = {**os.environ, "DATAPLANE_RUNTIME_DIR": str(tmp_path)}
    command = f"printf 'show session all\\nshow session all\\n' | {' '.join(PROGRAM)} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("-" * 80 + "\n", "")


def test_watch_needs_a_terminal(daemon, tmp_path):
    """A script has a loop of its own."""
    done = script(tmp_path, "watch show alg", "show alg | watch")
    assert (done.returncode, done.stderr) == (2, "watch: needs a terminal\n" * 2)


def test_names_never_move_the_cursor(daemon, tmp_path):
    """Neither in the shell nor in the program's own output, be it a list, a detail or an error."""
    evil = {**session(), "rule": ESCAPE, "application": f"a{ESCAPE}", "ingress_interface": "\x9b2J\u202e"}
    daemon.rows["show session all"] = daemon.rows["show session id"] = [evil]
    daemon.rows["clear session all"] = [DataplaneError(f"{ESCAPE}\nsecond line")]
    lines = ["show session all", "show session id 1", "clear session all"]
    inside = script(tmp_path, *lines)
    outside = [
        subprocess.run([*PROGRAM[:3], *line.split()], capture_output=True, text=True, cwd=ROOT, env=os.environ)
        for line in lines
    ]
    for text in (inside.stdout, inside.stderr, *(done.stdout + done.stderr for done in outside)):
        assert all(char == "\n" or char.isprintable() for char in text)
        assert "\\u001b[2J" in text
    assert "\\u009b2J\\u202e" in inside.stdout
    assert inside.stderr == "\\u001b[2J\nsecond line\n"


# ---- at a terminal ----


@pytest.fixture
def terminal(daemon, tmp_path) -> Iterator[Terminal]:
    """The shell's own, past its first prompt."""
    with Terminal(PROGRAM, {"DATAPLANE_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}) as made:
        yield made.sees(PROMPT)


def test_a_prompt_completes_helps_and_obeys(daemon, terminal):
    """As an operator goes about it: `?`, Tab, Return."""
    terminal.types("sh sess ?").sees("> meter")
    terminal.types("al\tfil\tru\tw\t\r").sees("(10.2.62.150[1])").sees(PROMPT)
    assert [(command, asked["filter"]) for command, asked in daemon.asked] == [
        ("show session all", {"rule": "web only"})
    ]


def test_control_c_drops_the_line_and_control_d_leaves(terminal):
    """Neither ends the shell in the middle of a line."""
    terminal.types("show bogus" + CTRL_C).sees(PROMPT)
    terminal.types("show bogus\r").sees("'bogus' is none of").sees(PROMPT)
    terminal.types(CTRL_D)
    assert terminal.ends() == 0


@pytest.mark.parametrize("word", ["exit", "quit", "q"])
def test_leaving(terminal, word):
    """In one word, or its beginning."""
    terminal.types(f"{word}\r")
    assert terminal.ends() == 0


def test_history_is_kept_for_its_user_alone(terminal, tmp_path):
    """And the arrow finds the last line again."""
    terminal.types("show alg\r").sees("unknown command").sees(PROMPT)
    terminal.types("\x1b[A").sees("show alg")
    kept = tmp_path / "dataplane" / "history"
    assert "show alg" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_control_c_interrupts_a_command(daemon, terminal):
    """One that would go on for ever."""
    daemon.rows["show session all"] = Endless()
    terminal.types("show session all | match nothing\r").sees("match nothing")
    daemon.rows["show session all"].begun.wait(10)
    terminal.types(CTRL_C).sees(PROMPT)
    terminal.types("clear session all\r").sees("sessions cleared: 2")


def test_pages(daemon, terminal):
    """Return shows a line, space a page, a search what it finds, q ends it; what is not read is not asked for."""
    daemon.rows["show session all"] = endless = Endless()
    terminal.types("show session all\r").sees("--more--")
    assert "\n10 " in terminal.screen
    assert "\n11 " not in terminal.screen
    terminal.types("\r").sees("--more--")
    assert terminal.screen.count("\n") == 1
    terminal.types(" ").sees("--more--").types("/").sees("/").types("^1000 \r").sees("--more--")
    assert terminal.screen.splitlines()[0].endswith(
        "1000         ping           ACTIVE  FLOW  NS   192.168.1.20[1]/Inside/1  (10.2.62.150[1])"
    )
    terminal.types("x").sees("space: next page")
    terminal.types("q").sees(PROMPT)
    assert os.getpriority(os.PRIO_PROCESS, terminal.process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    terminal.types("clear session all\r").sees("sessions cleared: 2")
    assert endless.ended.wait(10)
    assert endless.made < 20_000


def test_a_page_holds_lines_that_are_wider_than_the_screen(daemon, terminal):
    """They count as the rows that they take, and return shows a whole one."""
    daemon.rows["show running config"] = [{"zones": [{"name": "y" * 990, "interfaces": []}] * 5}]
    terminal.types("show running config\r").sees("--more--")
    assert terminal.screen.count("y" * 90) >= 20
    terminal.types("\r").sees("--more--").types("\r").sees("--more--").types("q").sees(PROMPT)


def test_a_terminal_that_hangs_up_ends_the_shell(daemon, terminal):
    """In the middle of a page, where a key is waited for."""
    daemon.rows["show session all"] = Endless()
    terminal.types("show session all\r").sees("--more--")
    terminal.hangs_up()
    terminal.process.wait(10)


def test_no_more_and_short_answers_do_not_stop(daemon, terminal):
    """A page that just fits is not asked about."""
    daemon.rows["show session all"] = [{**session(), "id": number} for number in range(100)]
    terminal.types("show session all | no-more\r").sees("\n99 ").sees(PROMPT)
    assert "--more--" not in terminal.screen


def test_watch(daemon, terminal):
    """Shows it again and again, survives a failure, and any key ends it."""
    terminal.types("watch 1 show session info\r").sees("every 1 s").sees(
        "Number of sessions supported:                    10"
    )
    daemon.rows["show session info"] = [DataplaneError("the table is gone")]
    terminal.sees("the table is gone")
    terminal.types("x").sees(PROMPT)
    terminal.types("show session all | match tcp | watch\r").sees("every 2 s")
    terminal.types(CTRL_C).sees(PROMPT)
    terminal.types("clear session all\r").sees("sessions cleared: 2")


def test_a_daemon_that_hangs_does_not_hang_the_prompt(terminal, tmp_path, daemon):
    """Completion gives up after half a second."""
    daemon.server.stop()
    daemon.server = ControlServer(tmp_path / SOCKET_NAME, {"complete": Endless().silently})
    daemon.server.start()
    terminal.types("show session all filter from t\t").sees("from t")
    terminal.types("x" + CTRL_C).sees(PROMPT)


def test_several_pasted_lines_are_obeyed_in_turn(terminal):
    """A question mark among them is one."""
    terminal.types("\x1b[200~clear session all\nshow session all | match 'inside/10?' | count\x1b[201~\r")
    terminal.sees("sessions cleared: 2").sees("Count: 1 lines")


def test_bytes_that_are_no_text(terminal):
    """Are a word like any other, and not remembered."""
    terminal.types("show \udcff\udc9b2J\r").sees("is none of").sees(PROMPT)
    terminal.types("clear session all\r").sees("sessions cleared: 2")


def test_a_home_that_cannot_be_written_costs_the_history_alone(daemon, tmp_path):
    """And a history that is somebody else's link is not followed."""
    (tmp_path / "dataplane").mkdir()
    (tmp_path / "dataplane" / "history").symlink_to(tmp_path / "elsewhere")
    with Terminal(PROGRAM, {"DATAPLANE_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}) as terminal:
        terminal.sees(PROMPT).types("clear session all\r").sees("sessions cleared: 2").sees(PROMPT)
    assert not (tmp_path / "elsewhere").exists()
