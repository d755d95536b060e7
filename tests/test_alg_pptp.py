"""The PPTP gateway: call ids, of which each side has its own; scapy writes the messages and reads them again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.pptp import (
    PPTPCallClearRequest,
    PPTPCallDisconnectNotify,
    PPTPEchoReply,
    PPTPEchoRequest,
    PPTPIncomingCallConnected,
    PPTPIncomingCallReply,
    PPTPIncomingCallRequest,
    PPTPOutgoingCallReply,
    PPTPOutgoingCallRequest,
    PPTPSetLinkInfo,
    PPTPStartControlConnectionReply,
    PPTPStartControlConnectionRequest,
    PPTPStopControlConnectionReply,
    PPTPWANErrorNotify,
)

from dataplane.alg.base import CLIENT, GRE, SERVER, Expected
from dataplane.alg.pptp import MAX_CALLS, Pptp
from tests.conversation import Talk, pieces, with_wrong_bytes

START = bytes(PPTPStartControlConnectionRequest())
STARTED = bytes(PPTPStartControlConnectionReply())


def request(call_id):
    return bytes(PPTPOutgoingCallRequest(call_id=call_id))


def reply(call_id, peer, result=1):
    return bytes(PPTPOutgoingCallReply(call_id=call_id, peer_call_id=peer, result_code=result))


def clear(call_id):
    return bytes(PPTPCallClearRequest(call_id=call_id))


def disconnected(call_id):
    return bytes(PPTPCallDisconnectNotify(call_id=call_id))


def incoming(call_id):
    return bytes(PPTPIncomingCallRequest(call_id=call_id))


def accepted(call_id, peer):
    return bytes(PPTPIncomingCallReply(len=24, call_id=call_id, peer_call_id=peer))  # scapy's own length is wrong


def connected(peer):
    return bytes(PPTPIncomingCallConnected(peer_call_id=peer))


def link_info(peer):
    return bytes(PPTPSetLinkInfo(peer_call_id=peer))


def wan_error(peer):
    return bytes(PPTPWANErrorNotify(peer_call_id=peer))


def stream_to(side, call_id):
    return Expected(side, GRE, call_id, ("pptp-gre",))


def begun(**how):
    """A control connection that is open."""
    talk = Talk(Pptp(), 1723, **how)
    assert talk.say(CLIENT, START) == START
    assert talk.say(SERVER, STARTED) == STARTED
    return talk


def test_each_side_is_called_by_its_own_call_id():
    """Without translation every byte goes on as it was."""
    talk = begun()
    assert talk.say(CLIENT, request(7)) == request(7)
    assert talk.expected == [stream_to(CLIENT, 7)]
    assert talk.say(SERVER, reply(9, peer=7)) == reply(9, peer=7)
    assert talk.expected == [stream_to(CLIENT, 7), stream_to(SERVER, 9)]


def test_source_translation_gives_the_client_another_call_id():
    """The server repeats that one, and the client reads its own again."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, request(7)) == request(10007)
    assert talk.say(SERVER, reply(9, peer=10007)) == reply(9, peer=7)
    assert talk.say(CLIENT, link_info(9)) == link_info(9)
    assert talk.say(SERVER, wan_error(10007)) == wan_error(7)
    assert talk.say(CLIENT, clear(7)) == clear(10007)
    assert talk.say(SERVER, disconnected(9)) == disconnected(9)


def test_destination_translation_gives_the_server_another_call_id():
    """What the client says about it is put back."""
    talk = begun(dnat=True)
    talk.say(CLIENT, request(7))
    assert talk.say(SERVER, reply(9, peer=7)) == reply(10009, peer=7)
    assert talk.say(CLIENT, link_info(10009)) == link_info(9)
    assert talk.say(CLIENT, clear(7)) == clear(7)
    assert talk.say(SERVER, disconnected(9)) == disconnected(10009)


def test_a_server_may_call_its_client():
    """An incoming call is the same with sides exchanged."""
    talk = begun(snat=True)
    assert talk.say(SERVER, incoming(9)) == incoming(9)
    assert talk.say(CLIENT, accepted(7, peer=9)) == accepted(10007, peer=9)
    assert talk.say(SERVER, connected(10007)) == connected(7)
    assert talk.expected == [stream_to(SERVER, 9), stream_to(CLIENT, 7)]


def test_ipv6_is_the_same():
    """No message holds an address."""
    talk = begun(snat=True, ipv4=False)
    assert talk.say(CLIENT, request(7)) == request(10007)


def test_several_messages_in_one_segment():
    """Each is read for itself, and those between them go on."""
    talk = begun(snat=True)
    echo = bytes(PPTPEchoRequest()) + bytes(PPTPEchoReply())
    assert talk.say(CLIENT, request(7) + echo + request(8)) == request(10007) + echo + request(10008)


def test_a_message_waits_until_it_is_whole():
    """A call id that is there opens nothing before the last byte."""
    talk = begun()
    assert talk.say(CLIENT, request(7)[:-1]) == b""
    assert talk.expected == []
    assert talk.say(CLIENT, request(7)[-1:]) == request(7)
    assert talk.expected == [stream_to(CLIENT, 7)]


def test_a_cleared_call_is_awaited_no_more():
    """Neither stream; what the notify says is still translated."""
    talk = begun(dnat=True)
    talk.say(CLIENT, request(7))
    talk.say(SERVER, reply(9, peer=7))
    talk.say(CLIENT, clear(7))
    assert talk.expected == []
    assert talk.say(SERVER, disconnected(9)) == disconnected(10009)
    assert talk.say(SERVER, disconnected(9)) == disconnected(9)


