"""With the rights that dataplane.service grants everything works; with one less, what is missing is told.

The unit's user, groups and capabilities are read from the unit itself and given by setpriv(1). Its file system and its
filter of system calls need a systemd: test_package.py.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.lab import firewall as lab_firewall
from tests.lab.firewall import PROGRAM, ROOT, Firewall
from tests.lab.lab import Lab, LabError, poll
from tests.lab.witness import SHORT_TIMEOUTS, Controls, Established, config

UNIT = ROOT / "config" / "systemd" / "dataplane.service"
SOMEBODY = 64999  # a user that no package has
GRANTED = (
    re.findall(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.MULTILINE)[0].replace("CAP_", "").lower().split()
)


def as_the_unit_says(capabilities: Sequence[str]) -> list[str]:
    """The command that gives up everything else."""
    only = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    user = [f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--groups=0"]  # SupplementaryGroups=root
    return [
        "setpriv",
        *user,
        "--no-new-privs",
        f"--bounding-set={only}",
        f"--inh-caps={only}",
        f"--ambient-caps={only}",
    ]


@pytest.fixture(scope="module", autouse=True)
def _somebody_can_run_it() -> None:
    done = subprocess.run([*as_the_unit_says([]), *PROGRAM, "--version"], capture_output=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("where this interpreter or the source tree lies root alone may look")


@contextmanager
def granted(lab: Lab, capabilities: Sequence[str], monkeypatch) -> Iterator[Firewall]:
    """A firewall, not started, that will run as somebody with these capabilities."""
    firewall = Firewall(lab, config(SHORT_TIMEOUTS))
    lab.directory.chmod(0o755)
    os.chown(firewall.directory, SOMEBODY, SOMEBODY)
    firewall.config.chmod(0o644)
    # Else /run/xtables.lock, which tmpfiles.d/dataplane.conf gives to the group.
    monkeypatch.setenv("XTABLES_LOCKFILE", str(firewall.directory / "xtables.lock"))
    with monkeypatch.context() as started:
        started.setattr(lab_firewall, "PROGRAM", (*as_the_unit_says(capabilities), *PROGRAM))
        yield firewall
    firewall.kill()


def test_the_unit_grants_what_is_needed_and_says_so():
    """The bounding set is the ambient set, and both are the list that the daemon and the doctor go by."""
    from dataplane.capabilities import NEEDED

    bounding = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)[0].split()
    assert {f"CAP_{name.upper()}" for name in GRANTED} == set(bounding) == set(NEEDED)


def test_everything_works_with_them(lab, monkeypatch):
    """Rules, settings, NAT, both paths, offload, logs, answers to operators, and a stop that leaves nothing."""
    controls = Controls(lab)
    with granted(lab, GRANTED, monkeypatch) as firewall:
        firewall.start()
        controls.assert_pass()
        established = Established(lab)

        def offloaded() -> bool:
            established.exchange()
            return any(session["offload"] for session in firewall.sessions())

        poll(offloaded, 5, "a session to be offloaded")
        poll(lambda: firewall.traffic_log(rule="lan-out"), 3, "the log")
        assert "not permitted" not in firewall.log()
        assert "Traceback" not in firewall.log()
        assert "WARNING" not in firewall.log()
        established.close()
        firewall.stop()


@pytest.mark.parametrize("name", ["bpf", "perfmon"])
def test_without_one_that_it_can_do_without(lab, monkeypatch, name):
    """The firewall runs, nothing is offloaded, and the log says what is not permitted."""
    controls = Controls(lab)
    with granted(lab, [each for each in GRANTED if each != name], monkeypatch) as firewall:
        firewall.start()
        controls.assert_pass()
        assert f"CAP_{name.upper()} is not permitted: without it there is no offload" in firewall.log()
        assert "nothing is offloaded" in firewall.log()
        firewall.stop()


@pytest.mark.parametrize("name", ["net_admin", "net_raw"])
def test_without_one_that_it_cannot_do_without(lab, monkeypatch, name):
    """It ends at once, says what is not permitted, and leaves nothing behind."""
    with granted(lab, [each for each in GRANTED if each != name], monkeypatch) as firewall:
        before = firewall.footprint()
        with pytest.raises(LabError, match="ended with 1"):
            firewall.start()
        assert f"CAP_{name.upper()} is not permitted" in firewall.log()
        assert "Traceback" not in firewall.log()
        assert firewall.footprint() == before
