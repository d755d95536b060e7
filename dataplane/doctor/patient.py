"""Whom the doctor looks at: a host, its daemon if one runs, and the configuration that this has or will have."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from dataplane.client import request
from dataplane.errors import DataplaneError
from dataplane.policy.compile import CompiledPolicy, compile_policy
from dataplane.policy.load import load, parse
from dataplane.policy.model import Config
from dataplane.routes import Link, read_links

DEFAULT_CONFIG = Path("/etc/dataplane/firewall.yaml")


def _is_locked(path: Path) -> bool:
    """By flock(2). To try it would be to hold the lock for a moment, and a daemon that starts then would give up."""
    inode = str(path.stat().st_ino)
    rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    return any(row[1] == "FLOCK" and row[5].rpartition(":")[2] == inode for row in rows)


@dataclass
class Patient:
    """`file` is the configuration that was named; without one it is the daemon's, or DEFAULT_CONFIG."""

    file: Path | None
    runtime_dir: Path
    log_dir: Path

    @cached_property
    def pid(self) -> int | None:
        """Of the daemon, which holds the lock of its pid file."""
        path = self.runtime_dir / "dataplane.pid"
        try:
            return int(path.read_text()) if _is_locked(path) else None
        except (FileNotFoundError, ValueError):
            return None

    @cached_property
    def config(self) -> Config | None:
        """None if there is none; raises ConfigError for one that is wrong."""
        if self.file is not None:
            return load(self.file)
        if self.pid is not None:
            return self._running()
        return load(DEFAULT_CONFIG) if DEFAULT_CONFIG.exists() else None

    def _running(self) -> Config | None:
        """None from a daemon that does not answer; host.py tells of that."""
        try:
            (running,) = request(self.runtime_dir, "show running config", {})
        except DataplaneError:
            return None
        return parse(json.dumps(running), "the running configuration")

    @cached_property
    def policy(self) -> CompiledPolicy | None:
        return None if self.config is None else compile_policy(self.config)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The zones' interfaces."""
        return () if self.policy is None else tuple(self.policy.interface_zone)

    @cached_property
    def wire_ports(self) -> frozenset[str]:
        wires = () if self.config is None else self.config.virtual_wires
        return frozenset(port for wire in wires for port in wire.interfaces)

    @cached_property
    def links(self) -> dict[str, Link]:
        """Every interface of the namespace, by name."""
        with IPRoute() as netlink:
            return {link.name: link for link in read_links(netlink)}

    @cached_property
    def present(self) -> tuple[str, ...]:
        """Those of the zones' interfaces that are there."""
        return tuple(name for name in self.named if name in self.links)

    @cached_property
    def devices(self) -> dict[str, Any]:
        """What netlink says of each interface, by name."""
        with IPRoute() as netlink:
            return {message.get_attr("IFLA_IFNAME"): message for message in netlink.get_links()}
