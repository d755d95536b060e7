"""A configuration as YAML that `check` and `run` read."""

import json
import re
from collections.abc import Iterator, Mapping

from dataplane.text.base import Json


def config(value: Json) -> Iterator[str]:
    """`show running config` as the YAML that `check` and `run` read."""
    for key, item in value.items():
        yield from _yaml_entry(f"{_yaml_scalar(key)}:", item)


def _yaml_entry(head: str, item: object) -> Iterator[str]:
    """`head` with its value: beside it when it fits on a line, else below it and indented."""
    if isinstance(item, Mapping) and item:
        yield head
        yield from (f"  {line}" for line in config(item))
    elif isinstance(item, list) and any(isinstance(element, Mapping | list) for element in item):
        yield head
        for element in item:
            lines = list(config(element)) if isinstance(element, Mapping) and element else [_yaml_flow(element)]
            yield f"  - {lines[0]}"
            yield from (f"    {line}" for line in lines[1:])
    else:
        yield f"{head} {_yaml_flow(item)}"


def _yaml_flow(item: object) -> str:
    if isinstance(item, list):
        return f"[{', '.join(_yaml_flow(element) for element in item)}]"
    if isinstance(item, Mapping):
        return f"{{{', '.join(f'{_yaml_scalar(key)}: {_yaml_flow(value)}' for key, value in item.items())}}}"
    return _yaml_scalar(item)


PLAIN = re.compile(r"[A-Za-z_][\w./-]*|\d+\.\d+\.\d+\.\d+[\d./-]*", re.ASCII)
NOT_A_STRING = {"true", "false", "null", "yes", "no", "on", "off"}  # to YAML 1.2 or to readers of YAML 1.1


def _yaml_scalar(item: object) -> str:
    """JSON is YAML, so whatever is not plainly a word is written as JSON."""
    if isinstance(item, str) and PLAIN.fullmatch(item) and item.lower() not in NOT_A_STRING:
        return item
    return json.dumps(item)
