"""The logs read back, and how their sinks are."""

from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

from dataplane.commands.arguments import Arguments, mapping, number
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.filters import LAST, LogFilter, parse_log_filter
from dataplane.readback import Reader


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = LogCommands(engine)
    return {
        "show log traffic": commands.traffic,
        "show log system": commands.system,
        "show log status": commands.status,
    }


class LogCommands:
    """The handlers, around one engine. Any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def traffic(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        wanted = parse_log_filter(mapping(arguments.get("filter", {})))
        return (yield from self._read("traffic.json", wanted, arguments))

    def system(self, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        return (yield from self._read("system.json", LogFilter(), arguments))

    def status(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        for sink in (*self._engine.traffic_log.sinks, self._engine.system_log):
            yield sink.status()

    def _read(self, name: str, wanted: LogFilter, arguments: Arguments) -> Generator[object, None, dict[str, object]]:
        last = number("last", arguments.get("last", LAST))
        reader = Reader(Path(self._engine.log_dir) / name, wanted)
        yield from islice(reader.records(), last)
        return {"complete": reader.complete}
