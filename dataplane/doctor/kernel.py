"""What the kernel can do, found out by doing it in a network namespace that is thrown away."""

import ctypes
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

from dataplane import capabilities
from dataplane.doctor.finding import FAIL, OK, WARN, Finding
from dataplane.doctor.patient import Patient
from dataplane.errors import DataplaneError
from dataplane.ffi import PROGRAMS, ffi, lib
from dataplane.rules import has_ipv6
from dataplane.rules.probe import candidates
from dataplane.sessions import SessionTable

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
OLDEST, TESTED = (5, 8), (6, 1)  # CAP_BPF is of 5.8; Debian 12 has 6.1
BTF = Path("/sys/kernel/btf/vmlinux")
JIT = Path("/proc/sys/net/core/bpf_jit_enable")
BRIDGE_SETTINGS = Path("/proc/sys/net/bridge")
SMALL_TABLE = 1024  # sessions


def elsewhere(probe: Callable[[], T]) -> T:
    """What the probe returns, or raises, in a network namespace of its own. OSError where none can be made."""
    with ThreadPoolExecutor(1) as own:
        own.submit(_leave).result()
        return own.submit(probe).result()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"no network namespace for a trial: {os.strerror(error)}")


def version(_: Patient) -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in release.split(".")[:2])
    if numbers < OLDEST:
        yield Finding("kernel", FAIL, f"Linux {release}", "5.8 is the oldest that grants CAP_BPF; take 6.1 or later")
    elif numbers < TESTED:
        yield Finding("kernel", WARN, f"Linux {release}", "nobody has tried it on less than 6.1")
    else:
        yield Finding("kernel", OK, f"Linux {release}")


def rights(patient: Patient) -> Iterator[Finding]:
    """The daemon's, if it runs; else those of who asks, who may be the one who starts it."""
    whose = f"pid {patient.pid}" if patient.pid else "this command"
    lacking = capabilities.missing(patient.pid or "self")
    for name, purpose in lacking.items():
        status = WARN if purpose == capabilities.OFFLOAD else FAIL
        message = f"{whose} lacks {name}: there is no {purpose}"
        yield Finding("capabilities", status, message, "see dataplane.service, or run as root")
    if not lacking:
        yield Finding("capabilities", OK, f"{whose} holds {', '.join(capabilities.NEEDED)}")


def queues(_: Patient) -> Iterator[Finding]:
    """A back end that the kernel takes, for both families, and a queue that is handed super-packets whole."""
    complaints = elsewhere(_complaints)
    usable = [name for name, complaint in complaints.items() if complaint is None]
    families = "IPv4 and IPv6" if has_ipv6() else "IPv4; this kernel has no IPv6"
    if usable:
        yield Finding("queues", OK, f"rules by {usable[0]}, {families}")
    else:
        reasons = "; ".join(f"{name}: {complaint}" for name, complaint in complaints.items())
        advice = "a kernel with CONFIG_NFT_QUEUE, or with NETFILTER_XT_TARGET_NFQUEUE, CT and socket, and its tool"
        yield Finding("queues", FAIL, reasons or "neither nft nor iptables is installed", advice)
    if error := elsewhere(_bind_queue):
        yield Finding("gso", FAIL, f"NFQUEUE cannot be bound with GSO: {error}", "load nfnetlink_queue")
    else:
        yield Finding("gso", OK, "NFQUEUE hands over super-packets whole")


def _complaints() -> dict[str, str | None]:
    """By back end that is installed; None: it works."""
    found: dict[str, str | None] = {}
    for backend in candidates():
        try:
            backend.check()
            found[backend.name] = None
        except DataplaneError as error:
            found[backend.name] = str(error)
    return found


def _bind_queue() -> str:
    table = SessionTable(SMALL_TABLE)
    try:
        worker = lib.worker_open(table.pointer, 0, 0, 1, False)
        if worker == ffi.NULL:
            return os.strerror(ffi.errno)
        lib.worker_close(worker)
        return ""
    finally:
        table.close()


def offload(patient: Patient) -> Iterator[Finding]:
    """Not having it costs speed and nothing else, unless the configuration asks for it."""
    if patient.config is not None and not patient.config.settings.offload:
        yield Finding("offload", OK, "switched off by the configuration")
        return
    error, program = elsewhere(_attach)
    if error:
        yield Finding("offload", WARN, f"the program cannot run: {error}", "the queues carry everything, more slowly")
    else:
        yield Finding("offload", OK, f"{program} loads and attaches (tc, clsact)")
    if not BTF.exists():
        yield Finding("btf", WARN, f"{BTF} is missing", "CONFIG_DEBUG_INFO_BTF makes the faster program possible")
    else:
        yield Finding("btf", OK, str(BTF))
    if JIT.exists() and JIT.read_text().strip() == "0":
        yield Finding("jit", WARN, "BPF programs are interpreted", "sysctl net.core.bpf_jit_enable=1")
    elif JIT.exists():
        yield Finding("jit", OK, "BPF programs are compiled")


def _attach() -> tuple[str, str]:
    """What went wrong, if anything, and the name of the program that was taken."""
    with IPRoute() as netlink:
        netlink.link("add", ifname="trial0", kind="veth", peer="trial1")
        (ifindex,) = netlink.link_lookup(ifname="trial0")
    table, error = SessionTable(SMALL_TABLE), "it was not built: clang was missing"
    for path in filter(Path.exists, PROGRAMS):  # the table stays: the program's maps belong to it
        program = lib.program_load(table.pointer, str(path).encode(), SMALL_TABLE)
        if program == ffi.NULL:
            error = os.strerror(ffi.errno)
            continue
        attached = lib.program_attach(program, ifindex)
        return ("" if attached >= 0 else os.strerror(-attached)), path.name
    return error, ""


def bridge(patient: Patient) -> Iterator[Finding]:
    """Only virtual wires need one."""
    if patient.config is None or not patient.config.virtual_wires:
        return
    if not shutil.which("nft"):
        yield Finding("bridge", FAIL, "nft is not installed", "virtual wires need nftables")
    try:
        elsewhere(_make_bridge)
    except Exception as error:  # pyroute2's own classes, and the kernel's answers
        yield Finding("bridge", FAIL, f"no bridge can be made: {error}", "load the module bridge")
    if BRIDGE_SETTINGS.exists():
        yield Finding("bridge", OK, "br_netfilter brings bridged packets to the rules")
    else:
        yield Finding(
            "bridge", FAIL, "br_netfilter is not loaded: nothing on a wire would be queued", "modprobe br_netfilter"
        )


def _make_bridge() -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname="trial0", kind="bridge")
