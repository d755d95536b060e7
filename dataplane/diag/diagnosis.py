"""What an operator has set with `debug dataplane packet-diag`, and the thread that carries it out.

    filter on ──► C watches what the filters mean (diag.c), the slow path has a witness, this thread reads the ring
        capture on ──► copies go to files, each stage until it has had enough
        log on     ──► the stories of packets are kept, the first MAX_STORIES of them

While the filter is on, sessions that it means are not offloaded; when it goes off they may be again. Nothing is
captured or traced without a filter, so switching it off ends both. What cannot be written ends the capture, and nothing
else.

The thread lives while the filter is on. Settings are changed and records are dealt with under one lock.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataplane.counters import GlobalCounters
from dataplane.diag.capture import Capture
from dataplane.diag.record import CAPTURED, COUNTERS, STAGES, Record, records_in
from dataplane.diag.witness import Witness
from dataplane.diag.words import story
from dataplane.errors import DataplaneError, UsageError
from dataplane.ffi import ffi, lib
from dataplane.filters import MAX_CAPTURED, PacketFilter, Stage
from dataplane.names import Names
from dataplane.policy.objects import address_text, is_ipv4
from dataplane.sessions import SessionTable
from dataplane.views import iso_time_ms

FILTERS: int = lib.DIAG_FILTERS
BUFFER = 1 << 20  # bytes of records taken from C at once
INTERVAL = 0.05  # seconds between two looks into the ring
MARK_AGAIN = 4  # looks after which a burst that was under way when the filters came is over
STOP_TIMEOUT = 5.0  # seconds
MAX_STORIES = 10_000
STORY_ROOM = 4096  # bytes of what the slow path has to tell
NO_INTERFACE = 0xFFFFFFFF  # an index that nothing has
ANY_ADDRESS = (0, (1 << 128) - 1)
FLOW_BASIC = "flow basic"
NOTHING = (0, 0, 0, 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage that is set: what of, and what came of it the last time that capture was on."""

    wanted: Stage
    packets: int = 0
    bytes: int = 0
    lost: int = 0  # found no room in the ring
    complete: bool = False
    error: str | None = None


