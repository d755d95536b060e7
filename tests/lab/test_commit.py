"""Commits while traffic runs: what changes at once, what stays, and how one comes back.

Each test begins with the same configuration, committed. Rules are about ports of their own; a connection's session is
found by its client's port.
"""

import hashlib
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest

from dataplane.errors import DataplaneError
from tests.lab.console import ask, attempt, outcome, port, record, rule, session_of, sessions, zones
from tests.lab.firewall import Firewall
from tests.lab.lab import IN0, SERVER, Lab, poll
from tests.lab.offloaded import assert_stream, until_offloaded
from tests.lab.polling import LabError
from tests.lab.servers import Channel

WEB, MAIL, TRANSLATED, SSH = 8080, 8025, 8443, 22
POOL, OTHER_POOL = "10.2.0.50", "10.2.0.51"
MOMENT = 2.0  # seconds in which a commit takes effect (contract section 3)
CONFIG: dict[str, Any] = {
    "zones": zones(),
    "addresses": {"clients": "10.1.0.0/24"},
    "services": {"web": port(WEB), "mail": port(MAIL), "translated": port(TRANSLATED)},
    "security-rules": [
        rule("web", source=["clients"], service=["web"]),
        rule("translated", service=["translated"]),
        rule("no-mail", "deny", service=["mail"]),
        rule("rest", service=["any"]),
    ],
    "nat-rules": [
        {
            "name": "snat",
            "from": ["trust"],
            "to": "untrust",
            "service": ["translated"],
            "source-translation": {"type": "dynamic-ip-and-port", "addresses": [POOL]},
        }
    ],
    "host-inbound": {"trust": ["ssh", "ping"]},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Firewall]:
    with lab.firewall(CONFIG) as started:
        yield started


@pytest.fixture
def firewall(running: Firewall) -> Iterator[Firewall]:
    commit(running, CONFIG, "--force")
    ask(running, "clear session all")
    poll(lambda: not sessions(running), 5, "an empty table")
    yield running
    assert running.running


def changed(**sections: Any) -> dict[str, Any]:
    """The configuration with other sections: security_rules=[...]."""
    return {**deepcopy(CONFIG), **{name.replace("_", "-"): section for name, section in sections.items()}}


def rules(*replaced: dict[str, Any]) -> list[dict[str, Any]]:
    """The security rules, those of the same name replaced."""
    names = {each["name"]: each for each in replaced}
    return [names.get(each["name"], each) for each in CONFIG["security-rules"]]


