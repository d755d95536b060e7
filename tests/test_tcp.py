"""TCP tracking: timers by state, windows, resets, reuse. Sequence numbers begin at 1000 (client) and 5000 (server)."""

import pytest

from dataplane.ffi import lib
from tests.talk import INSIDE, OUTSIDE, TCP, UDP, Connection, Firewall

SIGNATURES = {"MD5": [(19, bytes(16))], "AO": [(29, bytes(14))]}


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall.decides()


@pytest.fixture
def connection(firewall):
    return Connection(firewall).open()


def reasons(firewall) -> list[str]:
    return [ended.reason for ended in firewall.expire()]


def snapshot(firewall):
    """What a packet may change in a session."""
    session = firewall.session()
    names = ["last_seen", "timeout", "tcp_state", "tcp_seen", "end_reason"]
    arrays = {name: list(getattr(session, name)) for name in ["state", "packets", "bytes", "window_scale"]}
    return arrays | {name: getattr(session, name) for name in names}


# ---- states and their timers (PAN-OS: session timeouts) ----


def test_each_state_has_its_timer(firewall):
    """TCP init, handshake, established, half closed, time wait: 5, 10, 3600, 120, 15 seconds."""
    connection = Connection(firewall)
    seen: list[tuple[str, float]] = []
    for step in [connection.c2s, connection.s2c, connection.c2s, connection.c2s, connection.s2c, connection.c2s]:
        assert step(["S", "SA", "A", "FA", "FA", "A"][len(seen)]).left
        seen.append((firewall.tcp_state(), firewall.timeout()))
    assert seen == [
        ("SYN_SENT", 5),
        ("SYN_RECEIVED", 10),
        ("ESTABLISHED", 3600),
        ("HALF_CLOSED", 120),
        ("TIME_WAIT", 15),
        ("TIME_WAIT", 15),
    ]


def test_time_wait_is_capped_at_half_closed(firewall):
    """PAN-OS accepts a longer time wait in the configuration, and does not use it."""
    firewall.set_timers(tcp_half_closed=20, tcp_time_wait=60)
    Connection(firewall).open().shut()
    assert firewall.timeout() == 20


@pytest.mark.parametrize(("steps", "seconds"), [(1, 5), (2, 10), (3, 3600)])
def test_a_connection_that_falls_silent_ages_out(firewall, steps, seconds):
    """Exactly when the timer of its state runs out."""
    connection = Connection(firewall)
    for step, flags in [(connection.c2s, "S"), (connection.s2c, "SA"), (connection.c2s, "A")][:steps]:
        step(flags)
    firewall.wait(seconds)
    assert firewall.expire() == []
    firewall.wait(0.2)
    assert reasons(firewall) == ["aged-out"]


def test_both_fins_end_it_as_tcp_fin(firewall, connection):
    """A shorter timer takes hold at once, not when the old one would have run out."""
    connection.shut()
    firewall.wait(15)
    assert firewall.expire() == []
    firewall.wait(0.2)
    assert reasons(firewall) == ["tcp-fin"]


def test_one_fin_alone_is_aged_out(firewall, connection):
    """tcp-fin means both."""
    connection.c2s("FA")
    firewall.wait(120.2)
    assert reasons(firewall) == ["aged-out"]


def test_the_open_half_goes_on_after_the_other_fin(firewall, connection):
    """Half closed is no hurry: the server may have a gigabyte to say."""
    connection.c2s("FA")
    for _ in range(10):
        firewall.wait(60)
        assert connection.s2c("PA", bytes(1000)).left
        assert connection.c2s("A").left
        assert firewall.expire() == []
    assert firewall.tcp_state() == "HALF_CLOSED"
    connection.s2c("FA")
    assert firewall.tcp_state() == "TIME_WAIT"


def test_a_repeated_fin_is_one_fin(firewall, connection):
    """A retransmission does not close the other half."""
    connection.c2s("FA")
    assert connection.c2s("FA", seq=1001).left
    assert firewall.tcp_state() == "HALF_CLOSED"


