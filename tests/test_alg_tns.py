"""The TNS gateway: where a listener of Oracle sends its client on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, TCP, Expected
from dataplane.alg.tns import MAX_PACKET, Tns
from tests.conversation import Talk, pieces, with_wrong_bytes

SERVER_OWN, OUTSIDE, OTHER = b"10.2.0.2", b"10.9.9.9", b"10.2.0.99"
DATABASE = b"(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=orcl))(ADDRESS=(PROTOCOL=tcp)(HOST=10.2.0.2)(PORT=1600)))"


def packet(kind, body):
    return (len(body) + 8).to_bytes(2) + bytes([0, 0, kind, 0, 0, 0]) + body


def redirect(text, length=None):
    return packet(5, (len(text) if length is None else length).to_bytes(2) + text)


def data(text):
    return packet(6, b"\0\0" + text)


def address(port, host=SERVER_OWN):
    return b"(ADDRESS=(PROTOCOL=tcp)(HOST=%s)(PORT=%d))" % (host, port)


CONNECT = packet(1, b"\x01\x3f\x01\x2c\0\0\x20\0\x20\0\x4f\x98\0\0\0\1" + b"\0\x6f\0\x4a" + bytes(46) + DATABASE)
ACCEPT = packet(2, bytes(24))
RESEND = packet(11, b"")


def database(port):
    return Expected(SERVER, TCP, port, ("oracle",))


def begun(**how):
    """A client that has said what it wants."""
    talk = Talk(Tns(), 1521, **how)
    assert talk.say(CLIENT, CONNECT) == CONNECT
    return talk


def test_a_listener_sends_its_client_to_another_port():
    """Without translation every byte goes on as it was."""
    talk = begun()
    assert talk.say(SERVER, redirect(address(1600))) == redirect(address(1600))
    assert talk.expected == [database(1600)]


def test_destination_translation_changes_host_and_port():
    """Both lengths follow; the connect data behind the address is the server's own affair."""
    talk = begun(dnat=True)
    said = redirect(address(1600) + b"\0" + DATABASE)
    assert talk.say(SERVER, said) == redirect(address(11600, OUTSIDE) + b"\0" + DATABASE)


def test_an_address_becomes_shorter_too():
    """A server with a long address behind one with a short one."""
    talk = begun(dnat=True, server="192.168.200.100")
    assert talk.say(SERVER, redirect(address(60000, b"192.168.200.100"))) == redirect(address(4464, OUTSIDE))


def test_source_translation_changes_nothing():
    """The client's address stands nowhere."""
    talk = begun(snat=True)
    assert talk.say(SERVER, redirect(address(1600))) == redirect(address(1600))
    assert talk.expected == [database(1600)]


def test_ipv6_is_written_as_text():
    """However it is spelled, and as it was where nothing changes."""
    talk = begun(ipv4=False)
    said = redirect(address(1600, b"fd00:2:0::2"))
    assert talk.say(SERVER, said) == said
    talk = begun(ipv4=False, dnat=True)
    assert talk.say(SERVER, said) == redirect(address(11600, b"fd00:9::9"))


def test_of_a_name_only_the_port_counts():
    """The client looks it up itself, and finds the address that it is to use."""
    talk = begun(dnat=True)
    assert talk.say(SERVER, redirect(address(1600, b"db1.example"))) == redirect(address(11600, b"db1.example"))
    assert talk.expected == [database(1600)]


@pytest.mark.parametrize(
    "spelling",
    [
        b"(ADDRESS=(PROTOCOL=TCP)(DEV=6)(HOST=%s)(PORT=%d))",
        b"(address = (port = %d) (host = %s) (protocol = tcps) )",
        b"(DESCRIPTION=(ADDRESS_LIST=(ADDRESS=(PROTOCOL=ipc)(KEY=x))(ADDRESS=(PROTOCOL=tcp)(HOST=%s)(PORT=%d))))",
    ],
)
def test_an_address_has_many_spellings(spelling):
    """Old listeners, and those who like spaces."""
    order = slice(None, None, -1 if spelling.startswith(b"(address") else 1)
    talk = begun(dnat=True)
    said, read = (redirect(spelling % pair[order]) for pair in ((SERVER_OWN, 1600), (OUTSIDE, 11600)))
    assert talk.say(SERVER, said) == read


def test_every_address_of_a_list_is_opened():
    """The client takes any of them."""
    talk = begun(dnat=True)
    said = redirect(address(1600) + address(1700, OTHER) + address(1601))
    assert talk.say(SERVER, said) == redirect(address(11600, OUTSIDE) + address(1700, OTHER) + address(11601, OUTSIDE))
    assert talk.expected == [database(1600), database(1601)]


@pytest.mark.parametrize("following", [data, redirect])
def test_the_text_may_come_in_the_next_packet(following):
    """Its length stands in the first one, which waits for it."""
    talk = begun(dnat=True)
    long, short = address(11600, OUTSIDE), address(1600)
    assert talk.say(SERVER, redirect(b"", len(short))) == b""
    assert talk.say(SERVER, following(short)) == redirect(b"", len(long)) + following(long)
    talk = begun(dnat=True)
    assert talk.say(SERVER, redirect(b"") + following(short)) == redirect(b"") + following(long)


def test_data_without_a_redirect_is_not_read():
    """Whatever it looks like."""
    talk = begun(dnat=True)
    assert talk.say(SERVER, data(address(1600)) + RESEND) == data(address(1600)) + RESEND
    assert talk.say(SERVER, redirect(b"", 40) + RESEND + data(address(1600))) == (
        redirect(b"", 40) + RESEND + data(address(1600))
    )
    assert talk.expected == []


