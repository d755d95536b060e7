"""One line of the doctor's."""

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """`check` is what was looked at, `advice` what to do about it; FAIL: something the firewall needs is missing."""

    check: str
    status: str
    message: str
    advice: str = ""