def test_a_server_may_close_first(firewall, connection):
    """Directions are equal."""
    connection.s2c("FA")
    assert firewall.tcp_state() == "HALF_CLOSED"
    connection.c2s("FA")
    assert firewall.tcp_state() == "TIME_WAIT"
    assert connection.s2c("A").left


# ---- opening ----


def test_a_syn_may_be_repeated(firewall):
    """Both SYN and SYN-ACK get lost behind us; each repetition restarts the timer."""
    connection = Connection(firewall)
    connection.c2s("S")
    firewall.wait(3)
    assert connection.c2s("S", seq=1000).left
    firewall.wait(3)
    assert firewall.expire() == []
    connection.s2c("SA")
    assert connection.s2c("SA", seq=5000).left
    assert connection.c2s("S", seq=1000).left
    assert connection.c2s("A").left
    assert firewall.tcp_state() == "ESTABLISHED"


def test_a_client_may_try_again_with_another_sequence_number(firewall):
    """While nothing has been answered the newest SYN counts."""
    connection = Connection(firewall)
    connection.c2s("S", seq=77)
    assert connection.c2s("S").left
    assert connection.s2c("SA").left
    assert connection.c2s("A").left


def test_the_first_syn_ack_wins(firewall):
    """A forged second answer neither locks the real one out nor gets through."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("SA")
    connection.s2c("SA", seq=99999).is_dropped("tcp_drop_out_of_wnd")
    assert connection.c2s("A").left
    assert connection.c2s("PA", b"GET").left


@pytest.mark.parametrize("side", [0, 1])
def test_a_forged_syn_does_not_disturb_a_handshake(firewall, side):
    """Once the SYN is answered another one passes without effect: the numbers stay those of the first two."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("SA")
    assert connection.send(side, "S", seq=424242).left
    assert connection.s2c("SA", seq=5000).left
    assert connection.c2s("A").left
    assert connection.c2s("PA", b"GET").left
    assert connection.s2c("PA", b"200").left
    connection.send(side, "PA", b"evil", seq=424243).is_dropped("tcp_drop_out_of_wnd")


def test_an_answer_that_acknowledges_another_syn_is_dropped(firewall):
    """It cannot be for this client."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("SA", ack=12345).is_dropped("tcp_drop_out_of_wnd")
    assert firewall.tcp_state() == "SYN_SENT"


def test_simultaneous_open(firewall):
    """Two SYNs cross, two SYN-ACKs answer (RFC 9293 section 3.5)."""
    connection = Connection(firewall, scale=(7, 7))
    assert connection.c2s("S").left
    assert connection.s2c("S").left
    assert connection.c2s("SA", seq=1000).left
    assert connection.s2c("SA", seq=5000).left
    assert connection.c2s("A").left
    assert firewall.tcp_state() == "ESTABLISHED"
    assert list(firewall.session().window_scale) == [7, 7]
    assert connection.s2c("PA", bytes(1000)).left


@pytest.mark.parametrize("first", [0, 1])
def test_a_split_handshake_leaves_the_initiator_the_client(firewall, first):
    """The server answers the SYN with a SYN and ACKs the SYN-ACK; whoever speaks first, the session is the client's."""
    connection = Connection(firewall, scale=(7, 7))
    assert connection.c2s("S").left
    assert connection.s2c("S").left
    assert connection.c2s("SA", seq=1000).left
    assert connection.s2c("A").left
    assert connection.send(first, "PA", b"hello").left
    assert connection.send(1 - first, "A").left
    assert (firewall.tcp_state(), firewall.timeout()) == ("ESTABLISHED", 3600)
    assert firewall.session().key[0].zone == INSIDE
    connection.s2c("R").passes()
    firewall.wait(15.2)
    assert reasons(firewall) == ["tcp-rst-from-server"]


