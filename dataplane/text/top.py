"""Who has most of the session table, and how busy the firewall is."""

from collections.abc import Iterable, Iterator, Sequence

from dataplane.text.base import RULE, Json

IN_A_LINE = 15  # samples
WIDTHS = {"source": 40, "destination": 40}


def top(rows: Iterable[Json], what: str, by: str, done: Json) -> Iterator[str]:
    """`show session top`: the largest groups, and what all of them have; `done` sums them up."""
    width = WIDTHS.get(what, 32)
    rate = f"{'kbps':>14}" if by == "rate" else ""
    yield RULE
    yield f"{what.capitalize():<{width}}{'Sessions':>10}{'Packets':>14}{'Bytes':>18}{rate}{'Share':>8}"
    yield RULE
    for row in rows:
        yield f"{row[what] or '(none)':<{width}}{_amounts(row)}{row['percent']:>7}%"
    yield RULE
    yield f"{'Total':<{width}}{_amounts(done['all'])}"
    yield f"Groups: {done['groups']}, in the order of: {by}"
    if done["left_out"]["sessions"]:
        yield f"Not grouped, there are too many groups: {done['left_out']['sessions']} sessions"


def _amounts(row: Json) -> str:
    rate = "" if row["kbps"] is None else f"{row['kbps']:>14}"
    return f"{row['sessions']:>10}{row['packets']:>14}{row['bytes']:>18}{rate}"


def queues(rows: Iterable[Json]) -> Iterator[str]:
    """`show counter queue`: one line for each NFQUEUE."""
    yield "Queue Role        Packets   Depth Highest  Limit    Dropped       Lost Overruns Verdict errors Send errors"
    yield RULE
    for row in rows:
        numbers = f"{row['packets']:>13}{row['depth']:>8}{row['highest']:>8}{row['limit']:>7}"
        losses = f"{row['dropped']:>11}{row['lost']:>11}{_known(row['overruns']):>9}"
        errors = f"{_known(row['verdict_errors']):>15}{_known(row['send_errors']):>12}"
        yield f"{row['queue']:<6}{row['role']:<5}{numbers}{losses}{errors}"


def _known(value: object) -> str:
    return "-" if value is None else str(value)


def resource_monitor(periods: Iterable[Json]) -> Iterator[str]:
    """`show running resource-monitor`: PAN-OS's sections, `*` for what was not sampled."""
    for number, row in enumerate(periods):
        if number:
            yield ""
        yield f"Resource monitoring sampling data (per {row['period']}):"
        yield ""
        if not row["cpu"]:
            yield f"No {row['period']} is over yet"
            continue
        yield from _groups(row["cpu"])
        yield ""
        yield from _cores(row)
        yield ""
        yield f"Resource utilization (%) during last {row['last']} {row['period']}s:"
        for name, columns in row["utilization"].items():
            yield from _samples(name, columns, row["period"])


def _groups(cpu: Json) -> Iterator[str]:
    """The threads by what they do: the workers together, the slow path, the ager."""
    groups: dict[str, list[int]] = {"flow_fastpath": [], "flow_slowpath": [], "flow_mgmt": []}
    for name, columns in cpu.items():
        group = {"slowpath": "flow_slowpath", "ager": "flow_mgmt"}.get(name, "flow_fastpath")
        groups[group] += columns["average"][:1]
    yield "CPU load sampling by group:"
    for group, loads in groups.items():
        yield f"{group:<31}:{round(sum(loads) / len(loads)) if loads else 0:>6}%"


def _cores(row: Json) -> Iterator[str]:
    """A column for each thread, the newest sample first; of longer periods average and maximum."""
    cpu, long = row["cpu"], row["period"] != "second"
    kinds = ("average", "maximum") if long else ("average",)
    yield f"CPU load (%) during last {row['last']} {row['period']}s:"
    yield "core " + "".join(f"{number:>{4 * len(kinds)}}" for number in range(len(cpu)))
    if long:
        yield "     " + " avg max" * len(cpu)
    for at in range(row["last"]):
        yield "     " + "".join(f"{_sample(columns[kind], at):>4}" for columns in cpu.values() for kind in kinds)
    yield f"Cores: {', '.join(f'{number} {name}' for number, name in enumerate(cpu))}"


def _sample(samples: Sequence[int], at: int) -> str:
    return str(samples[at]) if at < len(samples) else "*"


def _samples(name: str, columns: Json, period: str) -> Iterator[str]:
    for kind in ("average",) if period == "second" else ("average", "maximum"):
        yield f"{name}:" if period == "second" else f"{name} ({kind}):"
        samples = columns[kind]
        for at in range(0, len(samples), IN_A_LINE):
            yield "".join(f"{sample:>4}" for sample in samples[at : at + IN_A_LINE])
