"""The FTP gateway: ports that are announced on the control connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.alg.base import CLIENT, SERVER, TCP, Expected
from dataplane.alg.ftp import MAX_LINE, Ftp
from tests.conversation import Talk, pieces

GREETING = b"220 ftp.example ready\r\n"
LOGIN = b"USER anonymous\r\n"

PORT = b"PORT 10,1,0,2,19,136\r\n"
PORT_SEEN = b"PORT 10,2,0,1,58,152\r\n"
EPRT = b"EPRT |1|10.1.0.2|5000|\r\n"
EPRT_SEEN = b"EPRT |1|10.2.0.1|15000|\r\n"
EPRT6 = b"EPRT |2|fd00:1::2|5000|\r\n"
EPRT6_SEEN = b"EPRT |2|fd00:2::1|15000|\r\n"
PASV = b"227 Entering Passive Mode (10,2,0,2,19,136).\r\n"
PASV_SEEN = b"227 Entering Passive Mode (10,9,9,9,58,152).\r\n"
EPSV = b"229 Entering Extended Passive Mode (|||5000|)\r\n"
EPSV_SEEN = b"229 Entering Extended Passive Mode (|||15000|)\r\n"


def begun(**how):
    """A session in which both have spoken."""
    talk = Talk(Ftp(), 21, **how)
    assert talk.say(SERVER, GREETING) == GREETING
    assert talk.say(CLIENT, LOGIN) == LOGIN
    return talk


def from_port(side, port=5000):
    return Expected(side, TCP, port, ("ftp-data",))


FORMS = [
    pytest.param(CLIENT, PORT, PORT_SEEN, True, id="PORT"),
    pytest.param(CLIENT, EPRT, EPRT_SEEN, True, id="EPRT"),
    pytest.param(CLIENT, EPRT6, EPRT6_SEEN, False, id="EPRT-v6"),
    pytest.param(SERVER, PASV, PASV_SEEN, True, id="227"),
    pytest.param(SERVER, EPSV, EPSV_SEEN, True, id="229"),
    pytest.param(SERVER, EPSV, EPSV_SEEN, False, id="229-v6"),
]


# ---- the four announcements ----


@pytest.mark.parametrize(("side", "line", "seen", "ipv4"), FORMS)
def test_without_translation_nothing_is_changed(side, line, seen, ipv4):
    """The other side may call, and the text stays."""
    talk = begun(ipv4=ipv4)
    assert talk.say(side, line) == line
    assert talk.expected == [from_port(side)]


@pytest.mark.parametrize(("side", "line", "seen", "ipv4"), FORMS)
def test_the_announcers_translation_changes_the_text(side, line, seen, ipv4):
    """The other side reads where the firewall waits for it."""
    talk = begun(ipv4=ipv4, snat=side == CLIENT, dnat=side == SERVER)
    assert talk.say(side, line) == seen
    assert talk.expected == [from_port(side)]


@pytest.mark.parametrize(("side", "line", "seen", "ipv4"), FORMS)
def test_the_callers_translation_changes_nothing(side, line, seen, ipv4):
    """It stands nowhere in the text."""
    talk = begun(ipv4=ipv4, snat=side == SERVER, dnat=side == CLIENT)
    assert talk.say(side, line) == line
    assert talk.expected == [from_port(side)]


@pytest.mark.parametrize(("side", "line", "seen", "ipv4"), FORMS)
def test_a_line_may_come_in_two_parts(side, line, seen, ipv4):
    """Nothing of it goes on before it is there, wherever it is cut."""
    for cut in range(1, len(line)):
        talk = begun(ipv4=ipv4, snat=True, dnat=True)
        assert talk.say(side, line[:cut]) == b""
        assert talk.say(side, line[cut:]) == seen


@pytest.mark.parametrize(("side", "line", "seen", "ipv4"), FORMS)
def test_a_refused_one_passes_unchanged(side, line, seen, ipv4):
    """Where no way could be opened the text stays, and the session goes on."""
    talk = begun(ipv4=ipv4, snat=True, dnat=True, refuse=True)
    assert talk.say(side, line) == line
    assert not talk.alg.done


def test_several_commands_in_one_segment():
    """Lines count, not segments."""
    talk = begun(snat=True)
    other = b"PORT 10,1,0,2,19,137\r\n"
    assert talk.say(CLIENT, b"NOOP\r\n" + PORT + b"LIST\r\n" + other + b"LI") == (
        b"NOOP\r\n" + PORT_SEEN + b"LIST\r\n" + b"PORT 10,2,0,1,58,153\r\n" + b"LI"
    )
    assert talk.expected == [from_port(CLIENT), from_port(CLIENT, 5001)]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b"port 10,1,0,2,19,136\r\n", b"port 10,2,0,1,58,152\r\n"),
        (b"Port   10,1,0,2,19,136  \r\n", b"Port   10,2,0,1,58,152  \r\n"),
        (b"PORT 010,001,000,002,019,136\n", b"PORT 10,2,0,1,58,152\n"),
        (b"eprt |1|10.1.0.2|5000|\n", b"eprt |1|10.2.0.1|15000|\n"),
        (b"EPRT  !1!10.1.0.2!05000! \r\n", b"EPRT  !1!10.2.0.1!15000! \r\n"),
        (b"EPRT .1.10.1.0.2.5000.\r\n", b"EPRT .1.10.2.0.1.15000.\r\n"),
        (b"EPRT 0101010.1.0.20500000\r\n", None),
        (b"EPRT 9195000\r\n", None),
    ],
)
def test_forms_of_a_command(line, seen):
    """Lower case, blanks, leading zeros, a missing carriage return, any delimiter that leaves the numbers alone."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, line) == (line if seen is None else seen)
    assert talk.expected == ([] if seen is None else [from_port(CLIENT)])


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b"227 =10,2,0,2,19,136\r\n", b"227 =10,9,9,9,58,152\r\n"),
        (b"227 10,2,0,2,19,136\n", b"227 10,9,9,9,58,152\n"),
        (b"227 =10,9,9,9,19,136\r\n", b"227 =10,9,9,9,58,152\r\n"),  # told its outside address by its administrator
        (b"227 Passive (010,002,000,002,019,136) since 9\r\n", b"227 Passive (10,9,9,9,58,152) since 9\r\n"),
        (b"229 (|||05000|)\r\n", b"229 (|||15000|)\r\n"),
        (b"229 ok (!!!5000!) bye\r\n", b"229 ok (!!!15000!) bye\r\n"),
    ],
)
def test_forms_of_a_reply(line, seen):
    """Servers agree on little but the numbers."""
    talk = begun(dnat=True)
    assert talk.say(SERVER, line) == seen
    assert talk.expected == [from_port(SERVER)]


