"""The RTSP gateway: the ports of streams, in what the client asks for and in what the server grants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, UDP, Expected
from dataplane.alg.rtsp import MAX_HEAD, MAX_REMEMBERED, MAX_TRANSPORTS, Rtsp
from tests.conversation import Talk, pieces

PAIR = ("rtp", "rtcp")
OPTIONS = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"
PUBLIC = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: SETUP, PLAY, TEARDOWN\r\n\r\n"
UNICAST = b"RTP/AVP;unicast;client_port="


def setup(transport, cseq=2):
    return b"SETUP rtsp://10.2.0.2/x/1 RTSP/1.0\r\nCSeq: %d\r\nTransport: %s\r\n\r\n" % (cseq, transport)


def granted(transport, cseq=2, status=b"200 OK"):
    return b"RTSP/1.0 %s\r\nCSeq: %d\r\nTransport: %s\r\nSession: 47;timeout=60\r\n\r\n" % (status, cseq, transport)


def teardown(session=b"47"):
    return b"TEARDOWN rtsp://10.2.0.2/x RTSP/1.0\r\nCSeq: 9\r\nSession: %s\r\n\r\n" % session


def begun(**how):
    """A connection on which both have spoken."""
    talk = Talk(Rtsp(), 554, **how)
    assert talk.say(CLIENT, OPTIONS) == OPTIONS
    assert talk.say(SERVER, PUBLIC) == PUBLIC
    return talk


def test_both_may_send_to_the_announced_ports():
    """Without translation nothing is changed: media to the client's pair, reports to the server's."""
    talk = begun()
    asked = setup(UNICAST + b"05000-05001;mode=play")
    answer = granted(UNICAST + b"05000-05001;server_port=06970-06971;ssrc=1A2B")
    assert talk.say(CLIENT, asked) == asked
    assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR)]
    assert talk.say(SERVER, answer) == answer
    assert talk.expected[1:] == [Expected(SERVER, UDP, 6970, PAIR)]


@pytest.mark.parametrize("ipv4", [True, False])
def test_source_translation_and_back(ipv4):
    """The server reads where the firewall waits; in its answer the client finds what it had said."""
    talk = begun(snat=True, ipv4=ipv4)
    assert talk.say(CLIENT, setup(UNICAST + b"5000-5001")) == setup(UNICAST + b"15000-15001")
    answer = UNICAST + b"%s;server_port=6970-6971"
    assert talk.say(SERVER, granted(answer % b"15000-15001")) == granted(answer % b"5000-5001")


def test_destination_translation_changes_the_servers_ports():
    """The client reads the ports at which the firewall waits for it, and the address that it knows."""
    talk = begun(dnat=True)
    assert talk.say(CLIENT, setup(UNICAST + b"5000-5001")) == setup(UNICAST + b"5000-5001")
    answer = UNICAST + b"5000-5001;source=%s;server_port=%s"
    assert talk.say(SERVER, granted(answer % (b"10.2.0.2", b"6970-6971"))) == granted(
        answer % (b"10.9.9.9", b"16970-16971")
    )


def test_own_addresses_are_translated_too():
    """A destination that is the client itself becomes what the server can reach, and is mapped back."""
    talk = begun(snat=True)
    there = UNICAST + b"%s;destination=%s"
    assert talk.say(CLIENT, setup(there % (b"5000-5001", b"10.1.0.2"))) == setup(there % (b"15000-15001", b"10.2.0.1"))
    answer = granted(there % (b"15000-15001", b"10.2.0.1"))
    assert talk.say(SERVER, answer) == granted(there % (b"5000-5001", b"10.1.0.2"))


@pytest.mark.parametrize(
    ("ipv4", "own", "seen"),
    [(True, b"10.1.0.2", b"10.2.0.1"), (False, b"[fd00:1::2]", b"[fd00:2::1]"), (True, b"", b"")],
)
def test_rtsp_2_quotes_address_and_port(ipv4, own, seen):
    """dest_addr and src_addr, the address left out or not."""
    talk = begun(snat=True, ipv4=ipv4)
    text = b'RTP/AVP/UDP;unicast;dest_addr="%s:%d"/"%s:%d"'
    mine, theirs = text % (own, 5000, own, 5001), text % (seen, 15000, seen, 15001)
    source = b';src_addr=":6970"/":6971"'
    assert talk.say(CLIENT, setup(mine)) == setup(theirs)
    assert talk.say(SERVER, granted(theirs + source)) == granted(mine + source)
    assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR), Expected(SERVER, UDP, 6970, PAIR)]


def test_a_single_port_carries_no_reports():
    """As with MPEG transport streams without RTP."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, setup(b"MP2T/H2221/UDP;unicast;client_port=5000")).count(b"client_port=15000\r\n") == 1
    assert talk.expected == [Expected(CLIENT, UDP, 5000, ("rtp",))]


