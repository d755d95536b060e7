"""The sinks of the traffic log that a configuration asks for, as one.

One feed for all of them: JSON lines, made by the hundred in C. Those lines are traffic.json already; every other sink
takes them apart again in its own thread, so that the one who logs pays nothing for it but a place in a queue.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from dataplane.policy.model import IpfixCollector, LogSettings, Rotation, SyslogServer
from dataplane.policy.servers import parse_collector, parse_syslog_server
from dataplane.sinks.base import STOP_TIMEOUT, Outlet, Sink
from dataplane.sinks.file import LogFile
from dataplane.sinks.pancsv import CsvFile, PanCsv, RuleUuid, no_uuid
from dataplane.sinks.syslog import Bodies, Syslog, json_bodies
from dataplane.sinks.transport import Transport

MEGABYTE = 1 << 20
SERVER_QUEUE = 32_768  # records that may wait for a server: some 25 MB

Lost = Callable[[int], None]
InterfaceIndex = Callable[[str], int | None]


def log_file_sink(path: Path, rotation: Rotation, lost: Lost) -> Sink:
    """A sink of JSON lines, named after its file."""
    return Sink(path.name, _file(path, rotation), lost)


class TrafficLog:
    """Every sink of the traffic log. `uuid_of` gives the uuid of a rule's name, `index_of` an interface's index.

    Raises DataplaneError for a sink that cannot be on this host.
    """

    def __init__(
        self,
        settings: LogSettings,
        log_dir: Path,
        lost: Lost,
        index_of: InterfaceIndex,
        uuid_of: RuleUuid = no_uuid,
    ) -> None:
        self._log_dir = log_dir
        self._lost = lost
        self._index_of = index_of
        self._uuid_of = uuid_of
        self._made = {key: make() for key, make in self._makers(settings)}
        self.sinks = tuple(self._made.values())

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue a record; never blocks."""
        if self.sinks:
            self.write_lines(msgspec.json.encode(record) + b"\n", 1)

    def write_lines(self, lines: bytes, n: int) -> None:
        """Queue n records that are lines already; never blocks. The sinks share the lines."""
        for sink in self.sinks:
            sink.write_lines(lines, n)

    def start(self) -> None:
        for sink in self.sinks:
            sink.start()

    def stop(self) -> None:
        """All at once: a server that is dead keeps nobody from stopping but its own sink."""
        _stop(self.sinks)

    def reopen(self) -> None:
        """See Sink.reopen()."""
        for sink in self.sinks:
            sink.reopen()

    def follow(self, settings: LogSettings) -> None:
        """Other settings than before; one thread at a time, after start(). Sinks whose settings are the same go on.

        A new one holds its records until the old ones have written theirs: both may have the same file.
        """
        before = self._made
        made = {key: before.get(key) or make() for key, make in self._makers(settings)}
        self._made, self.sinks = made, tuple(made.values())
        _stop([sink for key, sink in before.items() if key not in made])
        for key, sink in made.items():
            if key not in before:
                sink.start()

    def _makers(self, settings: LogSettings) -> Iterator[tuple[object, Callable[[], Sink]]]:
        """What tells a sink from others, and how it is made."""
        if not settings.traffic:
            return
        rotation = settings.rotate
        yield ("json", rotation), lambda: log_file_sink(self._log_dir / "traffic.json", rotation, self._lost)
        if settings.csv:
            yield ("csv", rotation), lambda: self._csv_sink(rotation)
        for server in settings.syslog:
            yield server, partial(self._server_sink, f"syslog {server.to}", partial(_syslog, server, self._uuid_of))
        for collector in settings.ipfix:
            make = partial(_ipfix, collector, self._index_of)
            yield collector, partial(self._server_sink, f"ipfix {collector.to}", make)

    def _csv_sink(self, rotation: Rotation) -> Sink:
        path = self._log_dir / "traffic.csv"
        return Sink(path.name, CsvFile(PanCsv(self._uuid_of), _file(path, rotation)), self._lost)

    def _server_sink(self, name: str, make: Callable[[], Outlet]) -> Sink:
        return Sink(name, make(), self._lost, SERVER_QUEUE)


def _stop(sinks: Collection[Sink]) -> None:
    for sink in sinks:
        sink.finish()
    deadline = time.monotonic() + STOP_TIMEOUT
    for sink in sinks:
        sink.stop(max(deadline - time.monotonic(), 0.0))


def _file(path: Path, rotation: Rotation) -> LogFile:
    return LogFile(path, rotation.size_mb * MEGABYTE, rotation.keep)


def _syslog(written: SyslogServer, uuid_of: RuleUuid) -> Syslog:
    server = parse_syslog_server(written.to)
    transport = Transport(server, None if written.ca_file is None else Path(written.ca_file))
    bodies = _csv_bodies(PanCsv(uuid_of)) if written.format == "csv" else json_bodies
    return Syslog(server, transport, bodies, written.facility, written.app_name)


def _csv_bodies(csv: PanCsv) -> Bodies:
    return lambda lines: (line.encode() for line in csv.lines(lines))


def _ipfix(written: IpfixCollector, index_of: InterfaceIndex) -> Outlet:
    # Imported only when used: the library behind it is optional.
    from dataplane.sinks.fixbuf import Encoder
    from dataplane.sinks.ipfix import FIELDS_V4, FIELDS_V6, TEMPLATE_V4, TEMPLATE_V6, Ipfix

    encoder = Encoder({TEMPLATE_V4: FIELDS_V4, TEMPLATE_V6: FIELDS_V6}, written.domain)
    transport = Transport(parse_collector(written.to))
    return Ipfix(transport, encoder, lambda name: index_of(name) or 0, written.template_refresh)
