"""Commits: from a configuration that somebody wants to the version that is in force.

    configuration ─► what cannot change while running? ─► compiled ─► kept beside the versions ─► taken up ─► published

The whole way is walked before anything changes, and whatever fails on it leaves the running policy as it is; there is
no half a commit. A version is published after it was taken up: a machine that loses its power in between starts with
what the operator's file says, as ever.

A commit to be confirmed goes back by itself when its time is over: that is a commit of the version before, which no
disk can refuse. Any later commit ends the waiting, for it was made by somebody who still can. No start takes the file
that nobody has confirmed, until something else is committed.
"""

import difflib
import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs
from pydantic import ValidationError

from dataplane.change import Change
from dataplane.engine import Candidate, Engine
from dataplane.errors import DataplaneError
from dataplane.policy.changes import RuleIds, changes, identify
from dataplane.policy.load import check, load
from dataplane.policy.model import Config
from dataplane.rematch import Outcome
from dataplane.text import config as as_yaml
from dataplane.versions import Version, Versions
from dataplane.views import iso_time

SHOWN = 20  # changes in the log
DAEMON = "dataplane"  # who commits where nobody does

log = logging.getLogger(__name__)


class Order(NamedTuple):
    """Who wants a commit, of what, and how."""

    user: str
    source: str
    confirm: int | None = None  # seconds
    force: bool = False
    instead_of: int = 0  # version that nobody has confirmed: goes on whatever the disk says


class First(NamedTuple):
    """What to start with, and whose wish that is."""

    config: Config
    ids: RuleIds
    order: Order


class Plan(NamedTuple):
    """What a commit would do."""

    candidate: Candidate
    changes: list[Change]
    outcome: Outcome

    def ends(self) -> list[int]:
        """How many sessions each change ends."""
        counts = blame(self.changes, self.outcome)
        return [counts[change.section, change.name] for change in self.changes]


