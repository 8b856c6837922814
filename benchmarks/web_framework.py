"""Measures the submission path behind three routers: the relay's own, Starlette's and Litestar's.

    pip install starlette litestar; python benchmarks/web_framework.py [--legs 5] [--requests 1500]

Each leg starts a server process with uvicorn's httptools protocol and one route for submissions. The route
authenticates, decodes the body with msgspec and commits to an SQLite store. The legs of the routers alternate. The
table has medians over the legs: requests per second on 4 connections, and latency and the server's CPU time for a
request on one connection. Other load on the host disturbs the CPU time least. It asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from mep_wire.api import SubmitAnswer, SubmitBody
from mep_wire.ids import uuid7
from relay.api import http as relay_http
from relay.api.routes import Route, Router
from relay.auth.tokens import TokenAuth, new_token, token_hash
from relay.dispatch.live_state import durable
from relay.store.records import Caller, FunctionRecord, NewTask, TokenRecord, UepRecord
from relay.store.sqlite import SqliteStore

PATH = "/v3/endpoints/{endpoint_id}/submit"
ASGI = Callable[[Any, Any, Any], Awaitable[None]]


class Service:
    """What the handler needs."""

    def __init__(self, store: SqliteStore, token: str) -> None:
        self.store, self.auth = store, TokenAuth(store)
        record_of_token = TokenRecord(token_id="t", account_id="a", identity_id="i", created_at=1.0)
        store.submit(lambda tx: tx.add_token(token_hash(token), record_of_token)).result()
        record = FunctionRecord(
            function_id="f", owner="a", name="f", code=b"", public=True, description="", metadata={}, created_at=1.0
        )
        store.submit(lambda tx: tx.put_function(record)).result()
        wanted = UepRecord(row=0, uep_id="u", endpoint_id="e", account_id="a", identity_id="i", config={}, runtime={})
        self.uep = store.submit(lambda tx: tx.put_uep(wanted)).result().row

    async def submit(self, endpoint_id: str, authorization: str, body: SubmitBody) -> SubmitAnswer:
        """Store the tasks of a body."""
        caller = self.auth.caller(authorization)
        function = self.store.function_ref("f")
        assert function is not None
        tasks = [
            NewTask(task_id=uuid7().bytes, function=function, payload=payload)
            for payloads in body.tasks.values()
            for payload in payloads
        ]
        now = time.time()
        await durable(self.store.submit(lambda tx: tx.add_tasks(caller.account_id, "g", self.uep, tasks, 0, now)))
        names = {"f": [task.task_id.hex() for task in tasks]}
        return SubmitAnswer(request_id="r", task_group_id="g", endpoint_id=endpoint_id, tasks=names)


def own(service: Service) -> ASGI:
    router = Router()

    async def submit(_: Any, request: Any) -> SubmitAnswer:
        return await service.submit(request.path[0], request.query["authorization"], request.body)

    router.add(Route("POST", PATH, submit, SubmitAnswer, "", body=SubmitBody, scope="submit"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = router.find(scope["method"], scope["path"])
        assert found is not None
        route, values = found
        packed = relay_http.is_packed(relay_http.header(scope, b"content-type"))
        body = relay_http.decode(await relay_http.read_body(scope, receive), SubmitBody, packed=packed)
        query = {"authorization": relay_http.header(scope, b"authorization")}
        request = relay_http.Request(Caller(account_id="", identity_id=""), values, query, body, packed)
        answer = relay_http.encode(await route.handler(service, request), packed=packed)
        await relay_http.answer(send, 200, answer, media=relay_http.media_type(packed=packed))

    return app


def starlette(service: Service) -> ASGI:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route as StarletteRoute

    decoder, encoder = msgspec.msgpack.Decoder(SubmitBody), msgspec.msgpack.Encoder()

    async def submit(request: Request) -> Response:
        body = decoder.decode(await request.body())
        answer = await service.submit(request.path_params["endpoint_id"], request.headers["authorization"], body)
        return Response(encoder.encode(answer), media_type="application/msgpack")

    app: ASGI = Starlette(routes=[StarletteRoute(PATH, submit, methods=["POST"])])
    return app


def litestar(service: Service) -> ASGI:
    from litestar import Litestar, Request, post
    from litestar.enums import MediaType, RequestEncodingType
    from litestar.params import Body

    @post(PATH.replace("_id}", "_id:str}"), media_type=MediaType.MESSAGEPACK, status_code=200)  # type: ignore[untyped-decorator]
    async def submit(
        endpoint_id: str,
        request: Request[Any, Any, Any],
        data: SubmitBody = Body(media_type=RequestEncodingType.MESSAGEPACK),  # noqa: B008 - Litestar's way
    ) -> SubmitAnswer:
        return await service.submit(endpoint_id, request.headers["authorization"], data)

    submit.fn.__annotations__.update(request=Request[Any, Any, Any], data=SubmitBody)
    app: ASGI = Litestar(route_handlers=[submit], openapi_config=None)
    return app


ROUTERS = {"own": own, "starlette": starlette, "litestar": litestar}


def serve(kind: str, directory: str, token: str, port: Any) -> None:
    """Run one server until it is ended."""
    store = SqliteStore(Path(directory, "relay.db"), for_server=True)
    app = ROUTERS[kind](Service(store, token))
    config = uvicorn.Config(app, port=0, http="httptools", loop="asyncio", lifespan="off", log_level="warning")
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - a benchmark
            await asyncio.sleep(0.01)
        port.send(server.servers[0].sockets[0].getsockname()[1])
        await task

    asyncio.run(run())


def client(port: int, token: str, count: int, times: list[float]) -> None:
    """Submit one task at a time on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/msgpack"}
    headers["accept"] = "application/msgpack"
    body = msgspec.msgpack.encode({"tasks": {"f": [b"x" * 100]}})
    for _ in range(count):
        before = time.perf_counter()
        connection.request("POST", "/v3/endpoints/e/submit", body, headers)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        times.append(time.perf_counter() - before)


def cpu_us(pid: int | None) -> float:
    """Return the CPU time of a process's threads so far, in microseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e3


def leg(kind: str, requests: int) -> tuple[float, float, float]:
    """Return requests per second of four connections; the latency of one in ms, and its CPU time in microseconds."""
    token, (receiver, sender) = new_token(), multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as directory:
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, directory, token, sender))
        process.start()
        port = receiver.recv()
        client(port, token, 100, [])
        alone: list[float] = []
        used = cpu_us(process.pid)
        client(port, token, requests // 3, alone)
        used = (cpu_us(process.pid) - used) / (requests // 3)
        threads = [threading.Thread(target=client, args=(port, token, requests // 4, [])) for _ in range(4)]
        before = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = requests // 4 * 4 / (time.perf_counter() - before)
        process.terminate()
        process.join()
    return rate, statistics.median(alone) * 1e3, used


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--legs", type=int, default=5)
    options.add_argument("--requests", type=int, default=1500)
    asked = options.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in ROUTERS}
    for _ in range(asked.legs):
        for kind, legs in found.items():
            legs.append(leg(kind, asked.requests))
    base = [statistics.median(values) for values in zip(*found["own"], strict=True)]
    for kind, legs in found.items():
        rate, latency, used = (statistics.median(values) for values in zip(*legs, strict=True))
        print(
            f"{kind:>10}: {rate:6.0f} requests/s ({rate / base[0] - 1:+.1%}), "
            f"{latency:.3f} ms ({latency / base[1] - 1:+.1%}), "
            f"{used:.0f} microseconds of CPU ({used / base[2] - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
