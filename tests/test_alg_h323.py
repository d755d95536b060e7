"""The H.323 gateway: a call's signalling and its media control, the messages made by pycrate."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrate_asn1dir.H225 import H323_MESSAGES, MULTIMEDIA_SYSTEM_CONTROL
from pycrate_asn1rt.codecs import ASN1CodecPER

from dataplane.alg.base import CLIENT, LEAST_PORT, SERVER, TCP, UDP, Expected
from dataplane.alg.h323 import H225, H245, MAX_FLOWS, MAX_MESSAGE, MAX_NESTED
from tests.conversation import Talk

SETUP, PROCEEDING, ALERTING, CONNECT, PROGRESS, FACILITY, RELEASE_COMPLETE = 0x05, 0x02, 0x01, 0x07, 0x03, 0x62, 0x5A
BEARER, DISPLAY = bytes.fromhex("0403 8893a5"), b"\x28\x06alice\0"
SENDING_COMPLETE = b"\xa1"  # an element of one byte
KEEP_ALIVE = b"\x03\x00\x00\x04"
ROOM = {"conferenceID": bytes(range(16)), "conferenceGoal": ("create", 0), "callType": ("pointToPoint", 0)}
MULTIPLE = {"multipleCalls": False, "maintainConnection": False}
END_POINT = {"mc": False, "undefinedNode": False}
END_POINT_VENDOR = {"t35CountryCode": 9, "t35Extension": 0, "manufacturerCode": 61}
CLIENT_PORTS = "10.1.0.2:500", "10.2.0.1:1500"  # as it knows them and as the server does; a digit is to follow
AUDIO = ("audioData", ("g711Ulaw64k", 20))
NONE = {"dataType": ("nullData", 0), "multiplexParameters": ("none", 0)}


def encoded(kind, value):
    kind.set_val(value)
    return kind.to_aper()


def tpkt(body):
    return b"\x03\x00" + (len(body) + 4).to_bytes(2) + body


def q931(kind, information, reference=0x1234):
    user_user = b"\x7e" + (len(information) + 1).to_bytes(2) + b"\x05" + information
    return tpkt(b"\x08\x02" + reference.to_bytes(2) + bytes([kind]) + BEARER + DISPLAY + SENDING_COMPLETE + user_user)


def fields_of(text, host, port):
    """10.1.0.2:5000 or fd00:1::2:5000 as the two fields of an address."""
    said, _, number = text.rpartition(":")
    return {host: ip_address(said).packed, port: int(number)}


def signal_address(text):
    return ("ip6Address" if text.count(":") > 1 else "ipAddress"), fields_of(text, "ip", "port")


def media_address(text, cast="unicastAddress"):
    return cast, (("iP6Address" if text.count(":") > 1 else "iPAddress"), fields_of(text, "network", "tsapIdentifier"))


def uuie(kind, name, control=(), reference=0x1234, **fields):
    """A signalling message; a field that is a text is an address."""
    body = {key: signal_address(value) if isinstance(value, str) else value for key, value in fields.items()}
    pdu = {"h323-message-body": (name, {"protocolIdentifier": (0, 0, 8, 2250, 0, 5)} | body), "h245Tunnelling": True}
    if control:
        pdu["h245Control"] = list(control)
    return q931(kind, encoded(H323_MESSAGES.H323_UserInformation, {"h323-uu-pdu": pdu}), reference)


def setup(**fields):
    known = {"sourceInfo": END_POINT, "activeMC": False, "mediaWaitForConnect": False, "canOverlapSend": False}
    return uuie(SETUP, "setup", **(known | ROOM | MULTIPLE | fields))


def proceeding(**fields):
    return uuie(PROCEEDING, "callProceeding", **({"destinationInfo": END_POINT} | MULTIPLE | fields))


def connect(**fields):
    known = {"destinationInfo": END_POINT, "conferenceID": bytes(16)}
    return uuie(CONNECT, "connect", **(known | MULTIPLE | fields))


def facility(**fields):
    return uuie(FACILITY, "facility", reason=("startH245", 0), **(MULTIPLE | fields))


def empty(control):
    """A Facility that is there for what it carries."""
    pdu = {"h323-message-body": ("empty", 0), "h245Tunnelling": True, "h245Control": control}
    return q931(FACILITY, encoded(H323_MESSAGES.H323_UserInformation, {"h323-uu-pdu": pdu}))


def release(reference=0x1234):
    return uuie(RELEASE_COMPLETE, "releaseComplete", reference=reference)


def media(rtp, rtcp, cast="unicastAddress"):
    said = {"mediaChannel": rtp, "mediaControlChannel": rtcp}
    return {"sessionID": 1} | {name: media_address(text, cast) for name, text in said.items() if text}


def channel(number, rtp="", rtcp="", reverse=False, cast="unicastAddress"):
    """An OpenLogicalChannel, as it stands in fastStart."""
    way = {"dataType": AUDIO, "multiplexParameters": ("h2250LogicalChannelParameters", media(rtp, rtcp, cast))}
    ways = {"forwardLogicalChannelParameters": NONE, "reverseLogicalChannelParameters": way}
    return {"forwardLogicalChannelNumber": number} | (ways if reverse else {"forwardLogicalChannelParameters": way})


def fast(*args, **how):
    return encoded(MULTIMEDIA_SYSTEM_CONTROL.OpenLogicalChannel, channel(*args, **how))


def control(group, name, value):
    return encoded(MULTIMEDIA_SYSTEM_CONTROL.MultimediaSystemControlMessage, (group, (name, value)))


def opening(*args, **how):
    return control("request", "openLogicalChannel", channel(*args, **how))


def accepting(number, rtp="", rtcp=""):
    parameters = ("h2250LogicalChannelAckParameters", media(rtp, rtcp))
    value = {"forwardLogicalChannelNumber": number, "forwardMultiplexAckParameters": parameters}
    return control("response", "openLogicalChannelAck", value)


def closing(number):
    return control("request", "closeLogicalChannel", {"forwardLogicalChannelNumber": number, "source": ("user", 0)})


CAPABILITIES = control(
    "request", "terminalCapabilitySet", {"sequenceNumber": 1, "protocolIdentifier": (0, 0, 8, 245, 0, 7)}
)
DETERMINATION = control("request", "masterSlaveDetermination", {"terminalType": 50, "statusDeterminationNumber": 7})
END_SESSION = control("command", "endSessionCommand", ("disconnect", 0))


def pair(side, port):
    return Expected(side, UDP, port, ("rtp", "rtcp"))


def h245(side, port):
    return Expected(side, TCP, port, ("h.245",))


def called(**how):
    """A call that the server is working on."""
    talk = Talk(H225(), 1720, **how)
    assert talk.say(CLIENT, setup()) == setup()
    assert talk.say(SERVER, proceeding()) == proceeding()
    return talk


def controlled(**how):
    """A control channel on which both have spoken."""
    talk = Talk(H245(), 30000, **how)
    for side in (CLIENT, SERVER):
        assert talk.say(side, tpkt(CAPABILITIES) + tpkt(DETERMINATION)) == tpkt(CAPABILITIES) + tpkt(DETERMINATION)
    return talk


def unchanged(talk, side, *messages):
    """They pass as they are and open nothing; the session goes on."""
    for message in messages:
        assert talk.say(side, message) == message
        assert not talk.expected
    assert not talk.alg.done


# Call signalling


@pytest.mark.parametrize(
    "message",
    [
        lambda **at: uuie(ALERTING, "alerting", destinationInfo=END_POINT, **MULTIPLE, **at),
        lambda **at: uuie(PROGRESS, "progress", destinationInfo=END_POINT, callIdentifier={"guid": bytes(16)}, **at),
        connect,
        facility,
        proceeding,
    ],
)
def test_the_server_says_where_it_waits_for_media_control(message):
    """In any message of a call; the client reads the outside address, and the rest of the message is the same."""
    inside, outside = message(h245Address="10.2.0.2:30000"), message(h245Address="10.9.9.9:40000")
    talk = called()
    assert talk.say(SERVER, inside) == inside
    assert talk.expected == [h245(SERVER, 30000)]
    assert called(dnat=True).say(SERVER, inside) == outside
    assert called(snat=True).say(SERVER, inside) == inside


def test_the_client_may_wait_for_it_too():
    """In its Setup or later in a Facility."""
    talk = Talk(H225(), 1720, snat=True)
    assert talk.say(CLIENT, setup(h245Address="10.1.0.2:30000")) == setup(h245Address="10.2.0.1:40000")
    assert talk.say(SERVER, proceeding()) == proceeding()
    assert talk.say(CLIENT, facility(h245Address="10.1.0.2:30002")) == facility(h245Address="10.2.0.1:40002")
    assert talk.expected == [h245(CLIENT, 30000), h245(CLIENT, 30002)]


def test_both_ends_of_the_call_are_named_as_the_reader_knows_them():
    """The connection's own ports are translated with it; another port of the client, 1720 say, stays what it is."""
    said = setup(sourceCallSignalAddress="10.1.0.2:40000", destCallSignalAddress="10.9.9.9:1720")
    read = setup(sourceCallSignalAddress="10.2.0.1:1030", destCallSignalAddress="10.2.0.2:1720")
    assert Talk(H225(), 1720, snat=True, dnat=True).say(CLIENT, said) == read
    listening, translated = (setup(sourceCallSignalAddress=f"{host}:1720") for host in ("10.1.0.2", "10.2.0.1"))
    assert Talk(H225(), 1720, snat=True).say(CLIENT, listening) == translated
    assert Talk(H225(), 1720).say(CLIENT, said) == said


