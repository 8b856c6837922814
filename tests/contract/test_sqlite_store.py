"""The promises of the SQLite store alone: durability across processes, versions, a disk that fails."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest

from mep_wire.errors import IdConflict, RelayUnavailable
from mep_wire.identity import Identity
from relay.store import group_commit
from relay.store.records import FUNCTION_ROW_BYTES, PIECE_USE_BYTES, FunctionRecord
from relay.store.schema import MIGRATIONS, StateTooNew
from relay.store.sqlite import SqliteStore
from relay.store.wal_checkpointer import WAL_BYTES
from tests.support.waiting import until


def test_it_is_all_there_after_opening_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice"))).result()
    store.close()
    again = SqliteStore(tmp_path / "relay.db")
    assert again.account_of("alice") is not None
    again.close()


def test_commits_are_synchronous_and_the_version_is_set(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    assert store._write.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._write.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._write.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    store.close()


def test_a_state_of_a_newer_relay_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "relay.db").close()
    with sqlite3.connect(tmp_path / "relay.db") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StateTooNew, match="version"):
        SqliteStore(tmp_path / "relay.db")


def test_user_endpoints_of_the_first_version_keep_the_account_that_their_id_was_made_of(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "relay.db") as connection:
        connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
        row = (1, "u", "e", "a", "i", b"{}", b"{}", None)
        connection.execute("INSERT INTO ueps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    store = SqliteStore(tmp_path / "relay.db")
    store.submit(lambda tx: tx.merge_accounts("kept", "a")).result()
    uep = store.uep("u")
    assert uep is not None
    assert (uep.account_id, uep.made_of) == ("kept", "a")
    store.close()


def test_uses_of_pieces_that_an_earlier_version_did_not_count_are_counted(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "relay.db") as connection:
        connection.executescript("".join(MIGRATIONS[:13]) + "PRAGMA user_version = 13;")
        connection.execute("INSERT INTO task_groups (group_id, owner, bytes) VALUES ('g', 'a', 10), ('h', 'a', 1)")
        connection.execute(
            "INSERT INTO tasks (row, task_id, group_row, uep_row, function_row, state, submitted_at) "
            "VALUES (1, x'01', 1, 1, 1, 0, 1.0), (2, x'02', 2, 1, 1, 0, 1.0)"
        )
        connection.execute("INSERT INTO chunk_uses VALUES ('c', 1, 0), ('c', 1, 1), ('d', 1, 0)")
    store = SqliteStore(tmp_path / "relay.db")
    assert store.stored_bytes("a") == 10 + 3 * PIECE_USE_BYTES + 1
    store.close()


def test_one_changes_failure_is_not_its_neighbours(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    gate = threading.Event()
    store.submit(lambda tx: gate.wait(10))
    same = Identity(id="i", username="alice")
    good = store.submit(lambda tx: tx.add_account("a", same))
    bad = store.submit(lambda tx: tx.add_account("b", same))
    huge = store.submit(lambda tx: tx.record_started(1, [2**70], 0.0))
    fine = store.submit(lambda tx: tx.add_account("c", Identity(id="k", username="carol")))
    gate.set()
    good.result(timeout=10)
    fine.result(timeout=10)
    with pytest.raises(IdConflict):
        bad.result(timeout=10)
    with pytest.raises(OverflowError):
        huge.result(timeout=10)
    assert [p.identities[0].username for p in store.accounts()] == ["alice", "carol"]
    store.close()


def test_a_change_that_fails_unforeseen_or_is_given_up_stops_no_other(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    gate = threading.Event()
    store.submit(lambda tx: gate.wait(10))
    broken = store.submit(lambda tx: getattr(tx, "no_such_change")())  # noqa: B009 - as a mistake would
    given_up = store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice")))
    fine = store.submit(lambda tx: tx.add_account("c", Identity(id="k", username="carol")))
    given_up.cancel()
    gate.set()
    fine.result(timeout=10)
    with pytest.raises(AttributeError):
        broken.result(timeout=10)
    store.submit(lambda tx: tx.remove_account("c")).result(timeout=10)
    store.close()


def test_a_full_disk_refuses_the_change_and_the_store_goes_on(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    pages = store._write.execute("PRAGMA page_count").fetchone()[0]
    store._write.execute(f"PRAGMA max_page_count = {pages + 1}")
    big = Identity(id="i", username="alice", name="x" * 100_000)
    with pytest.raises(RelayUnavailable, match="cannot write"):
        store.submit(lambda tx: tx.add_account("a", big)).result()
    store._write.execute("PRAGMA max_page_count = 1000000")
    store.submit(lambda tx: tx.add_account("a", big)).result(timeout=10)
    assert store.account_of("alice") is not None
    store.close()


def test_a_second_process_may_change_accounts_meanwhile(tmp_path: Path) -> None:
    server, command = SqliteStore(tmp_path / "relay.db"), SqliteStore(tmp_path / "relay.db")
    command.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice"))).result()
    assert server.account_of("alice") is not None
    server.submit(lambda tx: tx.remove_account("a")).result()
    assert command.account_of("alice") is None
    server.close()
    command.close()


def test_room_that_is_given_up_goes_back_to_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    store = SqliteStore(path, for_server=True)
    try:
        function = FunctionRecord(
            function_id="f", owner="a", name="f", code=b"x" * 4_000_000, public=False, description="", metadata={},
            created_at=1.0,
        )  # fmt: skip
        newest = msgspec.structs.replace(function, function_id="g", code=b"")
        store.submit(lambda tx: tx.put_function(function)).result(20)
        store.submit(lambda tx: tx.put_function(newest)).result(20)
        store.submit(lambda tx: tx.delete_function("f", 2.0)).result(20)
        before = _pages(path)
        assert store.submit(lambda tx: tx.purge_functions(9.0, 10)).result(20) == 1
        store.submit(lambda tx: tx.compact(100)).result(20)
        assert _pages(path) == before - 100
        store.submit(lambda tx: tx.compact(10_000)).result(20)
        assert _pages(path) < before - 900
    finally:
        store.close()


def _pages(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        (count,) = connection.execute("PRAGMA page_count").fetchone()
        return int(count)
    finally:
        connection.close()


def test_a_database_of_before_has_its_bytes_counted(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    connection = sqlite3.connect(path)
    for number, script in enumerate(MIGRATIONS[:2], start=1):
        connection.executescript(f"{script}\nPRAGMA user_version = {number};")
    connection.executescript(
        """
        INSERT INTO task_groups (group_row, group_id, owner) VALUES (7, 'g', 'a');
        INSERT INTO functions (function_id, owner, public, code, body) VALUES ('f', 'a', 0, x'00', x'80');
        INSERT INTO tasks (row, task_id, group_row, uep_row, function_row, state, submitted_at)
            VALUES (1, x'01', 7, 1, 1, 0, 5.0), (2, x'02', 7, 1, 1, 10, 5.0);
        INSERT INTO inputs VALUES (1, zeroblob(30), x'', 0), (2, zeroblob(5), x'', 0);
        INSERT INTO results VALUES (1, 2, 7, 5.0, '', '', zeroblob(100), '');
        """
    )
    connection.close()
    store = SqliteStore(path)
    try:
        assert store.stored_bytes("a") == 135 + 2 + FUNCTION_ROW_BYTES
        (taken,) = store.submit(lambda tx: tx.take_queued(1, 9, 999)).result(20)
        assert (taken.row, taken.attempt, taken.max_attempts, taken.deadline, taken.priority) == (1, 1, 0, 0.0, 0)
        assert store.function_ref("f").used_at > 1e9  # type: ignore[union-attr]
    finally:
        store.close()


def test_a_foreign_lock_holds_up_changes_and_no_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "LOCK_WAIT_S", 60.0)
    store = SqliteStore(tmp_path / "relay.db", for_server=True)
    store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice"))).result(20)
    other = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = store.submit(lambda tx: tx.add_account("b", Identity(id="k", username="bob")))
    assert not waiting.done()  # in one thread, this is reached only if `submit` does not wait
    assert store.account_of("alice") is not None
    until("the lock in the log", lambda: "another process holds the database's lock" in caplog.text)
    assert not waiting.done()
    other.execute("ROLLBACK")
    waiting.result(60)
    assert "changes waited" in caplog.text
    other.close()
    store.close()


def test_a_lock_held_too_long_fails_the_change_and_later_ones_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "LOCK_WAIT_S", 0.0)
    store = SqliteStore(tmp_path / "relay.db")
    other = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RelayUnavailable, match="cannot write"):
        store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice"))).result(60)
    other.execute("ROLLBACK")
    store.submit(lambda tx: tx.add_account("a", Identity(id="i", username="alice"))).result(60)
    other.close()
    store.close()


def test_changes_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING", 3)
    store = SqliteStore(tmp_path / "relay.db")
    gate, begun = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        gate.wait(60)

    held = store.submit(hold)
    assert begun.wait(60)
    waiting = [store.submit(lambda _: None) for _ in range(3)]
    with pytest.raises(RelayUnavailable, match="behind"):
        store.submit(lambda _: None).result(0)
    gate.set()
    for one in (held, *waiting):
        one.result(60)
    store.close()


def test_a_store_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    store._read.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    for read in (store.accounts, lambda: store.token(b"x"), lambda: store.completions(1, 0, 9, 99)):
        with pytest.raises(RelayUnavailable, match="cannot be read"):
            read()
    store._read.set_authorizer(None)
    store.close()


def test_the_log_is_cut_once_a_foreign_reader_has_left(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    store = SqliteStore(path, for_server=True)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM functions").fetchone()
    try:
        for number in range(10):
            function = FunctionRecord(
                function_id=f"f{number}", owner="a", name="f", code=b"x" * 4_000_000, public=False, description="",
                metadata={}, created_at=1.0,
            )  # fmt: skip
            store.submit(lambda tx, function=function: tx.put_function(function)).result(60)  # type: ignore[misc]
        log = path.with_name("relay.db-wal")
        assert log.stat().st_size > WAL_BYTES
        figures = store.checkpoints
        assert figures is not None
        until(
            "an incomplete checkpoint",
            lambda: figures.incomplete and figures.waiting_pages and figures.log_bytes > WAL_BYTES,
        )
        reader.execute("COMMIT")
        until("a cut log", lambda: log.stat().st_size <= WAL_BYTES)  # and nothing more is written
        until("the figures", lambda: (figures.cut, figures.waiting_pages, figures.failed) == (1, 0, 0))
    finally:
        reader.close()
        store.close()


def test_a_log_that_is_too_long_is_cut_by_the_next_commit_of_any_connection(tmp_path: Path) -> None:
    """Also one that has no thread for it: the command line's."""
    store = SqliteStore(tmp_path / "relay.db")
    assert store._write.execute("PRAGMA journal_size_limit").fetchone() == (WAL_BYTES,)
    store.close()


def test_a_log_that_an_earlier_process_left_too_long_is_cut_without_a_change(tmp_path: Path) -> None:
    database = tmp_path / "relay.db"
    SqliteStore(database).close()
    reader, filler = (sqlite3.connect(database, isolation_level=None) for _ in range(2))
    filler.execute("PRAGMA wal_autocheckpoint = 0")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM accounts").fetchone()
    for _ in range(WAL_BYTES // 2**20 + 8):
        filler.execute("INSERT INTO padding VALUES (zeroblob(1 << 20))")
    log = tmp_path / "relay.db-wal"
    assert log.stat().st_size > WAL_BYTES
    store = SqliteStore(database, for_server=True)
    reader.close()
    until("a cut log", lambda: log.stat().st_size <= WAL_BYTES)
    store.close()
    filler.close()
