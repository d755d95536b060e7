"""Packet diagnosis: what is set, and what came of it."""

from collections.abc import Callable, Iterator

from dataplane.commands.arguments import Arguments, number
from dataplane.control import Handler
from dataplane.diag.diagnosis import FILTERS, Diagnosis
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.filters import parse_packet_filter, parse_stage


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    commands = DiagnosisCommands(engine)
    return {
        "debug dataplane packet-diag set filter": commands.set_filter,
        "debug dataplane packet-diag set capture": commands.set_capture,
        "debug dataplane packet-diag set log": commands.set_log,
        "debug dataplane packet-diag clear": commands.clear,
        "debug dataplane packet-diag show setting": commands.show_setting,
        "debug dataplane packet-diag show log": commands.show_log,
    }


class DiagnosisCommands:
    """The handlers, around one engine. Any thread. What is set is either switched, or described."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def _diagnosis(self) -> Diagnosis:
        return self._engine.diagnosis

    def set_filter(self, arguments: Arguments) -> Iterator[object]:
        """`match` and perhaps its `index`; else `on`."""
        if "match" not in arguments:
            self._diagnosis.set_filter(_switch(arguments))
            return
        yield {"index": self._diagnosis.add_filter(parse_packet_filter(arguments["match"]), _index(arguments))}

    def set_capture(self, arguments: Arguments) -> Iterator[object]:
        """`stage` and its `settings`; else `on`."""
        if "stage" in arguments:
            self._diagnosis.set_stage(_word("stage", arguments), parse_stage(arguments.get("settings")))
        else:
            self._diagnosis.set_capture(_switch(arguments))
        yield from ()

    def set_log(self, arguments: Arguments) -> Iterator[object]:
        """`feature`; else `on`."""
        if "feature" in arguments:
            self._diagnosis.set_feature(_word("feature", arguments))
        else:
            self._diagnosis.set_log(_switch(arguments))
        yield from ()

    def clear(self, arguments: Arguments) -> Iterator[object]:
        """`what`: filter (one `index`, or all), capture, log, or all of these."""
        diagnosis = self._diagnosis
        ends: dict[str, Callable[[], None]] = {
            "filter": lambda: diagnosis.clear_filter(_index(arguments)),
            "capture": diagnosis.clear_capture,
            "log": diagnosis.clear_log,
            "all": diagnosis.clear_all,
        }
        what = _word("what", arguments)
        if what not in ends:
            raise UsageError(f"what: {what!r} is none of {' '.join(ends)}")
        ends[what]()
        yield from ()

    def show_setting(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        yield self._diagnosis.setting()

    def show_log(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        yield from self._diagnosis.stories()


def _switch(arguments: Arguments) -> bool:
    on = arguments.get("on")
    if not isinstance(on, bool):
        raise UsageError(f"on: {on!r} is neither true nor false")
    return on


def _word(what: str, arguments: Arguments) -> str:
    word = arguments.get(what)
    if not isinstance(word, str):
        raise UsageError(f"{what}: {word!r} is not a word")
    return word


def _index(arguments: Arguments) -> int | None:
    if arguments.get("index") is None:
        return None
    index = number("index", arguments["index"])
    if not 1 <= index <= FILTERS:
        raise UsageError(f"index: {index} is not a number from 1 to {FILTERS}")
    return index