def offer(host, port):
    """Two codecs for each way, all on one pair of ports."""
    rtp, rtcp = f"{host}:{port}", f"{host}:{port + 1}"
    ways = [(1, "", rtcp, False), (2, rtp, rtcp, True), (3, "", rtcp, False), (4, rtp, rtcp, True)]
    return [fast(*way[:3], reverse=way[3]) for way in ways]


def test_fast_start_announces_the_media_of_both_ways():
    """The offer names the same ports again and again: each place is translated, one pair is expected."""
    talk = Talk(H225(), 1720, snat=True, dnat=True)
    assert talk.say(CLIENT, setup(fastStart=offer("10.1.0.2", 5000))) == setup(fastStart=offer("10.2.0.1", 15000))
    chosen = [fast(1, "10.2.0.2:6000", "10.2.0.2:6001"), fast(2, rtcp="10.2.0.2:6001", reverse=True)]
    answer = [fast(1, "10.9.9.9:16000", "10.9.9.9:16001"), fast(2, rtcp="10.9.9.9:16001", reverse=True)]
    assert talk.say(SERVER, proceeding(fastStart=chosen)) == proceeding(fastStart=answer)
    assert talk.expected == [pair(CLIENT, 5000), pair(SERVER, 6000)]


def test_fast_start_without_translation():
    """The bytes are the same, the way is open."""
    talk = Talk(H225(), 1720)
    said = setup(fastStart=offer("10.1.0.2", 5000))
    assert talk.say(CLIENT, said) == said
    assert talk.expected == [pair(CLIENT, 5000)]