def test_data_in_the_syn_is_acknowledged_or_not(firewall):
    """TCP fast open: the server may take the data or only the SYN."""
    for port, taken in [(4000, 100), (4001, 0)]:
        connection = Connection(firewall, client=f"10.0.0.5:{port}")
        connection.c2s("S", bytes(100))
        assert connection.s2c("SA", ack=1001 + taken).left
        assert connection.c2s("A", seq=1001 + taken).left
        assert firewall.tcp_state() == "ESTABLISHED"


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA"])
def test_a_client_that_has_had_no_answer_has_nothing_to_acknowledge(firewall, flags):
    """In SYN_SENT only the SYN comes from the client."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.c2s(flags).is_dropped("tcp_drop_state")


@pytest.mark.parametrize("scale", range(15))
def test_a_window_scale_is_obeyed(firewall, scale):
    """The window that both offered is open to its last byte, and closed behind it."""
    connection = Connection(firewall, window=(1000, 1000), scale=(scale, scale)).open()
    edge = 1000 << scale
    connection.s2c("A")
    assert connection.s2c("PA", b"x", ahead=edge - 1).left
    connection.s2c("PA", b"x", ahead=edge + 1).is_dropped("tcp_drop_out_of_wnd")
    assert connection.c2s("PA", b"x", ahead=edge - 1).left
    connection.c2s("PA", b"x", ahead=edge + 1).is_dropped("tcp_drop_out_of_wnd")


@pytest.mark.parametrize("scale", [(7, None), (None, 7), (None, None)])
def test_a_scale_counts_only_if_both_offer_it(firewall, scale):
    """RFC 7323 section 1.3."""
    connection = Connection(firewall, window=(1000, 1000), scale=scale).open()
    assert list(firewall.session().window_scale) == [0, 0]
    connection.s2c("PA", b"x", ahead=1001).is_dropped("tcp_drop_out_of_wnd")


def test_a_scale_above_fourteen_is_fourteen(firewall):
    """RFC 7323 section 2.3."""
    Connection(firewall, scale=(200, 3)).open()
    assert list(firewall.session().window_scale) == [14, 3]


@pytest.mark.parametrize(
    "options", [b"\x03", b"\x03\x03", b"\x02\x00\x03\x03", b"\xfe\xff\x03\x03", b"\x01\x01\x01\x03"]
)
def test_broken_options_are_not_read(firewall, options):
    """A length of nothing or beyond the header ends the reading."""
    packet = TCP("10.0.0.5:4000", "8.8.8.8:80", "S", seq=1, window=100)
    packet["TCP"].dataofs = 6
    packet["Raw"].load = options.ljust(4, b"\0")
    firewall.c2s(packet).passes()
    assert list(firewall.session().window_scale) == [0, 0]


# ---- windows ----


def test_retransmissions_keep_alives_and_probes_pass(connection):
    """What looks old or empty is everyday traffic."""
    connection.c2s("PA", bytes(100))
    connection.s2c("A")
    assert connection.c2s("PA", bytes(100), seq=1001).left
    assert connection.c2s("A", ahead=-1).left
    assert connection.c2s("A", b"x", ahead=-1).left
    assert connection.s2c("A").left


def test_a_zero_window_is_probed(firewall):
    """One byte beyond a closed window, again and again, and then the window opens."""
    connection = Connection(firewall, window=(64000, 0))
    connection.window = (64000, 1000)
    connection.open()
    connection.c2s("PA", bytes(1000))
    connection.s2c("A", window=0)
    for _ in range(5):
        assert connection.c2s("A", b"x", ahead=0).left
        assert connection.s2c("A", window=0).left
    assert connection.s2c("A").left
    assert connection.c2s("PA", bytes(1000)).left


@pytest.mark.parametrize("ahead", [200000, -200000, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("side", [0, 1])
def test_data_outside_the_window_is_dropped(firewall, connection, side, ahead):
    """It moves nothing: neither windows nor timers nor counters of the session."""
    before = snapshot(firewall)
    connection.send(side, "PA", b"evil", ahead=ahead).is_dropped("tcp_drop_out_of_wnd")
    assert snapshot(firewall) == before
    assert connection.c2s("PA", b"fine").left


@pytest.mark.parametrize("offset", [1, 100000, -300000])
def test_an_acknowledgement_of_what_nobody_sent_is_dropped(connection, offset):
    """Nor is one that is absurdly old delivered (RFC 5961 section 5)."""
    connection.s2c("PA", bytes(1000))
    connection.c2s("PA", b"evil", ack=(6001 + offset) % 2**32).is_dropped("tcp_drop_out_of_wnd")


@pytest.mark.parametrize("isn", [2**32 - 1, 2**32 - 2, 2**31 - 1, 2**31, 0, 2**32 - 5000])
def test_sequence_numbers_wrap_around(firewall, isn):
    """From SYN to FIN across the end of the numbers."""
    connection = Connection(firewall, isn=(isn, isn)).open()
    for _ in range(10):
        assert connection.c2s("PA", bytes(1000)).left
        assert connection.s2c("PA", bytes(1000)).left
    connection.c2s("PA", b"x", ahead=500000).is_dropped("tcp_drop_out_of_wnd")
    connection.shut()
    assert firewall.tcp_state() == "TIME_WAIT"


def test_super_packets_are_segments_like_others(firewall):
    """GSO: 64 KiB at once, as the kernel hands them to us."""
    connection = Connection(firewall, window=(65535, 65535), scale=(7, 7)).open()
    connection.s2c("A")
    for _ in range(40):
        assert connection.c2s("PA", bytes(65483)).left
        assert connection.s2c("A").left
    assert connection.shut()


def test_a_gigabyte_of_progress_does_not_confuse_the_window(firewall):
    """Only one direction talks; the other one's numbers stand still."""
    connection = Connection(firewall, window=(65535, 65535), scale=(14, 14)).open()
    connection.s2c("A")
    for _ in range(10):
        connection.next[0] = (connection.next[0] + 500_000_000) % 2**32
        assert connection.c2s("PA", bytes(1000)).left
        assert connection.s2c("A").left


