"""The MGCP gateway: media ports in the SDP of a media gateway and its call agent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, UDP, Expected
from dataplane.alg.mgcp import MAX_REMEMBERED, Mgcp, Options
from dataplane.alg.sdp import MAX_MEDIA
from tests.conversation import Talk

PAIR = ("rtp", "rtcp")
RESTART = b"RSIP 1 *@gw.example MGCP 1.0\r\nRM: restart\r\n\r\n"
CREATE = b"CRCX 1204 aaln/1@gw.example MGCP 1.0\r\nC: A3C4\r\nL: p:20\r\nM: recvonly\r\n"
DELETE = b"DLCX 1210 aaln/1@gw.example MGCP 1.0\r\n%s"


def sdp(address=b"10.1.0.2", port=5000, family=b"IP4", media=b"m=audio %d RTP/AVP 0\r\n"):
    where = b"IN " + family + b" " + address
    return b"v=0\r\no=- 25678 753849 %s\r\ns=-\r\nc=%s\r\nt=0 0\r\n" % (where, where) + media % port


def created(description, transaction=1204, status=b"200"):
    return b"%s %d OK\r\nI: FDE2\r\n\r\n" % (status, transaction) + description


def begun(options=Options(), **how):  # noqa: B008 - it is immutable
    """The gateway, inside, has registered; the call agent asks it for a connection."""
    talk = Talk(Mgcp(options), 2727, **how)
    assert talk.send(CLIENT, RESTART) == RESTART
    assert talk.send(SERVER, b"200 1 OK\r\n") == b"200 1 OK\r\n"
    assert talk.send(SERVER, CREATE) == CREATE
    return talk


def test_media_may_go_to_a_new_connection():
    """Without translation nothing is changed; the caller is the call agent unless anyone may call."""
    for options in (Options(), Options(anyone=True)):
        talk = begun(options)
        assert talk.send(CLIENT, created(sdp())) == created(sdp())
        assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR, anyone=options.anyone)]


def test_source_translation_rewrites_the_description():
    """Address, port and origin are those outside; a retransmission reads alike."""
    talk = begun(snat=True)
    for _ in range(2):
        assert talk.send(CLIENT, created(sdp())) == created(sdp(b"10.2.0.1", 15000))
    assert len(talk.expected) == 1


def test_ipv6():
    """The same with the other family."""
    talk = begun(snat=True, ipv4=False)
    answer = talk.send(CLIENT, created(sdp(b"fd00:1::2", family=b"IP6")))
    assert answer == created(sdp(b"fd00:2::1", 15000, b"IP6"))


def test_a_gateway_behind_destination_translation():
    """The call agent opens the session and the gateway's side is the server's."""
    talk = Talk(Mgcp(), 2427, dnat=True)
    talk.send(CLIENT, CREATE)
    assert talk.send(SERVER, created(sdp(b"10.2.0.2"))) == created(sdp(b"10.9.9.9", 15000))
    assert talk.expected == [Expected(SERVER, UDP, 5000, PAIR)]


def test_a_call_agent_with_media_of_its_own():
    """What it announces for itself opens a way as well."""
    talk = begun()
    modify = b"MDCX 1205 aaln/1@gw.example MGCP 1.0\r\nC: A3C4\r\nI: FDE2\r\n\r\n" + sdp(b"10.2.0.2", 7000)
    assert talk.send(SERVER, modify) == modify
    assert talk.expected == [Expected(SERVER, UDP, 7000, PAIR)]


def test_each_medium_has_its_own_address_or_the_common_one():
    """Only those that go to the sender are opened and rewritten."""
    talk = begun(snat=True)
    media = b"m=audio %d RTP/AVP 0\r\nm=video 6000 RTP/AVP 31\r\nc=IN IP4 192.0.2.9\r\nm=text 0 RTP/AVP 98\r\n"
    assert talk.send(CLIENT, created(sdp(media=media))) == created(sdp(b"10.2.0.1", 15000, media=media))
    assert [e.port for e in talk.expected] == [5000]


@pytest.mark.parametrize(
    "answer",
    [
        created(sdp(b"10.1.0.3")),
        created(sdp(b"0.0.0.0")),
        created(sdp(b"10.1.0.2/127")),
        created(sdp(b"gw.example")),
        created(sdp(b":::")),
        created(sdp(port=1022)),
        created(sdp(media=b"m=audio %d TCP/RTP/AVP 0\r\n").replace(b"10.1.0.2", b"10.1.0.3")),
        created(sdp(), transaction=1299),
        created(sdp(), status=b"502"),
        created(b"m=audio 5000 RTP/AVP 0\r\n"),
        b"200 1204 OK\r\nI: FDE2\r\n" + sdp(),  # no blank line in front of it
        b"\r\n" + created(sdp()),
        b"NTFY 3 aaln/1@gw.example MGCP 1.0\r\n\r\n" + sdp(),
    ],
)
def test_answers_that_open_nothing(answer):
    """Third parties, services, no media, a failure, no question: they pass as they are."""
    talk = begun(snat=True)
    assert talk.send(CLIENT, answer) == answer
    assert not talk.expected
    assert not talk.alg.done


@pytest.mark.parametrize("of", [b"", b"C: A3C4\r\n", b"C: A3C4\r\nI: FDE2\r\n", b"I: FDE2\r\n"])
def test_deleting_a_connection_closes_its_ports(of):
    """By endpoint, call or connection, those of the call agent's own media too."""
    talk = begun()
    talk.send(CLIENT, created(sdp()))
    talk.send(SERVER, CREATE.replace(b"1204", b"1205") + b"\r\n" + sdp(b"10.2.0.2", 7000))
    talk.send(SERVER, DELETE % of)
    assert sorted(talk.forgotten) == [
        (CLIENT, UDP, 5000),
        (CLIENT, UDP, 5001),
        (SERVER, UDP, 7000),
        (SERVER, UDP, 7001),
    ]


