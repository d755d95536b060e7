"""What workers know of where packets go, while Python learns, forgets and looks: see stress_offload.c."""

import pytest

from tests.stress import run_under_tsan


@pytest.mark.stress
def test_nobody_goes_by_a_hop_that_is_forgotten(tmp_path):
    """Two workers offload while a host changes, an ager, an operator: no race, nobody is left behind, the books are right."""
    run_under_tsan("stress_offload", tmp_path)
