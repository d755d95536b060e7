"""Imports point down only.

    cext < ffi < sessions < slowpath < ager, offload, rules, diag < engine < control, metrics < exporter < __main__

Beside that line: policy, nat, alg, predict and the log formats are functions of data, and what an operator types talks
to the daemon through client.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dataplane"

LAYERS = [
    ["ffi"],
    ["sessions"],
    ["slowpath"],
    ["ager", "offload", "rules", "diag"],
    ["engine"],
    ["control", "metrics"],
    ["exporter"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE = {"policy", "nat", "alg", "predict", "logs"}
OPERATOR = {"cli", "shell", "client", "web"}

COMPILED = "dataplane._dataplane"
SOCKETS = {"socket", "socketserver", "selectors", "asyncio", "netfilterqueue", "pyroute2"}
# What would make a `show` wait, or tie it to the daemon's insides.
HEAVY = {"asyncio", "netfilterqueue", "pydantic", "pyroute2", "ruamel", "dataplane.engine", "dataplane.ffi", COMPILED}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every name that any statement imports, `from a import b` being a.b; those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported_names(path: Path) -> frozenset[str]:
    return frozenset(imports_of(ast.parse(path.read_text(), str(path))))


def room_of(path: Path) -> str:
    """The module, or the package at the top: dataplane/policy/load.py is `policy`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def rooms() -> dict[str, frozenset[str]]:
    """Room -> everything that its files import from outside it."""
    found: dict[str, frozenset[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = f"dataplane.{room_of(path)}."
        names = frozenset(name for name in imported_names(path) if not f"{name}.".startswith(own))
        found[room_of(path)] = found.get(room_of(path), frozenset()) | names
    return found


def neighbours(room: str) -> set[str]:
    """The rooms that `room` itself imports."""
    parts = [name.split(".") for name in rooms()[room]]
    return {part[1] for part in parts if part[0] == "dataplane" and len(part) > 1 and part[1] in rooms()}


def reachable(room: str) -> set[str]:
    """The rooms that `room` imports, directly or through others."""
    seen: set[str] = set()
    ahead = neighbours(room)
    while ahead:
        seen |= ahead
        ahead = {further for near in ahead for further in neighbours(near)} - seen
    return seen


def test_every_room_of_this_file_that_must_exist_does():
    """A renamed module would otherwise leave its rule without a subject."""
    assert {"ffi", "sessions", "slowpath", "ager", "rules", "engine", "control", "__main__"} <= rooms().keys()
    assert {"policy", "nat", "logs", "cli", "client"} <= rooms().keys()


@pytest.mark.parametrize("room", sorted(rooms().keys() & LEVEL.keys()))
def test_imports_point_down(room):
    """A lower layer does not know who uses it, not even through a module that stands beside the layers."""
    above = {other for other in reachable(room) & LEVEL.keys() if LEVEL[other] >= LEVEL[room]}
    assert not above, f"{room} reaches up to {sorted(above)}"


@pytest.mark.parametrize("room", sorted(rooms()))
def test_no_room_imports_itself_through_others(room):
    """A cycle would mean two modules that are one."""
    assert room not in reachable(room)


@pytest.mark.parametrize("room", sorted(rooms().keys() & PURE))
def test_functions_of_data_reach_neither_the_compiled_module_nor_sockets(room):
    """Policy, NAT, ALGs and formats can be tested, and read, without a packet or a kernel."""
    used = {name.split(".")[0] for near in [room, *reachable(room)] for name in rooms()[near]}
    assert "ffi" not in reachable(room)
    assert not used & SOCKETS


def test_ffi_alone_imports_the_compiled_module():
    """One place turns return codes into exceptions and C memory into Python."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    users = {path.name for path in files for name in imported_names(path) if f"{name}.".startswith(f"{COMPILED}.")}
    assert users == {"ffi.py"}


def test_the_package_needs_no_test_tool():
    """scapy is the oracle; a daemon that used it would agree with itself."""
    used = {name.split(".")[0] for names in rooms().values() for name in names}
    assert not used & {"scapy", "pytest", "hypothesis", "tests"}


@pytest.mark.parametrize("room", sorted(rooms().keys() & OPERATOR))
def test_what_an_operator_types_loads_nothing_heavy(room):
    """A `show` answers at once, whatever the daemon's own modules have come to need."""
    code = f"import sys, dataplane.{room}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not HEAVY & set(done.stdout.split())
