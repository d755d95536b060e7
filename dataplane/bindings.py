"""Bindings: what a source is translated to beyond a single session, kept while it has sessions that use it.

    dynamic-ip                      rule, source address            -> the next free address of the pool, port kept
    persistent-dynamic-ip-and-port  rule, source address and port,  -> one address and port, towards any destination
                                    protocol                           (endpoint-independent mapping, RFC 4787 REQ-1)

Pool and translated address are part of what is bound, so a session that begins after a commit or a change of the
interface's address gets a binding that follows it, and older sessions keep theirs.

The slow path installs, the ager's thread tells what has ended. A binding and its session are entered under one lock:
an end cannot be told before the session is known here. A binding that serves no session does not outlive install().
Ports are C's (natpool.c); which are free is asked there, and a port that a binding holds is shared with nobody.
"""

import threading
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from dataplane.ffi import lib
from dataplane.flow import Decision, FlowKey, Session, Translation
from dataplane.policy.applications import TCP, UDP
from dataplane.policy.compile import Pool
from dataplane.policy.model import SourceType
from dataplane.quotas import Quotas
from dataplane.sessions import InstallError, SessionTable


@dataclass(slots=True)
class Binding:
    """One source's translation and how many sessions use it."""

    source: Hashable
    rule: str
    proto: int
    address: int
    port: int | None  # None: every session keeps its own
    sessions: int = 0


class Bindings:
    """All bindings of a table; a NAT rule is known by its name. Quotas hold for bound sessions as for others."""

    def __init__(self, table: SessionTable, quotas: Quotas) -> None:
        self._table = table
        self._quotas = quotas
        self._lock = threading.Lock()
        self._by_source: dict[Hashable, Binding] = {}
        self._by_session: dict[int, Binding] = {}  # session id
        self._addresses: set[int] = set()  # of dynamic-ip pools, bound
        self._next: dict[str, int] = {}  # rule -> position in its pool after the address bound last
        self._held: Counter[str] = Counter()  # rule -> bindings

    def install(self, key: FlowKey, decision: Decision, length: int) -> int:
        """As SessionTable.install(), for a decision whose translation has a binding. Slow path thread only."""
        translation = decision.translation
        assert translation is not None
        pool = translation.binding
        assert pool is not None
        with self._lock:
            binding = self._bind(key, pool, translation)
            if binding is None:
                return self._install_unbound(key, decision, length)
            bound = translation._replace(source=binding.address, ports=None, source_port=binding.port)
            try:
                session_id = self._quotas.install(key, decision._replace(translation=bound), length)
                binding.sessions += 1
                self._by_session[session_id] = binding
            finally:
                if not binding.sessions:
                    self._release(binding)
        return session_id

    @property
    def idle(self) -> bool:
        """Nothing is held for any session."""
        with self._lock:
            return not self._by_session

    def ended(self, sessions: Iterable[Session]) -> None:
        """Sessions whose slots are about to be freed: a binding ends with the last that uses it."""
        with self._lock:
            for session in sessions:
                binding = self._by_session.pop(session.id, None)
                if binding is None:
                    continue
                binding.sessions -= 1
                if not binding.sessions:
                    self._release(binding)

    def held(self, rule: str) -> int:
        """How many bindings a rule has: addresses of a dynamic-ip pool in use, ports of a persistent one."""
        with self._lock:
            return self._held[rule]

    def _bind(self, key: FlowKey, pool: Pool, translation: Translation) -> Binding | None:
        """The source's binding, made if it has none; None if it gets none and falls back."""
        if pool.type is SourceType.DYNAMIC_IP:
            source: Hashable = pool.rule, pool.addresses, key.src
            return self._by_source.get(source) or self._bind_address(source, pool, translation)
        if key.proto not in (TCP, UDP) and not key.sport:  # no port, and no identifier that stands for one
            return None
        source = pool.rule, translation.source, key.src, key.sport, key.proto
        return self._by_source.get(source) or self._bind_port(source, key, pool, translation)

    def _bind_address(self, source: Hashable, pool: Pool, translation: Translation) -> Binding | None:
        address = self._free_address(pool)
        if address is not None:
            self._addresses.add(address)
            return self._enter(Binding(source, pool.rule, 0, address, None))
        if translation.source is None:
            self._table.count(lib.NAT_DIP_ALLOC_FAILURE)
            raise InstallError("nat_dip_alloc_failure")
        return None

    def _free_address(self, pool: Pool) -> int | None:
        """The next address of the pool that no source is bound to."""
        if self._held[pool.rule] >= pool.size:
            return None
        start = self._next.get(pool.rule, 0)
        for step in range(pool.size):
            position = (start + step) % pool.size
            address = pool.address(position)
            if address not in self._addresses:
                self._next[pool.rule] = position + 1
                return address
        return None

    def _bind_port(self, source: Hashable, key: FlowKey, pool: Pool, translation: Translation) -> Binding:
        assert translation.source is not None
        assert translation.ports is not None
        port = self._table.lend_port(translation.source, key.proto, translation.ports, key.sport)
        if port is None:
            self._table.count(lib.NAT_DIPP_ALLOC_FAILURE)
            raise InstallError("nat_dipp_alloc_failure")
        return self._enter(Binding(source, pool.rule, key.proto, translation.source, port))

    def _install_unbound(self, key: FlowKey, decision: Decision, length: int) -> int:
        translation = decision.translation
        assert translation is not None
        assert translation.source is not None
        self._table.open_pool(translation.source)
        return self._quotas.install(key, decision, length)

    def _enter(self, binding: Binding) -> Binding:
        self._by_source[binding.source] = binding
        self._held[binding.rule] += 1
        return binding

    def _release(self, binding: Binding) -> None:
        del self._by_source[binding.source]
        self._held[binding.rule] -= 1
        if binding.port is None:
            self._addresses.remove(binding.address)
        else:
            self._table.take_back_port(binding.address, binding.proto, binding.port)
