"""When sessions expire: to the tick, however long the timer, whatever happens meanwhile."""

import pytest

from dataplane.ffi import ffi, lib
from tests.talk import SECOND, TCP, UDP, Connection, Firewall

TURN = 8192  # ticks


def datagram(n: int = 0):
    return UDP(f"10.0.{n >> 8}.{n & 255}:4000", "8.8.8.8:53", b"")


def expiry(firewall, step: int = 1, limit: int = 10**7) -> int:
    """Ticks from now on until something ends, looked at every `step` ticks."""
    for waited in range(0, limit, step):
        if firewall.expire():
            return waited
        firewall.now += step
    raise AssertionError("nothing ends")


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        yield firewall.decides()


@pytest.mark.parametrize("seconds", [1, 2, 30, 60, 818, 819, 820, 1000, 1639, 3600])
def test_a_timer_runs_out_to_the_tick(firewall, seconds):
    """Also beyond one turn of the wheel, which takes 819 seconds; the tick of the last packet is spent in full."""
    firewall.set_timers(udp=seconds)
    firewall.c2s(datagram())
    assert expiry(firewall) == seconds * SECOND + 1
    assert firewall.stats()["scheduled"] == 0


@pytest.mark.parametrize("late", [0, 1, 5, TURN - 1, TURN, TURN + 1, 3 * TURN])
def test_an_ager_that_was_away_catches_up(firewall, late):
    """One call serves every slot that it has missed."""
    for n in range(3):
        firewall.c2s(datagram(n))
        firewall.wait(0.1)
    firewall.wait(30)
    firewall.now += late
    assert len(firewall.expire()) == 3


def test_timers_that_differ_end_in_their_order(firewall):
    """A hundred sessions, each with a timer of its own, each at its tick."""
    deadlines = {}
    for n in range(100):
        firewall.set_timers(udp=1 + (n * 37) % 100)
        firewall.c2s(datagram(n))
        session = firewall.session()
        deadlines[firewall.installed] = session.last_seen + session.timeout + 1
    while deadlines:
        firewall.now += 1
        due = {session_id for session_id, deadline in deadlines.items() if deadline <= firewall.now}
        assert {ended.id for ended in firewall.expire()} == due
        deadlines = {session_id: deadline for session_id, deadline in deadlines.items() if session_id not in due}


@pytest.mark.parametrize("timer", [30, 900, 2000])
def test_activity_puts_the_end_off(firewall, timer):
    """In either direction, by the whole timer, counted from the last packet."""
    firewall.set_timers(udp=timer)
    firewall.c2s(datagram())
    for _ in range(4):
        firewall.wait(timer - 1)
        assert firewall.expire() == []
        firewall.s2c(UDP("8.8.8.8:53", "10.0.0.0:4000"))
    assert expiry(firewall) == timer * SECOND + 1


def test_traffic_does_not_touch_the_wheel(firewall):
    """A session is in it once, however many packets it sees."""
    for _ in range(100):
        firewall.c2s(datagram())
        firewall.wait(0.1)
    assert firewall.stats()["scheduled"] == 1


@pytest.mark.parametrize("idle", [0, 100, 1000, 3599])
def test_a_shorter_timer_takes_hold_at_once(firewall, idle):
    """FIN or RST: the session comes forward, wherever it stood."""
    connection = Connection(firewall).open()
    firewall.wait(idle)
    assert firewall.expire() == []
    connection.c2s("R")
    assert expiry(firewall) == 15 * SECOND + 1


def test_a_longer_timer_is_met_when_the_old_one_would_have_run_out(firewall):
    """SYN, SYN-ACK, ACK: 5, 10, 3600 seconds."""
    connection = Connection(firewall)
    connection.c2s("S")
    firewall.wait(4)
    connection.s2c("SA")
    firewall.wait(9)
    assert firewall.expire() == []
    connection.c2s("A")
    assert expiry(firewall) == 3600 * SECOND + 1


def test_a_closed_session_ends_at_the_next_tick(firewall):
    """`clear session` does not wait for the timer."""
    firewall.set_timers(udp=100000)
    firewall.c2s(datagram())
    assert firewall.end(firewall.installed)
    assert not firewall.end(firewall.installed)
    assert [(ended.id, ended.reason) for ended in firewall.expire()] == [(1, "unknown")]


def test_a_generation_that_is_over_is_not_closed(firewall):
    """The slot may hold somebody else by the time the operator's command arrives."""
    firewall.c2s(datagram())
    generation = firewall.session().generation
    assert not firewall.end(firewall.installed, generation=generation + 1)
    assert firewall.end(firewall.installed, generation=generation)


