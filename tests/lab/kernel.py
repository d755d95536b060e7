"""The kernel in our place: connection tracking, translation, and its helper for one application."""

from collections.abc import Sequence

import pytest

from tests.lab.lab import Lab

RULES = """table inet oracle {{
    {helpers}
    chain helped {{
        type filter hook prerouting priority mangle
        {helped}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        {allowed}
        reject with tcp reset
    }}
    chain in {{
        type nat hook prerouting priority dstnat
        {incoming}
    }}
    chain out {{
        type nat hook postrouting priority srcnat
        {outgoing}
    }}
}}"""


def kernel_helps(
    lab: Lab, application: str, port: int, transports: Sequence[str], incoming: Sequence[str], outgoing: Sequence[str]
) -> None:
    """Let everybody through to that port alone, and to what the kernel's helper opens; incoming, outgoing: NAT rules.

    A kernel without that helper skips the test.
    """
    helpers = [f'ct helper by_{each} {{ type "{application}" protocol {each}; }}' for each in transports]
    done = lab.run(
        "firewall",
        [
            "nft",
            RULES.format(
                helpers="\n".join(helpers),
                helped="\n".join(f'{each} dport {port} ct helper set "by_{each}"' for each in transports),
                allowed="\n".join(f"{each} dport {port} accept" for each in transports),
                incoming="\n".join(incoming),
                outgoing="\n".join(outgoing),
            ),
        ],
    )
    if "No such file" in done.stderr:
        pytest.skip(f"the kernel has no helper for {application}: {done.stderr.strip()}")
    assert not done.returncode, done.stderr


def translates(inside: str, outside: str, called: str = "") -> str:
    """A rule by which a client appears as another address; called: only to that one."""
    family = "ip6" if ":" in inside else "ip"
    called = called and f"{family} daddr {called}"
    return f"{family} saddr {inside} oifname out0 {called} snat {family} to {outside}"


def publishes(outside: str, inside: str) -> str:
    """A rule by which a server is called at another address."""
    family = "ip6" if ":" in inside else "ip"
    return f"iifname out0 {family} daddr {outside} dnat {family} to {inside}"
