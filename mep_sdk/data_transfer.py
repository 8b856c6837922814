"""Large arguments and results between a script and its relay, in pieces by their SHA-256.

A piece is sent once: what this client has sent is remembered, the relay is asked for the rest, and threads that send
the same piece wait for one another. A transfer that breaks goes on with the pieces that are missing. At most IN_FLIGHT
pieces are on their way at a time, so the memory is bounded however large a value is. The relay keeps a piece for some
hours without a task, and shows it to nobody but the person. Called by Client and by Submitter.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from mep_sdk import data_pickles, encoding
from mep_sdk.data_files import call_values
from mep_sdk.errors import ArgumentsUnserializable, DataCorrupt, RelayAnswerInvalid
from mep_sdk.foreign_code import attempt
from mep_sdk.http import PATIENT_S, SILENT_S, Transport
from mep_sdk.importable import NotSerializable
from mep_wire import api, limits
from mep_wire.data_frames import DataFrameInvalid, Part, encode_data, read_data
from mep_wire.errors import MepError, PayloadTooLarge, RouteNotFound

IN_FLIGHT = 4
"""Pieces of one client on their way at a time."""
_MOST_KNOWN = 100_000
_SURE_S = 900.0
"""How long a piece is taken to be at the relay without asking: it keeps one for an hour after the last task."""
_ASK_AT_ONCE = 4096
_AT_ONCE_S, _ASK_AGAIN_S = 2.0, 60.0
"""How long a submission waits for the relay's limits, and until one asks again."""
_MB = 1e6
_limits_decoder = msgspec.msgpack.Decoder(api.DataLimits)
_pieces_decoder = msgspec.msgpack.Decoder(api.PiecesAnswer)

NO_DATA = api.DataLimits(
    max_payload_bytes=limits.MAX_PAYLOAD_BYTES, max_data_bytes=0, piece_bytes=limits.DATA_PIECE_BYTES, keep_s=0.0
)
"""The limits of a relay of the version before."""


