"""The compiled module, and nothing else imports it: `ffi` and `lib` of cffi, the lists of session.h as Python names.

A call releases the GIL. What a return code means is said in api.h; `check` turns the ones that are failures of the
system into exceptions.
"""

import os
from typing import Any

from dataplane._dataplane import ffi, lib
from dataplane.errors import DataplaneError

__all__ = ["check", "enum_names", "ffi", "lib"]


def enum_names(enum: str) -> dict[int, str]:
    """Value -> name of one enum of session.h, as it is spelled there."""
    return dict(sorted(ffi.typeof(f"enum {enum}").elements.items()))


def check(pointer: Any, what: str) -> Any:
    """The pointer that a C function returned; DataplaneError with errno's text where it is NULL."""
    if pointer == ffi.NULL:
        raise DataplaneError(f"{what}: {os.strerror(ffi.errno)}")
    return pointer
