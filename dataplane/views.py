"""A session as operators and programs read it (contract section 4): numbers become names, keys become flows."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from dataplane.flow import FlowKey, Session
from dataplane.names import Names
from dataplane.policy.objects import address_text

VSYS = "vsys1"
QOS_RULE = "N/A (class 4)"
NAT_FLAGS = {(False, False): "", (True, False): "NS", (False, True): "ND", (True, True): "NB"}


def session_json(session: Session, names: Names, why_not: str | None = None) -> dict[str, Any]:
    """One session of `show session all --json`; `why_not` it is offloaded, if it is not."""
    return {
        "id": session.id,
        "vsys": VSYS,
        "application": names.applications.name(session.application),
        "state": session.state,
        "type": session.type,
        "flags": nat_flags(session),
        "c2s": _flow(session.c2s, session, names, session.state),
        "s2c": _flow(session.s2c, session, names, "OPENING" if session.type == "PREDICT" else session.state),
        "start_time": iso_time(session.start),
        "timeout": int(session.timeout),
        "time_to_live": int(session.time_to_live),
        "bytes_c2s": session.bytes[0],
        "bytes_s2c": session.bytes[1],
        "packets_c2s": session.packets[0],
        "packets_s2c": session.packets[1],
        "rule": names.rules.name(session.rule) or None,
        "nat_rule": nat_rule_name(session, names),
        "address_port_translation": _translation(session),
        "logged_at_end": session.log_end,
        "in_ager": session.state in ("ACTIVE", "DISCARD"),
        "synced_from_ha_peer": False,
        "layer7_processing": "enabled" if session.inspected else "completed",
        "offload": session.offloaded,
        "offload_reason": why_not,
        "via_syn_cookies": False,
        "terminated_on_host": session.host,
        "ingress_interface": names.interface(session.ingress),
        "egress_interface": names.interface(session.egress),
        "qos_rule": QOS_RULE,
        "parent_session": session.parent or None,
        "prediction_triggered_by": ("server" if session.by_server else "client") if session.predicted else None,
        "prediction_matched_once": session.type == "FLOW" if session.predicted else None,
        "end_reason": session.end_reason or "unknown",
    }


def nat_flags(session: Session) -> str:
    """The Flag column: NS, ND, NB or nothing."""
    return NAT_FLAGS[session.source_nat, session.destination_nat]


def nat_rule_name(session: Session, names: Names) -> str | None:
    return None if session.nat_rule is None else names.nat_rules.name(session.nat_rule)


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the second."""
    return f"{_date_and_time(int(seconds))}Z"


def iso_time_ms(seconds: float) -> str:
    """The same to the millisecond."""
    return f"{_date_and_time(int(seconds))}.{int(seconds * 1000) % 1000:03}Z"


@lru_cache(maxsize=64)  # records of the same few seconds come in bursts
def _date_and_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _flow(key: FlowKey, session: Session, names: Names, state: str) -> dict[str, Any]:
    """A PREDICT session has 0 for an address that is not known yet; the answering flow of one is not there yet."""
    return {
        "source": _address(key.src, key.family),
        "source_zone": names.zone(key.zone),
        "dst": _address(key.dst, key.family),
        "proto": key.proto,
        "sport": key.sport,
        "dport": key.dport,
        "state": state,
        "type": session.type,
        "src_user": "unknown",
        "dst_user": "unknown",
    }


def _address(address: int, family: int) -> str:
    return address_text(address) if address or family == 6 else "0.0.0.0"


def _translation(session: Session) -> str | None:
    sides = [side for side, done in (("source", session.source_nat), ("destination", session.destination_nat)) if done]
    return " + ".join(sides) or None