# ---- what opens nothing ----


@pytest.mark.parametrize(
    "line",
    [
        b"PORT 10,1,0,3,19,136\r\n",  # bounce: a neighbour
        b"PORT 10,2,0,2,19,136\r\n",  # bounce: the server
        b"PORT 10,2,0,1,19,136\r\n",  # what the server sees is not what the client has
        b"PORT 10,1,0,2,3,255\r\n",  # 1023
        b"PORT 10,1,0,2,0,0\r\n",
        b"PORT 10,1,0,2,256,0\r\n",
        b"PORT 10,1,0,258,19,136\r\n",
        b"PORT 10,1,0,2,19,999\r\n",
        b"PORT 10,1,0,2,19,0136\r\n",
        b"PORT 10,1,0,2,19\r\n",
        b"PORT 10,1,0,2,19,136,1\r\n",
        b"PORT 10, 1, 0, 2, 19, 136\r\n",
        b"PORT\t10,1,0,2,19,136\r\n",
        b"PORT10,1,0,2,19,136\r\n",
        b"XPORT 10,1,0,2,19,136\r\n",
        b" PORT 10,1,0,2,19,136\r\n",
        b"STOR PORT 10,1,0,2,19,136\r\n",
        b"PORT 10,1,0,2,19,136\r\r\n",
        b"PORT 10,1,0,2,19,136 ;\r\n",
        b"EPRT |1|10.1.0.3|5000|\r\n",
        b"EPRT |1|10.1.0.2|1023|\r\n",
        b"EPRT |1|10.1.0.2|65536|\r\n",
        b"EPRT |1|10.1.0.2|99999|\r\n",
        b"EPRT |1|10.1.0.2|5000\r\n",
        b"EPRT |1|10.1.0.2!5000|\r\n",
        b"EPRT |1|10.1.2|5000|\r\n",
        b"EPRT |1|010.1.0.2|5000|\r\n",
        b"EPRT |1|::ffff:10.1.0.2|5000|\r\n",
        b"EPRT |2|::ffff:10.1.0.2|5000|\r\n",
        b"EPRT |2|fd00:1::2|5000|\r\n",
        b"EPRT |3|10.1.0.2|5000|\r\n",
        b"EPRT |2|:::::|5000|\r\n",
        b"EPRT \x7f1\x7f10.1.0.2\x7f5000\x7f\r\n",
        b"PORT " + b" " * MAX_LINE + PORT[5:],
        PASV,
        EPSV,
    ],
)
def test_commands_that_open_nothing(line):
    """They pass as they are, whole or split, and the session goes on."""
    for cut in (len(line) // 2, len(line)):
        talk = begun(snat=True)
        assert talk.say(CLIENT, *pieces(line, [cut])) == line
        assert not talk.expected
        assert talk.say(CLIENT, PORT) == PORT_SEEN


@pytest.mark.parametrize(
    "line",
    [
        b"227 Entering Passive Mode (10,2,0,3,19,136)\r\n",
        b"227 Entering Passive Mode (10,2,0,2,3,255)\r\n",
        b"227 Entering Passive Mode (10,2,0,2,19,256)\r\n",
        b"227 Entering Passive Mode (10,2,0,2,19,1360)\r\n",
        b"227 Entering Passive Mode (10,2,0,2,19)\r\n",
        b"227-Entering Passive Mode (10,2,0,2,19,136)\r\n",
        b"227 No 1 in passive mode (10,2,0,2,19,136)\r\n",
        b"228 Entering Passive Mode (10,2,0,2,19,136)\r\n",
        b" 227 Entering Passive Mode (10,2,0,2,19,136)\r\n",
        b'257 "227 Entering Passive Mode (10,2,0,2,19,136)" created\r\n',
        b"227 " + b"x" * MAX_LINE + b" (10,2,0,2,19,136)\r\n",
        b"229 Entering Extended Passive Mode (|||1023|)\r\n",
        b"229 Entering Extended Passive Mode (|||65536|)\r\n",
        b"229 Entering Extended Passive Mode (||5000|)\r\n",
        b"229 Entering Extended Passive Mode (|||5000!)\r\n",
        b"229 Entering Extended Passive Mode |||5000|\r\n",
        b"229 Entering Extended Passive Mode (|1|10.2.0.2|5000|)\r\n",
        PORT,
        EPRT,
    ],
)
def test_replies_that_open_nothing(line):
    """They pass as they are, whole or split, and the session goes on."""
    for cut in (len(line) // 2, len(line)):
        talk = begun(dnat=True)
        assert talk.say(SERVER, *pieces(line, [cut])) == line
        assert not talk.expected
        assert talk.say(SERVER, PASV) == PASV_SEEN


@pytest.mark.parametrize("ipv4_line", [PORT, EPRT])
def test_ipv4_is_not_announced_over_ipv6(ipv4_line):
    """A client has no say about addresses of the other family."""
    talk = begun(ipv4=False, snat=True)
    assert talk.say(CLIENT, ipv4_line) == ipv4_line
    assert not talk.expected


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE])
def test_a_line_is_read_up_to_its_longest(length):
    """A longer one is none, in whatever segments it comes; what stands in its middle begins no line."""
    line = b"227 " + b" (10,2,0,2,19,136)\r\n".rjust(length - 4, b"x")
    for cuts in ([], [200], [511], [512], [length - 2]):
        talk = begun()
        assert talk.say(SERVER, *pieces(line, cuts)) == line
        assert len(talk.expected) == (length <= MAX_LINE)


