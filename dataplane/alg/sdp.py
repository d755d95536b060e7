"""SDP (RFC 8866, 3605, 5761) as SIP carries it: the UDP ports to which the sender of a description wants its media.

    o=alice 1 1 IN IP4 10.1.0.2             who made it; a name more than an address
    c=IN IP4 10.1.0.2                       where the media go that have no c= of their own
    m=audio 49170 RTP/AVP 0 8               RTP here, RTCP at the next port
    a=rtcp:53020 [IN IP4 10.1.0.2]          ... or RTCP here
    a=rtcp-mux                              ... or at the port of RTP itself, if no a=rtcp says otherwise
    m=video 49180/2 RTP/AVP 31              two pairs of ports, one after the other
    m=image 5004 udptl t38                  fax: one port, on the books as rtp

A medium is opened where its c= is the sender's own address. Port 0 rejects a medium and c=0.0.0.0 holds it: nothing is
opened. Other people's media pass as they are.

Parsed by hand, because an edit needs to know where a value stands: the libraries of the registry give values only
(sdp-transform 1.1.0 also loses `49180/2` and keeps the last of several c=).

Not done: ICE candidates (a peer that finds c= in none of them falls back to c=, RFC 8839), media over TCP, key
management, crypto contexts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from dataplane.alg.base import UDP, Control, Expected
from dataplane.alg.text import Edits, literal
from dataplane.policy.objects import LAST_PORT, address_text, is_ipv4

MAX_MEDIA = 16  # of a description that are read
MAX_PAIRS = 4  # of one medium

_HOST = rb"IN IP([46]) ([0-9A-Fa-f:.]{2,45})"
_LINE = re.compile(rb"^[ocma]=[^\r\n]*", re.MULTILINE)
_ORIGIN = re.compile(rb"o=\S+ \S+ \S+ " + _HOST + rb"[ \t]*")
_CONNECTION = re.compile(rb"c=" + _HOST + rb"[ \t]*")
_MEDIUM = re.compile(rb"m=[^ ]+ (\d{1,5})(?:/(\d{1,2}))? (?:(?:UDP/(?:TLS/)?)?(RTP)/\S+|(?i:udptl)) .*")
_RTCP = re.compile(rb"a=rtcp:(\d{1,5})(?: " + _HOST + rb")?[ \t]*")


class Media(NamedTuple):
    """What was opened for a description, each port by its inside number, and what has to change in it."""

    ports: list[int]
    edits: Edits


@dataclass(slots=True)
class _Section:
    """The lines that matter up to the next m=; the first section is in front of all media."""

    medium: re.Match[bytes] | None = None
    connection: re.Match[bytes] | None = None
    rtcp: re.Match[bytes] | None = None
    rtp_only: bool = False


def open_media(body: bytes, side: int, control: Control, *, anyone: bool) -> Media:
    """Open the way for the media that go to a description's sender. If all are refused, nothing is to be edited."""
    own, seen = control.own(side).address, control.seen(side).address
    front, *sections = _sections(body, own)
    opened = Media([], {})
    refused = False
    for section in islice(sections, MAX_MEDIA):
        wanted = _wanted(section, section.connection or front.connection, side, own, anyone)
        refused = refused or wanted is None
        for each in wanted or ():
            there = control.expect(each)
            if there is None:
                refused = True
                break
            _note(opened, section, each, there.port)
    if opened.ports or not refused:
        _rename(body, opened.edits, own, seen)
    return opened


def _sections(body: bytes, own: int) -> list[_Section]:
    sections = [_Section()]
    for line in _LINE.finditer(body):
        section = sections[-1]
        if line[0].startswith(b"m="):
            sections.append(_Section(_MEDIUM.fullmatch(body, *line.span())))
        elif line[0].startswith(b"c="):
            section.connection = section.connection or _CONNECTION.fullmatch(body, *line.span())
        elif line[0].startswith(b"a=rtcp:"):
            rtcp = _RTCP.fullmatch(body, *line.span())
            if rtcp and _is_port(int(rtcp[1])) and (not rtcp[3] or _address(rtcp[2], rtcp[3]) == own):
                section.rtcp = rtcp
            else:
                section.rtp_only = True
        elif line[0].rstrip() == b"a=rtcp-mux":
            section.rtp_only = True
    return sections


def _wanted(
    section: _Section, connection: re.Match[bytes] | None, side: int, own: int, anyone: bool
) -> list[Expected] | None:
    """What to expect for a medium: its RTP first, RTCP apart where it is not the next port. None: no such thing."""
    if connection is None or _address(connection[1], connection[2]) != own:
        return []
    medium = section.medium
    if medium is None:
        return None
    port, pairs = int(medium[1]), int(medium[2] or 1)
    if not port:
        return []
    if not _is_port(port) or not 0 < pairs <= MAX_PAIRS:
        return None
    single = Expected(side, UDP, port, ("rtp",), anyone=anyone)
    if not medium[3]:
        return [single]
    rtcp = _rtcp_port(section, port)
    if rtcp == port + 1 or pairs > 1:
        return [single._replace(applications=("rtp", "rtcp") * pairs)]
    return [single] if rtcp == port else [single, single._replace(port=rtcp, applications=("rtcp",))]


def _rtcp_port(section: _Section, port: int) -> int:
    """Where RTCP goes: to RTP's own port where there is no other of this sender."""
    if section.rtcp is not None:
        return int(section.rtcp[1])
    return port if section.rtp_only else port + 1


def _note(opened: Media, section: _Section, wanted: Expected, outside: int) -> None:
    """Remember the ports, and put those that the other side has to use into the lines that name them."""
    ports = range(wanted.port, wanted.port + len(wanted.applications))
    opened.ports.extend(ports)
    for line in (section.medium, section.rtcp):
        if line is not None and int(line[1]) in ports and outside != wanted.port:
            opened.edits[line.span(1)] = str(outside + int(line[1]) - wanted.port).encode()


def _rename(body: bytes, edits: Edits, own: int, seen: int) -> None:
    for match, kind in _addresses(body) if own != seen else ():
        if _address(match[kind], match[kind + 1]) == own:
            edits[match.span(kind + 1)] = address_text(seen).encode()


def _addresses(body: bytes) -> Iterator[tuple[re.Match[bytes], int]]:
    """Every line with an address, and the group of its kind."""
    for line in _LINE.finditer(body):
        for pattern, kind in ((_ORIGIN, 1), (_CONNECTION, 1), (_RTCP, 2)):
            match = pattern.fullmatch(body, *line.span())
            if match and match[kind]:
                yield match, kind


def _address(kind: bytes, text: bytes) -> int | None:
    address = literal(text)
    return address if address is not None and is_ipv4(address) == (kind == b"4") else None


def _is_port(number: int) -> bool:
    return 0 < number <= LAST_PORT
