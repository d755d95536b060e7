"""What comes over the control socket may be any JSON: the first look at it."""

from collections.abc import Iterable, Mapping

from dataplane.errors import UsageError

Arguments = Mapping[str, object]


def mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UsageError("filter: not a mapping")
    return value


def choice(what: str, value: object, known: Iterable[str]) -> str:
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        raise UsageError(f"{what}: {value!r} is none of {' '.join(words)}")
    return value


def number(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise UsageError(f"{what}: {value!r} is not a number of 32 bits")
    return value
