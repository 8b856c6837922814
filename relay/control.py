"""The socket on which `mep-relay` gives orders to a running server: control.sock in the state directory.

A UNIX socket of mode 0600 in a directory of mode 0700: only the relay's account and root can connect. One request a
connection, a line of JSON; the answer is a line of JSON. It trusts these accounts, and bounds their requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from mep_wire.errors import MepError
from relay.auth.access import delete_endpoint
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.live_state import durable
from relay.log import logger
from relay.store.base import Store

MAX_LINE = 1024 * 1024
REQUEST_S = 10.0
ANSWER_S = 60.0
"""How long a command waits for its answer."""


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request. `what` is the name of a method of Control without its `do_`."""

    what: str
    on: bool = False
    ids: list[str] = []


_decode = msgspec.json.Decoder(Asked).decode


class NotServed(Exception):
    """No relay serves this state directory."""


class Control:
    """The server's side."""

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store, self._dispatcher = store, dispatcher
        self._requests: dict[str, Callable[[Asked], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "drain": self._drain,
            "remove-endpoint": self._remove_endpoint,
            "cancel": self._cancel,
        }

    async def listen(self, path: Path) -> asyncio.Server:
        """Serve `path`, which may be there from a relay that was killed. Raises OSError."""
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - at the start, nothing waits
        before = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        finally:
            os.umask(before)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = _decode(await asyncio.wait_for(reader.readline(), REQUEST_S))
            handler = self._requests.get(asked.what)
            answer = await handler(asked) if handler else {"error": f"there is no {asked.what}"}
        except (msgspec.MsgspecError, ValueError, TimeoutError) as error:
            answer = {"error": str(error) or type(error).__name__}
        except MepError as error:
            answer = {"error": error.text}
        writer.write(msgspec.json.encode(answer) + b"\n")
        writer.close()

    async def _status(self, asked: Asked) -> dict[str, Any]:
        live = self._dispatcher.live
        linked = sum(1 for uep in live.ueps.values() if uep.peer is not None)
        return {"draining": live.draining, "managers": len(live.managers), "user_endpoints": linked}

    async def _drain(self, asked: Asked) -> dict[str, Any]:
        self._dispatcher.live.draining = asked.on
        logger.info("drain: new tasks are " + ("refused" if asked.on else "taken again"))
        return await self._status(asked)

    async def _remove_endpoint(self, asked: Asked) -> dict[str, Any]:
        """Delete an endpoint of any owner."""
        (endpoint_id,) = asked.ids
        known = self._store.endpoint(endpoint_id)
        owner = known.owner if known else ""
        await durable(self._store.submit(lambda tx: delete_endpoint(tx, endpoint_id, owner, time.time())))
        await self._dispatcher.endpoint_deleted(endpoint_id)
        logger.info("an endpoint was removed on this host", endpoint=endpoint_id)
        return {"removed": endpoint_id}

    async def _cancel(self, asked: Asked) -> dict[str, Any]:
        ids = {uuid.UUID(one).bytes for one in asked.ids}
        found = self._store.briefs(list(ids))
        open_ = [task for task in found if not task.state.is_terminal]
        away = await self._dispatcher.cancel(open_)
        logger.info("tasks were cancelled on this host", tasks=len(open_))
        return {
            "cancelled": len(open_) - len(away),
            "asked": len(away),
            "ended": len(found) - len(open_),
            "unknown": len(ids) - len(found),
        }


def ask(path: Path, what: str, *, on: bool = False, ids: list[str] | None = None) -> dict[str, Any]:
    """Ask the server that serves this state directory. Raises NotServed, OSError."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(ANSWER_S)
        try:
            line.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotServed from error
        line.sendall(msgspec.json.encode(Asked(what=what, on=on, ids=ids or [])) + b"\n")
        with line.makefile("rb") as file:
            answer: dict[str, Any] = msgspec.json.decode(file.readline())
    return answer
