"""A hundred thousand sessions listed, filtered and counted while an offloaded stream flows.

    client 10.1.0.2 --- in0 trust [ firewall ] untrust out0 --- server 10.2.0.2, and nobody at 10.2.0.200

All but the first of them are begun by the dispatch cache. How fast the lists are, and what they take from the stream,
is measured by the bench (tests/bench/lists.py); here they must be right, and the stream must not break.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from tests.lab.console import Control, ask, counters, info, rule, zones
from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import SERVER, Lab, end, poll
from tests.lab.witness import resident

NOBODY = "10.2.0.200"  # a phantom: nobody answers the crowd
PORTS = range(10_000, 60_000)  # of nobody, each of which every one of the SOURCES asks
SOURCES = (20_001, 20_002)
CROWD_SIZE = len(PORTS) * len(SOURCES)
STEP = 1000  # sessions at once
INTERVAL = "0.5"  # seconds of the stream that are told apart
CONTROL_THREADS = 16  # of the daemon
CLIENT_MEMORY = 48 << 20  # bytes: an interpreter and some blocks; the list as JSON has a hundred million
DAEMON_GROWTH = 8 << 20  # bytes


class Entry(NamedTuple):
    """Of a session in a list."""

    id: int
    dst: str
    sport: int
    dport: int


@dataclass(frozen=True)
class Place:
    lab: Lab
    firewall: Firewall
    control: Control


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A daemon with the crowd in its table."""
    session = {"max-sessions": 131072, "timeouts": {"udp": 600}}
    config = {
        "zones": zones(),
        "security-rules": [rule("out", from_=["trust"], to=["untrust"], log_end=False)],
        "settings": {"session": session},
    }
    with Lab(server_phantoms=[NOBODY]) as lab, lab.firewall(config) as firewall:
        crowd(lab, firewall)
        yield Place(lab, firewall, Control(lab))


def crowd(lab: Lab, firewall: Firewall) -> None:
    """A session for each of the PORTS and SOURCES."""
    wanted = info(firewall)["num_installed"]
    with ExitStack() as stack:
        for source in SOURCES:
            sock = stack.enter_context(lab.udp("client", source))
            for first in PORTS[::STEP]:
                for number in range(first, first + STEP):
                    sock.sendto(b"", (NOBODY, number))
                wanted += STEP
                poll(lambda: info(firewall)["num_installed"] >= wanted, 10, "a thousand sessions more")  # noqa: B023
    assert counters(firewall)["session_cached"] > CROWD_SIZE * 0.9


@contextmanager
def stream(lab: Lab) -> Iterator[Callable[[], list[float]]]:
    """iperf3 at 500 Mbit/s; what it gives is the Mbit/s that arrived in every INTERVAL so far."""
    server = lab.serve("server", ["iperf3", "-s", "-1", "-i", INTERVAL, "-f", "m", "--forceflush"], 5201)
    client = lab.popen("client", ["iperf3", "-c", SERVER, "-b", "500M", "-t", "300"])

    def arrived() -> list[float]:
        return [float(rate) for rate in re.findall(r" sec .* ([\d.]+) Mbits/sec *$", lab.output(server), re.MULTILINE)]

    poll(arrived, 10, "the stream to flow")
    try:
        yield arrived
        before = len(arrived())
        poll(lambda: len(arrived()) > before, 10, "the stream to go on")
        assert min(arrived()) > 0
        assert client.poll() is None
    finally:
        end(client)
        end(server)


def command_line(firewall: Firewall, *words: str) -> list[str]:
    return [*PROGRAM, "show", "session", "all", "--runtime-dir", str(firewall.directory / "runtime"), *words]


