"""Servers for the labs of FTP and TFTP: two real ones for FTP, one for TFTP, and ends of FTP that a test speaks itself.

The real ones serve a directory to everybody. `UP` in it takes what is sent. Those for FTP listen on every address of
both families, the one for TFTP on one (with several IPv6 addresses it answers from any of them).
"""

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import Lab, poll

UP = "up"

VSFTPD = """
listen=NO
listen_ipv6=YES
listen_port={port}
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root={root}
anon_upload_enable=YES
anon_umask=022
write_enable=YES
connect_from_port_20=YES
ftp_data_port={data_port}
secure_chroot_dir=/var/run/vsftpd/empty
seccomp_sandbox=NO
"""


@dataclass(frozen=True)
class Way:
    """From whom to whom, how the two know each other, and by which rules."""

    name: str
    ns: str
    source: str
    called: str
    seen: str  # the client, by the server
    serving: str  # the server's own address
    rule: str = "out"
    nat: str | None = None

    @property
    def server_ns(self) -> str:
        return "server" if self.ns == "client" else "client"

    @property
    def any(self) -> str:
        return "::" if self.ipv6 else "0.0.0.0"

    @property
    def ipv6(self) -> bool:
        return ":" in self.source

    @property
    def url(self) -> str:
        return f"[{self.called}]" if self.ipv6 else self.called


def directory(lab: Lab, name: str, files: Mapping[str, bytes]) -> Path:
    """A directory to serve, which users other than root can read and whose UP they can write."""
    lab.directory.chmod(0o755)
    root = lab.directory / name
    (root / UP).mkdir(parents=True)
    (root / UP).chmod(0o777)
    for file, content in files.items():
        (root / file).write_bytes(content)
    return root


def vsftpd(lab: Lab, ns: str, root: Path, port: int = 21) -> None:
    """Calls from the port below its own, and connects only when a transfer begins."""
    config = lab.directory / f"vsftpd-{ns}.conf"
    config.write_text(VSFTPD.format(root=root, port=port, data_port=port - 1))
    Path("/var/run/vsftpd/empty").mkdir(parents=True, exist_ok=True)
    lab.serve(ns, ["vsftpd", str(config)], port)


def pyftpd(lab: Lab, ns: str, root: Path, port: int = 21) -> None:
    """Calls from any port, and answers PORT and EPRT only when it is connected."""
    lab.serve(ns, [sys.executable, "-m", "pyftpdlib", "-i", "::", "-p", str(port), "-d", str(root), "-w"], port)


def tftpd(lab: Lab, ns: str, root: Path, address: str) -> None:
    """tftpd-hpa on port 69."""
    host = f"[{address}]" if ":" in address else address
    lab.popen(ns, ["in.tftpd", "-L", "-c", "-u", "root", "-s", "-a", f"{host}:69", str(root)])
    listens = ["ss", "-Hnlu", "src", f"{host}:69"]
    poll(lambda: lab.run(ns, listens).stdout, 10, f"in.tftpd to listen on {address}")


class FtpClient:
    """A control connection whose commands a test writes."""

    def __init__(self, control: socket.socket) -> None:
        self.socket = control
        self._answers = control.makefile("rb")

    def login(self) -> None:
        assert self.answer().startswith("220")
        assert self.command("USER anonymous").startswith(("230", "331"))
        assert self.command("PASS lab@").startswith("230")

    def command(self, line: str) -> str:
        """Say it and hear the answer."""
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        self.socket.sendall(f"{line}\r\n".encode())

    def answer(self) -> str:
        """The last line of the next reply (RFC 959, 4.2)."""
        while not (line := self._answers.readline().decode())[:4].rstrip("- ").isdigit() or line[3:4] == "-":
            if not line:
                raise ConnectionResetError("the server has closed")
        return line.rstrip()

    def close(self) -> None:
        self._answers.close()
        self.socket.close()


class Channel:
    """Both ends of a control connection that a test speaks itself, after the greeting and the login."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        server.settimeout(3)
        self.server_says(b"220 ready\r\n")
        self.client_says(b"USER anonymous\r\n")
        self.server_says(b"230 welcome\r\n")

    def client_says(self, text: bytes) -> bytes:
        """What the server hears: as many lines."""
        return _pass(self.client, self.server, text)

    def server_says(self, text: bytes) -> bytes:
        """What the client hears: as many lines."""
        return _pass(self.server, self.client, text)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def _pass(sender: socket.socket, receiver: socket.socket, text: bytes) -> bytes:
    sender.sendall(text)
    heard = b""
    while heard.count(b"\n") < text.count(b"\n"):
        heard += receiver.recv(65536)
    return heard


def six(address: str, port: int) -> str:
    """h1,h2,h3,h4,p1,p2 of RFC 959."""
    return f"{address.replace('.', ',')},{port >> 8},{port & 0xFF}"
