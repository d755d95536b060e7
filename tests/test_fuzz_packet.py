"""Mutated packets through parser, tracking and rewrite, among sessions of every kind.

`make asan` runs this against an extension that AddressSanitizer and UBSan watch: each packet lies in memory of exactly
its own size. Which mutations were tried is decided by SEED.
"""

import os
import random
from collections import Counter
from typing import Any

import pytest
from scapy.layers import inet, inet6
from scapy.packet import Raw

from dataplane.ffi import ffi, lib
from tests.reference import checksum, pseudo_header
from tests.talk import END_OF_DROPS, FIRST_DROP, INSIDE, OUTSIDE, TCP, UDP, Echo, Error, Firewall, endpoints

SEED = 20260101
PACKETS = 60_000 if "DATAPLANE_EXTENSION" in os.environ else 200_000
BATCH = 1000
INTERESTING = [0, 1, 7, 8, 19, 20, 39, 40, 127, 128, 254, 255]
HEADERS = [0, 43, 44, 51, 60, 59, 6, 17, 58]  # IPv6 next headers
CHECKSUMS = [lib.CHECKSUM_TRUSTED, lib.CHECKSUM_UNVERIFIED, lib.CHECKSUM_PARTIAL, lib.CHECKSUM_SUPER]
ICMP_ERRORS = {3, 4, 5, 11, 12}
ICMP6_ERRORS = {1, 2, 3, 4}


def flows(firewall):
    """Sessions with every kind of translation, and the packets that each end sends."""
    translations: list[dict[str, Any] | None] = [
        {},
        {"source": True},
        {"source": True, "ports": (1024, 65535)},
        {"destination": True},
        {"source": True, "ports": (1024, 65535), "destination": True},
        None,
    ]
    for family, (client, pool, real) in {
        4: ("10.0.0.", "192.0.2.1", "10.1.1.1"),
        6: ("fd00::", "2001:db8::1", "fd01::1"),
    }.items():
        asked = "8.8.8.8" if family == 4 else "2001:db8::8"
        for i, translation in enumerate(translations):
            for build in (UDP, TCP, Echo):
                if translation is None:
                    firewall.refuses()
                else:
                    chosen = dict(translation)
                    chosen |= {"source": pool} if "source" in chosen else {}
                    chosen |= (
                        {"destination": real if build is Echo else f"[{real}]:8053"} if "destination" in chosen else {}
                    )
                    firewall.decides(**chosen)
                source = f"{client}{i + 1}"
                packet = build(f"[{source}]:4000", asked if build is Echo else f"[{asked}]:53")
                outcome = firewall.c2s(packet)
                assert outcome.left or translation is None
                yield bytes(packet), outcome.after


def corpus(firewall):
    """(bytes, ifindex): what clients send, what servers answer, and errors about both."""
    found = []
    for sent, arrived in flows(firewall):
        (src, sport), (dst, dport) = endpoints(inet.IP(arrived) if arrived[0] >> 4 == 4 else inet6.IPv6(arrived))
        found += [(sent, INSIDE), (arrived, OUTSIDE)]
        if arrived[-4:] != b"ping":
            build = UDP if b"question" in arrived else TCP
            answer = (f"[{dst}]:{dport}", f"[{src}]:{sport}", *(("SA",) if build is TCP else ()))
            found.append((bytes(build(*answer, ack=1) if build is TCP else build(*answer)), OUTSIDE))
        for kind in (3, 11) if ":" not in src else (1, 2):
            found.append((bytes(Error(dst, src, arrived, kind)), OUTSIDE))
    chain = (
        inet6.IPv6ExtHdrHopByHop() / inet6.IPv6ExtHdrDestOpt() / inet6.IPv6ExtHdrFragment() / inet.UDP(sport=1, dport=2)
    )
    found.append((bytes(inet6.IPv6(src="fd00::1", dst="2001:db8::8") / chain / Raw(b"x" * 40)), INSIDE))
    found.append(
        (bytes(inet.IP(src="10.0.0.1", dst="8.8.8.8", options=[inet.IPOption_RR()]) / inet.TCP(flags="S")), INSIDE)
    )
    found.append(
        (b"\x60\0\0\0\0\x18\x3a\xff" + b"\xfe\x80" + bytes(14) + b"\xff\x02" + bytes(14) + b"\x87" + bytes(23), INSIDE)
    )
    return found


