"""The logs: what a record of the traffic log says (contract section 5), and what one of the system log says.

Who writes them, and where to, is the sinks' concern.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from dataplane.flow import Session
from dataplane.names import Names
from dataplane.policy.objects import address_text
from dataplane.views import iso_time, iso_time_ms, nat_flags, nat_rule_name


def traffic_record(event: str, session: Session, names: Names, action: str, reason: str | None) -> dict[str, Any]:
    """One line of traffic.json; `event` is start, end, deny or drop, `reason` null for a start."""
    c2s, s2c = session.c2s, session.s2c
    return {
        "event": event,
        "time": iso_time_ms(time.time()),
        "session_id": session.id,
        "rule": names.rules.name(session.rule) or None,
        "nat_rule": nat_rule_name(session, names),
        "application": names.applications.name(session.application),
        "from": names.zone(c2s.zone),
        "to": names.zone(s2c.zone),
        "src": address_text(c2s.src),
        "dst": address_text(c2s.dst),
        "sport": c2s.sport,
        "dport": c2s.dport,
        "proto": c2s.proto,
        "nat_src": address_text(s2c.dst),
        "nat_dst": address_text(s2c.src),
        "nat_sport": s2c.dport,
        "nat_dport": s2c.sport,
        "bytes_sent": session.bytes[0],
        "bytes_received": session.bytes[1],
        "packets_sent": session.packets[0],
        "packets_received": session.packets[1],
        "start": iso_time(session.start),
        "elapsed": int(session.elapsed),
        "action": action,
        "session_end_reason": reason,
        "parent_session_id": session.parent or None,
        "ingress_interface": names.interface(session.ingress),
        "egress_interface": names.interface(session.egress),
        "flags": nat_flags(session),
        "via": "cache" if session.cached else "slow",
    }


class SystemLog(logging.Handler):
    """What the daemon says about itself, as records of system.json; `write` takes each."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        when, severity = iso_time_ms(record.created), record.levelname.lower()
        self._write({"time": when, "severity": severity, "source": record.name, "message": text})
