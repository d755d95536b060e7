"""What sessions and rules are shown with everywhere."""

from dataplane.views import iso_time, iso_time_ms


def test_time_is_utc_and_cut():
    """To the second or to the millisecond, never rounded up."""
    assert iso_time(0.999) == "1970-01-01T00:00:00Z"
    assert iso_time_ms(1.0009) == "1970-01-01T00:00:01.000Z"
