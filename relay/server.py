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
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn

from mep.boundary.file_trust import ours
from mep_wire.api import EarlierRelayKeys
from mep_wire.relay_keys import EarlierKeys
from relay.api.actions import sweep_for_ever
from relay.api.app import App
from relay.api.context import ApiContext
from relay.api.health import ready
from relay.api.http_acceptor import Acceptor
from relay.api.http_protocol import BoundedConnection, BoundedWebSocket
from relay.audit import AuditLog
from relay.auth.settings import PeopleSettings, SettingsRefused, from_toml
from relay.auth.tokens import TokenAuth
from relay.control import Control
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.start_signing import OverlapSigner
from relay.dispatch.stories import Stories
from relay.dispatch.story_file import StoryFile
from relay.figures import Figures
from relay.link.zmq_link import ZmqLink
from relay.log import logger
from relay.loop_watch import LoopWatch
from relay.metrics_listener import MetricsListener
from relay.retention import Sweeper
from relay.settings import MAX_CONFIG_BYTES, ConfigRefused, RelaySettings, secret_text
from relay.state_dir import Keys, StateDir
from relay.store.chunks import ChunkDirectory, Chunks
from relay.store.opening import AnyStore, open_chunks, open_store
from relay.tls import Certificate


class _Server(uvicorn.Server):
    """uvicorn's server that leaves the process's signals alone (`serve` handles them) and accepts in its own way."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, certificate: Certificate | None) -> None:
        super().__init__(config)
        self.acceptor = Acceptor(listener, self._protocol, certificate.context if certificate else None)

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
    """Serve until SIGTERM or SIGINT. Raises OSError for an address that cannot be had, StateRefused, ConfigRefused."""
    _allow_many_connections()
    loop = asyncio.get_running_loop()
    keys = state.keys()
    certificate = Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
    store = open_store(
        state.database,
        settings.database,
        lambda: secret_text("database_password", settings.database_password),
        for_server=True,
    )
    listener = _listen(settings.host, settings.port)
    link_ = ZmqLink(settings.link_host, settings.link_port, keys.link_secret)
    signer, stories = OverlapSigner(keys.signing, keys.overlap), Stories(file=StoryFile(state.stories))
    dispatcher = Dispatcher(store, link_, signer, settings.limits, _chunks(settings, state), stories)
    link_.start(dispatcher)
    service = _service(store, dispatcher, keys, settings.link_address or link_.address, settings)
    service.audit = AuditLog(state.audit_log)
    dispatcher.recover()
    store.commits.late_commit = partial(_later, loop, dispatcher.cut_user_endpoints)
    server = _Server(_http_config(App(service), settings), listener, certificate)
    watch = LoopWatch()
    service.figures = Figures(
        store=store, dispatcher=dispatcher, link_=link_, http=server, acceptor=server.acceptor, watch=watch
    ).text
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server)
    loop.add_signal_handler(signal.SIGHUP, _reload, certificate)
    control = await Control(store, dispatcher).listen(state.control)
    metrics = MetricsListener(service.figures, partial(ready, service))
    sweeper = loop.create_task(Sweeper(store, dispatcher, settings.periods).run())
    releases = loop.create_task(sweep_for_ever(store))
    url = service.url = _url(listener, tls=certificate is not None)
    if settings.metrics_port:
        await metrics.listen(settings.metrics_port)
    state.write_listening(url, service.link_address)
    where = "PostgreSQL" if settings.database else state.database.name
    logger.info("serving", url=url, link=service.link_address, state=state.directory, store=where)
    logger.info("keys", fingerprint=keys.public.fingerprint)
    gc.freeze()
    try:
        watch.start()
        await server.serve()
    finally:
        watch.stop()
        control.close()
        metrics.close()
        state.remove_listening()
        sweeper.cancel()
        releases.cancel()
        dispatcher.delivery.flush_started()
        link_.stop()
        service.people.close()
        service.audit.close()
        stories.close()
        store.close()
        logger.info("ended")


def _service(
    store: AnyStore, dispatcher: Dispatcher, keys: Keys, link_address: str, settings: RelaySettings
) -> ApiContext:
    return ApiContext(
        store=store,
        dispatcher=dispatcher,
        auth=TokenAuth(store),
        link_address=link_address,
        link_public_key=keys.link_public.hex(),
        signing_public_key=keys.signing_public.hex(),
        earlier_keys=[_earlier(one) for one in keys.earlier],
        limits=settings.limits,
        people_settings=_people(settings),
        read_secret=partial(secret_text, "client_secret_file"),
        notes_delivery=0 < settings.delivered_days < settings.retention_days,
    )


def _people(settings: RelaySettings) -> PeopleSettings:
    """Return how people log in. Raises ConfigRefused."""
    if not settings.people:
        return PeopleSettings()
    try:
        return from_toml(ours().read(Path(settings.people), MAX_CONFIG_BYTES), settings.people)
    except SettingsRefused as error:
        raise ConfigRefused(str(error)) from error
    except OSError as error:
        raise ConfigRefused(f"{settings.people}: {error.strerror or error}") from error


def _chunks(settings: RelaySettings, state: StateDir) -> tuple[Chunks, int] | None:
    """Return the storage of large payloads, and the size above which they are. Raises ConfigRefused, DriverMissing.

    Without `chunks` it is for data by reference alone, in the state directory: one relay's, as the database then is.
    """
    chunks = open_chunks(settings, lambda: secret_text("s3_secret", settings.s3_secret))
    if chunks is not None:
        return chunks, settings.chunk_threshold_kb * 1024
    if settings.database or not settings.max_data_mb:
        return None
    return ChunkDirectory(state.data), sys.maxsize


def _later(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Have `call` made in the event loop's thread."""
    loop.call_soon_threadsafe(call)


def _url(listener: socket.socket, *, tls: bool) -> str:
    """Return where the relay listens, and warn where that is open to listeners on the way."""
    host, port = listener.getsockname()[:2]
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    if not tls and not ipaddress.ip_address(host).is_loopback:
        remedy = "set tls_certificate, or listen on loopback behind a proxy"
        logger.warning("tokens travel unencrypted", url=url, remedy=remedy)
    return url


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


def _reload(certificate: Certificate | None) -> None:
    """SIGHUP: the certificate alone is read again."""
    if certificate is None:
        logger.info("SIGHUP: there is no certificate to read again; other settings need a restart")
        return
    try:
        certificate.reload()
        logger.info("SIGHUP: the certificate was read again")
    except ConfigRefused as error:
        logger.error("SIGHUP: the certificate stays as it was", reason=error)


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


def _http_config(app: App, settings: RelaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        ws=BoundedWebSocket,
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        ws_max_size=64 * 1024,
        ws_per_message_deflate=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )
