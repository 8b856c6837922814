"""Blocks of workers: started when tasks wait, watched, and ended when they idle. On a thread of its own.

Schedulers' commands take seconds and never run on the user endpoint's thread. The two threads share only the
state protected by `_lock`. The engine reports the number of tasks and the registered blocks, and reads the
blocks' events. Parsl's exceptions end here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from mep_wire.errors import EngineFailed, MepError
from mep_wire.text import field_text
from mep_wire.waits import SENTENCES, WaitCode
from user_endpoint.engines.htex import provider as providers
from user_endpoint.engines.htex.executor import InterchangeClient, InterchangeDied
from user_endpoint.engines.htex.failures import BlockFailure, Cause, Failures, of_block, of_error
from user_endpoint.engines.htex.job_record import JobRecord
from user_endpoint.engines.htex.parsl_import import light_parsl
from user_endpoint.engines.htex.scheduler import PARSL_RAISES, SCHEDULERS, SILENT, TERMINAL, Scheduler
from user_endpoint.engines.htex.walltimes import Ends, blocks_for
from user_endpoint.engines.start_journals import StartJournals
from user_endpoint.settings import GlobusComputeSettings, StrategySettings

with light_parsl():
    from parsl.jobs.states import JobState

_log = logging.getLogger(__name__)

HEALTHY_S = 600.0
"""Seconds for which an interchange must have run so that its death says nothing about the next one's."""
ASK_EVERY_S = 10.0
"""Seconds between two questions whether the interchange still answers."""
_LOCAL_POLL_S = 0.5
_IDLE_POLL_S = 5.0
_SOONEST_POLL_S = 1.0
"""Seconds between two questions to a scheduler while something has just changed; grows to the provider's own."""


@dataclass(frozen=True, slots=True)
class ExecutorReady:
    """The executor takes tasks. The reader of this event closes its task sockets."""

    client: InterchangeClient


@dataclass(frozen=True, slots=True)
class BlockLost:
    """The job of a block has ended."""

    block_id: str


@dataclass(frozen=True, slots=True)
class BlocksFailed:
    """No task that waits can run, nor any that comes before `until` (on time.monotonic), for this reason."""

    error: MepError
    until: float
    """Infinite where the engine is over."""
    begun: set[int] | None = None
    """Where it is over: the tasks that workers had begun. They can't begin another. None if that can't be known."""


@dataclass(frozen=True, slots=True)
class InterchangeRestarted:
    """The interchange has died, and with it every block; Ready follows."""

    begun: set[int]
    """The tasks that workers of those blocks had begun. Those workers can't begin another."""


@dataclass(frozen=True, slots=True)
class BlockTrouble:
    """What tasks wait for: something that failed and is tried again, or a job that has not begun. Empty: nothing."""

    text: str
    code: str = WaitCode.BLOCKS_FAILING


BlockEvent = ExecutorReady | BlockLost | BlocksFailed | InterchangeRestarted | BlockTrouble


@dataclass(slots=True)
class _Block:
    job_id: Any
    submitted: float
    since: float
    """When the job was first seen to run, or was submitted."""
    running: bool = False
    registered: bool = False


