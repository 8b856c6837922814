"""Pieces of data for user endpoints: a link that is not read holds up no other."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mep_wire import codec, messages
from mep_wire.errors import BodyInvalid, LinkMessageInvalid, RelayUnavailable, StorageFull
from mep_wire.limits import MAX_PIECES, MAX_PIECES_WANTED
from relay.api import data
from relay.dispatch import data_pieces, payloads
from relay.dispatch.data_pieces import DataPieces
from relay.dispatch.live_state import Uep
from relay.dispatch.payloads import Payloads
from relay.link.base import Peer
from relay.store.chunks import ChunkDirectory, new_name


class Site:
    """A relay with links that are read or not, and pieces that are read from a storage."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.unread: set[bytes] = set()
        self.sent: list[tuple[bytes, messages.ToUep]] = []
        self.reading = self.most_reading = 0
        self.room = True
        live = SimpleNamespace(store=self, link_=self, run=self.run, tell=lambda *_: None)
        payloads = SimpleNamespace(
            takes_pieces=True, fetch=self.fetch, digest_of=self.digest_of, keep_piece=self.keep_piece
        )
        self.pieces = DataPieces(cast("Any", live), cast("Any", payloads), cast("Any", self), 1 << 30)

    def check(self, owner: str, more: int) -> None:
        if not self.room:
            raise StorageFull(size="1.0", limit="2.0")

    def has_room(self, owner: str, more: int) -> bool:
        return self.room

    def added(self, owner: str, more: int) -> None:
        """It is not counted here."""

    def piece(self, owner: str, digest: bytes) -> None:
        """None is here yet."""

    async def digest_of(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest() if data != b"data" else b"d" * 32

    async def keep_piece(self, *_: object) -> bool:
        return True

    @property
    def stored(self) -> list[tuple[bytes, messages.PieceStored]]:
        return [(key, told) for key, told in self.sent if isinstance(told, messages.PieceStored)]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def piece_of_uep(self, owner: str, digest: bytes, uep_row: int) -> str:
        return f"{owner}/{digest.hex()}"

    async def fetch(self, name: str) -> bytes:
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        await asyncio.sleep(0)
        self.reading -= 1
        return name.encode()

    def writable(self, peer: Peer) -> bool:
        return peer.key not in self.unread

    def send(self, peer: Peer, frame: bytes) -> bool:
        self.sent.append((peer.key, codec.decode_to_uep(frame)))
        return True

    def uep(self, number: int) -> Uep:
        peer = Peer(key=bytes([number]) * 32, address=b"", last_seen=0.0)
        record = SimpleNamespace(account_id="a", uep_id="u")
        return cast("Uep", SimpleNamespace(peer=peer, row=number, record=record, no_room=None))

    def want(self, uep: Uep, count: int) -> None:
        self.pieces.send(uep, messages.WantPieces(digests=[bytes([each]) * 32 for each in range(count)]))

    async def end(self) -> None:
        """Have all links be read, until nothing is under way."""
        self.unread.clear()
        await asyncio.gather(*self.tasks)


def test_links_that_are_not_read_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_pieces, "_SLOW_PEER_S", 0.0)

    async def scene() -> None:
        site = Site()
        slow = [site.uep(number) for number in range(1, 9)]
        for each in slow:
            site.unread.add(each.peer.key if each.peer else b"")
            site.want(each, MAX_PIECES_WANTED)
        await asyncio.sleep(0)
        quick = site.uep(100)
        site.want(quick, MAX_PIECES_WANTED)
        async with asyncio.timeout(60):
            await asyncio.gather(*site.tasks[-MAX_PIECES_WANTED:])
        assert [key[0] for key, _ in site.sent] == [100] * MAX_PIECES_WANTED
        await site.end()
        assert len(site.sent) == (len(slow) + 1) * MAX_PIECES_WANTED

    asyncio.run(scene())


