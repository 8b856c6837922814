"""A task ends when its person loses the right to run it: real relay, real endpoint, real accounts, a real slapd.

Each test takes something away from one person while their task runs. It checks that this task alone fails, soon, and
with the reason. It also checks that an outage ends nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mep_sdk import Client, Executor
from mep_sdk.futures import TaskFuture
from mep_wire.errors import AccountRefused, IdentityNotMapped, IdentityRemapped, MepError
from tests.support.accounts import LocalAccount, create_account, remove_account, unique_name
from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.slapd import SUFFIX, Authority, Slapd, free_port, person, tree
from tests.support.waiting import until

INTERVAL_S = 1.0
SOON_S = 60.0
"""Much more than an end takes: interval, five seconds' grace for the task, the keeper's clearing up."""
TEMPLATE = "display_name: {{ name | default('x') }}\nengine:\n  type: ProcessPoolEngine\n  max_workers: 1\n"


@dataclass
class Place:
    """A relay, an endpoint that re-checks every second, and people."""

    mep: Cli
    relay: RelayProcess
    group: str
    endpoint_id: str = ""
    rules: dict[str, str] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)

    def account(self) -> LocalAccount:
        """Make an account that the endpoint's policy admits."""
        made = create_account()
        self.accounts.append(made.name)
        subprocess.run(["usermod", "--append", "--groups", self.group, made.name], check=True, capture_output=True)
        return made

    def write_mapping(self) -> None:
        """Replace the mapping file by rename."""
        mappings = [{"source": "{username}", "match": k, "output": v, "literal": True} for k, v in self.rules.items()]
        mappings += [{"source": "{username}", "match": "unused", "output": "unused"}]
        value = [{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": mappings}, *self.documents]
        path = self.mep.path("etc", "site", "identity_mapping.json")
        new = path.with_name("new.json")
        new.write_text(json.dumps(value))
        new.chmod(0o644)
        new.replace(path)

    def settings(self, **changes: Any) -> None:
        """Change config.yaml."""
        path = self.mep.path("etc", "site", "config.yaml")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    def status(self) -> dict[str, Any]:
        return dict(self.mep.json("status", "site"))

    def running(self) -> dict[str, dict[str, Any]]:
        """Return the running user endpoints by their account."""
        return {one["local_user"]: one for one in self.status()["user_endpoints"] if one["state"] == "running"}

    def log(self) -> str:
        return self.mep.path("var", "site", "endpoint.log").read_text(errors="replace")

    def audit(self, event: str) -> list[dict[str, Any]]:
        lines = self.mep.path("var", "site", "audit.log").read_text().splitlines()
        return [one for line in lines if (one := json.loads(line))["event"] == event]

    def map_to(self, username: str, account: str) -> None:
        """Map a person, and wait until the mapping is in force."""
        self.rules[username] = account
        self.renew_mapping()

    def renew_mapping(self) -> None:
        """Write the mapping and wait until it is in force: a change is taken over once it has come to rest."""
        before = self.status()["mapping"]
        self.write_mapping()
        until("the mapping in the status", lambda: self.status()["mapping"] != before)

    def person(self, account: str = "", *, mapped: bool = True) -> Person:
        """Return a new person. The mapping file maps them to `account`, or to a new one."""
        username = f"{unique_name()}@example.edu"
        token = self.relay.add_user(username)
        name = account or self.account().name
        if mapped:
            self.map_to(username, name)
        return Person(self, username, name, Executor(self.endpoint_id, client=Client(self.relay.url, token)))


@dataclass
class Person:
    """A person with an account here."""

    campus: Place
    username: str
    account: str
    executor: Executor

    def begin(self) -> TaskFuture:
        """Return a task that runs, and another that waits behind it."""
        task = self.executor.submit(time.sleep, 600)
        self.waiting = self.executor.submit(os.getuid)
        until("a running user endpoint", lambda: self.account in self.campus.running())
        until("a sleeping task", lambda: sleeping(self.account))
        return task

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)


def sleeping(account: str) -> bool:
    """Whether `account` has a worker that does a task (in nanosleep)."""
    found = subprocess.run(["pgrep", "-u", account], capture_output=True, text=True, check=False).stdout.split()
    for pid in found:
        with contextlib.suppress(OSError):
            if "nanosleep" in Path(f"/proc/{pid}/wchan").read_text() or _in_sleep(pid):
                return True
    return False


def _in_sleep(pid: str) -> bool:
    # 35 nanosleep, 230 clock_nanosleep on x86_64; 101, 115 elsewhere.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in {"35", "230", "101", "115"}
    return False


def processes(account: str) -> list[str]:
    return subprocess.run(["pgrep", "-u", account], capture_output=True, text=True, check=False).stdout.split()


@pytest.fixture(scope="module")
def campus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    group = unique_name()
    subprocess.run(["groupadd", group], check=True, capture_output=True)
    with open_directory() as directory, RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        mep("configure", "site", "--multi-user", "--relay", relay.url)
        made = Place(mep, relay, group)
        mep.path("etc", "site", "user_config_template.yaml.j2").write_text(TEMPLATE)
        mep.path("etc", "site", "user_config_schema.json").write_text("{}")
        made.settings(recheck_interval_s=INTERVAL_S, policy={"allowed_groups": [group]}, caps={"stop_grace_s": 8})
        made.write_mapping()
        mep("start", "site", "--detach")
        made.endpoint_id = str(until("a registered endpoint", lambda: made.status()["endpoint_id"]))
        try:
            yield made
        finally:
            mep("stop", "site", "--kill")
            print(made.log()[-6000:])
            print(relay.log.read_text()[-3000:])
            for name in made.accounts:
                remove_account(name)
            subprocess.run(["groupdel", group], check=False, capture_output=True)


@pytest.fixture(scope="module")
def bystander(campus: Place) -> Iterator[Person]:
    """Another person. Their task has to run through everything."""
    somebody = campus.person()
    somebody.task = somebody.begin()  # type: ignore[attr-defined]
    somebody.pid = campus.running()[somebody.account]["pid"]  # type: ignore[attr-defined]
    yield somebody
    somebody.close()


@pytest.fixture
def victim(campus: Place, bystander: Person) -> Iterator[Person]:
    """A person with a running task; at the end the bystander's must run too."""
    somebody = campus.person()
    yield somebody
    somebody.close()
    assert campus.running()[bystander.account]["pid"] == bystander.pid  # type: ignore[attr-defined]
    assert not bystander.task.done()  # type: ignore[attr-defined]


def ends(campus: Place, who: Person, task: TaskFuture, kind: type[MepError]) -> MepError:
    """Wait for the end of everything of `who`; return the error of their task."""
    began = time.monotonic()
    error = task.exception(SOON_S)
    told = time.monotonic() - began
    assert type(error) is kind, error
    until("the end of the processes", lambda: not processes(who.account))
    print(f"{kind.code}: the person knew after {told:.2f} s, nothing was left after {time.monotonic() - began:.2f} s")
    until("the end of the user endpoint", lambda: who.account not in campus.running())
    record = next(one for one in reversed(campus.audit("revoke")) if one["local_user"] == who.account)
    assert (record["code"], record["correlation_id"]) == (kind.code, error.correlation_id)
    assert next(one for one in campus.audit("end") if one["local_user"] == who.account)["code"] == kind.code
    return error


def test_a_mapping_that_lets_somebody_go(campus: Place, victim: Person) -> None:
    task = victim.begin()
    del campus.rules[victim.username]
    campus.write_mapping()
    error = ends(campus, victim, task, IdentityNotMapped)
    assert "maps none of your identities" in error.text
    assert isinstance(victim.waiting.exception(SOON_S), IdentityNotMapped)  # type: ignore[attr-defined]
    assert isinstance(victim.executor.submit(os.getuid).exception(SOON_S), IdentityNotMapped)


def test_a_mapping_to_another_account(campus: Place, victim: Person) -> None:
    task = victim.begin()
    other = campus.account()
    campus.map_to(victim.username, other.name)
    ends(campus, victim, task, IdentityRemapped)
    assert victim.waiting.result(SOON_S) == other.uid  # type: ignore[attr-defined]


def test_an_identity_that_is_unlinked(campus: Place, victim: Person) -> None:
    second = f"{unique_name()}@lab.example.org"
    token = campus.relay.add_user(second)
    campus.relay.cli("user", "link", second, victim.username)
    both = Person(campus, second, victim.account, Executor(campus.endpoint_id, client=Client(campus.relay.url, token)))
    task = both.begin()
    campus.relay.cli("user", "unlink", victim.username)
    ends(campus, both, task, IdentityNotMapped)
    both.close()
    # The removed identity is a separate person, and still maps.
    account = campus.running
    assert victim.executor.submit(os.getuid).result(SOON_S) > 0
    assert victim.account in account()


def test_a_person_whom_the_relay_does_not_know_any_more(campus: Place, victim: Person) -> None:
    victim.begin()
    campus.relay.cli("user", "remove", victim.username)
    until("the end of the processes", lambda: not processes(victim.account))
    assert campus.audit("revoke")[-1]["code"] == IdentityNotMapped.code


def test_an_account_that_is_deleted(campus: Place, victim: Person) -> None:
    task = victim.begin()
    uid = campus.running()[victim.account]
    assert uid
    subprocess.run(["userdel", "--force", victim.account], check=True, capture_output=True)
    error = task.exception(SOON_S)
    assert isinstance(error, AccountRefused)
    until("the end of the user endpoint", lambda: victim.account not in campus.running())
    assert "there is no account" in campus.audit("revoke")[-1]["detail"]
    assert isinstance(victim.waiting.exception(SOON_S), AccountRefused)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        (["usermod", "--expiredate", "1"], "expired"),
        (["usermod", "--lock"], "locked"),
        (["usermod", "--lock", "--expiredate", "1"], "expired"),
        (["chage", "--maxdays", "9", "--inactive", "9", "--lastday", "2020-01-01"], "inactive"),
    ],
)
def test_an_account_that_is_locked_or_expired(campus: Place, victim: Person, command: list[str], detail: str) -> None:
    hashed = "$6$saltsalt$" + "x" * 86
    subprocess.run(["usermod", "--password", hashed, victim.account], check=True, capture_output=True)
    task = victim.begin()
    subprocess.run([*command, victim.account], check=True, capture_output=True)
    ends(campus, victim, task, AccountRefused)
    assert detail in campus.audit("revoke")[-1]["detail"]
    assert isinstance(victim.executor.submit(os.getuid).exception(SOON_S), AccountRefused)


