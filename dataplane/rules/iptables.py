"""The rules as chains DATAPLANE-* in the tables raw and mangle of iptables and ip6tables."""

import json
import shutil

from dataplane.errors import DataplaneError
from dataplane.rules import BROADCAST, ICMP_ERRORS, ICMPV6_ERRORS, MARK_OWN, Hooks, has_ipv6, run

PREFIX = "DATAPLANE-"
HOOKS = ("PREROUTING", "FORWARD", "OUTPUT")
LOCK_WAIT = "5"  # seconds for another iptables to finish
# A chain that nothing jumps to: the kernel checks its rules as it loads them, and no packet meets it.
CHECK = """*raw
:DATAPLANE-CHECK - [0:0]
-A DATAPLANE-CHECK -j CT --notrack
COMMIT
*mangle
:DATAPLANE-CHECK - [0:0]
-A DATAPLANE-CHECK -m socket --transparent -j RETURN
-A DATAPLANE-CHECK -m mark --mark 1/1 -j NFQUEUE --queue-balance 0:1 --queue-bypass
COMMIT
"""


class Iptables:
    """Back end for the tools `iptables{suffix}-restore` and `-save` and their IPv6 twins.

    `kind` is nf_tables or legacy: two worlds in the kernel that do not see each other's rules, both of which packets
    pass through.
    """

    def __init__(self, suffix: str, kind: str) -> None:
        self.name = f"iptables ({kind})"
        self.suffix = suffix
        self.kind = kind

    @classmethod
    def variants(cls) -> list["Iptables"]:
        """One per kind that is installed; the host's own choice, plain `iptables`, comes first."""
        found: dict[str, Iptables] = {}
        for suffix in ("", "-nft", "-legacy"):
            if shutil.which(f"iptables{suffix}-restore"):
                kind = "nf_tables" if "nf_tables" in run([f"iptables{suffix}", "--version"]) else "legacy"
                found.setdefault(kind, cls(suffix, kind))
        return list(found.values())

    def check(self) -> None:
        for tool in self._families():
            try:
                self._restore(tool, CHECK)
            finally:
                self._remove_chains(tool, f"{PREFIX}CHECK")

    def install(self, hooks: Hooks) -> None:
        for tool in self._families():
            self._restore(tool, _transaction(self._save(tool), tables(hooks, ipv6=tool == "ip6tables")))

    def remove(self) -> None:
        for tool in self._families():
            self._remove_chains(tool, PREFIX)

    def installed(self) -> bool:
        jumps = {f"-A {hook} -j {PREFIX}{hook}" for hook in HOOKS}
        return all(jumps <= set(self._save(tool).get("mangle", [])) for tool in self._families())

    def _families(self) -> tuple[str, ...]:
        return ("iptables", "ip6tables") if has_ipv6() else ("iptables",)

    def _save(self, tool: str) -> dict[str, list[str]]:
        """Lines of the save format by table; of all tables, since to name one creates it in the legacy kernel."""
        saved: dict[str, list[str]] = {}
        for line in run([f"{tool}{self.suffix}-save"]).splitlines():
            if line.startswith("*"):
                rows = saved.setdefault(line[1:], [])
            elif line.startswith((":", "-")):
                rows.append(line)
        return saved

    def _restore(self, tool: str, text: str) -> None:
        run([f"{tool}{self.suffix}-restore", "--noflush", "-w", LOCK_WAIT], text)

    def _remove_chains(self, tool: str, prefix: str) -> None:
        changes = _transaction(self._save(tool), {}, prefix)
        if changes:
            self._restore(tool, changes)
            self._drop_empty_tables(tool)

    def _drop_empty_tables(self, tool: str) -> None:
        """iptables-nft makes a table when it first needs it and leaves it behind; an empty one means nothing."""
        if self.kind != "nf_tables" or not shutil.which("nft"):
            return
        family = "ip" if tool == "iptables" else "ip6"
        for table in ("raw", "mangle"):
            try:
                listing = json.loads(run(["nft", "-j", "list", "table", family, table]))
            except DataplaneError:
                continue
            if all(_means_nothing(thing) for thing in listing["nftables"]):
                run(["nft", "delete", "table", family, table])


