"""What is compiled into `dataplane._dataplane`, and how: every C file beside this one, and glue that cffi writes.

cffi reads session.h and api.h as they are; the compiler reads them too, so that a difference between what Python
believes and what C does ends the build.

    python cext/build_ffi.py DIRECTORY    build into DIRECTORY/dataplane ("." is the source tree); nothing if up to date
    python cext/build_ffi.py --cflags     print the flags of our own files

DATAPLANE_SANITIZE in the environment, say "address,undefined" or "thread", makes an instrumented build: give it a
DIRECTORY of its own, because objects and flags are not compared.
"""

import os
import sys
from pathlib import Path

from cffi import FFI, recompiler
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
CEXT = Path("cext")
MODULE = "dataplane._dataplane"
INTERFACE = ("session.h", "api.h")
GLUE = Path("build", "_dataplane.c")

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


def sources() -> list[str]:
    """Our C files, relative to the root; a *.bpf.c is for another compiler."""
    return sorted(str(path) for path in CEXT.glob("*.c") if not path.name.endswith(".bpf.c"))


def compile_flags(sanitize: str) -> list[str]:
    """Flags of a plain build, or of one that the comma-separated sanitizers watch."""
    return [*CFLAGS, *INSTRUMENTED, f"-fsanitize={sanitize}"] if sanitize else CFLAGS + OPTIMISED


def extension() -> Extension:
    """The compiled module; it is stale as soon as any C file, header or this file is newer."""
    sanitize = os.environ.get("DATAPLANE_SANITIZE", "")
    return Extension(
        MODULE,
        sources=[str(GLUE), *sources()],
        depends=sorted(str(path) for pattern in ("*.h", "build_*.py") for path in CEXT.glob(pattern)),
        include_dirs=[str(CEXT)],
        extra_compile_args=compile_flags(sanitize),
        extra_link_args=[*LDFLAGS, f"-fsanitize={sanitize}"] if sanitize else LDFLAGS,
    )


def write_glue() -> None:
    """Let cffi write GLUE, unless what it would write stands there already."""
    ffi = FFI()
    ffi.cdef("\n".join((CEXT / name).read_text() for name in INTERFACE))
    GLUE.parent.mkdir(exist_ok=True)
    recompiler.make_c_source(ffi, MODULE, GLUE_INCLUDES, str(GLUE))


class BuildExt(build_ext):
    """setuptools' command, with the glue written before it looks for its sources."""

    def run(self) -> None:
        write_glue()
        super().run()


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