def test_tunnelled_control_is_read_as_if_it_had_a_channel_of_its_own():
    """In a message that is empty but for it, and in any other."""
    talk = called(snat=True)
    inside, outside = ([CAPABILITIES, opening(1, rtcp=f"{end}1"), accepting(1, f"{end}0")] for end in CLIENT_PORTS)
    assert talk.say(CLIENT, empty(inside)) == empty(outside)
    assert talk.expected == [pair(CLIENT, 5000)]
    inside, outside = ([opening(2, rtcp=f"{end}3")] for end in CLIENT_PORTS)
    assert talk.say(CLIENT, facility(control=inside)) == facility(control=outside)


def test_tunnelled_control_counts_when_both_have_spoken():
    """Before the server has answered there is nothing to open a channel for."""
    unchanged(Talk(H225(), 1720, snat=True), CLIENT, setup(), empty([opening(1, rtcp="10.1.0.2:5001")]))


def test_signalling_over_ipv6():
    """Sixteen bytes stand where four did."""
    talk = called(dnat=True, ipv4=False)
    assert talk.say(SERVER, connect(h245Address="fd00:2::2:30000")) == connect(h245Address="fd00:9::9:40000")
    said = [fast(1, "fd00:2::2:6000", "fd00:2::2:6001")]
    assert talk.say(SERVER, proceeding(fastStart=said)) == proceeding(
        fastStart=[fast(1, "fd00:9::9:16000", "fd00:9::9:16001")]
    )
    assert talk.expected == [h245(SERVER, 30000), pair(SERVER, 6000)]


