"""Quotas: how much of the table and of the pools one source may hold (RFC 6888 REQ-4 and REQ-5).

A source is an IPv4 address of a zone, or an IPv6 /64, in which a host may give itself any address. What a session holds
of a quota is its claim: itself, and a translated port if it has one. DISCARD sessions and those that the firewall opens
itself claim nothing. Above a quota a new session is refused, and nobody is evicted (REQ-11).

The slow path installs, the ager's thread tells what has ended. A session and its claims are entered under one lock: an
end cannot be told before the session is known here. What has ended counts until the ager takes it, a tenth of a second
at most, or until its flow begins anew: a connection on the ports of the last one needs no room of its own.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dataplane.ffi import lib
from dataplane.flow import Decision, FlowKey, Session
from dataplane.policy.applications import TCP, UDP
from dataplane.sessions import HOST_ZONE, InstallError, SessionTable

PREFIX64 = (1 << 128) - (1 << 64)


class Claim(NamedTuple):
    """What a session holds of its source's quota; `port`: of that of ports."""

    zone: int
    source: int
    port: bool


class Quotas:
    """The claims of all sessions of a table that were installed while there was a limit."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._limits: dict[bool, int] = {}  # Claim.port -> limit
        self._by_session: dict[int, tuple[Claim, ...]] = {}  # session id
        self._by_flow: dict[FlowKey, int] = {}  # c2s -> session id, of the same sessions
        self._held: Counter[Claim] = Counter()

    def limit(self, sessions: int, ports: int) -> None:
        """How many sessions a source may have, and how many that hold a translated port; 0: as many as it likes."""
        self._limits = {port: limit for port, limit in ((False, sessions), (True, ports)) if limit}

    @property
    def unlimited(self) -> bool:
        """No source has a quota."""
        return not self._limits

    def install(self, key: FlowKey, decision: Decision, length: int) -> int:
        """As SessionTable.install(). Slow path thread only."""
        limits = self._limits
        if not limits or decision.discard or key.zone == HOST_ZONE:
            return self._table.install(key, decision, length)
        claims = tuple(Claim(key.zone, _source(key), port) for port in limits if not port or _holds_port(key, decision))
        with self._lock:
            if key in self._by_flow:  # it has ended: else the packet would be its own
                self._release(key, self._by_flow[key])
            if any(self._held[claim] >= limits[claim.port] for claim in claims):
                self._table.count(lib.SESSION_SOURCE_LIMIT)
                raise InstallError("session_source_limit")
            session_id = self._table.install(key, decision, length)
            self._by_session[session_id] = claims
            self._by_flow[key] = session_id
            for claim in claims:
                self._held[claim] += 1
        return session_id

    @property
    def idle(self) -> bool:
        """Nothing is held for any session."""
        with self._lock:
            return not self._by_session

    def ended(self, sessions: Iterable[Session]) -> None:
        """Sessions whose slots are about to be freed make room for others of their source."""
        with self._lock:
            for session in sessions:
                if session.id in self._by_session:
                    self._release(session.c2s, session.id)

    def _release(self, key: FlowKey, session_id: int) -> None:
        del self._by_flow[key]
        for claim in self._by_session.pop(session_id):
            self._held[claim] -= 1
            if not self._held[claim]:
                del self._held[claim]


def _source(key: FlowKey) -> int:
    return key.src if key.family == 4 else key.src & PREFIX64


def _holds_port(key: FlowKey, decision: Decision) -> bool:
    """Drawn or bound; what has neither port nor identifier is translated without one."""
    translation = decision.translation
    if translation is None or (key.proto not in (TCP, UDP) and not key.sport):
        return False
    return translation.ports is not None or translation.source_port is not None
