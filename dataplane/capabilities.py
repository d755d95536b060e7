"""The capabilities (capabilities(7)) without which something is missing, and which of them a process holds.

config/systemd/dataplane.service grants these and no others.
"""

import re
from pathlib import Path

OFFLOAD = "offload"  # all else goes on without it
NEEDED = {  # name -> number in linux/capability.h, what it is for
    "CAP_NET_ADMIN": (12, "queue, no rule and no kernel setting"),
    "CAP_NET_RAW": (13, "RST and no ICMP error of our own"),
    "CAP_PERFMON": (38, OFFLOAD),
    "CAP_BPF": (39, OFFLOAD),
}
EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def missing(pid: int | str = "self") -> dict[str, str]:
    """Those that the process does not hold, with what each is for. OSError if there is no such process."""
    found = EFFECTIVE.search(Path(f"/proc/{pid}/status").read_text())
    held = int(found[1], 16) if found else 0
    return {name: purpose for name, (number, purpose) in NEEDED.items() if not held >> number & 1}