def commit(firewall: Firewall, config: Mapping[str, Any], *options: str) -> str:
    """What `commit` prints; it must succeed."""
    done = firewall.cli("commit", str(firewall.write_config(config)), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def connected(lab: Lab, to: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from the client to the server: both ends."""
    with lab.listener("server", to) as listening, lab.connect("client", (SERVER, to)) as client:
        server, _ = listening.accept()
        with server:
            yield client, server


def fate(lab: Lab, to: int) -> str:
    """What becomes of a new connection of the client's: `connected` or `silence`."""
    with lab.listener("server", to), attempt(lab, (SERVER, to), socket.SOCK_STREAM) as client:
        try:
            poll(lambda: outcome(client) == "connected", 0.7, "a connection")
        except LabError:
            pass
        return outcome(client)


def is_over(firewall: Firewall, client_port: int) -> bool:
    return not sessions(firewall, source_port=client_port, state="active")


def assert_ends(firewall: Firewall, wanted: Mapping[str, Any], client_port: int) -> None:
    """One session ends by a commit, as foreseen and for the reason that is a commit's."""
    preview = firewall.json("commit", str(firewall.write_config(wanted)), "--check")
    assert preview["sessions_ended"] == 1
    assert "1 sessions ended" in commit(firewall, wanted)
    poll(lambda: is_over(firewall, client_port), MOMENT, "the session's end")
    assert record(firewall, event="end", sport=client_port)["session_end_reason"] == "policy-deny"


def sorted_footprint(firewall: Firewall) -> dict[str, list[str]]:
    """The kernel lists tables in an order of its own, and with counters."""
    return {what: sorted(text.splitlines()) for what, text in firewall.footprint().items() if what != "nftables"}


def versions(firewall: Firewall) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = firewall.json("show", "config", "versions")
    return found


class TestTakingEffect:
    def test_what_was_denied_is_allowed_at_once(self, lab, firewall):
        """The DISCARD session of the attempt before does not hold the new policy up."""
        assert fate(lab, MAIL) == "silence"
        commit(firewall, changed(security_rules=rules(rule("no-mail", service=["mail"]))))
        assert fate(lab, MAIL) == "connected"

    def test_what_was_allowed_ends_and_says_why(self, lab, firewall):
        """Within two seconds, with `policy-deny`; a session that is still allowed notices nothing."""
        with connected(lab, WEB) as (client, server), connected(lab, MAIL + 1) as (other, other_server):
            own = client.getsockname()[1]
            printed = commit(firewall, changed(security_rules=rules(rule("web", "deny", service=["web"]))))
            assert "1 sessions ended" in printed
            poll(lambda: is_over(firewall, own), MOMENT, "the session's end")
            ended = record(firewall, event="end", sport=own)
            assert (ended["session_end_reason"], ended["rule"]) == ("policy-deny", "web")
            client.send(b"anybody there?")
            server.settimeout(0.5)
            with pytest.raises(TimeoutError):
                server.recv(100)
            assert_stream(other, other_server)

    def test_an_offloaded_session_ends_as_well(self, lab, firewall):
        """The kernel's program forwards nothing more of it."""
        with connected(lab, WEB) as (client, server):
            until_offloaded(firewall, client, server)
            commit(firewall, changed(security_rules=rules(rule("web", "deny", service=["web"]))))
            server.settimeout(0.5)
            client.send(b"anybody there?")
            with pytest.raises(TimeoutError):
                server.recv(100)

    def test_sessions_stay_where_rematch_is_off(self, lab, firewall):
        """New ones are decided by the new policy all the same."""
        denied = changed(
            security_rules=rules(rule("web", "deny", service=["web"])),
            settings={"session": {"rematch-on-commit": False}},
        )
        with connected(lab, WEB) as ends:
            preview = firewall.json("commit", str(firewall.write_config(denied)), "--check")
            assert preview["sessions_ended"] == 0
            assert "0 sessions ended" in commit(firewall, denied)
            assert_stream(*ends)
        assert fate(lab, WEB) == "silence"

    def test_a_session_shows_the_rule_that_matches_now(self, lab, firewall):
        """A rule put before its own takes it over; its end is logged by the new one."""
        with connected(lab, WEB) as (client, server):
            before = rule("special", destination=[SERVER], service=["web"])
            commit(firewall, changed(security_rules=[before, *CONFIG["security-rules"]]))
            assert_stream(client, server)
            session = session_of(firewall, client)
            assert session["rule"] == "special"
            ask(firewall, "clear session id", id=session["id"])
            assert record(firewall, event="end", sport=session["c2s"]["sport"])["rule"] == "special"

    def test_an_interface_joins_and_leaves_a_zone(self, lab, firewall):
        """Its packets meet the policy from the commit on, and are nobody's business after the next."""
        lab.run("firewall", ["ip", "link", "add", "dmz0", "type", "veth", "peer", "name", "dmz1"], check=True)
        try:
            before = firewall.footprint()
            commit(firewall, changed(zones=[*zones(), {"name": "dmz", "interfaces": ["dmz0"]}]))
            joined = firewall.footprint()
            assert "dmz0" in joined["iptables"] + joined["nftables"]
            assert joined["sysctls"] != before["sysctls"]
            commit(firewall, CONFIG)
            left = firewall.footprint()
            assert "dmz0" not in left["iptables"] + left["nftables"]
            assert left["sysctls"] == before["sysctls"]
        finally:
            lab.run("firewall", ["ip", "link", "del", "dmz0"], check=True)

    def test_a_session_whose_interface_changes_its_zone_ends(self, lab, firewall):
        """The same addresses from another zone are another flow."""
        renamed = [{"name": "inside", "interfaces": ["in0"]}, zones()[1]]
        with connected(lab, WEB) as (client, _server):
            own = client.getsockname()[1]
            nat = [{**CONFIG["nat-rules"][0], "from": ["inside"]}]
            wanted = changed(zones=renamed, nat_rules=nat, host_inbound={"inside": ["ssh"]})
            assert_ends(firewall, wanted, own)
        with connected(lab, WEB) as ends:
            assert session_of(firewall, ends[0])["c2s"]["source_zone"] == "inside"
            assert_stream(*ends)

    def test_a_session_whose_way_out_changes_its_zone_ends(self, lab, firewall):
        """By the commit and not by the route, which is as it was."""
        renamed = [zones()[0], {"name": "outside", "interfaces": ["out0"]}]
        with connected(lab, WEB) as (client, _server):
            nat = [{**CONFIG["nat-rules"][0], "to": "outside"}]
            assert_ends(firewall, changed(zones=renamed, nat_rules=nat), client.getsockname()[1])

    def test_zones_written_in_another_order_are_the_same_zones(self, lab, firewall):
        """Sessions do not change their zone because a line has moved."""
        with connected(lab, WEB) as ends:
            commit(firewall, changed(zones=zones()[::-1]))
            assert_stream(*ends)
            assert session_of(firewall, ends[0])["c2s"]["source_zone"] == "trust"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("zones: [", "file"),
            ("zones: [{name: a, interfaces: [in0]}]\nsecurity-rules: [{name: x, action: alow}]\n", "security-rules[0]"),
            ("", "file"),
            ("\x00\x01\x02", "file"),
        ],
    )
    def test_garbage_changes_nothing(self, lab, firewall, tmp_path, text, complaint):
        """Exit 3, the place, and the same version as before."""
        before = versions(firewall)
        (tmp_path / "bad.yaml").write_text(text)
        done = firewall.cli("commit", str(tmp_path / "bad.yaml"))
        assert done.returncode == 3
        assert done.stderr.startswith(f"{tmp_path}/bad.yaml:")
        assert complaint in done.stderr
        assert versions(firewall) == before
        assert fate(lab, MAIL) == "silence"

    def test_a_file_whose_name_is_no_text(self, firewall):
        """It is named as far as it can be."""
        odd = os.fsdecode(os.fsencode(firewall.write_config(CONFIG)) + b"\xff")
        os.link(firewall.config, odd)
        assert firewall.cli("commit", odd).returncode == 0
        assert versions(firewall)[0]["source"].endswith("\ufffd")

    def test_what_the_host_refuses_is_taken_back(self, lab, firewall):
        """Another program has the address of the metrics: nothing of the commit stays."""
        before, metrics = sorted_footprint(firewall), {"listen": f"127.0.0.1:{WEB}"}
        zoned = [*zones(), {"name": "local", "interfaces": ["lo"]}]
        wanted = changed(zones=zoned, metrics=metrics, security_rules=rules(rule("no-mail", service=["mail"])))
        number = versions(firewall)[0]["version"]
        with lab.listener("firewall", WEB):
            done = firewall.cli("commit", str(firewall.write_config(wanted)))
        assert done.returncode == 1
        assert "the commit was taken back" in done.stderr
        assert (versions(firewall)[0]["version"], sorted_footprint(firewall)) == (number, before)
        assert fate(lab, MAIL) == "silence"

    def test_a_missing_file(self, firewall):
        """As a wrong one."""
        assert firewall.cli("commit", "/nowhere/firewall.yaml").returncode == 3

    def test_what_takes_a_restart_is_named(self, firewall):
        """Whole or not at all: nothing else of the file is taken either."""
        larger = changed(settings={"session": {"max-sessions": 4096}, "queue": {"workers": 1}}, security_rules=[])
        done = firewall.cli("commit", str(firewall.write_config(larger)))
        assert done.returncode == 1
        assert "settings.session.max-sessions, settings.queue" in done.stderr
        assert firewall.json("show", "running", "security-policy")[0]["name"] == "web"

    def test_a_daemon_that_is_fed_nonsense_over_its_socket(self, firewall):
        """The client checks, and the daemon does not rely on it."""
        nonsense: list[dict[str, Any]] = [{}, {"zones": []}, changed(security_rules=[rule("x", source=["nobody"])])]
        for config in nonsense:
            with pytest.raises(DataplaneError, match=r"zones|nobody"):
                ask(firewall, "commit", config=config, user="me", source="test")

    def test_a_connection_to_the_firewall_is_not_cut_unasked(self, lab, firewall):
        """Perhaps the operator's own: --force or --confirm must be said."""
        locked = firewall.write_config(changed(host_inbound={"trust": ["ping"]}))
        with lab.listener("firewall", SSH), lab.connect("client", (IN0, SSH)) as client:
            own = client.getsockname()[1]
            done = firewall.cli("commit", str(locked))
            assert done.returncode == 1
            assert "--confirm SECONDS" in done.stderr
            assert not is_over(firewall, own)
            assert "firewall itself" in firewall.cli("commit", str(locked), "--check").stdout
            assert firewall.cli("commit", str(locked), "--force").returncode == 0
            poll(lambda: is_over(firewall, own), MOMENT, "the connection's end")

    def test_a_translated_connection_to_the_firewall_is_one_as_well(self, lab, firewall):
        """Its NAT rule is changed so that it would lead elsewhere."""
        own_rule: dict[str, Any] = {"name": "own", "from": ["trust"], "to": "trust", "destination": [IN0]}
        own_rule["destination-translation"] = {"address": IN0, "port": SSH}
        commit(firewall, changed(nat_rules=[own_rule]))
        moved = deepcopy(own_rule)
        moved["destination-translation"]["port"] = SSH + 1
        with lab.listener("firewall", SSH), lab.connect("client", (IN0, WEB)) as client:
            own = client.getsockname()[1]
            done = firewall.cli("commit", str(firewall.write_config(changed(nat_rules=[moved]))))
            assert (done.returncode, is_over(firewall, own)) == (1, False)
            assert "--confirm SECONDS" in done.stderr
            commit(firewall, changed(nat_rules=[moved]), "--force")
            poll(lambda: is_over(firewall, own), MOMENT, "the connection's end")


