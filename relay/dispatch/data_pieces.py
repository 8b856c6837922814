"""Data by reference: the pieces that people upload for their tasks, and that user endpoints fetch and bring.

A piece belongs to one person, and the same bytes of one person are one chunk (`relay.dispatch.payloads`). To know a
digest gives nothing. A person reads their own pieces alone. A user endpoint, known by the key of its link, reads the
pieces that its own unfinished tasks need: those of their arguments, and of the results that they are sent with. It
reads nothing else of its person's, and can add pieces for results. A result can refer to what its user endpoint has
sent and its task was given: else one could name another site's piece, and read it for a task that waits.
Uploads are kept for KEEP_S without a task, and payloads.KEEP_S after their last one. Called by the API and by the
dispatcher, in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mep_wire import codec, messages
from mep_wire.errors import (
    DataExpired,
    DataMismatch,
    DataNotFound,
    DataNotOffered,
    LinkMessageInvalid,
    MepError,
    PayloadTooLarge,
    RelayUnavailable,
    StorageFull,
)
from mep_wire.limits import DATA_PIECE_BYTES, MAX_PIECES_WANTED
from mep_wire.waits import Wait
from relay.dispatch.live_state import LiveState, Uep, durable
from relay.dispatch.payloads import Payloads
from relay.dispatch.storage_quota import Quota
from relay.link.base import Peer
from relay.log import peer_log
from relay.store.records import CHUNK_ROW_BYTES

KEEP_S = 24 * 3600.0
"""How long an uploaded piece is kept that no task refers to: a client may have to wait for its relay."""
FULL_S = 300.0
"""How long a user endpoint waits for the answer to a piece that its person's quota has no room for."""
LOOK_S = 5.0
WAITS_FOR_ROOM = "A result of yours, perhaps this task's, waits at the site until you have room for it here. {reason}"
_DIGEST_BYTES = 32
_AT_ONCE = 16
"""Pieces that are read for user endpoints at a time. Those of a link that takes nothing just now do not count."""
_SLOW_PEER_S = 0.05
_MOST_UNDER_WAY = 4 * MAX_PIECES_WANTED
"""Of one user endpoint, in both directions: those of the link before may still be under way."""


