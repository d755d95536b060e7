"""Packet diagnosis as an operator sets it: what is refused, what is written, what is told; without a kernel."""

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from scapy.utils import RawPcapNgReader

from dataplane import text
from dataplane.cli import main
from dataplane.commands.diagnosis import handlers
from dataplane.control import Handler
from dataplane.diag import diagnosis as diagnosis_module
from dataplane.diag import pcapng
from dataplane.diag.diagnosis import FILTERS, Diagnosis
from dataplane.engine import Engine
from dataplane.errors import DataplaneError, UsageError
from dataplane.ffi import lib
from dataplane.filters import MAX_CAPTURED, parse_packet_filter, parse_stage
from dataplane.names import Names
from dataplane.sessions import HOST_ZONE, MAX_APPLICATIONS
from tests.lab.polling import poll
from tests.talk import INSIDE, OUTSIDE, TCP, UDP, Firewall

COMMAND = "debug dataplane packet-diag"
QUESTION = UDP("10.0.0.5:4000", "8.8.8.8:53")


class Bench:
    """A fast path, and the commands that diagnose it."""

    def __init__(self, directory: Path) -> None:
        self.firewall = Firewall().decides(source="192.0.2.1", ports=(1024, 1024), rule=1, nat_rule=1)
        names = Names(MAX_APPLICATIONS, HOST_ZONE)
        names.set_zones({"trust": INSIDE, "untrust": OUTSIDE})
        names.set_interfaces({INSIDE: "in0", OUTSIDE: "out0"})
        names.rules.numbers(["", "lan out"])
        names.nat_rules.number("snat")
        table: Any = SimpleNamespace(pointer=self.firewall.table)
        self.directory = directory / "packet-diag"
        self.diagnosis = Diagnosis(table, names, self.directory, self._watch)
        self.witness: object = None
        engine = cast(Engine, SimpleNamespace(diagnosis=self.diagnosis))
        self._handlers: dict[str, Handler] = handlers(engine)

    def _watch(self, witness: object) -> None:
        self.witness = witness

    def close(self) -> None:
        self.diagnosis.clear_all()
        self.firewall.__exit__()

    def ask(self, command: str, **arguments: object) -> list[Any]:
        return list(cast(Iterator[Any], self._handlers[f"{COMMAND} {command}"](arguments)))

    def filters(self, **match: str) -> "Bench":
        """A filter that is on."""
        self.ask("set filter", match={key.replace("_", "-"): value for key, value in match.items()})
        self.ask("set filter", on=True)
        return self

    def captures(self, *stages: str, file: str = "all.pcapng", **settings: str) -> "Bench":
        words = {key.replace("_", "-"): value for key, value in settings.items()}
        for stage in stages:
            self.ask("set capture", stage=stage, settings={"file": file, **words})
        self.ask("set capture", on=True)
        return self

    def setting(self) -> Any:
        return self.ask("show setting")[0]

    def stage(self, name: str) -> Any:
        (found,) = [row for row in self.setting()["capture"]["stages"] if row["stage"] == name]
        return found

    def packets(self, file: str = "all.pcapng") -> list[tuple[bytes, Any]]:
        """What scapy reads in a file: bytes and metadata."""
        with RawPcapNgReader(str(self.directory / file)) as reader:
            return list(reader)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# ---- filters ----