def test_an_account_that_is_taken_from_the_group(campus: Place, victim: Person) -> None:
    task = victim.begin()
    subprocess.run(["gpasswd", "--delete", victim.account, campus.group], check=True, capture_output=True)
    ends(campus, victim, task, AccountRefused)
    assert "allowed_groups" in campus.audit("revoke")[-1]["detail"]


def test_a_policy_that_a_reload_changes(campus: Place, victim: Person) -> None:
    task = victim.begin()
    campus.settings(policy={"allowed_groups": [campus.group], "denied_users": [victim.account]})
    os.kill(campus.status()["pid"], signal.SIGHUP)
    ends(campus, victim, task, AccountRefused)
    assert "denied_users" in campus.audit("revoke")[-1]["detail"]


def cling() -> None:
    """Be a user who resists: deaf to signals, in other sessions, forking, the user endpoint stopped."""
    import os
    import pathlib
    import signal
    import time

    own, mine = os.getuid(), os.getpid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            while True:  # a chain in which every process lives for an instant
                if os.fork() > 0:
                    os._exit(0)
                time.sleep(0.001)
    if os.fork() == 0 and os.fork() == 0:
        os.setsid()
        time.sleep(3600)
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != mine:
            try:
                if entry.stat().st_uid == own and b"user_endpoint" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGSTOP)
            except OSError:
                continue
    time.sleep(3600)