class Blocks:
    """See the module. `notify` is called, from the thread, when there is news."""

    def __init__(
        self,
        settings: GlobusComputeSettings,
        plan: providers.Plan,
        directory: Path,
        notes: StartJournals,
        notify: Callable[[], None],
    ) -> None:
        self._settings, self._plan, self._directory, self._notify = settings, plan, directory, notify
        self._notes = notes
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._block_events: list[BlockEvent] = []
        self._outstanding = 0
        self._walltimes: list[float] = []
        self._registered: list[str] = []
        self._jobs: dict[str, str] = {}
        self._ends = Ends()
        self._node_left = False
        self._workers_per_node = settings.max_workers_per_node or 0
        self._grace_s = 5.0
        self._thread = threading.Thread(target=self._run, name="blocks", daemon=True)
        # From here on: the thread's own.
        self._record = None if plan.is_local else JobRecord(directory.parent / "htex-jobs.json", plan.name)
        self._client: InterchangeClient | None = None
        self._scheduler: Scheduler
        self._handed_over = self._looked_back = False
        self._blocks: dict[str, _Block] = {}
        self._block_failures = Failures("blocks of workers")
        self._interchange_failures = Failures("Parsl's interchange")
        self._started_at = 0.0
        """When the interchange was last started."""
        self._next_question = time.monotonic() + ASK_EVERY_S
        self._next_status, self._next_strategy, self._idle_since = 0.0, 0.0, 0.0
        self._told_pending = ""
        self._changed = 0.0
        """When a job was last submitted, seen to begin, or known to be ending."""

    # --- the engine's side ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def want(self, outstanding: int, walltimes: Iterable[float] = ()) -> None:
        """Say how many tasks there are, running ones included, and the walltimes of those that have not begun."""
        with self._lock:
            timed = list(walltimes)
            first = (outstanding and not self._outstanding) or (timed and not self._walltimes)
            self._outstanding, self._walltimes = outstanding, timed
        if first:
            self._wake.set()

    def registered(self, block_id: str, workers: int, left_s: float | None = None) -> bool:
        """Say that a node of this block has registered so many workers, and how many seconds are left of the block.
        Returns whether it was the block's first node."""
        with self._lock:
            self._registered.append(block_id)
            self._workers_per_node = workers
            return self._ends.registered(block_id, left_s)

    def location(self, block_id: str) -> tuple[str, str]:
        """Return a block's id and, where that is known, the scheduler's id of its job."""
        with self._lock:
            return block_id, self._jobs.get(block_id, "")

    def listing(self) -> str:
        """Return the blocks with their jobs and states. Called from the user endpoint's thread."""
        found = list(self._blocks.items())
        return ", ".join(
            f"{block_id} job {block.job_id} {'running' if block.running else 'pending'}" for block_id, block in found
        )

    def node_left(self) -> None:
        """Say that a node has taken its leave: its job is ending."""
        with self._lock:
            self._node_left = True
        self._wake.set()

    def take_events(self) -> list[BlockEvent]:
        """Return the events since the last call."""
        with self._lock:
            block_event, self._block_events = self._block_events, []
        return block_event

    def stop(self, grace_s: float) -> None:
        """End every block and the interchange, and the thread."""
        self._grace_s = grace_s
        self._ending.set()
        self._wake.set()
        self._thread.join(grace_s + 10.0)

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._begin()
            while not self._ending.is_set():
                self._wake.wait(self._interval())
                self._wake.clear()
                if not self._ending.is_set():
                    self._look_or_restart()
        except MepError as error:
            self._over(error)
        except Exception as error:  # noqa: BLE001 - a thread's outermost frame: tasks wait for what it has to say
            _log.exception("blocks can no longer be looked after")
            self._over(EngineFailed(reason=f"{type(error).__name__}: {error}"))
        finally:
            self._end()

    def _over(self, error: MepError) -> None:
        """Tell the engine that it is over, and which tasks had begun: reading that may take a while, so it is here."""
        _log.error("the engine is over code=%s reason=%s", error.code, field_text(error.text))
        begun: set[int] | None = set()
        try:
            if self._client is not None:
                begun = self._notes.close(self._client.begun_directory)
        except OSError as problem:
            _log.warning("notes cannot be read: tasks are taken to have begun: %s", problem)
            begun = None
        self._tell(BlocksFailed(error, math.inf, begun))

    def _begin(self) -> None:
        """Start the interchange. Raises EngineFailed where it comes to nothing again and again."""
        while not self._ending.is_set():
            tried_at = time.monotonic()
            try:
                if not self._looked_back:
                    self._notes.look_back()
                    self._looked_back = True
                self._start_client()
            except InterchangeDied as error:
                self._not_started(tried_at, BlockFailure(Cause.KILLED if error.killed else Cause.BROKEN, str(error)))
            except (OSError, zmq.ZMQError, subprocess.TimeoutExpired) as error:
                failure = of_error(error)
                if failure.cause is Cause.BROKEN:
                    raise
                self._not_started(tried_at, failure)
            else:
                return

    def _not_started(self, tried_at: float, failure: BlockFailure) -> None:
        """A start has failed: pause before the next. Raises EngineFailed once there is to be none."""
        _log.warning("the interchange could not be started reason=%s", failure.text)
        if reason := self._interchange_failures.note(time.monotonic(), tried_at, failure):
            raise EngineFailed(reason=reason)
        self._discard_client()
        self._tell(BlockTrouble(self._interchange_failures.so_far(failure)))
        self._ending.wait(max(0.0, self._interchange_failures.next_at - time.monotonic()))

    def _discard_client(self) -> None:
        """End a dead interchange's blocks. The engine is told first which tasks they had begun."""
        if self._client is not None:
            self._tell(InterchangeRestarted(self._notes.close(self._client.begun_directory)))
        self._end(told=False)

    def _look_or_restart(self) -> None:
        try:
            self._look()
        except SILENT:
            assert self._client is not None, "it was asked"
            self._client.kill()
            self._restart()
        except OSError as error:
            if of_error(error).cause is Cause.BROKEN:
                raise
            _log.warning("blocks cannot be looked after now error=%s", error)  # the next look comes after the interval

    def _tell(self, *block_event: BlockEvent) -> None:
        with self._lock:
            self._block_events += block_event
        self._notify()

    def _start_client(self) -> None:
        provider = self._plan.make()
        self._scheduler = scheduler_of(self._plan.name, provider, self._record)
        self._scheduler.cancel_left_over(time.monotonic())
        many = self._plan.most_pools > 1
        given = self._settings.prefetch_capacity
        prefetch = given if given is not None else (0 if many else 64)
        client = InterchangeClient(
            self._settings,
            provider,
            self._plan.addresses,
            prefetch,
            self._directory,
            block_walltime_s=self._plan.block_walltime_s,
            packages=self._plan.staged(str(self._directory.parent)),
            begun_directory=self._notes.open(),
        )
        self._client = client
        self._handed_over = False
        client.meanwhile = self._first_blocks
        client.start()  # type: ignore[no-untyped-call] # Parsl's
        if not self._blocks:
            self._first_blocks()
        self._handed_over, self._started_at = True, time.monotonic()
        self._tell(ExecutorReady(client))

    def _first_blocks(self) -> None:
        """Start the initial blocks while the interchange is still loading."""
        assert self._client is not None, "called while it starts"
        if time.monotonic() < self._block_failures.next_at:
            return
        with self._lock:
            waiting = self._outstanding > 0
        wanted = min(self._client.jobs.max_blocks, max(self._client.jobs.init_blocks, int(waiting)))
        self._scale_out(wanted)

    def _interval(self) -> float:
        usual = _LOCAL_POLL_S if self._plan.is_local else 1.0
        if self._blocks or not self._plan.is_local:
            return usual
        pause = self._block_failures.next_at - time.monotonic()
        return max(usual, pause) if 0.0 < pause < _IDLE_POLL_S else _IDLE_POLL_S

    def _look(self) -> None:
        client, now = self._client, time.monotonic()
        assert client is not None, "started"
        if client.interchange_proc is None or client.interchange_proc.poll() is not None:
            self._restart()
            return
        if now >= self._next_question:
            self._next_question = now + ASK_EVERY_S
            client.ask()
        self._note_registered()
        with self._lock:
            left, self._node_left = self._node_left, False
        if left:
            self._note_change(now)
        self._scheduler.try_again(now)
        if now >= self._next_status:
            self._watch(client, now)
            self._tell_pending()
            self._next_status = now + self._until_next_status(client, now)
        self._scale(client, now)

    def _until_next_status(self, client: InterchangeClient, now: float) -> float:
        """Return the seconds until the scheduler is asked again: soon after a change, then ever more rarely."""
        if self._plan.is_local:
            return _LOCAL_POLL_S
        return float(min(client.status_polling_interval, max(_SOONEST_POLL_S, (now - self._changed) / 4)))

    def _note_change(self, now: float) -> None:
        self._changed = now
        self._next_status = min(self._next_status, now + _SOONEST_POLL_S)

    def _note_registered(self) -> None:
        with self._lock:
            registered, self._registered = self._registered, []
        for block_id in registered:
            self._block_failures.over()
            if (block := self._blocks.get(block_id)) is not None:
                block.registered = True

    def _restart(self) -> None:
        """The interchange has died: end its blocks, begin again. Only the first time in a row is there no pause."""
        now = time.monotonic()
        if now - self._started_at >= HEALTHY_S:
            self._interchange_failures.over()
        first = not self._interchange_failures
        failure = BlockFailure(Cause.KILLED, "Parsl's interchange was killed")
        reason = self._interchange_failures.note(now, self._started_at, failure)
        self._discard_client()
        if reason:
            raise EngineFailed(reason=reason)
        if not first:
            self._tell(BlockTrouble(self._interchange_failures.so_far(failure)))
            self._ending.wait(max(0.0, self._interchange_failures.next_at - now))
        self._begin()

    def _end(self, *, told: bool = True) -> None:
        """End everything. `told`: pools have been told to leave."""
        client, self._client = self._client, None
        if client is None:
            return
        groups = self._local_groups()
        if told and self._plan.is_local and self._blocks:
            _until(lambda: self._all_gone(client), min(1.0, self._grace_s))
        self._cancel(list(self._blocks))
        client.end_interchange(max(1.0, self._grace_s))
        if not self._handed_over:
            client.close_task_sockets()
        for group in groups:
            if not _until(functools.partial(_gone, group), 1.0):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)

    def _local_groups(self) -> list[int]:
        """Return the process groups of blocks on this host."""
        found = []
        for block in self._blocks.values() if self._plan.is_local else ():
            with contextlib.suppress(ProcessLookupError, ValueError):
                found.append(os.getpgid(int(block.job_id)))
        return found

    def _all_gone(self, client: InterchangeClient) -> bool:
        self._watch(client, time.monotonic(), ending=True)
        return not self._blocks

    # --- watching -------------------------------------------------------------------------------------

    def _watch(self, client: InterchangeClient, now: float, *, ending: bool = False) -> None:
        """Ask the scheduler for the state of every block. A block without an answer is left as it is."""
        if not self._blocks:
            return
        ids = list(self._blocks)
        statuses = self._scheduler.status([self._blocks[block_id].job_id for block_id in ids])
        for block_id, status in zip(ids, statuses, strict=True):
            block = self._blocks[block_id]
            if status is None:
                continue
            if status.state in TERMINAL:
                if not ending:
                    self._note_registered()  # it may have done so while the scheduler was asked
                    self._block_ended(block_id, block, status)
                self._scheduler.ended(self._forget(block_id).job_id)
            elif status.state == JobState.RUNNING:
                if not block.running:
                    _log.info("block running block=%s job=%s", block_id, field_text(block.job_id))
                    block.running, block.since = True, now
                    self._note_change(now)
                if not block.registered and now - block.since > self._settings.block_start_timeout_s and not ending:
                    self._cancel([block_id])
                    self._tell(BlockLost(block_id))
                    limit = self._settings.block_start_timeout_s
                    what = f"its workers had not registered after {limit:.0f} s"
                    self._block_failed(block_id, block, what, status)

    def _tell_pending(self) -> None:
        """Tell what the scheduler says of jobs that tasks wait for, whenever that changes."""
        if self._block_failures:
            return  # that is told, and may be why there is a new job
        with self._lock:
            tasks = self._outstanding > 0
        waits = tasks and not any(block.running for block in self._blocks.values())
        jobs = [block.job_id for block in self._blocks.values() if not block.running] if waits else []
        words = self._scheduler.words_on_pending(jobs) if jobs else ""
        if words != self._told_pending:
            self._told_pending = words
            if words:
                _log.info("jobs are pending: %s", field_text(words))
            text = SENTENCES[WaitCode.JOB_PENDING].format(words=words) if words else ""
            self._tell(BlockTrouble(text, WaitCode.JOB_PENDING))

    def _block_ended(self, block_id: str, block: _Block, status: Any) -> None:
        self._tell(BlockLost(block_id))
        if not block.registered:
            what = f"it ended ({status.state.name.lower()}) before its workers had registered"
            self._block_failed(block_id, block, what, status)
        else:
            _log.info("block ended block=%s job=%s state=%s", block_id, block.job_id, status.state.name)

    def _block_failed(self, block_id: str, block: _Block, what: str, status: Any) -> None:
        failure = of_block(what, status, str(self._directory))
        _log.warning(
            "a block failed block=%s job=%s cause=%s reason=%s stderr=%s", block_id, field_text(block.job_id),
            failure.cause.name, field_text(failure.text), field_text(status.stderr_path or ""),
        )  # fmt: skip
        reason = self._block_failures.note(time.monotonic(), block.submitted, failure)
        self._wake.set()
        if any(block.registered for block in self._blocks.values()):
            return  # waiting tasks can run there
        if not reason or not self._settings.block_error_handler:
            self._tell(BlockTrouble(self._block_failures.so_far(failure)))
        else:
            _log.error("tasks that wait fail code=%s reason=%s", EngineFailed.code, field_text(reason))
            self._tell(BlocksFailed(EngineFailed(reason=reason), self._block_failures.next_at))

    # --- how many -------------------------------------------------------------------------------------

    def _scale(self, client: InterchangeClient, now: float) -> None:
        with self._lock:
            outstanding = self._outstanding
        if outstanding:
            self._idle_since = now
        stranded = self._stranded(now)
        if stranded or (not self._blocks and outstanding) or now >= self._next_strategy:
            self._next_strategy = now + self._settings.job_status_kwargs.strategy_period
            wanted = self._wanted(client.jobs, outstanding)
            if stranded:
                wanted = self._with_room_for(stranded, wanted, client, now)
            missing = wanted - len(self._blocks)
            if missing > 0 and now >= self._block_failures.next_at:
                self._scale_out(1 if self._block_failures else missing)
            elif missing < 0:
                self._scale_in(client, -missing, outstanding, now)

    def _stranded(self, now: float) -> list[float]:
        """Return the walltimes of tasks for which every block that is up is too old."""
        if not self._walltimes:
            return []
        with self._lock:
            return self._ends.stranded(self._that_are_up(), self._walltimes, now)

    def _that_are_up(self) -> list[str]:
        return [block_id for block_id, block in self._blocks.items() if block.registered]

    def _with_room_for(self, stranded: list[float], wanted: int, client: InterchangeClient, now: float) -> int:
        """Return how many blocks there must be with those for the stranded; idle ones make room for them if need be."""
        new = blocks_for(stranded, self._slots())
        missing = new - (len(self._blocks) - len(self._that_are_up()))
        over = len(self._blocks) + missing - client.jobs.max_blocks
        if missing > 0 and over > 0:
            self._end_idle(client, over, 0.0, now, among=self._that_are_up())
        return int(min(client.jobs.max_blocks, max(wanted, len(self._that_are_up()) + new)))

    def _slots(self) -> int:
        """Return how many tasks a block runs at once, 0 before its first node has told."""
        with self._lock:
            return int(self._plan.pools_per_block * self._workers_per_node)

    def _wanted(self, jobs: Any, outstanding: int) -> int:
        if self._settings.strategy == "none":
            return int(min(jobs.max_blocks, max(jobs.init_blocks, len(self._blocks), 1 if outstanding else 0)))
        slots = self._slots()
        needed = math.ceil(outstanding * jobs.parallelism / slots) if slots else 1  # the first node will tell
        return int(min(jobs.max_blocks, max(jobs.min_blocks, needed, 1 if outstanding else 0)))

    def _scale_out(self, count: int) -> None:
        assert self._client is not None, "started"
        began = time.monotonic()
        for _ in range(count):
            for block_id in self._client.scale_out_facade(1):
                job = self._client.blocks_to_job_id[block_id]
                self._blocks[block_id] = _Block(job, began, time.monotonic())
                self._scheduler.submitted(job)
                with self._lock:
                    self._jobs[block_id] = str(job)
                _log.info("block submitted block=%s job=%s", block_id, field_text(job))
        self._note_change(time.monotonic())
        for block_id in list(self._client._simulated_status):  # noqa: SLF001 - where Parsl keeps refused submissions
            status = self._client._simulated_status.pop(block_id)  # noqa: SLF001
            self._block_failed(block_id, _Block(None, began, began), "it was not accepted", status)

    def _scale_in(self, client: InterchangeClient, count: int, outstanding: int, now: float) -> None:
        """End blocks that have had nothing to do for long enough."""
        strategy = self._settings.strategy
        limit = (
            strategy.max_idletime
            if isinstance(strategy, StrategySettings)
            else self._settings.job_status_kwargs.max_idletime
        )
        if strategy != "htex_auto_scale" and (outstanding or now - self._idle_since < limit):
            return
        self._end_idle(client, count, limit, now)

    def _end_idle(
        self, client: InterchangeClient, count: int, limit: float, now: float, among: Sequence[str] | None = None
    ) -> None:
        """End at most so many blocks (of these) that have had nothing to do for `limit` seconds."""
        try:
            idle = [each for each in self._idle(client, limit, now) if among is None or each in among][:count]
            for block_id in idle:
                client.hold(block_id)  # so that no task is sent there in the meantime
            still = set(self._idle(client, 0.0, now))
        except PARSL_RAISES:
            return  # the interchange does not answer; whether it lives is looked at elsewhere
        self._cancel([block_id for block_id in idle if block_id in still])

    def _idle(self, client: InterchangeClient, seconds: float, now: float) -> list[str]:
        """Return the blocks with nodes that have been idle for so long, and those that have waited in vain."""
        nodes = client.nodes()
        busy = {node["block_id"] for node in nodes if node["tasks"] or node["idle_duration"] < seconds}
        return [
            block_id
            for block_id, block in self._blocks.items()
            if block_id not in busy and (block.registered or now - block.since >= seconds)
        ]

    def _forget(self, block_id: str) -> _Block:
        with self._lock:
            self._ends.forget(block_id)
        return self._blocks.pop(block_id)

    def _cancel(self, block_ids: list[str]) -> None:
        if not block_ids:
            return
        self._scheduler.cancel([self._forget(block_id).job_id for block_id in block_ids], time.monotonic())


def scheduler_of(name: str, provider: Any, record: JobRecord | None) -> Scheduler:
    """Return the scheduler behind the provider class of this name."""
    if name == "KubernetesProvider":
        from user_endpoint.engines.htex.kubernetes_pods import Pods  # needs the Kubernetes client, as its provider does

        return Pods(provider, record)
    return SCHEDULERS.get(name, Scheduler)(provider, record)


def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Return whether `done` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _gone(group: int) -> bool:
    """Tell whether every process of a group has ended; zombies have."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, its_group = Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[:3]
                if int(its_group) == group and state != "Z":
                    return False
    return True