@pytest.mark.parametrize(
    "transport",
    [
        b"RTP/AVP/TCP;unicast;interleaved=0-1",
        b"RTP/AVP/TCP;unicast;client_port=5000-5001",
        b"RTP/AVP;unicast;interleaved=0-1;client_port=5000-5001",
        b"RTP/AVP;multicast;client_port=5000-5001",
        b"FOO/BAR;unicast;client_port=5000-5001",
        UNICAST + b"1022-1023",
        UNICAST + b"0-1",
        UNICAST + b"65535-65536",
        UNICAST + b"5001-5000",
        UNICAST + b"5000-5009",
        UNICAST + b"5000-",
        UNICAST + b"5000-5001;client_port=6000-6001",
        UNICAST + b"5000-5001;destination=10.1.0.3",
        UNICAST + b"5000-5001;destination=victim.example",
        UNICAST + b"5000-5001;destination=",
        b'RTP/AVP;unicast;dest_addr="10.1.0.3:5000"/"10.1.0.3:5001"',
        b'RTP/AVP;unicast;dest_addr="10.1.0.2:5000"/"10.1.0.3:5001"',
        b'RTP/AVP;unicast;dest_addr="10.1.0.2:5000',
        UNICAST + b"5000-5001;server_port=6970-6971;destination=:::",
    ],
)
def test_transports_that_open_nothing(transport):
    """Somebody else's address, a port of services, no pair, no UDP: they pass as they are."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, setup(transport)) == setup(transport)
    assert not talk.expected
    assert not talk.alg.done


def test_of_several_offers_one_is_chosen():
    """The ports of the others are closed again."""
    talk = begun(snat=True)
    offers = b'RTP/AVP/TCP;interleaved=0-1;mode="PLAY,RECORD",' + UNICAST + b"%d-%d," + UNICAST + b"%d-%d"
    assert talk.say(CLIENT, setup(offers % (5000, 5001, 5002, 5003))) == setup(offers % (15000, 15001, 15002, 15003))
    assert [e.port for e in talk.expected] == [5000, 5002]
    talk.say(SERVER, granted(UNICAST + b"15002-15003"))
    assert [e.port for e in talk.expected] == [5002]


@pytest.mark.parametrize(
    "answer", [granted(b"RTP/AVP/TCP;interleaved=0-1"), granted(UNICAST + b"5000-5001", status=b"461 Unsupported")]
)
def test_what_the_server_does_not_use_is_closed(answer):
    """It refuses, or prefers the connection itself."""
    talk = begun()
    talk.say(CLIENT, setup(UNICAST + b"5000-5001"))
    talk.say(SERVER, b"RTSP/1.0 100 Continue\r\nCSeq: 2\r\n\r\n")
    assert len(talk.expected) == 1
    assert talk.say(SERVER, answer) == answer
    assert not talk.expected


def test_teardown_closes_what_has_not_been_used():
    """That of its own session only."""
    talk = begun()
    talk.say(CLIENT, setup(UNICAST + b"5000-5001"))
    talk.say(SERVER, granted(UNICAST + b"5000-5001;server_port=6970-6971"))
    talk.say(CLIENT, teardown(b"48"))
    assert len(talk.expected) == 2
    talk.say(CLIENT, teardown())
    assert [port for _, _, port in talk.forgotten] == [5000, 5001, 6970, 6971]
    assert not talk.expected


@pytest.mark.parametrize(
    "answer",
    [
        granted(UNICAST + b"5000-5001;server_port=6970-6971", cseq=7),
        granted(UNICAST + b"5000-5001;server_port=1022-1023"),
        granted(UNICAST + b"5000-5001;server_port=6970-6971;source=10.2.0.3"),
        b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nX-Transport: " + UNICAST + b"5000-5001;server_port=6970-6971\r\n\r\n",
        setup(UNICAST + b"6970-6971"),
    ],
)
def test_answers_that_open_nothing(answer):
    """Nobody asked, a port of services, a third party's address, another header, a server that asks."""
    talk = begun(dnat=True)
    talk.say(CLIENT, setup(UNICAST + b"5000-5001"))
    assert talk.say(SERVER, answer) == answer
    assert all(e == Expected(CLIENT, UDP, 5000, PAIR) for e in talk.expected)


