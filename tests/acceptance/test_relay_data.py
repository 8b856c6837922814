"""Pieces of data at a real relay: stored once a person, counted, checked, collected, and shown to nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.ids import uuid7
from mep_wire.limits import DATA_PIECE_BYTES, MAX_PIECES_WANTED
from relay.dispatch import payloads
from relay.dispatch.payloads import Payloads
from relay.store.chunks import ChunkDirectory, new_name
from relay.store.sqlite import SqliteStore
from tests.support.fake_peer import FakeManager, FakeUep
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until

DATA = b"some data of hers" * 1000


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    made = RelayProcess(tmp_path)
    made.state.mkdir(mode=0o700)
    (made.state / "mep-relay.toml").write_text("max_stored_gb = 0.001\nmax_data_mb = 64\n")
    with made as running:
        yield running


def put(person: Person, data: bytes, digest: str = "") -> tuple[int, Any]:
    return person.call("PUT", f"/v3/data/{digest or digest_of(data)}", raw=data)


def got(person: Person, digest: str) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {person.token}"}
    request = urllib.request.Request(f"{person.relay.url}/v3/data/{digest}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def submit(person: Person, lab: FakeManager, function: str, pieces: list[str]) -> str:
    task_id = str(uuid7())
    body = {"tasks": {function: ["frame"]}, "task_ids": {function: [task_id]}, "pieces": {task_id: pieces}}
    person.ok("POST", f"/v3/endpoints/{lab.endpoint_id}/submit", body)
    return task_id


def declared(person: Person, size: int) -> int:
    """Return the answer's status to a piece that says how large it is, and does not come."""
    connection = http.client.HTTPConnection(person.relay.url.removeprefix("http://"), timeout=30)
    connection.putrequest("PUT", f"/v3/data/{digest_of(DATA)}")
    connection.putheader("Authorization", f"Bearer {person.token}")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def stored(relay: RelayProcess) -> list[int]:
    return [path.stat().st_size for path in (relay.state / "data").glob("*/*")]


def ask(uep: FakeUep, *digests: str) -> list[messages.Piece]:
    uep.send(messages.WantPieces(digests=[bytes.fromhex(each) for each in digests]))
    return [uep.expect(messages.Piece) for _ in digests]


def test_a_piece_is_stored_once_and_read_by_its_person_alone(relay: RelayProcess) -> None:
    alice, bob = Person(relay, "alice"), Person(relay, "bob")
    limits = alice.ok("GET", "/v3/data")
    assert limits["max_data_bytes"] == 64 * 1024 * 1024 and limits["piece_bytes"] == DATA_PIECE_BYTES
    digest = digest_of(DATA)
    assert alice.ok("POST", "/v3/data/missing", {"digests": [digest]}) == {"missing": [digest]}
    assert put(alice, DATA) == put(alice, DATA) == (200, {"digest": digest, "size": len(DATA)})
    assert alice.ok("POST", "/v3/data/missing", {"digests": [digest]}) == {"missing": []}
    assert got(alice, digest) == (200, DATA)
    assert stored(relay) == [len(DATA)]

    # Bob knows the digest, and that gives him nothing: not the bytes, and not that they are here.
    assert bob.ok("POST", "/v3/data/missing", {"digests": [digest]}) == {"missing": [digest]}
    assert bob.refused(404, "DATA_NOT_FOUND", "GET", f"/v3/data/{digest}") == (
        alice.refused(404, "DATA_NOT_FOUND", "GET", f"/v3/data/{digest[::-1]}").replace(digest[::-1], digest)
    )
    lab, function = FakeManager(relay, bob.token), bob.function()
    task_id = str(uuid7())
    body = {"tasks": {function: ["frame"]}, "task_ids": {function: [task_id]}, "pieces": {task_id: [digest]}}
    path = f"/v3/endpoints/{lab.endpoint_id}/submit"
    assert "for 24 h" in bob.refused(410, "DATA_EXPIRED", "POST", path, body)
    assert bob.call("GET", f"/v2/tasks/{task_id}")[0] == 404
    assert put(bob, DATA)[0] == 200
    assert stored(relay) == [len(DATA)] * 2