# ---- resets ----


@pytest.mark.parametrize(("side", "reason"), [(0, "tcp-rst-from-client"), (1, "tcp-rst-from-server")])
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_an_exact_reset_ends_the_connection(firewall, connection, side, reason, flags):
    """At the expected sequence number it is believed: time wait."""
    connection.send(side, flags).passes()
    assert firewall.tcp_state() == "TIME_WAIT"
    firewall.wait(15.2)
    assert reasons(firewall) == [reason]


@pytest.mark.parametrize("side", [0, 1])
def test_a_reset_inside_the_window_starts_the_unverified_timer(firewall, connection, side):
    """The host answers with a challenge ACK; nothing more comes if the RST was right after all."""
    outcome = connection.send(side, "R", ahead=100).passes()
    assert outcome.counted["tcp_rst_unverified"] == 1
    assert (firewall.tcp_state(), firewall.timeout()) == ("UNVERIFIED_RST", 30)
    firewall.wait(30.2)
    assert reasons(firewall) == ["aged-out"]


@pytest.mark.parametrize("side", [0, 1])
def test_data_after_an_unverified_reset_restores_the_connection(firewall, connection, side):
    """RFC 7857 section 2: back to established."""
    connection.send(side, "R", ahead=100)
    assert connection.send(side, "PA", b"alive").left
    assert (firewall.tcp_state(), firewall.timeout()) == ("ESTABLISHED", 3600)


def test_a_half_closed_connection_is_restored_as_half_closed(firewall, connection):
    """The FIN is not forgotten."""
    connection.c2s("FA")
    connection.s2c("R", ahead=100)
    assert firewall.tcp_state() == "UNVERIFIED_RST"
    connection.s2c("PA", b"alive")
    assert (firewall.tcp_state(), firewall.timeout()) == ("HALF_CLOSED", 120)
    connection.s2c("FA")
    assert firewall.tcp_state() == "TIME_WAIT"


