"""What the build promises: headers that cffi can read, a whole wheel, live assertions, true metadata."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.test_layering import PACKAGE, imported_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
INTEGER_MACRO = re.compile(r"^#define \w+\s+(0x[0-9a-fA-F]+|\d+)\s*$", re.MULTILINE)
REFUSED = re.compile(r"^\s*#.*|__attribute__|_Static_assert|_Alignas|\binline\b|\bstatic\b", re.MULTILINE)


@pytest.mark.parametrize("name", ["session.h", "api.h"])
def test_shared_headers_are_bare(name):
    """cffi refuses preprocessing, attributes and inline functions, and with a message that does not say so."""
    text = COMMENT.sub("", (ROOT / "cext" / name).read_text())
    assert REFUSED.findall(INTEGER_MACRO.sub("", text)) == []


def test_assertions_are_compiled_in():
    """Python's own flags switch assert() off; a broken invariant must end the process all the same."""
    (compiled,) = PACKAGE.glob("_dataplane.*.so")
    assert b"__assert_fail" in compiled.read_bytes()


def test_a_wheel_holds_every_module_and_the_extension(tmp_path):
    """`pip install .` from a clean clone gives what the editable install gives."""
    clone = tmp_path / "clone"
    clone.mkdir()
    leavings = shutil.ignore_patterns("_dataplane.*.so", "__pycache__")
    for name in ("dataplane", "cext"):
        shutil.copytree(ROOT / name, clone / name, ignore=leavings)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, clone)

    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, clone], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} <= held
    assert [name for name in held if re.fullmatch(r"dataplane/_dataplane\..*\.so", name)]


def test_without_clang_the_build_says_so_in_one_line(tmp_path):
    """The extension is whole all the same; only what the kernel would run is left out."""
    tools, clone = tmp_path / "tools", tmp_path / "clone"
    tools.mkdir()
    for tool in (tool for folder in map(Path, os.get_exec_path()) if folder.is_dir() for tool in folder.iterdir()):
        if not tool.name.startswith("clang") and not (tools / tool.name).is_symlink():
            (tools / tool.name).symlink_to(tool)
    shutil.copytree(ROOT / "cext", clone / "cext", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "cext/build_ffi.py", tmp_path / "built"]
    environment = {**os.environ, "PATH": str(tools), "CFLAGS": "-O0"}

    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=True)

    said = [line for line in done.stderr.splitlines() if "clang" in line]
    assert said == ["offload.bpf.c is left out, nothing will be offloaded: it takes clang and libbpf-dev"]
    (compiled,) = (tmp_path / "built" / "dataplane").iterdir()
    assert re.fullmatch(r"_dataplane\..*\.so", compiled.name)


def test_declared_dependencies_are_the_imported_ones():
    """Neither is a package imported that an installation lacks, nor one installed for nothing."""
    imported = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imported_names(path)}
    homes = packages_distributions()
    foreign = imported - sys.stdlib_module_names - {"dataplane"}
    used = {home.lower().replace("_", "-") for name in foreign for home in homes[name]}
    used |= {"cffi"}  # the compiled module imports it
    assert used == {re.split(r"[<>=!~]", line)[0] for line in PROJECT["dependencies"]}


def test_version_agrees_with_the_changelog():
    """A development version has its changes under Unreleased; a release has a heading of its own."""
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == ("Unreleased" if ".dev" in PROJECT["version"] else PROJECT["version"])
