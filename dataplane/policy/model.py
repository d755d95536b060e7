"""The configuration as it was written: one frozen class per noun, defaults next to types (PAN-OS ranges and names).

A class checks what can be seen in one field alone; what needs two fields or a name defined elsewhere is load.py's.
Addresses, ports and names stay text here, so that `model_dump(by_alias=True)` gives back a file that loads as the
same configuration.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from dataplane.policy.listen import parse_listen
from dataplane.policy.objects import ANY, LAST_PORT, parse_address, parse_default_port, parse_ports, parse_tags
from dataplane.policy.servers import parse_collector, parse_syslog_server

APPLICATION_DEFAULT = "application-default"
DEFAULT_RULES = ("intrazone-default", "interzone-default")
MAX_NAME = 63
MAX_INTERFACE_NAME = 15
"""IFNAMSIZ of Linux without the final zero."""
MAX_ZONES = 250
MAX_WORKERS = 64
LEAST_MSS, LARGEST_MSS = 536, 9000
MAX_SESSIONS = 1 << 24
MAX_APP_NAME = 48
"""RFC 5424."""

_Item = TypeVar("_Item")
Many = Annotated[tuple[_Item, ...], Strict(False)]
"""A YAML list, kept as a tuple; its items stay strict."""
Some = Annotated[tuple[_Item, ...], Strict(False), Field(min_length=1)]

Facility = Literal[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
]  # fmt: skip


def _check_name(text: str) -> str:
    if not text or len(text) > MAX_NAME:
        raise ValueError(f"a name has 1 to {MAX_NAME} characters, not {len(text)}")
    if not text.isprintable() or text != text.strip():
        raise ValueError("a name has printable characters and no blanks around it")
    if text == ANY:
        raise ValueError("'any' cannot be a name")
    return text


def _check_object_name(text: str) -> str:
    try:
        parse_address(text)
    except ValueError:
        return _check_name(text)
    raise ValueError("a name that reads as an address is ambiguous")


def _check_interface(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_INTERFACE_NAME or "/" in text or text in (".", "..") or " " in text:
        raise ValueError(f"'{text}' cannot be the name of an interface")
    if not text.isprintable():
        raise ValueError("an interface has a printable name")
    return text


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _port_texts(value: object) -> tuple[str, ...]:
    """A port, a range or a list of them, each as text."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("must not be empty")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueError("must be a port, a range such as 1000-2000, or a list of them")
        parse_ports(str(item))
    return tuple(str(item) for item in items)


def _tag_texts(value: object) -> tuple[str, ...]:
    """VLAN ids and ranges of them, each as text."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of VLAN ids and ranges")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueError("must hold VLAN ids, or ranges such as 100-199")
        parse_tags(str(item))
    return tuple(str(item) for item in value)


def _one_or_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _switch_or_settings(value: object) -> object:
    return {"enabled": value} if isinstance(value, bool) else value


def _check_ratio(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be 1, 2, 4 or 8, not true or false")
    return value


def _check_clamp(value: object) -> object:
    number = isinstance(value, int) and not isinstance(value, bool) and LEAST_MSS <= value <= LARGEST_MSS
    if value != "auto" and not number:
        raise ValueError(f"must be auto or a number from {LEAST_MSS} to {LARGEST_MSS}")
    return value


def _check_app_name(text: str) -> str:
    if not 0 < len(text) <= MAX_APP_NAME or any(not "!" <= sign <= "~" for sign in text):
        raise ValueError(f"must be 1 to {MAX_APP_NAME} printable ASCII characters without a blank")
    return text


def _check_workers(value: object) -> object:
    number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS
    if value != "auto" and not number:
        raise ValueError(f"must be auto or a number from 1 to {MAX_WORKERS}")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
ObjectName = Annotated[str, AfterValidator(_check_object_name)]
InterfaceName = Annotated[str, AfterValidator(_check_interface)]
AddressText = Annotated[str, _checked(parse_address)]
DefaultPort = Annotated[str, _checked(parse_default_port)]
Ports = Annotated[tuple[str, ...], BeforeValidator(_port_texts)]
Tags = Annotated[tuple[str, ...], BeforeValidator(_tag_texts)]
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]


Long = Annotated[int, Field(ge=1, le=15_999_999)]
Week = Annotated[int, Field(ge=1, le=604_800)]
TenMinutes = Annotated[int, Field(ge=1, le=600)]
Minute = Annotated[int, Field(ge=1, le=60)]
WeekOrDefault = Annotated[int, Field(ge=0, le=604_800)]
Limit = Annotated[int, Field(ge=0, le=MAX_SESSIONS)]
"""0: none."""


class _Noun(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=lambda field: field.replace("_", "-")
    )


class Zone(_Noun):
    """A named set of interfaces; every rule is about zones, never about interfaces."""

    name: Name
    interfaces: Many[InterfaceName]
    anti_spoof: bool = True
    """A new session's source must be routed back into the zone it came from."""
    non_syn: Literal["drop", "reset"] = "drop"
    """What a TCP segment from the zone meets that belongs to no session and can begin none."""


