"""The accounts of manager and mapper: each endpoint has its own pair, made by configure and removed by delete."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.accounts import account
from tests.support.cli import Cli, open_directory
from tests.support.registrar import Registrar
from tests.support.waiting import until

WAIT_S = 60.0


def helper_pid(site: Cli, name: str, module: str) -> int:
    """Return the pid of an endpoint's manager or mapper."""
    monitor = int(site.path("run", name, "monitor.pid").read_text().split()[0])
    for child in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split():
        with contextlib.suppress(OSError):
            if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return 0


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@contextlib.contextmanager
def running(site: Cli, *names: str) -> Iterator[None]:
    """Endpoints that run, without a relay, for the length of a `with` block."""
    try:
        for name in names:
            site("start", name, "--detach")
        yield
    finally:
        for name in names:
            site("stop", name, "--kill")


def make(site: Cli, registrar: Registrar, name: str, *more: str, expect: int = 0) -> str:
    words = ["configure", name, "--multi-user", "--relay", registrar.url]
    return site(*words, "--token-file", str(site.directory / "token"), *more, expect=expect).stderr


ATTACK = """
import os, signal, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
for what, attempt in (("key", lambda: open(sys.argv[3], "rb").read()),
                      ("signal", lambda: os.kill(int(sys.argv[4]), signal.SIGSTOP))):
    try:
        attempt()
        print(what, "done")
    except OSError as error:
        print(what, type(error).__name__)
"""


@pytest.mark.parametrize(("module", "key"), [("mep.manager", "link.key"), ("mep.mapper", "unseal.key")])
def test_the_helper_of_one_endpoint_can_neither_read_the_key_of_another_nor_stop_it(
    mep: Cli, registrar: Registrar, module: str, key: str
) -> None:
    for name in ("first", "second"):
        make(mep, registrar, name)
    with running(mep, "first", "second"):
        mine, theirs = (
            until("the helper process", lambda name=name: helper_pid(mep, name, module)) for name in ("first", "second")
        )
        attacker = pwd.getpwuid(until("the account of the process", lambda: uid_of(mine)))
        victim = [str(mep.path("var", "second", key)), str(theirs)]
        argv = [sys.executable, "-I", "-c", ATTACK, str(attacker.pw_uid), str(attacker.pw_gid), *victim]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
        os.kill(theirs, signal.SIGCONT)
        assert said.splitlines() == ["key PermissionError", "signal PermissionError"]


def exists(*names: str) -> list[bool]:
    found = {entry.pw_name for entry in pwd.getpwall()}
    return [name in found for name in names]


def unique(word: str) -> str:
    return f"{word}{secrets.token_hex(3)}"


def test_configure_makes_a_pair_of_accounts_and_delete_removes_it(mep: Cli, registrar: Registrar) -> None:
    name = unique("s-")
    make(mep, registrar, name)
    pair = mep.helpers(name)
    assert [entry.pw_name for entry in pair] == [f"mep-{name}", f"mep-map-{name}"]
    for entry, key in zip(pair, ("link.key", "unseal.key"), strict=True):
        assert 61184 <= entry.pw_uid <= 65519
        assert (entry.pw_shell, entry.pw_dir) == ("/usr/sbin/nologin", "/nonexistent")
        assert grp.getgrgid(entry.pw_gid).gr_name == entry.pw_name
        assert spwd_password(entry.pw_name) in {"!", "!!", "*", "!*"}
        assert mep.path("var", name, key).stat().st_uid == entry.pw_uid
    assert mep.path("etc", name, "identity_mapping.json").stat().st_gid == pair[1].pw_gid
    mep("delete", name, "--yes", "--token-file", str(mep.directory / "token"))
    assert exists(*(entry.pw_name for entry in pair)) == [False, False]
    assert not any(entry.gr_name.endswith(name) for entry in grp.getgrall())


def spwd_password(name: str) -> str:
    lines = Path("/etc/shadow").read_text().splitlines()
    return next(line.split(":")[1] for line in lines if line.startswith(f"{name}:"))


def test_endpoints_of_one_name_that_are_made_at_once_each_have_their_own_accounts(registrar: Registrar) -> None:
    """In directories of their own. useradd(8) by itself gives the first of them the uid of the second."""
    name = unique("s-")
    with contextlib.ExitStack() as stack:
        sites = [Cli(stack.enter_context(open_directory())) for _ in range(4)]
        for site in sites:
            (site.directory / "token").write_text("a-token\n")
            (site.directory / "token").chmod(0o600)
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(lambda site: make(site, registrar, name), sites))
        for site in sites:
            for entry, role in zip(site.helpers(name), ("manager", "mapper"), strict=True):
                assert entry.pw_gecos == f"MEP {role} of {site.path('etc', name)}"
                assert grp.getgrgid(entry.pw_gid).gr_name == entry.pw_name


