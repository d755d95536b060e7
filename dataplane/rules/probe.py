"""Which back end works here, found out by trying: a kernel option, a tool or a module may be missing, and only the
kernel knows."""

import logging

from dataplane.errors import DataplaneError
from dataplane.rules import Backend
from dataplane.rules.iptables import Iptables
from dataplane.rules.nftables import Nftables

log = logging.getLogger(__name__)


def find_backend() -> Backend:
    """The first back end that the kernel of this namespace accepts; raises DataplaneError with what each of them
    lacks."""
    complaints = []
    for backend in candidates():
        try:
            backend.check()
        except DataplaneError as error:
            complaints.append(f"{backend.name}: {error}")
        else:
            return backend
    reasons = "; ".join(complaints) or "neither nft nor iptables is installed"
    raise DataplaneError(f"packets cannot be queued here: {reasons}")


def remove_leavings(keep: Backend | None = None) -> None:
    """Take out what a predecessor installed through any back end but `keep`, whose `install` replaces its own."""
    for backend in candidates():
        if keep is not None and backend.name == keep.name:
            continue
        try:
            backend.remove()
        except DataplaneError as error:
            log.warning("cannot look for old rules of %s: %s", backend.name, error)


def candidates() -> list[Backend]:
    """Back ends whose tools are installed, the preferred first."""
    return [*Nftables.variants(), *Iptables.variants()]
