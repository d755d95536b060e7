"""The resource monitor: what is kept of every second, and how busy a thread is."""

import threading
from statistics import fmean

import pytest

from dataplane.resources import KEPT, PERIODS, History, Resources, ThreadLoads
from tests.lab.polling import poll

WEEK = 60 * 60 * 24 * 7
STEPS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": WEEK}


def seconds_of(n: int) -> list[float]:
    """Samples that repeat late, so that averages differ."""
    return [float(second * second % 101) for second in range(n)]


def history_of(samples: list[float]) -> History:
    made = History()
    for value in samples:
        made.add({"session": value})
    return made


@pytest.mark.parametrize("n", [0, 1, 59, 60, 61, 3600, 3661, 90_000])
def test_rows_are_those_of_whoever_keeps_everything(n):
    """Of each period the whole ones, newest first, as averages and maxima of their seconds."""
    samples = seconds_of(n)
    history = history_of(samples)
    for period, step in STEPS.items():
        whole = [samples[at : at + step] for at in range(0, n - n % step, step)]
        rows = history.last(period, KEPT[period])
        expected = list(reversed(whole))[: KEPT[period]]
        assert [row.average["session"] for row in rows] == pytest.approx([fmean(part) for part in expected])
        assert [row.maximum["session"] for row in rows] == [max(part) for part in expected]


def test_a_quarter_of_a_year_takes_bounded_memory():
    """More than there is room for pushes the oldest out."""
    history = history_of(seconds_of(200))
    assert sum(kept for _, kept, _ in PERIODS) == 164
    assert len(history.last("second", 1000)) == 60
    assert len(history.last("second", 5)) == 5


def test_what_is_new_begins_with_its_first_sample():
    """A thread that was not there before has used nothing then."""
    history = History()
    for second in range(60):
        history.add({"old": 10.0} | ({"new": 60.0} if second >= 30 else {}))
    (minute,) = history.last("minute", 60)
    assert (minute.average["new"], minute.maximum["new"]) == (30.0, 60.0)


def test_a_busy_thread_is_told_from_an_idle_one():
    """By the kernel's account of each; one that has ended is left out."""
    ending = threading.Event()
    threads: dict[str, int] = {}

    def spin() -> None:
        while not ending.is_set():
            pass

    busy, idle = threading.Thread(target=spin), threading.Thread(target=ending.wait)
    busy.start()
    idle.start()
    try:
        threads |= {"busy": busy.native_id or 0, "idle": idle.native_id or 0, "gone": 2**22 + 1}
        loads = ThreadLoads(lambda: threads)
        poll(lambda: loads.seconds()["busy"] >= 0.1, 20, "a tenth of a second to be used up")
        read = loads.read()
        assert read.keys() == {"busy", "idle"}
        poll(lambda: loads.read()["busy"] > 0, 20, "the busy thread to be seen")
        assert loads.seconds()["idle"] < 0.05
    finally:
        ending.set()
        busy.join()
        idle.join()


def test_a_sample_that_fails_is_missing_and_the_next_is_not(caplog, monkeypatch):
    """Whatever goes wrong, the thread goes on."""
    monkeypatch.setattr("dataplane.resources.SECOND", 0.01)
    asked = iter(range(1000))

    def utilization() -> dict[str, float]:
        if next(asked) == 0:
            raise OSError("no such file")
        return {"session": 5.0}

    resources = Resources(ThreadLoads(dict), utilization)
    resources.start()
    try:
        poll(lambda: resources.utilization.last("second", 1), 5, "a sample")
    finally:
        resources.stop()
    assert "a second of the resource monitor is missing" in caplog.text