def stopped(account: str) -> bool:
    """Whether a process of `account` is stopped."""
    for pid in processes(account):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return True
    return False


@pytest.mark.parametrize("kind", [IdentityNotMapped, AccountRefused])
def test_somebody_who_does_not_want_to_go(campus: Place, victim: Person, kind: type[MepError]) -> None:
    task = victim.executor.submit(cling)
    waiting = victim.executor.submit(os.getuid)
    until("a running user endpoint", lambda: victim.account in campus.running())
    until("stopped processes", lambda: stopped(victim.account))
    if kind is AccountRefused:
        subprocess.run(["usermod", "--expiredate", "1", victim.account], check=True, capture_output=True)
    else:
        del campus.rules[victim.username]
        campus.write_mapping()
    ends(campus, victim, task, kind)
    assert isinstance(waiting.exception(SOON_S), kind)
    assert not processes(victim.account)


def test_a_directory_that_is_away_ends_nothing_and_one_that_forgets_somebody_does(
    campus: Place, victim: Person, tmp_path: Path
) -> None:
    base, ports = f"ou=people,{SUFFIX}", {"port": free_port(), "tls_port": free_port()}
    account = campus.account().name
    member = campus.person(account, mapped=False)
    authority = Authority(campus.mep.directory)
    authority.file.chmod(0o644)
    server = Slapd(tmp_path / "one", tree() + person(account, member.username), authority, **ports)
    server.start()
    campus.documents = [
        {
            "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": [server.ldaps], "ca_file": str(authority.file),
            "base": base, "filter": "(mail={username})", "connect_timeout_s": 1, "operation_timeout_s": 1,
            "on_error": "next",
        }
    ]  # fmt: skip
    campus.renew_mapping()
    try:
        task = member.begin()
        before = len(campus.audit("revoke"))
        server.stop()
        until("a failed check in the log", lambda: "a mapping cannot be checked now" in campus.log())
        time.sleep(3 * INTERVAL_S)
        assert account in campus.running() and not task.done()
        assert len(campus.audit("revoke")) == before
        server = Slapd(tmp_path / "two", tree(), authority, **ports)
        server.start()
        ends(campus, member, task, IdentityNotMapped)
    finally:
        server.stop()
        campus.documents = []
        campus.write_mapping()
        member.close()


def test_a_relay_that_is_away_ends_nothing_but_accounts_are_watched(campus: Place, victim: Person) -> None:
    task = victim.begin()
    campus.relay.kill()
    try:
        subprocess.run(["usermod", "--expiredate", "1", victim.account], check=True, capture_output=True)
        until("the end of the processes", lambda: not processes(victim.account))
    finally:
        campus.relay.start()
    error = task.exception(60)
    assert isinstance(error, AccountRefused), error


def test_status_says_when_it_was_checked(campus: Place, bystander: Person) -> None:
    first = campus.running()[bystander.account]["account_checked_at"]
    assert time.time() - first < 30
    until("a later check", lambda: campus.running()[bystander.account]["account_checked_at"] > first)
    text = campus.mep("status", "site").stdout
    assert f"{bystander.account}" in text and " s ago" in text
