"""Kernel settings that the firewall needs, and the way back to what they were.

What a value was is written to disk before the value is changed, and is kept until it has been restored.  A successor of
a killed daemon therefore finds the true originals in the file and not in the kernel, where the dead daemon's values
still stand.
"""

import socket
from collections.abc import Iterable
from pathlib import Path

from dataplane.errors import DataplaneError
from dataplane.rules import Record

ROOT = Path("/proc/sys")
# Writing the first sets the others behind our back (inet_forward_change, addrconf_fixup_forwarding), so they are
# remembered with it, and on the way back it is written before them.
FOLLOWERS = {
    "net/ipv4/ip_forward": ("net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/*/forwarding"),
    "net/ipv6/conf/all/forwarding": ("net/ipv6/conf/*/forwarding",),
}


def wanted(interfaces: Iterable[str]) -> list[tuple[str, str]]:
    """Paths under /proc/sys and their values, in the order in which they are to be set.

    accept_local, rp_filter: a packet whose source was translated in PREROUTING is routed with one of our own addresses
    as its source.  The kernel takes the maximum of `all` and the interface, so 0 is enough where `all` is 0, and 2
    (loose) beats a 1 there.  Anti-spoofing is the slow path's own.  send_redirects: a redirect leads a host around the
    firewall; the kernel sends one if `all` or the interface says so.

    accept_ra stays as it is: a firewall that takes its IPv6 address or default route from router advertisements needs
    accept_ra=2 from its operator, as any forwarding host does.
    """
    settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
    ]
    rp_filter = "0" if _read("net/ipv4/conf/all/rp_filter") == "0" else "2"
    for name in interfaces:
        settings += [
            (f"net/ipv4/conf/{name}/accept_local", "1"),
            (f"net/ipv4/conf/{name}/rp_filter", rp_filter),
            (f"net/ipv4/conf/{name}/send_redirects", "0"),
        ]
    return settings


class Sysctls:
    """Settings changed in the current network namespace; `runtime_dir`/`name`.json remembers what they were."""

    def __init__(self, runtime_dir: Path, name: str = "sysctls") -> None:
        self._record = Record(runtime_dir / f"{name}.json")
        self._originals: dict[str, str] = self._record.load() or {}

    def apply(self, interfaces: Iterable[str]) -> None:
        """Set what forwarding between `interfaces` needs; may be called again when an interface has come."""
        self.put(wanted(interfaces))

    def put(self, settings: Iterable[tuple[str, str]]) -> None:
        """Set the values that differ; a path that does not exist (no such interface, no IPv6) is passed over.

        Raises DataplaneError if the kernel refuses a value.
        """
        for path, value in settings:
            current = _read(path)
            if current is None or current == value:
                continue
            self._remember(path)
            _write(path, value)

    def release(self, interfaces: Iterable[str]) -> None:
        """Give back what apply() has set on interfaces that the firewall has nothing to do with any more."""
        common = {path for path, _ in wanted(())}
        for path in (path for path, _ in wanted(interfaces) if path not in common):
            original = self._originals.pop(_key_of(path), None)
            if original is not None:
                _write(path, original)
        self._record.save(self._originals)

    def restore(self) -> None:
        """Give every value back and forget it, those that a dead predecessor changed included."""
        for key, original in self._originals.items():
            path = _path_of(key)
            if path is not None and _read(path) not in (None, original):
                _write(path, original)
        self._originals = {}
        self._record.delete()

    def _remember(self, path: str) -> None:
        for each in (path, *_followers(path)):
            value = _read(each)
            if value is not None:
                self._originals.setdefault(_key_of(each), value)
        self._record.save(self._originals)


def _followers(path: str) -> list[str]:
    return [str(found.relative_to(ROOT)) for pattern in FOLLOWERS.get(path, ()) for found in sorted(ROOT.glob(pattern))]


def _key_of(path: str) -> str:
    """The path with #INDEX for an interface's name: its settings go with it when it is renamed, and end with it."""
    indices = {name: index for index, name in socket.if_nameindex()}
    return "/".join(f"#{indices[part]}" if part in indices else part for part in path.split("/"))


def _path_of(key: str) -> str | None:
    """None where the interface is no more."""
    names = {f"#{index}": name for index, name in socket.if_nameindex()}
    parts = [names.get(part, part) for part in key.split("/")]
    return None if any(part.startswith("#") for part in parts) else "/".join(parts)


def _read(path: str) -> str | None:
    """The value without its newline; None where there is no such setting."""
    try:
        return (ROOT / path).read_text().removesuffix("\n")
    except FileNotFoundError:
        return None


def _write(path: str, value: str) -> None:
    """An interface that has vanished since it was read takes its settings with it; that is no error."""
    try:
        (ROOT / path).write_text(value)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataplaneError(f"cannot set {path.replace('/', '.')} to {value}: {error.strerror}") from error
