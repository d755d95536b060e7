"""Where a server of the daemon's own listens, as a configuration writes it."""

import ipaddress
from typing import NamedTuple

UNIX = "unix:"
MAX_PATH = 107
"""Bytes of a Unix socket's path in Linux, without the final zero."""


class Listen(NamedTuple):
    """Either host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Only this host can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


def parse_listen(text: str) -> Listen:
    """`127.0.0.1:9184`, `[::1]:9184` or `unix:/run/dataplane/metrics.sock`; ValueError for anything else."""
    if text.startswith(UNIX):
        return Listen(path=_path(text.removeprefix(UNIX)))
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"'{text}' is neither ADDRESS:PORT nor unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        return Listen(str(ipaddress.IPv6Address(host[1:-1])), int(port))
    return Listen(str(ipaddress.IPv4Address(host)), int(port))


def _path(path: str) -> str:
    if not path.startswith("/") or not path.isprintable() or len(path.encode()) > MAX_PATH:
        raise ValueError(f"a socket has an absolute path of at most {MAX_PATH} bytes")
    return path
