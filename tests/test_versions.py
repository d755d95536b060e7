"""Committed configurations on the disk: whole or not there."""

import pytest

from dataplane.errors import DataplaneError
from dataplane.versions import KEPT, Version, Versions


def version(number: int, user: str = "me") -> Version:
    return Version(number, "2026-01-01T00:00:00Z", user, "file", {"zones": []}, {})


@pytest.fixture
def versions(tmp_path):
    return Versions(tmp_path / "state", tmp_path / "run")


def test_what_is_kept_comes_back(versions):
    """Numbers ascend, the newest is the latest."""
    for number in (1, 2, 3):
        versions.keep(version(number, user=f"user {number}"))
    assert versions.numbers() == [1, 2, 3]
    assert versions.latest() == version(3, user="user 3")
    assert versions.read(2).user == "user 2"


def test_what_is_only_prepared_is_not_there(versions):
    """A machine that stops before the name is given has the version before."""
    versions.keep(version(1))
    part = versions.prepare(version(2))
    assert versions.numbers() == [1]
    versions.publish(part)
    assert versions.numbers() == [1, 2]


def test_a_damaged_file_is_passed_over(versions, tmp_path):
    """Somebody has edited it: the one before is the latest, and asking for it says why."""
    versions.keep(version(1))
    versions.keep(version(2))
    (path,) = tmp_path.glob("state/*/00000002.json")
    path.write_text("{")
    assert versions.latest() == version(1)
    with pytest.raises(DataplaneError, match="00000002"):
        versions.read(2)


def test_only_so_many_are_kept(versions):
    """The oldest make room."""
    for number in range(1, KEPT + 4):
        versions.keep(version(number))
    assert versions.numbers() == list(range(4, KEPT + 4))
    with pytest.raises(DataplaneError, match="version 1 does not exist"):
        versions.read(1)


def test_daemons_of_two_runtime_directories_have_their_own(tmp_path):
    """Though they share the state directory; a dash in a name is no slash."""
    first, second = (Versions(tmp_path / "state", tmp_path / own) for own in ("a-b", "a/b"))
    first.keep(version(1))
    assert second.numbers() == []


def test_a_directory_that_cannot_be_written(tmp_path):
    """Named, and nothing half is left."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(DataplaneError, match="cannot be kept"):
        Versions(tmp_path / "state", tmp_path / "run").keep(version(1))
