"""What STUN clients of other hands say of us, however full the table (RFC 4787 REQ-11): mapping, filtering, hairpin and
lifetime by RFC 5780, and by RFC 3489 before it.

    client side                               becomes
      10.1.0.3   dynamic-ip-and-port          10.2.0.1, the interface
      10.1.0.30  persistent                   10.2.0.100, ports 20000-20099
      10.1.0.71  static, called by everybody  10.2.0.163, for the inside too (U-turn)
      10.1.0.81  fills the table, a phantom   10.2.0.1
                                              10.2.0.11, 12 are the server's: coturn, ports 3478 and 3479
"""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tests.lab.console import info
from tests.lab.firewall import Firewall
from tests.lab.lab import SERVER, Lab, poll

STUN, OTHER = "10.2.0.11", "10.2.0.12"
PORT = 3478
LIFETIME = 3  # seconds that a session with the STUN server lasts
HOSTS = PORTS, PERSISTENT, STATIC = "10.1.0.3", "10.1.0.30", "10.1.0.71"
FILLER = "10.1.0.81"
PUBLIC = "10.2.0.163"  # of STATIC

STRICT, FREE, NOTHING = "Address and Port Dependent", "Endpoint Independent", "receive timeout"
# What coturn's clients are asked, and what they say last of each host. They count responses: when a lifetime is asked,
# the second is the one to the mapping. stunclient waits for ever for a response from elsewhere, so it is ended.
VERDICTS = {
    "turnutils_natdiscovery -m": (f"{STRICT} Mapping", f"{FREE} Mapping", f"{FREE} Mapping"),
    "turnutils_natdiscovery -m -P": (f"{STRICT} Mapping", f"{FREE} Mapping", f"{FREE} Mapping"),  # in fragments
    "turnutils_natdiscovery -f": (f"{STRICT} Filtering", f"{STRICT} Filtering", f"{FREE} Filtering"),
    "turnutils_natdiscovery -H": (NOTHING, NOTHING, "Received a request"),
    f"turnutils_natdiscovery -t -T {LIFETIME - 2}": ("response 2", "response 2", "response 2"),
    f"turnutils_natdiscovery -t -T {LIFETIME + 2}": (NOTHING, NOTHING, "response 2"),
    "timeout 5 turnutils_stunclient": ("response 1", "response 1", "response 3"),
}
SAID = r"NAT with (.*)!|RFC 5780 (response \d)|(Received a request)|STUN (receive timeout)"
CLASSIC = (
    "Dependent Mapping, random port, no hairpin",
    "Independent Mapping, Port Dependent Filter, random port, no hairpin",
    "Independent Mapping, Independent Filter, preserves ports, will hairpin",
)


def rule(name: str, source: str, translation: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"name": name, "from": ["trust"], "to": "untrust", "source": [source], "source-translation": translation}
    return base | {key.replace("_", "-"): value for key, value in more.items()}


OWN = {"type": "static-ip", "addresses": [PUBLIC]}
KEPT = {"type": "persistent-dynamic-ip-and-port", "addresses": ["10.2.0.100"], "port-range": "20000-20099"}
CONFIG = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "applications": {"stun": {"default-ports": [f"udp/{PORT}-{PORT + 1}"], "udp-timeout": LIFETIME}},
    "security-rules": [{"name": "all", "from": ["trust", "untrust"], "to": ["trust", "untrust"], "action": "allow"}],
    "nat-rules": [
        rule("turn", STATIC, OWN, destination=[PUBLIC], destination_translation={"address": STATIC}),
        rule("static", STATIC, OWN | {"bi-directional": True}),
        rule("kept", PERSISTENT, KEPT),
        rule("rest", "any", {"type": "dynamic-ip-and-port", "interface": "out0"}),
    ],
    "settings": {
        "session": {"max-sessions": 2000, "accelerated-aging": {"enabled": False}, "timeouts": {"udp": 300}},
    },
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With coturn at two addresses, as RFC 5780 wants it."""
    if not shutil.which("turnserver"):
        pytest.skip("coturn is not installed")
    with Lab(client_addresses=HOSTS, server_addresses=(STUN, OTHER), client_phantoms=[FILLER]) as made:
        server = ["turnserver", "-n", "-S", "-L", STUN, "-L", OTHER, "--no-tls", "--no-dtls", "--no-cli"]
        files = ["--log-file", "stdout", "--pidfile", str(made.directory / "turn.pid")]
        made.serve("server", [*server, *files], PORT, "udp")
        yield made


@pytest.fixture(scope="module")
def firewall(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as running:
        yield running


@pytest.fixture(scope="module", params=[10, 95], ids="{}%".format)
def fill(request: pytest.FixtureRequest, lab: Lab, firewall: Firewall) -> None:
    """So many percent of the table are sessions of one host, each from another port."""
    wanted: int = info(firewall)["num_max"] * request.param // 100
    ports = range(20000, 20000 + wanted)
    packets = [bytes(IP(src=FILLER, dst=SERVER) / UDP(sport=port, dport=9) / Raw(b"fill")) for port in ports]

    def is_filled() -> bool:
        lab.inject("client", *packets)
        return len(firewall.sessions(source=FILLER)) == wanted

    poll(is_filled, 10, f"{wanted} sessions")


def output(lab: Lab, *commands: list[str]) -> list[str]:
    """What the clients say; they run at once, for they do little but wait."""
    with ThreadPoolExecutor(len(commands)) as clients:
        return [done.stdout for done in clients.map(lambda command: lab.run("client", command), commands)]


def last_word(text: str) -> str:
    found = re.findall(SAID, text)
    assert found, text
    return "".join(found[-1])


def test_coturn_says_the_same(lab: Lab, firewall: Firewall, fill: None) -> None:
    """Mapping as each rule has it, strict filtering and no hairpin but for who may be called by everybody."""
    expected = {(asked, host): says for asked, row in VERDICTS.items() for host, says in zip(HOSTS, row, strict=True)}
    outputs = output(lab, *([*asked.split(), "-L", host, STUN] for asked, host in expected))
    assert firewall.counter("session_alloc_failure") == 0
    assert dict(zip(expected, map(last_word, outputs), strict=True)) == expected


def test_the_classic_client_says_the_same(lab: Lab, firewall: Firewall, fill: None) -> None:
    """RFC 3489, asked from a source port that no pool has."""
    if not shutil.which("stun"):
        pytest.skip("stun-client is not installed")
    outputs = output(lab, *(["stun", STUN, "-i", host, "-p", "900"] for host in HOSTS))
    assert [re.findall(r"Primary: (.*)\t", text) for text in outputs] == [[says] for says in CLASSIC]
