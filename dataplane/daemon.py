"""`dataplane run`: one firewall in the foreground, from its configuration to its last log record.

The lock on dataplane.pid makes a second daemon on the same runtime directory fail before it touches anything; the
kernel drops the lock when its holder dies, however it dies.
"""

import fcntl
import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dataplane import capabilities, journal, stopping
from dataplane.commands import handlers
from dataplane.commit import Committer, first_config
from dataplane.control import ControlServer
from dataplane.engine import Engine
from dataplane.errors import ConfigError, DataplaneError
from dataplane.exporter import Exporter
from dataplane.notify import Watchdog, notify, reloading
from dataplane.versions import Versions

# Seconds after which a busy thread lets another one have the interpreter: a first packet waits at most so long for the
# ager or for a long list of sessions.
SWITCH_INTERVAL = 0.0005

log = logging.getLogger(__name__)


def run(config: Path, runtime_dir: Path, log_dir: Path, state_dir: Path) -> int:
    """Run until SIGTERM or SIGINT; the exit code (contract section 1)."""
    logging.basicConfig(level=logging.INFO, handlers=[journal.handler()])
    ending = stopping.listen()  # first: a stop that comes during the start must find somebody who cleans up
    versions = Versions(state_dir, runtime_dir)
    for name, purpose in capabilities.missing().items():
        log.warning("%s is not permitted: without it there is no %s", name, purpose)
    try:
        first = first_config(config, versions)
        runtime_dir.mkdir(parents=True, exist_ok=True)
        for directory in (log_dir, state_dir):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)  # who talks to whom is not everybody's business
        with _lock(runtime_dir / "dataplane.pid"):
            engine = Engine(first.config, runtime_dir, log_dir, first.ids)
            committer = Committer(engine, versions, config.absolute())
            committer.begin(first.order)
            return _serve(engine, committer, runtime_dir, ending)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (DataplaneError, OSError) as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return DataplaneError.exit_code


def _serve(engine: Engine, committer: Committer, runtime_dir: Path, ending: threading.Event) -> int:
    control = ControlServer(runtime_dir / "control.sock", handlers(engine, committer))
    exporter = Exporter(engine)
    engine.start()
    sys.setswitchinterval(SWITCH_INTERVAL)
    # What lives now lives to the end: the collector need not walk over ten thousand rules again and again.
    gc.collect()
    gc.freeze()
    watchdog = Watchdog(engine.turns)
    try:
        exporter.start()
        engine.followers.append(exporter.follow)
        control.start()
        notify("READY=1")
        log.info("ready: %d zones, %d security rules", len(engine.config.zones), len(engine.policy.security_rules))
        while not ending.is_set() and not engine.failed.wait(0.1):
            if stopping.take_reload():
                threading.Thread(target=_reload, args=(committer,), name="reload", daemon=True).start()
            if stopping.take_reopen():
                engine.reopen_logs()
            watchdog.look()
        notify("STOPPING=1")
        log.info("stopping: %d sessions end", engine.table.stats()["allocated"])
    finally:
        control.stop()
        committer.stop()
        exporter.stop()
        if engine.failed.is_set():
            engine.abandon()
        else:
            engine.stop()
    return DataplaneError.exit_code if engine.failed.is_set() else 0


def _reload(committer: Committer) -> None:
    """Beside the watchdog: ten thousand rules take their seconds."""
    with reloading():
        committer.reload()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """The pid file is ours inside the context, and gone after it; DataplaneError if another daemon holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise DataplaneError(f"another daemon (pid {file.read().strip()}) runs on {path.parent}") from None
        if not _is_at(path, file):
            raise DataplaneError(f"another daemon was just leaving {path.parent}")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock goes: whoever opened it meanwhile finds out by _is_at()


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
