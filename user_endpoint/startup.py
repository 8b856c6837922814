"""From the inherited documents to a running loop: directories, engine, link, in the order that costs least.

Called by main, in a process of the user's own. A failure is a StartFailure, which keeps the text for the person
apart from the text for the administrator.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING

import msgspec

from mep_wire.bundle import UepBundle, decode_bundle
from mep_wire.errors import EndpointMisconfigured, MepError
from mep_wire.start_request import StartRequest, decode_start, decode_verified_start
from mep_wire.text import is_json, printable, set_format
from user_endpoint.bounded_log import MAX_JSON_LINE, BoundedFile, BoundedLog, escape_output, json_output
from user_endpoint.figures_page import FiguresPage, inherited_page
from user_endpoint.keeper_report import Reporter, StartFailure
from user_endpoint.paths import LOCK_WAIT_S, Paths, home_unusable, make_paths, take_lock
from user_endpoint.process_exit import at_exit, prepare_title, title_process
from user_endpoint.render_process import Rendering
from user_endpoint.runtime import start_environment
from user_endpoint.settings import located
from user_endpoint.shortage import interrupted, reason_of
from user_endpoint.workers import datagrams
from user_endpoint.workers.fork_server import ServerHandle, exec_server, fork_server
from user_endpoint.workers.start_environment import needs_new_process

if TYPE_CHECKING:
    from user_endpoint.engines import EngineContext
    from user_endpoint.engines.base import Engine
    from user_endpoint.lost_attempts import Attempts
    from user_endpoint.result_spool import Spool
    from user_endpoint.settings import UepSettings
    from user_endpoint.task_admission import FunctionList, Serializers

_GC_THRESHOLD = 50_000
_MAX_TITLE = 200


class Servers:
    """Fork servers for the engine: the one forked at the start, while there were no threads, then new ones."""

    def __init__(self, first: ServerHandle) -> None:
        self._first: ServerHandle | None = first
        self.title = ""
        """For the command lines of servers and workers."""

    def __call__(self) -> ServerHandle:
        """Return one for the caller to keep: the first, unless the environment asks for a fresh Python."""
        if needs_new_process():
            self.discard()
        server, self._first = self._first, None
        server = server or exec_server()
        if self.title and server.ready:
            datagrams.send(server.sock, ("title", self.title))
        return server

    def discard(self) -> None:
        """End the first one if it was not taken."""
        if self._first is not None:
            self._first.stop(0)
            self._first = None


class Starting:
    """One user endpoint on its way up."""

    def __init__(self, start: bytes, bundle: bytes, account: bytes, reporter: Reporter) -> None:
        self._reporter, self._page = reporter, inherited_page()
        ours = (reporter.fileno(), self._page) if self._page >= 0 else (reporter.fileno(),)
        self._rendering = Rendering(start, bundle, account, close=ours)
        self._servers = Servers(fork_server(close=(*ours, self._rendering.fileno())))
        try:
            self._verified = decode_verified_start(start)
            self._request: StartRequest = decode_start(self._verified.request)
            self._bundle = decode_bundle(bundle)
        except msgspec.MsgspecError as error:
            raise StartFailure("START_FAILED", "The site could not start your process.", str(error)) from error

    def serve(self) -> None:
        """Start, run until the end, and report it. Raises StartFailure."""
        paths = make_paths(
            self._request.uep_id,
            os.environ.get("HOME", ""),
            self._bundle.user_state_dir,
            self._verified.local_user,
        )
        set_format(self._bundle.log_format, limit=MAX_JSON_LINE)
        log = open_log(paths, debug=self._bundle.debug)
        log.info("starting", endpoint=self._bundle.endpoint_name, correlation_id=self._request.correlation_id)
        try:
            self._serve(paths, log)
        except StartFailure as failure:
            log.error("cannot start", code=failure.code, public=failure.public, detail=failure.detail)
            raise
        except MepError as error:
            log.error("cannot start", code=error.code, public=error.text, detail=error.detail)
            raise StartFailure(error.code, error.text, error.detail) from error
        except (MemoryError, OSError, _zmq_error()) as error:
            if not (reason := reason_of(error)):
                raise
            log.error("cannot go on", reason=reason, error=repr(error))
            raise interrupted(reason, repr(error)) from error

    def _serve(self, paths: Paths, log: BoundedLog) -> None:
        from mep_link.client import LinkClient, options
        from mep_wire.codec import decode_to_uep
        from mep_wire.limits import MAX_LINK_MESSAGE_BYTES
        from user_endpoint.engines import EngineContext
        from user_endpoint.event_loop import EventLoop, Signals
        from user_endpoint.function_store import Functions
        from user_endpoint.lifecycle.idle import IdleRule
        from user_endpoint.lifecycle.setup_commands import TEARDOWN_S, run_commands, setup_limit_s
        from user_endpoint.resource_spec import ResourceRule
        from user_endpoint.user_endpoint import UserEndpoint

        prepare_title("mep-uep")
        os.environ.update(start_environment(self._bundle, os.environ, self._request.user_runtime))
        keys = options(self._bundle.relay_link_key, max_inbound_bytes=MAX_LINK_MESSAGE_BYTES)
        link = LinkClient(self._bundle.relay_link_address, keys, decode_to_uep)
        link.connect()
        lock = wait_for_lock(paths)
        spool, functions = open_spool(paths, log), Functions(paths.run)
        self._servers.title = title = _title(self._request, self._bundle)
        settings = self._rendering.result()
        _tell_not_applicable(settings, log)
        lists = self._function_lists(settings)
        run_commands("endpoint_setup", settings.endpoint_setup, paths.run, setup_limit_s(self._bundle.parent_config))
        context = EngineContext(paths.run, paths.worker_log, self._servers, self._bundle.audit_tasks)
        engine = _make_engine(settings, context)
        signals = Signals()
        engine.start()
        self._servers.discard()
        endpoint = UserEndpoint(
            uep_id=self._request.uep_id,
            join_token=self._verified.join_token,
            endpoint_id=self._request.endpoint_id,
            allowed_functions=lists,
            check_resources=ResourceRule(settings.engine, listed_only=bool(lists)).check,
            serializers=_serializers(settings.engine.allowed_serializers),
            engine=engine,
            functions=functions,
            spool=spool,
            idle=IdleRule(settings.idle_soft_s, settings.idle_hard_s, time.monotonic()),
            reporter=self._reporter,
            log=log,
            attempts=attempts(settings),
            data_directory=f"{paths.run}/data",
            page=FiguresPage(self._page, values=_values(self._request), log_path=paths.log),
        )
        link.hello = endpoint.hello
        endpoint.link = link
        loop = EventLoop(endpoint, link, engine, signals, self._reporter.fileno(), log)
        title_process("mep-uep", "user_endpoint", title)
        settle_memory()
        loop.run()
        link.close(1.0)
        spool.close()
        functions.close()
        os.close(lock)
        remove_staged(paths.run)
        run_commands("endpoint_teardown", settings.endpoint_teardown, paths.run, TEARDOWN_S)
        endpoint.report_end()

    def _function_lists(self, settings: UepSettings) -> tuple[FunctionList, ...]:
        from user_endpoint.task_admission import function_lists

        try:
            return function_lists(
                self._bundle.allowed_functions, settings.allowed_functions, self._bundle.function_pins
            )
        except EndpointMisconfigured as error:
            error.detail = located(error.detail, settings.lines)
            raise


def _tell_not_applicable(settings: UepSettings, log: BoundedLog) -> None:
    for key in settings.not_applicable:
        log.warning("a key of the template has no effect", key=key)


def _make_engine(settings: UepSettings, context: EngineContext) -> Engine:
    """Return the engine of the template, and provide the descriptors that it needs. Raises MepError."""
    from user_endpoint import descriptors
    from user_endpoint.engines import make_engine

    try:
        descriptors.provide(descriptors.needed(settings.engine))
        return make_engine(settings.engine, context)
    except EndpointMisconfigured as error:
        error.detail = located(error.detail, settings.lines)
        raise


def _title(request: StartRequest, bundle: UepBundle) -> str:
    """Return endpoint, person and site, on one line."""
    people = request.identity_set.identities
    person = people[0].username or people[0].id if people else "nobody"
    site = (bundle.parent_config or {}).get("display_name") or os.uname().nodename
    return printable(f"{bundle.endpoint_name} for {person} at {site}")[:_MAX_TITLE]


def _values(request: StartRequest) -> str:
    """Return the person's values as JSON, for the administrator."""
    return msgspec.json.encode(request.user_endpoint_config).decode() if request.user_endpoint_config else ""


