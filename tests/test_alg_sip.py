"""The SIP gateway: a phone inside that calls and is called, and where its media are let in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sipmessage import Message

from dataplane.alg.base import CLIENT, SERVER, TCP, UDP, Expected
from dataplane.alg.sdp import MAX_MEDIA
from dataplane.alg.sip import MAX_CALLS, MAX_FLOWS, MAX_MESSAGE, MAX_PORTS, MAX_SPELLINGS, Options, Sip
from tests.conversation import Talk

PAIR = ("rtp", "rtcp")
IN, OUT = b"10.1.0.2:40000", b"10.2.0.1:1030"  # the phone, and how the other side knows it
PEER = b"10.2.0.2:5060"
AUDIO = b"m=audio %d RTP/AVP 0 8\r\n"


def message(start, *headers, body=b"", length=b"Content-Length"):
    size = b"%s: %d" % (length, len(body))
    return b"\r\n".join([start, *headers, size, b"", body])


def sdp(address=b"10.1.0.2", media=AUDIO % 5000, family=b"IP4"):
    where = b"IN %s %s" % (family, address)
    return b"v=0\r\no=alice 1 1 %s\r\ns=-\r\nc=%s\r\nt=0 0\r\n" % (where, where) + media


def request(method=b"INVITE", phone=IN, *, body=b"", call=b"1", number=1, transport=b"UDP", via=None, contact=None):
    """What the phone sends; `phone` is how it is named in it."""
    return message(
        b"%s sip:bob@10.2.0.2 SIP/2.0" % method,
        b"Via: SIP/2.0/%s %s;rport;branch=z9hG4bK%d" % (transport, via or phone, number),
        b"Max-Forwards: 70",
        b'From: "Alice" <sip:alice@%s>;tag=a' % phone,
        b"To: <sip:bob@10.2.0.2>",
        b"Call-ID: %s@10.1.0.2" % call,
        b"CSeq: %d %s" % (number, method),
        b"Contact: <sip:alice@%s;ob>" % (contact or phone),
        b"Content-Type: application/sdp",
        body=body,
    )


def answer(
    status=b"200 OK",
    phone=OUT,
    *,
    body=b"",
    call=b"1",
    number=1,
    method=b"INVITE",
    transport=b"UDP",
    seen=b"",
    tag=b"b",
):
    """What the other side answers to it."""
    return message(
        b"SIP/2.0 " + status,
        b"Via: SIP/2.0/%s %s%s;branch=z9hG4bK%d" % (transport, phone, seen, number),
        b'From: "Alice" <sip:alice@%s>;tag=a' % phone,
        b"To: <sip:bob@10.2.0.2>;tag=" + tag,
        b"Call-ID: %s@10.1.0.2" % call,
        b"CSeq: %d %s" % (number, method),
        b"Contact: <sip:bob@10.2.0.2:5060>",
        b"Content-Type: application/sdp",
        body=body,
    )


def call(options=Options(), **how):  # noqa: B008 - it is immutable
    return Talk(Sip(options), 5060, **how)


def opened(talk):
    return [(expected.side, expected.port, expected.applications) for expected in talk.expected]


def test_a_call_without_translation():
    """Both sides' media may come; not a byte changes."""
    talk = call()
    for side, text in (
        (CLIENT, request(body=sdp())),
        (SERVER, answer(b"180 Ringing", IN)),
        (SERVER, answer(phone=IN, body=sdp(b"10.2.0.2", AUDIO % 7000))),
        (CLIENT, request(b"ACK")),
    ):
        assert talk.send(side, text) == text
    assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR), Expected(SERVER, UDP, 7000, PAIR)]


def test_source_translation_is_undone_in_the_answer():
    """The other side reads the outside address and port everywhere, the phone its own; the lengths are right."""
    talk = call(snat=True)
    assert talk.send(CLIENT, request(body=sdp())) == request(phone=OUT, body=sdp(b"10.2.0.1", AUDIO % 15000))
    theirs = sdp(b"10.2.0.2", AUDIO % 7000)
    seen = b";received=%s;rport=%s"
    received = talk.send(SERVER, answer(body=theirs, seen=seen % (b"10.2.0.1", b"1030")))
    assert received == answer(phone=IN, body=theirs, seen=seen % (b"10.1.0.2", b"40000"))
    assert opened(talk) == [(CLIENT, 5000, PAIR), (SERVER, 7000, PAIR)]