class Committer:
    """The commits of one engine. Any thread; one commit at a time."""

    def __init__(self, engine: Engine, versions: Versions, path: Path) -> None:
        self.path = path
        self._engine = engine
        self._versions = versions
        self._lock = threading.RLock()
        self._waiting: threading.Timer | None = None
        self._running = Version(0, "", "", "", {}, {})

    def begin(self, order: Order) -> None:
        """The configuration that the engine was made of is a version; it may be the newest one again. One that cannot
        be kept is no reason not to start."""
        with self._lock:
            latest = self._running = self._versions.latest() or self._running
            config = self._engine.config
            if latest.version and latest.config == plain(config):
                return
            self._running = self._version(order, config, self._engine.ids, [])
            try:
                self._versions.keep(self._running)
            except DataplaneError as error:
                log.error("nobody can go back to what is in force now: %s", error)

    def stop(self) -> None:
        """Nothing goes back by itself any more."""
        with self._lock:
            self._stop_waiting()

    def plan(self, config: Config) -> Plan:
        """What a commit of this configuration would change, and which sessions it would end."""
        with self._lock:
            candidate, differences = self._candidate(config)
            return Plan(candidate, differences, self._engine.preview(candidate))

    def commit(self, config: Config, order: Order) -> tuple[int, Outcome]:
        """The new version's number, and what became of the sessions. DataplaneError: nothing has changed."""
        with self._lock:
            if fixed := unchangeable(self._engine.config, config):
                raise DataplaneError(f"takes effect at a start only, so restart with it: {', '.join(fixed)}")
            candidate, differences = self._candidate(config)
            if order.confirm is None and not order.force:
                self._demand_harmless(candidate)
            before = self._running
            version = self._version(order, config, candidate.ids, differences)
            part = self._prepare(version)
            try:
                outcome = self._engine.commit(candidate)
            except BaseException:
                self._versions.drop(part)
                raise
            self._running = version
            self._stop_waiting()
            if order.confirm is not None:
                self._wait(order.confirm, before)
            self._publish(part)
        _tidy()
        _tell(version, outcome)
        return version.version, outcome

    def _candidate(self, config: Config) -> tuple[Candidate, list[Change]]:
        """And what it changes in what is in force."""
        engine = self._engine
        ids = identify(config, engine.config, engine.ids)
        return engine.candidate(config, ids), changes(engine.config, config, (engine.ids, ids))

    def _demand_harmless(self, candidate: Candidate) -> None:
        if cut := self._engine.connections_to_end(candidate):
            raise DataplaneError(
                f"would cut {cut} connections to the firewall itself, perhaps yours: "
                "say --confirm SECONDS to have it taken back unless you confirm it, or --force"
            )

    def _prepare(self, version: Version) -> Path | None:
        """None: the disk refuses a version that must come into force all the same."""
        try:
            return self._versions.prepare(version)
        except DataplaneError as error:
            if not version.instead_of:
                raise
            log.error("commit: version %d: %s", version.version, error)
            return None

    def _publish(self, part: Path | None) -> None:
        """It is in force, whatever the disk says now."""
        try:
            if part is not None:
                self._versions.publish(part)
        except DataplaneError as error:
            log.error("commit: version %d is in force, and nobody can go back to it: %s", self._running.version, error)

    def confirm(self, user: str) -> int:
        """The version in force stays; its number. DataplaneError if none waits for that."""
        with self._lock:
            if self._waiting is None:
                raise DataplaneError("no commit waits for its confirmation")
            confirmed = structs.replace(self._running, unconfirmed=False)
            self._versions.keep(confirmed)
            self._running = confirmed
            self._stop_waiting()
            log.info("commit: version %d confirmed by %s", self._running.version, user)
            return self._running.version

    def rollback(self, back: int, order: Order) -> tuple[int, Outcome]:
        """The version that was in force `back` commits ago becomes the newest one. DataplaneError if it is not kept."""
        with self._lock:
            version = self.version_before(back)
            order = order._replace(source=f"rollback to version {version.version}")
            return self.commit(config_of(version), order)

    def version_before(self, back: int) -> Version:
        """The one that was in force so many commits ago."""
        earlier = [number for number in self._versions.numbers() if number < self._running.version]
        if not 1 <= back <= len(earlier):
            raise DataplaneError(f"there are no {back} commits to go back: {len(earlier)} are kept")
        return self._versions.read(earlier[-back])

    def reload(self) -> None:
        """Commit the file that the daemon was started with; what is wrong with it is logged. A signal cannot say
        --force, so it cuts no connection to the firewall itself."""
        try:
            self.commit(load(self.path), Order("SIGHUP", str(self.path)))
        except DataplaneError as error:
            log.error("reload: nothing has changed: %s", error)

    def versions(self) -> Iterator[Version]:
        """All that can be read, the newest first."""
        return self._versions.readable()

    def version(self, number: int) -> Version:
        return self._versions.read(number)

    @property
    def number(self) -> int:
        """Of the version in force."""
        return self._running.version

    @property
    def waits(self) -> bool:
        """Whether the version in force must still be confirmed."""
        return self._waiting is not None

    def _version(self, order: Order, config: Config, ids: RuleIds, differences: list[Change]) -> Version:
        new = plain(config)
        return Version(
            version=self._running.version + 1,
            time=iso_time(time.time()),
            user=order.user,
            source=order.source,
            config=new,
            ids={"security": dict(ids.security), "nat": dict(ids.nat)},
            changes=[str(change) for change in differences],
            diff=diff(self._running.config, new) if self._running.version else [],
            unconfirmed=order.confirm is not None,
            instead_of=order.instead_of,
        )

    # ---- confirmation ----

    def _wait(self, seconds: int, before: Version) -> None:
        self._waiting = timer = threading.Timer(seconds, self._take_back, (self._running.version, before))
        timer.daemon = True
        timer.start()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _take_back(self, number: int, before: Version) -> None:
        """Nobody has confirmed it in time."""
        with self._lock:
            if self._waiting is None or number != self._running.version:
                return
            source = f"version {number} was not confirmed: back to version {before.version}"
            log.warning("commit: %s", source)
            try:
                self.commit(config_of(before), Order(DAEMON, source, force=True, instead_of=number))
            except DataplaneError as error:
                log.critical("commit: version %d stays in force: %s", number, error)