def printed(firewall: Firewall, *words: str) -> str:
    """What a list prints, in full."""
    done = subprocess.run(command_line(firewall, *words), capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def listed(firewall: Firewall, *words: str) -> list[Entry]:
    """The list as JSON, read line by line: as a whole it would take half a gigabyte here."""
    command = command_line(firewall, "--json", *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as listing:
        assert listing.stdout is not None
        first, *entries, last = map(entry, listing.stdout)
    assert (listing.returncode, first, last) == (0, None, None)
    return [one for one in entries if one is not None]


def entry(line: bytes) -> Entry | None:
    """What is looked at of an element's line; None for a bracket."""
    if len(line) < 3:
        return None
    row = json.loads(line.rstrip(b",\n"))
    return Entry(row["id"], row["c2s"]["dst"], row["c2s"]["sport"], row["c2s"]["dport"])


def of_crowd(entries: list[Entry]) -> set[tuple[int, int]]:
    """Ports of both ends of those that ask nobody."""
    pairs = [(one.sport, one.dport) for one in entries if one.dst == NOBODY]
    assert len({*pairs}) == len(pairs)
    return {*pairs}


def test_every_session_is_listed_once(place):
    """As JSON and as text: no id twice, nobody left out, while the stream flows and sessions begin."""
    everybody = {(source, number) for source in SOURCES for number in PORTS}
    with stream(place.lab), ThreadPoolExecutor() as pool:
        listing, printing = pool.submit(listed, place.firewall), pool.submit(printed, place.firewall)
        while not listing.done():
            place.control()
        entries, lines = listing.result(), printing.result().splitlines()
    ids = [one.id for one in entries]
    assert ids == sorted(set(ids))
    assert of_crowd(entries) == everybody
    heads, tails = lines[4::2], lines[5::2]
    own = {int(head.split()[0]): tail for head, tail in zip(heads, tails, strict=True)}
    assert len(own) == len(heads)
    for one in entries:
        if one.dst == NOBODY:
            assert f" {NOBODY}[{one.dport}]/untrust  (" in own[one.id]


def test_filters_counts_and_starts_hold(place):
    """Each source's half, one session alone, the number of all, and what is left from an id on."""
    one, other = SOURCES
    to_nobody = ("filter", "destination", NOBODY)
    with stream(place.lab):
        half = listed(place.firewall, *to_nobody, "source-port", str(one))
        alone = listed(place.firewall, *to_nobody, "destination-port", "10007")
        number = printed(place.firewall, *to_nobody, "count", "yes")
        half_number = printed(place.firewall, *to_nobody, "source-port", str(other), "count", "yes")
        middle = half[-100].id
        rest = listed(place.firewall, "start-at", str(middle), *to_nobody, "source-port", str(one))
    assert of_crowd(half) == {(one, number) for number in PORTS}
    assert of_crowd(alone) == {(one, 10007), (other, 10007)}
    assert (number, half_number) == (f"{CROWD_SIZE}\n", f"{CROWD_SIZE // 2}\n")
    assert rest == [entry for entry in half if entry.id >= middle]


def test_a_list_and_a_single_session_say_the_same(place):
    """`show session id` of what is listed."""
    (in_list,) = ask(place.firewall, "show session all", filter={"destination-port": "10007", "source-port": "20001"})
    (alone,) = ask(place.firewall, "show session id", id=in_list["id"])
    assert alone | {"time_to_live": 0} == in_list | {"time_to_live": 0}
    assert (list(alone), list(alone["c2s"])) == (list(in_list), list(in_list["c2s"]))


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_who_reads_the_beginning_only_ends_both_sides(place, options):
    """`| head -2`, more often than the daemon has threads to answer: none of them is left behind."""
    for _ in range(CONTROL_THREADS + 1):
        with subprocess.Popen(command_line(place.firewall, *options), stdout=subprocess.PIPE, cwd=ROOT) as listing:
            assert listing.stdout is not None
            listing.stdout.readline()
            assert listing.stdout.readline()
            listing.stdout.close()
            assert listing.wait(20) == 0
    assert info(place.firewall)["num_active"] >= CROWD_SIZE


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_memory_does_not_grow_with_the_list(place, options):
    """Neither the client's nor the daemon's."""
    command = ["prlimit", f"--data={CLIENT_MEMORY}", *command_line(place.firewall, *options)]
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=120, check=True)
    before = resident(place.firewall.pid)
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=120, check=True)
    assert resident(place.firewall.pid) < before + DAEMON_GROWTH


def test_all_of_them_are_cleared_beside_the_stream(place):
    """The last test of the crowd: the stream is spared by the filter and goes on."""
    with stream(place.lab):
        done = place.firewall.cli("clear", "session", "all", "filter", "destination", NOBODY, timeout=60)
        assert done.stdout == f"sessions cleared: {CROWD_SIZE}\n"
        count = {"count": True, "filter": {"destination": NOBODY}}
        poll(lambda: ask(place.firewall, "show session all", **count) == [0], 20, "all of them to be gone")
