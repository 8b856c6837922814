"""Data by reference on its way between the relay and this user endpoint's directory: its link is the only authority.

Arguments: a task with a payload of references waits here until all are in the directory, each fetched once for all
tasks. Results: a worker has written the pieces, they are stored at the relay, and then the result is sent. At most
MAX_PIECES_WANTED pieces are on their way in each direction, so this process holds no more of them in memory.

Pieces on their way when the link breaks are asked for or sent again after the next welcome. A relay that cannot serve a
piece just now is asked again. Anything else ends the tasks that need the piece. Called by UserEndpoint alone, and
never blocks longer than a disk does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from mep_wire.data_frames import DataFrameInvalid, digests_of, is_data, placed_in, read_data
from mep_wire.errors import DataUnavailable, MepError, RelayUnavailable, ResultTooLarge, rebuild
from mep_wire.limits import MAX_PIECES_WANTED
from mep_wire.messages import Piece, PieceStored, ResultItem, StorePiece, TaskItem, WantPieces
from user_endpoint.bounded_log import BoundedLog
from user_endpoint.data_cache import DataCache

RETRY_S: Final = 2.0
"""Pause before a relay that cannot serve a piece is asked again."""
_SURE_S: Final = 3600.0
"""How long a stored piece is taken to be at the relay: it keeps one much longer."""


def needs_pieces(task: TaskItem) -> bool:
    """Tell whether a task's arguments, or results that it was sent with, are by reference."""
    return is_data(task.payload) or any(map(is_data, task.inputs))


class _Waiting(msgspec.Struct):
    """A task that waits for pieces of its arguments."""

    task: TaskItem
    missing: set[bytes]


class _Outgoing(msgspec.Struct):
    """A result that waits until its pieces are at the relay."""

    item: ResultItem
    missing: set[bytes]


