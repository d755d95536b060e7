"""What is installed in the kernel, and how it is taken out again.

    packet ─► defrag (-400) ─► raw: notrack (-300) ─► mangle: NFQUEUE (-150) ─► routing ─► ...       PREROUTING
    own packet ─► defrag ─► raw: notrack ─► mangle: NFQUEUE ─► ...                                   OUTPUT
    from an interface of no zone into a zone ─► mangle: NFQUEUE, to be dropped and counted           FORWARD
    from one port of a virtual wire to the other ─► mangle: NFQUEUE ─► out                           FORWARD

Bridged packets are queued in FORWARD, where both ports are known and both addresses may be translated: one whose
destination changes in PREROUTING is lost where the bridge has no address (br_nf_pre_routing_finish).  There the device
of arrival and departure is the bridge, so no rule for an interface matches them.  Multicast and limited broadcast pass
without policy, as multicast does in PAN-OS unless its firewalling is switched on; a session could not hold their
answers.

Two back ends write the same rules: nftables.py (own table) and iptables.py (own chains); probe.py finds the one that
works here.  Each replaces what a dead predecessor left in one transaction (iptables: one per table and family), so that
no packet slips through between the old rules and the new.  The rules outlive a killed daemon on purpose: a queue that
nobody reads drops (fail-closed) or is passed by (fail-open).  So that nothing crosses unseen, install comes before
forwarding is switched on (sysctls.py), and the sysctls are restored before remove.

Ours is what bears our name (chains DATAPLANE-*, the table `inet dataplane`); nothing else is touched.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dataplane.errors import DataplaneError

MARK_OWN = 0x20000000  # packets that the daemon itself makes
# Errors that the kernel sends for a translated packet go to the translated source, which may be an address of our own:
# they leave through lo.  Unreachable, quench, redirect, time exceeded, parameter problem.
ICMP_ERRORS = (3, 4, 5, 11, 12)
# Unreachable, too big, time exceeded, parameter problem.
ICMPV6_ERRORS = (1, 2, 3, 4)
BROADCAST = {4: ("224.0.0.0/4", "255.255.255.255"), 6: ("ff00::/8",)}  # what is for more than one host
# A name that iptables or nft would read as a pattern or as syntax cannot be meant.
INTERFACE_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
COMMAND_TIMEOUT = 30  # seconds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Hooks:
    """What to queue where: hot queues are first_queue to first_queue + workers - 1.

    The interfaces need not exist yet.  Raises DataplaneError for values that no rule can express.
    """

    interfaces: tuple[str, ...]
    first_queue: int
    workers: int
    slow_queue: int
    fail_open: bool
    wires: tuple[str, ...] = ()  # bridge devices; their ports are not among the interfaces

    def __post_init__(self) -> None:
        for name in (*self.interfaces, *self.wires):
            if not INTERFACE_NAME.fullmatch(name):
                raise DataplaneError(f"cannot install rules for an interface named {name!r}")
        if self.workers < 1 or self.first_queue < 0 or max(self.last_queue, self.slow_queue) > 0xFFFF:
            raise DataplaneError(f"no such queues: {self.first_queue} to {self.last_queue}, slow {self.slow_queue}")
        if self.first_queue <= self.slow_queue <= self.last_queue:
            raise DataplaneError(f"queue {self.slow_queue} cannot be hot and slow")

    @property
    def last_queue(self) -> int:
        return self.first_queue + self.workers - 1


class Backend(Protocol):
    """One way to put the rules into the kernel of the current network namespace.  All raise DataplaneError."""

    name: str

    def check(self) -> None:
        """Try in the kernel whether everything that `install` needs is there; raises with what is missing."""

    def install(self, hooks: Hooks) -> None:
        """Put the rules in force, in place of those that are there."""

    def remove(self) -> None:
        """Take the rules out; nothing happens if there are none."""

    def installed(self) -> bool:
        """True if the rules of all families are in force."""


def run(argv: list[str], text: str | None = None) -> str:
    """Standard output of a command that was given `text`; raises DataplaneError with its complaint if it fails.

    It is in a session of its own, so that the Ctrl-C that ends the daemon does not end what cleans up after it.
    """
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise DataplaneError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise DataplaneError(f"{' '.join(argv)}: no answer in {COMMAND_TIMEOUT} s") from error
    if done.returncode:
        raise DataplaneError(f"{' '.join(argv)}: {' '.join(done.stderr.split())}")
    return done.stdout


def has_ipv6() -> bool:
    """False on a host whose kernel was started without IPv6."""
    return Path("/proc/sys/net/ipv6").exists()


class Record:
    """A JSON value on disk that the successor of a killed daemon reads.

    It counts only in the network namespace and boot that wrote it: elsewhere it would describe another kernel state.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Any:
        """The value last saved here in this namespace; None if there is none."""
        try:
            saved = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(saved, dict) or saved.get("where") != self._where():
            return None
        return saved.get("value")

    def save(self, value: Any) -> None:
        """Replace the file whole, so that a kill in between leaves the old or the new one."""
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps({"where": self._where(), "value": value}))
        draft.replace(self._path)

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    def _where(self) -> list[str]:
        return [BOOT_ID.read_text().strip(), os.readlink("/proc/thread-self/ns/net")]