def test_the_end_of_a_call_closes_what_did_not_come():
    """Of this call only: another one on the same connection goes on."""
    talk = called()
    talk.say(SERVER, connect(h245Address="10.2.0.2:30000", fastStart=[fast(1, "10.2.0.2:6000", "10.2.0.2:6001")]))
    talk.say(SERVER, connect(h245Address="10.2.0.2:30002", reference=0x8001))
    talk.say(CLIENT, release())
    assert talk.forgotten == [(SERVER, TCP, 30000), (SERVER, UDP, 6000), (SERVER, UDP, 6001)]
    assert talk.expected == [h245(SERVER, 30002)]


def test_addresses_of_somebody_else_and_low_ports_open_nothing():
    """Slipstreaming, where a page makes its browser announce a neighbour; the peer's own address is no better."""
    unchanged(
        called(snat=True, dnat=True),
        CLIENT,
        facility(h245Address="10.1.0.3:30000"),
        facility(h245Address="10.9.9.9:30000"),
        facility(h245Address="10.1.0.2:1023"),
        facility(h245Address="10.1.0.2:0"),
        setup(fastStart=[fast(1, "10.1.0.3:5000", "10.1.0.3:5001"), fast(2, "10.1.0.2:22", "10.1.0.2:23")]),
        setup(fastStart=[fast(1, "10.1.0.2:5000", "10.1.0.2:5001", cast="multicastAddress")]),
        empty([opening(1, rtcp="10.1.0.3:5001")]),
    )


def test_what_is_refused_is_not_translated():
    """The firewall has no room: the message goes on as it was."""
    unchanged(called(snat=True, refuse=True), CLIENT, facility(h245Address="10.1.0.2:30000"))


def test_bytes_that_look_like_the_address_are_left_alone():
    """Where they stand before the address and mislead, nothing at all is changed: both read what was said."""
    decoy = {"nonStandardIdentifier": ("h221NonStandard", END_POINT_VENDOR), "data": bytes.fromhex("0a020002 7530")}
    after = {"h245Address": "10.2.0.2:30000", "destinationInfo": END_POINT | {"nonStandardData": decoy}}
    talk = called(dnat=True)
    assert talk.say(SERVER, connect(**after)) == connect(**(after | {"h245Address": "10.9.9.9:40000"}))
    unclear = proceeding(**after)  # here destinationInfo comes first
    assert talk.say(SERVER, unclear) == unclear


def test_messages_split_and_joined():
    """Messages count, not segments; what keeps the connection alive is none."""
    inside, outside = connect(h245Address="10.2.0.2:30000"), connect(h245Address="10.9.9.9:40000")
    talk = Talk(H225(), 1720, dnat=True)
    first = KEEP_ALIVE + setup()
    assert talk.say(CLIENT, first[:2], first[2:5], first[5:]) == first
    assert talk.say(SERVER, proceeding() + inside[:4]) == proceeding()
    assert talk.say(SERVER, inside[4:-1]) == b""
    assert talk.say(SERVER, inside[-1:] + KEEP_ALIVE + inside + inside[:9]) == outside + KEEP_ALIVE + outside


