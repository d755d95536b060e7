"""`dataplane doctor` in a namespace that ails: whatever is wrong is named, and nothing is changed by looking.

Each test spoils one thing and asks; the host it spoils is the lab's.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netfilterqueue import NetfilterQueue

from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import Lab
from tests.lab.witness import SHORT_TIMEOUTS, config

QUEUE = 1  # ours, with the queues of `workers: 2`


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def with_two_workers() -> dict[str, Any]:
    made = config(SHORT_TIMEOUTS)
    made["settings"]["queue"] = {"workers": 2}
    return made


class Doctor:
    """Asks about the lab's firewall namespace, for one configuration."""

    def __init__(self, lab: Lab, settings: dict[str, Any] | None = None) -> None:
        self.lab = lab
        self.firewall = Firewall(lab, settings or with_two_workers())

    def ask(self, *options: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """`dataplane doctor`, as its root would type it; `prefix` is a program that runs it."""
        directories = [f"--{kind}-dir={self.firewall.directory / kind}" for kind in ("runtime", "log")]
        command = self.lab.command("firewall", [*prefix, *PROGRAM, "doctor", *directories, *options])
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)

    def finds(self, prefix: Sequence[str] = ()) -> list[dict[str, str]]:
        """Its findings about the configuration."""
        done = self.ask(f"--config={self.firewall.config}", "--json", prefix=prefix)
        assert done.stderr == ""
        found: list[dict[str, str]] = json.loads(done.stdout)
        assert done.returncode == any(finding["status"] == "fail" for finding in found)
        return found

    def complaint(self, check: str, *words: str) -> dict[str, str]:
        """The one finding of this check that is not ok and has all these words; it says what to do."""
        found = self.finds()
        (complaint,) = [
            finding
            for finding in found
            if finding["check"] == check
            and finding["status"] != "ok"
            and all(word in finding["message"] for word in words)
        ]
        assert complaint["advice"]
        return complaint


@pytest.fixture
def doctor(lab: Lab) -> Iterator[Doctor]:
    made = Doctor(lab)
    yield made
    made.firewall.kill()


@contextmanager
def spoilt(lab: Lab, spoil: str, mend: str) -> Iterator[None]:
    """The firewall's namespace between two shell command lines."""
    lab.run("firewall", ["sh", "-ec", spoil], check=True)
    try:
        yield
    finally:
        lab.run("firewall", ["sh", "-ec", mend], check=True)


def test_a_sound_host(doctor):
    """Nothing is missing, and nothing has changed by asking."""
    before = doctor.firewall.footprint()
    found = doctor.finds()
    assert [finding for finding in found if finding["status"] != "ok" and finding["check"] != "clock"] == []
    assert {"queues", "gso", "offload", "interfaces", "segmentation", "memory", "leavings"} <= {
        finding["check"] for finding in found
    }
    assert doctor.firewall.footprint() == before


def test_as_text(doctor):
    """A line for each finding, its status first."""
    done = doctor.ask(f"--config={doctor.firewall.config}")
    assert done.returncode == 0
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in done.stdout.splitlines())


