"""Programs of many threads against the C files themselves, under ThreadSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("queue", "worker", "offload.bpf")  # what talks to the kernel's queues, or runs in the kernel


def run_under_tsan(name: str, directory: Path) -> None:
    """Compile tests/NAME.c with what it is about, run it, and hear of no race; skipped where gcc cannot."""
    gcc = shutil.which("gcc") or pytest.skip("no gcc here")
    runtime = subprocess.run([gcc, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout
    if not os.path.isabs(runtime):
        pytest.skip("gcc has no ThreadSanitizer here")
    parts = [path.stem for path in (ROOT / "cext").glob("*.c") if path.stem not in ELSEWHERE]
    sources = [str(ROOT / "tests" / f"{name}.c"), *(str(ROOT / "cext" / f"{part}.c") for part in parts)]
    program = str(directory / name)
    flags = [
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-O1",
        "-g",
        "-pthread",
        "-UNDEBUG",
        "-fno-strict-aliasing",
        "-fsanitize=thread",
    ]
    subprocess.run([gcc, *flags, f"-I{ROOT / 'cext'}", *sources, "-o", program], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"
    steady = ["setarch", "-R"] if shutil.which("setarch") else []  # its shadow memory does not fit every random layout
    done = subprocess.run([*steady, program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ThreadSanitizer" not in done.stderr
