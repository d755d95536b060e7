"""Commits and what the disk makes of them, around an engine that takes up whatever it is told."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane.commit import Committer, Order, accept, first_config, plain
from dataplane.engine import Candidate, Engine
from dataplane.errors import DataplaneError
from dataplane.policy.model import Config
from dataplane.rematch import Outcome
from dataplane.versions import Versions
from tests.lab.polling import poll

ME = Order("me", "test")


def config(*rules: str) -> Config:
    named = [{"name": name, "action": "allow"} for name in rules]
    return accept({"zones": [{"name": "trust", "interfaces": ["in0"]}], "security-rules": named}, "test")


class Host:
    """A daemon that can be started again: its file, its versions, and what is in force."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "firewall.yaml"
        self.directory = directory / "state"
        self.versions = Versions(self.directory, directory / "run")
        self.cut = 0  # connections to the firewall itself that a commit would end
        self.write(config("one"))
        self.start()

    def write(self, wanted: Config) -> None:
        self.file.write_text(json.dumps(plain(wanted)))

    def start(self) -> None:
        first = first_config(self.file, self.versions)
        self.engine = SimpleNamespace(
            config=first.config,
            ids=first.ids,
            candidate=lambda wanted, ids: Candidate(wanted, cast(Any, None), ids),
            commit=self._take_up,
            connections_to_end=lambda candidate: self.cut,
        )
        self.committer = Committer(cast(Engine, self.engine), self.versions, self.file)
        self.committer.begin(first.order)

    def commit(self, *rules: str, confirm: int | None = None) -> int:
        return self.committer.commit(config(*rules), ME._replace(confirm=confirm))[0]

    @property
    def rules(self) -> list[str]:
        """In force."""
        return [rule.name for rule in self.engine.config.security_rules]

    def wait_until_taken_back(self, number: int) -> None:
        poll(lambda: self.committer.number > number, 3, "the way back")

    def _take_up(self, candidate: Candidate) -> Outcome:
        self.engine.config, self.engine.ids = candidate.config, candidate.ids
        return Outcome()


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    yield made
    made.committer.stop()


@pytest.fixture
def refuse(monkeypatch):
    """Let the disk refuse the calls of these names from now on, or none."""

    def begin(*names: str) -> None:
        monkeypatch.undo()
        for name in names:
            monkeypatch.setattr(os, name, full)

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    return begin


def test_a_full_disk_refuses_a_commit(host, refuse):
    """Before anything has changed, and nothing half is left."""
    refuse("fsync")
    with pytest.raises(DataplaneError, match="cannot be kept"):
        host.commit("two")
    assert (host.rules, host.committer.number) == (["one"], 1)
    assert not [*host.directory.rglob("*.part")]


def test_what_is_in_force_stays_though_it_cannot_be_published(host, refuse):
    """It can still be taken back and followed, but not gone back to."""
    refuse("replace")
    assert host.commit("two", confirm=60) == 2
    assert host.rules == ["two"]
    assert host.committer.waits
    refuse()
    assert host.commit("three") == 3
    assert [version.version for version in host.committer.versions()] == [3, 1]
    host.committer.rollback(1, ME)
    assert host.rules == ["one"]


def test_what_nobody_confirms_goes_back_though_the_disk_is_full(host, refuse):
    """Whoever has locked himself out cannot make room."""
    host.commit("two", confirm=1)
    refuse("fsync")
    host.wait_until_taken_back(2)
    assert host.rules == ["one"]


def test_a_confirmation_that_cannot_be_kept_is_none(host, refuse):
    """The way back is open until it can."""
    host.commit("two", confirm=60)
    refuse("fsync")
    with pytest.raises(DataplaneError, match="cannot be kept"):
        host.committer.confirm("me")
    assert host.committer.waits
    refuse()
    assert host.committer.confirm("me") == 2
    assert not host.versions.read(2).unconfirmed


@pytest.mark.parametrize("died", [True, False], ids=["died while it waited", "was taken back"])
def test_no_start_takes_what_nobody_has_confirmed(host, died):
    """However often it is tried; another file is taken, and so is the same one once somebody has committed it."""
    host.write(config("two"))
    host.commit("two", confirm=60 if died else 1)
    if not died:
        host.wait_until_taken_back(2)
    for _ in range(3):
        host.committer.stop()
        host.start()
        assert host.rules == ["one"]
        assert host.committer.number == 3
    host.commit("two")
    host.start()
    assert host.rules == ["two"]
    host.write(config("three"))
    host.start()
    assert host.rules == ["three"]


def test_a_start_says_what_it_began_with(host):
    """Not the file, where it was not the file."""
    host.write(config("two"))
    host.commit("two", confirm=60)
    host.committer.stop()
    host.start()
    assert host.versions.read(3).source == "version 2 was never confirmed: back to version 1"


def test_a_start_whose_way_back_is_damaged(host):
    """An earlier version does, and without one the file."""
    host.commit("two")
    host.write(config("three"))
    host.commit("three", confirm=60)
    damage(host, 2)
    host.start()
    assert host.rules == ["one"]
    for number in (1, 4):
        damage(host, number)
    host.start()
    assert host.rules == ["three"]


def test_a_damaged_version_hides_no_other(host):
    """Whoever asks for it is told."""
    host.commit("two")
    host.commit("three")
    damage(host, 2)
    assert [version.version for version in host.committer.versions()] == [3, 1]
    with pytest.raises(DataplaneError, match="00000002"):
        host.committer.rollback(1, ME)
    host.committer.rollback(2, ME)
    assert host.rules == ["one"]


@pytest.mark.parametrize("back", [0, -1, 2, 10_000])
def test_a_version_that_never_was(host, back):
    """Neither before the first one nor after the last."""
    host.commit("two")
    with pytest.raises(DataplaneError, match="commits to go back"):
        host.committer.rollback(back, ME)
    assert host.rules == ["two"]


def test_only_a_commit_that_can_be_taken_back_cuts_connections(host):
    """Those to the firewall itself; or one that says so."""
    host.cut = 1
    with pytest.raises(DataplaneError, match="--force"):
        host.commit("two")
    assert host.commit("two", confirm=60) == 2
    assert host.committer.commit(config("three"), ME._replace(force=True))[0] == 3


def test_a_signal_cuts_no_connection(host, caplog):
    """It may come from somebody who sits at one."""
    host.write(config("two"))
    host.cut = 1
    host.committer.reload()
    assert host.rules == ["one"]
    assert "nothing has changed: would cut 1 connections" in caplog.text
    host.cut = 0
    host.committer.reload()
    assert host.rules == ["two"]


def damage(host: Host, number: int) -> None:
    (path,) = host.directory.rglob(f"{number:08}.json")
    path.write_text("{")