def test_a_call_that_is_refused_opens_nothing():
    """The client's own stream is forgotten with it; its call id is put back nevertheless."""
    talk = begun(snat=True)
    talk.say(CLIENT, request(7))
    assert talk.say(SERVER, reply(0, peer=10007, result=4)) == reply(0, peer=7, result=4)
    assert talk.expected == []


@pytest.mark.parametrize("message", [reply(9, peer=7), connected(7), link_info(7), disconnected(7), clear(7)])
def test_nothing_is_known_of_a_call_that_nobody_began(message):
    """It goes on as it is and opens nothing."""
    talk = begun(snat=True, dnat=True)
    assert talk.say(SERVER, message) == message
    assert talk.expected == []


def test_a_call_id_of_zero_is_none():
    """It would match streams of any call."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, request(0)) == request(0)
    assert talk.expected == []


def test_a_refused_way_leaves_the_message_alone():
    """So does the answer to it."""
    talk = begun(snat=True, dnat=True, refuse=True)
    assert talk.say(CLIENT, request(7)) == request(7)
    assert talk.say(SERVER, reply(9, peer=7)) == reply(9, peer=7)


def test_a_message_that_is_too_short_says_nothing():
    """Its length is believed for where the next one begins, and its call id is not."""
    talk = begun(snat=True)
    short = b"\x00\x10" + request(7)[2:16]
    assert talk.say(CLIENT, short + request(8)) == short + request(10008)


def test_a_call_id_used_again_is_another_call():
    """The old one's streams are forgotten."""
    talk = begun()
    talk.say(CLIENT, request(7))
    talk.say(SERVER, reply(9, peer=7))
    talk.say(CLIENT, request(7))
    assert talk.expected == [stream_to(CLIENT, 7)]


def test_a_reply_in_place_of_another_takes_its_call_id_back():
    """A call has one stream to each side, however often it is answered."""
    talk = begun()
    talk.say(CLIENT, request(7))
    talk.say(SERVER, *(reply(call_id, peer=7) for call_id in range(100, 200)))
    assert talk.expected == [stream_to(CLIENT, 7), stream_to(SERVER, 199)]


def test_a_flood_of_calls_keeps_the_newest():
    """The oldest are forgotten."""
    talk = begun()
    talk.say(CLIENT, *(request(call_id) for call_id in range(1, 201)))
    assert talk.expected == [stream_to(CLIENT, call_id) for call_id in range(201 - MAX_CALLS, 201)]


@pytest.mark.parametrize("first", [request(7), STARTED, b"POST / HTTP/1.1\r\n\r\n" + START, b"\x00\x00", b"\xff"])
def test_what_does_not_begin_as_pptp_is_left_alone(first):
    """From its first wrong byte on, whatever comes later."""
    talk = Talk(Pptp(), 1723, snat=True)
    assert talk.say(CLIENT, first) == first
    assert talk.alg.done
    assert talk.say(CLIENT, START + request(7)) == START + request(7)
    assert talk.expected == []


def test_the_server_has_to_agree():
    """A client that does not wait, and a server that says no, open nothing."""
    talk = Talk(Pptp(), 1723, snat=True)
    assert talk.say(CLIENT, START + request(7)) == START + request(7)
    refused = bytes(PPTPStartControlConnectionReply(result_code=2))
    assert talk.say(SERVER, refused) == refused
    assert talk.alg.done
    assert talk.expected == []


def test_a_server_does_not_begin():
    """Its first message answers the client's."""
    talk = Talk(Pptp(), 1723)
    talk.say(SERVER, STARTED)
    assert talk.alg.done


def test_what_stops_being_pptp_is_left_alone():
    """A wrong magic number in the middle, or the end of the control connection."""
    talk = begun(snat=True)
    broken = request(7).replace(b"\x1a\x2b", b"\x1a\x2a")
    assert talk.say(CLIENT, broken + request(7)) == broken + request(7)
    talk = begun()
    talk.say(SERVER, bytes(PPTPStopControlConnectionReply()))
    assert talk.alg.done


CONVERSATION = [
    (CLIENT, START, START),
    (SERVER, STARTED, STARTED),
    (CLIENT, request(7) + request(8), request(10007) + request(10008)),
    (SERVER, reply(9, peer=10007) + incoming(5), reply(10009, peer=7) + incoming(10005)),
    (CLIENT, link_info(10009) + accepted(6, peer=10005), link_info(9) + accepted(10006, peer=5)),
    (SERVER, connected(10006) + wan_error(10007), connected(6) + wan_error(7)),
    (CLIENT, clear(7), clear(10007)),
    (SERVER, disconnected(9), disconnected(10009)),
]


@given(st.sets(st.integers(1, 400)))
def test_no_split_matters(cuts):
    """The same text and the same ways, wherever segments end."""
    talk = Talk(Pptp(), 1723, snat=True, dnat=True)
    for side, said, read in CONVERSATION:
        assert talk.say(side, *pieces(said, cuts)) == read
    assert talk.expected == [stream_to(CLIENT, 8), stream_to(SERVER, 5), stream_to(CLIENT, 6)]


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=300)), max_size=20))
def test_no_bytes_do_harm(segments):
    """Nothing is raised, and a stream of nonsense goes on as it is."""
    for talk in (Talk(Pptp(), 1723, snat=True, dnat=True), begun(snat=True, dnat=True)):
        for side, segment in segments:
            talk.say(side, segment)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_no_wrong_byte_does_harm(changes):
    """A conversation goes on with any of its bytes changed."""
    said = with_wrong_bytes((text for _, text, _ in CONVERSATION), changes)
    talk = Talk(Pptp(), 1723, snat=True, dnat=True)
    read = [talk.say(side, message) for (side, _, _), message in zip(CONVERSATION, said, strict=True)]
    assert sum(map(len, read)) <= sum(map(len, said))
    assert len(talk.expected) <= 6
