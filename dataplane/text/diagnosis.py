"""Packet diagnosis: what is set, and the flow log."""

from collections.abc import Iterable, Iterator

from dataplane.text.base import RULE, Json, yes_no


def diagnosis_setting(setting: Json) -> Iterator[str]:
    """`debug dataplane packet-diag show setting`."""
    yield RULE
    yield "Packet diagnosis setting:"
    yield RULE
    yield "Packet filter"
    yield f"  Enabled:                   {yes_no(setting['filter']['enabled'])}"
    yield f"  Marked sessions:           {setting['filter']['marked_sessions']}"
    for row in setting["filter"]["filters"]:
        yield from _filter(row)
    yield RULE
    yield "Logging"
    yield f"  Enabled:                   {yes_no(setting['log']['enabled'])}"
    yield f"  Features:                  {', '.join(setting['log']['features']) or 'none'}"
    yield f"  Packets:                   {setting['log']['packets']} of {setting['log']['maximum']}"
    yield RULE
    yield "Packet capture"
    yield f"  Enabled:                   {yes_no(setting['capture']['enabled'])}"
    yield f"  Directory:                 {setting['capture']['directory']}"
    for row in setting["capture"]["stages"]:
        yield from _stage(row)
    yield RULE


def diagnosis_log(packets: Iterable[Json]) -> Iterator[str]:
    """`debug dataplane packet-diag show log`: a stanza for each packet in each path."""
    for packet in packets:
        yield f"== {packet['time']} =="
        yield from packet["steps"]
        yield ""


def _filter(row: Json) -> Iterator[str]:
    ends = [f"{row[side] or 'any'}[{row[f'{side}_port'] or 0}]" for side in ("source", "destination")]
    yield f"  Index {row['index']}: {'->'.join(ends)}, proto {row['protocol'] or 0}"
    yield f"           ingress-interface {row['ingress_interface'] or 'any'}"


def _stage(row: Json) -> Iterator[str]:
    state = row["error"] or ("complete" if row["complete"] else None)
    yield f"  Stage {row['stage']:<18}:  file {row['file']}{f', {state}' if state else ''}"
    yield f"    Captured:     packets - {row['packets']:<10} bytes - {row['bytes']:<10} lost - {row['lost']}"
    most = f"packets - {row['packet_count']:<10} bytes - {row['byte_count']:<10} snaplen - {row['snaplen']}"
    yield f"    Maximum:      {most}"
