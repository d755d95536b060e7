"""What a commit would do or has done, and the versions that are kept."""

from collections.abc import Iterable, Iterator

from dataplane.change import Change
from dataplane.text.base import Json


def commit_preview(preview: Json) -> Iterator[str]:
    """`commit --check`: a line for each change, with the sessions that it would end."""
    if not preview["changes"]:
        yield "Nothing would change."
    explained = 0
    for row in preview["changes"]:
        change = Change(*(row[field] for field in Change._fields))
        yield f"{change}{_ends(row['sessions'])}"
        explained += row["sessions"]
    if rest := preview["sessions_ended"] - explained:
        yield f"several changes together{_ends(rest)}"
    yield f"Sessions that would end: {preview['sessions_ended']}"
    if preview["connections_to_firewall_ended"]:
        yield f"Connections to the firewall itself among them: {preview['connections_to_firewall_ended']}"
    if preview["needs_restart"]:
        yield f"Takes effect at a start only, so this cannot be committed: {', '.join(preview['needs_restart'])}"


def _ends(sessions: int) -> str:
    if not sessions:
        return ""
    return f": ends {sessions} session{'s' if sessions != 1 else ''}"


def committed(done: Json) -> Iterator[str]:
    """`commit` and `rollback`."""
    yield f"Version {done['version']} is in force; {done['sessions_ended']} sessions ended."


def confirmed(done: Json) -> Iterator[str]:
    """`commit confirm`."""
    yield f"Version {done['version']} is confirmed."


def versions(rows: Iterable[Json]) -> Iterator[str]:
    """`show config versions`: a line for each, what it changed below it."""
    for row in rows:
        mark = "*" if row["running"] else " "
        waits = "  (not confirmed yet)" if row["unconfirmed"] else ""
        yield f"{mark} {row['version']:<6}{row['time']:<22}{row['user']:<12}{row['source']}{waits}"
        yield from (f"          {change}" for change in row["changes"])