class TestGoingBack:
    def test_a_rollback_is_a_commit(self, lab, firewall):
        """One back is the version before; twice one back is where one was."""
        open_mail = changed(security_rules=rules(rule("no-mail", service=["mail"])))
        commit(firewall, open_mail)
        newest = versions(firewall)[0]["version"]
        assert firewall.cli("rollback").returncode == 0
        assert fate(lab, MAIL) == "silence"
        assert firewall.cli("rollback").returncode == 0
        assert fate(lab, MAIL) == "connected"
        assert firewall.cli("rollback", "3").returncode == 0
        assert fate(lab, MAIL) == "silence"
        first = versions(firewall)[0]
        assert (first["version"], first["running"]) == (newest + 3, True)
        assert first["source"].startswith("rollback to version")

    def test_further_than_there_are_versions(self, firewall):
        """Exit 1, and nothing happens."""
        before = versions(firewall)
        assert firewall.cli("rollback", "9999").returncode == 1
        assert versions(firewall) == before

    def test_versions_say_when_who_and_what(self, firewall):
        """With a diff of the whole configuration."""
        commit(firewall, changed(security_rules=rules(rule("no-mail", service=["mail"]))))
        newest = versions(firewall)[0]
        assert newest["changes"] == ["security-rules: changed no-mail (action)"]
        assert "+    action: allow" in newest["diff"]
        assert newest["user"]
        assert newest["time"].endswith("Z")
        number = str(newest["version"])
        shown = firewall.json("show", "config", "version", number)
        assert [each["name"] for each in shown["security-rules"]] == ["web", "translated", "no-mail", "rest"]
        assert f"* {number}" in firewall.cli("show", "config", "versions").stdout

    def test_what_a_file_would_change(self, firewall):
        """Against what is in force, whatever the file was that the daemon began with."""
        renamed = firewall.write_config(changed(addresses={"clients": "10.1.0.0/16"}))
        shown = firewall.cli("show", "config", "diff", str(renamed)).stdout
        assert "-  clients: 10.1.0.0/24" in shown
        assert "+  clients: 10.1.0.0/16" in shown
        assert firewall.json("show", "config", "diff") == []

    def test_a_commit_that_nobody_confirms(self, lab, firewall):
        """It goes back by itself; sessions that the policy in between allowed end."""
        commit(firewall, changed(security_rules=rules(rule("no-mail", service=["mail"]))), "--confirm", "1")
        assert versions(firewall)[0]["unconfirmed"]
        with connected(lab, MAIL) as (client, _server):
            own = client.getsockname()[1]
            poll(lambda: "not confirmed" in versions(firewall)[0]["source"], 5, "the way back")
            poll(lambda: is_over(firewall, own), MOMENT, "the session's end")
        assert fate(lab, MAIL) == "silence"

    def test_a_commit_that_is_confirmed_stays(self, lab, firewall):
        """Once; there is nothing to confirm a second time."""
        commit(firewall, changed(security_rules=rules(rule("no-mail", service=["mail"]))), "--confirm", "60")
        assert firewall.cli("commit", "confirm", "--check").returncode == 2
        assert versions(firewall)[0]["unconfirmed"]
        assert firewall.cli("commit", "confirm").returncode == 0
        assert firewall.cli("commit", "confirm").returncode == 1
        assert not versions(firewall)[0]["unconfirmed"]
        assert fate(lab, MAIL) == "connected"

    def test_another_commit_ends_the_waiting(self, firewall):
        """Whoever can commit is not cut off."""
        commit(firewall, changed(security_rules=rules(rule("no-mail", service=["mail"]))), "--confirm", "1")
        commit(firewall, CONFIG)
        number = versions(firewall)[0]["version"]
        with pytest.raises(LabError):
            poll(lambda: versions(firewall)[0]["version"] != number, 1.5, "a version that must not come")