def mutate(rng, data, others):
    """A few of the usual crimes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        crime = rng.randrange(8)
        at = rng.randrange(len(data) or 1)
        if not data:
            return data
        if crime == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif crime == 1:
            data[at] = rng.choice(INTERESTING)
        elif crime == 2:
            del data[at:]
        elif crime == 3:
            data += rng.randbytes(rng.randrange(40))
        elif crime == 4:
            other = rng.choice(others)[0]
            data[at:] = other[rng.randrange(len(other)) :]
        elif crime == 5:
            data[min(at, 60)] = rng.randrange(256)
        elif crime == 6 and data[0] >> 4 == 6:
            data[40:40] = bytes([data[6] if len(data) > 6 else 0, rng.choice((0, 0, 0, 1, 255))]) + bytes(6)
            data[6:7] = bytes([rng.choice(HEADERS)])
        else:
            data[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\0\x08", b"\x80\0"))
    return data


def repair(rng, data):
    """Makes lengths and checksums right again, most of the time, so that what lies behind them is reached."""
    if len(data) < 48:
        return
    four = data[0] >> 4 == 4
    if rng.random() < 0.8:
        data[2:4] = len(data).to_bytes(2) if four else data[2:4]
        data[4:6] = data[4:6] if four else (len(data) - 40).to_bytes(2)
    if four and data[0] == 0x45 and data[9] == 1 and data[20] in ICMP_ERRORS:
        inner = 28 + (data[28] & 15) * 4
        if rng.random() < 0.8 and inner <= len(data):
            data[38:40] = b"\0\0"
            data[38:40] = checksum(bytes(data[28:inner])).to_bytes(2)
        data[22:24] = b"\0\0"
        data[22:24] = checksum(bytes(data[20:])).to_bytes(2)
    elif not four and data[6] == 58 and data[40] in ICMP6_ERRORS:
        data[42:44] = b"\0\0"
        pseudo = pseudo_header(bytes(data[8:24]), bytes(data[24:40]), 58, len(data) - 40)
        data[42:44] = checksum(pseudo + bytes(data[40:])).to_bytes(2)


def take(firewall, packet, data):
    """One packet, in memory of its size; what is not rewritten must come back as it was."""
    memory = ffi.new("uint8_t[]", len(data))
    ffi.memmove(memory, data, len(data))
    packet.data, packet.len = memory, len(data)
    verdict = lib.fastpath_take(firewall.table, 0, packet, firewall.now)
    if verdict != lib.VERDICT_REWRITTEN:
        assert ffi.buffer(memory, len(data))[:] == data
    return verdict


def check_books(verdicts, before, after):
    """Every packet was received once; every drop has one reason; every punt is counted."""
    counted = {name: n - before[name] for name, n in after.items()}
    assert counted["pkt_recv"] == sum(verdicts.values())
    assert sum(list(counted.values())[FIRST_DROP:END_OF_DROPS]) == verdicts[lib.VERDICT_DROP]
    assert counted["pkt_punt"] == verdicts[lib.VERDICT_PUNT]
    assert verdicts[lib.VERDICT_CONTINUE] == 0


@pytest.mark.timeout(300)
def test_mutated_packets_get_one_verdict_each():
    """Nothing crashes, nothing is counted twice, and the table is whole afterwards."""
    rng = random.Random(SEED)
    with Firewall(256) as firewall:
        originals = corpus(firewall)
        sessions = firewall.stats()["allocated"]
        packet, reached, before = ffi.new("struct packet *"), Counter[int](), firewall.counters()
        for _ in range(PACKETS // BATCH):
            verdicts = Counter[int]()
            for _ in range(BATCH):
                data, packet.ifindex = rng.choice(originals)
                data = mutate(rng, data, originals)
                repair(rng, data)
                packet.checksum = rng.choice(CHECKSUMS)
                packet.hook = lib.HOOK_OUTPUT if rng.random() < 0.1 else lib.HOOK_PREROUTING
                verdicts[take(firewall, packet, bytes(data))] += 1
            after = firewall.counters()
            check_books(verdicts, before, after)
            before = after
            reached += verdicts
        assert (
            min(reached[v] for v in (lib.VERDICT_ACCEPT, lib.VERDICT_REWRITTEN, lib.VERDICT_PUNT, lib.VERDICT_DROP))
            > PACKETS / 200
        )
        check_table(firewall, sessions, before)


def check_table(firewall, sessions, counters):
    """All sessions but those that a SYN reopened end by their timers; each way to be dropped here was taken."""
    assert firewall.stats()["allocated"] == sessions
    for name in ("ip_hdr", "ip_frag", "ext_hdr", "l4_hdr", "l4_cksm", "land", "icmp_quote"):
        assert counters[f"flow_parse_{name}"] > 0
    for name in (
        "flow_discard_hit",
        "flow_icmp_error_no_session",
        "tcp_flag_zero",
        "tcp_flag_invalid",
        "pkt_icmp_error",
    ):
        assert counters[name] > 0
    firewall.wait(5000)
    assert len(firewall.expire()) == sessions
    stats = firewall.stats()
    assert stats["allocated"] == stats["scheduled"] == stats["tcp"] == stats["udp"] == stats["discard"] == 0
