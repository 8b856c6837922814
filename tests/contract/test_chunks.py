"""The contract of a storage of chunks, on a directory and on S3, and of the records of chunks in the store."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire.states import TaskState
from relay.store.chunks import NAME, ChunkDirectory, ChunkMissing, Chunks, ChunksUnavailable, new_name
from relay.store.maintenance import Database, SqliteDatabase
from relay.store.postgres import PostgresStore
from relay.store.postgres_maintenance import PostgresDatabase
from relay.store.records import CHUNK_ROW_BYTES as ROW
from relay.store.records import PIECE_USE_BYTES as USE
from relay.store.records import FunctionRef, NewTask, TaskEnding
from relay.store.s3_chunks import S3Chunks
from relay.store.sqlite import SqliteStore
from tests.support.postgres import postgres
from tests.support.s3 import KEY_ID, REGION, SECRET, Storage, storage


@pytest.fixture(scope="module")
def s3() -> Iterator[Storage]:
    with storage() as made:
        yield made


def bucket(s3: Storage, name: str = "relay", secret: str = SECRET) -> S3Chunks:
    return S3Chunks(name, "a/b", endpoint=s3.url, region=REGION, key_id=KEY_ID, secret=secret)


@pytest.fixture(params=["directory", "s3"])
def chunks(request: pytest.FixtureRequest, tmp_path: Path) -> Chunks:
    if request.param == "directory":
        return ChunkDirectory(tmp_path / "chunks")
    return bucket(request.getfixturevalue("s3"))


def name_of(data: bytes, owner: str = "alice") -> str:
    return new_name(owner, hashlib.sha256(data).digest())


def test_a_chunk_comes_back_and_goes(chunks: Chunks) -> None:
    data = os.urandom(3_000_000)
    name = name_of(data)
    assert NAME.fullmatch(name)
    chunks.put(name, data)
    chunks.put(name, data)
    assert chunks.get(name) == data
    assert name in [one for one, _ in chunks.names()]
    chunks.delete(name)
    chunks.delete(name)
    with pytest.raises(ChunkMissing):
        chunks.get(name)
    assert name not in [one for one, _ in chunks.names()]


def test_all_names_are_listed(chunks: Chunks) -> None:
    names = {name_of(b"%d" % number, f"owner{number % 7}") for number in range(30)}
    for name in names:
        chunks.put(name, b"x")
    assert names <= {name for name, _ in chunks.names()}


def test_files_are_their_accounts_alone(tmp_path: Path) -> None:
    ChunkDirectory(tmp_path / "chunks").put(name_of(b"x"), b"x")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "chunks").rglob("*")}
    assert modes == {0o700, 0o600}


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(ChunksUnavailable, match="No space"):
            ChunkDirectory(disk).put(name_of(b"x"), os.urandom(2_000_000))
        assert not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_storage_that_is_away_or_refuses_is_said(s3: Storage) -> None:
    with pytest.raises(ChunksUnavailable):
        bucket(s3, "no-such-bucket").put(name_of(b"x"), b"x")
    with storage() as other:
        gone = bucket(other)
    for call in (lambda: gone.put(name_of(b"x"), b"x"), lambda: gone.get(name_of(b"x")), lambda: list(gone.names())):
        with pytest.raises(ChunksUnavailable):
            call()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_persons_chunk_is_one_record_that_is_collected_once_nothing_needs_it(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        _records(SqliteStore(tmp_path / "relay.db"))
        return
    with postgres() as server, server.database() as url:
        _records(PostgresStore(url))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_chunk_is_kept_for_a_while_after_its_last_reference_has_gone(kind: str, tmp_path: Path) -> None:
    """A backup copies the database first and the chunks after it."""
    if kind == "sqlite":
        _left(SqliteStore(tmp_path / "relay.db"))
        return
    with postgres() as server, server.database() as url:
        _left(PostgresStore(url))


def _left(store: SqliteStore | PostgresStore) -> None:
    def do(change: Callable[[Any], Any]) -> Any:
        return store.submit(change).result(60)

    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(4)]
    names = [do(lambda tx, d=digest: tx.claim_chunk(new_name("a", d), "a", d, 4, 1.0))[0] for digest in digests]
    function = FunctionRef(row=1, function_id="f", owner="a", public=False)
    tasks = [NewTask(task_id=bytes([n]) * 16, function=function, payload=b"", chunk=names[n]) for n in range(2)]
    rows = do(lambda tx: tx.add_tasks("a", "group", 1, tasks, 0, 1.0)).rows
    ends = [
        TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"", chunk=name, stored_at=1.0)
        for row, name in zip(rows, names[2:], strict=True)
    ]
    do(lambda tx: tx.record_endings(1, ends))
    before = time.time() - 60

    assert do(lambda tx: tx.collect_chunks(before, 10)).names == []
    do(lambda tx: tx.drop_inputs(0, 10))
    assert do(lambda tx: tx.collect_chunks(before, 10)).names == []
    more = NewTask(task_id=b"m" * 16, function=function, payload=b"")
    (row,) = do(lambda tx: tx.add_tasks("a", "group", 1, [more], 0, 1.0)).rows
    do(lambda tx: tx.record_endings(1, [TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"", stored_at=1.0)]))
    do(lambda tx: tx.sweep(2.0, 10))  # the newest stays
    assert do(lambda tx: tx.collect_chunks(before, 10)).names == []
    assert sorted(do(lambda tx: tx.collect_chunks(time.time() + 60, 10)).names) == sorted(names)
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_piece_is_kept_for_a_while_after_its_last_task_as_well(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        file = tmp_path / "relay.db"
        _pieces_left(SqliteStore(file), SqliteDatabase(file))
        return
    with postgres() as server, server.database() as url:
        _pieces_left(PostgresStore(url), PostgresDatabase(url, str))


def _pieces_left(store: SqliteStore | PostgresStore, database: Database) -> None:
    def do(change: Callable[[Any], Any]) -> Any:
        return store.submit(change).result(60)

    def uses() -> int:
        return int(do(lambda tx: tx._db.execute("SELECT count(*) FROM chunk_uses").fetchone()[0]))

    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(3)]
    names = [do(lambda tx, d=digest: tx.claim_chunk(new_name("a", d), "a", d, 4, 1.0))[0] for digest in digests]
    for name in names:
        do(lambda tx, name=name: tx.chunk_stored(name))
        do(lambda tx, name=name: tx.piece_came(1, name))
    function = FunctionRef(row=1, function_id="f", owner="a", public=False)
    tasks = [NewTask(task_id=bytes([n]) * 16, function=function, payload=b"", pieces=(names[0],)) for n in range(2)]
    rows = do(lambda tx: tx.add_tasks("a", "group", 1, tasks, 0, 1.0)).rows
    ends = [TaskEnding(row=rows[0], state=TaskState.SUCCESS, payload=b"", digests=(digests[1],), stored_at=1.0)]
    ends.append(TaskEnding(row=rows[1], state=TaskState.SUCCESS, payload=b"", stored_at=1.0))
    do(lambda tx: tx.record_endings(1, ends))
    before = time.time() - 60

    assert database.referred_chunks() == set(names[:2])
    found = do(lambda tx: tx.collect_chunks(before, 3))
    assert (found.names, found.more) == ([names[2]], True)  # no task has needed it
    assert not do(lambda tx: tx.collect_chunks(before, 1)).more  # the others are not looked at again for a while
    assert uses() == 3
    do(lambda tx: tx.drop_inputs(0, 10))
    assert database.referred_chunks() == {names[1]}
    assert uses() == 1  # a user endpoint that asks for a piece is not to look through all tasks that had it
    assert do(lambda tx: tx.sweep(2.0, 10)).count == 1
    assert database.referred_chunks() == set()
    assert do(lambda tx: tx.collect_chunks(before, 10)).names == []
    assert sorted(do(lambda tx: tx.collect_chunks(time.time() + 60, 10)).names) == sorted(names[:2])
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_fresh_upload_is_kept_for_its_time_whatever_happens_to_it(kind: str, tmp_path: Path) -> None:
    """A submission that names it may be refused, a payload may have the same bytes, and a task with it may end."""
    if kind == "sqlite":
        _fresh_upload(SqliteStore(tmp_path / "relay.db"))
        return
    with postgres() as server, server.database() as url:
        _fresh_upload(PostgresStore(url))


def _fresh_upload(store: SqliteStore | PostgresStore) -> None:
    def do(change: Callable[[Any], Any]) -> Any:
        return store.submit(change).result(60)

    def is_kept() -> bool:
        return do(lambda tx: tx.collect_chunks(until - 1, 10)).names == [] and store.has_chunk(name)

    now = time.time()
    until, digest = now + 86400.0, hashlib.sha256(b"data").digest()
    name = new_name("a", digest)
    do(lambda tx: tx.claim_chunk(name, "a", digest, 4, until))
    do(lambda tx: tx.chunk_stored(name))
    assert do(lambda tx: tx.keep_pieces("a", [digest], now)) == {digest: name}
    assert is_kept()
    assert do(lambda tx: tx.claim_chunk(new_name("a", digest), "a", digest, 4, now)) == (name, True)
    assert is_kept()
    function = FunctionRef(row=1, function_id="f", owner="a", public=False)
    tasks = [
        NewTask(task_id=b"1" * 16, function=function, payload=b"", chunk=name),
        NewTask(task_id=b"2" * 16, function=function, payload=b"", pieces=(name,)),
    ]
    rows = do(lambda tx: tx.add_tasks("a", "group", 1, tasks, 0, 1.0)).rows
    do(lambda tx: tx.record_endings(1, [TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"") for row in rows]))
    do(lambda tx: tx.drop_inputs(0, 10))
    assert is_kept()
    assert do(lambda tx: tx.collect_chunks(until + 1, 10)).names == [name]
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_each_use_of_a_piece_counts_until_it_is_over(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        file = tmp_path / "relay.db"
        _uses_count(SqliteStore(file), SqliteDatabase(file))
        return
    with postgres() as server, server.database() as url:
        _uses_count(PostgresStore(url), PostgresDatabase(url, str))


def _uses_count(store: SqliteStore | PostgresStore, database: Database) -> None:
    def do(change: Callable[[Any], Any]) -> Any:
        return store.submit(change).result(60)

    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(3)]
    names = tuple(do(lambda tx, d=digest: tx.claim_chunk(new_name("a", d), "a", d, 1, 1.0))[0] for digest in digests)
    for name in names:
        do(lambda tx, name=name: tx.chunk_stored(name))
        do(lambda tx, name=name: tx.piece_came(1, name))
    chunks = 3 * (1 + ROW)
    assert store.stored_bytes("a") == chunks
    function = FunctionRef(row=1, function_id="f", owner="a", public=False)
    tasks = [NewTask(task_id=bytes([n]) * 16, function=function, payload=b"pp", pieces=names) for n in range(3)]
    rows = do(lambda tx: tx.add_tasks("a", "group", 1, tasks, 0, 1.0)).rows
    assert store.stored_bytes("a") == chunks + 3 * (2 + 3 * USE)
    ends = [
        TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"r", digests=tuple(digests[:2]), stored_at=1.0)
        for row in rows
    ]
    do(lambda tx: tx.record_endings(1, ends))
    assert store.stored_bytes("a") == chunks + 3 * (2 + 3 * USE) + 3 * (1 + 2 * USE)
    assert not [found for found in database.check() if "wrong size" in found]
    do(lambda tx: tx.drop_inputs(0, 2))
    assert store.stored_bytes("a") == chunks + (2 + 3 * USE) + 3 * (1 + 2 * USE)
    assert do(lambda tx: tx.sweep(2.0, 10)).count == 2
    assert {owner: size for owner, size, _ in store.storage()} == {"a": chunks + (2 + 3 * USE) + (1 + 2 * USE)}
    do(lambda tx: tx.drop_inputs(0, 10))
    assert store.stored_bytes("a") == chunks + 1 + 2 * USE
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_result_keeps_what_its_user_endpoint_has_sent_or_its_task_was_given(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        _sources(SqliteStore(tmp_path / "relay.db"))
        return
    with postgres() as server, server.database() as url:
        _sources(PostgresStore(url))


def _sources(store: SqliteStore | PostgresStore) -> None:
    def do(change: Callable[[Any], Any]) -> Any:
        return store.submit(change).result(60)

    def kept_by(row: int) -> list[str]:
        found = do(
            lambda tx: tx._db.execute("SELECT chunk FROM chunk_uses WHERE row = ? AND in_result = 1", (row,)).fetchall()
        )
        return sorted(name for (name,) in found)

    digests = {who: hashlib.sha256(who.encode()).digest() for who in ("sent", "given", "other", "foreign")}
    names = {who: new_name("a", digest) for who, digest in digests.items()}
    for who, name in names.items():
        do(lambda tx, name=name, who=who: tx.claim_chunk(name, "a", digests[who], 1, 1.0))
        do(lambda tx, name=name: tx.chunk_stored(name))
    do(lambda tx: tx.piece_came(1, names["sent"]))
    do(lambda tx: tx.piece_came(1, names["sent"]))
    do(lambda tx: tx.piece_came(2, names["other"]))
    function = FunctionRef(row=1, function_id="f", owner="a", public=False)
    tasks = [
        NewTask(task_id=b"1" * 16, function=function, payload=b"", pieces=(names["given"],)),
        NewTask(task_id=b"2" * 16, function=function, payload=b""),
    ]
    first, second = do(lambda tx: tx.add_tasks("a", "group", 1, tasks, 0, 1.0)).rows
    do(lambda tx: tx.hold([second], [first]))
    for row in (first, second):
        ending = TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"", digests=tuple(digests.values()))
        do(lambda tx, ending=ending: tx.record_endings(1, [ending]))
    assert kept_by(first) == kept_by(second) == sorted([names["sent"], names["given"]])
    do(lambda tx: tx._db.execute("DELETE FROM chunk_uses"))
    do(lambda tx: tx.collect_chunks(2.0, 10))
    assert do(lambda tx: tx._db.execute("SELECT count(*) FROM piece_sources").fetchone())[0] == 0
    store.close()


def _records(store: SqliteStore | PostgresStore) -> None:
    digest = hashlib.sha256(b"data").digest()
    first, again, other = new_name("alice", digest), new_name("alice", digest), new_name("bob", digest)

    def claim(name: str, owner: str, now: float) -> tuple[str, bool]:
        return store.submit(lambda tx: tx.claim_chunk(name, owner, digest, 4, now)).result(60)

    assert claim(first, "alice", 1.0) == (first, False)
    assert claim(again, "alice", 2.0) == (first, False)
    assert claim(other, "bob", 3.0) == (other, False)
    assert (store.stored_bytes("alice"), store.has_chunk(first), store.has_chunk(again)) == (4 + ROW, True, False)
    assert store.submit(lambda tx: tx.collect_chunks(2.0, 10)).result(60).names == []
    assert store.submit(lambda tx: tx.collect_chunks(2.5, 10)).result(60).names == [first]
    assert (store.stored_bytes("alice"), store.has_chunk(first), store.has_chunk(other)) == (0, False, True)
    store.close()