def test_retransmissions_read_alike():
    """A repeated INVITE opens nothing more."""
    talk = call(snat=True)
    assert talk.send(CLIENT, request(body=sdp())) == talk.send(CLIENT, request(body=sdp()))
    assert len(talk.expected) == 1


def test_the_phone_is_called():
    """The request goes to the outside contact and arrives for the inside one; its answer goes out translated."""
    talk = call(snat=True)
    assert talk.send(CLIENT, request(b"REGISTER")) == request(b"REGISTER", OUT)
    invite = message(
        b"INVITE sip:alice@%s;ob SIP/2.0",
        b"v: SIP/2.0/UDP 10.2.0.2:5060;branch=z9hG4bKs",
        b"f: <sip:bob@10.2.0.2>;tag=b",
        b"t: <sip:alice@%s>",
        b"i: 9@10.2.0.2",
        b"CSeq: 1 INVITE",
        b"m: <sip:bob@10.2.0.2:5060>",
        b"c: application/sdp",
        body=sdp(b"10.2.0.2", AUDIO.replace(b"%d", b"7000")),
    )
    assert talk.send(SERVER, invite % (OUT, OUT)) == invite % (IN, IN)
    ok = [b"SIP/2.0 200 OK", b"v: SIP/2.0/UDP 10.2.0.2:5060;branch=z9hG4bKs", b"i: 9@10.2.0.2", b"CSeq: 1 INVITE"]
    sent = message(*ok, b"m: <sip:alice@%s>" % IN, b"c: application/sdp", body=sdp(), length=b"l")
    outside = sdp(b"10.2.0.1", AUDIO % 15000)
    assert talk.send(CLIENT, sent) == message(
        *ok, b"m: <sip:alice@%s>" % OUT, b"c: application/sdp", body=outside, length=b"l"
    )
    assert opened(talk) == [(SERVER, 7000, PAIR), (CLIENT, 5000, PAIR)]


def test_destination_translation():
    """The server inside is known by another address; it reads and announces its own."""
    talk = call(dnat=True)
    invite = request(body=sdp()).replace(b"10.2.0.2", b"10.9.9.9")
    assert talk.send(CLIENT, invite) == request(body=sdp())
    theirs = answer(phone=IN, body=sdp(b"10.2.0.2", AUDIO % 7000))
    outside = answer(phone=IN, body=sdp(b"10.9.9.9", AUDIO % 17000)).replace(b"10.2.0.2", b"10.9.9.9")
    assert talk.send(SERVER, theirs) == outside


def test_an_untranslated_side_is_not_spelled_anew():
    """Beside the other side's translation its own text stays, however it writes numbers."""
    talk = call(dnat=True, ipv4=False)
    body = sdp(b"FD00:1:0::2", b"m=audio 05000 RTP/AVP 0\r\n", b"IP6")
    sent = request(phone=b"[FD00:1:0::2]:40000", body=body)
    assert talk.send(CLIENT, sent) == sent
    assert opened(talk) == [(CLIENT, 5000, PAIR)]


def test_ipv6():
    """Addresses stand in brackets in URIs and in Via; `received` has them bare or not."""
    phone, out = b"[fd00:1::2]:40000", b"[fd00:2::1]:1030"
    talk = call(snat=True, ipv4=False)
    sent = request(phone=phone, body=sdp(b"fd00:1::2", family=b"IP6"))
    assert talk.send(CLIENT, sent) == request(phone=out, body=sdp(b"fd00:2::1", AUDIO % 15000, b"IP6"))
    for form in (b"%s", b"[%s]"):
        seen = b";rport=%d;received=" + form
        assert talk.send(SERVER, answer(phone=out, seen=seen % (1030, b"fd00:2::1"))) == answer(
            phone=phone, seen=seen % (40000, b"fd00:1::2")
        )
    mapped = request(phone=phone, body=sdp(b"::ffff:10.1.0.2", family=b"IP6"), call=b"2")
    assert b"::ffff:10.1.0.2" in talk.send(CLIENT, mapped)
    assert opened(talk) == [(CLIENT, 5000, PAIR)]


