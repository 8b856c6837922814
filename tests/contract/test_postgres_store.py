"""The promises of the PostgreSQL store alone: a server that is away, full, stopped, or silent about a commit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mep_wire.errors import IdConflict, RelayUnavailable
from mep_wire.identity import Identity
from mep_wire.states import TaskState
from relay.store import postgres as module
from relay.store import postgres_sql, statements
from relay.store.base import Tx
from relay.store.postgres import PostgresStore
from relay.store.records import FunctionRecord, FunctionRef, NewTask, TaskEnding
from relay.store.schema import MIGRATIONS, StateTooNew
from tests.contract.test_sqlite_plans import SCANS, named_statements
from tests.support.postgres import Postgres, postgres
from tests.support.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    with server.database() as made:
        yield made


def add(store: PostgresStore, name: str) -> None:
    store.submit(lambda tx: tx.add_account(name, Identity(id=name, username=name))).result(60)


def names(store: PostgresStore) -> list[str]:
    return [person.account_id for person in store.accounts()]


def _statements() -> list[tuple[str, str]]:
    found = []
    for name, value in vars(statements).items():
        if name.isupper() and name[0] != "_" and isinstance(value, str | tuple):
            texts = (value,) if isinstance(value, str) else value
            found += [(f"{name}{number or ''}", text) for number, text in enumerate(texts)]
    return [(name, text) for name, text in found if not name.startswith("PAD_LOG")]


def test_the_server_takes_every_statement(url: str) -> None:
    store = PostgresStore(url)
    refused = []
    with psycopg.connect(url, autocommit=True) as connection:
        for name, text in _statements():
            numbered = text
            for key in (":keep", ":other"):
                numbered = numbered.replace(key, "?")
            numbered = postgres_sql.statement(numbered)
            for number in range(1, numbered.count("%s") + 1):
                numbered = numbered.replace("%s", f"${number}", 1)
            try:
                connection.execute(f"PREPARE x AS {numbered}")
                connection.execute("DEALLOCATE x")
            except psycopg.Error as error:
                refused.append(f"{name}: {error}")
    store.close()
    assert not refused


def test_a_schema_of_a_newer_relay_is_refused(url: str) -> None:
    PostgresStore(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"INSERT INTO schema_version VALUES ({len(MIGRATIONS) + 1})")
    with pytest.raises(StateTooNew, match="version"):
        PostgresStore(url)


def test_a_step_of_the_schema_may_take_longer_than_a_statement(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a step reads every task: a relay with many would be refused its database at each start."""
    monkeypatch.setattr(module, "MIGRATIONS", ("",))
    monkeypatch.setattr(postgres_sql, "MIGRATIONS", ("SELECT pg_sleep(0.3);",))
    opened = module.Connection(lambda: module.connect(url, seconds=0.1))
    opened.open()
    module.migrate(opened)
    assert module.schema_version(opened) == 1
    assert opened.execute("SHOW statement_timeout").fetchone() == ("100ms",)
    opened.close()


def test_one_server_alone_may_serve_a_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, command = PostgresStore(url, for_server=True), PostgresStore(url)
    with monkeypatch.context() as patched, pytest.raises(Exception, match="another mep-relay serves"):
        patched.setattr(module, "SERVE_LOCK_S", 0.0)
        PostgresStore(url, for_server=True)
    add(command, "alice")
    assert names(first) == ["alice"]
    command.close()
    first.close()
    PostgresStore(url, for_server=True).close()


def test_a_server_that_starts_waits_for_the_end_of_the_one_before(url: str) -> None:
    first = PostgresStore(url, for_server=True)
    with ThreadPoolExecutor() as pool, psycopg.connect(url, autocommit=True) as other:
        second = pool.submit(PostgresStore, url, for_server=True)
        asking = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_try_adv%'"
        until("the second asks for the lock", lambda: other.execute(asking).fetchone())
        first.close()
        second.result(60).close()