@pytest.mark.parametrize("ahead", [-1, -100000, 100000, 2**31 - 1])
@pytest.mark.parametrize("side", [0, 1])
def test_a_reset_outside_the_window_is_dropped(firewall, connection, side, ahead):
    """A blind attacker's guess."""
    connection.send(side, "R", ahead=ahead).is_dropped("tcp_drop_rst_out_of_wnd")
    assert firewall.tcp_state() == "ESTABLISHED"


def test_a_server_refuses(firewall):
    """RST-ACK to a SYN, sequence 0."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("RA", seq=0).passes()
    assert firewall.tcp_state() == "TIME_WAIT"
    firewall.wait(15.2)
    assert reasons(firewall) == ["tcp-rst-from-server"]


def test_a_refusal_of_another_syn_is_dropped(firewall):
    """The acknowledgement says which one is meant, and without one nothing is."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("RA", seq=0, ack=4242).is_dropped("tcp_drop_rst_out_of_wnd")
    connection.s2c("R", seq=5000).is_dropped("tcp_drop_rst_out_of_wnd")
    assert firewall.tcp_state() == "SYN_SENT"


def test_a_client_gives_up_while_nobody_answers(firewall):
    """Its RST at the next sequence number is exact."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.c2s("R", seq=7).is_dropped("tcp_drop_rst_out_of_wnd")
    connection.c2s("R").passes()
    assert firewall.tcp_state() == "TIME_WAIT"


@pytest.mark.parametrize(
    ("side", "ahead", "state"), [(0, 0, "TIME_WAIT"), (1, 0, "TIME_WAIT"), (0, 10, "UNVERIFIED_RST")]
)
def test_a_reset_during_the_handshake(firewall, side, ahead, state):
    """After the SYN-ACK the windows are known, so the common rule holds."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.s2c("SA")
    connection.send(side, "R", ahead=ahead).passes()
    assert firewall.tcp_state() == state


@pytest.mark.parametrize(
    ("ahead", "state", "reason"), [(0, "TIME_WAIT", "tcp-rst-from-server"), (9, "UNVERIFIED_RST", "aged-out")]
)
def test_a_reset_while_half_closed(firewall, connection, ahead, state, reason):
    """The server aborts after the client's FIN."""
    connection.c2s("FA")
    connection.s2c("R", ahead=ahead).passes()
    assert firewall.tcp_state() == state
    firewall.wait(30.2)
    assert reasons(firewall) == [reason]


def test_a_reset_in_time_wait(firewall, connection):
    """In the window it passes, and does not stretch the session's life beyond time wait; outside it is dropped."""
    connection.shut()
    connection.c2s("R", ahead=10).passes()
    assert firewall.tcp_state() == "TIME_WAIT"
    connection.c2s("R", ahead=-500000).is_dropped("tcp_drop_rst_out_of_wnd")
    assert firewall.timeout() == 15


def test_an_exact_reset_stands_above_both_fins(firewall, connection):
    """A host whose FIN is acknowledged twice has no socket any more, and says so: the first in precedence is logged."""
    connection.shut()
    assert connection.s2c("R").left
    firewall.wait(15.2)
    assert reasons(firewall) == ["tcp-rst-from-server"]


# ---- old connections in the way of new ones ----


def test_a_syn_inside_a_connection_passes_without_effect(firewall, connection):
    """The host challenges it (RFC 5961 section 4); the session must not notice."""
    before = snapshot(firewall)
    assert connection.c2s("S", seq=424242).left
    after = snapshot(firewall)
    assert after | {"packets": before["packets"], "bytes": before["bytes"]} == before
    assert connection.s2c("A").left
    assert connection.c2s("PA", b"still here").left


