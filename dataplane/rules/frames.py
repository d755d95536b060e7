"""What a virtual wire does with frames before they are packets: one nft table `bridge dataplane`.

    frame ─► bridge ─► tag allowed? (-1) ─► br_netfilter (0): IP goes to FORWARD, where it is queued ─► other port

Without a look at the tag a second one would hide IP from br_netfilter, which sees through one only (kernel 6.18,
br_netfilter_hooks.c: is_vlan_ip).  So at most one 802.1Q tag passes, with an allowed id; a tag of priority alone (id 0)
counts as none (IEEE 802.1Q section 6.9).

Nothing that comes over a wire is for the host: it would be routed past every rule of the wire's zones.
"""

import shutil
from collections.abc import Sequence

from dataplane.errors import DataplaneError
from dataplane.policy.model import VirtualWire
from dataplane.policy.objects import merge, parse_tags
from dataplane.rules import run

TABLE = "bridge dataplane"
STACKED = "{ 0x8100, 0x88a8, 0x9100, 0x9200 }"  # what announces a tag
FOREIGN = "{ 0x88a8, 0x9100, 0x9200 }"  # the same without 802.1Q's own


def install(wires: Sequence[VirtualWire]) -> None:
    """Put the rules for these wires in force, in place of those that are there; raises DataplaneError."""
    if not shutil.which("nft"):
        raise DataplaneError("virtual wires need nftables: nft is not installed")
    run(["nft", "-f", "-"], ruleset(wires))


def remove() -> None:
    """Take the rules out; nothing happens if there are none."""
    if not shutil.which("nft"):
        return
    try:
        run(["nft", "list", "table", *TABLE.split()])
    except DataplaneError:
        return
    run(["nft", "delete", "table", *TABLE.split()])


def ruleset(wires: Sequence[VirtualWire]) -> str:
    """The transaction: the table is added first so that deleting it cannot fail."""
    ports = ", ".join(f'"{port}"' for wire in wires for port in wire.interfaces)
    tags = "\n\t\t".join(rule for wire in wires for rule in _tag_rules(wire))
    return f"""
add table {TABLE}
delete table {TABLE}
table {TABLE} {{
	chain forward {{
		type filter hook forward priority -1; policy accept;
		iifname {{ {ports} }} ether type {FOREIGN} drop
		iifname {{ {ports} }} vlan type {STACKED} drop
		{tags}
	}}
	chain input {{
		type filter hook input priority -1; policy accept;
		iifname {{ {ports} }} drop
	}}
}}
"""


def takes_untagged(wire: VirtualWire) -> bool:
    """Whether frames without a tag pass."""
    return _tags(wire)[0][0] == 0


def _tags(wire: VirtualWire) -> list[tuple[int, int]]:
    return merge(map(parse_tags, wire.tag_allowed))


def _tag_rules(wire: VirtualWire) -> list[str]:
    ranges = _tags(wire)
    allowed = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges)
    port_set = ", ".join(f'"{port}"' for port in wire.interfaces)
    rules = [f"iifname {{ {port_set} }} vlan id != {{ {allowed} }} drop"]
    if not takes_untagged(wire):
        rules.append(f"iifname {{ {port_set} }} ether type != 0x8100 drop")
    return rules