def test_one_changes_failure_is_not_its_neighbours(url: str) -> None:
    store = PostgresStore(url)
    gate = threading.Event()
    store.submit(lambda tx: gate.wait(60))
    good = store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice")))
    bad = store.submit(lambda tx: tx.add_account("b", Identity(id="i", username="alice")))
    wrong = store.submit(lambda tx: tx._db.execute("SELECT nothing FROM nowhere"))  # type: ignore[attr-defined]
    fine = store.submit(lambda tx: tx.add_account("c", Identity(id="k", username="carol")))
    gate.set()
    good.result(60)
    fine.result(60)
    for future, kind in ((bad, IdConflict), (wrong, RuntimeError)):
        with pytest.raises(kind):
            future.result(60)
    assert names(store) == ["a", "c"]
    store.close()


def test_a_name_with_nul_is_nobodys(url: str) -> None:
    store = PostgresStore(url)
    assert store.account_of("al\0ice") is None
    assert store.endpoint("\0") is None
    store.close()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_server_that_goes_and_comes_back(by: int) -> None:
    with postgres("fsync = on") as server, server.database() as url:
        store = PostgresStore(url, for_server=True)
        add(store, "before")
        server.stop(by)
        accepted = ["before"]  # processes of a killed server go on for a moment
        with pytest.raises(RelayUnavailable):
            for number in range(100_000):
                add(store, f"while{number}")
                accepted.append(f"while{number}")
        until("reads that are refused", lambda: _refused(store.accounts))
        server.start()
        until("the reads, without a change", lambda: set(names(store)) == set(accepted), unready=(RelayUnavailable,))
        add(store, "after")
        assert set(names(store)) == {"after", *accepted}
        store.close()


def _refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except RelayUnavailable:
        return True
    return False


def test_connections_that_the_server_ends_are_made_again(server: Postgres, url: str) -> None:
    store = PostgresStore(url, for_server=True)
    add(store, "before")
    server.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mep-relay'")
    with pytest.raises(RelayUnavailable):
        add(store, "lost")
    until("the reads", lambda: names(store) == ["before"], unready=(RelayUnavailable,))
    add(store, "after")
    store.close()


def test_a_server_that_is_stopped_holds_up_no_read_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_S", 0.2)
    monkeypatch.setattr(module, "WRITE_S", 0.5)
    monkeypatch.setattr(module, "DOUBT_S", 0.2)
    monkeypatch.setattr(module, "CONNECT_S", 2)
    with postgres() as server, server.database() as url:
        store = PostgresStore(url, for_server=True)
        add(store, "before")
        processes = _family(server.pid)
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RelayUnavailable):
                store.accounts()
            with pytest.raises(RelayUnavailable):
                add(store, "while")
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
        until("the reads", lambda: names(store) == ["before"], unready=(RelayUnavailable,))
        store.close()