def test_frames_and_bodies_are_stepped_over():
    """A SETUP inside of either is data, whatever it looks like; the one behind it counts."""
    talk = begun()
    fake = setup(UNICAST + b"4000-4001")
    frame = b"$\0" + len(fake).to_bytes(2, "big") + fake
    body = b"ANNOUNCE x RTSP/1.0\r\nCSeq: 3\r\nContent-Length: %d\r\n\r\n" % len(fake) + fake
    stream = frame + b"$\0\0\0" + body + b"\r\n" + setup(UNICAST + b"5000-5001")
    assert talk.say(CLIENT, stream) == stream
    assert [e.port for e in talk.expected] == [5000]
    assert talk.say(SERVER, frame, granted(UNICAST + b"5000-5001;server_port=6970-6971")).startswith(frame)
    assert [e.port for e in talk.expected] == [5000, 6970]


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: -1",
        b"Content-Length: 1e3",
        b"Content-Length: 0\r\nContent-Length: 5",
        b"Content-Length: " + b"9" * 99,
    ],
)
def test_a_length_that_says_nothing_ends_it(lengths):
    """Where the next message begins can no longer be known."""
    talk = begun()
    talk.say(CLIENT, b"ANNOUNCE x RTSP/1.0\r\n" + lengths + b"\r\n\r\n", setup(UNICAST + b"5000-5001"))
    assert not talk.expected
    assert talk.alg.done


@pytest.mark.parametrize(
    "first",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 900\r\n\r\n",
        b"GET /tunnel HTTP/1.0\r\nx-sessioncookie: 1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"$\0\0\0",
        PUBLIC,
        b"X" * MAX_HEAD,
    ],
)
def test_another_protocol_is_left_alone(first):
    """A stream that does not begin with a request opens nothing, even if a segment of it begins with SETUP."""
    talk = Talk(Rtsp(), 554)
    assert talk.say(CLIENT, first, setup(UNICAST + b"5000-5001")) == first + setup(UNICAST + b"5000-5001")
    assert not talk.expected
    assert talk.alg.done


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 ready\r\n", b"\0", OPTIONS])
def test_a_server_of_another_protocol(first):
    """What was opened for the client is closed when the answer is no answer."""
    talk = Talk(Rtsp(), 554)
    talk.say(CLIENT, setup(UNICAST + b"5000-5001"))
    assert len(talk.expected) == 1
    assert talk.say(SERVER, first) == first
    assert not talk.expected
    assert talk.alg.done


