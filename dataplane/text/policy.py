"""The policy in force, in PAN-OS's stanzas, and the pools of its NAT rules."""

from collections.abc import Iterable, Iterator

from dataplane.text.base import Json, yes_no


def security_policy(rules: Iterable[Json]) -> Iterator[str]:
    """`show running security-policy`: one stanza for each rule, a blank line between."""
    return _stanzas(_security_stanza(rule) for rule in rules)


def nat_policy(rules: Iterable[Json]) -> Iterator[str]:
    """`show running nat-policy`, likewise."""
    return _stanzas(_nat_stanza(rule) for rule in rules)


def _stanzas(stanzas: Iterable[Iterable[str]]) -> Iterator[str]:
    for number, stanza in enumerate(stanzas):
        if number:
            yield ""
        yield from stanza


def _security_stanza(rule: Json) -> Iterator[str]:
    """The two predefined rules have no index, no user and device lines, and a type."""
    written = rule["index"] is not None
    yield f"{_stanza_name(rule)} {{"
    yield f"        from {_words(rule['from'])};"
    yield f"        source {_words(rule['source'])};"
    if rule["negate_source"]:
        yield "        negate-source yes;"
    yield "        source-region none;"
    yield f"        to {_words(rule['to'])};"
    yield f"        destination {_words(rule['destination'])};"
    if rule["negate_destination"]:
        yield "        negate-destination yes;"
    yield "        destination-region none;"
    if written:
        yield "        user any;"
        yield "        source-device any;"
        yield "        destinataion-device any;"  # PAN-OS's own spelling
    yield "        category any;"
    services = _numbered(rule["application_service"]) if written else rule["application_service"]
    yield f"        application/service  {_words(services)};"
    yield f"        action {rule['action']};"
    yield f"        icmp-unreachable: {yes_no(rule['icmp_unreachable'])}"
    yield f"        terminal {yes_no(not written or rule['action'] == 'allow')};"
    if rule["type"]:
        yield f"        type {rule['type']};"
    if rule["disabled"]:
        yield "        disabled yes;"
    yield "}"


def _nat_stanza(rule: Json) -> Iterator[str]:
    yield f"{_stanza_name(rule)} {{"
    yield f"        nat-type {rule['nat_type']};"
    yield f"        from {_words(rule['from'])};"
    yield f"        source {_words(rule['source'])};"
    yield f"        to {rule['to']};"
    yield f"        to-interface {rule['to_interface']} ;"
    yield f"        destination {_words(rule['destination'])};"
    yield f"        service {_words(_numbered(rule['service']))};"
    if rule["translate_to"]:
        yield f'        translate-to "{rule["translate_to"]}";'
    yield "        terminal no;"
    if rule["disabled"]:
        yield "        disabled yes;"
    yield "}"


def _stanza_name(rule: Json) -> str:
    if rule["index"] is None:
        return str(rule["name"])
    return f'"{rule["name"]}; index: {rule["index"]}"'


def _words(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"[ {' '.join(words)} ]"


def _numbered(services: list[str]) -> list[str]:
    return [f"{number}:{service}" for number, service in enumerate(services)]


def security_match(match: Json) -> Iterator[str]:
    """`test security-policy-match`: the stanza of the rule that matches."""
    return _security_stanza(match["stanza"]) if match["stanza"] else iter(["No rule matches"])


def nat_match(match: Json) -> Iterator[str]:
    """`test nat-policy-match`: the stanza of the rule that matches."""
    return _nat_stanza(match["stanza"]) if match["stanza"] else iter(["No rule matches"])


def ippool(pools: Iterable[Json]) -> Iterator[str]:
    """`show running ippool`: one line for each address, which stands behind PAN-OS's own columns."""
    pools = list(pools)
    rules = len({pool["rule"] for pool in pools})
    yield f"VSYS 1 has {rules} NAT rules, DIP and DIPP rules:"
    yield "Rule                             Type            Used       Available  Mem Size Ratio Address"
    yield "-------------------------------- --------------- ---------- ---------- -------- ----- -------"
    for pool in pools:
        numbers = f"{pool['used']:<10} {pool['available']:<10} {pool.get('memory', '-'):>8} {pool['ratio']:>4}"
        failures = f"  failures: {pool['failures']}" if pool.get("failures") else ""
        yield f"{pool['rule']:<32} {pool['type']:<15} {numbers}  {pool['address']}{failures}"
