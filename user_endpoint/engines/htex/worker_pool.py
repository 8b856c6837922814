"""A node's worker pool: takes tasks from the interchange and runs them with ProcessPoolEngine.

A program of its own, started in each node of a block by Parsl's provider and launcher, in place of Parsl's
process_worker_pool and with its options. One thread and no Parsl, so that it is up in 60 ms; its workers are
forked before ZeroMQ is loaded, and which task each of them runs is always known. It trusts the interchange,
with the key from the user's own directory, and nothing that tasks do. It runs as the mapped user.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from mep_wire.text import printable
from user_endpoint.engines.base import (
    TICK_S,
    Engine,
    EngineOver,
    EngineTask,
    Event,
    TaskOutput,
    TaskReturned,
    TaskStarted,
)
from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.walltimes import seconds_left
from user_endpoint.engines.htex.worker_binding import WorkerBinding, worker_bindings
from user_endpoint.engines.htex.worker_pool_options import Options, OptionsInvalid, parse_options, worker_count
from user_endpoint.engines.process_pool.engine import ProcessPoolEngine
from user_endpoint.process_exit import name_process
from user_endpoint.workers.fork_server import ServerHandle, exec_server
from user_endpoint.workers.start_journal import JournalView

HEARTBEAT = (1 << 32) - 1
SHUTDOWN = (1 << 32) - 2
_LINGER_S = 0.002
_LINK_DOWN_S = 15.0
"""Seconds without a connection to the interchange after which the node is given back to its scheduler."""
_FEW = 2
_GOODBYE_MS = 1000


class InterchangeUnreachable(Exception):
    """None of the addresses {addresses} answered within {seconds} s."""


def reach(context: zmq.Context[zmq.Socket[bytes]], options: Options, name: str) -> zmq.Socket[bytes]:
    """Return a socket connected to the first address that answers. Raises InterchangeUnreachable.

    The socket that got the answer is the one that is kept, so that there are never two by one name.
    """
    poller, tried = zmq.Poller(), list[zmq.Socket[bytes]]()
    for index, address in enumerate(options.addresses):
        socket = context.socket(zmq.DEALER)
        socket.linger, socket.ipv6, socket.rcvhwm, socket.sndhwm = 0, True, 0, 0
        socket.reconnect_ivl, socket.reconnect_ivl_max = 20, 1000
        socket.identity = f"{name}-{index}".encode()
        if options.cert_dir:
            _encrypt(socket, options.cert_dir)
        socket.connect(f"tcp://{address}:{options.port}")
        socket.send(pickle.dumps({"type": "connection_probe"}))
        poller.register(socket, zmq.POLLIN)
        tried.append(socket)
    answered = poller.poll(int(options.address_probe_timeout * 1000))
    if not answered:
        raise InterchangeUnreachable(f"no answer from {', '.join(options.addresses)}, port {options.port}")
    chosen: zmq.Socket[bytes] = answered[0][0]
    chosen.recv()
    for socket in tried:
        if socket is not chosen:
            socket.close()
    return chosen


def _encrypt(socket: zmq.Socket[bytes], cert_dir: str) -> None:
    import zmq.auth

    socket.curve_publickey, secret = zmq.auth.load_certificate(f"{cert_dir}/client.key_secret")
    assert secret is not None, "the file holds both keys"
    socket.curve_secretkey = secret
    socket.curve_serverkey = zmq.auth.load_certificate(f"{cert_dir}/server.key")[0]


class PlacedEngine(ProcessPoolEngine):
    """The process engine, with each worker bound to its own processors and accelerator."""

    def __init__(self, worker_bindings: list[WorkerBinding], **options: Any) -> None:
        super().__init__(max_workers=len(worker_bindings), **options)
        self._bindings = worker_bindings

    def _place(self, slot: int) -> tuple[dict[str, str], list[int], JournalView | None]:
        binding = self._bindings[slot]
        return binding.variables, binding.processors, binding.view


class Pool:
    """Between one interchange and the workers of one node. One thread, one poll loop."""

    def __init__(
        self, options: Options, socket: zmq.Socket[bytes], servers: Callable[[], ServerHandle], name: str
    ) -> None:
        self._options, self._socket, self._name = options, socket, name
        self._workers = worker_count(options)
        workers = PlacedEngine(
            worker_bindings(options, self._workers, list(os.sched_getaffinity(0)), name),
            server=servers,
            worker_log=f"{options.directory}/workers.log",
            directory=options.working_dir,
            run_directory=options.begun.partition("/begun/")[0],
            run_in_sandbox=bool(options.run_in_sandbox),
        )
        left = seconds_left(os.environ, options.block_started, options.block_walltime, time.time())
        self._ends = None if left is None else time.monotonic() + left
        self._engine: Engine = _for_mpi(workers, options, self._ends) if options.mpi_launcher else workers
        self._engine.start()
        self._held: set[int] = set()
        self._leaving = False
        self._down_since: float | None = None
        self._report_started: list[int] = []
        self._report_results: list[protocol.Result] = []
        self._report_returned: list[int] = []
        self._report_output: list[TaskOutput] = []
        self._report_since = 0.0

    def register(self) -> None:
        """Tell the interchange who this is and how many tasks it takes."""
        version = ".".join(map(str, sys.version_info[:3]))
        message = {
            "type": "registration",
            "mep": True,
            "parsl_v": "none",
            "python_v": version,
            "packages": {},
            "worker_count": self._workers,
            "uid": self._name,
            "block_id": self._options.block_id,
            "start_time": time.time(),
            "drain_time": time.time() + (self._options.drain_period or float("inf")),
            "prefetch_capacity": self._options.prefetch_capacity,
            "max_capacity": self._workers + self._options.prefetch_capacity,
            "left_s": None if self._ends is None else self._ends - time.monotonic(),
            "os": platform.system(),
            "hostname": platform.node(),
            "dir": os.getcwd(),
            "cpu_count": os.cpu_count(),
        }
        self._socket.send(pickle.dumps(message))

    def run(self) -> None:
        """Serve until the interchange says to end, or is silent for too long."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        link = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        poller.register(link, zmq.POLLIN)
        ended = _told_to_end()
        poller.register(ended, zmq.POLLIN)
        heard = beat = time.monotonic()
        while not self._leaving:
            gathers = self._engine.fed and bool(self._report_results)
            poller.register(self._engine.fileno(), 0 if gathers else zmq.POLLIN)  # 0: not now
            ready = dict(poller.poll(self._timeout_ms(beat)))
            now = time.monotonic()
            if ended in ready:
                self._say_goodbye()
                break
            if self._socket in ready:
                heard = now
                self._hear()
            if link in ready:
                up = int.from_bytes(link.recv_multipart()[0][:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self._down_since = None if up else self._down_since or now
            self._collect(self._engine.collect(), now)
            if self._due(now):
                self._send_report()
            if now - beat >= self._options.hb_period:
                beat = now
                self._socket.send(pickle.dumps({"type": "heartbeat"}))
            if now - heard > self._options.hb_threshold or self._abandoned(now):
                break
        self._engine.stop(1.0)

    def _say_goodbye(self) -> None:
        """The scheduler ends this node: return tasks that have not started, and give up the rest."""
        self._engine.drain()
        self._collect(self._engine.collect(), time.monotonic())
        self._send_report(lost=sorted(self._held), leaving=True)
        self._socket.linger = _GOODBYE_MS

    def _abandoned(self, now: float) -> bool:
        """Tell whether the interchange is permanently gone: its port does not come back after it has died."""
        return self._down_since is not None and now - self._down_since > _LINK_DOWN_S

    def _timeout_ms(self, beat: float) -> int:
        if self._has_report:
            return 1
        # The engine looks at walltimes when it is asked, which must be often while it has tasks.
        walltimes = int(1000 * TICK_S) if self._held or self._down_since else 60_000
        return min(walltimes, max(1, int(1000 * (beat + self._options.hb_period - time.monotonic()))))

    # --- from the interchange -------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            while True:
                frame = self._socket.recv(zmq.NOBLOCK)
                if protocol.is_ours(frame):
                    self._obey(protocol.decode_to_pool(frame))
                    continue
                message = pickle.loads(frame)  # noqa: S301 - from our own interchange, encrypted
                if message == SHUTDOWN:
                    self._leaving = True
                elif message != HEARTBEAT:
                    self._take([protocol.decode_task(task["buffer"]) for task in message])
        except zmq.Again:
            return

    def _take(self, tasks: list[protocol.HtexTask]) -> None:
        """Give tasks to the workers, by the executor's numbers, which differ from one attempt to the next."""
        self._held.update(task.id for task in tasks)
        self._engine.submit([_engine_task(task) for task in tasks])

    def _obey(self, order: protocol.ToPool) -> None:
        match order:
            case protocol.Cancel(ids):
                self._engine.cancel(ids)
            case protocol.Drain():
                self._engine.drain()
            case protocol.Leave():
                self._leaving = True

    # --- to the interchange ---------------------------------------------------------------------------

    @property
    def _has_report(self) -> bool:
        return bool(self._report_results or self._report_started or self._report_returned or self._report_output)

    def _collect(self, events: list[Event], now: float) -> None:
        if events and not self._has_report:
            self._report_since = now
        for event in events:
            if isinstance(event, EngineOver) or event.row not in self._held:
                continue
            if isinstance(event, TaskStarted):
                self._report_started.append(event.row)
                continue
            if isinstance(event, TaskOutput):
                self._report_output.append(event)
                continue
            self._held.discard(event.row)
            if isinstance(event, TaskReturned):
                self._report_returned.append(event.row)
                continue
            times = (event.started_at, event.ended_at)
            self._report_results.append(protocol.Result(event.row, event.code, event.text, event.payload, *times))

    def _due(self, now: float) -> bool:
        """Tell whether to report now: at once while there is little traffic, else every 2 ms."""
        if self._report_results or self._report_returned:
            return len(self._held) < _FEW or now - self._report_since >= _LINGER_S
        return self._has_report and now - self._report_since >= _LINGER_S

    def _send_report(self, lost: Sequence[int] = (), *, leaving: bool = False) -> None:
        ended = {result.id for result in self._report_results}
        started = [number for number in self._report_started if number not in ended]
        report = protocol.WorkerReport(
            started,
            self._report_results,
            self._report_returned,
            list(lost),
            leaving,
            self._options.block_id,
            self._name if lost else "",
            self._report_output,
        )
        self._report_started, self._report_results, self._report_returned, self._report_output = [], [], [], []
        self._socket.send(protocol.encode(report))


def _engine_task(t: protocol.HtexTask) -> EngineTask:
    return EngineTask(
        t.id, t.task_id, t.function_id, t.function, t.payload, t.resource_spec, t.walltime_s, attempt=t.attempt
    )


def _for_mpi(workers: PlacedEngine, options: Options, ends: float | None) -> Engine:
    from user_endpoint.engines.htex.mpi import make_engine  # only such pools need it

    return make_engine(workers, worker_count(options), options.mpi_launcher, ends)


def run(arguments: list[str], server: ServerHandle) -> int:
    """Run this node's pool with a fork server that is there already. Returns the exit status."""
    name_process("mep-pool")
    options = parse_options(arguments)
    os.makedirs(options.directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - no pathlib here
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    name = uuid.uuid4().hex[:12]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = reach(context, options, name)
    except InterchangeUnreachable as error:
        print(f"{platform.node()}: the user endpoint cannot be reached: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the block's log
        return 1
    first = [server]
    try:
        pool = Pool(options, socket, lambda: first.pop() if first else exec_server(), name)
    except OptionsInvalid as error:
        print(f"{platform.node()}: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the block's log
        return 1
    pool.register()
    pool.run()
    context.destroy()  # waits for a last report to get away
    return 0


def _told_to_end() -> int:
    """Return a descriptor that becomes readable when SIGTERM comes, which no longer ends this process by itself."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    return read