class Interface(_Noun):
    """What holds for one interface, whatever its zone."""

    mss_clamp: Annotated[int | Literal["auto"], BeforeValidator(_check_clamp)] | None = None
    """The largest MSS that a SYN may offer across it: of IPv4, IPv6 takes 20 less; `auto` follows its MTU."""


class VirtualWire(_Noun):
    """Two interfaces joined as a transparent bridge, which is a device of the wire's name."""

    name: InterfaceName
    interfaces: Annotated[tuple[InterfaceName, ...], Strict(False), Field(min_length=2, max_length=2)]
    tag_allowed: Tags = ("0",)
    """VLAN ids of the frames that pass; 0 stands for frames without a tag."""


class Service(_Noun):
    """A transport protocol with destination ports; matched on the original port, before translation."""

    protocol: Literal["tcp", "udp"]
    destination_port: Ports


class CustomApplication(_Noun):
    """A new application, or other ports and timers for a built-in one; seconds, 0 for the protocol's timer.

    `timeout` is for every protocol; TCP and UDP take their own where one is given.
    """

    default_ports: Some[DefaultPort] | None = None
    timeout: WeekOrDefault = 0
    tcp_timeout: WeekOrDefault = 0
    udp_timeout: WeekOrDefault = 0
    tcp_half_closed_timeout: Week | None = None
    tcp_time_wait_timeout: TenMinutes | None = None
    predict_timeout: TenMinutes | None = None
    """How long a session that an ALG has announced is waited for."""


class Action(StrEnum):
    """What becomes of a session that matches a rule; everything but ALLOW denies it."""

    ALLOW = "allow"
    DENY = "deny"
    DROP = "drop"
    RESET_CLIENT = "reset-client"
    RESET_SERVER = "reset-server"
    RESET_BOTH = "reset-both"


class SecurityRule(_Noun):
    """Allows or denies new sessions, on original addresses and the zone of the translated destination."""

    name: Name
    from_zones: Some[str] = Field((ANY,), alias="from")
    to_zones: Some[str] = Field((ANY,), alias="to")
    source: Some[str] = (ANY,)
    negate_source: bool = False
    destination: Some[str] = (ANY,)
    negate_destination: bool = False
    application: Some[str] = (ANY,)
    service: Some[str] = (ANY,)
    action: Annotated[Action, Strict(False)]
    icmp_unreachable: bool = False
    alg: bool = True
    """Whether ALGs read the sessions that the rule allows."""
    log_start: bool = False
    log_end: bool = True
    disabled: bool = False


