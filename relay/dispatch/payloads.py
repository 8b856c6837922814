"""Puts large payloads into chunks before they are stored, and fetches them again; collects chunks that nothing needs.

A chunk is claimed in the store, then its bytes are put away, then the task or result that refers to it is stored. The
same bytes of one person are stored once. A claimed chunk is not collected for KEEP_S, so nothing is lost between these
steps; a name that was collected is never used again. Called in the event loop's thread; the bytes move in others.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from mep_wire.errors import PayloadLost, RelayUnavailable
from relay.dispatch.live_state import durable
from relay.log import RateLimitedLog, logger
from relay.store.base import Store, Tx
from relay.store.chunks import NAME, ChunkMissing, Chunks, ChunksUnavailable, digest_in, new_name
from relay.store.records import NewTask, QueuedTask, TaskEnding

T = TypeVar("T")
P = TypeVar("P", NewTask, TaskEnding)

KEEP_S = 3600.0
"""How long after it was last claimed a chunk that nothing refers to is kept."""
PAGE = 200
THREADS = 8


class Payloads:
    """See the module. Without `chunks` every payload stays in the store."""

    def __init__(self, store: Store, chunks: Chunks | None = None, threshold: int = 0) -> None:
        self._store, self._chunks, self._threshold = store, chunks, threshold
        self._threads = ThreadPoolExecutor(THREADS, "chunks") if chunks is not None else None
        self._limited_log = RateLimitedLog()

    def has_large(self, parts: Sequence[NewTask] | Sequence[TaskEnding]) -> bool:
        """Whether `put_away` has to wait for anything."""
        return self._chunks is not None and any(len(part.payload) > self._threshold for part in parts)

    async def put_away(self, owner: str, parts: Sequence[P]) -> list[P]:
        """Return tasks or ends of one person with their large payloads in chunks. Raises RelayUnavailable."""
        large = [part for part in parts if len(part.payload) > self._threshold]
        kept = dict(zip(map(id, large), await asyncio.gather(*(self._keep(owner, one) for one in large)), strict=True))
        return [kept.get(id(part), part) for part in parts]

    @property
    def takes_pieces(self) -> bool:
        """Whether there is a storage for data by reference."""
        return self._chunks is not None

    async def digest_of(self, data: bytes) -> bytes:
        """Return the SHA-256 of some bytes."""
        return await self._run(lambda: hashlib.sha256(data).digest())

    async def keep_piece(self, owner: str, digest: bytes, data: bytes, until: float, uep_row: int | None) -> bool:
        """Store a piece of data by reference, whose SHA-256 was checked; nothing collects it before `until`. Return
        whether it is new. `uep_row`: the user endpoint that has sent it, None for the person. Raises
        RelayUnavailable."""
        wanted = new_name(owner, digest)

        def claim(tx: Tx) -> tuple[str, bool]:
            name, stored = tx.claim_chunk(wanted, owner, digest, len(data), until)
            if uep_row is not None:
                tx.piece_came(uep_row, name)
            return name, stored

        name, stored = await durable(self._store.submit(claim))
        if not stored:
            await self._run(lambda: self._storage.put(name, data))
            await durable(self._store.submit(lambda tx: tx.chunk_stored(name)))
        return not stored

    async def _keep(self, owner: str, part: P) -> P:
        data = part.payload
        digest = await self.digest_of(data)
        claim = partial(_claim, new_name(owner, digest), owner, digest, len(data))
        name, stored = await durable(self._store.submit(claim))
        if not stored:
            await self._run(lambda: self._storage.put(name, data))
        return replace(part, payload=b"", chunk=name, chunk_size=len(data))

    async def fetch(self, name: str) -> bytes:
        """Return a chunk's bytes. Raises PayloadLost, RelayUnavailable."""
        if self._chunks is None:
            raise RelayUnavailable(reason="the storage of large payloads is not set up", detail=name)
        try:
            data, sound = await self._run(partial(self._checked, name))
        except ChunkMissing as error:
            self._limited_log.error("chunk is missing", chunk=name)
            raise PayloadLost from error
        if not sound:
            self._limited_log.error("chunk is damaged", chunk=name)
            raise PayloadLost
        return data

    def _checked(self, name: str) -> tuple[bytes, bool]:
        """Return a chunk's bytes, and whether they have the SHA-256 of its name. In a thread: megabytes take a while.
        Raises ChunkMissing, ChunksUnavailable."""
        data = self._storage.get(name)
        return data, hashlib.sha256(data).digest() == digest_in(name)

    async def filled(self, tasks: Sequence[QueuedTask]) -> tuple[list[QueuedTask], list[int]]:
        """Return tasks with their payloads, and the rows of those with a lost one. Raises RelayUnavailable."""
        whole: list[QueuedTask] = []
        lost: list[int] = []
        for task in tasks:
            try:
                data = await self.fetch(task.chunk) if task.chunk else task.payload
                whole.append(replace(task, payload=data) if task.chunk else task)
            except PayloadLost:
                lost.append(task.row)
        return whole, lost

    @property
    def _storage(self) -> Chunks:
        assert self._chunks is not None
        return self._chunks

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except ChunksUnavailable as error:
            raise RelayUnavailable(reason="its storage of large payloads is away", detail=str(error)) from error

    async def collect(self) -> int:
        """Remove the chunks that nothing refers to; return how many. Raises RelayUnavailable."""
        if self._chunks is None:
            return 0
        removed = 0
        before = time.time() - KEEP_S
        while True:
            found = await durable(self._store.submit(lambda tx: tx.collect_chunks(before, PAGE)))
            for name in found.names:
                await self._run(partial(self._storage.delete, name))
            removed += len(found.names)
            if not found.more:
                return removed

    async def remove_strays(self) -> int:
        """Remove what a killed relay left in the storage without a record; return how many. Raises RelayUnavailable."""
        if self._chunks is None:
            return 0
        before = time.time() - KEEP_S
        old = await self._run(lambda: [name for name, at in self._storage.names() if at < before])
        strays = [name for name in old if not NAME.fullmatch(name) or not self._store.has_chunk(name)]
        for name in strays:
            await self._run(partial(self._storage.delete, name))
        if strays:
            logger.info("chunks of no record were removed", chunks=len(strays))
        return len(strays)


def _claim(name: str, owner: str, digest: bytes, size: int, tx: Tx) -> tuple[str, bool]:
    return tx.claim_chunk(name, owner, digest, size, time.time())
