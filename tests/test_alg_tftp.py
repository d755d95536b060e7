"""The TFTP gateway: a request, and the port that its answer will come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, UDP, Expected
from dataplane.alg.tftp import Tftp
from tests.conversation import Talk

READ = b"\0\1boot.cfg\0octet\0"
WRITE = b"\0\2boot.cfg\0netascii\0"
ANSWER = Expected(CLIENT, UDP, 40000, ("tftp-data",))  # the port that the client has asked from


def asked(datagram, side=CLIENT, **how):
    """What is expected after one datagram, which passes as it is."""
    talk = Talk(Tftp(), 69, **how)
    assert talk.send(side, datagram) == datagram
    assert not talk.alg.done
    return talk.expected


@pytest.mark.parametrize("how", [{}, {"snat": True}, {"dnat": True}, {"ipv4": False}, {"snat": True, "ipv4": False}])
@pytest.mark.parametrize("request_", [READ, WRITE, b"\0\1x\0y\0", READ + b"blksize\x001428\0tsize\x000\0"])
def test_the_server_may_answer_a_request(request_, how):
    """From any port to the client's own; the text names none, so translation changes nothing in it."""
    assert asked(request_, **how) == [ANSWER]


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0",
        b"\0\1",
        b"\0\1\0\0",
        b"\0\1xoctet\0",
        b"\0\1boot.cfg\0octet",
        b"\0\3\0\1" + READ,
        b"\0\4\0\1\0\0",
        b"\0\5\0\1not found\0\0",
        b"\0\6blksize\x001428\0",
        b"\1\0boot.cfg\0octet\0",
        b"\0" + READ,
    ],
)
def test_what_is_no_request(datagram):
    """Too short, without its zeros, or of another kind."""
    assert asked(datagram) == []


@pytest.mark.parametrize("request_", [READ, WRITE])
def test_a_server_asks_for_nothing(request_):
    """Only the client's first datagrams say where he waits."""
    assert asked(request_, side=SERVER) == []


def test_a_request_that_comes_again():
    """Its answer was lost, or the server has not heard it: it is waited for again, after a first answer."""
    talk = Talk(Tftp(), 69, snat=True)
    talk.send(CLIENT, READ)
    talk.expected.clear()
    talk.send(CLIENT, READ)
    assert talk.expected == [ANSWER]


def test_a_refused_request_passes():
    """The server may still answer; it will not come through."""
    assert asked(READ, refuse=True) == []


@given(st.integers(0, 1), st.binary(min_size=1, max_size=60) | st.binary(max_size=60).map(lambda data: b"\0\1" + data))
def test_no_bytes_do_harm(side, datagram):
    """Whatever comes passes as it is; what is expected needs both zeros."""
    expected = asked(datagram, side)
    assert not expected or (side == CLIENT and datagram.count(0) >= 3)
