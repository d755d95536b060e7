"""The traffic log as PAN-OS writes it: CSV in the field order of PAN-OS 11.1 ("Traffic Log Fields").

Fields that this product has no value for are empty. Times are UTC, because a line of this format cannot say its zone;
the high resolution timestamp says it. Quoting is RFC 4180's.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from dataplane.sinks.base import Outlet, Parcel
from dataplane.sinks.file import LogFile
from dataplane.sinks.record import TrafficRecord, records

ORDER = """
future_use1 receive_time serial type subtype future_use2 time_generated src dst natsrc natdst rule srcuser dstuser app
vsys from to inbound_if outbound_if logset future_use3 sessionid repeatcnt sport dport natsport natdport flags proto
action bytes bytes_sent bytes_received packets start elapsed category future_use4 seqno actionflags srcloc dstloc
future_use5 pkts_sent pkts_received session_end_reason dg_hier_level_1 dg_hier_level_2 dg_hier_level_3 dg_hier_level_4
vsys_name device_name action_source src_uuid dst_uuid tunnelid monitortag parent_session_id parent_start_time tunnel
assoc_id chunks chunks_sent chunks_received rule_uuid http2_connection link_change_count policy_id link_switches
sdwan_cluster sdwan_device_type sdwan_cluster_type sdwan_site dynusergroup_name xff_ip src_category src_profile
src_model src_vendor src_osfamily src_osversion src_host src_mac dst_category dst_profile dst_model dst_vendor
dst_osfamily dst_osversion dst_host dst_mac container_id pod_namespace pod_name src_edl dst_edl hostid serialnumber
src_dag dst_dag session_owner high_res_timestamp nssai_sst nssai_sd subcategory_of_app category_of_app
technology_of_app risk_of_app characteristic_of_app container_of_app tunneled_app is_saas_of_app
sanctioned_state_of_app offloaded flow_type cluster_name
"""
COLUMNS = ORDER.split()

CONSTANT = {
    "future_use1": "1",
    "type": "TRAFFIC",
    "vsys": "vsys1",
    "repeatcnt": "1",
    "actionflags": "0x0",
    "action_source": "from-policy",
}
VALUES = """
receive_time subtype time_generated src dst natsrc natdst rule app from to inbound_if outbound_if sessionid sport dport
natsport natdport flags proto action bytes bytes_sent bytes_received packets start elapsed seqno pkts_sent
pkts_received session_end_reason device_name parent_session_id rule_uuid high_res_timestamp
"""
"""In the order of COLUMNS, which is that of the values below."""
LINE = ",".join("%s" if name in VALUES.split() else CONSTANT.get(name, "") for name in COLUMNS)

ACTIONS = {"reset-client": "reset client", "reset-server": "reset server", "reset-both": "reset both"}
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp"}
FLAG_IPV6 = 0x02000000
FLAG_NAT = 0x00400000

RuleUuid = Callable[[str], str]


def no_uuid(rule: str) -> str:
    """Rules have none."""
    del rule
    return ""


class PanCsv:
    """Makes the lines. `uuid_of` gives the uuid of the rule of a name, as it is at the moment."""

    def __init__(self, uuid_of: RuleUuid = no_uuid, device: str | None = None) -> None:
        self._uuid_of = uuid_of
        self._device = quoted(socket.gethostname() if device is None else device)
        self._seqno = time.time_ns() // 1000  # grows from one start of the daemon to the next

    def lines(self, text: bytes) -> Iterator[str]:
        """One for each JSON line, without an end of line."""
        return map(self.line, records(text))

    def line(self, record: TrafficRecord) -> str:
        when = pan_time(record.time)
        self._seqno += 1
        return LINE % (
            when,
            record.event,
            when,
            record.src,
            record.dst,
            record.nat_src,
            record.nat_dst,
            quoted(record.rule),
            quoted(record.application),
            quoted(record.from_zone),
            quoted(record.to_zone),
            quoted(record.ingress_interface),
            quoted(record.egress_interface),
            record.session_id,
            record.sport,
            record.dport,
            record.nat_sport,
            record.nat_dport,
            hex((FLAG_IPV6 if ":" in record.src else 0) | (FLAG_NAT if record.flags else 0)),
            PROTOCOLS.get(record.proto, record.proto),
            ACTIONS.get(record.action or "", record.action or ""),
            record.bytes_sent + record.bytes_received,
            record.bytes_sent,
            record.bytes_received,
            record.packets_sent + record.packets_received,
            pan_time(record.start),
            record.elapsed,
            self._seqno,
            record.packets_sent,
            record.packets_received,
            record.session_end_reason or "n/a",
            self._device,
            record.parent_session_id or 0,
            quoted(self._uuid_of(record.rule) if record.rule else ""),
            record.time.replace("Z", "+00:00"),
        )


class CsvFile(Outlet):
    """traffic.csv."""

    def __init__(self, csv: PanCsv, file: LogFile) -> None:
        self._csv = csv
        self._file = file

    def pack(self, lines: bytes, records: int) -> Iterable[Parcel]:
        return self._file.pack("".join(f"{line}\n" for line in self._csv.lines(lines)).encode(), records)

    def send(self, payload: bytes) -> None:
        self._file.send(payload)


def pan_time(time: str) -> str:
    """2026-01-01T00:00:00.000Z as 2026/01/01 00:00:00."""
    return f"{time[:4]}/{time[5:7]}/{time[8:10]} {time[11:19]}"


@lru_cache(maxsize=65536)
def quoted(text: str | None) -> str:
    """A field of RFC 4180: in quotes if it must be."""
    if text is None:
        return ""
    if any(sign in text for sign in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
