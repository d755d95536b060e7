"""What is compiled into `dataplane._dataplane`, and how: every C file beside this one, and glue that cffi writes.

With clang and libbpf there are also `dataplane/*.bpf.o`, one of which the kernel runs: the first that it takes. Without
them the build says so and goes on, and nothing is offloaded.

cffi reads session.h and api.h as they are; the compiler reads them too, so that a difference between what Python
believes and what C does ends the build.

    python cext/build_ffi.py DIRECTORY    build into DIRECTORY/dataplane ("." is the source tree); nothing if up to date
    python cext/build_ffi.py --cflags     print the flags of our own files

DATAPLANE_SANITIZE in the environment, say "address,undefined" or "thread", makes an instrumented build: give it a
DIRECTORY of its own, because objects and flags are not compared.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from cffi import FFI, recompiler
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
CEXT = Path("cext")
MODULE = "dataplane._dataplane"
INTERFACE = ("session.h", "api.h")
GLUE = Path("build", "_dataplane.c")
PROGRAM = CEXT / "offload.bpf.c"
PROGRAM_OBJECTS = {"offload.bpf.o": ["-DKERNEL_TYPES"], "offload-portable.bpf.o": []}  # beside the module

GLUE_INCLUDES = "#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n" + "".join(
    f'#include "{name}"\n' for name in INTERFACE
)

CFLAGS = [
    "-std=gnu11",
    "-D_GNU_SOURCE",  # recvmmsg
    "-g",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-UNDEBUG",  # Python's own flags switch assert() off; ours guards invariants and stays
    "-fno-strict-aliasing",  # headers are read in place from packet bytes
    "-fvisibility=hidden",
    "-fno-semantic-interposition",
    "-fstack-protector-strong",
]
OPTIMISED = ["-O3", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
INSTRUMENTED = ["-O1", "-U_FORTIFY_SOURCE", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
LDFLAGS = ["-pthread", "-Wl,-z,relro,-z,now"]
PROGRAM_CFLAGS = ["-target", "bpf", "-mcpu=v3", "-ffreestanding", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


def sources() -> list[str]:
    """Our C files, relative to the root; a *.bpf.c is for another compiler."""
    return sorted(str(path) for path in CEXT.glob("*.c") if not path.name.endswith(".bpf.c"))


def compile_flags(sanitize: str) -> list[str]:
    """Flags of a plain build, or of one that the comma-separated sanitizers watch."""
    own = [*CFLAGS, *(["-DHAVE_LIBBPF"] if has_libbpf() else [])]
    return [*own, *INSTRUMENTED, f"-fsanitize={sanitize}"] if sanitize else own + OPTIMISED


@cache
def has_libbpf() -> bool:
    """Whether the compiler finds libbpf's headers."""
    probe = [*sysconfig.get_config_var("CC").split(), "-E", "-include", "bpf/libbpf.h", "-x", "c", os.devnull]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def extension() -> Extension:
    """The compiled module; it is stale as soon as any C file, header or this file is newer."""
    sanitize = os.environ.get("DATAPLANE_SANITIZE", "")
    return Extension(
        MODULE,
        sources=[str(GLUE), *sources()],
        depends=sorted(str(path) for pattern in ("*.h", "build_*.py") for path in CEXT.glob(pattern)),
        include_dirs=[str(CEXT)],
        extra_compile_args=compile_flags(sanitize),
        libraries=["bpf"] if has_libbpf() else [],
        extra_link_args=[*LDFLAGS, f"-fsanitize={sanitize}"] if sanitize else LDFLAGS,
    )


def write_glue() -> None:
    """Let cffi write GLUE, unless what it would write stands there already."""
    ffi = FFI()
    ffi.cdef("\n".join((CEXT / name).read_text() for name in INTERFACE))
    GLUE.parent.mkdir(exist_ok=True)
    recompiler.make_c_source(ffi, MODULE, GLUE_INCLUDES, str(GLUE))


def write_programs(directory: Path) -> None:
    """Compile what the kernel runs, unless it is up to date; say so where that cannot be done."""
    if shutil.which("clang") is None or not has_libbpf():
        print("offload.bpf.c is left out, nothing will be offloaded: it takes clang and libbpf-dev", file=sys.stderr)
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name, flags in PROGRAM_OBJECTS.items():
        write_program(directory / name, flags)


def write_program(target: Path, flags: list[str]) -> None:
    inputs = (PROGRAM, CEXT / "session.h", Path(__file__))
    if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in inputs):
        return
    # asm/ is where Debian keeps the headers of one architecture
    headers = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    subprocess.run(["clang", *PROGRAM_CFLAGS, *flags, headers, f"-I{CEXT}", "-c", PROGRAM, "-o", target], check=True)


class BuildExt(build_ext):
    """setuptools' command, with the glue written before it looks for its sources, and the kernel's program after it."""

    def run(self) -> None:
        write_glue()
        super().run()
        write_programs(Path(self.get_ext_fullpath(MODULE)).parent)


def build_into(directory: str) -> None:
    """Compile into `directory`/dataplane, which need not exist."""
    distribution = Distribution({"ext_modules": [extension()], "cmdclass": {"build_ext": BuildExt}})
    command = distribution.get_command_obj("build_ext")
    command.build_lib = directory
    command.build_temp = str(Path("build", "objects", os.environ.get("DATAPLANE_SANITIZE", "plain")))
    distribution.run_command("build_ext")


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit(__doc__)
    os.chdir(ROOT)
    if arguments == ["--cflags"]:
        print(*compile_flags(""))
        return
    build_into(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