def first_config(path: Path, versions: Versions) -> First:
    """What to start with: the file, unless it is what nobody has confirmed, and nothing else was committed since;
    ConfigError if it may not be loaded."""
    config, latest = load(path), versions.latest()
    if latest is not None and (number := _unconfirmed(latest, config, versions)):
        for before in versions.readable():
            if before.version != number and (first := _again(before, number)) is not None:
                return first
    order = Order(DAEMON, f"start with {path.absolute()}")
    if latest is None:
        return First(config, identify(config), order)
    try:
        return First(config, identify(config, config_of(latest), ids_of(latest)), order)
    except DataplaneError as error:
        log.warning("the rules' ids begin anew: %s", error)
        return First(config, identify(config), order)


def _unconfirmed(latest: Version, config: Config, versions: Versions) -> int:
    """The version that says the same, and that was still to be confirmed or was taken back; 0: there is none."""
    number = latest.version if latest.unconfirmed else latest.instead_of
    try:
        return number if number and versions.read(number).config == plain(config) else 0
    except DataplaneError:
        return 0


def _again(before: Version, unconfirmed: int) -> First | None:
    """A start with an earlier version; None if this release would not accept it any more."""
    try:
        config = config_of(before)
    except DataplaneError as error:
        log.warning("%s", error)
        return None
    source = f"version {unconfirmed} was never confirmed: back to version {before.version}"
    log.warning("%s", source)
    return First(config, ids_of(before), Order(DAEMON, source, instead_of=unconfirmed))


def unchangeable(before: Config, after: Config) -> list[str]:
    """What differs and takes another table, other queues or other bridges: settings that last as long as the daemon."""
    old, new = before.settings, after.settings
    fixed = {
        "settings.session.max-sessions": (old.session.max_sessions, new.session.max_sessions),
        "settings.nat.oversubscription": (old.nat.oversubscription, new.nat.oversubscription),
        "settings.queue": (old.queue, new.queue),
        "settings.offload": (old.offload, new.offload),
        "virtual-wires": (before.virtual_wires, after.virtual_wires),
    }
    return [name for name, (was, now) in fixed.items() if was != now]


def blame(differences: Iterable[Change], outcome: Outcome) -> Counter[tuple[str, str]]:
    """Sessions that end, by the change that ends them; ("", "") for those that no single one explains.

    What refuses them now is to blame if it has changed, else the rule that they had, else whatever it names (an
    address, a service) has.
    """
    changed = {(change.section, change.name) for change in differences}
    counts: Counter[tuple[str, str]] = Counter()
    for causes, sessions in outcome.ended.items():
        counts[next((cause for cause in causes if cause in changed), ("", ""))] += sessions
    return counts


def plain(config: Config) -> dict[str, Any]:
    """As it was written."""
    return config.model_dump(mode="json", by_alias=True, exclude_unset=True)


def config_of(version: Version) -> Config:
    """DataplaneError if this release would not accept it any more."""
    return accept(version.config, f"version {version.version}")


def accept(written: Mapping[str, Any], name: str) -> Config:
    """A configuration that came as data; DataplaneError with every problem, which has no line, `name` stands for it."""
    try:
        config = Config.model_validate(written)
    except ValidationError as error:
        raise DataplaneError(f"{name}: {error}") from None
    if problems := check(config):
        raise DataplaneError("\n".join(f"{name}: {problem}" for problem in problems))
    return config


def ids_of(version: Version) -> RuleIds:
    return RuleIds(version.ids.get("security", {}), version.ids.get("nat", {}))


def diff(old: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, str] = ("", "")) -> list[str]:
    """Unified, of the configurations as YAML."""
    return list(difflib.unified_diff(list(as_yaml(old)), list(as_yaml(new)), *names, lineterm=""))


def _tidy() -> None:
    """The policy before is garbage; the one now lives until the next commit, so the collector need not walk over it."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _tell(version: Version, outcome: Outcome) -> None:
    log.info(
        "commit: version %d by %s, %s: %d changes, %d sessions ended",
        version.version,
        version.user,
        version.source,
        len(version.changes),
        outcome.total,
    )
    for change in version.changes[:SHOWN]:
        log.info("commit: version %d: %s", version.version, change)