@dataclass(eq=False, slots=True)
class _UnderWay:
    """The pieces under way of one key."""

    count: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the piece that waits for the link, or is read for it: the others are not in memory yet."""


class DataPieces:
    """See the module. `most_bytes`: the largest arguments or result by reference."""

    def __init__(self, live: LiveState, payloads: Payloads, quota: Quota, most_bytes: int) -> None:
        self._live, self._payloads, self._quota = live, payloads, quota
        self.most_bytes = most_bytes if payloads.takes_pieces else 0
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._under_way: dict[bytes, _UnderWay] = {}

    # --- for people -------------------------------------------------------------------------------

    async def store(self, owner: str, digest: bytes, data: bytes, uep_row: int | None = None) -> None:
        """Store a piece, from the person or (`uep_row`) one of their user endpoints; one that is there already is kept
        on. Raises DataNotOffered, PayloadTooLarge, DataMismatch,
        StorageFull, RelayUnavailable."""
        if not self.most_bytes:
            raise DataNotOffered
        if len(data) > DATA_PIECE_BYTES:
            raise PayloadTooLarge(what="The piece", size=len(data), limit=DATA_PIECE_BYTES)
        if await self._payloads.digest_of(data) != digest:
            raise DataMismatch(digest=digest.hex())
        if self._live.store.piece(owner, digest) is None:
            self._quota.check(owner, len(data) + CHUNK_ROW_BYTES)
        if await self._payloads.keep_piece(owner, digest, data, time.time() + KEEP_S, uep_row):
            self._quota.added(owner, len(data) + CHUNK_ROW_BYTES)

    async def keep(self, owner: str, digests: Sequence[bytes], keep_s: float = KEEP_S) -> dict[bytes, str]:
        """Return the names of the person's pieces among these, which are kept for so long at least. Raises
        RelayUnavailable."""
        until = time.time() + keep_s
        return await durable(self._live.store.submit(lambda tx: tx.keep_pieces(owner, digests, until)))

    async def names(self, owner: str, digests: Sequence[bytes]) -> dict[bytes, str]:
        """Return the names of all these pieces of a submission. Raises DataNotOffered, DataExpired,
        RelayUnavailable."""
        if not self.most_bytes:
            raise DataNotOffered
        found = await self.keep(owner, digests, 0.0)  # from now on the tasks keep them
        if missing := len(digests) - len(found):
            raise DataExpired(count=missing, hours=round(KEEP_S / 3600))
        return found

    async def read(self, owner: str, digest: bytes) -> bytes:
        """Return a piece of the person's. Raises DataNotFound, PayloadLost, RelayUnavailable."""
        name = self._live.store.piece(owner, digest)
        if name is None:
            raise DataNotFound(digest=digest.hex())
        return await self._payloads.fetch(name)

    # --- for user endpoints -----------------------------------------------------------------------

    def send(self, uep: Uep, message: messages.WantPieces) -> None:
        """Send a user endpoint pieces of its tasks' arguments. Raises LinkMessageInvalid."""
        for digest in message.digests:
            self._live.run(self._send(uep, self._begin(uep), digest))

    async def _send(self, uep: Uep, peer: Peer, digest: bytes) -> None:
        try:
            async with self._under_way[peer.key].turn:
                while uep.peer is peer and not self._live.link_.writable(peer):  # noqa: ASYNC110 - as for tasks
                    await asyncio.sleep(_SLOW_PEER_S)
                if uep.peer is peer:
                    await self._read_and_send(uep, peer, digest)
        finally:
            self._end(peer)

    async def _read_and_send(self, uep: Uep, peer: Peer, digest: bytes) -> None:
        """Send a piece to a link that takes it: no other link's pieces wait for this one."""
        async with self._reading:
            piece = await self._piece(uep, digest)
            if uep.peer is peer:
                self._live.link_.send(peer, codec.encode(piece))

    async def _piece(self, uep: Uep, digest: bytes) -> messages.Piece:
        try:
            name = self._live.store.piece_of_uep(uep.record.account_id, digest, uep.row)
            if name is None:
                raise DataNotFound(digest=digest.hex())
            return messages.Piece(digest=digest, data=await self._payloads.fetch(name))
        except MepError as error:
            self._log("a piece of data cannot be sent", uep, error)
            return messages.Piece(digest=digest, code=error.code, text=error.text)

    def take(self, uep: Uep, message: messages.StorePiece) -> None:
        """Store a piece of a result. Raises LinkMessageInvalid."""
        self._live.run(self._take(uep, self._begin(uep), message))

    async def _take(self, uep: Uep, peer: Peer, message: messages.StorePiece) -> None:
        code = text = ""
        digest, size = message.digest, len(message.data)
        try:
            await self.store(uep.record.account_id, digest, message.data, uep.row)
            uep.no_room = None
        except StorageFull as error:
            error.__traceback__ = None
            del message  # with its bytes, which the frames held too: they come again
            code, text = RelayUnavailable.code, error.text
            self._has_no_room(uep, error)
            with suppress(RelayUnavailable):  # the store cannot be read: the piece comes again all the same
                await self._room(uep, peer, size + CHUNK_ROW_BYTES)
        except MepError as error:
            self._log("a piece of a result cannot be stored", uep, error)
            code, text = error.code, error.text
        finally:
            self._end(peer)
        if uep.peer is peer:
            self._live.link_.send(peer, codec.encode(messages.PieceStored(digest=digest, code=code, text=text)))

    def _has_no_room(self, uep: Uep, error: StorageFull) -> None:
        """Say why a result waits at its site, which keeps it: the task has run, and must not fail for its quota."""
        if uep.no_room is None:
            self._log("a result waits for its person's quota", uep, error)
            self._live.tell(uep, "WARNING", f"a result waits there: code={error.code} {error.text}")
        since = time.time() if uep.no_room is None else uep.no_room.since
        uep.no_room = Wait(error.code, WAITS_FOR_ROOM.format(reason=error.text), since)

    async def _room(self, uep: Uep, peer: Peer, size: int) -> None:
        """Wait until there may be room, or for FULL_S: a user endpoint sends a piece again soon after the answer."""
        for _ in range(round(FULL_S / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            if uep.peer is not peer or self._quota.has_room(uep.record.account_id, size):
                return

    def _begin(self, uep: Uep) -> Peer:
        """Count a piece under way. Raises LinkMessageInvalid for too many: they are held in memory."""
        peer = uep.peer
        of_key = self._under_way.get(peer.key) if peer is not None else None
        if peer is None or (of_key is not None and of_key.count >= _MOST_UNDER_WAY):
            raise LinkMessageInvalid(reason="more pieces of data than may be under way")
        self._under_way.setdefault(peer.key, _UnderWay()).count += 1
        return peer

    def _end(self, peer: Peer) -> None:
        of_key = self._under_way[peer.key]
        of_key.count -= 1
        if not of_key.count:
            del self._under_way[peer.key]

    def _log(self, event: str, uep: Uep, error: MepError) -> None:
        peer_log.warning(event, uep=uep.record.uep_id, reason=error, detail=error.detail)


def raw_digest(text: str) -> bytes:
    """Return the bytes of a SHA-256 in hexadecimal digits. Raises ValueError."""
    raw = bytes.fromhex(text)
    if len(raw) != _DIGEST_BYTES or len(text) != 2 * _DIGEST_BYTES:
        raise ValueError("not a SHA-256")
    return raw
