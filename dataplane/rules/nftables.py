"""The rules as one nft table `inet dataplane`, replaced in one transaction."""

import shutil
from collections.abc import Iterable

from dataplane.errors import DataplaneError
from dataplane.rules import BROADCAST, ICMP_ERRORS, ICMPV6_ERRORS, MARK_OWN, Hooks, run

TABLE = "inet dataplane"
# One transaction: what the add makes is gone with the delete, so that no packet meets it.
CHECK = """
add table inet dataplane-check
add chain inet dataplane-check check
add rule inet dataplane-check check queue num 0
add rule inet dataplane-check check notrack
add rule inet dataplane-check check meta l4proto tcp tproxy to :1
delete table inet dataplane-check
"""


class Nftables:
    """Back end for kernels with the nft queue expression (CONFIG_NFT_QUEUE)."""

    name = "nftables"

    @classmethod
    def variants(cls) -> list["Nftables"]:
        """One, or none where the tool is missing."""
        return [cls()] if shutil.which("nft") else []

    def check(self) -> None:
        run(["nft", "-f", "-"], CHECK)

    def install(self, hooks: Hooks) -> None:
        run(["nft", "-f", "-"], ruleset(hooks))

    def remove(self) -> None:
        if self.installed():
            run(["nft", "delete", "table", *TABLE.split()])

    def installed(self) -> bool:
        try:
            run(["nft", "list", "table", *TABLE.split()])
        except DataplaneError:
            return False
        return True


def ruleset(hooks: Hooks) -> str:
    """The transaction that puts `hooks` in force: the table is added first so that deleting it cannot fail.

    The queueing chains stand one step before `mangle`, hence before anybody's rules there.  The chain `defrag` is never
    jumped to: `tproxy` switches on nf_defrag for both families when it is loaded, and unlike `ct` it does so without
    conntrack.  (nft's `socket` expression, other than the iptables match, does not.)
    """
    queue = queue_statement(hooks)
    return f"""
add table {TABLE}
delete table {TABLE}
table {TABLE} {{
	chain defrag {{
		meta l4proto tcp tproxy to :1
	}}
	chain prerouting-untracked {{
		type filter hook prerouting priority raw; policy accept;
		{_lines(f'iifname "{name}" notrack' for name in (*hooks.interfaces, *hooks.wires))}
	}}
	chain output-untracked {{
		type filter hook output priority raw; policy accept;
		{_lines(f'oifname "{name}" notrack' for name in hooks.interfaces)}
	}}
	chain prerouting {{
		type filter hook prerouting priority mangle - 1; policy accept;
		{_lines(f'iifname "{name}" {queue}' for name in hooks.interfaces)}
	}}
	chain forward {{
		type filter hook forward priority mangle - 1; policy accept;
		{_lines(rule for name in hooks.wires for rule in _wire_rules(name, queue))}
		{_lines(f'iifname "{name}" return' for name in hooks.interfaces)}
		{_lines(f'oifname "{name}" {queue}' for name in hooks.interfaces)}
	}}
	chain output {{
		type route hook output priority mangle - 1; policy accept;
		meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} return
		icmp type {{ {", ".join(map(str, ICMP_ERRORS))} }} {queue}
		icmpv6 type {{ {", ".join(map(str, ICMPV6_ERRORS))} }} {queue}
		{_lines(f'oifname "{name}" {queue}' for name in hooks.interfaces)}
	}}
}}
"""


def _wire_rules(name: str, queue: str) -> list[str]:
    """Of one wire: what is bridged is queued, and nothing is routed into it or out of it."""
    bridged = f'iifname "{name}" oifname "{name}"'
    return [
        f"{bridged} ip daddr {{ {', '.join(BROADCAST[4])} }} return",
        f"{bridged} ip6 daddr {', '.join(BROADCAST[6])} return",
        f"{bridged} {queue}",
        f'iifname "{name}" drop',
        f'oifname "{name}" drop',
    ]


def queue_statement(hooks: Hooks) -> str:
    """Flows are spread over the hot queues by a hash of their addresses."""
    numbers = str(hooks.first_queue) if hooks.workers == 1 else f"{hooks.first_queue}-{hooks.last_queue}"
    return f"queue num {numbers} bypass" if hooks.fail_open else f"queue num {numbers}"


def _lines(rules: Iterable[str]) -> str:
    return "\n\t\t".join(rules)
