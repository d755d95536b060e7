"""`make demo ARGS=--story`: a connection fails, and an operator finds out why, mends the policy and proves it.

What is printed is what README shows; the checks are that each step tells what it should.
"""

import copy
import json
import subprocess
import sys
from typing import Any

from tests.lab.firewall import Firewall
from tests.lab.lab import CLIENT, SERVER, Lab, LabError, poll

PORT = 8080
PAGE = "orders: 3\n"
FIX = "fixed.yaml"
DIAG = ("debug", "dataplane", "packet-diag")
ABOUT = ("from", "trust", "to", "untrust", "source", CLIENT, "destination", SERVER)
CONFIG: dict[str, Any] = {
    "zones": [{"name": "trust", "interfaces": ["in0"]}, {"name": "untrust", "interfaces": ["out0"]}],
    "addresses": {"lan": "10.1.0.0/24"},
    "services": {
        "orders": {"protocol": "tcp", "destination-port": PORT},
        "unofficial": {"protocol": "tcp", "destination-port": "8000-8999"},
    },
    "security-rules": [
        {"name": "no-unofficial", "from": ["trust"], "service": ["unofficial"], "action": "deny"},
        {"name": "lan-out", "from": ["trust"], "to": ["untrust"], "source": ["lan"], "action": "allow"},
    ],
    "nat-rules": [
        {
            "name": "lan-snat",
            "from": ["trust"],
            "to": "untrust",
            "source-translation": {"type": "dynamic-ip-and-port", "interface": "out0"},
        }
    ],
}


def fixed() -> dict[str, Any]:
    """A rule for the application, above the one that was in its way."""
    config = copy.deepcopy(CONFIG)
    rule = {"name": "orders", "from": ["trust"], "to": ["untrust"], "source": ["lan"], "service": ["orders"]}
    config["security-rules"].insert(0, {**rule, "action": "allow"})
    return config


class Story:
    """One lab, one firewall, and the commands that are typed."""

    def __init__(self, lab: Lab, firewall: Firewall) -> None:
        self._lab = lab
        self._firewall = firewall

    def operator(self, *words: str, tells: str = "") -> str:
        """A command, and what it prints, in which `tells` must be. Raises LabError."""
        done = self._firewall.cli(*words)
        typed, said = f"firewall# dataplane {' '.join(words)}", (done.stdout + done.stderr).rstrip()
        print(
            "\n" + "\n".join([typed, said] if said else [typed]).replace(f"{self._firewall.directory}/", ""), flush=True
        )
        if done.returncode or tells not in done.stdout:
            raise LabError(f"dataplane {' '.join(words)}: {tells!r} was to be told; exit {done.returncode}")
        return done.stdout

    def client(self) -> str:
        """Asks for the page; what curl says of it."""
        url = f"http://{SERVER}:{PORT}/"
        print(f"\nclient$ curl --max-time 2 {url}", flush=True)
        done = self._lab.run("client", ["curl", "-sS", "--noproxy", "*", "--max-time", "2", url])
        said = done.stdout + done.stderr.replace("\r", "")
        print(said.rstrip(), flush=True)
        return said

    def capture(self, name: str) -> None:
        """What Wireshark reads in a capture."""
        fields = ("frame.number", "ip.src", "ip.dst", "tcp.dstport", "frame.comment")
        words = ["tshark", "-r", str(self._firewall.directory / "log" / "packet-diag" / name), "-T", "fields"]
        print(f"\nfirewall# tshark -r {name} -T fields {' '.join(f'-e {field}' for field in fields)}", flush=True)
        done = subprocess.run(
            [*words, *(word for field in fields for word in ("-e", field))], capture_output=True, text=True, check=True
        )
        print(done.stdout.rstrip(), flush=True)
        if "drop" not in done.stdout:
            raise LabError(f"the capture does not tell of the drop: {done.stdout}")


def tell(lab: Lab) -> None:
    """From the complaint to the proof. Raises LabError where a step does not tell what it should."""
    pages = lab.directory / "pages"
    pages.mkdir()
    (pages / "index.html").write_text(PAGE)
    lab.serve("server", [sys.executable, "-m", "http.server", str(PORT), "--directory", str(pages)], PORT)
    with lab.firewall(CONFIG) as firewall:
        story = Story(lab, firewall)
        complaint(story)
        look_closer(story, firewall)
        mend(story, firewall)


def complaint(story: Story) -> None:
    """The policy is asked, and the session list."""
    if "timed out" not in story.client():
        raise LabError("the connection was to fail")
    flow = (*ABOUT, "destination-port", str(PORT), "protocol", "6")
    story.operator("test", "security-policy-match", *flow, tells="no-unofficial")
    story.operator("show", "session", "all", "filter", "destination-port", str(PORT), tells="DISCARD")


def look_closer(story: Story, firewall: Firewall) -> None:
    """Is it that rule that drops the packets, and nothing before it? The log and a capture with reasons say so."""
    poll(lambda: firewall.traffic_log(dport=PORT), 5, "the record")
    story.operator("show", "log", "traffic", "last", "1", "filter", "dport", str(PORT), tells="no-unofficial")
    story.operator("clear", "session", "all", "filter", "destination-port", str(PORT), tells="1")
    story.operator(*DIAG, "set", "filter", "match", "source", CLIENT, "destination-port", str(PORT))
    for stage in ("receive", "drop"):
        story.operator(*DIAG, "set", "capture", "stage", stage, "file", "orders.pcapng")
    story.operator(*DIAG, "set", "log", "feature", "flow", "basic")
    for what in ("filter", "capture", "log"):
        story.operator(*DIAG, "set", what, "on")
    story.client()
    story.operator(*DIAG, "show", "log", tells="no-unofficial")
    story.operator(*DIAG, "set", "filter", "off")
    story.capture("orders.pcapng")
    story.operator(*DIAG, "clear", "all")


def mend(story: Story, firewall: Firewall) -> None:
    """A rule for the application, seen before it is committed, tried before it is kept."""
    file = firewall.directory / FIX
    file.write_text(json.dumps(fixed()))
    story.operator("show", "config", "diff", str(file), tells="+  - name: orders")
    story.operator("commit", str(file), "--check", tells="added orders")
    story.operator("commit", str(file), "--confirm", "60", tells="in force")
    if story.client() != PAGE:
        raise LabError("the connection was to work")
    story.operator("commit", "confirm", tells="confirmed")
    story.operator("show", "session", "all", "filter", "destination-port", str(PORT), tells="ACTIVE")
    story.operator("show", "config", "versions", tells="added orders")