@pytest.mark.parametrize(
    "first",
    [
        b"POST / HTTP/1.1\r\n\r\n",
        b"\x00\x03\x00\x08\x21\x12\xa4\x42",  # TURN, as a browser speaks it
        b"\x03\x01",
        b"\x03\x00\x00\x03",
        b"\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x00\x00",  # RDP
        b"\x03\x00\xff\xff",
        connect(),
        release(),
        tpkt(b"\x08\x02\x12\x34"),
        tpkt(b"\x08\x01\x12\x05\x7e"),
        tpkt(CAPABILITIES),
    ],
)
def test_another_protocol_is_left_alone(first):
    """A stream that does not begin with a Setup opens nothing, even if a segment of it looks like one."""
    talk = Talk(H225(), 1720, snat=True)
    message = setup(h245Address="10.1.0.2:30000")
    assert talk.say(CLIENT, first, message) == first + message
    assert talk.alg.done
    assert not talk.expected


def test_a_server_that_speaks_first_or_something_else():
    """It has no call to speak of, or it does not know what a call is."""
    talk = Talk(H225(), 1720)
    talk.say(SERVER, connect(h245Address="10.2.0.2:30000"))
    assert talk.alg.done
    talk = Talk(H225(), 1720)
    talk.say(CLIENT, setup())
    talk.say(SERVER, b"HTTP/1.1 400 Bad Request\r\n")
    assert talk.alg.done
    assert not talk.expected


@pytest.mark.parametrize(
    "body",
    [
        b"\x08\x02\x12\x34\x62",
        b"\x08\x02\x12\x34\x62" + DISPLAY[:-1],
        b"\x08\x02\x12\x34\x62\x7e\x00\x05\x05",  # longer than the message
        b"\x08\x02\x12\x34\x62\x7e\x00\x02\x04\x20",  # not PER
        b"\x08\x02\x12\x34\x62\x7e\x00\x00",
        b"\x08\x02\x12\x34\x62\x7e\x00\x02\x05\xff",
        b"\x09\x02\x12\x34\x62",
        b"\x08\x02",
        bytes(MAX_MESSAGE),  # too long to be read
        facility(h245Address="10.1.0.2:30000")[4:-30],
    ],
)
def test_messages_that_make_no_sense_pass(body):
    """And the next one is read again."""
    talk = called(snat=True)
    unchanged(talk, CLIENT, tpkt(body))
    assert talk.say(CLIENT, facility(h245Address="10.1.0.2:30000")) == facility(h245Address="10.2.0.1:40000")


# Media control


def test_a_channel_is_opened_by_two_messages():
    """RTCP of the sender, then both of the receiver; neighbours outside as well, and both messages agree."""
    talk = controlled(snat=True)
    assert talk.say(CLIENT, tpkt(opening(1, rtcp="10.1.0.2:5001"))) == tpkt(opening(1, rtcp="10.2.0.1:15001"))
    answer = tpkt(accepting(1, "10.2.0.2:6000", "10.2.0.2:6001"))
    assert talk.say(SERVER, answer) == answer
    said, read = (tpkt(accepting(101, f"{end}0", f"{end}1")) for end in CLIENT_PORTS)
    assert talk.say(CLIENT, said) == read
    assert talk.expected == [pair(CLIENT, 5000), pair(SERVER, 6000)]


def test_the_bytes_of_a_channel():
    """Only the address and the port are others."""
    said = bytes.fromhex("03000000 0c6013800a04000100 0a010002 1389")
    assert said == opening(1, rtcp="10.1.0.2:5001")
    assert controlled(snat=True).say(CLIENT, tpkt(said)) == tpkt(said[:13] + bytes.fromhex("0a020001 3a99"))
    assert controlled(dnat=True).say(CLIENT, tpkt(said)) == tpkt(said)


def test_ports_that_are_no_pair():
    """Each for itself; where only RTP is named, RTCP is the next port by rule."""
    talk = controlled(snat=True)
    assert talk.say(CLIENT, tpkt(accepting(1, "10.1.0.2:5000", "10.1.0.2:5005"))) == tpkt(
        accepting(1, "10.2.0.1:15000", "10.2.0.1:15005")
    )
    talk.say(CLIENT, tpkt(accepting(2, "10.1.0.2:5007")) + tpkt(opening(3, rtcp="10.1.0.2:5010")))
    talk.say(CLIENT, tpkt(accepting(4, "10.1.0.2:5020")))
    one = [(5000, "rtp"), (5005, "rtcp"), (5007, "rtp"), (5010, "rtcp")]
    assert talk.expected == [Expected(CLIENT, UDP, port, (name,)) for port, name in one] + [pair(CLIENT, 5020)]


