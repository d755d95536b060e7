"""The IRC gateway: what two clients agree on by DCC."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, TCP, Expected
from dataplane.alg.irc import MAX_LINE, MAX_PORTS, Irc
from tests.conversation import Talk, pieces

LOGIN = b"NICK alice\r\nUSER alice 0 * :Alice\r\n"
WELCOME = b":irc.example 001 alice :Welcome\r\n"
OWN = b"167837698"  # 10.1.0.2
SEEN = b"167903233"  # 10.2.0.1
OFFER = b"PRIVMSG bob :\x01DCC SEND cat.png %s %s 4096\x01\r\n"
TO_CLIENT = b":bob!b@host PRIVMSG alice :\x01DCC %s cat.png %s 1024\x01\r\n"


def begun(**how):
    """A session in which both have spoken."""
    talk = Talk(Irc(), 6667, **how)
    assert talk.say(CLIENT, LOGIN) == LOGIN
    assert talk.say(SERVER, WELCOME) == WELCOME
    return talk


def test_anybody_may_call_for_an_offered_file():
    """Without translation nothing is changed; the caller is not the server but whoever the nick is."""
    talk = begun()
    assert talk.say(CLIENT, OFFER % (OWN, b"5000")) == OFFER % (OWN, b"5000")
    assert talk.expected == [Expected(CLIENT, TCP, 5000, ("irc-dcc",), anyone=True)]


def test_source_translation_changes_address_and_port():
    """The other party reads where the firewall waits for it."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, OFFER % (OWN, b"5000")) == OFFER % (SEEN, b"15000")


def test_destination_translation_changes_nothing():
    """The server's address stands nowhere in an offer."""
    talk = begun(dnat=True)
    assert talk.say(CLIENT, OFFER % (OWN, b"05000")) == OFFER % (OWN, b"05000")
    assert len(talk.expected) == 1


def test_ipv6_is_written_as_text():
    """As clients do for which a number of 39 digits would be too much."""
    talk = begun(snat=True, ipv4=False)
    assert talk.say(CLIENT, OFFER % (b"fd00:1::2", b"5000")) == OFFER % (b"fd00:2::1", b"15000")


@pytest.mark.parametrize(
    "offer",
    [
        b"PRIVMSG bob :\x01DCC CHAT chat 167837698 5000\x01\r\n",
        b"privmsg bob :\x01dcc schat CHAT 167837698 5000\x01\n",
        b'PRIVMSG bob :\x01DCC SEND "my cat.png" 167837698 5000 4096 7\x01\r\n',
        b"PRIVMSG bob :\x01DCC TSEND cat.png 167837698 5000\r\n",
    ],
)
def test_forms_of_an_offer(offer):
    """Chats, quoted names, lower case, a missing last mark."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, offer) == offer.replace(OWN, SEEN).replace(b"5000", b"15000")
    assert len(talk.expected) == 1


@pytest.mark.parametrize(
    "line",
    [
        OFFER % (b"167837699", b"5000"),  # a neighbour of his
        OFFER % (SEEN, b"5000"),
        OFFER % (b"4294967296", b"5000"),
        OFFER % (b"fd00:1::2", b"5000"),
        OFFER % (b":::", b"5000"),
        OFFER % (OWN, b"1023"),
        OFFER % (OWN, b"70000"),
        OFFER % (OWN, b"0"),  # passive: the other one is going to listen
        OFFER % (OWN, b"5000x"),
        b" " + OFFER % (OWN, b"5000"),
        b"TOPIC #c :" + OFFER % (OWN, b"5000"),
        b"PRIVMSG bob :say \x01DCC CHAT chat 167837698 5000\x01\r\n",
        b"PRIVMSG bob :DCC CHAT chat 167837698 5000\r\n",
        b"PRIVMSG bob :\x01DCC SEND my cat.png 167837698 5000\x01\r\n",
        b"PRIVMSG bob :\x01DCC SEND " + b"x" * MAX_LINE + b" 167837698 5000\x01\r\n",
    ],
)
def test_lines_that_open_nothing(line):
    """They pass as they are, and the session goes on."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, line) == line
    assert not talk.expected
    assert not talk.alg.done


def test_a_resume_names_the_port_that_its_sender_has_read():
    """It is mapped back for the client, and the client's answer forth."""
    talk = begun(snat=True)
    talk.say(CLIENT, OFFER % (OWN, b"5000"))
    tagged = b"@time=2026-01-01T00:00:00Z " + TO_CLIENT
    assert talk.say(SERVER, TO_CLIENT % (b"RESUME", b"15000")) == TO_CLIENT % (b"RESUME", b"5000")
    assert talk.say(SERVER, tagged % (b"RESUME", b"15000")) == tagged % (b"RESUME", b"5000")
    accept = b"PRIVMSG bob :\x01DCC ACCEPT cat.png %s 1024\x01\r\n"
    assert talk.say(CLIENT, accept % b"5000") == accept % b"15000"
    assert talk.say(CLIENT, accept % b"5002") == accept % b"5002"


def test_the_other_partys_offers_are_not_ours():
    """A port that it listens on stays what it is, in either direction."""
    talk = begun(snat=True)
    talk.say(CLIENT, OFFER % (OWN, b"5000"))
    resume = b"PRIVMSG bob :\x01DCC RESUME cat.png 5000 1024\x01\r\n"
    assert talk.say(CLIENT, resume) == resume
    for line in (TO_CLIENT % (b"ACCEPT", b"15000"), b":bob!b@host " + OFFER % (OWN, b"6000")):
        assert talk.say(SERVER, line) == line
    assert len(talk.expected) == 1