def test_deleting_another_connection_closes_nothing():
    """Nor does that of another endpoint; a wildcard covers all."""
    talk = begun()
    talk.send(CLIENT, created(sdp()))
    for other in (DELETE % b"I: 99\r\n", DELETE % b"C: 99\r\n", DELETE.replace(b"aaln/1", b"aaln/2") % b""):
        talk.send(SERVER, other)
    assert not talk.forgotten
    talk.send(SERVER, DELETE.replace(b"aaln/1", b"*") % b"")
    assert not talk.expected


def test_the_gateway_may_choose_the_endpoint():
    """Its answer names the one that a wildcard has become."""
    talk = begun()
    talk.send(SERVER, CREATE.replace(b"1204", b"1205").replace(b"aaln/1", b"aaln/$"))
    talk.send(CLIENT, b"200 1205 OK\r\nI: FDE3\r\nZ: aaln/2@gw.example\r\n\r\n" + sdp())
    talk.send(SERVER, DELETE % b"")
    assert not talk.forgotten
    talk.send(SERVER, DELETE.replace(b"aaln/1", b"AALN/2") % b"")
    assert not talk.expected


def test_several_messages_in_one_datagram():
    """A line with a dot parts them."""
    talk = begun(snat=True)
    second = CREATE.replace(b"1204", b"1206").replace(b"aaln/1", b"aaln/2")
    talk.send(SERVER, b"200 7 OK\r\n.\r\n250 8 OK\r\n.\r\n" + second)
    answers = created(sdp(b"%s", 0)) + b".\r\n" + created(sdp(b"%s", 0), transaction=1206)
    answers = answers.replace(b"audio 0", b"audio %d")
    own, seen = (b"10.1.0.2",) * 2, (b"10.2.0.1",) * 2
    sent = answers % (*own, 5000, *own, 5002)
    assert talk.send(CLIENT, sent) == answers % (*seen, 15000, *seen, 15002)
    assert [e.port for e in talk.expected] == [5000, 5002]


