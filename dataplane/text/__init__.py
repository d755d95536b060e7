"""What an operator reads: the daemon's JSON laid out as PAN-OS lays it out. Pure functions, JSON in, lines out."""

from dataplane.text.base import Json, printable, printable_lines
from dataplane.text.commit import commit_preview, committed, confirmed, versions
from dataplane.text.counters import alg, counters, rule_hit_count
from dataplane.text.diagnosis import diagnosis_log, diagnosis_setting
from dataplane.text.logs import log_status, system_log, traffic_log
from dataplane.text.policy import ippool, nat_match, nat_policy, security_match, security_policy
from dataplane.text.sessions import INFO_TIMEOUTS, session_all, session_id, session_info, session_meter
from dataplane.text.top import queues, resource_monitor, top
from dataplane.text.yaml import config

__all__ = [
    "INFO_TIMEOUTS",
    "Json",
    "alg",
    "commit_preview",
    "committed",
    "config",
    "confirmed",
    "counters",
    "diagnosis_log",
    "diagnosis_setting",
    "ippool",
    "log_status",
    "nat_match",
    "nat_policy",
    "printable",
    "printable_lines",
    "queues",
    "resource_monitor",
    "rule_hit_count",
    "security_match",
    "security_policy",
    "session_all",
    "session_id",
    "session_info",
    "session_meter",
    "system_log",
    "top",
    "traffic_log",
    "versions",
]
