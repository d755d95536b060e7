"""What README shows is what the program takes."""

import re
from pathlib import Path

from dataplane.policy.load import parse

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_configuration_by_example_is_one():
    """Whoever copies it has a firewall."""
    (example,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [rule.name for rule in parse(example, "README.md").security_rules] == ["no-telnet", "lan-out", "web-in"]


def test_headings_stand_once():
    """A merge that keeps both sides of a section is seen."""
    headings = re.findall(r"^## .*", README, re.MULTILINE)
    assert len(headings) == len(set(headings))