def test_a_client_that_has_restarted_gets_through(firewall, connection):
    """SYN, challenge ACK, exact RST, and the next SYN is a new connection; the old one ends by the RST."""
    connection.s2c("PA", b"hello")
    connection.c2s("A")
    old = firewall.installed
    assert connection.c2s("S", seq=424242).left
    challenge = connection.s2c("A").packet["TCP"]
    assert connection.c2s("R", seq=challenge.ack).left
    assert firewall.tcp_state(old) == "TIME_WAIT"
    firewall.asks()
    connection.c2s("S", seq=424242).is_punted()
    assert [(ended.id, ended.reason) for ended in firewall.expire()] == [(old, "tcp-rst-from-client")]


def test_a_server_that_remembers_an_older_connection_challenges(firewall):
    """Only the server knows it: its ACK and the client's RST pass, and the repeated SYN opens (RFC 5961 section 4)."""
    connection = Connection(firewall)
    connection.c2s("S")
    assert connection.s2c("A", seq=777, ack=333).left
    assert connection.c2s("R", seq=333).left
    assert firewall.tcp_state() == "SYN_SENT"
    assert connection.c2s("S", seq=1000).left
    assert connection.s2c("SA").left
    assert connection.c2s("A").left
    assert firewall.tcp_state() == "ESTABLISHED"


def test_a_client_cannot_send_any_reset_before_a_challenge(firewall):
    """Only a challenge explains a RST that is not at the SYN's sequence."""
    connection = Connection(firewall)
    connection.c2s("S")
    connection.c2s("R", seq=333).is_dropped("tcp_drop_rst_out_of_wnd")


def test_a_closed_connection_is_reopened(firewall, connection):
    """The tuple is used again before time wait is over: a first packet, and the old session ends as tcp-fin."""
    connection.shut()
    old = firewall.installed
    outcome = firewall.asks().c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "S", seq=900000)).is_punted()
    assert outcome.counted["tcp_session_reused"] == 1
    assert [(ended.id, ended.reason) for ended in firewall.expire()] == [(old, "tcp-fin")]


def test_a_reused_tuple_after_one_fin_and_a_reset(firewall, connection):
    """The RST stands above tcp-reuse in the order of precedence."""
    connection.c2s("FA")
    connection.s2c("RA")
    firewall.asks().c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "S", seq=1)).is_punted()
    assert reasons(firewall) == ["tcp-rst-from-server"]


def test_a_reopened_connection_works_under_its_own_session(firewall, connection):
    """Old and new stand in the table together until the ager's next tick."""
    connection.shut()
    old = firewall.installed
    Connection(firewall, isn=(900000, 800000)).open()
    assert firewall.installed != old
    assert firewall.state(old) == "CLOSING"
    assert [ended.id for ended in firewall.expire()] == [old]
    assert firewall.stats()["tcp"] == 1


def test_an_old_duplicate_of_the_syn_does_not_reopen(firewall, connection):
    """Its sequence number lies behind the end of the connection (RFC 9293 section 3.6.1)."""
    connection.shut()
    connection.c2s("S", seq=1000).is_dropped("tcp_drop_out_of_wnd")
    assert firewall.tcp_state() == "TIME_WAIT"


def test_a_server_does_not_reopen(firewall, connection):
    """A SYN from its side belongs to no session of this client."""
    connection.shut()
    connection.s2c("S", seq=900000).is_dropped("tcp_drop_state")


def test_last_acknowledgements_pass_in_time_wait(connection):
    """A lost last ACK makes the FIN come again."""
    connection.shut()
    assert connection.s2c("FA", seq=5001).left
    assert connection.c2s("A").left


# ---- from the middle ----


@pytest.mark.parametrize("first", [("PA", b"data"), ("A", b"")])
def test_a_connection_is_picked_up_from_the_middle(firewall, first):
    """With reject_non_syn off: scales are unknown, so windows are as wide as they could be."""
    firewall.configure(reject_non_syn=False)
    connection = Connection(firewall, isn=(7_000_000, 2_000_000_000), window=(500, 500))
    assert connection.c2s(*first).left
    assert firewall.tcp_state() == "ESTABLISHED"
    assert connection.s2c("A").left
    assert connection.s2c("PA", bytes(60000)).left
    assert connection.c2s("A").left
    connection.shut()
    assert firewall.tcp_state() == "TIME_WAIT"


