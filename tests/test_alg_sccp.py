"""The Skinny gateway: where a phone receives the voice of its calls."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, UDP, Expected
from dataplane.alg.sccp import MAX_CHANNELS, Sccp
from tests.conversation import Talk, address, pieces, with_wrong_bytes

PHONE, OUTSIDE, OTHER = "10.1.0.2", "10.2.0.1", "10.1.0.99"
PHONE6, OUTSIDE6 = "fd00:1::2", "fd00:2::1"


def message(kind, body=b"", version=0):
    return struct.pack("<III", len(body) + 4, version, kind) + body


def packed(text):
    return address(text).to_bytes(16)[-4 if "." in text else 0 :]


def register(host=PHONE):
    return message(0x0001, b"SEP001122334455\0" + bytes(8) + packed(host) + bytes(20))


def opened(port, host=PHONE, party=1, status=0):
    """OpenReceiveChannelAck as older phones say it."""
    return message(0x0022, struct.pack("<I4sIII", status, packed(host), port, party, 77))


def opened_wide(port, host=PHONE, party=1, kind=None):
    """The same from version 17 on."""
    kind = ":" in host if kind is None else kind
    return message(0x0022, struct.pack("<II16sIII", 0, kind, packed(host), port, party, 77), version=17)


def close(party=1):
    return message(0x0106, struct.pack("<III", 5, party, 5))


ALARM = message(0x0020, bytes(92))
REGISTERED = message(0x0081, bytes(20))
OPEN = message(0x0105, struct.pack("<IIII", 5, 1, 20, 4))
START_TRANSMISSION = message(0x008A, struct.pack("<II4sI", 5, 1, packed(OTHER), 20000) + bytes(20))


def voice(port):
    return Expected(CLIENT, UDP, port, ("rtp", "rtcp"), anyone=True)


def begun(**how):
    """A phone that is registered and has been asked to receive."""
    talk = Talk(Sccp(), 2000, **how)
    talk.say(CLIENT, ALARM, register())
    assert talk.say(SERVER, REGISTERED + OPEN) == REGISTERED + OPEN
    return talk


def test_anybody_may_send_to_a_phone():
    """Voice comes from another phone; without translation every byte goes on as it was."""
    talk = begun()
    assert talk.say(CLIENT, opened(24000)) == opened(24000)
    assert talk.expected == [voice(24000)]


def test_source_translation_changes_address_and_port():
    """The server tells the other phone where the firewall waits."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, opened(24000)) == opened(34000, OUTSIDE)


def test_newer_phones_leave_room_for_ipv6():
    """The address is wider and the port further behind."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, opened_wide(24000)) == opened_wide(34000, OUTSIDE)
    talk = begun(snat=True, ipv4=False)
    assert talk.say(CLIENT, opened_wide(24000, PHONE6)) == opened_wide(34000, OUTSIDE6)
    assert talk.expected == [voice(24000)]


def test_destination_translation_changes_nothing():
    """The server's address stands nowhere."""
    talk = begun(dnat=True)
    assert talk.say(CLIENT, opened(24000)) == opened(24000)
    assert talk.expected == [voice(24000)]


def test_a_phone_registers_with_the_address_that_its_server_sees():
    """If it is its own that it names."""
    talk = Talk(Sccp(), 2000, snat=True)
    assert talk.say(CLIENT, register()) == register(OUTSIDE)
    talk = Talk(Sccp(), 2000, snat=True)
    assert talk.say(CLIENT, register(OTHER)) == register(OTHER)
    talk = Talk(Sccp(), 2000)
    assert talk.say(CLIENT, register()) == register()


def test_a_closed_channel_is_awaited_no_more():
    """The server says which; of others it forgets nothing."""
    talk = begun()
    talk.say(CLIENT, opened(24000, party=1) + opened(24002, party=2))
    assert talk.say(SERVER, close(party=3) + close(party=1)) == close(party=3) + close(party=1)
    assert talk.expected == [voice(24002)]
    assert talk.forgotten == [(CLIENT, UDP, 24000), (CLIENT, UDP, 24001)]


def test_a_channel_that_moves_has_one_port():
    """What it was before is forgotten; saying the same again changes nothing."""
    talk = begun()
    talk.say(CLIENT, opened(24000) + opened(24000) + opened(24002))
    assert talk.expected == [voice(24002)]
    assert talk.forgotten == [(CLIENT, UDP, 24000), (CLIENT, UDP, 24001)]


def test_where_a_phone_sends_to_opens_nothing():
    """It is a third host's address, said by the server."""
    talk = begun(snat=True, dnat=True)
    assert talk.say(SERVER, START_TRANSMISSION) == START_TRANSMISSION
    assert talk.expected == []


