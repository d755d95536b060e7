"""What is shipped beside the program: files that nothing imports, and that nobody notices when they go wrong.

Whether the package works is `make deb-test`'s to say; here is what can be seen by reading.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
DEBIAN = CONFIG / "debian"


def test_the_package_has_the_version_of_the_program():
    """Debian writes a tilde where Python writes a dot: before the release, not after it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    debian = re.findall(r"^dataplane \((.*?)\)", (DEBIAN / "changelog").read_text(), re.MULTILINE)[0]
    assert debian.replace("~", ".") == project


def test_what_the_package_installs_exists():
    """Each line is a file of the tree and a directory of the system."""
    for line in (DEBIAN / "install").read_text().splitlines():
        source, target = line.split()
        assert (ROOT / source).is_file(), source
        assert not target.startswith("/"), target


@pytest.mark.parametrize("name", ["rules", "bin/dataplane"])
def test_programs_are_executable(name):
    """dpkg-buildpackage and the shell take them only then."""
    assert os.access(DEBIAN / name, os.X_OK)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_knows_every_word_of_the_unit(tmp_path):
    """A word that it does not know it passes over, and a protection is gone."""
    unit = (CONFIG / "systemd" / "dataplane.service").read_text().replace("/usr/bin/dataplane", "/bin/true")
    (tmp_path / "dataplane.service").write_text(unit)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "dataplane.service")]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert [line for line in said.splitlines() if "dataplane.service" in line] == []


def test_the_daemon_sets_what_sysctl_d_leaves_to_it():
    """Whoever reads sysctl.d anew while the daemon runs must not undo what it has set."""
    from dataplane.rules.sysctls import wanted

    rows = [
        line.split("=") for line in (CONFIG / "sysctl.d" / "50-dataplane.conf").read_text().splitlines() if "=" in line
    ]
    keys = {key.strip().lstrip("-") for key, _ in rows}
    daemon = {path.replace("/", ".") for path, _ in wanted(["in0"])}
    assert keys
    assert not keys & daemon


def test_the_licence_of_a_bundled_package_must_be_known(tmp_path):
    """One that does not say its licence ends the build."""
    made = tmp_path / "secret-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: secret\nVersion: 1.0\n")
    command = ["python3", str(DEBIAN / "licences.py"), str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "secret does not say its licence" in failed.stderr
    (made / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: secret\nVersion: 1.0\nLicense-Expression: MIT OR ISC\n"
    )
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "License: MIT-OR-ISC" in told
    assert "/usr/lib/dataplane/secret-1.0.dist-info" in told