def test_a_segment_that_begins_with_a_command_inside_a_line():
    """The beginning of a segment is not the beginning of a line."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, b"STOR x", PORT, PORT) == b"STOR x" + PORT + PORT_SEEN
    assert len(talk.expected) == 1


def test_a_line_without_an_end():
    """It waits, bounded, and opens nothing."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, PORT.rstrip()) == b""
    assert not talk.expected
    rest = b" " * MAX_LINE
    assert talk.say(CLIENT, rest) == PORT.rstrip() + rest


# ---- what is not FTP ----


def test_words_that_come_letter_by_letter():
    """The first of them as well: greeting and login are known when they are long enough."""
    talk = Talk(Ftp(), 21, snat=True)
    assert talk.say(SERVER, *pieces(GREETING, range(len(GREETING)))) == GREETING
    text = LOGIN + PORT
    assert talk.say(CLIENT, *pieces(text, range(len(text)))) == LOGIN + PORT_SEEN
    assert not talk.alg.done


@pytest.mark.parametrize(
    "first", [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"USER x\r\n", PORT, b"\x16\x03\x01\x02\x00\x01"]
)
def test_a_client_that_speaks_first_speaks_something_else(first):
    """A web page may make a browser say PORT in the middle of a form, but not wait for a greeting."""
    talk = Talk(Ftp(), 21, snat=True)
    assert talk.say(CLIENT, first, PORT) == first + PORT
    assert talk.alg.done
    assert not talk.expected


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"OPTIONS / HTTP/1.1\r\n", b"a\r\n", b"{}[]()\r\n", b"\r\n"]
)
def test_a_client_that_answers_with_something_else(first):
    """What begins with another word than an FTP client does is left alone, even after a greeting."""
    talk = Talk(Ftp(), 21)
    talk.say(SERVER, GREETING)
    assert talk.say(CLIENT, first) == first
    assert talk.alg.done