def test_a_port_that_is_left_out_comes_back_so():
    """What was written without a port is given the outside one where the other side will answer to."""
    talk = call(snat=True)
    sent = request(phone=b"10.1.0.2")
    expected = request(phone=b"10.2.0.1", via=OUT, contact=OUT)
    assert talk.send(CLIENT, sent) == expected
    back = answer(phone=OUT).replace(b"alice@" + OUT, b"alice@10.2.0.1")
    assert talk.send(SERVER, back) == answer(phone=b"10.1.0.2")


@pytest.mark.parametrize(
    ("transport", "parameter", "proto"), [(b"UDP", b"", UDP), (b"UDP", b";transport=tcp", TCP), (b"TCP", b"", TCP)]
)
def test_signalling_is_taken_at_another_port(transport, parameter, proto):
    """A Contact that names a port of its own is let in there, under a number of its own outside."""
    talk = call(snat=True)
    for _ in range(2):
        sent = request(b"REGISTER", transport=transport, contact=b"10.1.0.2:5080" + parameter)
        outside = request(b"REGISTER", OUT, transport=transport, contact=b"10.2.0.1:15080" + parameter)
        assert talk.send(CLIENT, sent) == outside
    assert talk.expected == [Expected(CLIENT, proto, 5080, ("sip",))]
    asked = b"OPTIONS sip:alice@%s SIP/2.0\r\nVia: SIP/2.0/UDP 10.2.0.2\r\nCall-ID: 3\r\nContent-Length: 0\r\n\r\n"
    assert talk.send(SERVER, asked % b"10.2.0.1:15080") == asked % b"10.1.0.2:5080"


def test_answers_are_asked_for_at_another_port():
    """Without rport they come to the port in Via, so that it is opened; with it they come back the way."""
    for rport, ports in ((b";rport", []), (b"", [5070])):
        talk = call(snat=True)
        sent = request(b"OPTIONS", via=b"10.1.0.2:5070").replace(b";rport", rport)
        outside = talk.send(CLIENT, sent)
        assert b"10.2.0.1:" + (b"15070" if ports else b"1030") in outside
        assert [expected.port for expected in talk.expected] == ports
        via = outside.split(b"\r\n")[1]
        assert sent.split(b"\r\n")[1] in talk.send(
            SERVER,
            answer(method=b"OPTIONS")
            .replace(b"Max-Forwards: 70", via)
            .replace(b"Via: SIP/2.0/UDP %s;branch=z9hG4bK1" % OUT, via),
        )


def test_only_the_phones_own_hop_is_renamed():
    """A list of several hops, in Via and in Record-Route, and what others have noted in theirs."""
    talk = call(snat=True)
    talk.send(CLIENT, request())
    routed = answer().replace(
        b"Via: SIP/2.0/UDP %s" % OUT,
        b'Record-Route: <sip:10.2.0.2;lr>, "sip:%s" <sip:px@%s;lr>\r\n'
        b"Via: SIP/2.0/UDP 10.7.7.7;received=10.7.7.8;rport=1030, SIP/2.0/UDP %s;received=10.2.0.1;rport=1030"
        % (OUT, OUT, OUT),
    )
    renamed = routed.replace(OUT, IN).replace(b"received=10.2.0.1;rport=1030", b"received=10.1.0.2;rport=40000")
    assert talk.send(SERVER, routed) == renamed.replace(b'"sip:%s"' % IN, b'"sip:%s"' % OUT)