def test_address_literals_in_names():
    """The sender's own become what the other knows, and back; others stay."""
    talk = begun(snat=True)
    notify = b"NTFY 2 aaln/1@[%s] MGCP 1.0\r\nN: ca@[%s]:2727\r\nZ2: aaln/2@[%s]\r\nXN: a@[10.1.0.2]\r\n"
    own, seen = (b"10.1.0.2", b"10.2.0.2", b"10.1.0.2"), (b"10.2.0.1", b"10.2.0.2", b"10.2.0.1")
    assert talk.send(CLIENT, notify % own) == notify % seen
    command = b"RQNT 3 aaln/1@[%s] MGCP 1.0\r\nN: ca@[%s]:5678\r\n"
    assert talk.send(SERVER, command % (b"10.2.0.1", b"10.7.7.7")) == command % (b"10.1.0.2", b"10.7.7.7")


def test_the_notified_entity_has_a_port():
    """That of the session is translated, another is not known here."""
    talk = begun(snat=True, dnat=True)
    name = b"RSIP 4 *@gw MGCP 1.0\r\nN: gw@[%s]:%d\r\n"
    assert talk.send(CLIENT, name % (b"10.1.0.2", 40000)) == name % (b"10.2.0.1", 1030)
    assert talk.send(CLIENT, name % (b"10.1.0.2", 2427)) == name % (b"10.2.0.1", 2427)
    assert talk.send(CLIENT, name % (b"10.9.9.9", 2727)) == name % (b"10.2.0.2", 2727)
    assert talk.send(CLIENT, name % (b"10.1.0", 2727)) == name % (b"10.1.0", 2727)


@pytest.mark.parametrize("first", [b"\0\1\2", created(sdp()), b"REGISTER sip:x SIP/2.0\r\n\r\n", b"CRCX 1 x MGCP 1.0"])
def test_another_protocol_is_left_alone(first):
    """A session that does not begin with a whole command opens nothing later."""
    talk = Talk(Mgcp(), 2427)
    assert talk.send(CLIENT, first) == first
    assert talk.alg.done


def test_a_server_does_not_speak_first():
    """Who opens the session has something to say."""
    talk = Talk(Mgcp(), 2427)
    talk.send(SERVER, CREATE)
    assert talk.alg.done


def test_names_that_need_not_change_keep_their_spelling():
    """An address that both sides know as the same is left as it was written."""
    talk = begun(dnat=True, ipv4=False)
    notify = b"NTFY 2 aaln/1@[FD00:1:0::2] MGCP 1.0\r\n"
    assert talk.send(CLIENT, notify) == notify


def test_a_refused_port_passes_unchanged():
    """Where no way could be opened the description stays."""
    talk = begun(snat=True, refuse=True)
    assert talk.send(CLIENT, created(sdp())) == created(sdp())


def test_floods_are_bounded():
    """Many commands, many connections, many media."""
    talk = begun()
    for n in range(200):
        talk.send(SERVER, CREATE.replace(b"1204", b"%d" % n))
        talk.send(CLIENT, created(sdp(port=2000 + 2 * n), transaction=n))
    assert len(talk.alg._asked[SERVER]) == len(talk.alg._ports) == MAX_REMEMBERED
    talk.expected.clear()
    media = b"".join(b"m=audio %d RTP/AVP 0\r\n" % port for port in range(3000, 3100))
    talk.send(CLIENT, created(sdp(media=media + b"a=x:%d\r\n"), transaction=199))
    assert len(talk.expected) == MAX_MEDIA


WORDS = (b".\r\n", b"\r\n", b"N: a@[10.1.0.2]:1\r\n", b"c=IN IP4 ", b"m=audio ", b"5000 RTP/AVP 0\r\n", b"@[", b"]")
PARTS = st.sampled_from([RESTART, CREATE, DELETE % b"C: A3C4\r\n", created(sdp()), sdp(), *WORDS])
DATAGRAMS = st.lists(PARTS | st.binary(max_size=20), min_size=1, max_size=8).map(b"".join).filter(bool)


@given(st.lists(st.tuples(st.integers(0, 1), DATAGRAMS), max_size=20))
def test_no_bytes_do_harm(datagrams):
    """Whatever comes, nothing is raised, the memory stays bounded, and without translation nothing is changed."""
    talk, plain = begun(snat=True, dnat=True), begun()
    for side, datagram in datagrams:
        talk.send(side, datagram)
        assert plain.send(side, datagram) == datagram
    assert len(talk.alg._ports) <= MAX_REMEMBERED