def test_a_server_does_not_speak_first():
    """There is nothing that it could answer."""
    talk = Talk(Rtsp(), 554)
    assert talk.say(SERVER, PUBLIC) == PUBLIC
    assert talk.alg.done


def test_a_refused_port_passes_unchanged():
    """Where no way could be opened the text stays."""
    talk = begun(snat=True, refuse=True)
    assert talk.say(CLIENT, setup(UNICAST + b"5000-5001")) == setup(UNICAST + b"5000-5001")


def test_a_head_without_end():
    """One that is longer than any sensible one is not read, whether it comes in one segment or in many."""
    talk = begun()
    head = setup(UNICAST + b"5000-5001").replace(b"CSeq", b"X: " + b"x" * MAX_HEAD + b"\r\nCSeq")
    assert talk.say(CLIENT, head) == head
    assert not talk.expected
    assert talk.alg.done


def test_floods_are_bounded():
    """Many offers in one request, many requests without an answer, many streams of one session."""
    talk = begun()
    talk.say(CLIENT, setup(b",".join(UNICAST + b"%d-%d" % (p, p + 1) for p in range(2000, 2100, 2))))
    assert len(talk.expected) == MAX_TRANSPORTS
    for n in range(100):
        talk.say(CLIENT, setup(UNICAST + b"%d-%d" % (3000 + 2 * n, 3001 + 2 * n), cseq=n))
    assert len(talk.alg._asked) == MAX_REMEMBERED
    for n in range(100):
        talk.say(CLIENT, setup(UNICAST + b"%d-%d" % (3000 + 2 * n, 3001 + 2 * n), cseq=n))
        talk.say(SERVER, granted(UNICAST + b"%d-%d" % (3000 + 2 * n, 3001 + 2 * n), cseq=n))
    assert len(talk.alg._sessions[b"47"]) == MAX_REMEMBERED


WORDS = (
    b"\r\n",
    b"\n",
    b"$\0\0\4",
    b"RTSP/1.0 ",
    b"Transport: ",
    b";",
    b",",
    b'"',
    b"client_port=",
    b"Content-Length: 9",
)
PARTS = st.sampled_from(
    [OPTIONS, PUBLIC, setup(UNICAST + b"5000-5001"), granted(UNICAST + b"15000-15001;server_port=6970"), *WORDS]
)


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=40) | PARTS), max_size=40))
def test_no_bytes_do_harm(segments):
    """Whatever comes, nothing is raised and the memory stays bounded."""
    talk = begun(snat=True, dnat=True)
    for side, segment in segments:
        talk.say(side, segment)
    assert len(talk.alg._asked) <= MAX_REMEMBERED
    assert len(talk.alg._sessions) <= MAX_REMEMBERED


@given(st.lists(st.integers(0, 600), max_size=12), st.lists(st.integers(0, 600), max_size=12))
def test_no_split_matters(client_cuts, server_cuts):
    """The same text and the same ways, wherever segments end."""
    talk = Talk(Rtsp(), 554, snat=True, dnat=True)
    body = b"ANNOUNCE x RTSP/1.0\r\nContent-Length: 6\r\n\r\nv=0\r\n\n"
    asked, read = (
        b"\r\n" + OPTIONS + body + b"$\1\0\3abc" + setup(UNICAST + p) for p in (b"5000-5001", b"15000-15001")
    )
    assert talk.say(CLIENT, *pieces(asked, client_cuts)) == read
    answer = UNICAST + b"%s;server_port=%s"
    sent = PUBLIC + granted(answer % (b"15000-15001", b"6970-6971")) + b"$\1\0\3abc"
    assert talk.say(SERVER, *pieces(sent, server_cuts)) == (
        PUBLIC + granted(answer % (b"5000-5001", b"16970-16971")) + b"$\1\0\3abc"
    )
    assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR), Expected(SERVER, UDP, 6970, PAIR)]