def test_rtcp_elsewhere_and_several_media():
    """RTCP is next to RTP unless a=rtcp or a=rtcp-mux says otherwise; a c= of its own counts before the common one."""
    media = (
        b"m=audio %d RTP/AVP 0\r\na=rtcp:%d\r\n"
        b"m=audio %d RTP/SAVPF 0\r\na=rtcp-mux\r\n"
        b"m=video %d/2 RTP/AVP 31\r\nc=IN IP4 %s\r\na=rtcp:%d IN IP4 %s\r\n"
        b"m=video 5070 RTP/AVP 31\r\nc=IN IP4 192.0.2.9\r\n"
        b"m=image %d udptl t38\r\n"
        b"m=audio 0 RTP/AVP 0\r\n"
        b"m=message 5090 TCP/MSRP *\r\n"
    )
    talk = call(snat=True)
    inside = media % (5000, 6000, 5020, 5040, b"10.1.0.2", 5041, b"10.1.0.2", 5080)
    outside = media % (15000, 16000, 15020, 15040, b"10.2.0.1", 15041, b"10.2.0.1", 15080)
    assert talk.send(CLIENT, request(body=sdp(media=inside))) == request(phone=OUT, body=sdp(b"10.2.0.1", outside))
    assert opened(talk) == [
        (CLIENT, 5000, ("rtp",)),
        (CLIENT, 6000, ("rtcp",)),
        (CLIENT, 5020, ("rtp",)),
        (CLIENT, 5040, PAIR * 2),
        (CLIENT, 5080, ("rtp",)),
    ]


def test_somebody_elses_rtcp():
    """It passes as it is and only RTP is opened."""
    talk = call(snat=True)
    media = AUDIO + b"a=rtcp:5000 IN IP4 192.0.2.9\r\n"
    sent = request(body=sdp(media=media % 5000))
    assert talk.send(CLIENT, sent) == request(
        phone=OUT, body=sdp(b"10.2.0.1", media % 15000).replace(b"rtcp:15000", b"rtcp:5000")
    )
    assert opened(talk) == [(CLIENT, 5000, ("rtp",))]


@pytest.mark.parametrize(
    "body",
    [
        sdp(b"10.1.0.3"),
        sdp(b"203.0.113.9"),
        sdp(b"phone.example"),
        sdp(b"10.1.0.2", family=b"IP6"),
        sdp(b"::ffff:10.1.0.2"),
        sdp(b"::ffff:10.1.0.2", family=b"IP6"),
        sdp(media=AUDIO % 22),
        sdp(media=AUDIO % 22 + b"a=rtcp:5001\r\n"),
        sdp(media=b"m=audio 65536 RTP/AVP 0\r\n"),
        sdp(media=b"m=audio 5000/99 RTP/AVP 0\r\n"),
        sdp(media=b"m=message 5000 TCP/MSRP *\r\n"),
        b"x" + sdp().replace(b"\r\n", b" "),
    ],
)
def test_announcements_that_open_nothing(body):
    """Somebody else's address, a service, no port: the description passes unchanged."""
    talk = call(snat=True)
    assert talk.send(CLIENT, request(body=body)) == request(phone=OUT, body=body)
    assert not talk.expected


def test_hold_and_rejection():
    """c=0.0.0.0 and port 0 open nothing; who made the description is named alike all through a call."""
    talk = call(snat=True)
    held = sdp().replace(b"c=IN IP4 10.1.0.2", b"c=IN IP4 0.0.0.0")
    assert talk.send(CLIENT, request(body=held)) == request(phone=OUT, body=held.replace(b"10.1.0.2", b"10.2.0.1"))
    refused = sdp(media=AUDIO % 0)
    assert talk.send(CLIENT, request(body=refused)) == request(
        phone=OUT, body=refused.replace(b"10.1.0.2", b"10.2.0.1")
    )
    assert not talk.expected


def test_a_refused_expectation_changes_no_description():
    """Where no port can be had, the other side is not told one."""
    talk = call(snat=True, refuse=True)
    assert talk.send(CLIENT, request(body=sdp())) == request(phone=OUT, body=sdp())


def test_a_request_from_somewhere_else():
    """A topmost Via that is not the sender's: nothing is opened, neither for media nor for signalling."""
    for via in (b"10.1.0.3:40000", b"phone.example", b"203.0.113.7"):
        talk = call(snat=True)
        body = sdp()
        out = talk.send(CLIENT, request(body=body, via=via, contact=b"10.1.0.2:5080"))
        assert out.endswith(body)
        assert not talk.expected