def test_filters_take_the_first_free_place(bench):
    """Up to four; an index replaces."""
    assert [bench.ask("set filter", match={"protocol": str(n)}) for n in (6, 17)] == [[{"index": 1}], [{"index": 2}]]
    bench.ask("clear", what="filter", index=1)
    assert bench.ask("set filter", match={"protocol": "1"}) == [{"index": 1}]
    assert bench.ask("set filter", index=2, match={"source": "10.1.0.0/16", "source-port": "7"}) == [{"index": 2}]
    first, second = bench.setting()["filter"]["filters"]
    assert (first["protocol"], second["source"], second["source_port"]) == (1, "10.1.0.0/16", 7)
    for _ in range(2):
        bench.ask("set filter", match={"protocol": "1"})
    with pytest.raises(DataplaneError, match="all 4 filters"):
        bench.ask("set filter", match={"protocol": "1"})


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"on": "yes"},
        {"match": {}},
        {"match": []},
        {"match": {"colour": "red"}},
        {"match": {"source": "10.0.0.0/33"}},
        {"match": {"source": 10}},
        {"match": {"source-port": "0"}},
        {"match": {"protocol": "256"}},
        {"match": {"ingress-interface": "eth7"}},
        {"match": {"source": "10.0.0.1", "destination": "fd00::1"}},
        {"match": {"protocol": "6"}, "index": FILTERS + 1},
        {"match": {"protocol": "6"}, "index": 0},
        {"match": {"protocol": "6"}, "index": True},
    ],
)
def test_a_filter_that_cannot_be(bench, arguments):
    """Nothing is set."""
    with pytest.raises(UsageError):
        bench.ask("set filter", **arguments)
    assert bench.setting()["filter"]["filters"] == []


def test_without_a_filter_nothing_is_diagnosed(bench):
    """Neither filter, capture nor log can be switched on; each says what is missing."""
    with pytest.raises(DataplaneError, match="no filter is set"):
        bench.ask("set filter", on=True)
    bench.ask("set filter", match={"protocol": "17"})
    for what in ("capture", "log"):
        with pytest.raises(DataplaneError, match="the filter is off"):
            bench.ask(f"set {what}", on=True) if what == "log" else bench.captures("receive")
    with pytest.raises(DataplaneError, match="filter 3 is not set"):
        bench.ask("clear", what="filter", index=3)


def test_the_last_filter_takes_everything_with_it(bench):
    """Capture, log, the slow path's witness and the marks."""
    bench.filters(protocol="17").captures("receive")
    bench.ask("set log", feature="flow basic")
    bench.ask("set log", on=True)
    assert bench.witness is not None
    bench.firewall.c2s(QUESTION)
    assert bench.setting()["filter"]["marked_sessions"] == 1
    bench.ask("clear", what="filter", index=1)
    setting = bench.setting()
    assert not any(setting[what]["enabled"] for what in ("filter", "capture", "log"))
    assert setting["filter"]["marked_sessions"] == 0
    assert bench.witness is None


def test_an_interface_that_comes_back_with_another_index_is_followed(bench):
    """Its name is what was set."""
    bench.filters(ingress_interface="in0")
    bench.firewall.c2s(QUESTION)
    assert bench.diagnosis.counted()["pkt_recv"] == 2
    bench.diagnosis._names.set_interfaces({7: "in0"})
    poll(lambda: bench.setting()["filter"]["marked_sessions"] == 0, 5, "the other index")
    lib.table_set_zones(bench.firewall.table, [7, OUTSIDE], bytes([INSIDE, OUTSIDE]), 2)
    bench.firewall.send(QUESTION, 7)
    assert bench.diagnosis.counted()["pkt_recv"] == 3


# ---- capture ----


def test_all_stages_in_one_file(bench):
    """In the order of the packet's way, with interfaces, directions and comments."""
    bench.filters(source="10.0.0.5").captures("receive", "firewall", "transmit")
    sent = bench.firewall.c2s(QUESTION)
    bench.ask("set capture", on=False)
    (received, first), (_, second), (transmitted, third) = bench.packets()
    assert received == bytes(QUESTION)
    assert transmitted == sent.after
    assert first.comments == [b"stage=receive"]
    what = b'session=1 direction=c2s rule="lan out" nat-rule=snat verdict=accept'
    assert (second.comments, third.comments) == ([b"stage=firewall " + what], [b"stage=transmit " + what])
    assert [first.ifname, third.ifname] == [b"in0", b"out0"]
    assert (first.linktype, first.tsresol) == (pcapng.LINKTYPE_RAW, 10**9)