@pytest.mark.parametrize("name", ["Site.One", "a-name-of-more-than-twenty-eight-characters"])
def test_a_name_that_no_account_can_have_gives_the_beginning_of_the_id(
    mep: Cli, registrar: Registrar, name: str
) -> None:
    make(mep, registrar, name)
    digits = json.loads(mep.path("var", name, "keys.json").read_text())["endpoint_id"][:8]
    assert [entry.pw_name for entry in mep.helpers(name)] == [f"mep-{digits}", f"mep-map-{digits}"]


def test_an_account_that_is_there_already_is_neither_used_nor_removed(mep: Cli, registrar: Registrar) -> None:
    name = unique("s-")
    with account(name=f"mep-{name}") as person:
        make(mep, registrar, name)
        digits = json.loads(mep.path("var", name, "keys.json").read_text())["endpoint_id"][:8]
        assert [entry.pw_name for entry in mep.helpers(name)] == [f"mep-{digits}", f"mep-map-{name}"]
        mep("delete", name, "--yes", "--local-only")
        assert pwd.getpwnam(person.name).pw_uid == person.uid


def test_delete_leaves_an_account_that_something_runs_as(mep: Cli, registrar: Registrar) -> None:
    name = unique("s-")
    make(mep, registrar, name)
    manager, mapper = mep.helpers(name)
    identity = {"user": manager.pw_uid, "group": manager.pw_gid, "extra_groups": []}
    with subprocess.Popen(["/bin/sleep", "600"], **identity) as busy:  # type: ignore[call-overload]
        try:
            said = mep("delete", name, "--yes", "--local-only").stderr
            assert f"account {manager.pw_name} was not removed" in said
            assert exists(manager.pw_name, mapper.pw_name) == [True, False]
        finally:
            busy.kill()


def test_a_configure_that_fails_leaves_no_account(mep: Cli, registrar: Registrar) -> None:
    name = unique("s-")
    (mep.directory / "etc").write_text("a file, where a directory of endpoints should be")
    make(mep, registrar, name, expect=1)
    assert exists(f"mep-{name}", f"mep-map-{name}") == [False, False]


def test_accounts_can_be_chosen_and_check_warns_of_shared_ones(mep: Cli, registrar: Registrar) -> None:
    shared = ("--manager-account", "mep", "--mapper-account", "mep-idmap")
    make(mep, registrar, "one", *shared)
    assert [entry.pw_name for entry in mep.helpers("one")] == ["mep", "mep-idmap"]
    assert "is an account of endpoint" not in mep("check", "one").stderr
    make(mep, registrar, "two", *shared)
    said = mep("check", "two").stderr
    for key, name in (("manager_account", "mep"), ("mapper_account", "mep-idmap")):
        assert f"{key}: {name} is an account of endpoint one too" in said
    make(mep, registrar, "three")
    assert "is an account of endpoint" not in mep("check", "three").stderr


def test_an_endpoint_without_the_options_keeps_the_accounts_of_the_installation(mep: Cli, registrar: Registrar) -> None:
    make(mep, registrar, "old")
    path = mep.path("etc", "old", "config.yaml")
    text = path.read_text()
    path.write_text(
        "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(("manager_acc", "mapper_acc")))
    )
    mep("register", "old", "--again", "--token-file", str(mep.directory / "token"))
    owners = [pwd.getpwuid(mep.path("var", "old", key).stat().st_uid).pw_name for key in ("link.key", "unseal.key")]
    assert owners == ["mep", "mep-idmap"]
    os.chown(mep.path("etc", "old", "identity_mapping.json"), 0, pwd.getpwnam("mep-idmap").pw_gid)
    with running(mep, "old"):
        pids = [
            until("the helper process", lambda kind=kind: helper_pid(mep, "old", kind))
            for kind in ("mep.manager", "mep.mapper")
        ]
        assert [pwd.getpwuid(uid_of(pid)).pw_name for pid in pids] == ["mep", "mep-idmap"]


def test_no_identity_is_mapped_to_an_account_of_any_endpoint(mep: Cli, registrar: Registrar) -> None:
    """An endpoint made after this one, and an endpoint with an account that the administrator chose."""
    with account() as chosen:
        for name, more in (("one", ()), ("two", ()), ("three", ("--manager-account", chosen.name))):
            make(mep, registrar, name, *more)
        targets = [*mep.helpers("two"), pwd.getpwnam(chosen.name)]
        rules = [{"source": "{username}", "match": one.pw_name, "output": one.pw_name} for one in targets]
        text = json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": rules}])
        mep.path("etc", "one", "identity_mapping.json").write_text(text)
        for target in targets:
            said = mep("map", "one", "--identity", target.pw_name, expect=1).stdout
            assert "accounts of endpoints" in said or "the endpoint's own accounts" in said