class NatType(StrEnum):
    """The family a NAT rule is for; it never matches the other."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    NPTV6 = "nptv6"


class SourceType(StrEnum):
    """How a source address is chosen; the first two choose a port as well."""

    DYNAMIC_IP_AND_PORT = "dynamic-ip-and-port"
    PERSISTENT_DYNAMIC_IP_AND_PORT = "persistent-dynamic-ip-and-port"
    DYNAMIC_IP = "dynamic-ip"
    STATIC_IP = "static-ip"


class Fallback(_Noun):
    """Where the sources go that find no address free: dynamic-ip-and-port."""

    interface: InterfaceName | None = None
    addresses: Some[str] | None = None


class SourceTranslation(_Noun):
    """What the source becomes: the address of `interface`, or one of `addresses`."""

    type: Annotated[SourceType, Strict(False)]
    interface: InterfaceName | None = None
    addresses: Some[str] | None = None
    port_range: Annotated[str, _checked(parse_ports)] | None = None
    bi_directional: bool = False
    fallback: Fallback | None = None


class DestinationTranslation(_Noun):
    """What the destination becomes: one address, or as many as the rule's destination holds, in order."""

    address: str
    port: Port | None = None


class NatRule(_Noun):
    """Translates new sessions, on original addresses and the zone of the original destination.

    A rule with neither translation exempts what it matches.
    """

    name: Name
    nat_type: Annotated[NatType, Strict(False)] = NatType.IPV4
    from_zones: Some[str] = Field((ANY,), alias="from")
    to_zone: str = Field(ANY, alias="to")
    source: Some[str] = (ANY,)
    destination: Some[str] = (ANY,)
    service: Annotated[Some[str], BeforeValidator(_one_or_list)] = (ANY,)
    disabled: bool = False
    source_translation: SourceTranslation | None = None
    destination_translation: DestinationTranslation | None = None


class Timeouts(_Noun):
    """Seconds without a packet after which a session ends, by protocol and TCP state."""

    tcp: Long = 3600
    tcp_init: Minute = 5
    tcp_handshake: Minute = 10
    tcp_half_closed: Week = 120
    tcp_time_wait: TenMinutes = 15
    tcp_unverified_rst: TenMinutes = 30
    udp: Long = 30
    icmp: Long = 6
    default: Long = 30
    discard_tcp: Long = 90
    discard_udp: Long = 60
    discard_default: Long = 60


class AcceleratedAging(_Noun):
    """Above `threshold` percent of the table every idle timer is divided by `scaling_factor`."""

    enabled: bool = True
    threshold: Annotated[int, Field(ge=50, le=99)] = 80
    scaling_factor: Annotated[int, Field(ge=2, le=16)] = 2


class SessionSettings(_Noun):
    """The session table and its timers."""

    max_sessions: Annotated[int, Field(ge=1, le=MAX_SESSIONS)] = 262_144
    max_per_source: Limit = 0
    """Live sessions of one IPv4 address or IPv6 /64 of a zone."""
    timeouts: Timeouts = Timeouts()
    tcp_reject_non_syn: bool = True
    accelerated_aging: AcceleratedAging = AcceleratedAging()
    rematch_on_commit: bool = True


class NatSettings(_Noun):
    """How translated ports are given out."""

    oversubscription: Annotated[Literal[1, 2, 4, 8], BeforeValidator(_check_ratio)] = 1
    """At most so many sessions share an address and port, only towards different destinations."""
    max_ports_per_source: Limit = 0
    """Live sessions of one source that hold a translated port."""


class AlgProtocol(_Noun):
    """One application layer gateway: written as true, false, or a mapping."""

    enabled: bool = True
    ports: Some[Port] | None = None


OFF = AlgProtocol(enabled=False)
Alg = Annotated[AlgProtocol, BeforeValidator(_switch_or_settings)]


class MediaAlg(AlgProtocol):
    """One whose media need not come from where its signalling comes from."""

    media_from: Literal["peer", "any"] = "peer"
    """Who may send media to an announced port: the other end of the signalling, or anybody in its zone."""


class SipAlg(MediaAlg):
    """SIP may also be left unchanged."""

    rewrite: bool = True
    """False: media may pass, but no message is ever changed (pinhole only)."""