class DataTransfer:
    """The pieces of one client. Thread-safe."""

    def __init__(self, transport: Transport, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport, self._clock = transport, clock
        self._lock = threading.Lock()
        self._limits: api.DataLimits | None = None
        self._ask_again_at = float("-inf")
        self._known: OrderedDict[bytes, float] = OrderedDict()
        """Pieces that are at the relay, with the time at which that was certain."""
        self._sending: dict[bytes, Future[None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(IN_FLIGHT)
        self.sent_bytes = self.received_bytes = 0
        """Of pieces, since this client was made."""

    # --- arguments --------------------------------------------------------------------------------------

    def payload(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        result_ways: Sequence[str] = (),
        progress: Any = None,
    ) -> bytes:
        """Send large arguments to the relay, and return the payload that refers to them.

        Returns once they are there. `progress` shows a bar of megabytes: True for tqdm's, or a class like it. Raises
        PayloadTooLarge, ArgumentsUnserializable, StorageFull, and what Transport.request raises.
        """
        values, told = call_values(args, kwargs), self.limits()
        upload = _Upload(self, progress)
        try:
            if not told.max_data_bytes:
                size = data_pickles.size_of(values, local_by_value=True)
                raise PayloadTooLarge(what=f"The argument list of {name}", size=size, limit=told.max_payload_bytes)
            frame = data_pickles.dump(values, upload.keep, told.max_data_bytes, local_by_value=True)
        except NotSerializable as error:
            raise ArgumentsUnserializable(name=name, reason=str(error)) from error
        except data_pickles.DataOverLimit as error:
            size, limit = _size_of(values, error.size), told.max_data_bytes
            raise PayloadTooLarge(what=f"The argument list of {name}", size=size, limit=limit) from error
        finally:
            upload.end()
        data = encode_data(frame, encoding.OUTPUT_WANTED)
        return encoding.request(list(result_ways), data) if result_ways else data

    def limits(self, *, retry_for_s: float | None = None, silent_s: float = SILENT_S) -> api.DataLimits:
        """Return what the relay takes by reference; it is asked once. Raises what Transport.request raises."""
        if self._limits is None:
            try:
                told = self._transport.request("GET", "/v3/data", retry_for_s=retry_for_s, silent_s=silent_s)
                self._limits = _decoded(_limits_decoder, told, self._transport)
            except RouteNotFound:
                self._limits = NO_DATA
        return self._limits

    def payload_limit(self) -> int:
        """Return how many bytes of arguments the relay takes with a task. One that does not answer at once is taken to
        have the usual limit, and is asked again by a call after a minute."""
        if self._limits is None and self._clock() >= self._ask_again_at:
            try:
                self.limits(retry_for_s=0.0, silent_s=_AT_ONCE_S)
            except MepError:
                self._ask_again_at = self._clock() + _ASK_AGAIN_S
        most = limits.MAX_PAYLOAD_BYTES
        return most if self._limits is None else min(most, self._limits.max_payload_bytes)

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Return those pieces that the relay has not; it keeps the others on. Raises what Transport.request raises."""
        asked, found = list(dict.fromkeys(digests)), set[bytes]()
        for at in range(0, len(asked), _ASK_AT_ONCE):
            body = api.PiecesBody(digests=[digest.hex() for digest in asked[at : at + _ASK_AT_ONCE]])
            answer = self._transport.post("/v3/data/missing", body, silent_s=PATIENT_S)
            found |= {bytes.fromhex(each) for each in _decoded(_pieces_decoder, answer, self._transport).missing}
        with self._lock:
            for digest in found:
                self._known.pop(digest, None)
        return found

    def start(self, digest: bytes, data: memoryview) -> Future[None]:
        """Have a piece sent, unless it is at the relay; return what ends when it is. Waits while IN_FLIGHT others are
        on their way. `data` must stay as it is until then."""
        with self._lock:
            if self._is_known(digest):
                done: Future[None] = Future()
                done.set_result(None)
                return done
            under_way = self._sending.get(digest)
            if under_way is not None:
                return under_way
            sending = self._sending[digest] = Future()
        self._room.acquire()
        try:
            self._pool().submit(self._send, digest, data, sending)
        except BaseException as error:
            self._room.release()
            self._sent(digest, sending, error)
            raise
        return sending

    def _is_known(self, digest: bytes) -> bool:
        """Whether a piece is at the relay for sure; the caller holds the lock."""
        return self._clock() - self._known.get(digest, float("-inf")) < _SURE_S

    def _send(self, digest: bytes, data: memoryview, sending: Future[None]) -> None:
        _, failure = attempt(self._put, digest, data)  # those who wait for it get it
        self._room.release()
        self._sent(digest, sending, failure)

    def _put(self, digest: bytes, data: memoryview) -> None:
        if digest in self.missing([digest]):
            self._transport.request("PUT", f"/v3/data/{digest.hex()}", bytes(data), silent_s=PATIENT_S)
            with self._lock:
                self.sent_bytes += data.nbytes

    def _sent(self, digest: bytes, sending: Future[None], failure: BaseException | None) -> None:
        with self._lock:
            self._sending.pop(digest, None)
            if failure is None:
                self._known[digest] = self._clock()
                self._known.move_to_end(digest)
                while len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
        if failure is None:
            sending.set_result(None)
        else:
            sending.set_exception(failure)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(IN_FLIGHT, "mep-data")
            return self._threads

    # --- results ----------------------------------------------------------------------------------------

    def load_result(self, payload: bytes) -> Any:
        """Return the value of a result by reference, and fetch it. Raises DataCorrupt, DataUnreadable,
        DataNotFound, and what Transport.request raises."""
        try:
            frame = read_data(payload)
        except DataFrameInvalid as error:
            raise DataCorrupt(what="result", reason=str(error)) from error
        if frame is None or frame.loads != 1:
            raise DataCorrupt(what="result", reason="it does not say what it refers to")
        return data_pickles.load(frame, self._parts, "result", "here")[0]

    def _parts(self, parts: Sequence[Part]) -> Iterator[bytes]:
        """Yield the bytes of parts in order, with the next ones on their way."""
        pool, ahead = self._pool(), deque[Future[bytes]]()
        left = iter(parts)
        try:
            while True:
                while len(ahead) < IN_FLIGHT and (part := next(left, None)) is not None:
                    ahead.append(pool.submit(self._fetch, part))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()

    def _fetch(self, part: Part) -> bytes:
        if not part.digest:
            return part.inline
        data = self._transport.request("GET", f"/v3/data/{part.digest.hex()}", silent_s=PATIENT_S)
        if hashlib.sha256(data).digest() != part.digest:
            raise DataCorrupt(what="result", reason="the relay sent a piece that has another SHA-256")
        with self._lock:
            self.received_bytes += len(data)
        return data


class _Upload:
    """The pieces of one argument list on their way."""

    def __init__(self, transfer: DataTransfer, progress: Any) -> None:
        self._transfer = transfer
        self._under_way: deque[tuple[Future[None], int]] = deque()
        self._bar: Any = None
        if progress:
            from mep_sdk.progress import make_bar

            self._bar = make_bar(progress, "MB")

    def keep(self, digest: bytes, data: memoryview) -> None:
        """Send a piece. Raises what the sending of an earlier one raised."""
        self._under_way.append((self._transfer.start(digest, data), data.nbytes))
        while self._under_way and self._under_way[0][0].done():
            self._take(*self._under_way.popleft())

    def end(self) -> None:
        """Wait until every piece is there: their buffers are the caller's. Raises what one of them raised."""
        failure: BaseException | None = None
        for sending, size in self._under_way:
            _, trouble = attempt(self._take, sending, size)  # the others are waited for as well
            failure = failure or trouble
        self._under_way.clear()
        if self._bar is not None:
            self._bar.close()
        if failure is not None:
            raise failure

    def _take(self, sending: Future[None], size: int) -> None:
        sending.result()
        if self._bar is not None:
            self._bar.total = (self._bar.total or 0) + size / _MB
            self._bar.update(size / _MB)


def _size_of(values: Sequence[object], least: int) -> int:
    try:
        return data_pickles.size_of(values, local_by_value=True)
    except NotSerializable:
        return least


def _decoded(decoder: msgspec.msgpack.Decoder[Any], body: bytes, transport: Transport) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RelayAnswerInvalid(url=transport.settings.relay_url, reason=str(error)) from error