def _zmq_error() -> type[Exception]:
    """Return ZeroMQ's error, which is no OSError; imported only once something has gone wrong."""
    from zmq import ZMQError

    return ZMQError


def open_log(paths: Paths, *, debug: bool) -> BoundedLog:
    """Return the log, which also takes the output of other code in this process. Raises StartFailure."""
    try:
        out = BoundedFile(paths.held(paths.log), escape=json_output if is_json() else escape_output)
        out.stand_for(1, 2)
        at_exit(out.close)
    except OSError as error:
        raise home_unusable(f"{paths.log}: {error.strerror}", error=error) from error
    return BoundedLog(out, debug=debug)


def wait_for_lock(paths: Paths) -> int:
    """Return the lock's descriptor once an earlier process of this user endpoint has ended. Raises StartFailure."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while (lock := take_lock(paths)) is None:
        if time.monotonic() > deadline:
            text = "An earlier process of this user endpoint is still ending. Your tasks wait."
            raise StartFailure("SITE_BUSY", text, f"{paths.root}/lock is held")
        time.sleep(0.05)
    return lock


def open_spool(paths: Paths, log: BoundedLog) -> Spool:
    """Return the spool with the results that earlier processes left. Raises StartFailure."""
    from user_endpoint.result_spool import Spool

    spool = Spool(paths.held(paths.spool), report=log.warning)
    try:
        found = spool.recover()
    except OSError as error:
        raise home_unusable(f"{paths.spool}: {error.strerror}", error=error) from error
    if found:
        log.info("found results of an earlier process", results=found)
    return spool


def attempts(settings: UepSettings) -> Attempts:
    """Return how often tasks may be begun here, as the template says."""
    from user_endpoint.lost_attempts import Attempts

    return Attempts(settings.engine.max_retries_on_system_failure + 1, settings.max_attempts_limit or 0)


def _serializers(names: list[str] | None) -> Serializers | None:
    if names is None:
        return None
    from mep_sdk.strategies import Allowed  # only such templates pay for it

    return Allowed(names)


def remove_staged(run_directory: str) -> None:
    """Remove the workers' files, where an engine has needed any of its own."""
    if os.path.exists(f"{run_directory}/runner"):  # noqa: PTH110 - pathlib costs 9 ms at start
        from user_endpoint.worker_staging import unstage

        unstage(run_directory)


def settle_memory() -> None:
    """Exclude the objects made so far from garbage collection: nearly all are permanent, and collecting takes 5 ms."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(_GC_THRESHOLD, 20, 50)
