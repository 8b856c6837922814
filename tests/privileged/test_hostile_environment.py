"""Odd characters in environment files, the administrator's and the person's own, and accounts that go under a start."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from mep.boundary.resolved_config import Hook
from tests.support.accounts import LocalAccount, account, create_account, remove_account
from tests.support.campus import Campus, make_campus
from tests.support.monitor import running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.waiting import until

RESULT_S = 60.0
ODD = {
    "NEWLINES": "one\ntwo\r\nthree\n\n",
    "ESCAPES": "\x1b[2J\x07\x08 tab\t",
    "QUOTES": """ ' " ` \\ $HOME $(id) ${x} %s {{ x }} ; & | < > # ! """,
    "UNICODE": "ünï \U0001f600 \u202e \u2028 \ufeff",
    "EQUALS": "=a=b=",
    "EMPTY": "",
    "LONG": "x" * 100_000,
    "NUMBER": 7,
    "LD_PRELOAD": "/nonexistent/odd lib.so",
    "_": "underscore",
}


@pytest.fixture(scope="module")
def site() -> Iterator[Campus]:
    with make_campus("multi", "odd") as made:
        made.endpoint.write("user_environment.yaml", yaml.safe_dump(ODD, allow_unicode=True))
        made.endpoint.start()
        yield made


def environment(names: list[str]) -> dict[str, Any]:
    return {name: os.environ.get(name) for name in names}


@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "GlobusComputeEngine"])
def test_values_of_user_environment_reach_the_functions_as_they_are(site: Campus, engine: str) -> None:
    names = [name for name in ODD if name != "_"]
    with site.executor("alice", engine=engine) as executor:
        found = executor.submit(environment, names).result(timeout=RESULT_S)
    assert found == {name: str(ODD[name]) for name in names}


def test_they_neither_forge_a_line_of_a_log_nor_keep_anybody_else_from_starting(site: Campus) -> None:
    with site.executor("bob") as executor:
        assert executor.submit(pow, 2, 3).result(timeout=RESULT_S) == 8
    stamp = time.strftime("%Y-%m-%d")
    assert all(line.startswith(stamp) for line in site.log().splitlines() if line)


# --- the person's own, where the administrator has PAM read it ------------------------------------------------


@pytest.fixture
def pam_site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


OWN = {
    "control characters": b'ODD="a\x1b[2Jb\x07"\n',
    "not UTF-8": b"ODD=\xff\xfe\x80\n",
    "no equals sign": b"ODD\nGOOD=1\n",
    "no name": b"=x\nGOOD=1\n",
    "odd name": b"A B=1\nA\x1bB=2\n",
    "a NUL": b"ODD=a\x00b\nGOOD=1\n",
    "a long line": b"ODD=" + b"x" * 100_000 + b"\n",
    "no end of line": b"ODD=x",
    "a name that the endpoint gives": b"HOME=/root\nLD_PRELOAD=/tmp/x.so\nUSER=root\n",
    "binary": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("content", OWN.values(), ids=OWN.keys())
def test_a_persons_own_environment_file(alice: LocalAccount, pam_site: Site, content: bytes) -> None:
    """pam_env may treat it in any way: the start succeeds or fails in PAM's stage, and others' starts succeed."""
    file = pathlib.Path(alice.home, "odd-environment")
    file.write_bytes(content)
    line = f"session optional pam_env.so readenv=1 envfile={file} user_readenv=1"
    with account() as bob, pam_monitor(pam_site, line) as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name)
        if answer.outcome == "started":
            pid = run.record(uep_id)["uep_pid"]
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{alice.uid}\t{alice.uid}\t{alice.uid}\t{alice.uid}" in status
        else:
            record = next(one for one in run.audit_records() if one["event"] == "start")
            assert record["stage"].startswith("PAM_"), record
        assert start_as(manager, mapper, bob.name, ref=2)[1].outcome == "started"
        for text in run.audit.read_text().splitlines():
            assert json.loads(text)["event"] in {"request", "start"}
        assert all(line.startswith("20") for line in run.log_text().splitlines() if line)


# --- accounts that go, or become another's, under a start --------------------------------------------------------


def _hook(site: Site, body: str) -> Hook:
    return Hook(str(site.script("under-a-start", body)), 30.0)


def test_an_account_that_goes_after_it_was_looked_up(pam_site: Site) -> None:
    made = create_account()
    hook = _hook(pam_site, f"userdel -f {made.name} || true")
    with account() as bob, running_monitor(pre_start_hook=hook) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, made.name)
        assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert record["stage"] == "LOOKUP_USER" and "there is no account" in record["detail"]
        assert start_as(manager, mapper, bob.name, ref=2)[1].outcome == "started"
        run.stop()


def test_an_account_that_has_another_uid_after_it_was_looked_up(pam_site: Site) -> None:
    made = create_account()
    hook = _hook(pam_site, f"usermod -o -u {made.uid + 20_000} {made.name}")
    try:
        with running_monitor(pre_start_hook=hook) as (run, manager, mapper):
            answer = start_as(manager, mapper, made.name)[1]
            assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
            record = next(one for one in run.audit_records() if one["event"] == "start")
            assert record["stage"] == "LOOKUP_USER" and f"had uid {made.uid} before" in record["detail"]
    finally:
        remove_account(made.name)


def test_an_account_that_is_locked_after_it_was_looked_up(pam_site: Site) -> None:
    made = create_account()
    hook = _hook(pam_site, f"usermod -e 1 {made.name}")
    try:
        with running_monitor(pre_start_hook=hook) as (run, manager, mapper):
            assert start_as(manager, mapper, made.name)[1].code == "ACCOUNT_REFUSED"
            record = next(one for one in run.audit_records() if one["event"] == "start")
            assert record["stage"] == "POLICY"
            until("nothing of it is left", lambda: not run.status().get("user_endpoints"))
    finally:
        remove_account(made.name)
