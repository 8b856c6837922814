"""The relay's database as an administrator meets it: backup under load and restore, check, upgrade, PostgreSQL away."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from relay.store.postgres_sql import schema
from relay.store.schema import MIGRATIONS
from tests.support.fake_peer import FakeManager
from tests.support.postgres import Postgres, postgres
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


class Site:
    """A relay on one kind of database, and a place for another of the same kind."""

    def __init__(
        self, directory: Path, server: Postgres | None, stack: contextlib.ExitStack, options: str = ""
    ) -> None:
        self._directory, self._server, self._stack, self._made = directory, server, stack, 0
        self._options = options

    def relay(self) -> RelayProcess:
        """A relay with an empty database."""
        self._made += 1
        directory = self._directory / str(self._made)
        directory.mkdir()
        relay = RelayProcess(directory)
        relay.state.mkdir(mode=0o700)
        if self._server is not None:
            secret = directory / "password"
            secret.write_text(self._server.password)
            secret.chmod(0o600)
            url = self._stack.enter_context(self._server.database(self._options))
            url = url.replace(f":{self._server.password}", "")
            (relay.state / "mep-relay.toml").write_text(f"database = '{url}'\ndatabase_password = '{secret}'\n")
        return relay


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(tmp_path, request.getfixturevalue("server") if request.param == "postgres" else None, stack)


class Load:
    """Somebody who submits, one request after the other."""

    def __init__(self, person: Person, endpoint_id: str) -> None:
        self._person, self._endpoint_id = person, endpoint_id
        self._function = person.function()
        self.accepted: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            answer = self._person.submit(self._endpoint_id, self._function, ["x" * 500] * 20)
            self.accepted += answer["tasks"][self._function]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)


def test_a_backup_made_under_load_is_whole_and_serves(site: Site, tmp_path: Path) -> None:
    relay, saved = site.relay().start(), tmp_path / "saved"
    alice = Person(relay)
    lab = FakeManager(relay, alice.token).hello()
    with Load(alice, lab.endpoint_id) as load:
        until("some load", lambda: len(load.accepted) > 200)
        before = list(load.accepted)
        relay.cli("db", "backup", str(saved))
        until("more load", lambda: len(load.accepted) > len(before) + 200)
    fingerprint = json.loads(relay.cli("key", "--json").stdout)["fingerprint"]
    relay.kill()

    other = site.relay()
    other.cli("db", "restore", str(saved))
    assert json.loads(other.cli("db", "check", "--json").stdout)["wrong"] == []
    with other:
        person = Person(other)  # also shows that generated numbers go on
        alice.relay = other
        states = alice.ok("POST", "/v2/batch_status", {"task_ids": before})
        assert (len(states["results"]), states["missing"]) == (len(before), [])
        assert json.loads(other.cli("key", "--json").stdout)["fingerprint"] == fingerprint
        answer = alice.submit(lab.endpoint_id, alice.function("more"), ["x"])
        assert answer["tasks"]
        person.function()
        refused = other.cli("db", "restore", str(saved), "--replace", check=False)
        assert (refused.returncode, "serves" in refused.stderr) == (1, True)
    refused = other.cli("db", "restore", str(saved), check=False)
    assert (refused.returncode, "--replace gives it up" in refused.stderr) == (1, True)
    other.cli("db", "restore", str(saved), "--replace")
    with other:
        assert other.cli("user", "list").stdout.count("\n") == 1


def test_a_damaged_backup_is_refused_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    relay, saved = site.relay(), tmp_path / "saved"
    token = relay.add_user("alice@example.edu")
    relay.cli("db", "backup", str(saved))
    again = relay.cli("db", "backup", str(saved), check=False)
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    victim = max((path for path in saved.iterdir() if path.name != "backup.json"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    refused = relay.cli("db", "restore", str(saved), "--replace", check=False)
    assert (refused.returncode, "is damaged" in refused.stderr) == (1, True)
    victim.unlink()
    refused = relay.cli("db", "restore", str(saved), "--replace", check=False)
    assert (refused.returncode, "is missing" in refused.stderr) == (1, True)
    with relay:
        assert relay.request("GET", "/v2/endpoints", token)[0] == 200


def test_records_that_do_not_fit_together_are_found(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    relay.add_user("alice@example.edu")
    assert "no damage found" in relay.cli("db", "check").stdout
    with contextlib.closing(sqlite3.connect(relay.state / "relay.db")) as connection:
        connection.execute("INSERT INTO task_groups (group_id, owner, bytes) VALUES ('g', 'a', 7)")
        connection.commit()
    done = relay.cli("db", "check", check=False)
    assert (done.returncode, done.stdout) == (1, "1 task groups with a wrong size\n")


def test_a_database_of_the_first_release_is_upgraded(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    relay.state.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(relay.state / "relay.db")) as connection:
        connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    (relay.state / "relay.db").chmod(0o600)
    assert f"schema version 1 is now {len(MIGRATIONS)}" in relay.cli("db", "upgrade").stdout
    assert "up to date" in relay.cli("db", "upgrade").stdout
    assert _schema(relay.state / "relay.db") == _fresh_schema(tmp_path / "fresh.db")


def _schema(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def _fresh_schema(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("".join(MIGRATIONS))
    return _schema(path)


def test_postgresql_is_upgraded_from_the_first_release_too(server: Postgres, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        site = Site(tmp_path, server, stack)
        relay = site.relay()
        database = (relay.state / "mep-relay.toml").read_text().split("/")[3].partition("'")[0]
        server.do(schema(1), database)
        server.do("CREATE TABLE schema_version (version BIGINT PRIMARY KEY, at TIMESTAMPTZ DEFAULT now())", database)
        server.do("INSERT INTO schema_version VALUES (1)", database)
        assert f"schema version 1 is now {len(MIGRATIONS)}" in relay.cli("db", "upgrade").stdout
        relay.add_user("alice@example.edu")
        assert "no damage found" in relay.cli("db", "check").stdout


def test_a_relay_outlives_its_postgresql_server(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres("fsync = on"))
        relay = Site(tmp_path, server, stack).relay().start()
        stack.callback(relay.stop)
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function()
        ids = alice.submit(lab.endpoint_id, function, ["x"] * 5)["tasks"][function]
        uep = lab.start()
        uep.credit(2)
        held = uep.take(2)
        path, body = f"/v3/endpoints/{lab.endpoint_id}/submit", {"tasks": {function: ["x"]}}
        for stop in (server.stop, lambda: server.stop(9)):
            stop()
            until("a refusal", lambda: alice.call("POST", path, body)[0] == 503)
            until("it to be unready", lambda: relay.request("GET", "/readyz")[0] == 503)
            assert relay.request("GET", "/healthz")[0] == 200
            server.start()
            until("it to be ready", lambda: relay.request("GET", "/readyz")[0] == 200)
            until("reads", lambda: alice.call("GET", f"/v2/tasks/{ids[0]}")[0] == 200)
        uep.finish(held)
        uep.credit(3)
        uep.finish(uep.take(3))
        until("every end", lambda: all(alice.task(one)["status"] == "success" for one in ids))
        log = relay.log.read_text()
        assert ("the database is away" in log, "the database is back" in log) == (True, True)
        assert server.password not in log


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A disk of its own of this size for the length of a `with` block."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; return the file that takes it."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return filler


@pytest.mark.root
@pytest.mark.parametrize("what", ["tables", "everything"])
def test_a_full_postgresql_disk_refuses_new_tasks_and_loses_none(tmp_path: Path, what: str) -> None:
    """Without room for tables the server refuses a change. Without room for its log it ends, as after a crash."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mep-postgres-")))
        place.chmod(0o711)
        disk = stack.enter_context(small_disk(place / "small", "24m" if what == "tables" else "96m"))
        (place / "server").mkdir()
        server = stack.enter_context(Postgres(disk if what == "everything" else place / "server", "fsync = on\n"))
        options = ""
        if what == "tables":
            os.chown(disk, server.data.stat().st_uid, server.data.stat().st_gid)
            server.do(f"CREATE TABLESPACE small LOCATION '{disk}'")
            options = "TABLESPACE small"
        relay = Site(tmp_path, server, stack, options).relay().start()
        stack.callback(relay.stop)
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function()
        accepted = alice.submit(lab.endpoint_id, function, ["x" * 1000] * 5)["tasks"][function]
        filler = fill(disk)
        path, large = f"/v3/endpoints/{lab.endpoint_id}/submit", {"tasks": {function: ["y" * 900_000] * 9}}

        until("a refusal", lambda: alice.call("POST", path, large)[0] == 503, 120)
        assert relay.request("GET", "/healthz")[0] == 200
        filler.unlink()
        if what == "everything":
            server.start()  # as its service manager would
        until("it to be back", lambda: alice.call("POST", path, {"tasks": {function: ["z"]}})[0] == 200, 120)
        uep = lab.start()
        uep.credit(5)
        uep.finish(uep.take(5))
        until("every end", lambda: all(alice.task(one)["status"] == "success" for one in accepted))
        assert relay.cli("db", "check").returncode == 0