class TestPreview:
    def test_each_change_and_what_it_ends(self, lab, firewall):
        """Sessions are counted at the change that ends them; nothing happens."""
        wanted = changed(
            security_rules=[
                rule("no-web", "deny", service=["web"]),
                *CONFIG["security-rules"][:1],
                *CONFIG["security-rules"][2:],
            ],
            nat_rules=[],
        )
        with connected(lab, WEB) as web, connected(lab, TRANSLATED) as translated:
            preview = firewall.json("commit", str(firewall.write_config(wanted)), "--check")
            ends = {(each["section"], each["kind"], each["name"]): each["sessions"] for each in preview["changes"]}
            assert ends == {
                ("security-rules", "removed", "translated"): 0,
                ("security-rules", "added", "no-web"): 1,
                ("nat-rules", "removed", "snat"): 1,
            }
            assert preview["sessions_ended"] == 2
            for ends_of in (web, translated):
                assert_stream(*ends_of)
            printed = firewall.cli("commit", str(firewall.write_config(wanted)), "--check").stdout
            assert "security-rules: added no-web (at 1): ends 1 session" in printed

    def test_nothing_to_change(self, firewall):
        """Said in words."""
        assert "Nothing would change" in firewall.cli("commit", "--check").stdout

    def test_a_changed_address(self, lab, firewall):
        """The rule that names it is as it was; the session ends by what its address has become."""
        wanted = changed(
            addresses={"clients": "10.1.0.128/25"},
            security_rules=[*CONFIG["security-rules"][:3], rule("rest", "deny")],
        )
        with connected(lab, WEB):
            preview = firewall.json("commit", str(firewall.write_config(wanted)), "--check")
        kinds = [(each["section"], each["kind"], each["name"], each["sessions"]) for each in preview["changes"]]
        assert kinds == [("addresses", "changed", "clients", 0), ("security-rules", "changed", "rest", 1)]