class DataTransfers:
    """See the module. `send` says whether the message has gone; `ready` takes tasks with all their pieces, `failed`
    tasks that end here, `bring` results that may go to the relay, and `replace` results that cannot."""

    def __init__(
        self,
        cache: DataCache,
        log: BoundedLog,
        *,
        send: Callable[[WantPieces | StorePiece], bool],
        ready: Callable[[TaskItem], None],
        failed: Callable[[TaskItem, MepError], None],
        bring: Callable[[ResultItem], None],
        replace: Callable[[ResultItem, MepError], None],
        is_held: Callable[[int], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._log, self._clock = cache, log, clock
        self._send_message, self._ready, self._failed = send, ready, failed
        self._bring, self._replace, self._is_held = bring, replace, is_held
        self._most_bytes = 0
        self._waiting: dict[int, _Waiting] = {}
        self._outgoing: dict[int, _Outgoing] = {}
        self._needed: dict[int, list[bytes]] = {}
        """Pieces of the arguments of tasks, by row: those of rows that are held must stay."""
        self._wanted: dict[bytes, None] = {}
        self._asked: set[bytes] = set()
        self._to_store: dict[bytes, None] = {}
        self._storing: set[bytes] = set()
        self._stored: dict[bytes, float] = {}
        self._retry_at: float | None = None

    # --- the link -------------------------------------------------------------------------------------

    def welcomed(self, most_bytes: int) -> None:
        """The link is up again; the relay takes results by reference of so many bytes."""
        self._most_bytes = most_bytes
        try:
            self._cache.allow_results(most_bytes)
        except OSError as error:
            self._log.warning("no large results: their directory cannot be used", reason=error.strerror)
        self._wanted = {**dict.fromkeys(self._asked), **self._wanted}
        self._to_store = {**dict.fromkeys(self._storing), **self._to_store}
        self._asked.clear()
        self._storing.clear()
        self._go_on()

    @property
    def retry_at(self) -> float | None:
        """When `tick` is due, by the clock; None if nothing waits for a time."""
        return self._retry_at

    def tick(self) -> None:
        """Ask again for what the relay could not serve."""
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._retry_at = None
            self._go_on()

    def _go_on(self) -> None:
        """Ask for and send as many pieces as may be on their way."""
        if self._retry_at is not None:
            return
        more = [digest for _, digest in zip(range(MAX_PIECES_WANTED - len(self._asked)), self._wanted, strict=False)]
        if more and self._send_message(WantPieces(digests=more)):
            self._asked.update(more)
            for digest in more:
                del self._wanted[digest]
        while self._to_store and len(self._storing) < MAX_PIECES_WANTED:
            if not self._send_next():
                return

    def _send_next(self) -> bool:
        digest = next(iter(self._to_store))
        try:
            data = self._cache.read(digest)
        except OSError as error:
            del self._to_store[digest]
            reason = f"a piece of it cannot be read in the user endpoint's directory: {error.strerror}"
            self._give_up(digest, DataUnavailable(reason=reason))
            return True
        if not self._send_message(StorePiece(digest=digest, data=data)):
            return False
        del self._to_store[digest]
        self._storing.add(digest)
        return True

    # --- arguments ------------------------------------------------------------------------------------

    def admit(self, task: TaskItem) -> None:
        """Take a task that `needs_pieces`. It is `ready` once they are here; it may `fail`."""
        try:
            digests = [digest for payload in (task.payload, *task.inputs) for digest in digests_of(payload)]
            missing = {digest for digest in digests if not self._cache.has(digest)}
        except DataFrameInvalid as error:
            self._failed(task, DataUnavailable(reason=f"what refers to them is damaged: {error}"))
            return
        except OSError as error:
            self._failed(task, _no_disk(error))
            return
        self._needed[task.row] = digests
        if not missing:
            self._ready(self._placed(task))
            return
        self._waiting[task.row] = _Waiting(task, missing)
        for digest in sorted(missing - self._asked, key=digests.index):
            self._wanted[digest] = None
        self._go_on()

    def _placed(self, task: TaskItem) -> TaskItem:
        """Return a task that says where the pieces are of its arguments, and of the results that it was sent with."""
        directory = self._cache.directory
        inputs = [placed_in(directory, each) for each in task.inputs]
        return msgspec.structs.replace(task, payload=placed_in(directory, task.payload), inputs=inputs)

    def came(self, piece: Piece) -> None:
        """The relay has answered for a piece of arguments."""
        if piece.digest not in self._asked:
            return
        self._asked.discard(piece.digest)
        if piece.code == RelayUnavailable.code:
            self._try_later(self._wanted, piece.digest, piece.text)
        elif piece.code:
            self._lost(piece.digest, DataUnavailable(reason=piece.text))
        elif _sha256(piece.data) != piece.digest:
            self._lost(piece.digest, DataUnavailable(reason="the relay sent a piece with another SHA-256"))
        else:
            self._keep(piece)
        self._go_on()

    def _keep(self, piece: Piece) -> None:
        if not any(piece.digest in each.missing for each in self._waiting.values()):
            return  # the tasks that needed it were cancelled
        try:
            self._cache.put(piece.digest, piece.data, self._in_use)
        except OSError as error:
            self._lost(piece.digest, _no_disk(error))
            return
        for waiting in list(self._waiting.values()):
            waiting.missing.discard(piece.digest)
            if not waiting.missing:
                del self._waiting[waiting.task.row]
                self._ready(self._placed(waiting.task))

    def _lost(self, digest: bytes, error: MepError) -> None:
        for waiting in [each for each in self._waiting.values() if digest in each.missing]:
            self.forget([waiting.task.row])
            self._failed(waiting.task, error)

    def forget(self, rows: Iterable[int]) -> list[TaskItem]:
        """Have tasks wait here no longer; return those that did. Pieces that are still needed come all the same."""
        gone = [self._waiting.pop(row).task for row in rows if row in self._waiting]
        if gone:
            needed = {digest for each in self._waiting.values() for digest in each.missing}
            self._wanted = {digest: None for digest in self._wanted if digest in needed}
        return gone

    @property
    def waiting(self) -> list[int]:
        """The rows of the tasks that wait here."""
        return list(self._waiting)

    def _in_use(self) -> set[bytes]:
        """Return the pieces that must stay in the directory."""
        self._needed = {row: each for row, each in self._needed.items() if self._is_held(row)}
        used = {digest for each in self._needed.values() for digest in each}
        return used.union(*(each.item.pieces for each in self._outgoing.values()))

    # --- results --------------------------------------------------------------------------------------

    def finished(self, item: ResultItem) -> ResultItem:
        """Return a result with the pieces that it refers to, if it does. Raises DataUnavailable, ResultTooLarge."""
        if not is_data(item.payload):
            return item
        try:
            frame = read_data(item.payload)
        except DataFrameInvalid as error:
            raise DataUnavailable(reason=f"what refers to it is damaged: {error}") from error
        assert frame is not None
        if frame.size > self._most_bytes:
            raise ResultTooLarge(size=frame.size, limit=self._most_bytes)
        return msgspec.structs.replace(item, pieces=tuple(frame.digests))

    def hand_over(self, item: ResultItem) -> None:
        """Store the pieces of a result at the relay, then `bring` it. At once, where they are there."""
        now = self._clock()
        missing = {each for each in item.pieces if now - self._stored.get(each, float("-inf")) > _SURE_S}
        if not missing:
            self._outgoing.pop(item.row, None)
            self._bring(item)
            return
        self._outgoing[item.row] = _Outgoing(item, missing)
        for digest in item.pieces:
            if digest in missing and digest not in self._storing:
                self._to_store[digest] = None
        self._go_on()

    def stored(self, told: PieceStored) -> None:
        """The relay has answered for a piece of a result."""
        if told.digest not in self._storing:
            return
        self._storing.discard(told.digest)
        if told.code == RelayUnavailable.code:
            self._try_later(self._to_store, told.digest, told.text)
        elif told.code:
            self._give_up(told.digest, rebuild(told.code, told.text))
        else:
            self._stored[told.digest] = self._clock()
            for outgoing in list(self._outgoing.values()):
                outgoing.missing.discard(told.digest)
                if not outgoing.missing:
                    del self._outgoing[outgoing.item.row]
                    self._bring(outgoing.item)
        self._forget_old()
        self._go_on()

    def _give_up(self, digest: bytes, error: MepError) -> None:
        for outgoing in [each for each in self._outgoing.values() if digest in each.missing]:
            del self._outgoing[outgoing.item.row]
            self._replace(outgoing.item, error)

    def _forget_old(self) -> None:
        """Forget stored pieces that are no longer sure to be at the relay."""
        before = self._clock() - _SURE_S
        while self._stored and (oldest := next(iter(self._stored))) and self._stored[oldest] < before:
            del self._stored[oldest]

    def _try_later(self, queue: dict[bytes, None], digest: bytes, text: str) -> None:
        self._log.warning("the relay cannot serve data just now, and is asked again", reason=text)
        queue[digest] = None
        self._retry_at = self._clock() + RETRY_S


def _no_disk(error: OSError) -> DataUnavailable:
    return DataUnavailable(reason=f"the user endpoint's directory at the site does not take them: {error.strerror}")


def _sha256(data: bytes) -> bytes:
    import hashlib  # OpenSSL costs half a megabyte, and few have data by reference

    return hashlib.sha256(data).digest()
