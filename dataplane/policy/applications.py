"""Applications by well-known port, under their PAN-OS names, until payload inspection can tell them apart.

The name of a session follows from its protocol and destination port alone. Configured applications come before
built-in ones; a port that belongs to none is `unknown-tcp` or `unknown-udp`, a protocol without ports goes by its own
name. Palo Alto publishes no table of timers per application, so the built-in ones keep those of their protocol. Not so
calls that are signalled over UDP: between setting up and hanging up nothing is said, and what was opened for one ends
with its signalling.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dataplane.policy.model import AlgSettings, CustomApplication
from dataplane.policy.objects import LAST_PORT, PortRange, parse_default_port

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PREDICT_TIMEOUT = 60  # seconds; PAN-OS shows it for ftp-data
SIGNALLING_TIMEOUT = 3600  # seconds, as over TCP
MEDIA_PREDICT_TIMEOUT = 180  # a telephone may ring for that long
ECHO_PROTOCOLS = (ICMP, ICMPV6)

PROTOCOL_NAMES = {
    ICMP: "icmp",
    2: "igmp",
    4: "ip-in-ip",
    TCP: "tcp",
    UDP: "udp",
    41: "6in4",
    46: "rsvp",
    47: "gre",
    50: "esp",
    51: "ah",
    ICMPV6: "ipv6-icmp",
    88: "eigrp",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    115: "l2tpv3",
    132: "sctp",
    136: "udplite",
}

_DEFAULT_PORTS = {
    "bgp": "tcp/179",
    "dhcp": "udp/67 udp/68",
    "dhcpv6": "udp/546 udp/547",
    "dns": "udp/53 tcp/53",
    "finger": "tcp/79",
    "ftp": "tcp/21",
    "ftp-data": "",
    "git": "tcp/9418",
    "h.245": "",
    "h.323": "tcp/1720",
    "http-proxy": "tcp/3128",
    "ident": "tcp/113",
    "ike": "udp/500",
    "imap": "tcp/143 tcp/993",
    "ipsec-esp-udp": "udp/4500",
    "irc": "tcp/6667",
    "irc-dcc": "",
    "kerberos": "tcp/88 udp/88",
    "l2tp": "udp/1701",
    "ldap": "tcp/389 tcp/636 tcp/3268 tcp/3269 udp/389",
    "mgcp": "udp/2427 udp/2727",
    "mqtt": "tcp/1883",
    "ms-ds-smb": "tcp/445 udp/445",
    "ms-rdp": "tcp/3389 udp/3389",
    "msrpc": "tcp/135 udp/135",
    "mssql-db": "tcp/1433",
    "mssql-mon": "udp/1434",
    "mysql": "tcp/3306",
    "netbios-dg": "udp/138",
    "netbios-ns": "udp/137 tcp/137",
    "netbios-ss": "tcp/139",
    "nfs": "tcp/2049 udp/2049",
    "nntp": "tcp/119",
    "ntp": "udp/123 tcp/123",
    "open-vpn": "udp/1194 tcp/1194",
    "oracle": "tcp/1521",
    "pop3": "tcp/110 tcp/995",
    "portmapper": "tcp/111 udp/111",
    "postgres": "tcp/5432",
    "pptp": "tcp/1723",
    "pptp-gre": "",
    "quic": "udp/443",
    "radius": "udp/1812 udp/1813 udp/1645 udp/1646",
    "rip": "udp/520",
    "rsh": "tcp/514",
    "rsh-error": "",
    "rsync": "tcp/873",
    "rtcp": "",
    "rtp": "",
    "rtsp": "tcp/554 udp/554",
    "sccp": "tcp/2000",
    "sip": "udp/5060 tcp/5060",
    "smtp": "tcp/25 tcp/587",
    "snmp": "udp/161 tcp/161",
    "snmp-trap": "udp/162 tcp/162",
    "socks": "tcp/1080",
    "ssh": "tcp/22",
    "ssl": "tcp/443",
    "stun": "udp/3478 tcp/3478",
    "syslog": "udp/514 tcp/1468",
    "tacacs-plus": "tcp/49",
    "telnet": "tcp/23",
    "tftp": "udp/69",
    "tftp-data": "",
    "vnc": "tcp/5900",
    "web-browsing": "tcp/80 tcp/8080",
    "whois": "tcp/43",
}

HOST_SERVICES: Mapping[str, tuple[PortRange, ...]] = {
    "ping": ((ICMP, 0, LAST_PORT), (ICMPV6, 0, LAST_PORT)),
    "ssh": ((TCP, 22, 22),),
    "dns": ((UDP, 53, 53), (TCP, 53, 53)),
    "dhcp": ((UDP, 67, 68), (UDP, 546, 547)),
    "http": ((TCP, 80, 80),),
    "https": ((TCP, 443, 443),),
    "snmp": ((UDP, 161, 161),),
}
"""Words of `host-inbound`; a configured service of the same name takes the word's place."""