@pytest.mark.parametrize(
    "text",
    [
        address(1600, OTHER),
        address(1023),
        address(0),
        address(65536),
        b"(ADDRESS=(PROTOCOL=ipc)(HOST=10.2.0.2)(PORT=1600))",
        b"(ADDRESS=(PROTOCOL=tcp)(HOST=10.2.0.2))",
        b"(ADDRESS=(PROTOCOL=tcp)(PORT=1600))",
        b"(ADDRESS=(PROTOCOL=tcp)(HOST=10.2.0.2)(PORT=1600)",
        b"(HOST=10.2.0.2)(PORT=1600)",
        b"\0" + DATABASE,
        address(1600) + bytes(MAX_PACKET),
    ],
)
def test_what_is_forbidden_or_odd_opens_nothing(text):
    """Foreign address, services' ports, other protocols, incomplete, not for connecting to, too long."""
    talk = begun(dnat=True)
    assert talk.say(SERVER, redirect(text)) == redirect(text)
    assert talk.expected == []


def test_a_refused_way_leaves_the_text_alone():
    """Nobody reads an address where nothing waits."""
    talk = begun(dnat=True, refuse=True)
    assert talk.say(SERVER, redirect(address(1600))) == redirect(address(1600))


def test_a_redirect_waits_until_it_is_whole():
    """Other packets go on as they come, with the next one behind them."""
    talk = begun(dnat=True)
    said = redirect(address(1600))
    assert talk.say(SERVER, RESEND + data(bytes(50))[:30]) == RESEND + data(bytes(50))[:30]
    assert talk.say(SERVER, data(bytes(50))[30:] + said[:-1]) == data(bytes(50))[30:]
    assert talk.expected == []
    assert talk.say(SERVER, said[-1:]) == redirect(address(11600, OUTSIDE))


def test_an_accepted_session_is_left_alone():
    """It stays on this connection, and is nobody's business."""
    talk = begun(dnat=True)
    assert talk.say(SERVER, ACCEPT + redirect(address(1600))) == ACCEPT + redirect(address(1600))
    assert talk.alg.done
    assert talk.expected == []


def test_the_client_does_not_redirect():
    """What it says after its CONNECT is not read."""
    talk = begun(snat=True, dnat=True)
    assert talk.say(CLIENT, redirect(address(1600))) == redirect(address(1600))
    assert talk.expected == []


@pytest.mark.parametrize("first", [b"POST / HTTP/1.1\r\n\r\n", redirect(b""), b"\0\x19\0\0\1", b"\0\x50\0\1", b"abc"])
def test_what_does_not_begin_as_tns_is_left_alone(first):
    """Even if what the server says looks like it."""
    talk = Talk(Tns(), 1521, dnat=True)
    assert talk.say(CLIENT, first) == first
    assert talk.alg.done
    assert talk.say(SERVER, redirect(address(1600))) == redirect(address(1600))


def test_a_server_does_not_begin():
    """There is nothing yet that it could redirect."""
    talk = Talk(Tns(), 1521, dnat=True)
    assert talk.say(SERVER, redirect(address(1600))) == redirect(address(1600))
    assert talk.alg.done


CONVERSATION = [
    (CLIENT, CONNECT, CONNECT),
    (SERVER, RESEND, RESEND),
    (CLIENT, CONNECT, CONNECT),
    (
        SERVER,
        data(bytes(20)) + redirect(address(1600) + b"\0x") + redirect(b"", len(address(1601))) + data(address(1601)),
        data(bytes(20))
        + redirect(address(11600, OUTSIDE) + b"\0x")
        + redirect(b"", len(address(11601, OUTSIDE)))
        + data(address(11601, OUTSIDE)),
    ),
    (SERVER, ACCEPT, ACCEPT),
]


@given(st.sets(st.integers(1, 200)))
def test_no_split_matters(cuts):
    """The same text and the same ways, wherever segments end."""
    talk = Talk(Tns(), 1521, snat=True, dnat=True)
    for side, said, read in CONVERSATION:
        assert talk.say(side, *pieces(said, cuts)) == read
    assert talk.expected == [database(1600), database(1601)]


TEXT = st.sampled_from([b"(ADDRESS=", b"(HOST=10.2.0.2)", b"(PORT=1600)", b"(PROTOCOL=tcp)", b")", b"(", b" ", b"\0"])
TEXTS = st.lists(TEXT, max_size=12).map(b"".join)


@given(st.lists(st.binary(min_size=1, max_size=300) | TEXTS.map(redirect) | TEXTS.map(data), max_size=20))
def test_no_bytes_do_harm(segments):
    """Nothing is raised, whatever a listener says."""
    for talk in (Talk(Tns(), 1521, dnat=True), begun(dnat=True)):
        for segment in segments:
            talk.say(SERVER, segment)
        assert len(talk.expected) <= 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 250), st.integers(0, 255)), max_size=8))
def test_no_wrong_byte_does_harm(changes):
    """A length that lies does not make one either."""
    said = with_wrong_bytes((text for _, text, _ in CONVERSATION), changes)
    talk = Talk(Tns(), 1521, snat=True, dnat=True)
    for (side, _, _), text in zip(CONVERSATION, said, strict=True):
        talk.say(side, text)
    assert len(talk.expected) <= 2
