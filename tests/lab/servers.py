"""Servers for the labs of FTP and TFTP: two real ones for FTP, one for TFTP, and ends of FTP that a test speaks itself.

The real ones serve a directory to everybody, on every address of both families. `UP` in it takes what is sent.
"""

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.lab import Lab

UP = "up"
ANYBODY = "elradfmw"  # pyftpdlib: every permission but to change modes and times

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


def directory(lab: "Lab", name: str, files: Mapping[str, bytes]) -> Path:
    """A directory to serve, which users other than root can read and whose UP they can write."""
    lab.directory.chmod(0o755)
    root = lab.directory / name
    (root / UP).mkdir(parents=True)
    (root / UP).chmod(0o777)
    for file, content in files.items():
        (root / file).write_bytes(content)
    return root


def vsftpd(lab: "Lab", ns: str, root: Path, port: int = 21) -> None:
    """Calls from the port below its own, and connects only when a transfer begins."""
    config = lab.directory / f"vsftpd-{ns}.conf"
    config.write_text(VSFTPD.format(root=root, port=port, data_port=port - 1))
    Path("/var/run/vsftpd/empty").mkdir(parents=True, exist_ok=True)
    lab.serve(ns, ["vsftpd", str(config)], port)


def pyftpd(lab: "Lab", ns: str, root: Path, port: int = 21) -> None:
    """Calls from any port, and answers PORT and EPRT only when it is connected."""
    lab.serve(ns, [sys.executable, __file__, str(port), str(root)], port)


def tftpd(lab: "Lab", ns: str, root: Path, port: int = 69) -> None:
    """tftpd-hpa. It gives up a transfer after a second without an answer, and takes new files into UP."""
    lab.serve(ns, ["in.tftpd", "-L", "-c", "-u", "root", "-s", "-a", f":{port}", str(root)], port, "udp")


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


def _serve_pyftpd(port: int, root: str) -> None:
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_anonymous(root, perm=ANYBODY)
    FTPServer(("::", port), FTPHandler).serve_forever()


if __name__ == "__main__":
    _serve_pyftpd(int(sys.argv[1]), sys.argv[2])
