"""Changes of a running endpoint's files as its administrator sees them in `mep status`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.accounts import account
from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.waiting import until

SOON_S = 30.0
RULE = {"source": "{username}", "match": "x", "output": "x"}


def document(count: int = 1) -> list[dict[str, Any]]:
    return [{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [RULE]}] * count


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with open_directory() as directory, RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        mep("configure", "site", "--multi-user", "--relay", relay.url)
        mapping(mep).write_text(json.dumps(document()))
        mep("start", "site", "--detach")
        yield mep
        mep("stop", "site", "--kill")


def mapping(site: Cli) -> Path:
    return site.path("etc", "site", "identity_mapping.json")


def log(site: Cli) -> str:
    return site.path("var", "site", "endpoint.log").read_text()


def status(site: Cli) -> dict[str, Any]:
    return dict(site.json("status", "site"))


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


@pytest.mark.parametrize("write", [Path.write_text, replace], ids=["in place", "renamed"])
def test_a_changed_mapping_is_in_force_within_seconds(site: Cli, write: Callable[[Path, str], Any]) -> None:
    count = 2 if write is replace else 3
    write(mapping(site), json.dumps(document(count)))
    began = time.monotonic()
    until("the mapping in the status", lambda: f"{count} documents" in status(site)["mapping"])
    took = time.monotonic() - began
    print(f"in force after {took:.1f} s")
    assert status(site)["mapping_problem"] == ""
    assert f"{count} documents" in log(site)


@pytest.mark.parametrize("text", ["{", '[{"DATA_TYPE": "no_such_type#1.0.0"}]'])
def test_a_broken_mapping_is_refused_and_the_old_one_stays(site: Cli, text: str) -> None:
    before = status(site)["mapping"]
    mapping(site).write_text(text)
    until("the mapping's problem in the status", lambda: status(site)["mapping_problem"])
    assert status(site)["mapping"] == before
    assert "mapping refused, the one before stays" in log(site)
    assert "cannot be used" in site("status", "site").stdout
    mapping(site).write_text(json.dumps(document()))
    until("a mapping without a problem", lambda: not status(site)["mapping_problem"])
    assert status(site)["mapping"] != before


def test_a_mapping_that_others_may_write_is_refused_while_it_runs(site: Cli) -> None:
    before = status(site)["mapping"]
    for path, mode in ((mapping(site), 0o666), (mapping(site).parent, 0o777)):
        good = path.stat().st_mode & 0o7777
        path.chmod(mode)
        until(
            "the mapping's problem in the status", lambda p=path: f"chmod go-w {p}" in status(site)["mapping_problem"]
        )
        assert status(site)["mapping"] == before
        assert "bad permissions: chmod go-w" in site("status", "site").stdout
        path.chmod(good)
        until("a mapping without a problem", lambda: not status(site)["mapping_problem"])
        before = status(site)["mapping"]


def test_a_callout_that_others_may_write_is_refused_while_it_runs(site: Cli) -> None:
    program = site.path("etc", "site", "callout")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    callout = {"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}
    replace(mapping(site), json.dumps([callout, *document()]))
    until("the mapping in the status", lambda: "2 documents" in status(site)["mapping"])
    program.chmod(0o757)
    until(
        "the mapping's problem in the status",
        lambda: f"command: {program}: has mode" in status(site)["mapping_problem"],
    )
    assert "bad permissions: chmod go-w" in site("check", "site", expect=4).stderr
    program.chmod(0o700)
    assert f"cannot be run by account {site.helpers('site')[1].pw_name}" in site("check", "site", expect=4).stderr
    program.chmod(0o711)  # a program need not be readable
    site("check", "site")
    program.chmod(0o755)
    until("a mapping without a problem", lambda: not status(site)["mapping_problem"])
    site("check", "site")
    replace(mapping(site), json.dumps(document()))
    until("the mapping in the status", lambda: "1 document," in status(site)["mapping"])


def test_a_file_that_the_mapping_names(site: Cli) -> None:
    mapper = site.helpers("site")[1]
    secret = site.path("etc", "site", "ldap.password")
    secret.write_text("one")
    os.chown(secret, 0, mapper.pw_gid)
    secret.chmod(0o640)
    directory = {
        "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": ["ldaps://127.0.0.1:1"], "base": "dc=x",
        "filter": "(mail={email})", "bind_dn": "cn=x", "password_file": str(secret),
    }  # fmt: skip
    replace(mapping(site), json.dumps([directory, *document()]))
    until("the mapping in the status", lambda: "2 documents" in status(site)["mapping"])
    before = status(site)["mapping"]
    time.sleep(1.1)  # the status has the time of loading in seconds
    secret.write_text("another")
    until("the mapping in the status", lambda: status(site)["mapping"] != before)
    secret.chmod(0o644)
    until("the mapping's problem in the status", lambda: status(site)["mapping_problem"])
    secret.chmod(0o640)
    replace(mapping(site), json.dumps(document()))
    until("a mapping without a problem", lambda: not status(site)["mapping_problem"])


def test_sighup_takes_a_good_configuration_over_and_refuses_a_bad_one(site: Cli) -> None:
    path = site.path("etc", "site", "config.yaml")
    good = path.read_text()
    pid, reloaded = status(site)["pid"], log(site).count("configuration reloaded")
    path.write_text(yaml.safe_dump({**yaml.safe_load(good), "policy": {"min_uid": 1234}}))
    os.kill(pid, signal.SIGHUP)
    until("the configuration is reloaded", lambda: log(site).count("configuration reloaded") == reloaded + 1)
    for bad in ("policy: {min_uid: nonsense}\n", "recheck_interval_s: -1\n", "[", "no_such_key: 1\n"):
        before = log(site).count("was not reloaded")
        path.write_text(good + bad)
        os.kill(pid, signal.SIGHUP)
        until("a configuration that is not reloaded", lambda n=before: log(site).count("was not reloaded") > n)
    assert (status(site)["pid"], status(site)["state"]) == (pid, "up")
    path.write_text(good)
    os.kill(pid, signal.SIGHUP)
    until("the configuration is reloaded", lambda: log(site).count("configuration reloaded") == reloaded + 2)


def test_sighup_with_a_new_mapping_path(site: Cli) -> None:
    path, other = site.path("etc", "site", "config.yaml"), site.path("etc", "site", "other.json")
    other.write_text(json.dumps(document(4)))
    good = path.read_text()
    path.write_text(good + f"identity_mapping_config_path: {other}\n")
    os.kill(status(site)["pid"], signal.SIGHUP)
    until("the mapping in the status", lambda: "4 documents" in status(site)["mapping"])
    until("an endpoint and a link that are up", lambda: status(site)["state"] == "up" and status(site)["link"] == "up")
    path.write_text(good)
    os.kill(status(site)["pid"], signal.SIGHUP)
    until("the mapping in the status", lambda: "4 documents" not in status(site)["mapping"])
    until("an endpoint and a link that are up", lambda: status(site)["state"] == "up" and status(site)["link"] == "up")


def test_the_site_may_set_which_account_the_mapper_is(site: Cli) -> None:
    path, good = site.path("etc", "site", "config.yaml"), site.path("etc", "site", "config.yaml").read_text()
    manager, mapper = site.helpers("site")
    rest = "\n".join(line for line in good.splitlines() if not line.startswith("mapper_account")) + "\n"
    for bad, reason in (
        ("root", "no helper process is root"),
        (manager.pw_name, "must not be the manager's"),
        ("no-such-account", "does not exist"),
    ):
        path.write_text(rest + f"mapper_account: {bad}\n")
        assert reason in site("check", "site", expect=4).stderr
    mapping(site).chmod(0o644)
    with account() as chosen:
        key = site.path("var", "site", "unseal.key")
        path.write_text(rest + f"mapper_account: {chosen.name}\n")
        assert f"chown {chosen.name} {key}" in site("check", "site", expect=4).stderr
        os.chown(key, chosen.uid, chosen.gid)
        os.kill(status(site)["pid"], signal.SIGHUP)
        until("the mapper's account", lambda: mapper_uid(site) == chosen.uid)
        until(
            "an endpoint and a link that are up", lambda: status(site)["state"] == "up" and status(site)["link"] == "up"
        )
        # No person is mapped to it, since it is one of the endpoint's own accounts.
        mine = site.path("etc", "site", "mine.json")
        rule = {**RULE, "match": "me@example.edu", "output": chosen.name, "literal": True}
        mine.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}]))
        path.write_text(rest + f"mapper_account: {chosen.name}\nidentity_mapping_config_path: {mine}\n")
        refused = site("map", "site", "--identity", "me@example.edu", expect=1)
        assert "one of the endpoint's own accounts" in refused.stdout + refused.stderr
        path.write_text(good)
        os.chown(key, mapper.pw_uid, 0)
        os.kill(status(site)["pid"], signal.SIGHUP)
        until("the mapper's account", lambda: mapper_uid(site) == mapper.pw_uid)


def mapper_uid(site: Cli) -> int:
    """Return the uid of the mapper's process, or -1 where there is none."""
    monitor = status(site)["pid"]
    for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split():
        with contextlib.suppress(OSError):
            if "mep.mapper" in Path(f"/proc/{pid}/cmdline").read_text():
                words = Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()
                return int(words[0])
    return -1
