"""The sinks of the traffic log that a configuration asks for, as one.

One feed for all of them: JSON lines, made by the hundred in C. Those lines are traffic.json already; every other sink
takes them apart again in its own thread, so that the one who logs pays nothing for it but a place in a queue.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dataplane.policy.model import IpfixCollector, LogSettings, Rotation, SyslogServer
from dataplane.policy.servers import parse_collector, parse_syslog_server
from dataplane.sinks.base import STOP_TIMEOUT, Sink
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
        self.sinks = tuple(_sinks(settings, log_dir, lost, index_of, uuid_of)) if settings.traffic else ()

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
        for sink in self.sinks:
            sink.finish()
        deadline = time.monotonic() + STOP_TIMEOUT
        for sink in self.sinks:
            sink.stop(max(deadline - time.monotonic(), 0.0))

    def reopen(self) -> None:
        """See Sink.reopen()."""
        for sink in self.sinks:
            sink.reopen()


def _sinks(
    settings: LogSettings, log_dir: Path, lost: Lost, index_of: InterfaceIndex, uuid_of: RuleUuid
) -> Iterator[Sink]:
    yield log_file_sink(log_dir / "traffic.json", settings.rotate, lost)
    if settings.csv:
        outlet = CsvFile(PanCsv(uuid_of), _file(log_dir / "traffic.csv", settings.rotate))
        yield Sink("traffic.csv", outlet, lost)
    for server in settings.syslog:
        yield Sink(f"syslog {server.to}", _syslog(server, uuid_of), lost, SERVER_QUEUE)
    for collector in settings.ipfix:
        yield Sink(f"ipfix {collector.to}", _ipfix(collector, index_of), lost, SERVER_QUEUE)


def _file(path: Path, rotation: Rotation) -> LogFile:
    return LogFile(path, rotation.size_mb * MEGABYTE, rotation.keep)


def _syslog(written: SyslogServer, uuid_of: RuleUuid) -> Syslog:
    server = parse_syslog_server(written.to)
    transport = Transport(server, None if written.ca_file is None else Path(written.ca_file))
    bodies = _csv_bodies(PanCsv(uuid_of)) if written.format == "csv" else json_bodies
    return Syslog(server, transport, bodies, written.facility, written.app_name)


def _csv_bodies(csv: PanCsv) -> Bodies:
    return lambda lines: (line.encode() for line in csv.lines(lines))


def _ipfix(written: IpfixCollector, index_of: InterfaceIndex) -> Any:
    # Imported only when used: the library behind it is optional.
    from dataplane.sinks.fixbuf import Encoder
    from dataplane.sinks.ipfix import FIELDS_V4, FIELDS_V6, TEMPLATE_V4, TEMPLATE_V6, Ipfix

    encoder = Encoder({TEMPLATE_V4: FIELDS_V4, TEMPLATE_V6: FIELDS_V6}, written.domain)
    transport = Transport(parse_collector(written.to))
    return Ipfix(transport, encoder, lambda name: index_of(name) or 0, written.template_refresh)