def test_an_answer_to_nothing():
    """A side that nobody has asked opens nothing."""
    talk = call()
    talk.send(CLIENT, request(body=sdp()))
    unasked = answer(phone=IN, call=b"other", body=sdp(b"10.2.0.2", AUDIO % 7000))
    talk.send(SERVER, unasked.replace(b"bob@10.2.0.2:5060", b"bob@10.2.0.2:5080"))
    assert opened(talk) == [(CLIENT, 5000, PAIR)]


def test_pinholes_only():
    """With rewrite off the way is opened and no text is touched; anyone may send media if so set."""
    talk = call(Options(rewrite=False, anyone=True), snat=True)
    assert talk.send(CLIENT, request(body=sdp())) == request(body=sdp())
    assert talk.expected == [Expected(CLIENT, UDP, 5000, PAIR, anyone=True)]


def test_bye_closes_what_has_not_come():
    """Of this call, and not what another uses too."""
    talk = call()
    talk.send(CLIENT, request(body=sdp(media=AUDIO % 5000 + AUDIO % 5010)))
    talk.send(CLIENT, request(body=sdp(media=AUDIO % 5010), call=b"2"))
    talk.send(SERVER, answer(phone=IN, body=sdp(b"10.2.0.2", AUDIO % 7000)))
    talk.send(CLIENT, request(b"BYE", number=2))
    assert set(talk.forgotten) == {(CLIENT, UDP, 5000), (CLIENT, UDP, 5001), (SERVER, UDP, 7000), (SERVER, UDP, 7001)}
    talk.send(CLIENT, request(b"BYE", number=3))
    assert opened(talk) == [(CLIENT, 5010, PAIR)]


@pytest.mark.parametrize("status", [b"487 Request Terminated", b"486 Busy Here", b"503 Service Unavailable", b"603 No"])
def test_a_final_error_closes_what_its_invite_has_opened(status):
    """CANCEL's 487 among them; the answer to CANCEL itself closes nothing."""
    talk = call()
    talk.send(CLIENT, request(body=sdp()))
    talk.send(SERVER, answer(b"183 Session Progress", IN, body=sdp(b"10.2.0.2", AUDIO % 7000)))
    talk.send(CLIENT, request(b"CANCEL"))
    talk.send(SERVER, answer(b"481 No Such Call", IN, method=b"CANCEL"))
    assert len(talk.expected) == 2
    talk.send(SERVER, answer(status, IN))
    assert not talk.expected


def test_a_failed_reinvite_leaves_the_call():
    """What the call had before stays; the other side's number is not this side's."""
    talk = call()
    talk.send(CLIENT, request(body=sdp()))
    talk.send(CLIENT, request(body=sdp(media=AUDIO % 5000 + AUDIO % 5010), number=2))
    talk.send(CLIENT, answer(b"488 Not Acceptable Here", IN, number=2))
    assert not talk.forgotten
    talk.send(SERVER, answer(b"488 Not Acceptable Here", IN, number=2))
    assert opened(talk) == [(CLIENT, 5000, PAIR)]


def test_slipstreaming():
    """A stream that did not begin as SIP opens nothing, though a segment looks like it."""
    register = request(b"REGISTER", transport=b"TCP", contact=b"10.1.0.2:8080")
    for beginning in (b"POST / HTTP/1.1\r\nHost: evil\r\n\r\n", b"\x16\x03\x01", b"220 ftp\r\n", b"INVITE /"):
        talk = call(snat=True)
        talk.say(SERVER, answer())  # a server that speaks first, as SIP over UDP would
        assert talk.say(CLIENT, beginning, register) == beginning + register
        assert talk.alg.done
        assert not talk.expected


def test_a_stream_that_strays():
    """What follows a good message has to be a message."""
    talk = call(snat=True)
    first, second = request(b"OPTIONS", transport=b"TCP"), request(transport=b"TCP", body=sdp())
    assert talk.say(CLIENT, first + b"!" + second) == request(b"OPTIONS", OUT, transport=b"TCP") + b"!" + second
    assert talk.alg.done