class Diagnosis:
    """Any thread. `watch` gives the slow path its witness, or takes it away."""

    def __init__(
        self, table: SessionTable, names: Names, directory: Path, watch: Callable[[Witness | None], None]
    ) -> None:
        self._table = table
        self._names = names
        self._directory = directory
        self._watch = watch
        self._witness = Witness(table, names)
        self._lock = threading.Lock()
        self._filters: dict[int, PacketFilter] = {}  # by index
        self._interfaces: tuple[int, ...] = ()  # what C was told about them
        self._stages: dict[str, StageState] = {}
        self._files: dict[str, Capture] = {}  # open
        self._features: set[str] = set()
        self._stories: list[dict[str, object]] = []
        self._filtering = self._capturing = self._logging = False
        self._buffer = ffi.new("uint8_t[]", BUFFER)
        self._looks = 0
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self.counters = GlobalCounters()  # of what the filters mean: since when, and the last delta

    # ---- filters ----

    def add_filter(self, wanted: PacketFilter, index: int | None = None) -> int:
        """Take a filter into the place `index`, or into the first that is free; which."""
        with self._lock:
            free = [place for place in range(1, FILTERS + 1) if place not in self._filters]
            if index is None and not free:
                raise DataplaneError(f"all {FILTERS} filters are set; clear one, or name the index of one to replace")
            place = index or free[0]
            if wanted.ingress_interface is not None and self._index_of(wanted) == NO_INTERFACE:
                raise UsageError(f"ingress-interface: {wanted.ingress_interface!r} does not exist")
            self._filters[place] = wanted
            self._follow_filters()
            return place

    def clear_filter(self, index: int | None = None) -> None:
        """Forget the filter at `index`, or every one; with the last one the filter is off."""
        with self._lock:
            if index is not None and index not in self._filters:
                raise DataplaneError(f"filter {index} is not set")
            for place in [*self._filters] if index is None else [index]:
                del self._filters[place]
            self._follow_filters()

    def set_filter(self, on: bool) -> None:
        """Watch what the filters mean, or nothing any more: then capture and log are off as well."""
        with self._lock:
            if on and not self._filters:
                raise DataplaneError("no filter is set: set filter match ...")
            self._filtering = on
            self._follow_filters()

    def _follow_filters(self) -> None:
        self._filtering = self._filtering and bool(self._filters)
        if self._filtering:
            self._begin()
        elif self._thread is not None:
            self._end()

    def _begin(self) -> None:
        self._tell_filters()
        self._looks = 0
        if self._thread is not None:
            return
        self.counters = GlobalCounters()
        self._watch(self._witness)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ending,), name="packet-diag", daemon=True)
        self._thread.start()
        log.info("packet diagnosis is on")

    def _end(self) -> None:
        self._end_capture()
        self._end_log()
        self._watch(None)
        lib.diag_end(self._table.pointer)
        self._ending.set()
        self._thread = None
        log.info("packet diagnosis is off")

    def _tell_filters(self) -> None:
        filters = ffi.new(f"struct diag_filter[{FILTERS}]")
        self._interfaces = self._indices()
        for ifindex, (place, wanted) in zip(self._interfaces, self._filters.items(), strict=True):
            _fill(filters[place - 1], wanted, ifindex)
        if not lib.diag_begin(self._table.pointer, filters):
            self._filtering = False
            raise DataplaneError("packet diagnosis: no memory")

    def _indices(self) -> tuple[int, ...]:
        return tuple(self._index_of(wanted) for wanted in self._filters.values())

    def _index_of(self, wanted: PacketFilter) -> int:
        """0: any interface."""
        if wanted.ingress_interface is None:
            return 0
        return self._names.interface_index(wanted.ingress_interface) or NO_INTERFACE

    # ---- capture ----

    def set_stage(self, stage: str, wanted: Stage) -> None:
        """What is to be copied at a stage, from the next time that capture is switched on."""
        if stage not in CAPTURED:
            raise UsageError(f"stage: {stage!r} is none of {' '.join(CAPTURED)}")
        with self._lock:
            self._refuse_while_capturing()
            others = sum(state.wanted.byte_count for name, state in self._stages.items() if name != stage)
            if others + wanted.byte_count > MAX_CAPTURED:
                raise UsageError(
                    f"byte-count: all stages together may take {MAX_CAPTURED} bytes, {others} are given away"
                )
            self._stages[stage] = StageState(wanted)

    def set_capture(self, on: bool) -> None:
        """Begin every file anew and copy into it, or stop."""
        with self._lock:
            if not on:
                self._end_capture()
            elif not self._capturing:
                self._begin_capture()

    def clear_capture(self) -> None:
        """Stop, and forget what was set; files stay."""
        with self._lock:
            self._end_capture()
            self._stages.clear()

    def _refuse_while_capturing(self) -> None:
        if self._capturing:
            raise DataplaneError("capture is on; set capture off before")

    def _begin_capture(self) -> None:
        self._demand_filter("capture")
        if not self._stages:
            raise DataplaneError("no stage is set: set capture stage ...")
        try:
            for name in {state.wanted.file for state in self._stages.values()}:
                self._files[name] = Capture(self._directory, name, self._names, self._about())
        except DataplaneError:
            self._close_files()
            raise
        self._capturing = True
        for stage, state in self._stages.items():
            self._stages[stage] = StageState(state.wanted)
            limit = state.wanted
            self._limit(stage, (limit.packet_count, limit.byte_count, limit.snaplen, 0))
        log.info("packet capture is on: %s", ", ".join(str(file.path) for file in self._files.values()))

    def _end_capture(self) -> None:
        if not self._capturing:
            return
        self._stop_stages(self._stages)
        self._drain()
        for stage in self._stages:
            self._read_status(stage)
        self._capturing = False
        self._close_files()
        log.info("packet capture is off")

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _stop_stages(self, stages: Iterable[str]) -> None:
        for stage in stages:
            self._limit(stage, NOTHING)

    def _limit(self, stage: str, limit: tuple[int, int, int, int]) -> None:
        lib.diag_set_stage(self._table.pointer, STAGES.index(stage), ffi.new("struct diag_limit *", limit))

    def _demand_filter(self, what: str) -> None:
        if not self._filtering:
            raise DataplaneError(
                f"{what}: the filter is off, and without one every packet would be meant: set filter on"
            )

    def _about(self) -> str:
        return "; ".join(f"filter {place}: {filter_text(wanted)}" for place, wanted in sorted(self._filters.items()))

    # ---- the flow log ----

    def set_feature(self, feature: str) -> None:
        """What is to be logged; `flow basic` is all there is."""
        if feature != FLOW_BASIC:
            raise UsageError(f"feature: {feature!r} is not known; known: {FLOW_BASIC}")
        with self._lock:
            self._features.add(feature)

    def set_log(self, on: bool) -> None:
        """Begin the log anew, or stop; what it holds can still be shown."""
        with self._lock:
            if not on:
                self._end_log()
                return
            self._demand_filter("log")
            if not self._features:
                raise DataplaneError(f"no feature is set: set log feature {FLOW_BASIC}")
            self._stories.clear()
            self._limit("trace", (MAX_STORIES, MAX_STORIES * STORY_ROOM, STORY_ROOM, 0))
            self._logging = self._witness.tracing = True

    def clear_log(self) -> None:
        """Stop, and forget what was set and what it holds."""
        with self._lock:
            self._end_log()
            self._features.clear()
            self._stories.clear()

    def stories(self) -> Sequence[dict[str, object]]:
        """What was decided about each packet, in the order in which it was."""
        with self._lock:
            self._drain()
            return list(self._stories)

    def _end_log(self) -> None:
        if not self._logging:
            return
        self._witness.tracing = False
        self._stop_stages(["trace"])
        self._drain()
        self._logging = False

    # ---- everything ----

    def stop(self) -> None:
        """The daemon ends; a disk that hangs cannot keep it."""
        clearing = threading.Thread(target=self.clear_all, name="packet-diag-end", daemon=True)
        clearing.start()
        clearing.join(STOP_TIMEOUT)

    def clear_all(self) -> None:
        """As if nothing had ever been set."""
        self.clear_filter()
        self.clear_capture()
        self.clear_log()

    def counted(self) -> dict[str, int]:
        """The global counters of the packets that the filters mean, since the filter was switched on."""
        status = self._status()
        return {name: status.counter[i] for i, name in enumerate(COUNTERS[: lib.COUNTERS]) if name != "drops_end"}

    def setting(self) -> dict[str, Any]:
        """`show setting --json`."""
        with self._lock:
            self._drain()
            return {
                "filter": {
                    "enabled": self._filtering,
                    "filters": [filter_json(place, wanted) for place, wanted in sorted(self._filters.items())],
                    "marked_sessions": lib.diag_mark(self._table.pointer),
                },
                "log": {
                    "enabled": self._logging,
                    "features": sorted(self._features),
                    "packets": len(self._stories),
                    "maximum": MAX_STORIES,
                },
                "capture": {
                    "enabled": self._capturing,
                    "directory": str(self._directory),
                    "stages": [self._stage_json(stage) for stage in CAPTURED if stage in self._stages],
                },
            }

    def _stage_json(self, stage: str) -> dict[str, object]:
        if self._capturing:
            self._read_status(stage)
        state = self._stages[stage]
        wanted = state.wanted
        return {
            "stage": stage,
            "file": wanted.file,
            "packets": state.packets,
            "bytes": state.bytes,
            "lost": state.lost,
            "packet_count": wanted.packet_count,
            "byte_count": wanted.byte_count,
            "snaplen": wanted.snaplen,
            "complete": state.complete,
            "error": state.error,
        }

    def _read_status(self, stage: str) -> None:
        """What C has taken so far; of a stage that has failed what stood then."""
        state = self._stages.get(stage)
        if state is None or state.error is not None:
            return
        status, i = self._status(), STAGES.index(stage)
        self._stages[stage] = replace(
            state,
            packets=status.packets[i],
            bytes=status.bytes[i],
            lost=status.lost[i],
            complete=bool(status.stopped[i]),
        )

    def _status(self) -> Any:
        status = ffi.new("struct diag_status *")
        lib.diag_read_status(self._table.pointer, status)
        return status

    # ---- the thread ----

    def _run(self, ending: threading.Event) -> None:
        while not ending.wait(INTERVAL):
            with self._lock:
                if ending.is_set():
                    return
                try:
                    self._look()
                except Exception:
                    log.exception("packet diagnosis stumbled and goes on")

    def _look(self) -> None:
        self._drain()
        self._looks += 1
        if self._looks == MARK_AGAIN:
            lib.diag_mark(self._table.pointer)
        if self._indices() != self._interfaces:
            self._tell_filters()
        if self._capturing and self._is_complete():
            self._end_capture()

    def _is_complete(self) -> bool:
        """Every stage has had enough, or has failed."""
        for stage in self._stages:
            self._read_status(stage)
        return all(state.complete or state.error is not None for state in self._stages.values())

    def _drain(self) -> None:
        """Deal with everything that waits in the ring; not more, for traffic may be faster than a disk."""
        for _ in range(lib.DIAG_RING // BUFFER + 1):
            n = lib.diag_read(self._table.pointer, self._buffer, BUFFER)
            if not n:
                return
            self._deal([*records_in(ffi.buffer(self._buffer, n))])

    def _deal(self, records: list[Record]) -> None:
        for record in records:
            if record.stage == "trace":
                when = iso_time_ms(record.when / 1e9)
                path = "slow" if record.slow else "fast"
                steps = story(record, self._names)
                self._stories.append({"time": when, "path": path, "session": record.session, "steps": steps})
        for name, file in [*self._files.items()]:
            self._write(name, file, records)

    def _write(self, name: str, file: Capture, records: list[Record]) -> None:
        stages = {stage: state for stage, state in self._stages.items() if state.wanted.file == name}
        own = [record for record in records if record.stage in stages]
        if not own or any(state.error is not None for state in stages.values()):
            return
        try:
            file.write(own, [state.wanted.snaplen for state in stages.values()])
        except OSError as error:
            self._fail(stages, f"{file.path}: {error.strerror or error}")

    def _fail(self, stages: Iterable[str], reason: str) -> None:
        """The disk refuses: what is in the file stays, and nothing more comes."""
        log.error("packet capture ended: %s", reason)
        self._stop_stages(stages)
        for stage in stages:
            self._read_status(stage)
            self._stages[stage] = replace(self._stages[stage], error=reason)


def filter_json(place: int, wanted: PacketFilter) -> dict[str, object]:
    """A filter as it was typed."""
    return {
        "index": place,
        "source": None if wanted.source is None else network_text(*wanted.source),
        "destination": None if wanted.destination is None else network_text(*wanted.destination),
        "source_port": wanted.source_port,
        "destination_port": wanted.destination_port,
        "protocol": wanted.protocol,
        "ingress_interface": wanted.ingress_interface,
    }


def filter_text(wanted: PacketFilter) -> str:
    """The same in words."""
    said = {key.replace("_", "-"): value for key, value in filter_json(0, wanted).items() if key != "index"}
    return " ".join(f"{key} {value}" for key, value in said.items() if value is not None)


def network_text(first: int, last: int) -> str:
    """An address, or a prefix."""
    bits = 32 if is_ipv4(first) else 128
    length = bits - (last - first).bit_length()
    return address_text(first) + (f"/{length}" if length < bits else "")


def _fill(target: Any, wanted: PacketFilter, ifindex: int) -> None:
    for field, ends in (("source", wanted.source), ("destination", wanted.destination)):
        for i, address in enumerate(ends or ANY_ADDRESS):
            getattr(target, field)[i] = address.to_bytes(16)
    target.sport, target.dport = (socket.htons(port or 0) for port in (wanted.source_port, wanted.destination_port))
    target.proto = wanted.protocol or 0
    target.family = {None: 0, True: 4, False: 6}[wanted.is_ipv4]
    target.ifindex = ifindex
    target.used = 1
