"""lookup.c, built with the extension's C files and, where it is installed, with DPDK's rte_hash beside them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.lab import LabError

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("lookup.c")
KERNEL_SIDE = ("queue.c", "worker.c", "program.c")  # they need libraries, and no look-up needs them
LOOKUPS = 1_000_000  # in a round
TIME = 600.0  # seconds at most, ten million sessions filled into both tables included


class Lookup:
    """The compiled program; `dpdk` says why there is no figure of rte_hash, or is empty."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "lookup"
        flags = _output([sys.executable, "cext/build_ffi.py", "--cflags"]).split()
        dpdk = _package("libdpdk")
        self.dpdk = "" if dpdk else "not installed (Debian: libdpdk-dev)"
        files = [file for file in sorted(ROOT.glob("cext/*.c")) if file.name not in KERNEL_SIDE]
        ours = [str(file) for file in files if not file.name.endswith(".bpf.c")]
        bench = str(directory / "lookup.o")
        includes = ["-DWITH_DPDK", *dpdk["cflags"]] if dpdk else []
        _output(["gcc", *flags, *includes, "-Icext", "-c", str(SOURCE), "-o", bench])
        _output(["gcc", *flags, "-Icext", bench, *ours, "-o", str(self._program), *(dpdk["libs"] if dpdk else [])])

    def measure(self, sessions: int, rounds: int, lookups: int = LOOKUPS) -> Mapping[str, Any]:
        """Nanoseconds a look-up by round, as lookup.c prints them. Raises LabError."""
        result: Mapping[str, Any] = json.loads(
            _output([str(self._program), *map(str, (sessions, lookups, rounds))], TIME).splitlines()[-1]
        )
        return result


def _package(name: str) -> dict[str, list[str]]:
    """What pkg-config knows of a library; nothing if it is not there. Its headers' warnings are not ours."""
    try:
        words = {kind: _output(["pkg-config", f"--{kind}", name]).split() for kind in ("cflags", "libs")}
    except (LabError, FileNotFoundError):
        return {}
    words["cflags"] = [word.replace("-I", "-isystem", 1) if word.startswith("-I") else word for word in words["cflags"]]
    return words


def _output(argv: list[str], seconds: float = 120.0) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=seconds)
    if done.returncode:
        raise LabError(f"{argv[0]}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
