"""Large arguments and results in chunks: brought back whole, stored once a person, counted, collected, and away."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.dispatch import payloads
from relay.dispatch.payloads import Payloads
from relay.store.chunks import ChunkDirectory, Chunks, new_name
from relay.store.s3_chunks import S3Chunks
from relay.store.sqlite import SqliteStore
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.s3 import KEY_ID, REGION, SECRET, Storage, storage
from tests.support.waiting import until

LARGE = "x" * 400_000


class Site:
    """A relay with chunks."""

    def __init__(self, directory: Path, s3: Storage | None, stored_gb: float = 0.001) -> None:
        self.relay = RelayProcess(directory)
        self.relay.state.mkdir(mode=0o700)
        self.directory = directory / "chunks"
        where = f"chunks = '{self.directory}'\n"
        if s3 is not None:
            secret = directory / "secret"
            secret.write_text(SECRET)
            secret.chmod(0o600)
            where = f"chunks = 's3://{s3.bucket}/p'\ns3_endpoint = '{s3.url}'\ns3_key_id = '{KEY_ID}'\n"
            where += f"s3_secret = '{secret}'\n"
        (self.relay.state / "mep-relay.toml").write_text(
            f"{where}chunk_threshold_kb = 100\nmax_stored_gb = {stored_gb}\n"
        )
        self._s3 = s3

    def count(self) -> int:
        """How many chunks there are."""
        if self._s3 is None:
            return len([path for path in self.directory.glob("*/*") if path.is_file()])
        found = self._s3.client.list_objects_v2(Bucket=self._s3.bucket)  # type: ignore[attr-defined]
        return int(found["KeyCount"])

    def storage(self) -> Chunks:
        """The storage itself, as the relay opens it."""
        if self._s3 is None:
            return ChunkDirectory(self.directory)
        return S3Chunks(self._s3.bucket, "p", endpoint=self._s3.url, region=REGION, key_id=KEY_ID, secret=SECRET)

    def names(self) -> list[str]:
        """The names of all chunks."""
        return [name for name, _ in self.storage().names()]


@pytest.fixture(params=["directory", "s3"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "directory":
        yield Site(tmp_path, None)
        return
    with storage() as s3:
        yield Site(tmp_path, s3)


def test_large_payloads_make_the_whole_way_and_are_stored_and_counted_once_a_person(site: Site) -> None:
    with site.relay as relay:
        alice, bob = Person(relay), Person(relay)
        lab = FakeManager(relay, alice.token)
        function = alice.function(public=True)
        answer = alice.submit(lab.endpoint_id, function, [LARGE, LARGE, "small"])
        assert site.count() == 1
        alice.submit(lab.endpoint_id, function, [LARGE], task_group_id=answer["task_group_id"])
        assert site.count() == 1  # 1.2 MB of arguments, 0.4 MB of her megabyte
        path = f"/v3/endpoints/{lab.endpoint_id}/submit"
        alice.refused(429, "STORAGE_FULL", "POST", path, {"tasks": {function: ["y" * 700_000]}})

        stream, result = alice.stream(answer["task_group_id"]), os.urandom(300_000)
        uep = lab.hello().start()
        uep.credit(10)
        tasks = uep.take(4)
        assert sorted(len(task.payload) for task in tasks)[1:] == [len(tasks[0].payload)] * 3
        assert tasks[0].payload.endswith(LARGE.encode())
        uep.finish(tasks, result)
        assert site.count() == 2
        assert [one.payload for one in stream.results(4, 60)] == [result] * 4
        told = alice.task(answer["tasks"][function][0])
        assert len(told["result"]) > len(result)
        bob.submit(lab.endpoint_id, function, [LARGE])
        assert site.count() == 3


def test_a_storage_that_is_away_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with storage() as s3:
        site = Site(tmp_path, s3)
        with site.relay as relay:
            alice = Person(relay)
            lab = FakeManager(relay, alice.token).hello()
            function = alice.function()
            alice.submit(lab.endpoint_id, function, ["small"])
            uep = lab.start()
            uep.credit(2)
            (task,) = uep.take(1)
            s3.stop()
            path = f"/v3/endpoints/{lab.endpoint_id}/submit"
            alice.refused(503, "RELAY_UNAVAILABLE", "POST", path, {"tasks": {function: [LARGE]}})
            answer = alice.submit(lab.endpoint_id, function, ["small"])
            uep.send_results([task], os.urandom(300_000))
            until("a cut link", lambda: "storage of large payloads is away" in relay.log.read_text())
            s3.start()
            uep.connect()
            uep.hello([task.row])
            uep.finish([task], b"r" * 300_000)
            uep.credit(1)
            uep.finish(uep.take(1))
            assert alice.task(answer["tasks"][function][0])["status"] == "success"


def test_a_lost_chunk_fails_its_task_and_no_other(tmp_path: Path) -> None:
    site = Site(tmp_path, None)
    with site.relay as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        function = alice.function()
        ids = alice.submit(lab.endpoint_id, function, [LARGE, "small"])["tasks"][function]
        (path,) = [path for path in site.directory.glob("*/*") if path.is_file()]
        path.write_bytes(b"damaged")
        uep = lab.hello().start()
        uep.credit(5)
        uep.finish(uep.take(1))
        until("both ends", lambda: alice.task(ids[0]).get("code") == "PAYLOAD_LOST")
        assert alice.task(ids[1])["status"] == "success"


def checked(relay: RelayProcess, status: int = 0) -> Any:
    done = relay.cli("db", "check", "--json", check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_check_reads_every_chunk_and_names_what_is_wrong(site: Site) -> None:
    with site.relay as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        alice.submit(lab.endpoint_id, alice.function(), ["x" * 200_000, "y" * 200_000, "z" * 200_000])
        assert checked(relay)["chunks"] == {"checked": 3, "missing": [], "damaged": [], "unreferenced": []}
        site.storage().put("stray/" + "0" * 64 + "." + "0" * 16, b"stray")
        gone, damaged, _ = sorted(name for name in site.names() if not name.startswith("stray"))
        site.storage().delete(gone)
        site.storage().put(damaged, b"other bytes")
        found = checked(relay, 1)
        assert found["wrong"] == [f"chunk {gone} is missing", f"chunk {damaged} is damaged"]
        assert found["chunks"]["unreferenced"] == ["stray/" + "0" * 64 + "." + "0" * 16]
        assert relay.cli("db", "check", "--no-chunks").returncode == 0
        said = relay.cli("db", "check", check=False).stdout
        assert "3 chunks read, 1 that nothing refers to" in said


def test_a_backup_of_a_bucket_says_what_it_lacks(tmp_path: Path) -> None:
    with storage() as s3, Site(tmp_path, s3).relay as relay:
        said = relay.cli("db", "backup", str(tmp_path / "saved")).stderr
    assert f"aws s3 sync --endpoint-url {s3.url} s3://{s3.bucket}/p DIRECTORY" in said


def test_a_backup_with_chunks_made_under_load_is_whole(tmp_path: Path) -> None:
    site, saved = Site(tmp_path, None, stored_gb=10), tmp_path / "saved"
    with site.relay as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        function, end, accepted = alice.function(), threading.Event(), []

        def load() -> None:
            while not end.is_set():
                answer = alice.submit(lab.endpoint_id, function, [os.urandom(2_000).hex() * 30])
                accepted.extend(answer["tasks"][function])

        thread = threading.Thread(target=load)
        thread.start()
        try:
            until("some load", lambda: len(accepted) > 10)
            before = list(accepted)
            relay.cli("db", "backup", str(saved))
            after = len(accepted)
            until("more load", lambda: len(accepted) > after + 5)
        finally:
            end.set()
            thread.join(60)
        relay.kill()
        victim = next(
            path for path in site.directory.glob("*/*") if (saved / "chunks" / path.parent.name / path.name).exists()
        )
        victim.unlink()
        victim.write_bytes(b"damaged since")
        relay.cli("db", "restore", str(saved), "--replace")
        relay.start()
        found = checked(relay)["chunks"]
        assert found["checked"] >= len(before)
        lab.connect()
        uep = lab.hello().start()
        uep.credit(len(before))
        assert all(len(task.payload) > 100_000 for task in uep.take(len(before)))


def test_a_backup_has_the_chunks(tmp_path: Path) -> None:
    site, saved = Site(tmp_path, None), tmp_path / "saved"
    with site.relay as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        function = alice.function()
        alice.submit(lab.endpoint_id, function, [LARGE])
        relay.cli("db", "backup", str(saved))
        relay.kill()
        shutil.rmtree(site.directory)
        relay.cli("db", "restore", str(saved), "--replace")
        relay.start()
        lab.connect()
        uep = lab.hello().start()
        uep.credit(1)
        (task,) = uep.take(1)
        assert task.payload.endswith(LARGE.encode())


def test_chunks_without_a_record_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "KEEP_S", -1.0)
    store, chunks = SqliteStore(tmp_path / "relay.db"), ChunkDirectory(tmp_path / "chunks")
    digest = hashlib.sha256(b"data").digest()
    kept, stray = new_name("alice", digest), new_name("alice", digest)
    store.submit(lambda tx: tx.claim_chunk(kept, "alice", digest, 4, 1.0)).result(60)
    for name in (kept, stray, "alice/half-written"):
        chunks.put(name, b"data")

    async def scene() -> None:
        keeper = Payloads(store, chunks, 10)
        assert await keeper.remove_strays() == 2
        assert [name for name, _ in chunks.names()] == [kept]
        assert await keeper.collect() == 1
        assert not list(chunks.names())

    asyncio.run(scene())
    store.close()
