"""A site: its manager with the real outbox, its monitor, and user endpoints, each the real one on a simulated engine.

The monitor, keeper, engine, spool and start journal are models of a few lines. They keep the
contracts of the real ones. Each user endpoint has one process; its end names it. A journal is on the disk before a
task begins, and results are on it in the turn that sends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mep.manager.outbox import Outbox
from mep_link.backoff import Backoff
from mep_link.client import ATTEMPT_S, PROVEN_S
from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.errors import (
    EndpointMisconfigured,
    JoinRefused,
    SiteBusy,
    StartFailed,
    StartRequestStale,
    TaskCancelled,
    UserEndpointLost,
    WorkerLost,
)
from mep_wire.limits import HEARTBEAT_S
from mep_wire.messages import ResultItem
from mep_wire.start_request import incarnation_of
from user_endpoint.engines.base import EngineTask, Event, TaskReturned, TaskStarted
from user_endpoint.function_store import Functions
from user_endpoint.keeper_report import Reporter
from user_endpoint.lifecycle.idle import IdleRule
from user_endpoint.lost_attempts import Attempts
from user_endpoint.result_spool import SYNC_AFTER_S
from user_endpoint.user_endpoint import UserEndpoint

from .network import Connection, Network
from .oracle import Oracle
from .world import Handle, World

EPOCH_BYTES = 32


class Disk:
    """What one user endpoint has on the site's disk, from one process to the next."""

    def __init__(self) -> None:
        self.results: dict[int, ResultItem] = {}
        self.begun: set[tuple[str, int]] = set()
        """Attempts that workers of killed processes had begun."""