def test_media_control_over_ipv6():
    """As over IPv4."""
    talk = controlled(snat=True, ipv4=False)
    assert talk.say(CLIENT, tpkt(opening(1, rtcp="fd00:1::2:5001"))) == tpkt(opening(1, rtcp="fd00:2::1:15001"))
    unchanged(controlled(ipv4=False), CLIENT, tpkt(opening(1, rtcp="fd00:1::3:5001")))


def test_a_channel_that_is_closed_takes_its_ports_along():
    """The other one keeps its own, until the session ends."""
    talk = controlled()
    talk.say(CLIENT, tpkt(opening(1, rtcp="10.1.0.2:5001")) + tpkt(opening(2, rtcp="10.1.0.2:5003")))
    talk.say(SERVER, tpkt(accepting(1, "10.2.0.2:6000", "10.2.0.2:6001")))
    talk.say(SERVER, tpkt(closing(1)))  # a channel of the server's with the same number
    assert len(talk.expected) == 3
    talk.say(CLIENT, tpkt(closing(1)))
    assert talk.expected == [pair(CLIENT, 5002)]
    talk.say(SERVER, tpkt(END_SESSION))
    assert not talk.expected


def test_control_split_and_joined():
    """A header of its own, two messages in a segment."""
    said, read = (tpkt(opening(1, rtcp=f"{end}1")) for end in CLIENT_PORTS)
    talk = controlled(snat=True)
    assert talk.say(CLIENT, said[:4], said[4:]) == read
    assert talk.say(CLIENT, said + said + said[:1]) == read + read


def test_media_addresses_of_somebody_else_and_low_ports_open_nothing():
    """One of the two being right does not help the other."""
    talk = controlled(snat=True)
    unchanged(
        talk,
        CLIENT,
        tpkt(opening(1, "10.1.0.3:5000", "10.2.0.2:5001")),
        tpkt(opening(1, rtcp="10.1.0.2:1023")),
        tpkt(opening(1, rtcp="10.1.0.2:1")),
        tpkt(opening(1, rtcp="10.1.0.2:5001", cast="multicastAddress")),
        tpkt(opening(1)),
        tpkt(b"\x03" + bytes(MAX_MESSAGE - 5)),
    )
    said, read = accepting(1, "10.1.0.3:5000", "10.1.0.2:5005"), accepting(1, "10.1.0.3:5000", "10.2.0.1:15005")
    assert talk.say(CLIENT, tpkt(said)) == tpkt(read)
    assert talk.expected == [pair(CLIENT, 5004)]


def test_control_counts_when_both_have_spoken():
    """And a stream that does not begin with what it has to is something else."""
    talk = Talk(H245(), 30000)
    unchanged(talk, CLIENT, tpkt(CAPABILITIES), tpkt(opening(1, rtcp="10.1.0.2:5001")))
    for first in (tpkt(opening(1, rtcp="10.1.0.2:5001")), setup(), b"GET / HTTP/1.0\r\n\r\n"):
        talk = Talk(H245(), 30000)
        assert talk.say(CLIENT, first) == first
        assert talk.alg.done
        assert not talk.expected


def test_floods_are_bounded():
    """Of many channels the last ones are remembered, and of many messages inside one the first ones are read."""
    talk = controlled()
    for number in range(1, 10 * MAX_FLOWS):
        talk.say(CLIENT, tpkt(opening(number, rtcp=f"10.1.0.2:{5001 + 2 * number}")))
    talk.say(CLIENT, tpkt(END_SESSION))
    assert len(talk.forgotten) == MAX_FLOWS
    talk = Talk(H225(), 1720)
    talk.say(CLIENT, setup(fastStart=[fast(1, rtcp=f"10.1.0.2:{port}") for port in range(5001, 5201, 2)]))
    assert len(talk.expected) == MAX_NESTED


