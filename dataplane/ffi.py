"""The compiled module, and nothing else imports it: `ffi` and `lib` of cffi, the lists of session.h as Python names.

A call releases the GIL. What a return code means is said in api.h; `check` turns the ones that are failures of the
system into exceptions.
"""

import os
import struct
from pathlib import Path
from typing import Any

from dataplane import _dataplane
from dataplane._dataplane import ffi, lib
from dataplane.errors import DataplaneError

__all__ = ["PROGRAMS", "check", "enum_names", "ffi", "lib", "unpacker"]

# What the kernel runs: the first that it takes. Missing if built without clang.
PROGRAMS = [Path(_dataplane.__file__).with_name(name) for name in ("offload.bpf.o", "offload-portable.bpf.o")]
CODES = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q"}


def enum_names(enum: str) -> dict[int, str]:
    """Value -> name of one enum of session.h, as it is spelled there."""
    return dict(sorted(ffi.typeof(f"enum {enum}").elements.items()))


def unpacker(name: str, fields: list[str]) -> struct.Struct:
    """Reads or writes those fields of a C struct in one call; their order must be that of session.h.

    An array of numbers is one value per element, one of bytes or structs is bytes; a field of a field is written with
    a dot. Going field by field through cffi takes ten times as long.
    """
    whole = ffi.typeof(f"struct {name}")
    form, at = "=", 0
    for field in fields:
        offset, ctype = _place(whole, field)
        assert offset >= at, f"{field} lies before the field named before it"
        form += f"{offset - at}x"
        if ctype.kind == "primitive":
            form += CODES[ctype.cname]
        elif ctype.kind == "array" and ctype.item.cname in CODES and ffi.sizeof(ctype.item) > 1:
            form += f"{ctype.length}{CODES[ctype.item.cname]}"
        else:
            form += f"{ffi.sizeof(ctype)}s"
        at = offset + ffi.sizeof(ctype)
    return struct.Struct(f"{form}{ffi.sizeof(whole) - at}x")


def _place(ctype: Any, field: str) -> tuple[int, Any]:
    """Where a field begins, and its type."""
    offset = 0
    for name in field.split("."):
        step = dict(ctype.fields)[name]
        offset, ctype = offset + step.offset, step.type
    return offset, ctype


def check(pointer: Any, what: str) -> Any:
    """The pointer that a C function returned; DataplaneError with errno's text where it is NULL."""
    if pointer == ffi.NULL:
        raise DataplaneError(f"{what}: {os.strerror(ffi.errno)}")
    return pointer
