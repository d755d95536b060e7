"""`dataplane doctor`: what this host lacks for the firewall, what collides with it, and what to do about it.

Nothing of the host is changed. What only trying can tell is tried in a network namespace that is made for it and ends
with the thread that is in it (kernel.py); the kernel may load modules for that, as it would for the daemon. The rest is
read: settings, interfaces and limits (host.py), other people's rules, programs and queues (rivals.py).

A probe takes the Patient and yields Findings; one that cannot look says so and keeps nobody from looking elsewhere.
"""

from collections.abc import Callable, Iterator

from dataplane.doctor import host, kernel, rivals
from dataplane.doctor.finding import FAIL, OK, WARN, Finding
from dataplane.doctor.patient import Patient
from dataplane.errors import ConfigError, DataplaneError

__all__ = ["FAIL", "OK", "WARN", "Finding", "Patient", "examine"]

Probe = Callable[[Patient], Iterator[Finding]]
PROBES: dict[str, Probe] = {
    "kernel": kernel.version,
    "capabilities": kernel.rights,
    "queues": kernel.queues,
    "offload": kernel.offload,
    "bridge": kernel.bridge,
    "daemon": host.daemon,
    "configuration": host.configuration,
    "interfaces": host.interfaces,
    "segmentation": host.segmentation,
    "settings": host.settings,
    "addresses": host.addresses,
    "memory": host.memory,
    "files": host.files,
    "disk": host.disk,
    "clock": host.clock,
    "conntrack": rivals.conntrack,
    "rules": rivals.rules,
    "readers": rivals.readers,
    "filters": rivals.filters,
    "leavings": rivals.leavings,
}


def examine(patient: Patient) -> Iterator[Finding]:
    """Every finding, in the order of PROBES. Raises ConfigError for a configuration that is missing or wrong."""
    for name, probe in PROBES.items():
        try:
            yield from probe(patient)
        except ConfigError:
            raise
        except (DataplaneError, OSError, ValueError) as error:
            yield Finding(name, WARN, f"cannot be examined: {error}", "run the doctor as root")
