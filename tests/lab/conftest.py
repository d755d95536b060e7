"""Fixtures of the tests that need network namespaces."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder; without root there are no namespaces, so say so instead of failing."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.netns)
        item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab of its own for each test, with the default options."""
    with Lab() as made:
        yield made
