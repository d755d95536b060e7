"""What `make fuzz` begins with: packets of every kind about the sessions that fuzz_packet.c makes.

    python -m tests.fuzz_seeds DIRECTORY

An input is three bytes that say how the packet comes, and the packet; see fuzz_packet.c. The directory is made anew.
"""

import hashlib
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from scapy.layers import inet, inet6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from tests.talk import INSIDE, OUTSIDE, TCP, UDP, Echo, EchoReply, Error, ip_header

KINDS = range(8)  # enum kind
STATIC, DIPP, SERVER, BOTH, HOST, BOUND = range(1, 7)
HOOKS = (0, 0x20, 0x80)  # of the first byte: PREROUTING, FORWARD, OUTPUT
SHARED_PORTS = 0x40
REPAIR = 0x40  # of the second
HALF = 0x04
CUT, CROWD, AGAIN = 1, 2, 4  # of the third
CHECKSUMS = range(4)  # enum checksum_state
NETS = (("10.0.0.", "8.8.8.8", "192.0.2.1", "10.1.1.1"), ("fd00::", "2001:db8::8", "2001:db8::1", "fd01::1"))
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4, 137)}
FLAGS = ("S", "SA", "A", "PA", "FA", "R", "RA", "SF")

# Extension headers, bare enough to be stacked in any order.
EXTENSIONS = (
    inet6.IPv6ExtHdrHopByHop,
    inet6.IPv6ExtHdrDestOpt,
    lambda: inet6.IPv6ExtHdrRouting(type=2, addresses=["fd01::1"]),
    lambda: inet6.IPv6ExtHdrRouting(type=0, segleft=0),
    inet6.IPv6ExtHdrFragment,
)


def conversations() -> Iterator[tuple[Packet, Packet]]:
    """(what a client sends, what its server answers to the public side), for every session of the harness."""
    for (client, asked, public, real), kind in itertools.product(NETS, KINDS):
        source = f"{client}{kind + 1}"
        server = real if kind in (SERVER, BOTH, HOST) else asked
        seen = public if kind in (STATIC, DIPP, BOTH, BOUND) else source
        port = 2000 + kind if kind in (DIPP, BOTH, BOUND) else 4000
        service = 8053 if kind in (SERVER, BOTH, HOST) else 53
        there, back = (f"[{source}]:4000", f"[{asked}]:53"), (f"[{server}]:{service}", f"[{seen}]:{port}")
        yield UDP(*there), UDP(*back)
        yield Echo(there[0], asked), EchoReply(server, back[1])
        yield ip_header(source, asked) / GRE() / Raw(b"inside"), ip_header(server, seen) / GRE() / Raw(b"inside")
        for flags in FLAGS:
            yield segment(*there, flags), segment(*back, flags)


def segment(source: str, destination: str, flags: str) -> Packet:
    """One at the edge of the windows that the harness gives its connections."""
    return TCP(source, destination, flags, b"data" * 8, seq=1000, ack=1000, window=65000)


def errors(sent: Packet, answer: Packet) -> Iterator[tuple[Packet, int]]:
    """Errors about both directions, and about an error; each with the interface that it comes from."""
    for kind in ERRORS[sent.version]:
        outward = Error(sent.src, sent.dst, bytes(answer_as_received(sent)), kind)
        inward = Error(answer.src, answer.dst, bytes(answer_as_received(answer)), kind)
        yield outward, INSIDE
        yield inward, OUTSIDE
    yield Error(answer.src, answer.dst, bytes(inward), kind), OUTSIDE


def answer_as_received(packet: Packet) -> Packet:
    """The same tuple travelling the other way: what the sender of `packet` was sent."""
    turned = type(packet)(bytes(packet))
    turned.src, turned.dst = packet.dst, packet.src
    layer = turned.payload
    if isinstance(layer, inet.UDP | inet.TCP):
        layer.sport, layer.dport = layer.dport, layer.sport
    return turned


def odd_ones() -> Iterator[Packet]:
    """Headers of unusual kinds and orders, fragments, discovery, other protocols."""
    udp = inet.UDP(sport=4000, dport=53) / Raw(b"question")
    tcp = inet.TCP(sport=4000, dport=53, options=[("WScale", 7)])
    for length in (1, 2, 3):
        for chain in itertools.permutations(EXTENSIONS, length):
            packet = inet6.IPv6(src="fd00::3", dst="2001:db8::8")
            for header in chain:
                packet /= header()
            yield packet / udp
    yield inet6.IPv6(src="fd00::3", dst="2001:db8::8") / inet6.IPv6ExtHdrFragment(m=1) / udp
    yield inet6.IPv6(src="fd00::3", dst="2001:db8::8") / inet6.IPv6ExtHdrFragment(offset=4) / Raw(b"x" * 16)
    yield inet.IP(src="10.0.0.3", dst="8.8.8.8", flags="MF") / udp
    yield inet.IP(src="10.0.0.3", dst="8.8.8.8", frag=1) / Raw(b"x" * 16)
    yield inet.IP(src="10.0.0.3", dst="8.8.8.8", options=[inet.IPOption_RR()]) / tcp
    yield inet.IP(src="10.0.0.3", dst="8.8.8.8") / inet.ICMP(type=0, id=0) / Raw(bytes(56))
    for proto in (0, 2, 33, 41, 50, 51, 132, 136, 253, 255):
        yield inet.IP(src="10.0.0.9", dst="8.8.8.8", proto=proto) / Raw(bytes(range(40)))
        yield inet6.IPv6(src="fd00::9", dst="2001:db8::8", nh=proto) / Raw(bytes(range(40)))
    for message in (inet6.ICMPv6ND_NS(tgt="fd00::1"), inet6.ICMPv6ND_RA(), inet6.ICMPv6MLQuery()):
        yield inet6.IPv6(src="fe80::1", dst="ff02::1", hlim=255) / message


def newcomers() -> Iterator[Packet]:
    """Clients of every kind whom no session knows: their second source port."""
    for (client, asked, *_), kind in itertools.product(NETS, KINDS):
        there = f"[{client}{kind + len(KINDS)}]:4001", f"[{asked}]:53"
        yield UDP(*there)
        yield TCP(*there, "S", options=[("MSS", 1460)])
        yield TCP(*there, "S", options=[("NOP", None), ("MSS", 1460)])
        yield Echo(there[0], asked)


def packets() -> Iterator[tuple[Packet, int]]:
    """Every packet, with the interface that it comes from."""
    for sent, answer in conversations():
        yield sent, INSIDE
        yield answer, OUTSIDE
        if Raw not in sent or inet.TCP not in sent or sent[inet.TCP].flags == "A":
            yield from errors(sent, answer)
    for packet in itertools.chain(odd_ones(), newcomers()):
        yield packet, INSIDE


def inputs() -> Iterator[bytes]:
    """Every packet as it is, and in each checksum state, hook, table and company in turn."""
    company = ((0, 0), (0, CUT), (0, CROWD), (0, AGAIN), (HALF, CROWD | AGAIN))
    turns = itertools.cycle(itertools.product(HOOKS, CHECKSUMS, (0, SHARED_PORTS), company))
    for packet, ifindex in packets():
        data = bytes(packet)
        yield bytes((ifindex, REPAIR, 0)) + data
        hook, checksum, table, (half, others) = next(turns)
        yield bytes((ifindex | hook | table, checksum | half, others)) + data


def main() -> None:
    directory = Path(sys.argv[1])
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for data in inputs():
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{len(list(directory.iterdir()))} inputs in {directory}")


if __name__ == "__main__":
    main()
