"""MSS clamping: what a SYN offers is lowered to what both interfaces let through, and nothing else is touched.

scapy is the oracle: it reads the options and computes every checksum anew.
"""

import pytest
from scapy.layers import inet

from dataplane.ffi import lib
from tests.talk import INSIDE, OUTSIDE, TCP, Connection, Firewall, Outcome, dissect, recomputed

V4, V6 = ("10.0.0.5:4000", "8.8.8.8:80"), ("[fd00::5]:4000", "[2001:db8::8]:80")
PUBLIC = {V4: "192.0.2.1", V6: "2001:db8::1"}
MSS, NOP = ("MSS", 1460), ("NOP", None)
AO = (29, b"\x01\x02" + bytes(12))
MD5 = (19, bytes(range(16)))
CHECKSUMS = [lib.CHECKSUM_TRUSTED, lib.CHECKSUM_UNVERIFIED, lib.CHECKSUM_PARTIAL]


@pytest.fixture
def firewall():
    with Firewall() as firewall:
        firewall.clamp({OUTSIDE: 1360})
        yield firewall.decides()


def syn(ends: tuple[str, str] = V4, flags: str = "S", options=(MSS,), **fields):
    return TCP(ends[0], ends[1], flags, options=list(options), **fields)


def offered(outcome: Outcome) -> int | None:
    """The MSS that left, in a packet whose checksums are those that scapy computes."""
    assert outcome.after == recomputed(outcome.after)
    mss: int | None = dict(outcome.packet[inet.TCP].options).get("MSS")
    return mss


@pytest.mark.parametrize(("ends", "largest"), [(V4, 1360), (V6, 1340)])
@pytest.mark.parametrize("translated", [False, True])
def test_syn_and_syn_ack_are_clamped(firewall, ends, largest, translated):
    """Both ends learn it, with and without translation; an IPv6 packet is as long as an IPv4 one."""
    if translated:
        firewall.decides(source=PUBLIC[ends], ports=(5000, 5000))
    assert offered(firewall.c2s(syn(ends))) == largest
    back = (ends[1], f"[{PUBLIC[ends]}]:5000" if translated else ends[0])
    assert offered(firewall.s2c(syn(back, "SA", ack=1))) == largest


@pytest.mark.parametrize("clamps", [{INSIDE: 1200, OUTSIDE: 1360}, {INSIDE: 1360, OUTSIDE: 1200}, {INSIDE: 1200}])
def test_the_smaller_of_both_interfaces_holds_in_both_directions(firewall, clamps):
    """A packet has to pass both."""
    firewall.clamp(clamps)
    assert offered(firewall.c2s(syn())) == 1200
    assert offered(firewall.s2c(syn(V4[::-1], "SA", ack=1))) == 1200


@pytest.mark.parametrize("options", [[("MSS", 1360)], [("MSS", 536)], [("MSS", 0)], [], [("WScale", 7)]])
def test_an_offer_is_never_raised_and_none_is_made(firewall, options):
    """What is low enough, or absent, does not even go back to the kernel."""
    firewall.c2s(syn(options=options)).passes()


@pytest.mark.parametrize("checksum", CHECKSUMS)
@pytest.mark.parametrize("before", range(4))
def test_the_option_may_stand_anywhere(firewall, before, checksum):
    """At an odd offset its bytes belong to two words of the checksum; a sender may have left that to its NIC."""
    options = [NOP] * before + [MSS, ("SAckOK", b""), ("WScale", 7)]
    outcome = firewall.c2s(syn(options=options), checksum=checksum)
    assert offered(outcome) == 1360
    expected = syn(options=[NOP] * before + [("MSS", 1360), ("SAckOK", b""), ("WScale", 7)])
    assert outcome.after == bytes(dissect(bytes(expected)))


@pytest.mark.parametrize("mss", range(1361, 65536, 997))
def test_the_checksum_follows_every_value(firewall, mss):
    """Incrementally (RFC 1624), at an odd offset and at an even one, whatever the sum was."""
    for port, options in enumerate([[("MSS", mss)], [NOP, ("MSS", mss)]], 4000):
        ends = (f"10.0.0.5:{port}", V4[1])
        assert offered(firewall.c2s(syn(ends, options=options, seq=mss * 65537), checksum=CHECKSUMS[1])) == 1360


def test_a_segment_that_is_no_syn_is_not_looked_at(firewall):
    """An option of kind 2 means nothing later on."""
    connection = Connection(firewall).open()
    assert connection.c2s("PA", b"x", options=[MSS]).verdict == lib.VERDICT_ACCEPT


def test_a_signature_over_the_options_keeps_them(firewall):
    """TCP-AO covers the MSS: lowering it would break the connection. MD5 does not cover options."""
    firewall.c2s(syn(options=[MSS, AO])).passes()
    firewall.c2s(syn(("10.0.0.6:4000", V4[1]), options=[AO, MSS])).passes()
    outcome = firewall.c2s(syn(("10.0.0.7:4000", V4[1]), options=[MD5, NOP, NOP, MSS]))
    assert offered(outcome) == 1360
    assert b"\x13\x12" + MD5[1] in outcome.after


def test_an_option_that_is_cut_off_is_not_written(firewall):
    """The header ends within it."""
    packet = syn(options=[NOP, NOP, MSS])
    data = bytearray(bytes(packet))
    at = data.index(b"\x02\x04\x05\xb4")
    data[at : at + 4] = b"\x01\x01\x02\x04"
    firewall.c2s(recomputed(bytes(data))).passes()


def test_the_firewalls_own_connections_are_clamped_by_their_only_interface(firewall):
    """In OUTPUT and back; the other interface of such a session is none."""
    firewall.decides(ingress=0, flags=lib.FLAG_HOST)
    assert offered(firewall.own(syn(("192.0.2.254:4000", V4[1])))) == 1360
    assert offered(firewall.s2c(syn((V4[1], "192.0.2.254:4000"), "SA", ack=1))) == 1360


def test_new_clamps_replace_the_old(firewall):
    """From the next SYN on."""
    firewall.clamp({})
    firewall.c2s(syn()).passes()
    firewall.clamp({INSIDE: 1000})
    assert offered(firewall.c2s(syn())) == 1000