class TestIdentity:
    def test_a_rule_that_is_renamed_and_moved_is_the_same(self, lab, firewall):
        """Sessions and hits go by its new name."""
        hits = hit_count(firewall, "web")
        with connected(lab, WEB) as (client, server):
            own = CONFIG["security-rules"]
            commit(firewall, changed(security_rules=[own[1], own[2], {**own[0], "name": "web-farm"}, own[3]]))
            changes = versions(firewall)[0]["changes"]
            assert "security-rules: renamed web-farm (from web)" in changes
            assert session_of(firewall, client)["rule"] == "web-farm"
            assert hit_count(firewall, "web-farm") == hits + 1
            assert_stream(client, server)

    def test_a_new_rule_of_an_old_name_is_another_one(self, lab, firewall):
        """Removed in one commit and made in another: it has no hits."""
        with connected(lab, MAIL + 1):
            assert hit_count(firewall, "rest")
        commit(firewall, changed(security_rules=CONFIG["security-rules"][:3]))
        commit(firewall, CONFIG)
        assert hit_count(firewall, "rest") == 0


class TestTranslation:
    def test_a_session_keeps_its_translation(self, lab, firewall):
        """A rule put before its own translates new sessions only."""
        first = {**CONFIG["nat-rules"][0], "name": "other"}
        first["source-translation"] = {"type": "dynamic-ip-and-port", "addresses": [OTHER_POOL]}
        with connected(lab, TRANSLATED) as old:
            commit(firewall, changed(nat_rules=[first, *CONFIG["nat-rules"]]))
            assert_stream(*old)
            assert session_of(firewall, old[0])["s2c"]["dst"] == POOL
        with connected(lab, TRANSLATED) as new:
            assert session_of(firewall, new[0])["s2c"]["dst"] == OTHER_POOL

    @pytest.mark.parametrize("gone", ["removed", "disabled", "another pool", "another interface"])
    def test_a_session_whose_rule_is_no_more_ends(self, lab, firewall, gone):
        """Nobody would answer for its address."""
        by_pool, by_interface = deepcopy(CONFIG["nat-rules"][0]), deepcopy(CONFIG["nat-rules"][0])
        by_pool["source-translation"]["addresses"] = [OTHER_POOL]
        by_interface["source-translation"] = {"type": "dynamic-ip-and-port", "interface": "out0"}
        disabled = {**CONFIG["nat-rules"][0], "disabled": True}
        after = {"removed": [], "disabled": [disabled], "another pool": [by_pool], "another interface": [by_interface]}
        with connected(lab, TRANSLATED) as (client, _server):
            assert_ends(firewall, changed(nat_rules=after[gone]), client.getsockname()[1])

    def test_a_session_that_was_exempt_stays_as_it_is(self, lab, firewall):
        """The rule that is gone has translated nothing."""
        exempt = {"name": "exempt", "from": ["trust"], "to": "untrust", "service": ["web"]}
        commit(firewall, changed(nat_rules=[exempt, *CONFIG["nat-rules"]]))
        with connected(lab, WEB) as ends:
            assert session_of(firewall, ends[0])["nat_rule"] == "exempt"
            assert "0 sessions ended" in commit(firewall, CONFIG)
            assert_stream(*ends)

    def test_a_pool_that_has_grown_keeps_its_sessions(self, lab, firewall):
        """The rule may still give what it gave."""
        own = deepcopy(CONFIG["nat-rules"][0])
        own["source-translation"]["addresses"] = [f"{POOL}-{OTHER_POOL}"]
        with connected(lab, TRANSLATED) as ends:
            commit(firewall, changed(nat_rules=[{**own, "name": "snat"}]))
            assert_stream(*ends)