@pytest.mark.parametrize(
    "first",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"2200 x\r\n", b"22\r\n", b"\x15\x03\x01\x00\x02"],
)
def test_a_server_that_does_not_greet(first):
    """A reply begins with three digits."""
    talk = Talk(Ftp(), 21)
    assert talk.say(SERVER, first) == first
    assert talk.alg.done
    assert talk.say(CLIENT, LOGIN, PORT) == LOGIN + PORT
    assert not talk.expected


def test_a_reply_before_the_client_has_spoken():
    """Nobody has asked for it."""
    talk = Talk(Ftp(), 21, dnat=True)
    assert talk.say(SERVER, GREETING + PASV + EPSV) == GREETING + PASV + EPSV
    assert not talk.expected
    talk.say(CLIENT, LOGIN)
    assert talk.say(SERVER, PASV) == PASV_SEEN


# ---- encryption ----


@pytest.mark.parametrize("auth", [b"AUTH TLS\r\n", b"auth ssl\n", b"AUTH TLS" + b" " * MAX_LINE + b"\r\n"])
def test_encryption_ends_it(auth):
    """What comes after the server has agreed cannot be read."""
    talk = begun(snat=True)
    assert talk.say(CLIENT, auth) == auth
    assert talk.say(SERVER, b"234 AUTH", b" TLS successful\r\n") == b"234 AUTH TLS successful\r\n"
    assert talk.alg.done
    assert talk.say(CLIENT, PORT) == PORT


def test_a_refused_encryption_changes_nothing():
    """The text stays clear; a 234 that answers another command means nothing."""
    talk = begun(snat=True)
    talk.say(CLIENT, b"AUTH TLS\r\n")
    talk.say(SERVER, b"534 Not here\r\n")
    talk.say(CLIENT, b"NO", b"OP\r\n")
    talk.say(SERVER, b"234 what?\r\n")
    assert not talk.alg.done
    assert talk.say(CLIENT, PORT) == PORT_SEEN


# ---- anything ----

LINES = st.sampled_from(
    [
        GREETING,
        LOGIN,
        PORT,
        EPRT,
        EPRT6,
        PASV,
        EPSV,
        b"AUTH TLS\r\n",
        b"234 ok\r\n",
        b"PORT ",
        b"227 (",
        b"EPRT |",
        b"10,2,0,2,",
        b"\n",
    ]
)
BYTES = st.binary(min_size=1, max_size=40) | LINES


@given(st.lists(st.tuples(st.integers(0, 1), BYTES), max_size=40), st.booleans())
def test_no_bytes_do_harm(segments, ipv4):
    """Whatever comes, nothing is raised and nothing waits beyond the limit."""
    talk = begun(snat=True, dnat=True, ipv4=ipv4)
    for side, segment in segments:
        talk.say(side, segment)


@given(
    st.lists(BYTES | st.just(b"x" * 500), max_size=12).map(b"".join),
    st.lists(BYTES | st.just(b"x" * 500), max_size=12).map(b"".join),
    st.lists(st.integers(0, 600), max_size=12),
    st.booleans(),
)
def test_no_split_matters(client, server, cuts, greets):
    """The same text and the same ways, wherever segments end."""
    texts = (LOGIN * greets + client + b"\n", GREETING * greets + server + b"\n")
    whole, split = (Talk(Ftp(), 21, snat=True, dnat=True) for _ in range(2))
    for side in (SERVER, CLIENT, SERVER):
        assert whole.say(side, texts[side]) == split.say(side, *pieces(texts[side], cuts))
    assert whole.expected == split.expected
    assert whole.alg.done == split.alg.done