class AlgSettings(_Noun):
    """The protocols whose control channel opens further sessions; PAN-OS applications."""

    ftp: Alg = AlgProtocol()
    tftp: Alg = AlgProtocol()
    sip: Annotated[SipAlg, BeforeValidator(_switch_or_settings)] = SipAlg()
    rtsp: Alg = OFF
    pptp: Alg = OFF
    h_323: Annotated[AlgProtocol, BeforeValidator(_switch_or_settings), Field(alias="h.323")] = OFF
    mgcp: Annotated[MediaAlg, BeforeValidator(_switch_or_settings)] = MediaAlg(enabled=False)
    rsh: Alg = OFF
    sccp: Alg = OFF
    oracle: Alg = OFF
    irc: Alg = OFF
    msrpc: Alg = OFF
    oversize: Literal["pass", "drop"] = "pass"
    """What becomes of a packet that is too large to be read (3,900 bytes)."""

    def by_application(self) -> dict[str, AlgProtocol]:
        """Every protocol's settings by the name of its application."""
        fields = type(self).model_fields
        values = {field.alias or name: getattr(self, name) for name, field in fields.items()}
        return {name: value for name, value in values.items() if isinstance(value, AlgProtocol)}


class QueueSettings(_Noun):
    """NFQUEUE numbers: `workers` hot queues from `first`, then the slow one."""

    first: Annotated[int, Field(ge=0, le=65535)] = 0
    workers: Annotated[int | Literal["auto"], BeforeValidator(_check_workers)] = "auto"
    fail_open: bool = False


class Settings(_Noun):
    """How the firewall works, apart from what it allows."""

    session: SessionSettings = SessionSettings()
    nat: NatSettings = NatSettings()
    alg: AlgSettings = AlgSettings()
    queue: QueueSettings = QueueSettings()
    offload: bool = True
    dispatch_cache: bool = True


class Rotation(_Noun):
    """When a log file makes room for the next one, and how many older ones stay."""

    size_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """0: a file grows for ever, or until something else rotates it."""
    keep: Annotated[int, Field(ge=1, le=999)] = 5


class SyslogServer(_Noun):
    """A server that gets the traffic log as RFC 5424."""

    to: Annotated[str, _checked(parse_syslog_server)]
    format: Literal["json", "csv"] = "json"
    facility: Facility = "local0"
    app_name: Annotated[str, AfterValidator(_check_app_name)] = "dataplane"
    ca_file: str | None = None
    """For tls: whose signature the server's certificate needs; the system's authorities if not said."""


class IpfixCollector(_Noun):
    """A collector that gets a flow record of each record of the traffic log."""

    to: Annotated[str, _checked(parse_collector)]
    domain: Annotated[int, Field(ge=0, le=(1 << 32) - 1)] = 1
    """The observation domain that the records name."""
    template_refresh: Annotated[int, Field(ge=1, le=86400)] = 60
    """Seconds."""


class LogSettings(_Noun):
    """Which logs are written, and where to."""

    traffic: bool = True
    csv: bool = False
    """traffic.csv, as PAN-OS writes it, beside traffic.json."""
    rotate: Rotation = Rotation()
    syslog: Many[SyslogServer] = ()
    ipfix: Many[IpfixCollector] = ()


class MetricsSettings(_Noun):
    """Where Prometheus finds the metrics."""

    listen: Annotated[str, _checked(parse_listen)] | None = None
    """ADDRESS:PORT or unix:PATH; None: nowhere."""
    allow_remote: bool = False
    """The address may be one that other hosts reach: whoever does reads everything, and nothing is encrypted."""


class Config(_Noun):
    """A whole configuration file."""

    zones: Annotated[tuple[Zone, ...], Strict(False), Field(min_length=1, max_length=MAX_ZONES)]
    interfaces: dict[InterfaceName, Interface] = {}
    virtual_wires: Many[VirtualWire] = ()
    addresses: dict[ObjectName, AddressText] = {}
    address_groups: dict[ObjectName, Some[str]] = {}
    services: dict[Name, Service] = {}
    service_groups: dict[Name, Some[str]] = {}
    applications: dict[Name, CustomApplication] = {}
    security_rules: Many[SecurityRule] = ()
    nat_rules: Many[NatRule] = ()
    host_inbound: dict[str, Many[str]] = {}
    settings: Settings = Settings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