def test_the_event_loop_reads_and_checks_no_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tasks would wait for megabytes."""
    large, threads = b"large", list[threading.Thread]()
    chunks, name = ChunkDirectory(tmp_path), new_name("alice", hashlib.sha256(large).digest())
    chunks.put(name, large)

    def noting(data: bytes) -> Any:
        threads.append(threading.current_thread())
        return hashlib.sha256(data)

    monkeypatch.setattr(payloads, "hashlib", SimpleNamespace(sha256=noting))
    assert asyncio.run(Payloads(cast("Any", None), chunks).fetch(name)) == large
    assert threads
    assert threading.main_thread() not in threads


def test_one_piece_of_a_link_is_in_memory_at_a_time() -> None:
    async def scene() -> None:
        site = Site()
        site.want(site.uep(1), 2 * MAX_PIECES_WANTED)
        await site.end()
        assert (len(site.sent), site.most_reading) == (2 * MAX_PIECES_WANTED, 1)

    asyncio.run(scene())


def test_a_link_that_comes_back_may_ask_and_bring_again_while_the_one_before_is_served() -> None:
    async def scene() -> None:
        site = Site()
        uep = site.uep(1)
        site.want(uep, 2 * MAX_PIECES_WANTED)  # both directions were in use
        uep.peer = Peer(key=uep.peer.key if uep.peer else b"", address=b"again", last_seen=0.0)
        site.want(uep, 2 * MAX_PIECES_WANTED)
        with pytest.raises(LinkMessageInvalid):
            site.want(uep, 1)
        await site.end()
        assert len(site.sent) == 2 * MAX_PIECES_WANTED  # those of the link before are not sent
        site.want(uep, 1)
        await site.end()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ({str(task): ["0" * 64] * MAX_PIECES for task in range(5)}, "fewer tasks"),
        ({task: [f"{task}{each:063x}" for each in range(MAX_PIECES // 2 + 1)] for task in "12"}, "different"),
    ],
)
def test_a_submission_names_so_many_pieces(pieces: dict[str, list[str]], said: str) -> None:
    """All of a body would be a million: the store takes nothing else meanwhile."""

    async def names(owner: str, digests: list[bytes]) -> dict[bytes, str]:
        raise AssertionError("the store was asked")

    service = SimpleNamespace(dispatcher=SimpleNamespace(data=SimpleNamespace(names=names)))
    with pytest.raises(BodyInvalid, match=said):
        asyncio.run(data.names(cast("Any", service), "alice", pieces))


def test_a_piece_that_finds_no_room_is_sent_again_once_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes do not wait here: its site keeps the result."""
    monkeypatch.setattr(data_pieces, "LOOK_S", 0.0001)
    data = b"of a result"
    piece = messages.StorePiece(digest=hashlib.sha256(data).digest(), data=data)

    async def scene() -> None:
        site = Site()
        site.room = False
        uep = site.uep(1)
        site.pieces.take(uep, piece)
        async with asyncio.timeout(60):
            while uep.no_room is None:  # noqa: ASYNC110 - it is for the test alone
                await asyncio.sleep(0)
        assert (uep.no_room.code, "1.0 MB of your 2.0 MB" in uep.no_room.text) == ("STORAGE_FULL", True)
        assert not site.sent
        site.room = True
        await asyncio.gather(*site.tasks)
        assert [(told.code, told.digest) for _, told in site.stored] == [("RELAY_UNAVAILABLE", piece.digest)]
        site.pieces.take(uep, piece)
        await asyncio.gather(*site.tasks)
        assert [told.code for _, told in site.stored] == ["RELAY_UNAVAILABLE", ""]
        assert uep.no_room is None

    asyncio.run(scene())


def test_the_bytes_of_a_piece_are_not_held_while_it_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_pieces, "LOOK_S", 0.0001)
    freed: list[bool] = []

    class Bytes(bytes):
        def __del__(self) -> None:
            freed.append(True)

    async def scene() -> None:
        site = Site()
        site.room = False
        uep = site.uep(1)
        site.pieces.take(uep, messages.StorePiece(digest=b"d" * 32, data=Bytes(b"data")))
        async with asyncio.timeout(60):
            while uep.no_room is None:  # noqa: ASYNC110 - it is for the test alone
                await asyncio.sleep(0)
        assert (freed, site.sent) == ([True], [])
        site.room = True
        await asyncio.gather(*site.tasks)

    asyncio.run(scene())


def test_a_piece_that_finds_no_room_is_answered_though_the_store_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user endpoint sends it again after an answer, or on another link."""
    monkeypatch.setattr(data_pieces, "LOOK_S", 0.0001)

    class Away(Site):
        def has_room(self, owner: str, more: int) -> bool:
            raise RelayUnavailable(reason="its database is away")

    async def scene() -> None:
        site = Away()
        site.room = False
        site.pieces.take(site.uep(1), messages.StorePiece(digest=b"d" * 32, data=b"data"))
        await asyncio.gather(*site.tasks, return_exceptions=True)
        assert [told.code for _, told in site.stored] == ["RELAY_UNAVAILABLE"]

    asyncio.run(scene())


def test_a_user_endpoint_is_answered_though_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_pieces, "LOOK_S", 0.0001)
    monkeypatch.setattr(data_pieces, "FULL_S", 0.001)

    async def scene() -> None:
        site = Site()
        site.room = False
        site.pieces.take(site.uep(1), messages.StorePiece(digest=b"d" * 32, data=b"data"))
        await asyncio.gather(*site.tasks)
        assert [told.code for _, told in site.stored] == ["RELAY_UNAVAILABLE"]

    asyncio.run(scene())
