"""The RSH gateway: a port in front of a NUL, said once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, TCP, Expected
from dataplane.alg.rsh import Rsh
from tests.conversation import Talk, pieces

COMMAND = b"alice\0bob\0uptime\0"


def test_the_server_may_call_the_announced_port():
    """Without translation nothing is changed, and what follows is of no interest."""
    talk = Talk(Rsh(), 514)
    assert talk.say(CLIENT, b"5000\0" + COMMAND) == b"5000\0" + COMMAND
    assert talk.expected == [Expected(CLIENT, TCP, 5000, ("rsh-error",))]
    assert talk.alg.done


@pytest.mark.parametrize("ipv4", [True, False])
def test_source_translation_changes_the_number(ipv4):
    """The server reads the port at which the firewall waits, whatever its number of digits."""
    talk = Talk(Rsh(), 514, snat=True, ipv4=ipv4)
    assert talk.say(CLIENT, b"5000\0" + COMMAND) == b"15000\0" + COMMAND


def test_destination_translation_changes_nothing():
    """The client's port is known to the server as it is."""
    talk = Talk(Rsh(), 514, dnat=True)
    assert talk.say(CLIENT, b"05000\0") == b"05000\0"
    assert len(talk.expected) == 1


def test_digits_that_come_one_by_one():
    """A segment for each byte gives the same as one for all."""
    talk = Talk(Rsh(), 514, snat=True)
    assert talk.say(CLIENT, b"5", b"0", b"0") == b""
    assert talk.say(CLIENT, b"0", b"\0", COMMAND) == b"15000\0" + COMMAND


@pytest.mark.parametrize("port", [b"", b"0", b"1022", b"1023", b"65536", b"99999"])
def test_ports_that_open_nothing(port):
    """No second stream, one of those below 1024, one that does not exist."""
    talk = Talk(Rsh(), 514, snat=True)
    assert talk.say(CLIENT, port + b"\0" + COMMAND) == port + b"\0" + COMMAND
    assert not talk.expected
    assert talk.alg.done


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n", b"123456\0", b"50 00\0", b"-5000\0", b"\x16\x03\x01", b"<13>x"]
)
def test_another_protocol_is_left_alone(first):
    """A port that comes later in the stream is not one."""
    talk = Talk(Rsh(), 514)
    assert talk.say(CLIENT, first, b"5000\0") == first + b"5000\0"
    assert not talk.expected
    assert talk.alg.done


def test_a_server_that_speaks_first_speaks_something_else():
    """It has nothing to say before it knows the port."""
    talk = Talk(Rsh(), 514)
    assert talk.say(SERVER, b"SSH-2.0-x\r\n") == b"SSH-2.0-x\r\n"
    assert talk.say(CLIENT, b"5000\0") == b"5000\0"
    assert not talk.expected


def test_a_refused_port_passes_unchanged():
    """Where no way could be opened the client's number stays."""
    assert Talk(Rsh(), 514, snat=True, refuse=True).say(CLIENT, b"5000\0") == b"5000\0"


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=12)), max_size=8))
def test_no_bytes_do_harm(segments):
    """Whatever comes passes, opens at most one way and leaves nothing waiting but digits."""
    talk = Talk(Rsh(), 514)
    for side, segment in segments:
        talk.say(side, segment)
    assert len(talk.expected) <= 1


@given(st.lists(st.integers(0, 22), max_size=6))
def test_no_split_matters(cuts):
    """The same text and the same way, wherever segments end."""
    stream = b"5000\0" + COMMAND
    talk = Talk(Rsh(), 514, snat=True)
    assert talk.say(CLIENT, *pieces(stream, cuts)) == b"15000\0" + COMMAND
    assert len(talk.expected) == 1