def test_a_sound_firewall_that_runs(doctor):
    """The daemon's own configuration is taken, and what it has installed is not held against it."""
    doctor.firewall.start()
    done = doctor.ask("--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert [finding for finding in found if finding["status"] != "ok" and finding["check"] != "clock"] == []
    assert any(finding["message"] == f"pid {doctor.firewall.pid} answers" for finding in found)
    doctor.firewall.stop()


def test_a_wrong_configuration(doctor):
    """Exit code 3, as everywhere."""
    done = doctor.ask("--config=/nonexistent.yaml")
    assert done.returncode == 3
    assert "/nonexistent.yaml" in done.stderr


def test_without_rights(doctor):
    """Each capability is named, what can be seen is still seen, and the exit code tells."""
    found = doctor.finds(prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    lacking = [finding["message"] for finding in found if finding["check"] == "capabilities"]
    assert all(any(name in message for message in lacking) for name in ("NET_ADMIN", "NET_RAW", "BPF", "PERFMON"))
    assert any(finding["check"] == "memory" and finding["status"] == "ok" for finding in found)


# What the host lacks


def test_a_missing_interface(lab):
    """It may come later, or be misspelt: nobody but the operator can know."""
    settings = with_two_workers()
    settings["zones"][0]["interfaces"].append("eht7")
    assert Doctor(lab, settings).complaint("interfaces", "eht7", "does not exist")["status"] == "warn"


def test_an_interface_that_is_down(lab, doctor):
    """A warning: it may be meant so."""
    with spoilt(lab, "ip link set in0 down", "ip link set in0 up"):
        doctor.complaint("interfaces", "in0", "down")


def test_an_interface_that_is_part_of_a_bridge(lab, doctor):
    """Its packets arrive by the bridge, so no rule for the port would see them."""
    with spoilt(lab, "ip link add br7 type bridge; ip link set in0 master br7", "ip link delete br7"):
        assert doctor.complaint("interfaces", "in0", "br7")["status"] == "fail"


def test_a_strict_reverse_path_filter(lab, doctor):
    """Before the start it is worth a warning: the daemon changes it."""
    with spoilt(lab, "sysctl -qw net.ipv4.conf.in0.rp_filter=1", "sysctl -qw net.ipv4.conf.in0.rp_filter=0"):
        assert doctor.complaint("settings", "net.ipv4.conf.in0.rp_filter")["status"] == "warn"


@pytest.mark.parametrize("name", ["ipv4.conf.out0.rp_filter=1", "ipv4.ip_forward=0", "ipv4.conf.in0.accept_local=0"])
def test_a_setting_that_somebody_has_set_back(lab, doctor, name):
    """While the daemon runs that is a failure: translated traffic is dropped without a word."""
    doctor.firewall.start()
    setting, value = f"net.{name}".split("=")
    good = doctor.lab.run("firewall", ["sysctl", "-n", setting]).stdout.strip()
    with spoilt(lab, f"sysctl -qw {setting}={value}", f"sysctl -qw {setting}={good}"):
        assert doctor.complaint("settings", setting)["status"] == "fail"
    for interface in ("in0", "out0"):  # ip_forward, written, takes others along
        lab.run("firewall", ["sysctl", "-qw", f"net.ipv4.conf.{interface}.forwarding=1"])
    doctor.firewall.stop()


def test_segmentation_that_is_off(lab, doctor):
    """It costs most of the throughput."""
    with spoilt(lab, "ethtool -K in0 tso off", "ethtool -K in0 tso on"):
        doctor.complaint("segmentation", "in0", "tx-tcp-segmentation")


def test_gro_that_is_off(lab):
    """A veth does without: what it is given is whole already. A device of another kind puts packets together."""
    settings = with_two_workers()
    settings["zones"][0]["interfaces"].append("card0")
    spoil = "ip tuntap add card0 mode tap; ethtool -K card0 gro off"
    with spoilt(lab, spoil, "ip link delete card0"):
        Doctor(lab, settings).complaint("segmentation", "card0", "rx-gro")


def test_a_table_that_does_not_fit(lab):
    """Sixteen million sessions take four gigabytes: what that means here is told before the kernel refuses them."""
    settings = with_two_workers()
    settings["settings"]["session"]["max-sessions"] = 1 << 24
    found = Doctor(lab, settings).finds()
    (memory,) = [finding for finding in found if finding["check"] == "memory"]
    free = int(next(row.split()[1] for row in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in row))
    assert memory["status"] == ("fail" if free < 254 << 14 else "warn" if free < 508 << 14 else "ok")


def test_a_pool_that_nobody_routes(lab):
    """Only what lies beyond every subnet is named."""
    settings = with_two_workers()
    pool = {"type": "dynamic-ip-and-port", "addresses": ["10.2.0.250-10.2.1.9"]}
    settings["nat-rules"][0]["source-translation"] = pool
    Doctor(lab, settings).complaint("addresses", "10.2.1.0-10.2.1.9")


def test_few_file_descriptors(doctor):
    """Whoever asks may be the one who starts the daemon, which inherits the limit."""
    (files,) = [
        finding for finding in doctor.finds(prefix=("prlimit", "--nofile=100:4096")) if finding["check"] == "files"
    ]
    assert files["status"] == "warn"


# What collides


@pytest.mark.parametrize("tool", ["iptables", "ip6tables", "iptables-legacy"])
def test_rules_of_iptables_that_queue_to_us(lab, doctor, tool):
    """Each is named; one whose number is another may stay."""
    ours = [f"NFQUEUE --queue-num {QUEUE}", "NFQUEUE --queue-balance 2:9", "NFQUEUE"]
    rules = [*ours, "NFQUEUE --queue-num 77", "ACCEPT"]
    spoil, mend = ("; ".join(f"{tool} -{verb} INPUT -j {rule}" for rule in rules) for verb in "AD")
    with spoilt(lab, spoil, mend):
        found = [finding for finding in doctor.finds() if finding["check"] == "rules" and finding["status"] == "fail"]
    assert len(found) == len(ours)


@pytest.mark.parametrize(("ruleset", "words"), [
    ("add chain inet other forward { type filter hook forward priority 0; policy drop; }", ["other", "policy drop"]),
    ("add chain inet other post { type nat hook postrouting priority 100; };"
     "add rule inet other post oifname out0 counter masquerade", ["other", "translates"]),
])  # fmt: skip
def test_a_table_of_nft_that_collides(lab, doctor, ruleset, words):
    """Its table is named."""
    with spoilt(lab, f"nft 'add table inet other; {ruleset}'", "nft delete table inet other"):
        doctor.complaint("rules", *words)


def test_a_queue_that_is_read(lab, doctor):
    """The program is named by its pid or port."""
    with lab.inside("firewall"):
        reader = NetfilterQueue()
        reader.bind(QUEUE, lambda packet: packet.drop())
    try:
        assert doctor.complaint("readers", f"NFQUEUE {QUEUE}")["status"] == "fail"
    finally:
        reader.unbind()


def test_a_filter_before_ours(lab, doctor):
    """Its preference is named."""
    spoil = (
        "tc qdisc add dev in0 clsact; tc filter add dev in0 ingress pref 10 protocol ip u32 match u32 0 0 flowid 1:1"
    )
    with spoilt(lab, spoil, "tc qdisc delete dev in0 clsact"):
        doctor.complaint("filters", "in0", "preference 10")


def test_what_a_dead_daemon_left(lab, doctor):
    """Rules without a process drop everything; a start takes over."""
    doctor.firewall.start()
    doctor.firewall.kill()
    said = doctor.complaint("leavings", "rules of", "offload program on in0")
    assert said["status"] == "warn"
    doctor.firewall.start()
    doctor.firewall.stop()
    assert [finding["status"] for finding in doctor.finds() if finding["check"] == "leavings"] == ["ok"]


def test_a_daemon_that_does_not_answer(lab, doctor):
    """It holds its lock and is silent: the doctor waits for its answer no longer than any command, and says so."""
    doctor.firewall.start()
    (doctor.firewall.directory / "runtime" / "control.sock").unlink()
    (said,) = [finding for finding in json.loads(doctor.ask("--json").stdout) if finding["check"] == "daemon"]
    assert said["status"] == "fail"
    assert f"pid {doctor.firewall.pid}" in said["message"]
    doctor.firewall.stop()