def tables(hooks: Hooks, ipv6: bool) -> dict[str, dict[str, list[str]]]:
    """Table, chain, and the rules of each chain, of one family.

    The chain DEFRAG is never jumped to: when its rule is loaded, the match `socket` switches on nf_defrag, which it
    needs, and not conntrack, which it does not.
    """
    queue = queue_target(hooks)
    icmp = "-p icmpv6 -m icmp6 --icmpv6-type" if ipv6 else "-p icmp -m icmp --icmp-type"
    return {
        "raw": {
            "PREROUTING": [f"-i {name} -j CT --notrack" for name in (*hooks.interfaces, *hooks.wires)],
            "OUTPUT": [f"-o {name} -j CT --notrack" for name in hooks.interfaces],
        },
        "mangle": {
            "DEFRAG": ["-m socket --transparent -j RETURN"],
            "PREROUTING": [f"-i {name} {queue}" for name in hooks.interfaces],
            "FORWARD": [
                *(rule for name in hooks.wires for rule in _wire_rules(name, queue, ipv6)),
                *(f"-i {name} -j RETURN" for name in hooks.interfaces),
                *(f"-o {name} {queue}" for name in hooks.interfaces),
            ],
            "OUTPUT": [
                f"-m mark --mark {MARK_OWN:#x}/{MARK_OWN:#x} -j RETURN",
                *(f"{icmp} {number} {queue}" for number in (ICMPV6_ERRORS if ipv6 else ICMP_ERRORS)),
                *(f"-o {name} {queue}" for name in hooks.interfaces),
            ],
        },
    }


def _wire_rules(name: str, queue: str, ipv6: bool) -> list[str]:
    """Of one wire: what is bridged is queued, and nothing is routed into it or out of it."""
    bridged = f"-i {name} -o {name}"
    return [
        *(f"{bridged} -d {group} -j RETURN" for group in BROADCAST[6 if ipv6 else 4]),
        f"{bridged} {queue}",
        f"-i {name} -j DROP",
        f"-o {name} -j DROP",
    ]


def queue_target(hooks: Hooks) -> str:
    """Flows are spread over the hot queues by a hash of their addresses."""
    balance = f"--queue-balance {hooks.first_queue}:{hooks.last_queue}"
    numbers = f"--queue-num {hooks.first_queue}" if hooks.workers == 1 else balance
    return f"-j NFQUEUE {numbers}" + (" --queue-bypass" if hooks.fail_open else "")


def _transaction(saved: dict[str, list[str]], wanted: dict[str, dict[str, list[str]]], prefix: str = PREFIX) -> str:
    """Text for iptables-restore that takes the chains of that prefix out of `saved` and puts those of `wanted` in."""
    lines = []
    for table in dict.fromkeys([*saved, *wanted]):
        changes = [*_removal(saved.get(table, []), prefix), *_insertion(wanted.get(table, {}))]
        if changes:
            lines += [f"*{table}\n", *(f"{change}\n" for change in changes), "COMMIT\n"]
    return "".join(lines)


def _removal(rows: list[str], prefix: str) -> list[str]:
    """Jumps first: a chain that is jumped to cannot go."""
    chains = [row[1:].split()[0] for row in rows if row.startswith(f":{prefix}")]
    jumps = [row for row in rows if row.startswith("-A ") and row.split()[-2:] in [["-j", chain] for chain in chains]]
    return [
        *(f"-D {row.removeprefix('-A ')}" for row in jumps),
        *(f"-F {chain}" for chain in chains),
        *(f"-X {chain}" for chain in chains),
    ]


def _insertion(chains: dict[str, list[str]]) -> list[str]:
    """The chains, and a jump to each that is named after a hook, before everything else in that hook."""
    return [
        *(f":{PREFIX}{chain} - [0:0]" for chain in chains),
        *(f"-A {PREFIX}{chain} {rule}" for chain, rules in chains.items() for rule in rules),
        *(f"-I {hook} -j {PREFIX}{hook}" for hook in HOOKS if hook in chains),
    ]


def _means_nothing(thing: dict[str, dict[str, str]]) -> bool:
    """True for an item of `nft -j list table` that no packet would miss: a hook's chain that accepts."""
    if "chain" in thing:
        return "hook" in thing["chain"] and thing["chain"].get("policy") == "accept"
    return "metainfo" in thing or "table" in thing