def _family(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [pid, *map(int, found)]


class LosesAnswers:
    """A proxy before the server: once armed, it passes COMMIT on, swallows the answer and breaks the connection."""

    def __init__(self, port: int) -> None:
        self._target, self.armed, self.lost = port, threading.Event(), threading.Event()
        self.deaf = threading.Event()
        """Set: new connections are closed at once."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.deaf.is_set():
                client.close()
                continue
            upstream = socket.create_connection(("127.0.0.1", self._target))
            drop = threading.Event()
            for source, sink, answers in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=self._pass, args=(source, sink, drop, answers), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, drop: threading.Event, answers: bool) -> None:
        with source, sink:
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        return
                    if not answers and self.armed.is_set() and b"COMMIT" in data:
                        self.armed.clear()
                        drop.set()
                    if answers and drop.is_set():
                        self.lost.set()
                        sink.shutdown(socket.SHUT_RDWR)
                        source.shutdown(socket.SHUT_RDWR)
                        return
                    sink.sendall(data)
                except OSError:
                    return


def test_a_commit_with_a_lost_answer_is_reported_as_made(server: Postgres, url: str) -> None:
    proxy = LosesAnswers(server.port)
    store = PostgresStore(server.url(url.rpartition("/")[2], proxy.port), for_server=True)
    add(store, "before")
    proxy.armed.set()
    add(store, "doubtful")  # no error: its fate was asked for
    assert proxy.lost.is_set()
    until("the reads", lambda: names(store) == ["before", "doubtful"], unready=(RelayUnavailable,))
    store.close()
    proxy.close()


def test_a_commit_that_turns_out_made_after_its_failure_is_told(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DOUBT_S", 0.3)
    proxy = LosesAnswers(server.port)
    store = PostgresStore(server.url(url.rpartition("/")[2], proxy.port), for_server=True)
    late = threading.Event()
    store.commits.late_commit = late.set
    add(store, "before")

    def doubtful(tx: Tx) -> None:
        tx.add_account("doubtful", Identity(id="d", username="d"))
        proxy.deaf.set()
        proxy.armed.set()

    with pytest.raises(RelayUnavailable):
        store.submit(doubtful).result(60)
    proxy.deaf.clear()
    until("the reads", lambda: names(store) == ["before", "doubtful"], unready=(RelayUnavailable,))
    assert late.wait(60)
    store.close()
    proxy.close()


@pytest.mark.root
def test_a_full_disk_refuses_the_change_and_the_store_goes_on(server: Postgres, tmp_path: Path) -> None:
    disk = server.data.parent / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    try:
        os.chown(disk, os.stat(server.data).st_uid, os.stat(server.data).st_gid)
        server.do(f"CREATE TABLESPACE small LOCATION '{disk}'")
        with server.database("TABLESPACE small") as url:
            store = PostgresStore(url, for_server=True)
            filler = disk / "filler"
            with filler.open("wb") as file, pytest.raises(OSError):
                while True:
                    file.write(os.urandom(1 << 20))
            with pytest.raises(RelayUnavailable, match="cannot write") as refused:
                store.submit(lambda tx: tx.put_function(_function("big", os.urandom(3_000_000)))).result(60)
            assert "DiskFull" in str(refused.value.detail)
            assert names(store) == []
            filler.unlink()
            store.submit(lambda tx: tx.put_function(_function("small", b"code"))).result(60)
            assert store.function_code("small") == b"code"
            store.close()
        server.do("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _function(name: str, code: bytes) -> FunctionRecord:
    values: dict[str, Any] = {"name": name, "public": False, "description": "", "metadata": {}, "created_at": 1.0}
    return FunctionRecord(function_id=name, owner="a", code=code, **values)


def test_two_that_open_an_empty_database_at_once_make_one_schema(url: str) -> None:
    stores: list[PostgresStore] = []
    threads = [threading.Thread(target=lambda: stores.append(PostgresStore(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stores) == 4
    for store in stores:
        store.close()


def test_a_page_of_large_results_is_bounded_on_the_server(url: str) -> None:
    store = PostgresStore(url)
    for number in range(5):
        store.submit(
            lambda tx, number=number: tx._db.execute(  # type: ignore[misc]
                "INSERT INTO inputs (row, payload, resource_spec, walltime_s) VALUES (?, ?, ?, 0)",
                (number + 1, os.urandom(100_000), b""),
            )
        ).result(60)
    statement = postgres_sql.bounded("SELECT row, payload FROM inputs ORDER BY row LIMIT ?")
    with psycopg.connect(url) as connection:
        found = connection.execute(statement, (10, 150_000)).fetchall()
    assert [row[0] for row in found] == [1, 2]
    store.close()


PLANNED = (
    "QUEUED_TASKS", "QUEUED_ROWS", "QUEUED_ROWS_BY_AGE", "CANCELLING", "NEXT_DEADLINE", "RUNNING_ROWS", "ACTIVE_ROWS",
    "HAS_QUEUED", "HAS_ACTIVE", "COMPLETIONS", "GROUP_TASKS", "QUEUED_DOUBTFUL", "TASK", "NEXT_ROW", "NEXT_SEQ",
)  # fmt: skip
BOUNDED = ("QUEUED_TASKS", "COMPLETIONS")
"""Those that `Connection.leading` asks."""


_FILL = """
    INSERT INTO tasks (row, task_id, group_row, uep_row, function_row, state, submitted_at)
        SELECT n, int8send(n), {group}, {uep}, 1, {state}, n FROM generate_series(1, 60000) n;
    INSERT INTO inputs (row, payload, resource_spec, walltime_s) SELECT row, '', '', 0 FROM tasks;
    INSERT INTO results (seq, row, group_row, stored_at, code, text, payload, correlation_id)
        SELECT row, row, group_row, 0, '', '', '', '' FROM tasks WHERE state = 10;
    INSERT INTO functions (function_id, owner, public, code, body)
        SELECT n::text, 'a', 0, '', '' FROM generate_series(1, 500) n;
    INSERT INTO task_groups (group_id, owner) SELECT n::text, 'a' FROM generate_series(0, 99) n;
    ANALYZE
"""
FILLED: dict[str, dict[str, str]] = {
    "empty": {},
    "many queues": {"group": "n % 50", "uep": "n % 20", "state": "CASE WHEN n % 3 = 0 THEN 0 ELSE 10 END"},
    "one long queue": {"group": "1", "uep": "1", "state": "0"},
}


_FILL_OTHERS = """
    INSERT INTO accounts SELECT n::text, 0 FROM generate_series(1, 5000) n;
    INSERT INTO identities SELECT n::text, n::text, n::text, '' FROM generate_series(1, 5000) n;
    INSERT INTO tokens (token_hash, account_id, identity_id, created_at, token_id, expires_at, grant_id)
        SELECT int8send(n), n::text, n::text, 0, n::text, n % 2, CASE WHEN n % 3 = 0 THEN '' ELSE n::text END
        FROM generate_series(1, 5000) n;
    INSERT INTO documents SELECT (n % 5)::text, n::text, (n % 999)::text, n % 2, '' FROM generate_series(1, 5000) n;
    INSERT INTO endpoints SELECT n::text, (n % 99)::text, n::text, int8send(n), n % 2, ''
        FROM generate_series(1, 5000) n;
    INSERT INTO ueps (uep_id, endpoint_id, account_id, identity_id, config, runtime, link_key, seen_at)
        SELECT n::text, (n % 99)::text, (n % 999)::text, 'i', '', '', CASE WHEN n % 2 = 0 THEN int8send(n) END, n
        FROM generate_series(1, 5000) n;
    INSERT INTO joins SELECT int8send(n), n, n FROM generate_series(1, 5000) n;
    INSERT INTO chunks SELECT n::text, (n % 99)::text, int8send(n), 1, 1, n FROM generate_series(1, 5000) n;
    INSERT INTO chunk_uses SELECT (n % 999)::text, n, n % 2 FROM generate_series(1, 5000) n;
    INSERT INTO piece_sources SELECT n % 999, n::text FROM generate_series(1, 5000) n;
    INSERT INTO dependencies SELECT n / 10, n % 10, n FROM generate_series(1, 5000) n;
    UPDATE tasks SET waits_for = row / 10, held = row % 2 WHERE row < 5000;
    INSERT INTO task_records SELECT n::text, 0, 0, 0 FROM generate_series(1, 50) n;
    INSERT INTO task_events SELECT (n % 50)::text, n, '' FROM generate_series(1, 5000) n;
    INSERT INTO task_groups (group_id, owner) SELECT 'more' || n, n::text FROM generate_series(1, 5000) n;
    ANALYZE
"""


def _fill(connection: psycopg.Connection[Any], **columns: str) -> None:
    for statement in _FILL.split(";"):
        connection.execute(statement.format(**columns).encode())


@pytest.fixture(scope="module", params=FILLED)
def filled(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with no task, or with many, after ANALYZE."""
    with server.database() as url:
        PostgresStore(url).close()
        with psycopg.connect(url, autocommit=True) as connection:
            if FILLED[request.param]:
                _fill(connection, **FILLED[request.param])
        yield url


@pytest.mark.parametrize("name", PLANNED)
def test_a_query_reads_no_table_of_tasks_as_a_whole(filled: str, name: str) -> None:
    text = getattr(statements, name)
    statement = postgres_sql.bounded(text) if name in BOUNDED else postgres_sql.statement(text)
    count = statement.count("%s")
    for number in range(1, count + 1):
        statement = statement.replace("%s", f"${number}", 1)
    values = ", ".join("'\\x01'" if name == "TASK" else "1" for _ in range(count))
    with module.connect(filled, seconds=60, planner=module.PLANNER) as connection:
        connection.execute(f"PREPARE asked AS {statement}".encode())
        found = connection.execute(f"EXPLAIN EXECUTE asked{f'({values})' if count else ''}".encode()).fetchall()
    steps = [row[0] for row in found]
    whole = [f"Seq Scan on {table}" for table in ("tasks", "inputs", "results")]
    costly = [step for step in steps if any(bad in step for bad in (*whole, "Gather", "JIT", "Sort", "Hash", "Merge"))]
    assert not costly, steps


def _nodes(plan: dict[str, Any], parent: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the steps of a plan, each with the type of the one that it is for."""
    yield parent, plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part, plan["Node Type"])


def _reads_all(parent: str, node: dict[str, Any]) -> bool:
    """Whether a step reads a whole table or index, and not the first row of one."""
    kinds = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")
    return node["Node Type"] in kinds and "Index Cond" not in node and parent != "Limit"


def test_no_statement_reads_a_table_for_a_few_rows(filled: str) -> None:
    found: dict[str, Any] = {}
    with module.connect(filled, seconds=60, planner=module.PLANNER) as connection:
        if connection.execute("SELECT count(*) FROM tasks").fetchone() == (0,):
            return  # of an empty table the planner reads all, in whichever way
        for statement in _FILL_OTHERS.split(";"):
            connection.execute(statement.encode())
        tables = ("inputs", "results")
        empty = [each for each in tables if not connection.execute(f"SELECT 1 FROM {each}".encode()).fetchone()]
        for name, text in named_statements():
            numbered = postgres_sql.statement(text.replace(":keep", "?").replace(":other", "?"))
            count = numbered.count("%s")
            for number in range(1, count + 1):
                numbered = numbered.replace("%s", f"${number}", 1)
            values = f"({', '.join(['NULL'] * count)})" if count else ""
            connection.execute(f"PREPARE asked AS {numbered}".encode())
            (told,) = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE asked{values}".encode()).fetchone() or ([],)
            connection.execute("DEALLOCATE asked")
            whole = [node for parent, node in _nodes(told[0]["Plan"]) if _reads_all(parent, node)]
            whole = [node for node in whole if node.get("Relation Name") not in empty]
            if whole and name not in SCANS:
                found[name] = [(node["Node Type"], node.get("Relation Name") or node["Index Name"]) for node in whole]
    assert not found


def test_nothing_is_planned_again_for_each_task_beside_a_long_queue(server: Postgres) -> None:
    with server.database() as url:
        store = PostgresStore(url)
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection, **FILLED["one long queue"])
        store.close()
        store = PostgresStore(url, for_server=True)
        function = FunctionRef(row=1, function_id="f", owner="a", public=False)
        for number in range(20):
            task = NewTask(task_id=bytes([number]) * 16, function=function, payload=b"x")
            (row,) = store.submit(lambda tx, t=task: tx.add_tasks("a", "g", 2, [t], 0, 1.0)).result(60).rows  # type: ignore[misc]
            (taken,) = store.submit(lambda tx: tx.take_queued(2, 1, 1 << 20)).result(60)
            assert taken.row == row
            ending = TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"r")
            store.submit(lambda tx, e=ending: tx.record_endings(2, [e])).result(60)  # type: ignore[misc]
        asked = "SELECT statement FROM pg_prepared_statements WHERE custom_plans > 0 AND parameter_types <> '{}'"
        planned = store.submit(lambda tx: tx._db.execute(asked).fetchall()).result(60)  # type: ignore[attr-defined]
        assert not planned
        # Its type does not depend on the value: a statement is prepared once.
        asked = "SELECT statement, count(*) FROM pg_prepared_statements GROUP BY 1 HAVING count(*) > 1"
        twice = store.submit(lambda tx: tx._db.execute(asked).fetchall()).result(60)  # type: ignore[attr-defined]
        assert not twice
        store.close()