def test_several_commands_in_one_segment_and_one_in_several():
    """Lines count, not segments."""
    talk = begun(snat=True)
    two = OFFER % (OWN, b"5000") + b"PING :x\r\n" + OFFER % (OWN, b"5002")
    assert talk.say(CLIENT, two) == OFFER % (SEEN, b"15000") + b"PING :x\r\n" + OFFER % (SEEN, b"15002")
    assert talk.say(CLIENT, b"PRIVMSG bob :\x01DCC CHAT chat 1678", b"37698 50") == b""
    assert talk.say(CLIENT, b"04\x01\r", b"\n") == b"PRIVMSG bob :\x01DCC CHAT chat " + SEEN + b" 15004\x01\r\n"


@pytest.mark.parametrize("length", [1, 20, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE])
def test_an_offer_in_the_middle_of_a_line(length):
    """However long what stands before it, and wherever a segment begins."""
    talk = begun()
    talk.say(CLIENT, b"x" * length + OFFER % (OWN, b"5000"))
    talk.say(CLIENT, b"x" * length, OFFER % (OWN, b"5000"))
    assert not talk.expected
    talk.say(CLIENT, OFFER % (OWN, b"5000"))
    assert len(talk.expected) == 1


def test_nothing_before_the_server_has_spoken():
    """An offer that rides on the login is the work of somebody else."""
    talk = Talk(Irc(), 6667)
    talk.say(CLIENT, LOGIN + OFFER % (OWN, b"5000"))
    assert not talk.expected


@pytest.mark.parametrize(
    "first", [b"POST / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x\r\n", OFFER % (OWN, b"5000"), b"\r\n"]
)
def test_another_protocol_is_left_alone(first):
    """A stream that does not begin with a login opens nothing, even if a segment of it looks like an offer."""
    talk = Talk(Irc(), 6667)
    assert talk.say(CLIENT, first) == first
    talk.say(SERVER, WELCOME)
    assert talk.say(CLIENT, LOGIN, OFFER % (OWN, b"5000")) == LOGIN + OFFER % (OWN, b"5000")
    assert not talk.expected
    assert talk.alg.done


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n", b"220 mail ready\r\n", b"\x15\x03\x01\x00\x02"])
def test_a_server_of_another_protocol(first):
    """A web server that was told to say NICK does not answer as IRC does."""
    talk = Talk(Irc(), 6667)
    talk.say(CLIENT, LOGIN)
    talk.say(SERVER, first)
    talk.say(CLIENT, OFFER % (OWN, b"5000"))
    assert not talk.expected


def test_a_server_may_speak_first():
    """Many look up the client's name and say so at once."""
    talk = Talk(Irc(), 6667)
    talk.say(SERVER, b"NOTICE AUTH :*** Looking up your hostname\r\n")
    talk.say(CLIENT, LOGIN, OFFER % (OWN, b"5000"))
    assert len(talk.expected) == 1


def test_encryption_ends_it():
    """What comes after STARTTLS cannot be read."""
    talk = begun()
    assert talk.say(CLIENT, b"START", b"TLS\r\n") == b"STARTTLS\r\n"
    talk.say(CLIENT, OFFER % (OWN, b"5000"))
    assert not talk.expected
    assert talk.alg.done


def test_a_flood_of_offers_is_not_remembered():
    """Only the newest can be resumed."""
    talk = begun(snat=True)
    for port in range(2000, 2100):
        talk.say(CLIENT, OFFER % (OWN, b"%d" % port))
    oldest, newest = TO_CLIENT % (b"RESUME", b"12000"), TO_CLIENT % (b"RESUME", b"12099")
    assert talk.say(SERVER, oldest) == oldest
    assert talk.say(SERVER, newest) == TO_CLIENT % (b"RESUME", b"2099")
    assert len(talk.alg._ports) == MAX_PORTS


def test_a_refused_offer_passes_unchanged():
    """Where no way could be opened the text stays."""
    talk = begun(snat=True, refuse=True)
    assert talk.say(CLIENT, OFFER % (OWN, b"5000")) == OFFER % (OWN, b"5000")


WORDS = st.sampled_from(
    [
        LOGIN,
        WELCOME,
        b"PRIVMSG bob :\x01DCC ",
        b"SEND f ",
        b"RESUME f ",
        OWN,
        b" 5000",
        b"\x01",
        b"\r",
        b"\n",
        b'"',
        b" ",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=40) | WORDS), max_size=40))
def test_no_bytes_do_harm(segments):
    """Whatever comes, nothing is raised and the memory stays bounded."""
    talk = begun(snat=True)
    for side, segment in segments:
        talk.say(side, segment)
    assert len(talk.alg._ports) <= MAX_PORTS


CLIENT_STREAM = LOGIN + OFFER % (OWN, b"5000") + b"x" * 600 + b"\r\n" + OFFER % (OWN, b"5002")


@given(st.lists(st.integers(0, len(CLIENT_STREAM)), max_size=12), st.lists(st.integers(0, 120), max_size=6))
def test_no_split_matters(cuts, server_cuts):
    """The same text and the same ways, wherever segments end."""
    talk = Talk(Irc(), 6667, snat=True)
    talk.say(SERVER, b"NOTICE", b" AUTH :hello\r\n")
    assert talk.say(CLIENT, *pieces(CLIENT_STREAM, cuts)) == CLIENT_STREAM.replace(OWN, SEEN).replace(b" 500", b" 1500")
    answer = WELCOME + TO_CLIENT % (b"RESUME", b"15002")
    assert talk.say(SERVER, *pieces(answer, server_cuts)) == WELCOME + TO_CLIENT % (b"RESUME", b"5002")
    assert [e.port for e in talk.expected] == [5000, 5002]
