"""What a NAT rule makes of a session's addresses: a function of the rule and the packet."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.flow import Translation
from dataplane.nat import NoAddress, pool_address, translate
from dataplane.policy.compile import CompiledNatRule, Pool, compile_policy
from dataplane.policy.model import Config
from dataplane.policy.prefix import PrefixMap, Unmappable
from dataplane.routes import address_from_text as address
from dataplane.routes import address_to_text, is_ipv4

CLIENT, SERVER = address("10.1.0.5"), address("8.8.8.8")
OUT0 = {("out0", True): address("192.0.2.1"), ("out0", False): address("2001:db8::1")}


def rules(*translations: dict[str, Any], **more: Any) -> tuple[CompiledNatRule, ...]:
    """The compiled rules of a policy with these fields in its one rule."""
    rule: dict[str, Any] = {"name": "rule", "from": ["trust"], "to": "trust"} | more
    for translation in translations:
        rule |= translation
    zones = [{"name": "trust", "interfaces": ["in0"]}]
    return compile_policy(Config.model_validate({"zones": zones, "nat-rules": [rule]})).nat_rules


def source(kind: str, **fields: Any) -> dict[str, Any]:
    return {"source-translation": {"type": kind} | {key.replace("_", "-"): value for key, value in fields.items()}}


def destination(to: str, port: int | None = None) -> dict[str, Any]:
    return {"destination-translation": {"address": to} | ({"port": port} if port else {})}


def made_of(rule: CompiledNatRule, src: int = CLIENT, dst: int = SERVER) -> Translation | None:
    return translate(rule, src, dst, is_ipv4(src), lambda name, ipv4: OUT0.get((name, ipv4)))


def pool_of(*addresses: str) -> Pool:
    (rule,) = rules(source("dynamic-ip-and-port", addresses=list(addresses)))
    assert rule.pool is not None
    return rule.pool


def test_a_rule_without_translation_exempts():
    """It is a match all the same; whoever asks knows by the rule, not by the translation."""
    (rule,) = rules()
    assert made_of(rule) is None


def test_the_address_of_an_interface_is_looked_up_for_every_session():
    """It may change, and it depends on the family."""
    (rule,) = rules(source("dynamic-ip-and-port", interface="out0"))
    assert made_of(rule) == Translation(source=address("192.0.2.1"), ports=(1024, 65535))
    (rule,) = rules(source("dynamic-ip-and-port", interface="out0"), **{"nat-type": "ipv6"})
    assert made_of(rule, address("fd00::5")) == Translation(source=address("2001:db8::1"), ports=(1024, 65535))


def test_an_interface_without_an_address_is_no_pool():
    """Nothing may leave untranslated instead."""
    (rule,) = rules(source("dynamic-ip-and-port", interface="gone0"))
    with pytest.raises(NoAddress):
        made_of(rule)


def test_the_port_range_is_the_rules():
    """The port itself is drawn where it is known which are free."""
    (rule,) = rules(source("dynamic-ip-and-port", interface="out0", port_range="5000-5009"))
    translation = made_of(rule)
    assert translation is not None
    assert translation.ports == (5000, 5009)


def test_one_source_keeps_one_address():
    """Whatever it talks to; that is what servers that tie a login to an address need."""
    (rule,) = rules(source("dynamic-ip-and-port", addresses=["192.0.2.10-192.0.2.20"]))
    chosen = {made_of(rule, dst=SERVER + n) for n in range(50)}
    assert len(chosen) == 1


@pytest.mark.parametrize("step", [1, 2, 256, 1 << 16])
def test_sources_spread_over_the_pool(step):
    """Neighbours, every other one, and hosts of many subnets alike: no address has twice its share."""
    pool = pool_of("192.0.2.16/28")
    shares = Counter(pool_address(pool, CLIENT + n * step, True, lambda *_: None) for n in range(1600))
    assert len(shares) == 16
    assert max(shares.values()) <= 200


@given(st.integers(0, 2**128 - 1))
def test_an_address_of_the_pool_comes_out(src):
    """Never one beside it, whatever the source; the pool has a gap."""
    pool = pool_of("192.0.2.10-192.0.2.12", "192.0.2.20")
    allowed = {address(f"192.0.2.{last}") for last in (10, 11, 12, 20)}
    assert pool_address(pool, src, True, lambda *_: None) in allowed


def test_static_translation_maps_by_offset_and_keeps_the_port():
    """The nth address of the source becomes the nth translated one."""
    (rule,) = rules(source("static-ip", addresses=["192.0.2.64/26"]), source=["10.1.0.0/26"])
    assert made_of(rule, address("10.1.0.5")) == Translation(source=address("192.0.2.69"))


def test_bi_directional_makes_the_reverse():
    """A second rule right behind the first, for what comes from outside."""
    forward, reverse = rules(
        source("static-ip", addresses=["192.0.2.64/26"], bi_directional=True), source=["10.1.0.0/26"]
    )
    assert made_of(forward, address("10.1.0.7")) == Translation(source=address("192.0.2.71"))
    assert made_of(reverse, SERVER, address("192.0.2.71")) == Translation(destination=address("10.1.0.7"))


def test_one_translated_destination_stands_for_all():
    """With a port and without."""
    (rule,) = rules(destination("10.1.0.99", 8080), destination=["192.0.2.0/24"])
    expected = Translation(destination=address("10.1.0.99"), destination_port=8080)
    assert {made_of(rule, SERVER, address(f"192.0.2.{n}")) for n in (1, 7, 255)} == {expected}
    (rule,) = rules(destination("10.1.0.99"), destination=["192.0.2.9"])
    assert made_of(rule, SERVER, address("192.0.2.9")) == Translation(destination=address("10.1.0.99"))


def test_as_many_translated_destinations_map_in_order():
    """A subnet onto a subnet."""
    (rule,) = rules(destination("10.1.0.16/28"), destination=["192.0.2.32/28"])
    assert made_of(rule, SERVER, address("192.0.2.35")) == Translation(destination=address("10.1.0.19"))


def test_both_sides_of_one_session():
    """A u-turn: source from a pool, destination to the server."""
    (rule,) = rules(
        source("dynamic-ip-and-port", interface="out0"), destination("10.1.0.99", 80), destination=["192.0.2.9"]
    )
    assert made_of(rule, CLIENT, address("192.0.2.9")) == Translation(
        address("192.0.2.1"), (1024, 65535), address("10.1.0.99"), 80
    )


# ---- what is bound beyond a session ----


def test_a_persistent_pool_binds_what_it_draws():
    """Address and range are those of dynamic-ip-and-port; the port is the binding's."""
    (rule,) = rules(source("persistent-dynamic-ip-and-port", interface="out0"))
    assert made_of(rule) == Translation(source=address("192.0.2.1"), ports=(1024, 65535), binding=rule.pool)


