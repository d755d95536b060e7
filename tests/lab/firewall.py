"""The real daemon in the lab's firewall namespace, and what it must not leave there."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.polling import LabError, poll

if TYPE_CHECKING:
    from tests.lab.lab import Lab

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "dataplane")
START = 20.0  # seconds until the control socket must answer
STOP = 10.0  # seconds from SIGTERM to the end

FOOTPRINT = {
    "iptables": "iptables-save",
    "ip6tables": "ip6tables-save",
    "nftables": "nft list ruleset",
    "qdiscs": "tc qdisc show",
    "filters": "for hook in ingress egress; do tc filter show dev in0 $hook; tc filter show dev out0 $hook; done",
    "links": "ip -o link show",
    "addresses": "ip -o address show",
    "rules": "ip rule show; ip -6 rule show",
    "sysctls": "grep -rHs . /proc/sys/net",
}
# Comments (with the time of day) and counters of *-save, and settings that the kernel moves by itself.
VOLATILE = re.compile(r"^#.*$|\[\d+:\d+\]|^/proc/sys/net/netfilter/nf_conntrack_(count|buckets).*$", re.MULTILINE)


class Firewall:
    """One daemon: its own runtime, log and state directories, its configuration and its commands."""

    def __init__(self, lab: "Lab", config: Mapping[str, Any] | Path, options: Sequence[str] = ()) -> None:
        self._lab = lab
        self._options = options
        self.directory = Path(tempfile.mkdtemp(prefix="firewall", dir=lab.directory))
        self.config = config if isinstance(config, Path) else self.write_config(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._footprint: dict[str, str] = {}
        self._neighbours: set[int] = set()  # pids in the namespace before the daemon

    @property
    def pid(self) -> int:
        """Of the daemon that was started last."""
        return self._daemon.pid

    @property
    def running(self) -> bool:
        """Whether the daemon that was started last is still alive."""
        return self._daemon.poll() is None

    @property
    def _daemon(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LabError("the firewall was never started")
        return self._process

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """A configuration file of this content, for `run` or `commit` (JSON is YAML)."""
        descriptor, name = tempfile.mkstemp(suffix=".yaml", dir=self.directory)
        with os.fdopen(descriptor, "w") as file:
            json.dump(config, file, indent=2)
        return Path(name)

    def start(self) -> None:
        """Start the daemon and return when its control socket answers. Raises LabError if the daemon ends instead."""
        if not self._footprint:
            self._footprint = self.footprint()
            self._neighbours = self._lab.pids("firewall")
        directories = [f"--{kind}-dir={self._path(kind)}" for kind in ("runtime", "log", "state")]
        command = [*PROGRAM, "run", f"--config={self.config}", *directories, *self._options]
        self._process = self._lab.popen("firewall", command, cwd=ROOT)
        poll(self._is_ready, START, "the control socket to answer")

    def stop(self) -> None:
        """SIGTERM. Raises LabError unless the daemon ends with 0 in time and leaves nothing in the namespace."""
        self._daemon.terminate()
        try:
            code = self._daemon.wait(STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"the daemon did not stop in {STOP:g} s") from None
        if code:
            raise LabError(f"the daemon ended with {code}")
        self.assert_nothing_left()

    def kill(self) -> None:
        """SIGKILL, as the kernel would on memory shortage; harmless when it has ended or never started."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def log(self) -> str:
        """What the daemon has written to its standard output and error."""
        return self._lab.output(self._process).strip() if self._process else "not started"

    def cli(self, *words: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        """`dataplane WORDS...` against this daemon: cli("show", "session", "all")."""
        environment = {**os.environ, "DATAPLANE_RUNTIME_DIR": str(self._path("runtime"))}
        command = self._lab.command("firewall", [*PROGRAM, *words])
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)

    def json(self, *words: str, timeout: float = 20) -> Any:
        """The same with --json, parsed. Raises LabError when the command fails."""
        done = self.cli(*words, "--json", timeout=timeout)
        if done.returncode:
            raise LabError(f"dataplane {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def sessions(self, **filters: object) -> list[dict[str, Any]]:
        """`show session all`, filtered: sessions(state="active", destination_port=80)."""
        pairs = [word for key, value in filters.items() for word in (key.replace("_", "-"), str(value))]
        found: list[dict[str, Any]] = self.json("show", "session", "all", *(["filter", *pairs] if pairs else []))
        return found

    def counter(self, name: str) -> int:
        """One global counter, 0 while it has never been counted."""
        found = self.json("show", "counter", "global", "filter", "value", "all")
        return next((counter["value"] for counter in found if counter["name"] == name), 0)

    def traffic_log(self, **fields: object) -> list[dict[str, Any]]:
        """The complete records of traffic.json that have all these values: traffic_log(event="deny")."""
        path = self._path("log") / "traffic.json"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [record for record in map(json.loads, lines) if fields.items() <= record.items()]

    def footprint(self) -> dict[str, str]:
        """What the namespace holds of rules, qdiscs, links, addresses and settings, as text to compare."""
        shown = {what: self._lab.run("firewall", ["sh", "-c", line]).stdout for what, line in FOOTPRINT.items()}
        return {what: VOLATILE.sub("", text) for what, text in shown.items()}

    def assert_nothing_left(self) -> None:
        """Raises LabError naming each line that was not there before the daemon, or is missing since."""
        problems = []
        for what, text in self.footprint().items():
            before, after = self._footprint[what].splitlines(), text.splitlines()
            problems += [f"{what}: left behind: {line}" for line in after if line not in before]
            problems += [f"{what}: gone: {line}" for line in before if line not in after]
        if left := self._lab.pids("firewall") - self._neighbours - self._lab.started():
            problems.append(f"processes left behind: {sorted(left)}")
        if problems:
            raise LabError("\n".join(problems))

    def _path(self, kind: str) -> Path:
        return self.directory / kind

    def _is_ready(self) -> bool:
        if not self.running:
            raise LabError(f"the daemon ended with {self._daemon.returncode}")
        request = json.dumps({"command": "show session info", "arguments": {}}) + "\n"
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(2)
            try:
                control.connect(str(self._path("runtime") / "control.sock"))
                control.sendall(request.encode())
                with control.makefile() as answer:
                    return bool(answer.read())
            except OSError:
                return False
