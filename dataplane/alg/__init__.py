"""Application layer gateways: which of them read what, as the settings say."""

from collections.abc import Callable

from dataplane.alg.base import TCP, UDP, Alg
from dataplane.alg.ftp import Ftp
from dataplane.alg.tftp import Tftp
from dataplane.policy.model import AlgSettings

Factory = Callable[[], Alg]


def factories(settings: AlgSettings) -> dict[tuple[str, int], Factory]:
    """What reads a session, by its application and protocol; nothing where it is switched off."""
    enabled = {name for name, written in settings.by_application().items() if written.enabled}
    known: dict[tuple[str, int], Factory] = {
        ("ftp", TCP): Ftp,
        ("tftp", UDP): Tftp,
    }
    return {key: factory for key, factory in known.items() if key[0] in enabled}