class TestSignals:
    def test_sighup_commits_the_file_that_it_began_with(self, lab, firewall):
        """What is wrong in it is logged, and the policy stays."""
        original = firewall.config.read_text()
        try:
            firewall.config.write_text("zones: [\n")
            os.kill(firewall.pid, signal.SIGHUP)
            poll(lambda: "nothing has changed" in firewall.log(), 5, "a complaint in the log")
            wanted = changed(security_rules=rules(rule("no-mail", service=["mail"])))
            firewall.config.write_text(firewall.write_config(wanted).read_text())
            os.kill(firewall.pid, signal.SIGHUP)
            poll(lambda: versions(firewall)[0]["user"] == "SIGHUP", 5, "a version")
            assert fate(lab, MAIL) == "connected"
        finally:
            firewall.config.write_text(original)

    def test_death_in_the_middle_leaves_one_policy_or_the_other(self):
        """However far a commit or a rollback has come: the next start has a whole configuration and its history."""
        other = changed(security_rules=rules(rule("no-mail", service=["mail"])))
        moments = random.Random(1)
        with Lab() as lab, lab.firewall(CONFIG) as firewall:
            commit(firewall, other)
            for _ in range(10):
                command = moments.choice(["commit", "rollback"])
                asking = threading.Thread(target=ask_in_vain, args=(firewall, command, other))
                asking.start()
                asking.join(moments.uniform(0, 0.06))
                firewall.kill()
                asking.join()
                firewall.start()
                assert fate(lab, MAIL) == "silence"
                numbers = [version["version"] for version in versions(firewall)]
                assert numbers == list(range(len(numbers), 0, -1))

    def test_a_start_does_not_repeat_what_nobody_confirmed(self):
        """The daemon died while it waited: the version before is what holds."""
        with Lab() as lab, lab.firewall(CONFIG) as firewall:
            wanted = changed(security_rules=rules(rule("no-mail", service=["mail"])))
            firewall.config.write_text(firewall.write_config(wanted).read_text())
            assert firewall.cli("commit", "--confirm", "60").returncode == 0
            firewall.kill()
            firewall.start()
            assert fate(lab, MAIL) == "silence"