def test_what_fails_leaves_nothing_behind():
    """The library would keep an entry for each message that it could not read."""
    talk = called()
    for _ in range(100):
        talk.say(CLIENT, q931(FACILITY, b"\xff\xff"))
    assert len(ASN1CodecPER._off) <= 1


# Whatever comes


SIGNALLING = [
    (CLIENT, setup(fastStart=offer("10.1.0.2", 5000), sourceCallSignalAddress="10.1.0.2:40000")),
    (SERVER, KEEP_ALIVE + proceeding(h245Address="10.2.0.2:30000") + tpkt(bytes(MAX_MESSAGE))),
    (CLIENT, empty([CAPABILITIES, opening(1, rtcp="10.1.0.2:5005"), closing(1)])),
    (SERVER, connect(fastStart=[fast(1, "10.2.0.2:6000", "10.2.0.2:6001")]) + release()),
]
MEDIA = [
    (CLIENT, tpkt(CAPABILITIES)),
    (SERVER, tpkt(CAPABILITIES)),
    (CLIENT, tpkt(opening(1, rtcp="10.1.0.2:5001")) + tpkt(accepting(7, "10.1.0.2:5000", "10.1.0.2:5001"))),
    (SERVER, tpkt(accepting(1, "10.2.0.2:6000", "10.2.0.2:6001")) + tpkt(closing(7)) + tpkt(END_SESSION)),
]


@pytest.mark.parametrize(("alg", "conversation"), [(H225, SIGNALLING), (H245, MEDIA)])
@given(data=st.data())
def test_it_does_not_matter_where_a_stream_is_cut(alg, conversation, data):
    """The same goes on, the same is expected and forgotten."""
    whole, cut = (Talk(alg(), 1720, snat=True, dnat=True) for _ in range(2))
    for side, said in conversation:
        at = sorted(data.draw(st.sets(st.integers(1, len(said) - 1), max_size=6)))
        segments = [said[start:end] for start, end in zip([0, *at], [*at, len(said)], strict=True)]
        assert cut.say(side, *segments) == whole.say(side, said)
    assert (cut.expected, cut.forgotten) == (whole.expected, whole.forgotten)
    assert whole.forgotten


@pytest.mark.parametrize("begun", [called, controlled])
@given(bodies=st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.binary(max_size=200)), max_size=5))
def test_any_bytes_are_survived(begun, bodies):
    """As a message of H.245, as the PER of a signalling message, as a message, as a stream; nothing is lost."""
    talk = begun(snat=True, dnat=True)
    for side, body in bodies:
        for kind in (b"\x03", b"\x04", b"\x22", b"\x4a"):
            assert talk.say(side, tpkt(kind + body)) == tpkt(kind + body)
        assert talk.say(side, q931(FACILITY, body)) == q931(FACILITY, body)
        assert talk.say(side, tpkt(body)) == tpkt(body)
    said, heard = [b"", b""], [b"", b""]
    for side, body in bodies:
        said[side] += body
        heard[side] += talk.say(side, body)
    assert all(said[side].startswith(heard[side]) for side in (CLIENT, SERVER))
    assert not talk.expected


@pytest.mark.parametrize(("alg", "conversation"), [(H225, SIGNALLING), (H245, MEDIA)])
@given(data=st.data())
def test_a_damaged_conversation_is_survived(alg, conversation, data):
    """One byte is another: no more goes on than was said, and nothing below 1024 is expected."""
    talk = Talk(alg(), 1720, snat=True, dnat=True)
    damaged = data.draw(st.integers(0, len(conversation) - 1))
    said, heard = [0, 0], [0, 0]
    for number, (side, message) in enumerate(conversation):
        sent = bytearray(message)
        if number == damaged:
            sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
        said[side] += len(sent)
        heard[side] += len(talk.say(side, bytes(sent)))
    assert heard[CLIENT] <= said[CLIENT]
    assert heard[SERVER] <= said[SERVER]
    assert all(expected.port >= LEAST_PORT for expected in talk.expected)