def test_bad_lengths():
    """Two lengths that differ, or none that is a number, end it."""
    good = request(transport=b"TCP", body=sdp())
    for bad in (
        good.replace(b"Max-Forwards: 70", b"l: 1"),
        good.replace(b"Length: ", b"Length: -"),
        b"INVITE sip:a SIP/2.0\r\n\r\n",
    ):
        talk = call(snat=True)
        assert talk.say(CLIENT, bad) == bad
        assert talk.alg.done
        assert not talk.expected


def test_a_message_that_is_too_long():
    """It passes, and so does everything after."""
    talk = call(snat=True)
    long = request(transport=b"TCP", body=b"x" * MAX_MESSAGE)
    assert talk.say(CLIENT, long[:2000], long[2000:]) == long
    assert talk.alg.done


def test_keep_alives():
    """Blank lines between messages pass; among datagrams, so does what is no message."""
    talk = call(snat=True)
    one, out = request(transport=b"TCP"), request(phone=OUT, transport=b"TCP")
    assert talk.say(CLIENT, b"\r\n\r\n" + one + b"\r\n", b"\r\n" + one) == b"\r\n\r\n" + out + b"\r\n\r\n" + out
    talk = call(snat=True)
    assert talk.send(CLIENT, request()) == request(phone=OUT)
    for odd in (b"\0", b"\r\n", b"jaK", b"\x00\x01\x00\x00!\x12\xa4B", request()[:50], request()[:-4]):
        assert talk.send(CLIENT, odd) == odd
    assert talk.send(CLIENT, request(body=sdp())) == request(phone=OUT, body=sdp(b"10.2.0.1", AUDIO % 15000))


def test_a_datagram_may_leave_out_its_length_and_have_padding():
    """Its end is the body's; what is behind a body of known length goes on behind it."""
    talk = call(snat=True)
    unsaid = [
        b"\r\n".join(p for p in r.split(b"\r\n") if not p.startswith(b"Content-L"))
        for r in (request(body=sdp()), request(phone=OUT, body=sdp(b"10.2.0.1", AUDIO % 15000)))
    ]
    assert talk.send(CLIENT, unsaid[0]) == unsaid[1]
    assert talk.send(CLIENT, request() + b"\0\0") == request(phone=OUT) + b"\0\0"


def test_folded_lines_and_odd_spelling():
    """A header may go on in the next line, and names and schemes have no case."""
    talk = call(snat=True)
    odd = message(
        b"OPTIONS urn:service:sos SIP/2.0",
        b"vIa  :\r\n SIP / 2.0 /UDP\r\n\t%s ; rport",
        b"CALL-id:1",
        b'm:  "a \\" <sip:%s>" <SIP:a:pw@%s>;self=1,sip:b@%s;expires=5',
        b"To: <sip:*72#@10.1.0.2>, <tel:+1>, *",
    )
    assert talk.send(CLIENT, odd % (IN, IN, IN, IN)) == odd % (OUT, IN, OUT, OUT)


CONVERSATION = [
    (CLIENT, request(transport=b"TCP", body=sdp())),
    (SERVER, b"\r\n\r\n" + answer(b"180 Ringing", transport=b"TCP")),
    (SERVER, answer(transport=b"TCP", body=sdp(b"10.2.0.2", AUDIO % 7000))),
    (CLIENT, request(b"ACK", transport=b"TCP") + b"\r\n" + request(b"UPDATE", number=2, transport=b"TCP", body=sdp())),
    (SERVER, answer(b"500 No", method=b"UPDATE", number=2, transport=b"TCP")),
]


@given(st.lists(st.integers(1, 400), max_size=12))
def test_how_a_stream_is_cut_does_not_matter(lengths):
    """Every segmentation gives the same text and the same expectations."""

    def played(cut):
        talk = call(snat=True)
        return [talk.say(side, *cut(text)) for side, text in CONVERSATION], talk.expected, talk.alg.done

    def cut(text):
        for length in lengths:
            yield text[:length]
            text = text[length:]
        yield text

    assert played(cut) == played(lambda text: [text])


