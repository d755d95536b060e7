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

__all__ = ["PROGRAM", "check", "enum_names", "ffi", "lib", "unpacker"]

PROGRAM = Path(_dataplane.__file__).with_name("offload.bpf.o")  # what the kernel runs; missing if built without clang
CODES = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q"}


def enum_names(enum: str) -> dict[int, str]:
    """Value -> name of one enum of session.h, as it is spelled there."""
    return dict(sorted(ffi.typeof(f"enum {enum}").elements.items()))


def unpacker(name: str, fields: list[str]) -> struct.Struct:
    """Reads those fields of a C struct out of its bytes in one call; their order must be that of session.h.

    An array of numbers gives one value per element, one of structs its bytes. Reading field by field through cffi takes
    ten times as long.
    """
    layout = dict(ffi.typeof(f"struct {name}").fields)
    form, at = "=", 0
    for field in fields:
        offset, ctype = layout[field].offset, layout[field].type
        assert offset >= at, f"{field} lies before the field named before it"
        form += f"{offset - at}x"
        if ctype.kind == "primitive":
            form += CODES[ctype.cname]
        elif ctype.item.kind == "primitive":
            form += f"{ctype.length}{CODES[ctype.item.cname]}"
        else:
            form += f"{ffi.sizeof(ctype)}s"
        at = offset + ffi.sizeof(ctype)
    return struct.Struct(form)


def check(pointer: Any, what: str) -> Any:
    """The pointer that a C function returned; DataplaneError with errno's text where it is NULL."""
    if pointer == ffi.NULL:
        raise DataplaneError(f"{what}: {os.strerror(ffi.errno)}")
    return pointer