@pytest.mark.parametrize(
    "forbidden",
    [
        opened(24000, OTHER),
        opened(1022),
        opened(0),
        opened(65535),  # RTCP would have none
        opened(24000 + (1 << 16)),
        opened(24000, status=1),
        opened_wide(24000, kind=2),
        opened_wide(24000, PHONE6),
        message(0x0022, opened(24000)[12:24]),
        message(0x0022, opened(24000)[12:], version=17),
        message(0x0022, opened_wide(24000)[12:40], version=17),
        message(0x0022, opened(24000)[12:] + bytes(600)),
    ],
)
def test_what_is_forbidden_or_odd_opens_nothing(forbidden):
    """Foreign address, services' ports, failure, unknown kind of address, too short, too long."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, forbidden) == forbidden
    assert talk.expected == []


def test_a_refused_way_leaves_the_message_alone():
    """Nobody reads an address where nothing waits."""
    talk = begun(snat=True, refuse=True)
    assert talk.say(CLIENT, opened(24000)) == opened(24000)


def test_the_server_does_not_open_channels():
    """Only a phone announces its ports, and only a server closes them."""
    talk = begun(snat=True, dnat=True)
    talk.say(CLIENT, opened(24000))
    assert talk.say(SERVER, opened(24002)) == opened(24002)
    assert talk.say(CLIENT, close()) == close()
    assert talk.expected == [voice(24000)]


def test_nothing_is_believed_before_the_server_has_answered():
    """A phone alone opens nothing."""
    talk = Talk(Sccp(), 2000, snat=True)
    assert talk.say(CLIENT, ALARM + opened(24000)) == ALARM + opened(24000)
    assert talk.expected == []


def test_a_message_waits_until_it_is_whole():
    """Others do not wait."""
    talk = begun(snat=True)
    keep_alive = message(0x0000)
    assert talk.say(CLIENT, keep_alive + opened(24000)[:20]) == keep_alive
    assert talk.expected == []
    assert talk.say(CLIENT, opened(24000)[20:]) == opened(34000, OUTSIDE)
    assert talk.say(CLIENT, ALARM[:50]) == ALARM[:50]


@pytest.mark.parametrize(
    "first",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 24\r\n\r\n",
        opened(24000),
        message(0x0105),
        b"\x04\0\0\0\0\0\0\x01",
        bytes(8) + b"\x01\0\0\0",
        b"\x04\0\x01",
    ],
)
def test_what_does_not_begin_as_sccp_is_left_alone(first):
    """Even if a later segment looks like it."""
    talk = Talk(Sccp(), 2000, snat=True)
    assert talk.say(CLIENT, first) == first
    assert talk.alg.done
    assert talk.say(CLIENT, ALARM + register()) == ALARM + register()


def test_a_server_does_not_begin():
    """What it says first is not SCCP, whatever it looks like."""
    talk = Talk(Sccp(), 2000)
    talk.say(SERVER, REGISTERED)
    assert talk.alg.done


def test_a_flood_of_channels_keeps_the_newest():
    """The oldest are forgotten."""
    talk = begun()
    talk.say(CLIENT, *(opened(20000 + 2 * party, party=party) for party in range(200)))
    assert talk.expected == [voice(20000 + 2 * party) for party in range(200 - MAX_CHANNELS, 200)]


CONVERSATION = [
    (CLIENT, ALARM + register() + message(0x0000), ALARM + register(OUTSIDE) + message(0x0000)),
    (SERVER, REGISTERED + OPEN, REGISTERED + OPEN),
    (
        CLIENT,
        opened(24000, party=1) + opened_wide(24002, party=2),
        opened(34000, OUTSIDE, party=1) + opened_wide(34002, OUTSIDE, party=2),
    ),
    (SERVER, START_TRANSMISSION + close(party=1), START_TRANSMISSION + close(party=1)),
]


@given(st.sets(st.integers(1, 250)))
def test_no_split_matters(cuts):
    """The same bytes and the same ways, wherever segments end."""
    talk = Talk(Sccp(), 2000, snat=True)
    for side, said, read in CONVERSATION:
        assert talk.say(side, *pieces(said, cuts)) == read
    assert talk.expected == [voice(24002)]


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=300)), max_size=20))
def test_no_bytes_do_harm(segments):
    """Nothing is raised, and a stream of nonsense goes on as it is."""
    for talk in (Talk(Sccp(), 2000, snat=True), begun(snat=True)):
        for side, segment in segments:
            talk.say(side, segment)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 250), st.integers(0, 255)), max_size=8))
def test_no_wrong_byte_does_harm(changes):
    """Nothing becomes longer or is lost, and no more is opened than is announced."""
    said = with_wrong_bytes((text for _, text, _ in CONVERSATION), changes)
    talk = Talk(Sccp(), 2000, snat=True)
    read = [talk.say(side, text) for (side, _, _), text in zip(CONVERSATION, said, strict=True)]
    assert sum(map(len, read)) <= sum(map(len, said))
    assert len(talk.expected) <= 2