@dataclass(frozen=True, slots=True)
class Application:
    """An application, its default ports and its timers in seconds; 0 where the protocol's timer holds."""

    name: str
    ports: tuple[PortRange, ...] = ()
    timeout: int = 0
    tcp_timeout: int = 0
    udp_timeout: int = 0
    tcp_half_closed_timeout: int = 0
    tcp_time_wait_timeout: int = 0
    predict_timeout: int = PREDICT_TIMEOUT

    def is_default_port(self, proto: int, dport: int) -> bool:
        """Whether `application-default` lets this application use the port."""
        return any(proto == own and first <= dport <= last for own, first, last in self.ports)


def _built_in() -> dict[str, Application]:
    table = {
        name: Application(name, tuple(parse_default_port(text) for text in ports.split()))
        for name, ports in _DEFAULT_PORTS.items()
    }
    for proto, name in PROTOCOL_NAMES.items():
        if proto not in (TCP, UDP):
            table[name] = Application(name, ((proto, 0, LAST_PORT),))
    table["ping"] = Application("ping", tuple((proto, 0, LAST_PORT) for proto in ECHO_PROTOCOLS))
    for name in ("sip", "mgcp"):
        table[name] = replace(table[name], udp_timeout=SIGNALLING_TIMEOUT)
    for name in ("rtp", "rtcp"):
        table[name] = replace(table[name], predict_timeout=MEDIA_PREDICT_TIMEOUT)
    return table | {name: Application(name) for name in ("unknown-tcp", "unknown-udp", "unknown-p2p")}


BUILT_IN: Mapping[str, Application] = _built_in()


class ApplicationTable:
    """The applications of one configuration: by name, and by port in one plain list per transport protocol."""

    def __init__(self, custom: Mapping[str, CustomApplication], alg: AlgSettings | None = None) -> None:
        configured = {name: _configured(name, written) for name, written in custom.items()}
        configured |= _on_alg_ports({**BUILT_IN, **configured}, alg or AlgSettings())
        self.by_name: Mapping[str, Application] = {**BUILT_IN, **configured}
        self._by_port = {TCP: self._unknown("unknown-tcp"), UDP: self._unknown("unknown-udp")}
        self._claim(app for name, app in self.by_name.items() if name not in configured)
        self._claim(configured.values())
        self._by_proto = {
            proto: self.by_name[name] for proto, name in PROTOCOL_NAMES.items() if proto not in self._by_port
        }

    def find(self, proto: int, dport: int, echo: bool = True) -> Application:
        """The application of a new session; `echo` tells a ping from other ICMP, whose ports are all zero."""
        if proto in self._by_port:
            return self._by_port[proto][dport]
        if echo and proto in ECHO_PROTOCOLS:
            return self.by_name["ping"]
        return self._by_proto.get(proto, self.by_name["unknown-p2p"])

    def _unknown(self, name: str) -> list[Application]:
        return [self.by_name[name]] * (LAST_PORT + 1)

    def _claim(self, applications: Iterable[Application]) -> None:
        for app in applications:
            for proto, first, last in app.ports:
                if proto in self._by_port:
                    self._by_port[proto][first : last + 1] = [app] * (last - first + 1)


def _on_alg_ports(known: Mapping[str, Application], alg: AlgSettings) -> dict[str, Application]:
    """The applications with ports of their own for their ALG; the names stay theirs where the ALG is off."""
    found = {}
    for name, written in alg.by_application().items():
        if written.ports is not None:
            transports = {proto for proto, _, _ in known[name].ports}
            ports = tuple((proto, port, port) for proto in sorted(transports) for port in written.ports)
            found[name] = replace(known[name], ports=ports)
    return found


def _configured(name: str, written: CustomApplication) -> Application:
    base = BUILT_IN.get(name, Application(name))
    ports = base.ports
    if written.default_ports is not None:
        ports = tuple(parse_default_port(text) for text in written.default_ports)
    return replace(
        base,
        ports=ports,
        timeout=written.timeout,
        tcp_timeout=written.tcp_timeout,
        udp_timeout=written.udp_timeout or (0 if written.timeout else base.udp_timeout),
        tcp_half_closed_timeout=written.tcp_half_closed_timeout or 0,
        tcp_time_wait_timeout=written.tcp_time_wait_timeout or 0,
        predict_timeout=written.predict_timeout or base.predict_timeout,
    )
