"""Counters, hit counts and what the ALGs do."""

from collections.abc import Iterable, Iterator, Sequence

from dataplane.text.base import RULE, Json, yes_no


def counters(rows: Sequence[Json], elapsed: float) -> Iterator[str]:
    """`show counter global`; `elapsed` is in seconds."""
    yield "Global counters:"
    yield f"Elapsed time since last sampling: {elapsed:.3f} seconds"
    yield ""
    yield "name                                   value     rate severity  category  aspect    description"
    yield RULE
    for row in rows:
        name = f"{row['name']} {row['value']:>{max(43 - len(row['name']), 1)}}{row['rate']:>9.0f}"
        yield f"{name} {row['severity']:<10}{row['category']:<10}{row['aspect']:<10}{row['description']}"
    yield RULE
    yield f"Total counters shown: {len(rows)}"
    yield RULE


def rule_hit_count(rules: Iterable[Json]) -> Iterator[str]:
    """`show rule-hit-count`: name and count, then when the rule was first and last hit, if ever."""
    for rule in rules:
        times = f" first {rule['first_hit']} last {rule['last_hit']}" if rule["hit_count"] else ""
        yield f"{rule['rule']} {rule['hit_count']}{times}"


def alg(rows: Iterable[Json]) -> Iterator[str]:
    """`show alg`: one line for each application layer gateway."""
    yield f"{'Application':<16}{'Enabled':<9}{'Ports':<24}{'Sessions':>9}{'Predict':>9}"
    for row in rows:
        ports = ",".join(map(str, row["ports"]))
        named = f"{row['application']:<16}{yes_no(row['enabled']):<9}"
        yield f"{named}{ports:<24}{row['sessions']:>9}{row['predictions']:>9}"