class SimSpool:
    """The methods of `user_endpoint.result_spool.Spool`: a result that was written outlives the process."""

    is_full = False

    def __init__(self, world: World, disk: Disk) -> None:
        self._world, self._results = world, disk.results
        self.tick_at: float | None = None

    def __len__(self) -> int:
        return len(self._results)

    @property
    def rows(self) -> list[int]:
        return list(self._results)

    def add(self, items: Sequence[ResultItem]) -> None:
        for item in items:
            self._results.pop(item.row, None)
            self._results[item.row] = item
        self.tick_at = self.tick_at or self._world.now + SYNC_AFTER_S

    def durable(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._results.pop(row, None)

    def get(self, row: int) -> ResultItem | None:
        return self._results.get(row)

    def unconfirmed(self) -> Iterator[ResultItem]:
        for row in self.rows:
            if row in self._results:
                yield self._results[row]

    def tick(self) -> None:
        if self.tick_at is not None and self._world.now >= self.tick_at:
            self.tick_at = None


class SimEngine:
    """`user_endpoint.engines.base.Engine`. A worker notes a task on the disk, has its effect, and ends it."""

    worker_python = "3.11.2"
    blocks = ""
    trouble = trouble_code = ""
    fed = False

    def __init__(self, process: Process, workers: int) -> None:
        self._process, self._world, self._oracle = process, process.world, process.oracle
        self._workers = workers
        self._before = set(process.disk.begun)
        self.capacity = 4 * workers
        self.begun: set[tuple[str, int]] = set()
        self.queue: deque[EngineTask] = deque()
        self.running: dict[int, EngineTask] = {}
        self.events: list[Event] = []
        self._draining = False

    def start(self) -> None: ...

    def fileno(self) -> int:
        return -1

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        for task in tasks:
            if (task.task_id, task.attempt) in self._before:
                self._before.discard((task.task_id, task.attempt))  # asked again, it is taken to be told
                self._end(task, UserEndpointLost.code, "it was killed")
            elif self._draining:
                self.events.append(TaskReturned(task.row))
            else:
                self.queue.append(task)
        self._begin()
        self._wake()

    def _begin(self) -> None:
        while self.queue and len(self.running) < self._workers and not self._draining:
            task = self.queue.popleft()
            self.running[task.row] = task
            self.begun.add((task.task_id, task.attempt))
            self._world.after(self._world.between(0.0001, 0.01), self._effect, task, owner=self._process)

    def _effect(self, task: EngineTask) -> None:
        if self.running.get(task.row) is task:
            self._oracle.effect(task.task_id, task.attempt)
            self.events.append(TaskStarted(task.row))
            self._wake()
            duration = self._world.between(0.001, self._process.site.longest_task_s)
            self._world.after(duration, self._finish, task, owner=self._process)

    def _finish(self, task: EngineTask) -> None:
        if self.running.get(task.row) is task:
            del self.running[task.row]
            self.events.append(ResultItem(task.row, task.task_id, "", "", b"answer to " + task.payload, 1.0, 2.0))
            self._begin()
            self._wake()

    def _end(self, task: EngineTask, code: str, text: str) -> None:
        self.events.append(ResultItem(task.row, task.task_id, code, text, b"", 0.0, 0.0))

    def _wake(self) -> None:
        self._world.after(self._world.between(0.00005, 0.002), self._process.turn, owner=self._process)

    def kill_worker(self) -> None:
        """A fault: one worker dies with its task."""
        if self.running:
            task = self.running.pop(self._world.rng.choice(list(self.running)))
            self._oracle.died(task.task_id)
            self._world.say("a worker dies with task %s", task.task_id)
            self._end(task, WorkerLost.code, "its worker died")
            self._begin()
            self._wake()

    def cancel(self, rows: Sequence[int]) -> None:
        wanted = set(rows)
        for task in [task for task in self.queue if task.row in wanted]:
            self.queue.remove(task)
            self._end(task, TaskCancelled.code, "cancelled")
        for row in sorted(wanted & self.running.keys()):
            task = self.running.pop(row)
            self._oracle.died(task.task_id)
            self._end(task, TaskCancelled.code, "cancelled")
        self._begin()
        self._wake()

    def collect(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def drain(self) -> None:
        self._draining = True
        self.events += [TaskReturned(task.row) for task in self.queue]
        self.queue.clear()
        self._wake()

    def stop(self, grace_s: float) -> None:
        self.drain()
        self.end()
        self.begun.clear()  # every task that was begun has its end

    def end(self) -> None:
        """Every worker is no more."""
        for task in self.running.values():
            self._oracle.died(task.task_id)
        self.running.clear()


class SimLink:
    """What a user endpoint needs of `user_endpoint.link.Link`, with its timing."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        self._key = process.world.token()
        self._connection: Connection | None = None
        self._backoff = Backoff(draw=self._world.rng.random)
        self.welcomed, self._up_since = False, 0.0
        self._beat()

    def _beat(self) -> None:
        if self.welcomed:
            self.send(messages.Ping(sent_at=self._world.now))
        self._world.after(HEARTBEAT_S, self._beat, owner=self._process)

    def connect(self) -> None:
        self.welcomed = False
        made: Connection
        made = self._connection = self._process.site.network.connect(
            self._key, lambda frame: self._came(made, frame), lambda: self._lost(made)
        )
        self._world.after(ATTEMPT_S, self._unanswered, made, owner=self._process)
        self.send(self._process.uep.hello())

    def _unanswered(self, connection: Connection) -> None:
        if connection is self._connection and not self.welcomed:
            self.disconnect("the relay does not answer")

    def _lost(self, connection: Connection) -> None:
        if connection is self._connection and not self._process.dead:
            self.disconnect("the connection was lost")

    def _came(self, connection: Connection, frame: bytes) -> None:
        if connection is not self._connection or self._process.dead:
            return
        message = codec.decode_to_uep(frame)
        if isinstance(message, messages.UepWelcome):
            self.welcomed, self._up_since = True, self._world.now
            self._process.was_welcomed = True
        if isinstance(message, messages.Refused):
            self._process.refused(message)
        self._process.turn([message])

    def send(self, message: messages.ToRelay) -> None:
        if self._connection is not None:
            self._connection.send(codec.encode(message))

    def disconnect(self, reason: str, *, wait_s: float | None = None, patient: bool = False) -> None:
        if self.welcomed and self._world.now >= self._up_since + PROVEN_S:
            self._backoff.reset()
        self._drop()
        pause = self._backoff.next_pause_s(patient=patient) if wait_s is None else wait_s
        self._world.after(pause, self.connect, owner=self._process)

    def _drop(self) -> None:
        connection, self._connection, self.welcomed = self._connection, None, False
        if connection is not None:
            connection.close()

    close = _drop

    def cut(self, *, silent: bool) -> None:
        """A fault."""
        if self._connection is not None:
            self._connection.cut(silent=silent)


class _Quiet:
    """A log that nobody reads."""

    def info(self, *_: Any, **__: Any) -> None: ...

    warning = error = debug = write = info


class _NoKeeper(Reporter):
    def __init__(self) -> None:
        super().__init__(-1)

    def _send(self, report: bytes) -> None: ...


class Process:
    """One process of a user endpoint."""

    def __init__(self, site: Site, uep_id: str, token: bytes) -> None:
        self.site, self.world, self.oracle = site, site.world, site.oracle
        self.uep_id, self.incarnation = uep_id, incarnation_of(token)
        self.dead = self.was_welcomed = False
        self.disk = site.disks.setdefault(uep_id, Disk())
        self.engine = SimEngine(self, site.workers)
        self.link = SimLink(self)
        self._tick: Handle | None = None
        rng = self.world.rng
        self.uep = UserEndpoint(
            uep_id=uep_id, join_token=token, endpoint_id=site.endpoint_id, allowed_functions=(), engine=self.engine,
            functions=Functions("/nonexistent"), spool=SimSpool(self.world, self.disk),  # type: ignore[arg-type]
            idle=IdleRule(rng.choice([2.0, 20.0, 300.0]), 3600.0, self.world.now), reporter=_NoKeeper(),
            log=_Quiet(), attempts=Attempts(1, 0), clock=self.world.monotonic,  # type: ignore[arg-type]
        )  # fmt: skip
        self.uep.link = self.link  # type: ignore[assignment]
        self.link.connect()
        self._plan()

    def turn(self, received: Sequence[messages.ToUep] = ()) -> None:
        """One turn of the user endpoint's loop (user_endpoint.event_loop.Loop)."""
        if self.dead:
            return
        uep = self.uep
        while True:
            uep.take(received)
            received = ()
            stopped = uep.stopping is not None and uep.stopping.engine_stopped
            collected = False if stopped else uep.collect()
            uep.flush()
            if not collected:
                break
        if uep.tick():
            uep.goodbye()
            assert uep.stopping is not None
            self.exit(uep.stopping.code, uep.stopping.text)
        else:
            self._plan()

    def _plan(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        due = self.uep.next_deadline()
        if due is not None:
            self._tick = self.world.at(max(due, self.world.now + 0.001), self.turn, owner=self)

    def refused(self, refused: messages.Refused) -> None:
        """The relay refuses a message. It may never turn away the process that runs, once it has welcomed it."""
        if refused.code == JoinRefused.code and self.was_welcomed and self.site.processes.get(self.uep_id) is self:
            self.oracle.broken(f"the relay turns away the running process of {self.uep_id}: {refused.text}")

    def exit(self, code: str, text: str) -> None:
        """The process ends."""
        self.world.say("process %s of %s ends: %s", self.incarnation[:3].hex(), self.uep_id, code)
        self.engine.end()
        self.oracle.gone[self.uep_id] += 1
        held = [*self.uep._ledger.held.values(), *self.disk.results.values()]
        for item in held:  # also those whose results no later process may come to send
            self.oracle.died(item.task_id)
        self.disk.begun |= self.engine.begun
        self.link.close()
        self.dead = True
        self.site.process_ended(self, code, text)

    def kill(self) -> None:
        """A fault: SIGKILL."""
        if not self.dead:
            self.exit("USER_ENDPOINT_LOST", "Its process was killed by SIGKILL.")


class Manager:
    """A manager's link and outbox, and what it knows."""

    def __init__(self, site: Site) -> None:
        self.site, self.world = site, site.world
        self.dead = self.up = False
        self._outbox = Outbox()
        self._running: dict[str, bytes] = {}
        self._untold = False
        self._backoff = Backoff(draw=self.world.rng.random)
        self._connection: Connection | None = None
        self._connect()
        self._beat()

    def _connect(self) -> None:
        made: Connection
        made = self._connection = self.site.network.connect(
            self.site.link_key, lambda frame: self._came(made, frame), lambda: self._lost(made)
        )
        self.hello()

    def hello(self) -> None:
        self._send(
            messages.ManagerHello(
                protocol=PROTOCOL_VERSION, endpoint_id=self.site.endpoint_id, epoch=self.site.epoch, version="",
                hostname="",
            )
        )  # fmt: skip

    def _send(self, message: messages.ToRelay) -> None:
        if self._connection is not None:
            self._connection.send(codec.encode(message))

    def _beat(self) -> None:
        if self.up:
            self._send(messages.Ping(sent_at=self.world.now))
        self.world.after(HEARTBEAT_S, self._beat, owner=self)

    def _lost(self, connection: Connection) -> None:
        if connection is not self._connection or self.dead:
            return
        self._connection, self.up = None, False
        self._outbox.link_lost()
        connection.close()
        self.world.after(self._backoff.next_pause_s(), self._connect, owner=self)

    def cut(self, *, silent: bool) -> None:
        """A fault."""
        if self._connection is not None:
            self._connection.cut(silent=silent)

    def _came(self, connection: Connection, frame: bytes) -> None:
        if connection is not self._connection or self.dead:
            return
        match codec.decode_to_manager(frame):
            case messages.Ping() as ping:
                self._send(messages.Pong(sent_at=ping.sent_at))
            case messages.Pong() as pong:
                self._outbox.proven(min(pong.sent_at, self.world.now))
            case messages.ManagerWelcome():
                self.up = True
                self._backoff.reset()
                self._flush()
                self._untold = True
                self._tell_running()
            case messages.Refused():
                self._lost(connection)
            case messages.SignedStart() as start:
                self.site.start(start)
            case _:
                pass

    def _flush(self) -> None:
        while self.up and (message := self._outbox.peek()) is not None:
            self._send(message)
            self._outbox.sent(self.world.now)
        self._tell_running()

    def keep(self, message: Any) -> None:
        """Send a message that must arrive."""
        self._outbox.add(message)
        self._flush()

    def _tell_running(self) -> None:
        if self._untold and self.up and self._outbox.peek() is None:
            ids = sorted(self._running)
            self._send(messages.RunningUeps(uep_ids=ids, incarnations=[self._running[one] for one in ids]))
            self._untold = False

    def runs(self, uep_id: str, incarnation: bytes, *, tell: bool = False) -> None:
        """The monitor says that a process runs; `tell` where nobody asked for it."""
        if self._running.get(uep_id) != incarnation:
            self._running[uep_id] = incarnation
            self._untold = self._untold or tell
            self._tell_running()

    def ended(self, uep_id: str, incarnation: bytes, code: str, text: str) -> None:
        """The monitor says that a process has ended."""
        if self._running.get(uep_id) == incarnation:
            del self._running[uep_id]
        said = incarnation if self.site.names_processes else b""
        self.keep(messages.UepEnded(uep_id=uep_id, code=code, text=text, correlation_id="", incarnation=said))

    def kill(self) -> None:
        """A fault: what its outbox holds is lost."""
        self.dead = True
        if self._connection is not None:
            self._connection.close()


class Site:
    """One endpoint's host."""

    names_processes = True
    """Whether its manager names the process in what it says of an end."""

    def __init__(self, world: World, network: Network, oracle: Oracle, endpoint_id: str) -> None:
        self.world, self.network, self.oracle, self.endpoint_id = world, network, oracle, endpoint_id
        self.link_key, self.epoch = world.token(), world.token(EPOCH_BYTES)
        self.disks: dict[str, Disk] = {}
        self.processes: dict[str, Process] = {}
        self._starting: dict[str, bytes] = {}
        self._unheard: list[Callable[[Manager], None]] = []
        self.workers = world.rng.choice([1, 2, 4])
        self.longest_task_s = world.rng.choice([0.05, 1.0, 20.0])
        self.refusing = self.dying = self.busy = 0.0
        """How often a start is refused, dies, or finds no room."""
        self.manager: Manager | None = None
        self.monitor_up = True

    def boot(self) -> None:
        """Start the manager."""
        if self.monitor_up and (self.manager is None or self.manager.dead):
            self.manager = Manager(self)
            for uep_id, process in self.processes.items():
                self.manager.runs(uep_id, process.incarnation, tell=True)
            unheard, self._unheard = self._unheard, []
            for tell in unheard:
                tell(self.manager)

    def kill_manager(self) -> None:
        """A fault: it is started again."""
        if self.manager is not None and not self.manager.dead:
            self.world.say("the manager of %s dies", self.endpoint_id)
            self.manager.kill()
            self.world.after(self.world.between(0.1, 3.0), self.boot)

    def kill_monitor(self) -> None:
        """A fault: its helpers die with it; keepers and user endpoints go on."""
        if self.monitor_up:
            self.kill_manager()
            self.monitor_up = False
            self.epoch = self.world.token(EPOCH_BYTES)
            self._starting.clear()
            self.world.after(self.world.between(0.5, 40.0), self._monitor_is_back)

    def _monitor_is_back(self) -> None:
        self.monitor_up = True
        self.boot()

    def _tell(self, what: Callable[[Manager], None]) -> None:
        """Have the manager hear of something, now or once there is one."""
        if self.monitor_up and self.manager is not None and not self.manager.dead:
            what(self.manager)
        elif not self.monitor_up or self.world.chance(0.5):  # else the manager died with it
            self._unheard.append(what)

    # --- starts ----------------------------------------------------------------------------------

    def start(self, start: messages.SignedStart) -> None:
        """The manager passes on a start request."""
        epoch, token = start.request[:EPOCH_BYTES], start.request[EPOCH_BYTES:]
        manager = self.manager

        def answer(outcome: str, code: str = "", text: str = "", incarnation: bytes = b"") -> None:
            if manager is not None and not manager.dead:
                if incarnation:
                    manager.runs(start.uep_id, incarnation)
                manager.keep(
                    messages.StartAnswer(
                        uep_id=start.uep_id, outcome=outcome, code=code, text=text, correlation_id="",
                        asked=start.incarnation, incarnation=incarnation,
                    )
                )  # fmt: skip

        running = self.processes.get(start.uep_id)
        if epoch != self.epoch:
            answer("unavailable", StartRequestStale.code, "stale")
        elif running is not None:
            answer("already_running", incarnation=running.incarnation)
        elif start.uep_id in self._starting:
            answer("already_running", incarnation=self._starting[start.uep_id])
        elif self.world.chance(self.busy):
            self.world.after(self.world.between(0.001, 0.1), answer, "unavailable", SiteBusy.code, "busy")
        elif self.world.chance(self.refusing):
            error = self.world.rng.choice([EndpointMisconfigured, StartFailed])
            delay = self.world.between(0.001, 2.0)
            self.world.after(delay, answer, "refused", error.code, "The start was refused.")
        else:
            self._starting[start.uep_id] = start.incarnation
            delay = self.world.between(0.01, 2.0)
            self.world.after(delay, self._started, start.uep_id, token, answer)

    def _started(self, uep_id: str, token: bytes, answer: Callable[..., None]) -> None:
        if self._starting.get(uep_id) != incarnation_of(token):
            return  # the monitor has died meanwhile
        del self._starting[uep_id]
        incarnation = incarnation_of(token)
        if self.world.chance(self.dying):
            answer("started", incarnation=incarnation)
            self.world.say("the start of %s dies", uep_id)
            self.oracle.gone[uep_id] += 1
            delay = self.world.between(0.001, 1.0)
            self.world.after(delay, self._ended, uep_id, incarnation, StartFailed.code, "It died as it started.")
            return
        self.world.say("process %s of %s begins", incarnation[:3].hex(), uep_id)
        if self.world.chance(0.5):
            answer("started", incarnation=incarnation)
        else:
            self.world.after(self.world.between(0.001, 1.0), answer, "started", "", "", incarnation)
        self.processes[uep_id] = Process(self, uep_id, token)

    def process_ended(self, process: Process, code: str, text: str) -> None:
        """A process is gone: its keeper says so."""
        delay = self.world.between(0.005, 0.5)
        self.world.after(delay, self._reaped, process, code, text)

    def _reaped(self, process: Process, code: str, text: str) -> None:
        if self.processes.get(process.uep_id) is process:
            del self.processes[process.uep_id]
        self._ended(process.uep_id, process.incarnation, code, text)

    def _ended(self, uep_id: str, incarnation: bytes, code: str, text: str) -> None:
        self._tell(lambda manager: manager.ended(uep_id, incarnation, code, text))
