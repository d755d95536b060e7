"""The debugging story that README tells still ends well."""

from tests.lab.story import tell


def test_a_connection_fails_and_is_mended(lab):
    """Each step tells what it should, or it raises."""
    tell(lab)
