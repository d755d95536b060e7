"""`make deb-test`: the Debian package on a clean Debian 12, from its installation to its purge.

The tests are one story in the order of this file: each finds the machine as the one before it has left it.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.firewall import Firewall
from tests.lab.lab import Lab, poll
from tests.lab.machine import PACKAGE as DEB
from tests.lab.machine import Machine, booted, build
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, config

PACKAGE = os.environ.get("DATAPLANE_DEB", "")
POLICY = "/etc/dataplane/firewall.yaml"
PATIENCE = "/etc/systemd/system/dataplane.service.d"

pytestmark = [
    pytest.mark.skipif(not PACKAGE, reason="no package is given: make deb-test"),
    pytest.mark.timeout(600),  # a Debian is made first
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    build(lab.directory / "root", Path(PACKAGE))
    with booted(lab.directory / "root", lab) as made:
        yield made


@pytest.fixture(scope="module")
def controls(lab: Lab) -> Controls:
    return Controls(lab)


@pytest.fixture(scope="module")
def host(lab: Lab, machine: Machine) -> Callable[[], dict[str, str]]:
    """What the machine's network looks like."""
    return Firewall(lab, config()).footprint


@pytest.fixture(scope="module")
def before(host: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The same before the first start."""
    return host()


def main_pid(machine: Machine) -> int:
    """Of the service, in the machine's own numbering; 0 if it does not run."""
    return int(machine.succeeds("systemctl show --value --property=MainPID dataplane"))


def sessions(machine: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(machine.succeeds("dataplane show session all --json"))
    return found


def test_installation_starts_nothing(machine, before, controls):
    """The service is there, disabled; the host forwards as before, and no configuration pretends to be one."""
    machine.succeeds(f"dpkg --purge dataplane && dpkg --install {DEB}")  # once more, now that a systemd runs
    assert machine.run("systemctl is-enabled dataplane").stdout.strip() == "disabled"
    assert machine.run("systemctl is-active dataplane").stdout.strip() == "inactive"
    assert machine.succeeds("ls /etc/dataplane") == ""
    assert "dataplane" in machine.succeeds("dataplane --version")
    controls.assert_pass()


def test_what_systemd_thinks_of_our_files(machine):
    """Nothing has failed because of a snippet, and no word of the unit is unknown to the systemd of Debian 12."""
    for reader in ("systemd-sysctl", "systemd-modules-load", "systemd-sysusers", "systemd-tmpfiles-setup"):
        assert machine.run(f"systemctl is-failed {reader}").returncode, reader
    assert machine.succeeds("systemd-analyze verify --man=no dataplane.service 2>&1") == ""


def test_a_start_without_a_policy_says_what_is_missing(machine, controls):
    """And is not tried again: nothing will have changed in a second."""
    assert machine.run("systemctl start dataplane").returncode
    assert POLICY in machine.succeeds("journalctl --unit=dataplane --output=cat")
    assert machine.run("systemctl show --value --property=NRestarts dataplane").stdout.strip() == "0"
    machine.succeeds("systemctl reset-failed dataplane")
    controls.assert_pass()


def test_the_examples_are_valid(machine):
    """Each may be where an operator begins."""
    for path in machine.succeeds("ls /usr/share/doc/dataplane/examples/*.yaml").split():
        machine.succeeds(f"dataplane check {path}")


def test_traffic_flows_and_is_offloaded(machine, lab, before, controls):
    """With the unit's user, capabilities and filters everything works: rules, settings, NAT, offload, logs."""
    machine.write(POLICY, json.dumps(config(SHORT_TIMEOUTS)))
    machine.succeeds("systemctl enable --now dataplane")
    controls.assert_pass()
    established = Established(lab)

    def offloaded() -> bool:
        established.exchange()
        return any(session["offload"] for session in sessions(machine))

    poll(offloaded, 5, "a session to be offloaded")
    poll(lambda: "lan-out" in machine.run("cat /var/log/dataplane/traffic.json").stdout, 3, "the log")
    status = machine.succeeds(f"cat /proc/{main_pid(machine)}/status")
    assert "Uid:\t0" not in status
    assert "CapEff:\t000000c000003000" in status
    assert "Seccomp:\t2" in status
    assert "Traceback" not in machine.succeeds("journalctl --unit=dataplane --output=cat")
    established.close()


def test_h323_is_in_the_package(machine):
    """Of pycrate only a part is: the part that decodes."""
    program = "import sys; sys.path.insert(0, '/usr/lib/dataplane'); import pycrate_asn1dir.H225, pycrate_asn1rt.codecs"
    machine.succeeds(f'/usr/bin/python3 -I -c "{program}"')


def test_a_killed_daemon_is_replaced(machine, controls):
    """systemd starts another one, which takes over what the dead one left."""
    killed = main_pid(machine)
    machine.succeeds(f"kill -KILL {killed}")
    poll(lambda: main_pid(machine) not in (0, killed), 10, "another daemon")
    poll(lambda: machine.run("dataplane show session info").returncode == 0, 10, "it to answer")
    controls.assert_pass()


def test_a_daemon_that_stands_still_is_replaced(machine, controls):
    """The watchdog ends it, and the journal shows where its threads stood."""
    machine.write(f"{PATIENCE}/patience.conf", "[Service]\nWatchdogSec=2\n")
    machine.succeeds("systemctl daemon-reload; systemctl restart dataplane")
    stopped = main_pid(machine)
    machine.succeeds(f"kill -STOP {stopped}")
    poll(lambda: main_pid(machine) not in (0, stopped), 20, "another daemon")
    poll(lambda: machine.run("dataplane show session info").returncode == 0, 10, "it to answer")
    assert "Watchdog timeout" in machine.succeeds("journalctl --unit=dataplane --output=cat")
    controls.assert_pass()


def test_iptables_of_the_legacy_kind(machine, controls):
    """Its lock file and its tables are open to the daemon, should the host have chosen it."""
    for tool in ("iptables", "ip6tables"):
        machine.succeeds(f"update-alternatives --set {tool} /usr/sbin/{tool}-legacy")
    machine.succeeds("systemctl restart dataplane")
    controls.assert_pass()
    assert "DATAPLANE-PREROUTING" in machine.succeeds("iptables-legacy-save")
    for tool in ("iptables", "ip6tables"):
        machine.succeeds(f"update-alternatives --auto {tool}")
    machine.succeeds("systemctl restart dataplane")
    assert "DATAPLANE" not in machine.succeeds("iptables-legacy-save")


def test_logrotate_accepts_its_file(machine):
    """A dry run finds the logs and no mistake."""
    said = machine.run("logrotate --debug /etc/logrotate.d/dataplane").stderr
    assert "considering log /var/log/dataplane/traffic.json" in said
    assert "error" not in said


def test_an_upgrade_restarts_the_daemon(machine, controls):
    """Its modules on disk are others than those that it has loaded."""
    old = main_pid(machine)
    machine.succeeds(f"dpkg --install {DEB}")
    assert main_pid(machine) not in (0, old)
    controls.assert_pass()


def test_a_stop_leaves_the_host_as_it_was(machine, host, before, controls):
    """Rules, qdiscs, settings: all as before the first start."""
    machine.succeeds("systemctl stop dataplane")
    assert host() == before
    controls.assert_pass()


def test_a_purge_leaves_nothing(machine, host, before, controls):
    """It stops a running daemon first; of the package only its user stays."""
    machine.succeeds(f"rm -r {PATIENCE}; systemctl daemon-reload; systemctl start dataplane")
    machine.succeeds("dpkg --purge dataplane", timeout=120)
    assert host() == before
    assert machine.run("pgrep --uid dataplane").returncode
    assert machine.succeeds("find / -xdev -name '*dataplane*' -not -path '/proc/*'") == ""
    controls.assert_pass()