def test_a_connection_that_begins_with_its_end_is_not_picked_up(firewall):
    """Nothing would follow a FIN."""
    firewall.configure(reject_non_syn=False)
    Connection(firewall).c2s("FA").is_dropped("tcp_drop_state")


def test_resets_of_a_picked_up_connection_are_judged(firewall):
    """Both directions know what is expected next."""
    firewall.configure(reject_non_syn=False)
    connection = Connection(firewall)
    connection.c2s("PA", b"data")
    connection.s2c("R", ahead=5).passes()
    assert firewall.tcp_state() == "UNVERIFIED_RST"
    connection.s2c("R").passes()
    assert firewall.tcp_state() == "TIME_WAIT"


# ---- flags ----


@pytest.mark.parametrize(
    ("flags", "counter"),
    [("", "tcp_flag_zero"), ("SF", "tcp_flag_invalid"), ("SR", "tcp_flag_invalid"), ("SFA", "tcp_flag_invalid")],
)
def test_impossible_flags_are_dropped(connection, flags, counter):
    """In a connection as before one."""
    connection.c2s(flags, ahead=0).is_dropped(counter)
    connection.firewall.c2s(TCP("10.0.0.5:9", "8.8.8.8:9", flags)).is_dropped(counter)


@pytest.mark.parametrize("flags", ["F", "P", "U", "FPU"])
def test_a_segment_without_ack_does_not_count(firewall, connection, flags):
    """A host ignores it (RFC 9293 section 3.10.7.4), so it must not close our session: that would be an insertion."""
    connection.s2c(flags, b"x", ahead=0).is_dropped("tcp_flag_invalid")
    assert firewall.tcp_state() == "ESTABLISHED"


def test_urgent_and_ecn_bits_do_not_matter(firewall):
    """SYN with ECE and CWR is how ECN begins."""
    connection = Connection(firewall)
    assert connection.c2s("SEC").left
    assert connection.s2c("SAE").left
    assert connection.c2s("A").left
    assert connection.c2s("PAU", b"x").left
    assert firewall.tcp_state() == "ESTABLISHED"


# ---- what the receiver never sees, or does not believe ----


def dying(connection, side: int, flags: str, payload: bytes = b"", **fields):
    """A segment whose last hop is the firewall."""
    packet = connection.segment(side, flags, payload, 0, **fields)
    packet.ttl = 1
    return packet


