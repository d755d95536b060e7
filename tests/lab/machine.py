"""A clean Debian 12 under its own systemd, in a container whose network is a namespace of the lab.

    mmdebstrap ─► root directory ─► apt-get install PACKAGE ─► systemd-nspawn --boot       firewall namespace: in0, out0

The container has a process table, a file system and a systemd of its own and no more rights than the unit asks for.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.lab import Lab
from tests.lab.polling import LabError, poll

# What a server has beside the package: mmdebstrap's minimal system boots nothing.
PROGRAMS = "systemd,systemd-sysv,dbus,logrotate,procps"
PACKAGE = "/root/package.deb"  # the file, kept there
BUILD = 300.0  # seconds for a root directory
BOOT = 200.0  # seconds until systemd has started what there is to start
CAPABILITIES = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF,CAP_PERFMON"
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--root", "--wd")


class Machine:
    """A booted container; `run` is what its root would type."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(self, line: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A shell command line, to its end."""
        command = ["nsenter", f"--target={self._leader}", *NAMESPACES, "sh", "-c", line]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def has_booted(self) -> bool:
        """Degraded: some unit has failed, whose name is for a test to ask."""
        return self.run("systemctl is-system-running").stdout.strip() in ("running", "degraded")

    def succeeds(self, line: str, timeout: float = 60) -> str:
        """Its standard output; raises LabError with all that was said if it fails."""
        done = self.run(line, timeout)
        if done.returncode:
            raise LabError(f"{line}: exit {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """A file of the machine, readable for all."""
        target = self.root / path.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o644)


def build(root: Path, package: Path) -> None:
    """A minimal Debian 12 with the package, installed by apt as an operator would."""
    hooks = [
        f"copy-in {package} /tmp",
        f'chroot "$1" apt-get -q -y --no-install-recommends install /tmp/{package.name}',
        f'mv "$1/tmp/{package.name}" "$1{PACKAGE}"',
    ]
    options = ["--quiet", "--variant=minbase", f"--include={PROGRAMS}", *(f"--customize-hook={hook}" for hook in hooks)]
    done = subprocess.run(
        ["mmdebstrap", *options, "bookworm", str(root)], capture_output=True, text=True, timeout=BUILD
    )
    if done.returncode:
        raise LabError(f"mmdebstrap: {done.stderr[-2000:]}")


@contextmanager
def booted(root: Path, lab: Lab) -> Iterator[Machine]:
    """The root directory as a machine, until the end of the context."""
    options = [
        f"--directory={root}",
        f"--network-namespace-path=/run/netns/{lab.names['firewall']}",
        "--register=no",  # there need not be a systemd outside
        "--keep-unit",
        f"--capability={CAPABILITIES}",
        "--system-call-filter=bpf",
        "--console=pipe",
    ]
    container = subprocess.Popen(
        ["systemd-nspawn", "--quiet", *options, "--boot", "systemd.unit=multi-user.target"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        machine = Machine(root, poll(lambda: _child(container.pid), BOOT, "the container to begin"))
        poll(machine.has_booted, BOOT, "systemd to have booted")
        yield machine
    finally:
        _shut_down(container)


def _child(pid: int) -> int:
    """The first child of a process, 0 while it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _shut_down(container: subprocess.Popen[bytes]) -> None:
    container.terminate()  # nspawn passes it on as a request to power off
    try:
        container.wait(30)
    except subprocess.TimeoutExpired:
        container.kill()
        container.wait()
