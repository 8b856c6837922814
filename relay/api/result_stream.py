"""The result stream: WebSocket /v3/stream. Replays a task group's endings after the client's cursor, then pushes.

Everything sent is read from the store, a page at a time, and the next page only once the client has taken
the last: a slow client costs the relay one page. Called by the ASGI application.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from mep_wire.api import StreamBatch, StreamedResult, StreamFrame, StreamOutput, StreamRefused, Subscribe
from mep_wire.errors import BodyInvalid, MepError, PayloadLost, TaskGroupNotFound
from mep_wire.ids import uuid_text
from mep_wire.states import TaskState
from relay.api import http
from relay.api.context import ApiContext
from relay.api.http import check_scope
from relay.log import logger
from relay.store.base import Tx
from relay.store.records import Caller, Completion, GroupRef

SCOPE = "read"
"""What a token must allow."""
PAGE = 1000
PAGE_BYTES = 1024 * 1024
AGAIN_S = 5.0
"""How often the right to an open stream is asked for again."""
SAMPLE = 256
"""Tasks of the group that say, before any has ended, which endpoints it is about."""
NEVER = float("-inf")
FIRST_FRAME_S = 30.0
"""How long a client may take to send its request."""

_subscribe = msgspec.msgpack.Decoder(Subscribe)
_encoder = msgspec.msgpack.Encoder()


async def serve_stream(service: ApiContext, socket: WebSocket) -> None:
    """Serve one WebSocket. Raises what refuses it."""
    token, network = http.header(socket, b"authorization"), http.network(socket)
    caller = await service.people.caller(token, network)
    check_scope(caller, SCOPE)
    service.requests.spend(caller.account_id)
    with service.streams.one(caller.account_id), suppress(WebSocketDisconnect):  # it asks again from its cursor
        await socket.accept()
        try:
            right = Right(service, token, network)
            group, wanted = await _first_frame(right, socket)
            await _push(service, right, group, wanted, socket)
        except MepError as error:
            frame: StreamFrame = StreamRefused(code=error.code, text=error.text)
            await socket.send_bytes(_encoder.encode(frame))
            await socket.close(4000 + error.http_status, error.code)


class Right:
    """What a stream's token may still see. Tokens end, people are removed, groups are left and policies change while a
    stream is open: it is asked for again before each page, and every `AGAIN_S`."""

    def __init__(self, service: ApiContext, token: str, network: str) -> None:
        self._service, self._token, self._network = service, token, network
        self._group_id = ""
        self._checked: dict[str, float] = {}
        """When the right to each endpoint's results was checked."""

    async def to_group(self, group_id: str) -> GroupRef:
        """Return the person's group with this id. Raises TaskGroupNotFound and what `People.caller` raises."""
        caller = await self._caller()
        group = self._service.store.group(group_id.lower())
        if group is None or group.owner != caller.account_id:
            raise TaskGroupNotFound(task_group_id=group_id[:64])
        self._group_id = group.group_id
        if not self._checked:
            for task in self._service.store.group_states(group.row, 0, SAMPLE):
                self._checked[task.endpoint_id] = NEVER
        return group

    async def check(self, uep_rows: set[int]) -> None:
        """Check that the person may still have this group's results, and those of these user endpoints.

        Raises TokenUnknown, ScopeMissing, TaskGroupNotFound and what `Access.check_reads` raises.
        """
        caller, access = await self._caller(), self._service.access
        for row in uep_rows:
            self._checked.setdefault(access.endpoint_of_uep(row), NEVER)
        now = time.monotonic()
        due = [one for one, at in self._checked.items() if now - at >= AGAIN_S]
        if due or not self._checked:
            await self.to_group(self._group_id)
        for endpoint_id in due:
            access.check_reads(endpoint_id, caller)
            self._checked[endpoint_id] = now

    async def _caller(self) -> Caller:
        caller = await self._service.people.caller(self._token, self._network)
        check_scope(caller, SCOPE)
        return caller


async def _first_frame(right: Right, socket: WebSocket) -> tuple[GroupRef, Subscribe]:
    """Return the client's request. Raises BodyInvalid, TaskGroupNotFound or WebSocketDisconnect."""
    try:
        message = await asyncio.wait_for(socket.receive(), FIRST_FRAME_S)
    except TimeoutError as error:
        raise BodyInvalid(reason="nothing was asked for in time") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    try:
        wanted = _subscribe.decode(message.get("bytes") or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BodyInvalid(reason=str(error)) from error
    group = await right.to_group(wanted.task_group_id)
    if not 0 <= wanted.cursor < 2**63:
        raise BodyInvalid(reason="cursor: a number that no batch had")
    return group, wanted


async def _push(service: ApiContext, right: Right, group: GroupRef, wanted: Subscribe, socket: WebSocket) -> None:
    """Send results, and output where it is wanted, until the client disconnects. Raises what `Right.check` raises, soon
    after it does."""
    streams, loop = service.dispatcher.streams, asyncio.get_running_loop()
    live, cursor = service.dispatcher.output, wanted.cursor
    event = streams.join(group.row)
    queue = live.join(group.row, event) if wanted.output else None
    gone = asyncio.create_task(_until_gone(socket))
    gone.add_done_callback(lambda _: event.set())
    try:
        while not gone.done():
            event.clear()
            if queue is not None and (output := queue.take()):  # before the results that may have come after it
                await right.check(queue.uep_rows)
                await socket.send_bytes(_encoder.encode(StreamOutput(output=output)))
            found = service.store.completions(group.row, cursor, PAGE, PAGE_BYTES)
            await right.check({one.uep_row for one in found})
            if not found:
                again = loop.call_later(AGAIN_S, event.set)
                await event.wait()
                again.cancel()
                continue
            cursor = found[-1].seq
            if any(one.chunk for one in found):
                found = [await _filled(service, one) for one in found]
            frame = _encode(found)
            del found  # a slow client holds one copy of its page
            await socket.send_bytes(frame)
            del frame
            if service.notes_delivery:
                service.store.submit(partial(_note_delivered, group.row, cursor))
    finally:
        streams.leave(group.row, event)
        if queue is not None:
            live.leave(group.row, queue)
        gone.cancel()


async def _until_gone(socket: WebSocket) -> None:
    """Return when the client has closed; anything it says on the way is of no interest."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        logger.debug("stream: a frame after the first was ignored")


async def _filled(service: ApiContext, one: Completion) -> Completion:
    """Return an ending with its payload, wherever that is kept. Raises RelayUnavailable."""
    if not one.chunk:
        return one
    try:
        return msgspec.structs.replace(one, payload=await service.dispatcher.payloads.fetch(one.chunk))
    except PayloadLost as error:
        return msgspec.structs.replace(one, state=TaskState.FAILED, code=error.code, text=error.text)


def _note_delivered(group_row: int, seq: int, tx: Tx) -> None:
    tx.note_delivered(group_row, seq)


def _encode(found: list[Completion]) -> bytes:
    results = [
        StreamedResult(uuid_text(c.task_id), int(c.state), c.code, c.text, c.payload, c.correlation_id) for c in found
    ]
    frame: StreamFrame = StreamBatch(cursor=found[-1].seq, results=results)
    return _encoder.encode(frame)
