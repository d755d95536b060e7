"""Servers that logs are sent to, as an operator writes them: udp://192.0.2.9:514, tcp://[2001:db8::9], unix:///dev/log."""

from dataclasses import dataclass
from urllib.parse import urlsplit

SYSLOG_PORTS = {"udp": 514, "tcp": 601, "tls": 6514, "unix": 0}
"""RFC 5426, RFC 6587, RFC 5425; a path has no port."""
IPFIX_PORTS = {"udp": 4739, "tcp": 4739}
"""RFC 7011."""
MAX_UNIX_PATH = 107
"""Bytes; sun_path of Linux without the final zero."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send. `host` is an address or a name, or the path of a unix socket."""

    transport: str
    host: str
    port: int = 0


def parse_syslog_server(text: str) -> Server:
    """A server of syslog; ValueError tells what is wrong."""
    return _parse(text, SYSLOG_PORTS)


def parse_collector(text: str) -> Server:
    """A collector of IPFIX; ValueError tells what is wrong."""
    return _parse(text, IPFIX_PORTS)


def _parse(text: str, ports: dict[str, int]) -> Server:
    parts = urlsplit(text)
    if parts.scheme not in ports:
        raise ValueError(f"'{text}' must begin with {' or '.join(f'{name}://' for name in ports)}")
    if parts.scheme == "unix":
        return _unix(text)
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"'{text}' must be {parts.scheme}://HOST or {parts.scheme}://HOST:PORT")
    if not _is_name(parts.hostname):
        raise ValueError(f"'{parts.hostname}' is no name of a host")
    if parts.port == 0:
        raise ValueError("port 0 is no port")
    return Server(parts.scheme, parts.hostname, parts.port or ports[parts.scheme])


def _is_name(host: str) -> bool:
    """Of a host or an address: what a resolver can be asked about."""
    try:
        return bool(host.encode("idna")) and host.isprintable() and " " not in host
    except UnicodeError:
        return False


def _unix(text: str) -> Server:
    path = text.partition(":")[2].removeprefix("//")
    if not path.startswith("/") or not path.isprintable() or not 1 < len(path.encode()) <= MAX_UNIX_PATH:
        raise ValueError(f"'{text}' must be unix:///PATH, of at most {MAX_UNIX_PATH} bytes")
    return Server("unix", path)