@pytest.mark.parametrize("n", [1, 3, 63, 64, 65, 100, 128])
def test_as_many_end_as_the_caller_has_room_for(firewall, n):
    """api.h: call again while it returns n. None is lost, none comes twice."""
    for i in range(200):
        firewall.c2s(datagram(i))
    firewall.wait(31)
    room, ids = ffi.new("struct session_copy[]", n), []
    while (found := lib.table_expire(firewall.table, firewall.now, room, n)) == n:
        ids += [room[i].id for i in range(found)]
    ids += [room[i].id for i in range(found)]
    assert sorted(ids) == list(range(1, 201))


def test_sessions_that_go_on_do_not_hide_those_that_end(firewall):
    """Hundreds in one slot are re-armed, and one is over."""
    for i in range(200):
        firewall.c2s(datagram(i))
    firewall.wait(20)
    for i in range(199):
        firewall.c2s(datagram(i))
    firewall.wait(10.5)
    room = ffi.new("struct session_copy[]", 64)
    assert lib.table_expire(firewall.table, firewall.now, room, 64) == 1
    assert room[0].id == 200


# ---- accelerated aging ----


def fill(firewall, n: int) -> None:
    for i in range(firewall.stats()["allocated"], n):
        firewall.c2s(datagram(i))


def test_above_the_threshold_timers_are_divided(firewall):
    """256 slots, 80 percent, factor 10: from 205 sessions on, those that stand in the wheel already come forward."""
    firewall.configure(aging_threshold=80, aging_factor=10)
    firewall.set_timers(udp=1000)
    fill(firewall, 204)
    firewall.wait(100.2)
    assert firewall.expire() == []
    fill(firewall, 206)
    assert len(firewall.expire()) == 204
    assert len(firewall.expire()) == 0
    assert firewall.stats()["allocated"] == 2


def test_below_the_threshold_timers_are_whole_again(firewall):
    """What came forward is re-armed, not ended."""
    firewall.configure(aging_threshold=80, aging_factor=10)
    firewall.set_timers(udp=1000)
    fill(firewall, 206)
    assert firewall.expire() == []
    for session_id in range(1, 101):
        firewall.end(session_id)
    assert len(firewall.expire()) == 100
    assert firewall.expire() == []
    firewall.wait(101)
    assert firewall.expire() == []
    firewall.wait(900)
    assert len(firewall.expire()) == 106


def test_the_timer_in_force_is_told(firewall):
    """`show session id` shows what accelerated aging has made of it."""
    firewall.configure(aging_threshold=50, aging_factor=10)
    fill(firewall, 1)
    assert lib.session_timeout(firewall.table, firewall.session(1)) == 30 * SECOND
    fill(firewall, 200)
    firewall.expire()
    assert lib.session_timeout(firewall.table, firewall.session(1)) == 3 * SECOND


def test_activity_counts_under_pressure_too(firewall):
    """Accelerated aging shortens the time of silence, nothing else."""
    firewall.configure(aging_threshold=50, aging_factor=2)
    firewall.set_timers(udp=20)
    fill(firewall, 200)
    for _ in range(3):
        firewall.wait(8)
        firewall.c2s(datagram(7))
        firewall.expire()
    assert firewall.stats()["allocated"] == 1


def test_a_large_table_is_swept_within_a_second():
    """100,000 sessions that stand minutes ahead come forward when the pressure begins."""
    with Firewall(100_000) as firewall:
        firewall.configure(aging_threshold=90, aging_factor=10)
        firewall.set_timers(udp=600)
        firewall.decides()
        key = ffi.new("struct flow_key *", {"proto": 17, "zone": 1, "family": 4})
        for i in range(91_000):
            ffi.memmove(key.src, i.to_bytes(16), 16)
            firewall.install_key(key)
        firewall.now = lib.table_now() + 62 * SECOND
        ended = 0
        for _ in range(SECOND):
            while found := len(firewall.expire()):
                ended += found
            firewall.now += 1
        # Below the threshold the rest has its whole time again.
        assert ended > 1_000
        assert firewall.stats()["allocated"] < 90_000


def test_tcp_timers_are_divided_as_well(firewall):
    """An idle established connection is what accelerated aging is for."""
    firewall.configure(aging_threshold=50, aging_factor=10)
    Connection(firewall).open()
    firewall.set_timers(udp=36000)
    fill(firewall, 140)
    firewall.wait(359)
    assert firewall.expire() == []
    firewall.wait(1.2)
    assert [ended.id for ended in firewall.expire()] == [1]
    firewall.c2s(TCP("10.0.0.5:4000", "8.8.8.8:80", "A", seq=1001, ack=5001)).is_dropped("flow_tcp_non_syn_drop")