def test_a_file_of_its_own_for_each_stage(bench):
    """And a stage that saw nothing leaves a file without packets."""
    bench.filters(source="10.0.0.5")
    bench.ask("set capture", stage="drop", settings={"file": "drop.pcapng"})
    bench.captures("receive", file="rx.pcapng")
    bench.firewall.c2s(TCP("10.0.0.5:1", "8.8.8.8:2", "A")).is_dropped("flow_tcp_non_syn_drop")
    bench.ask("set capture", on=False)
    ((_, received),) = bench.packets("rx.pcapng")
    ((_, dropped),) = bench.packets("drop.pcapng")
    assert received.comments == [b"stage=receive"]
    assert dropped.comments == [b"stage=drop verdict=drop reason=flow_tcp_non_syn_drop"]


def test_a_cut_copy_says_so(bench):
    """The file knows the packet's length, the comment tells why it is shorter."""
    bench.filters(source="10.0.0.5").captures("receive", snaplen="64")
    bench.firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53", bytes(500)))
    bench.ask("set capture", on=False)
    ((data, metadata),) = bench.packets()
    assert (len(data), metadata.wirelen) == (64, 528)
    assert metadata.comments == [b'stage=receive cut="64 of 528 bytes"']


def test_capture_ends_by_itself_when_every_stage_has_had_enough(bench):
    """And the settings say what there is."""
    bench.filters(protocol="17").captures("receive", packet_count="2")
    for _ in range(3):
        bench.firewall.c2s(QUESTION)
    poll(lambda: not bench.setting()["capture"]["enabled"], 5, "the end of the capture")
    assert (bench.stage("receive")["packets"], bench.stage("receive")["complete"]) == (2, True)
    assert len(bench.packets()) == 2


def test_a_file_is_begun_anew_and_is_roots_alone(bench):
    """Whatever its mode was."""
    bench.filters(protocol="17").captures("receive")
    bench.firewall.c2s(QUESTION)
    bench.ask("set capture", on=False)
    path = bench.directory / "all.pcapng"
    path.chmod(0o644)
    bench.ask("set capture", on=True)
    bench.ask("set capture", on=False)
    assert bench.packets() == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "directory"])
def test_nothing_but_a_plain_file_is_written_to(bench, tmp_path, kind):
    """A trap that somebody has laid in the directory leads nowhere."""
    victim, place = tmp_path / "victim", bench.directory / "all.pcapng"
    victim.write_text("precious")
    bench.directory.mkdir()
    make = {
        "link": lambda: place.symlink_to(victim),
        "second name": lambda: place.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(place),
        "directory": place.mkdir,
    }
    make[kind]()
    with pytest.raises(DataplaneError, match=r"all\.pcapng"):
        bench.filters(protocol="17").captures("receive")
    assert victim.read_text() == "precious"
    assert not bench.setting()["capture"]["enabled"]


def test_the_directory_is_no_way_elsewhere(bench, tmp_path):
    """Nor is it followed where it is a link."""
    (tmp_path / "elsewhere").mkdir()
    bench.directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataplaneError, match="packet-diag"):
        bench.filters(protocol="17").captures("receive")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_ends_the_capture_with_a_whole_file(bench, monkeypatch):
    """Half a block is taken back; the settings name the error, and everything else goes on."""
    bench.filters(protocol="17").captures("receive")
    bench.firewall.c2s(QUESTION)
    assert bench.stage("receive")["packets"] == 1
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) > 40:
            return real(file, data[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    bench.firewall.c2s(QUESTION)
    poll(lambda: not bench.setting()["capture"]["enabled"], 5, "the end of the capture")
    monkeypatch.undo()
    assert "No space left on device" in bench.stage("receive")["error"]
    assert len(bench.packets()) == 1
    assert bench.setting()["filter"]["enabled"]
    bench.firewall.c2s(QUESTION).leaves_as("192.0.2.1:1024", "8.8.8.8:53")


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("middle", {"file": "a"}),
        ("trace", {"file": "a"}),
        (None, {"file": "a"}),
        ("receive", None),
        ("receive", {}),
        *(
            ("receive", {"file": name})
            for name in ("", ".", "..", "../a", "/a", "a/b", "-a", ".a", "a\n", "a\0", "a" * 65)
        ),
        ("receive", {"file": 7}),
        ("receive", {"file": "a", "packet-count": "0"}),
        ("receive", {"file": "a", "packet-count": "100001"}),
        ("receive", {"file": "a", "byte-count": str(MAX_CAPTURED + 1)}),
        ("receive", {"file": "a", "snaplen": "65536"}),
    ],
)
def test_a_stage_that_cannot_be(bench, stage, settings):
    """Unknown stages, names that are paths, bounds that are none."""
    with pytest.raises(UsageError):
        bench.ask("set capture", stage=stage, settings=settings)


