"""Application layer gateways: which of them read what, as the settings say."""

from collections.abc import Callable, Mapping
from functools import partial

from dataplane.alg import mgcp, sip
from dataplane.alg.base import TCP, UDP, Alg
from dataplane.alg.ftp import Ftp
from dataplane.alg.h323 import H225, H245
from dataplane.alg.irc import Irc
from dataplane.alg.msrpc import Msrpc
from dataplane.alg.pptp import Pptp
from dataplane.alg.rsh import Rsh
from dataplane.alg.rtsp import Rtsp
from dataplane.alg.sccp import Sccp
from dataplane.alg.tftp import Tftp
from dataplane.alg.tns import Tns
from dataplane.policy.model import AlgSettings

Factory = Callable[[], Alg]


def _sip(settings: AlgSettings) -> Factory:
    return partial(sip.Sip, sip.Options(rewrite=settings.sip.rewrite, anyone=settings.sip.media_from == "any"))


def _mgcp(settings: AlgSettings) -> Factory:
    return partial(mgcp.Mgcp, mgcp.Options(anyone=settings.mgcp.media_from == "any"))


READERS: Mapping[tuple[str, int], Callable[[AlgSettings], Factory]] = {
    ("ftp", TCP): lambda _: Ftp,
    ("tftp", UDP): lambda _: Tftp,
    ("sip", UDP): _sip,
    ("sip", TCP): _sip,
    ("rtsp", TCP): lambda _: Rtsp,
    ("pptp", TCP): lambda _: Pptp,
    ("h.323", TCP): lambda _: H225,
    ("h.245", TCP): lambda _: H245,
    ("mgcp", UDP): _mgcp,
    ("rsh", TCP): lambda _: Rsh,
    ("sccp", TCP): lambda _: Sccp,
    ("oracle", TCP): lambda _: Tns,
    ("irc", TCP): lambda _: Irc,
    ("msrpc", TCP): lambda _: Msrpc,
}
"""By application and protocol, what makes the reader of one session, given the settings."""

SWITCHED_WITH = {"h.245": "h.323"}
"""Applications that have no switch of their own."""


def factories(settings: AlgSettings) -> dict[tuple[str, int], Factory]:
    """What reads a session; nothing where it is switched off."""
    switches = settings.by_application()
    return {
        (name, proto): make(settings)
        for (name, proto), make in READERS.items()
        if switches[SWITCHED_WITH.get(name, name)].enabled
    }