def test_bytes_with_another_digest_and_too_many_are_refused(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    wrong = digest_of(b"other data")
    status, answer = put(alice, DATA, wrong)
    assert (status, answer["code"]) == (422, "DATA_MISMATCH")
    assert put(alice, DATA, "x" * 64)[1]["code"] == "BODY_INVALID"
    assert declared(alice, DATA_PIECE_BYTES + 1) == 413  # before anything of it is read
    assert got(alice, wrong)[0] == 404
    assert not stored(relay)


def test_pieces_count_for_the_quota(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")  # has 1 MB
    assert put(alice, os.urandom(600_000))[0] == 200
    status, answer = put(alice, os.urandom(600_000))
    assert (status, answer["code"]) == (429, "STORAGE_FULL")
    assert stored(relay) == [600_000]


def test_a_result_waits_at_its_site_until_its_person_has_room(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")  # has 1 MB
    assert put(alice, os.urandom(600_000))[0] == 200
    lab, function = FakeManager(relay, alice.token).hello(), alice.function()
    task_id, other = submit(alice, lab, function, []), submit(alice, lab, function, [])
    uep = lab.start()
    uep.credit(2)
    task, running = uep.take(2)
    data = os.urandom(600_000)
    piece = messages.StorePiece(digest=hashlib.sha256(data).digest(), data=data)
    uep.send(piece)
    until("the reason", lambda: alice.task(task_id).get("code") == "STORAGE_FULL")
    told = alice.task(task_id)
    assert told["status"] != "failed"
    assert told["reason"].startswith("A result of yours, perhaps this task's, waits at the site")
    assert "0.6 MB of your 1.0 MB" in told["reason"]

    alice.ok("POST", "/v3/tasks/cancel", {"task_ids": [other]})
    assert alice.task(other)["status"] == "cancelled"  # which may be the one of the result
    assert uep.expect(messages.CancelTasks).rows == [running.row]

    relay.kill()
    (relay.state / "mep-relay.toml").write_text("max_stored_gb = 0.002\nmax_data_mb = 64\n")
    relay.start()
    uep.connect()
    uep.hello([task.row])
    uep.send(piece)
    assert not uep.expect(messages.PieceStored).code
    item = messages.ResultItem(task.row, task.task_id, "", "", b"frame", 1.0, 2.0, pieces=(piece.digest,))
    uep.send(messages.Results(items=[item]))
    uep.expect(messages.ResultsDurable)
    assert alice.task(task_id)["status"] == "success"
    assert got(alice, digest_of(data)) == (200, data)


def test_a_user_endpoint_reads_what_its_own_unfinished_tasks_need(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    function, others = alice.function(), b"for another site" * 100
    mine, elsewhere = digest_of(DATA), digest_of(others)
    for data in (DATA, others):
        put(alice, data)
    here, there = FakeManager(relay, alice.token).hello(), FakeManager(relay, alice.token).hello()
    task_id = submit(alice, here, function, [mine])
    submit(alice, there, function, [elsewhere])
    uep, other = here.start(), there.start()
    assert [piece.data for piece in ask(uep, mine)] == [DATA]
    assert [piece.data for piece in ask(other, elsewhere)] == [others]
    refused = [*ask(uep, elsewhere), *ask(other, mine), *ask(uep, digest_of(b"nothing"))]
    assert [(piece.code, piece.data) for piece in refused] == [("DATA_NOT_FOUND", b"")] * 3
    uep.credit(1)
    uep.finish(uep.take(1))
    assert alice.task(task_id)["status"] == "success"
    assert [piece.code for piece in ask(uep, mine)] == ["DATA_NOT_FOUND"]


def test_a_result_by_reference_is_read_by_its_person(relay: RelayProcess) -> None:
    alice, bob = Person(relay, "alice"), Person(relay, "bob")
    lab = FakeManager(relay, alice.token).hello()
    submit(alice, lab, alice.function(), [])
    uep, digest = lab.start(), digest_of(DATA)
    uep.send(messages.StorePiece(digest=bytes.fromhex(digest), data=DATA[:-1]))
    assert uep.expect(messages.PieceStored).code == "DATA_MISMATCH"
    uep.send(messages.StorePiece(digest=bytes.fromhex(digest), data=DATA))
    assert uep.expect(messages.PieceStored) == messages.PieceStored(digest=bytes.fromhex(digest))
    uep.credit(1)
    (task,) = uep.take(1)
    item = messages.ResultItem(
        task.row, task.task_id, "", "", b"frame", 1.0, 2.0, pieces=(bytes.fromhex(digest), b"\1" * 32)
    )
    uep.send(messages.Results(items=[item]))
    uep.expect(messages.ResultsDurable)
    assert got(alice, digest) == (200, DATA)
    assert got(bob, digest)[0] == 404


def test_a_result_gives_no_piece_that_its_site_does_not_have(
    relay: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was taken over knows the digest of data for another site, say from a log."""
    monkeypatch.setattr(FakeUep, "takes_inputs", True)
    alice = Person(relay, "alice")
    function, secret, given, own = alice.function(), b"for another site" * 100, DATA, b"of the result"
    put(alice, secret)
    put(alice, given)
    here, there = FakeManager(relay, alice.token).hello(), FakeManager(relay, alice.token).hello()
    submit(alice, there, function, [digest_of(secret)])
    first = submit(alice, here, function, [digest_of(given)])
    task_id = str(uuid7())
    ids = {function: [task_id]}
    alice.submit(here.endpoint_id, function, ["p"], task_ids=ids, depends_on={task_id: [first]})
    uep = here.start()
    uep.credit(10)
    (task,) = uep.take(1)
    uep.send(messages.StorePiece(digest=bytes.fromhex(digest_of(own)), data=own))
    assert not uep.expect(messages.PieceStored).code
    named = tuple(bytes.fromhex(digest_of(data)) for data in (secret, given, own))
    item = messages.ResultItem(task.row, task.task_id, "", "", b"frame", 1.0, 2.0, pieces=named)
    uep.send(messages.Results(items=[item]))
    uep.expect(messages.ResultsDurable)
    (after,) = uep.take(1)
    assert after.task_id == task_id
    assert [piece.code for piece in ask(uep, digest_of(secret))] == ["DATA_NOT_FOUND"]
    assert [piece.data for data in (given, own) for piece in ask(uep, digest_of(data))] == [given, own]
    again = tuple(bytes.fromhex(digest_of(data)) for data in (given, own))  # the second task was given them
    item = messages.ResultItem(after.row, after.task_id, "", "", b"frame", 1.0, 2.0, pieces=again)
    uep.send(messages.Results(items=[item]))
    uep.expect(messages.ResultsDurable)
    assert got(alice, digest_of(secret)) == (200, secret)


def test_too_many_pieces_under_way_cut_the_link(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    put(alice, DATA)
    lab = FakeManager(relay, alice.token).hello()
    submit(alice, lab, alice.function(), [digest_of(DATA)])
    uep = lab.start()
    uep.send(messages.WantPieces(digests=[bytes.fromhex(digest_of(DATA))] * (4 * MAX_PIECES_WANTED + 1)))
    refused = uep.receive()
    while not isinstance(refused, messages.Refused):
        refused = uep.receive()
    assert "under way" in refused.text


def test_a_submission_names_pieces_of_its_own_tasks(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    lab, function = FakeManager(relay, alice.token), alice.function()
    path = f"/v3/endpoints/{lab.endpoint_id}/submit"
    body: dict[str, Any] = {"tasks": {function: ["frame"]}, "pieces": {str(uuid.uuid4()): []}}
    assert "of no task" in alice.refused(422, "BODY_INVALID", "POST", path, body)
    task_id = str(uuid7())
    body = {"tasks": {function: ["frame"]}, "task_ids": {function: [task_id]}, "pieces": {task_id: ["short"]}}
    assert "SHA-256" in alice.refused(422, "BODY_INVALID", "POST", path, body)


def test_pieces_survive_a_kill_and_are_in_a_backup(relay: RelayProcess, tmp_path: Path) -> None:
    alice, saved = Person(relay, "alice"), tmp_path / "saved"
    digest = digest_of(DATA)
    put(alice, DATA)
    lab = FakeManager(relay, alice.token)
    submit(alice, lab, alice.function(), [digest])
    relay.kill()
    relay.start()
    assert got(alice, digest) == (200, DATA)
    relay.cli("db", "backup", str(saved))
    relay.kill()
    shutil.rmtree(relay.state / "data")
    relay.cli("db", "restore", str(saved), "--replace")
    relay.start()
    assert got(alice, digest) == (200, DATA)


def test_a_damaged_piece_is_not_given(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    put(alice, DATA)
    (path,) = (relay.state / "data").glob("*/*")
    path.write_bytes(b"x" * len(DATA))
    until("the refusal", lambda: got(alice, digest_of(DATA))[0] == 500)


def test_a_relay_without_a_storage_says_so(tmp_path: Path) -> None:
    made = RelayProcess(tmp_path)
    made.state.mkdir(mode=0o700)
    (made.state / "mep-relay.toml").write_text("max_data_mb = 0\n")
    with made as relay:
        alice = Person(relay, "alice")
        assert alice.ok("GET", "/v3/data")["max_data_bytes"] == 0
        assert put(alice, DATA)[1]["code"] == "DATA_NOT_OFFERED"
        lab, function, task_id = FakeManager(relay, alice.token), alice.function(), str(uuid7())
        body = {"tasks": {function: ["f"]}, "task_ids": {function: [task_id]}, "pieces": {task_id: [digest_of(DATA)]}}
        alice.refused(404, "DATA_NOT_OFFERED", "POST", f"/v3/endpoints/{lab.endpoint_id}/submit", body)


def test_a_piece_goes_with_the_last_task_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "KEEP_S", -1.0)
    store, chunks = SqliteStore(tmp_path / "relay.db"), ChunkDirectory(tmp_path / "chunks")
    digest = hashlib.sha256(DATA).digest()

    def use(row: int, *, in_result: bool) -> None:
        store.submit(lambda tx: tx._db.execute("INSERT INTO chunk_uses VALUES (?, ?, ?)", (name, row, in_result)))  # type: ignore[attr-defined]

    async def scene() -> None:
        keeper = Payloads(store, chunks, 10)
        assert await keeper.keep_piece("alice", digest, DATA, 1.0, None)
        assert not await keeper.keep_piece("alice", digest, DATA, 1.0, None)
        use(7, in_result=True)
        assert await keeper.collect() == 0
        store.submit(lambda tx: tx._db.execute("DELETE FROM chunk_uses")).result(60)  # type: ignore[attr-defined]
        use(8, in_result=False)  # of a task whose arguments were dropped
        assert await keeper.collect() == 1
        assert not list(chunks.names())
        assert store.piece("alice", digest) is None

    name = new_name("alice", digest)
    store.submit(lambda tx: tx.claim_chunk(name, "alice", digest, len(DATA), 1.0)).result(60)
    asyncio.run(scene())
    store.close()
