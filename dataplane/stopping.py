"""Whether somebody has asked the daemon to stop, to reload, or to open its logs anew.

Only the standard library: it listens before the rest is loaded.

Until listen() is called Ctrl-C raises KeyboardInterrupt wherever Python happens to be, and a library that is being
imported may swallow it.
"""

import signal
import threading

_asked = threading.Event()
_reload = threading.Event()
_reopen = threading.Event()


def listen() -> threading.Event:
    """Set once SIGTERM or SIGINT has come; the same event at every call. Main thread only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: _asked.set())
    signal.signal(signal.SIGHUP, lambda _number, _frame: _reload.set())
    signal.signal(signal.SIGUSR1, lambda _number, _frame: _reopen.set())
    return _asked


def take_reload() -> bool:
    """Whether SIGHUP has come since the last time: the configuration's file shall be committed."""
    return _take(_reload)


def take_reopen() -> bool:
    """Whether SIGUSR1 has come since the last time: log files were moved and shall be opened anew."""
    return _take(_reopen)


def _take(event: threading.Event) -> bool:
    """A signal may come between any two lines: it must not be cleared by who has not seen it."""
    if not event.is_set():
        return False
    event.clear()
    return True
