"""What workers know of where packets go, while Python learns, forgets and looks: see stress_offload.c."""

import pytest

from tests.stress import run_under_tsan


@pytest.mark.stress
def test_nobody_goes_by_a_hop_that_is_forgotten(tmp_path):
    """Workers offload while the host changes: there is no race, nobody is left behind, and the books are right."""
    run_under_tsan("stress_offload", tmp_path)
