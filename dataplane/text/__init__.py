"""What an operator reads: the daemon's JSON laid out as PAN-OS lays it out. Pure functions, JSON in, lines out."""

from dataplane.text.base import Json
from dataplane.text.counters import alg, counters, rule_hit_count
from dataplane.text.logs import log_status, system_log, traffic_log
from dataplane.text.policy import ippool, nat_match, nat_policy, security_match, security_policy
from dataplane.text.sessions import INFO_TIMEOUTS, session_all, session_id, session_info, session_meter
from dataplane.text.yaml import config

__all__ = [
    "INFO_TIMEOUTS",
    "Json",
    "alg",
    "config",
    "counters",
    "ippool",
    "log_status",
    "nat_match",
    "nat_policy",
    "rule_hit_count",
    "security_match",
    "security_policy",
    "session_all",
    "session_id",
    "session_info",
    "session_meter",
    "system_log",
    "traffic_log",
]