def test_all_stages_together_have_a_ceiling(bench):
    """What one is given another cannot have."""
    bench.ask("set capture", stage="receive", settings={"file": "a", "byte-count": str(MAX_CAPTURED - 64)})
    with pytest.raises(UsageError, match="together"):
        bench.ask("set capture", stage="drop", settings={"file": "a", "byte-count": "65"})
    bench.ask("set capture", stage="receive", settings={"file": "a", "byte-count": "64"})
    bench.ask("set capture", stage="drop", settings={"file": "a", "byte-count": "65"})


def test_a_stage_is_not_changed_under_way(bench):
    """The file that it writes is open."""
    bench.filters(protocol="17").captures("receive")
    with pytest.raises(DataplaneError, match="capture is on"):
        bench.ask("set capture", stage="receive", settings={"file": "b"})


def test_the_blocks_are_what_the_format_says():
    """Lengths at both ends, options padded to four bytes and ended."""
    copied = pcapng.Copied(0, 5 << 32 | 7, b"12345", 9, False, "why", "drop")
    block = pcapng.packet(copied)
    kind, length = struct.unpack_from("<II", block)
    assert (kind, length, block[-4:]) == (6, len(block), block[4:8])
    assert struct.unpack_from("<5I", block, 8) == (0, 5, 7, 5, 9)
    assert block[28:36] == b"12345\0\0\0"
    assert block[36:44] == b"\x01\x00\x03\x00why\0"
    assert block[44:52] == b"\x02\x00\x04\x00\x01\x00\x00\x00"
    assert block[52:64] == b"\x07\x00\x05\x00\x00drop\0\0\0"
    assert block[64:68] == bytes(4)


# ---- the flow log ----


def test_the_log_tells_each_packet_as_a_story(bench):
    """What was looked at, and what came of it."""
    bench.filters(source="10.0.0.5")
    bench.ask("set log", feature="flow basic")
    bench.ask("set log", on=True)
    bench.firewall.asks().c2s(QUESTION)
    bench.firewall.decides(source="192.0.2.1", ports=(1024, 1024), rule=1, nat_rule=1).c2s(QUESTION)
    punted, again, rewritten = bench.ask("show log")
    assert (
        punted["steps"]
        == again["steps"]
        == [
            "Packet received in the fast path: interface in0, zone trust, filter 1",
            "Packet info: len 36, ttl 64, 10.0.0.5:4000 -> 8.8.8.8:53, UDP",
            "Flow lookup: no session found",
            "Verdict: handed to the slow path",
        ]
    )
    assert rewritten["steps"] == [
        "Packet received in the fast path again: interface in0, zone trust, filter 1",
        "Packet info: len 36, ttl 64, 10.0.0.5:4000 -> 8.8.8.8:53, UDP",
        "Flow lookup: session 1 c2s, state ACTIVE, rule 'lan out', NAT rule 'snat'",
        "Translation: 10.0.0.5:4000 -> 8.8.8.8:53 becomes 192.0.2.1:1024 -> 8.8.8.8:53",
        "Verdict: accept, rewritten, leaves by out0",
    ]  # fmt: skip
    printed = "\n".join(text.diagnosis_log(bench.ask("show log")))
    assert printed.count("== 20") == 3


