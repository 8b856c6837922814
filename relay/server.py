"""Runs the relay: opens the state, listens on HTTP and on the endpoint link, serves until it is told to stop.

One process, one event loop, and the store's writer thread. Called by `mep-relay serve`, after it has become
the relay's account.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from mep_wire.api import EarlierRelayKeys
from mep_wire.limits import MAX_PAYLOAD_BYTES, MAX_TASKS_PER_SUBMIT
from mep_wire.relay_keys import EarlierKeys
from relay.api.app import App
from relay.api.context import ApiContext
from relay.api.http_acceptor import Acceptor
from relay.api.http_protocol import BoundedConnection
from relay.auth.tokens import TokenAuth
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.start_signing import OverlapSigner
from relay.dispatch.submissions import PersonLimits
from relay.figures import Figures
from relay.link.zmq_link import ZmqLink
from relay.log import logger
from relay.loop_watch import LoopWatch
from relay.retention import Periods, Sweeper
from relay.state_dir import StateDir
from relay.store.sqlite import SqliteStore

_DAY_S = 86400.0
_MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaySettings:
    """How a relay is to run. A port of 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = 8650
    link_host: str = "127.0.0.1"
    link_port: int = 8651
    link_address: str | None = None
    """The address that endpoints are given, if it differs from the bound one."""
    retention_days: float = 14.0
    """How long ended tasks and their results are kept."""
    task_lifetime_days: float = 14.0
    """How long a task may wait until a user endpoint takes it, and for one that has it and is away; 0: for ever."""
    unused_days: float = 365.0
    """How long unused functions, task groups and user endpoints are kept; 0: for ever."""
    max_open_tasks: int = 2_000_000
    """Unfinished tasks that one person may have."""
    max_open_tasks_at_endpoint: int = 0
    """The same at one endpoint; 0: as many as in all."""
    max_stored_gb: float = 50.0
    """Most space for one person's waiting arguments and kept results; 0: any amount."""
    max_requests_per_s: float = 0.0
    """Requests of one person in a second on average; 0: any number."""
    max_tasks_per_s: float = 0.0
    """Tasks that one person submits in a second on average; 0: any number."""
    max_batch: int = MAX_TASKS_PER_SUBMIT
    """Tasks in one submission."""
    max_payload_mb: float = MAX_PAYLOAD_BYTES / _MB
    """Largest arguments of one task."""
    max_result_mb: float = MAX_PAYLOAD_BYTES / _MB
    """Largest result of one task."""

    @property
    def periods(self) -> Periods:
        """How long things are kept."""
        return Periods(
            retention_s=self.retention_days * _DAY_S,
            lifetime_s=self.task_lifetime_days * _DAY_S,
            unused_s=self.unused_days * _DAY_S,
        )

    @property
    def limits(self) -> PersonLimits:
        """The most that one person may have."""
        return PersonLimits(
            open_tasks=self.max_open_tasks,
            open_tasks_at_endpoint=self.max_open_tasks_at_endpoint,
            stored_bytes=int(self.max_stored_gb * 1e9),
            requests_per_s=self.max_requests_per_s,
            tasks_per_s=self.max_tasks_per_s,
            batch=self.max_batch,
            payload_bytes=int(self.max_payload_mb * _MB),
            result_bytes=int(self.max_result_mb * _MB),
        )


class _Server(uvicorn.Server):
    """uvicorn's server that leaves the process's signals alone (`serve` handles them) and accepts in its own way."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self.acceptor = Acceptor(listener, self._protocol)

    def _protocol(self) -> asyncio.Protocol:
        return BoundedConnection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets=[])
        self.acceptor.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and end the connections."""
        self.acceptor.stop()
        await super().shutdown(sockets=[])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def serve(state: StateDir, settings: RelaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError for an address that cannot be had, StateRefused."""
    _allow_many_connections()
    keys = state.keys()
    store = SqliteStore(state.database, for_server=True)
    listener = _listen(settings.host, settings.port)
    link_ = ZmqLink(settings.link_host, settings.link_port, keys.link_secret)
    dispatcher = Dispatcher(store, link_, OverlapSigner(keys.signing, keys.overlap), settings.limits)
    link_.start(dispatcher)
    service = ApiContext(
        store=store,
        dispatcher=dispatcher,
        auth=TokenAuth(store),
        link_address=settings.link_address or link_.address,
        link_public_key=keys.link_public.hex(),
        signing_public_key=keys.signing_public.hex(),
        earlier_keys=[_earlier(one) for one in keys.earlier],
        limits=settings.limits,
    )
    dispatcher.recover()
    server = _Server(_http_config(App(service)), listener)
    watch = LoopWatch()
    service.figures = Figures(
        store=store, dispatcher=dispatcher, link_=link_, http=server, acceptor=server.acceptor, watch=watch
    ).text
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server)
    sweeper = loop.create_task(Sweeper(store, dispatcher, settings.periods).run())
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    state.write_listening(url, service.link_address)
    logger.info("serving %s, endpoint link %s, state %s", url, service.link_address, state.directory)
    logger.info("keys %s", keys.public.fingerprint)
    if not ipaddress.ip_address(host).is_loopback:
        logger.warning("tokens travel over %s unencrypted: put a TLS proxy in front, and listen on loopback", url)
    gc.freeze()
    try:
        watch.start()
        await server.serve()
    finally:
        watch.stop()
        state.remove_listening()
        sweeper.cancel()
        dispatcher.delivery.flush_started()
        link_.stop()
        store.close()
        logger.info("ended")


def _earlier(one: EarlierKeys) -> EarlierRelayKeys:
    return EarlierRelayKeys(
        signing_public_key=one.keys.signing.hex(), link_public_key=one.keys.link.hex(), signature=one.signature.hex()
    )


def _allow_many_connections() -> None:
    """Raise the limit on open files as far as it goes: every link and stream is one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.listen(1024)
    return listener


def _http_config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="websockets-sansio",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        ws_max_size=64 * 1024,
        ws_per_message_deflate=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
