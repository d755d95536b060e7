"""One session and the names of its numbers, for tests of what is shown and logged of it."""

from typing import Any

from dataplane.flow import FlowKey, Session
from dataplane.names import Names
from dataplane.routes import address_from_text

TRUST, UNTRUST, HOST = 1, 2, 255
CLIENT, SERVER, OUTSIDE = map(address_from_text, ("10.1.0.2", "10.2.0.2", "10.2.0.1"))

LOG_KEYS = """
event time session_id rule nat_rule application from to src dst sport dport proto nat_src nat_dst nat_sport nat_dport
bytes_sent bytes_received packets_sent packets_received start elapsed action session_end_reason parent_session_id
ingress_interface egress_interface flags via
"""


def names() -> Names:
    """Zones trust and untrust, interfaces 3 and 4, rule lan-out, NAT rule lan-snat, application dns; 0 is nameless."""
    made = Names(16, HOST)
    made.set_zones({"trust": TRUST, "untrust": UNTRUST})
    made.set_interfaces({3: "in0", 4: "out0"})
    made.rules.numbers(["", "lan-out"])
    made.nat_rules.number("lan-snat")
    made.applications.numbers(["unknown-udp", "dns"])
    return made


def session(**changes: Any) -> Session:
    """A source-translated DNS exchange: one question of 60 bytes, one answer of 120."""
    made = Session(
        id=7,
        generation=1,
        c2s=FlowKey(CLIENT, SERVER, 4000, 53, 17, TRUST, 4),
        s2c=FlowKey(SERVER, OUTSIDE, 53, 40000, 17, UNTRUST, 4),
        state="ACTIVE",
        type="FLOW",
        end_reason=None,
        bytes=(60, 120),
        packets=(1, 1),
        timeout=30.0,
        time_to_live=28.9,
        start=1_767_225_600,
        elapsed=1.5,
        application=1,
        rule=1,
        nat_rule=0,
        ingress=3,
        egress=4,
        source_nat=True,
        destination_nat=False,
        log_end=True,
        host=False,
        parent=0,
    )
    return made._replace(**changes)