FRAGMENTS = [
    b"\r\n", b"\r\n\r\n", b" ", b"\0", b'"', b"\\", b",", b";", b"<", b"\xff", IN, OUT, b"sip:", b"[fd00:1::2]",
    b"[::%1]",
    b"SIP/2.0 200 OK\r\n", b"INVITE sip:a@10.1.0.2 SIP/2.0\r\n", b"Via: SIP/2.0/UDP ", b"Contact: <sip:", b"i: 1",
    b"v:SIP/2.0/TCP 10.1.0.2;rport=1030", b"CSeq: 1 INVITE", b"Content-Length: ", b"l: 99999999", b"9" * 5000, sdp(),
    b"c: application/sdp;self=1", AUDIO % 65535, b"m=audio 65535/4 RTP/AVP 0 0", b"c=IN IP4 10.1.0.2", b"a=rtcp:0",
    request(body=sdp()), answer(),
]  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8))))
)
def test_anything_may_come(texts):
    """No bytes make it fail or remember without bound, and without translation none are changed."""
    for translated in (False, True):
        talk = call(snat=translated)
        for side, parts in texts:
            datagram = b"".join(parts)
            if datagram and not talk.alg.done:
                out = talk.send(side, datagram)
                assert translated or out == datagram
    assert all(len(ports) <= MAX_PORTS for ports in talk.alg._calls.values())


def test_floods_are_bounded():
    """Calls, ports and spellings: the newest are kept."""
    talk = call(snat=True)
    for number in range(MAX_CALLS + 40):
        body = sdp(media=AUDIO % (2000 + 2 * number))
        talk.send(CLIENT, request(call=b"%d" % number, body=body, contact=b"10.1.0.2:%d" % (20000 + number)))
        talk.send(CLIENT, request(call=b"many", body=body, number=number))
    contacts = b">, <sip:a@".join(b"10.1.0.2:%d" % port for port in range(30000, 30100))
    talk.send(CLIENT, request(contact=contacts))
    assert len([expected for expected in talk.expected if expected.port >= 30000]) == MAX_FLOWS
    talk.send(CLIENT, request(call=b"x" * 1000, body=sdp(media=AUDIO % 4000)))
    assert 4000 not in [expected.port for expected in talk.expected]
    many = b"".join(AUDIO % port for port in range(40000, 42000, 2))
    talk.send(CLIENT, request(call=b"many", body=sdp(media=many)))
    assert len([expected for expected in talk.expected if expected.port >= 40000]) == MAX_MEDIA
    assert len(talk.alg._calls) == MAX_CALLS
    assert len(talk.alg._calls[b"many@10.1.0.2"]) == MAX_PORTS
    assert len(talk.alg._spelled) == MAX_SPELLINGS


@pytest.mark.parametrize(
    "filler",
    [b'"\\', b"sip:a@", b"sip:", b",SIP/2.0/UDP 10.1.0.2", b"<sip:10.1.0.2>,", b"a:\r\n", b" ", b"\r\n ", b"a."],
)
def test_hostile_repetition(filler):
    """What the patterns might stumble over, as much of it as fits; the time limit of a test is the oracle."""
    talk = call(snat=True)
    for head in (b"INVITE sip:a SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.0.2;", b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h\r\nm: "):
        for size in (4000, 60000):
            text = head + filler * (size // len(filler)) + b"\\\r\nCall-ID: 1\r\n\r\n"
            talk.send(CLIENT, text)


@pytest.mark.parametrize("method", [b"INVITE", b"ACK", b"BYE", b"CANCEL", b"REGISTER", b"PRACK", b"UPDATE", b"OPTIONS"])
def test_an_independent_reader_agrees(method):
    """sipmessage reads outside what we meant to write, body and length included."""
    talk = call(snat=True)
    outside = Message.parse(talk.send(CLIENT, request(method, body=sdp())))
    assert (outside.via[0].host, outside.via[0].port) == ("10.2.0.1", 1030)
    assert (outside.contact[0].uri.host, outside.contact[0].uri.port) == ("10.2.0.1", 1030)
    assert outside.content_length == len(outside.body)
