"""What an operator reads: the daemon's JSON laid out as PAN-OS lays it out. Pure functions, JSON in, lines out."""

from dataplane.text.base import Json
from dataplane.text.counters import alg, counters, rule_hit_count
from dataplane.text.diagnosis import diagnosis_log, diagnosis_setting
from dataplane.text.policy import ippool, nat_match, nat_policy, security_match, security_policy
from dataplane.text.sessions import INFO_TIMEOUTS, session_all, session_id, session_info, session_meter
from dataplane.text.yaml import config

__all__ = [
    "INFO_TIMEOUTS",
    "Json",
    "alg",
    "config",
    "counters",
    "diagnosis_log",
    "diagnosis_setting",
    "ippool",
    "nat_match",
    "nat_policy",
    "rule_hit_count",
    "security_match",
    "security_policy",
    "session_all",
    "session_id",
    "session_info",
    "session_meter",
]
