"""firewall.yaml(5): every key of the configuration with its type, bounds, default and meaning.

Types and defaults are the model's JSON schema; meanings are the docstrings of its classes and fields, which pydantic
does not keep and the source does.
"""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataplane.manual.dated import DATE, VERSION
from dataplane.manual.roff import bold, escape, items, literal, page, paragraphs, prose, section
from dataplane.policy import model

Schema = Mapping[str, Any]

INTRODUCTION = """What a firewall is told: one YAML 1.2 file, so that `on`, `off`, `yes` and `no` are strings and `010`
is ten. A key that is not known, a value of another type, a name that is defined nowhere and a key that is said twice
are errors. `dataplane check` finds them all at once and names file, line and path, list positions counted from 0:

\b
firewall.yaml:31: security-rules[3].source: unknown address 'dmz'

Names, addresses and prefixes may stand wherever an address is asked for, and `any` for all. Rules are tried in order
and the first that matches decides.
"""
EXAMPLE = Path(__file__).parents[2] / "config" / "firewall.yaml"


def configuration_page() -> str:
    """The whole page."""
    schema = model.Config.model_json_schema(by_alias=True)
    body = [
        *section("DESCRIPTION", paragraphs(INTRODUCTION)),
        *section("KEYS", _Keys(schema["$defs"]).lines(schema)),
        *section("EXAMPLE", literal(EXAMPLE.read_text())),
        *section("SEE ALSO", [r"\fBdataplane\fR(1), \fBdataplane\-check\fR(1), \fBdataplane\-run\fR(1)"]),
    ]
    return page("firewall.yaml", 5, "configuration of the dataplane firewall", body, DATE, VERSION)


class _Keys:
    """Describes each class once, where it is first met, and refers to that place afterwards."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._said: dict[str, str] = {}  # class -> the path of its first place
        self._meanings = field_meanings()

    def lines(self, schema: Schema) -> Iterator[str]:
        """The keys of the file, then those below each of them."""
        yield from items(self._entries("Config", schema, ""))
        yield from self._below(schema, "")

    def _below(self, schema: Schema, path: str) -> Iterator[str]:
        for key, value in schema["properties"].items():
            for name, place in self._nouns(value, f"{path}{key}"):
                if name in self._said:
                    continue
                self._said[name] = place
                noun = self._definitions[name]
                yield f".SS {escape(place)}"
                yield from paragraphs(noun.get("description", ""))
                yield from items(self._entries(name, noun, place))
                yield from self._below(noun, f"{place}.")

    def _entries(self, name: str, noun: Schema, place: str) -> Iterator[tuple[str, str]]:
        for key, value in noun["properties"].items():
            path = f"{place}.{key}" if place else key
            facts = [self._type(value), self._default(key, value, noun)]
            meaning = self._meanings.get((name, key.replace("-", "_")), "")
            about = [*(part for part in facts if part), *self._elsewhere(value, path)]
            yield bold(key), f"{escape('; '.join(about))}. {prose(meaning)}".rstrip()

    def _elsewhere(self, value: Schema, path: str) -> Iterator[str]:
        for name, place in self._nouns(value, path):
            yield f"see {self._said.get(name, place)}"

    def _nouns(self, value: Schema, path: str) -> Iterator[tuple[str, str]]:
        """The classes that a value may hold, and what their place is called."""
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            if "properties" in self._definitions[name]:
                yield name, path
        for choice in value.get("anyOf", ()):
            yield from self._nouns(choice, path)
        if isinstance(value.get("items"), dict):
            yield from self._nouns(value["items"], f"{path}[]")
        if isinstance(value.get("additionalProperties"), dict):
            yield from self._nouns(value["additionalProperties"], f"{path}.NAME")

    def _type(self, value: Schema) -> str:
        """In words; nothing for null, which is what a key is that was left out."""
        if "$ref" in value:
            noun = self._definitions[value["$ref"].rpartition("/")[2]]
            return self._type(noun) if "enum" in noun else "mapping"
        if "anyOf" in value:
            return " or ".join(filter(None, map(self._type, value["anyOf"])))
        if "enum" in value or "const" in value:
            return " or ".join(map(str, value.get("enum", [value.get("const")])))
        kind = value.get("type")
        if kind == "array":
            return f"list of {_plural(self._type(value['items']))}"
        if kind == "object":
            return f"mapping of names to {_plural(self._type(value['additionalProperties']))}"
        return {"boolean": "true or false", "null": "", "integer": f"number{_bounds(value)}"}.get(str(kind), str(kind))

    def _default(self, key: str, value: Schema, noun: Schema) -> str:
        if key in noun.get("required", ()):
            return "required"
        default = value.get("default")
        if default in (None, [], {}) or any(True for _ in self._nouns(value, "")):
            return ""
        return f"default {_yaml(default)}"


def field_meanings() -> dict[tuple[str, str], str]:
    """(class, field) -> the docstring below the field, fields that a class has from another included."""
    own: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(model)).body:
        if isinstance(node, ast.ClassDef):
            own[node.name] = dict(_docstrings(node))
    classes = {name: getattr(model, name) for name in own}
    return {
        (name, field): text
        for name, cls in classes.items()
        for base in reversed(cls.__mro__)
        for field, text in own.get(base.__name__, {}).items()
    }


def _docstrings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, below.value.value


def _plural(kind: str) -> str:
    """Of `string`, `list of strings`, `number from 1 to 9`."""
    noun, *rest = kind.split(" ", 1)
    return " ".join([f"{noun}s", *rest])


def _bounds(value: Schema) -> str:
    return f" from {value['minimum']} to {value['maximum']}" if {"minimum", "maximum"} <= value.keys() else ""


def _yaml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