def test_twenty_commits_during_a_transfer(lab, firewall):
    """A gigabyte arrives as it was sent, whatever the policy around it becomes."""
    block = random.Random(1).randbytes(1 << 20)
    expected = hashlib.sha256()
    for _ in range(1024):
        expected.update(block)

    def send(client: socket.socket) -> None:
        for _ in range(1024):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)

    def receive(server: socket.socket) -> bytes:
        digest = hashlib.sha256()
        while data := server.recv(1 << 20):
            digest.update(data)
        return digest.digest()

    def change() -> None:
        for number in range(20):
            own = CONFIG["security-rules"]
            commit(firewall, changed(security_rules=[rule(f"new-{number}", "deny", service=["mail"]), *own]))

    with connected(lab, TRANSLATED) as (client, server), ThreadPoolExecutor(3) as pool:
        for end in (client, server):
            end.settimeout(60)
        changing, sending, receiving = pool.submit(change), pool.submit(send, client), pool.submit(receive, server)
        assert receiving.result() == expected.digest()
        sending.result()
        changing.result()


def hit_count(firewall: Firewall, name: str) -> int:
    found = {row["rule"]: row["hit_count"] for row in ask(firewall, "show rule-hit-count")}
    return int(found[name])


def ask_in_vain(firewall: Firewall, command: str, config: dict[str, Any]) -> None:
    """A commit or a rollback; the daemon may die before it answers."""
    arguments = {"config": config, "source": "test"} if command == "commit" else {"back": 1}
    try:
        ask(firewall, command, user="me", **arguments)
    except DataplaneError:
        pass


class TestChildren:
    """A data connection that no rule would allow by itself: it goes the way of its control connection."""

    WITH_FTP = changed(
        services=CONFIG["services"] | {"ftp": port(21)},
        security_rules=[rule("ftp", service=["ftp"]), rule("nothing-else", "deny")],
    )

    @contextmanager
    def data_connection(
        self, lab: Lab, meanwhile: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of one that EPSV has announced, its control connection open beside it; what is done in between."""
        with lab.listener("server", 21) as listening, lab.connect("client", (SERVER, 21)) as control:
            server, _ = listening.accept()
            with server, lab.listener("server", 0) as waiting:
                channel = Channel(control, server)
                channel.server_says(b"220 ready\r\n")
                channel.client_says(b"EPSV\r\n")
                announced = waiting.getsockname()[1]
                channel.server_says(b"229 Entering Extended Passive Mode (|||%d|)\r\n" % announced)
                meanwhile()
                with lab.connect("client", (SERVER, announced)) as client:
                    accepted, _ = waiting.accept()
                    with accepted:
                        yield client, accepted

    def test_it_stays_with_its_parent(self, lab, firewall):
        """By whatever rule allows the control connection now."""
        commit(firewall, self.WITH_FTP)
        with self.data_connection(lab) as (client, server):
            assert session_of(firewall, client)["rule"] == "ftp"
            own = self.WITH_FTP["security-rules"]
            commit(firewall, {**self.WITH_FTP, "security-rules": [rule("special", service=["ftp"]), *own]})
            assert session_of(firewall, client)["rule"] == "special"
            assert_stream(client, server)

    def test_it_ends_with_its_parent(self, lab, firewall):
        """The control connection is denied, so both end."""
        commit(firewall, self.WITH_FTP)
        with self.data_connection(lab) as (client, _server):
            own = client.getsockname()[1]
            assert "2 sessions ended" in commit(firewall, {**self.WITH_FTP, "security-rules": [rule("no", "deny")]})
            poll(lambda: is_over(firewall, own), MOMENT, "the data connection's end")

    def test_one_that_comes_after_a_commit_has_the_rule_that_its_parent_has_now(self, lab, firewall):
        """Though it was announced under another."""
        commit(firewall, self.WITH_FTP)
        special = [rule("special", service=["ftp"]), *self.WITH_FTP["security-rules"]]
        wanted = {**self.WITH_FTP, "security-rules": special}
        with self.data_connection(lab, lambda: commit(firewall, wanted)) as (client, server):
            assert session_of(firewall, client)["rule"] == "special"
            assert_stream(client, server)
            assert hit_count(firewall, "special") == 1