def test_the_log_stops_at_its_bound_and_begins_anew(bench, monkeypatch):
    """What it holds can be shown until then."""
    monkeypatch.setattr(diagnosis_module, "MAX_STORIES", 2)
    bench.filters(protocol="17")
    bench.ask("set log", feature="flow basic")
    bench.ask("set log", on=True)
    for _ in range(4):
        bench.firewall.c2s(QUESTION)
    assert len(bench.ask("show log")) == 2
    bench.ask("set log", on=False)
    assert len(bench.ask("show log")) == 2
    bench.ask("set log", on=True)
    assert bench.ask("show log") == []


@pytest.mark.parametrize("arguments", [{"feature": "flow all"}, {"feature": 1}, {"on": None}])
def test_a_log_that_cannot_be(bench, arguments):
    """There is one feature."""
    with pytest.raises(UsageError):
        bench.ask("set log", **arguments)


def test_the_log_needs_a_feature(bench):
    """As in PAN-OS."""
    bench.filters(protocol="17")
    with pytest.raises(DataplaneError, match="no feature"):
        bench.ask("set log", on=True)


def test_clearing_something_unknown(bench):
    """It says what can be cleared."""
    with pytest.raises(UsageError, match="filter capture log all"):
        bench.ask("clear", what="disk")


# ---- the command line ----

VALID = [
    "set filter match source 10.1.0.2 destination 10.2.0.0/24 source-port 1 destination-port 2 protocol 6",
    "set filter index 4 match ingress-interface in0",
    "set filter on",
    "set filter off",
    "set capture stage drop file drop.pcapng packet-count 5 byte-count 1000 snaplen 96",
    "set capture on",
    "set log feature flow basic",
    "set log off",
    "clear filter all",
    "clear filter 2",
    "clear capture all",
    "clear log",
    "clear all",
    "show setting",
    "show setting --json",
    "show log --json",
]
INVALID = [
    "set filter",
    "set filter maybe",
    "set filter match",
    "set filter match source",
    "set filter match colour red",
    "set filter index 5 match protocol 6",
    "set filter index x match protocol 6",
    "set filter index 1",
    "set capture",
    "set capture stage",
    "set capture stage drop",
    "set capture stage drop file ../etc",
    "set log",
    "set log feature",
    "clear filter",
    "clear filter 5",
    "clear capture",
    "clear capture some",
    "show",
]


@pytest.mark.parametrize("words", VALID)
def test_words_that_reach_the_daemon(tmp_path, words):
    """There is none, which is what the exit code says."""
    done = CliRunner().invoke(main, [*COMMAND.split(), *words.split(), f"--runtime-dir={tmp_path}"])
    assert done.exit_code == 4, done.output


@pytest.mark.parametrize("words", INVALID)
def test_words_that_make_no_sense(tmp_path, words):
    """They are refused before anybody is asked."""
    done = CliRunner().invoke(main, [*COMMAND.split(), *words.split()], env={"DATAPLANE_RUNTIME_DIR": str(tmp_path)})
    assert done.exit_code == 2, done.output


def test_settings_are_laid_out(bench):
    """As PAN-OS lays them out."""
    bench.filters(source="10.0.0.5", destination_port="53").captures("receive", packet_count="1")
    bench.firewall.c2s(QUESTION)
    poll(lambda: not bench.setting()["capture"]["enabled"], 5, "the end of the capture")
    printed = list(text.diagnosis_setting(bench.setting()))
    assert "  Index 1: 10.0.0.5[0]->any[53], proto 0" in printed
    assert "  Stage receive           :  file all.pcapng, complete" in printed
    assert any(line.startswith("    Captured:     packets - 1 ") for line in printed)


def test_values_are_parsed_alike_on_both_sides():
    """What the client has let pass the daemon takes."""
    assert parse_packet_filter({"source": "10.0.0.0/8"}).is_ipv4 is True
    assert parse_packet_filter({"destination": "::/0"}).is_ipv4 is False
    assert parse_packet_filter({"protocol": "6"}).is_ipv4 is None
    assert parse_stage({"file": "a"}).packet_count == 10_000