@pytest.mark.parametrize("flags", ["R", "FA", "PA"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_segment_that_no_router_passes_on_changes_nothing(firewall, connection, side, flags):
    """Its receiver does not get it, so the connection goes on (Ptacek and Newsham, 1998)."""
    before = snapshot(firewall)
    firewall.send(dying(connection, side, flags, b"text"), (INSIDE, OUTSIDE)[side]).passes()
    after = snapshot(firewall)
    for counts in ("packets", "bytes"):
        assert after.pop(counts) != before.pop(counts)
    assert after == before
    connection.send(1 - side, "A", ack=connection.next[side] + 4).is_dropped("tcp_drop_out_of_wnd")


def test_a_syn_that_no_router_passes_on_opens_nothing(firewall):
    """Traceroute by TCP: what it installs waits for a SYN that lives."""
    connection = Connection(firewall)
    firewall.c2s(dying(connection, 0, "S")).passes()
    assert (firewall.tcp_state(), firewall.timeout()) == ("NEW", 5)
    connection.s2c("SA", ack=1001).is_dropped("tcp_drop_state")
    connection.open()
    assert firewall.tcp_state() == "ESTABLISHED"


@pytest.mark.parametrize(
    ("hops", "hook", "flags", "state"),
    [
        (1, lib.HOOK_FORWARD, 0, "TIME_WAIT"),
        (1, lib.HOOK_PREROUTING, lib.FLAG_HOST, "TIME_WAIT"),
        (2, lib.HOOK_PREROUTING, 0, "TIME_WAIT"),
        (1, lib.HOOK_PREROUTING, 0, "ESTABLISHED"),
        (0, lib.HOOK_PREROUTING, 0, "ESTABLISHED"),
    ],
)
@pytest.mark.parametrize("family", [4, 6])
def test_a_last_hop_arrives_on_a_wire_and_at_the_host(firewall, family, hops, hook, flags, state):
    """Nobody counts hops there; routed, two are enough."""
    ends = {4: ("10.0.0.5:4000", "8.8.8.8:80"), 6: ("[fd00::5]:4000", "[2001:db8::8]:80")}[family]
    connection = Connection(firewall.decides(flags=flags), *ends).open()
    reset = connection.segment(0, "R", b"", 0)
    setattr(reset, "ttl" if family == 4 else "hlim", hops)
    firewall.c2s(reset, hook=hook).passes()
    assert firewall.tcp_state() == state


def signed(firewall, kind: str) -> Connection:
    connection = Connection(firewall)
    assert connection.c2s("S", options=SIGNATURES[kind]).left
    assert connection.s2c("SA", options=SIGNATURES[kind]).left
    assert connection.c2s("A", options=SIGNATURES[kind]).left
    return connection


@pytest.mark.parametrize("flags", ["R", "RA", "FA", "FPA"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_who_signs_ignores_an_end_without_a_signature(firewall, kind, side, flags):
    """RFC 2385 section 4.1, RFC 5925 section 7.7: it is delivered, and changes nothing."""
    connection = signed(firewall, kind)
    before = snapshot(firewall)
    firewall.send(connection.segment(side, flags, b"", 0), (INSIDE, OUTSIDE)[side]).passes()
    after = snapshot(firewall)
    for counts in ("packets", "bytes"):
        assert after.pop(counts) != before.pop(counts)
    assert after == before
    assert connection.send(1 - side, "PA", b"on", options=SIGNATURES[kind]).left


@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_signed_connection_ends_by_signed_segments(firewall, kind):
    """Signatures are not verified: the hosts do."""
    connection = signed(firewall, kind)
    connection.c2s("FA", options=SIGNATURES[kind])
    assert firewall.tcp_state() == "HALF_CLOSED"
    connection.s2c("R", options=SIGNATURES[kind])
    assert firewall.tcp_state() == "TIME_WAIT"


def test_a_signature_on_an_end_alone_means_nothing(firewall, connection):
    """Whether a connection is signed is settled by its SYNs."""
    connection.c2s("FA", options=SIGNATURES["MD5"])
    connection.s2c("FA")
    assert firewall.tcp_state() == "TIME_WAIT"


# ---- timers follow the configuration ----


def test_a_changed_timer_holds_from_the_next_packet_on(firewall, connection):
    """Longer or shorter, for every protocol."""
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    datagrams = firewall.installed
    firewall.set_timers(tcp=100, udp=10)
    connection.c2s("A")
    firewall.c2s(UDP("10.0.0.5:4000", "8.8.8.8:53"))
    assert (firewall.timeout(1), firewall.timeout(datagrams)) == (100, 10)
    firewall.wait(10.2)
    assert [ended.id for ended in firewall.expire()] == [datagrams]
    firewall.wait(90)
    assert [ended.id for ended in firewall.expire()] == [1]


def test_end_reasons_stand_in_the_order_of_precedence():
    """panos.md: of several causes the highest is logged; the enum is that order."""
    order = [lib.END_THREAT, lib.END_POLICY_DENY, lib.END_TCP_RST_FROM_CLIENT, lib.END_TCP_RST_FROM_SERVER]
    order += [lib.END_RESOURCES_UNAVAILABLE, lib.END_TCP_FIN, lib.END_TCP_REUSE, lib.END_DECODER, lib.END_AGED_OUT]
    assert order == sorted(order)
    assert order[-1] < lib.END_UNKNOWN < lib.END_NONE