def test_a_dynamic_pool_knows_only_its_fallback_here():
    """Which address is free is not in the rule; a fallback without an address now is none."""
    pool = ["192.0.2.10"]
    (rule,) = rules(source("dynamic-ip", addresses=pool))
    assert made_of(rule) == Translation(binding=rule.pool)
    (rule,) = rules(source("dynamic-ip", addresses=pool, fallback={"interface": "out0"}))
    assert made_of(rule) == Translation(source=address("192.0.2.1"), ports=(1024, 65535), binding=rule.pool)
    (rule,) = rules(source("dynamic-ip", addresses=pool, fallback={"interface": "gone0"}))
    assert made_of(rule) == Translation(binding=rule.pool)


# ---- NPTv6 ----


def prefixes(inside: str, outside: str) -> tuple[CompiledNatRule, ...]:
    """An NPTv6 rule and its reverse."""
    translation = source("static-ip", addresses=[outside], bi_directional=True)
    return rules(translation, source=[inside], **{"nat-type": "nptv6"})


def words_sum(number: int) -> int:
    """The one's complement sum over an address, 0 for both zeros, the slow way."""
    return sum(number >> at & 0xFFFF for at in range(0, 128, 16)) % 0xFFFF


@pytest.mark.parametrize(
    ("inside", "outside", "before", "after"),
    [
        ("fd01:203:405::/48", "2001:db8:1::/48", "fd01:203:405:1::1234", "2001:db8:1:d550::1234"),  # RFC 6296's example
        ("fd01:203:405::/48", "2001:db8:1::/48", "fd01:203:405:2ab0::1", "2001:db8:1::1"),  # 0xffff becomes 0
        ("fd01:203:405:1::/64", "2001:db8:1:1::/64", "fd01:203:405:1::1234", "2001:db8:1:1:d54f::1234"),
        ("fd01:203:405::/56", "2001:db8:1::/56", "fd01:203:405:7:ffff::1", "2001:db8:1:7:ffff:d54f:0:1"),
        ("fd01::/16", "fd02::/16", "fd01:1:2:3::4", "fd02:1:2:2::4"),
        ("fd00::/48", "fd00::/48", "fd00::1", "fd00::1"),
    ],
)
def test_a_prefix_is_translated_and_its_checksum_kept(inside, outside, before, after):
    """The word that takes the adjustment is the subnet, or behind a longer prefix the first that is not 0xffff."""
    forward, reverse = prefixes(inside, outside)
    assert made_of(forward, address(before)) == Translation(source=address(after))
    assert made_of(reverse, address("2001:4860::1"), address(after)) == Translation(destination=address(before))


@given(st.integers(16, 64), st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_prefix_translation_is_neutral_and_goes_back(length, inside, outside, host):
    """For every length, prefix and host: the sum stays, the way back is exact, and bits outside the word stay."""
    mask = (1 << 128 - length) - 1
    forward = PrefixMap(inside & ~mask, outside & ~mask, length)
    original = inside & ~mask | host & mask
    try:
        moved = forward.translate(original)
    except Unmappable:
        assert original & 0xFFFF << 64 == 0xFFFF << 64 or original & (1 << 64) - 1 == (1 << 64) - 1
        return
    assert moved & ~mask == outside & ~mask
    assert words_sum(moved) == words_sum(original)
    assert forward.reverse().translate(moved) == original
    changed = (moved ^ original) & mask
    assert sum(changed >> at & 0xFFFF != 0 for at in range(0, 128, 16)) <= 1


@pytest.mark.parametrize(
    ("length", "original"), [(48, "fd01:203:405:ffff::1"), (64, "fd01:203:405:1:ffff:ffff:ffff:ffff")]
)
def test_an_address_without_a_word_to_change_is_refused(length, original):
    """RFC 6296: no packet of it may pass."""
    inside = address_to_text(address(original) >> 128 - length << 128 - length)
    forward, _ = prefixes(f"{inside}/{length}", f"2001:db8::/{length}")
    with pytest.raises(Unmappable):
        made_of(forward, address(original))
