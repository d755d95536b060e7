"""Commits and the versions that they leave."""

from collections.abc import Iterator, Mapping

from dataplane.change import LONGEST_WAIT
from dataplane.commands.arguments import Arguments, mapping, number
from dataplane.commit import Committer, Order, Plan, accept, config_of, diff, plain, unchangeable
from dataplane.control import Handler
from dataplane.engine import Engine
from dataplane.errors import UsageError
from dataplane.policy.model import Config
from dataplane.rematch import Outcome

MAX_WORD = 4096


def handlers(engine: Engine, committer: Committer) -> dict[str, Handler]:
    """Command -> handler."""
    commands = CommitCommands(engine, committer)
    return {
        "commit": commands.commit,
        "commit check": commands.check,
        "commit confirm": commands.confirm,
        "rollback": commands.rollback,
        "show config file": commands.file,
        "show config diff": commands.diff,
        "show config versions": commands.versions,
        "show config version": commands.version,
    }


class CommitCommands:
    """The handlers, around one engine and its commits. Any thread."""

    def __init__(self, engine: Engine, committer: Committer) -> None:
        self._engine = engine
        self._committer = committer

    def commit(self, arguments: Arguments) -> Iterator[object]:
        yield _done(*self._committer.commit(_config(arguments), _order(arguments)))

    def check(self, arguments: Arguments) -> Iterator[object]:
        """Of a configuration, or of the version so many commits ago."""
        if "back" in arguments:
            config = config_of(self._committer.version_before(number("N", arguments["back"])))
        else:
            config = _config(arguments)
        yield _preview(self._committer.plan(config), unchangeable(self._engine.config, config))

    def confirm(self, arguments: Arguments) -> Iterator[object]:
        yield {"version": self._committer.confirm(_word("user", arguments.get("user", "")))}

    def rollback(self, arguments: Arguments) -> Iterator[object]:
        back = number("N", arguments.get("back", 1))
        yield _done(*self._committer.rollback(back, _order({**arguments, "source": ""})))

    def file(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        yield {"file": str(self._committer.path)}

    def diff(self, arguments: Arguments) -> Iterator[object]:
        """From what is in force to the configuration that came with the request."""
        names = ("running", _word("source", arguments.get("source", "candidate")))
        yield from diff(plain(self._engine.config), plain(_config(arguments)), names)

    def versions(self, arguments: Arguments) -> Iterator[object]:
        del arguments
        running = self._committer.number
        for version in self._committer.versions():
            yield {
                "version": version.version,
                "time": version.time,
                "user": version.user,
                "source": version.source,
                "running": version.version == running,
                "unconfirmed": version.version == running and self._committer.waits,
                "changes": version.changes,
                "diff": version.diff,
            }

    def version(self, arguments: Arguments) -> Iterator[object]:
        yield self._committer.version(number("version", arguments.get("version"))).config


def _done(version: int, outcome: Outcome) -> dict[str, object]:
    return {"version": version, "sessions_ended": outcome.total}


def _preview(plan: Plan, fixed: list[str]) -> dict[str, object]:
    ends = plan.ends()
    return {
        "changes": [
            {**change._asdict(), "sessions": sessions} for change, sessions in zip(plan.changes, ends, strict=True)
        ],
        "sessions_ended": plan.outcome.total,
        "connections_to_firewall_ended": plan.outcome.to_host,
        "needs_restart": fixed,
    }


def _config(arguments: Arguments) -> Config:
    return accept(mapping(arguments.get("config")), _word("source", arguments.get("source", "configuration")))


def _order(arguments: Mapping[str, object]) -> Order:
    confirm = arguments.get("confirm")
    if confirm is not None and not 1 <= number("confirm", confirm) <= LONGEST_WAIT:
        raise UsageError(f"confirm: from 1 to {LONGEST_WAIT} seconds")
    return Order(
        user=_word("user", arguments.get("user", "")),
        source=_word("source", arguments.get("source", "")),
        confirm=None if confirm is None else number("confirm", confirm),
        force=arguments.get("force") is True,
    )


def _word(what: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_WORD or not value.isprintable():
        raise UsageError(f"{what}: not a printable word")
    return value
