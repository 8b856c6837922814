"""The relay's in-memory state of managers and user endpoints.

All of it can be lost: everything that must survive is in the store. Its size grows with the number of live links,
never with the number of tasks.

Used by the other modules of this package, always in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from mep_wire.errors import RelayUnavailable
from mep_wire.messages import Explain
from mep_wire.start_request import same_process
from mep_wire.states import UepState, next_uep_state
from mep_wire.waits import Wait
from relay.dispatch.open_tasks import OpenTasks
from relay.dispatch.start_trouble import StartTrouble
from relay.dispatch.stories import Stories
from relay.link.base import LinkSession, Peer, RelayLink
from relay.log import RateLimitedLog
from relay.store.base import Store, Tx
from relay.store.records import UepRecord

T = TypeVar("T")

STORE_RETRY_S = 1.0


@dataclass(eq=False, kw_only=True, slots=True)
class ManagerLink(LinkSession):
    """A manager with a live link."""

    endpoint_id: str
    peer: Peer
    epoch: bytes
    end_users: bool = False
    """Whether the endpoint's mapper takes a gateway's end user."""
    skew_s: float = 0.0
    """How far its clock is ahead of the relay's; negative: behind."""
    running: dict[str, bytes] = field(default_factory=dict)
    """The user endpoints that have a process there, as far as it has said: id and incarnation."""
    takes_inputs: bool = False
    """Whether its user endpoints take tasks with the results of others."""
    questions: deque[Explain] = field(default_factory=deque)
    """Those of its administrator that are not answered yet."""
    reported: bool = False
    """Whether it has said since this link came up which user endpoints run."""

    def runs(self, record: UepRecord) -> bool:
        """Whether it has said that the process of `record` runs."""
        said = self.running.get(record.uep_id)
        return said is not None and same_process(said, record.incarnation)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Uep(LinkSession):
    """A user endpoint with tasks, a link or a start under way."""

    record: UepRecord
    state: UepState = UepState.ABSENT
    peer: Peer | None = None
    credit: int = 0
    functions_sent: set[str] = field(default_factory=set)
    has_queued: bool = False
    pumping: bool = False
    unsettled: bool = False
    """Its process is gone and had tasks that may have begun. Their results may be in its spool: the next process will
    report them."""
    starting: bool = False
    """A start request is being made or waits for its answer or its join."""
    start_answered: bool = False
    """The manager says that the process of the start under way runs."""
    asked: bytes = b""
    """The incarnation in the start request that was sent last."""
    correlation_id: str = ""
    """Of the start request that was sent last."""
    answered: bytes = b""
    """Of the process that the manager says runs since then: `asked`, or that of an earlier request."""
    queue_position: int = 0
    """Its position in the site's queue of starts, as its manager last reported; 0 for none."""
    attempts: int = 0
    """Starts that came to nothing since the last link."""
    unjoined_since: float = 0.0
    """By the loop's clock: when its manager first said that it runs without there being a link; 0: it has not."""
    default_attempts: int = 1
    """How often a task without its own limit may be begun there, as its process last reported."""
    most_attempts: int = 0
    """The highest limit that a task may set, 0 for any."""
    takes_inputs: bool = False
    """Whether its process takes tasks with the results of others."""
    worker_python: str = ""
    """The Python of its workers, as its process has said last."""
    trouble: StartTrouble = field(default_factory=StartTrouble)
    engine_trouble: Wait | None = None
    """What keeps its engine from beginning tasks, as its process has said last."""
    no_room: Wait | None = None
    """Why a piece of a result of its was not taken: its person's quota is full."""
    settled: bytes = b""
    """The link key of the process that told last which tasks it holds. What it lacks next time has crossed a cut."""
    last_code: str = ""
    last_text: str = ""
    """What its manager answered last to a start request."""
    answered_since: float = 0.0
    """Since when it has answered with `last_code`. Times here are in seconds since the epoch."""
    asked_since: float = 0.0
    """Since when a process has been asked for; 0 while one has a link."""
    queued_since: float = 0.0
    """Since when the start waits in the site's queue."""
    used_at: float = 0.0
    """By the loop's clock: when tasks of it last came or ended; 0 for not since the relay's start."""
    ends_for_room: bool = False
    """Whether it was told to end so that another of its person's can start, and its process is not gone yet."""
    last_end: str = ""
    """The manager's report of how its last process ended."""
    grace_until: float = 0.0
    """By the loop's clock: until then its absence from its manager's list proves nothing."""
    timer: asyncio.TimerHandle | None = None
    """The start's deadline, or the next try."""

    @property
    def row(self) -> int:
        """The store's key."""
        return self.record.row

    @property
    def needed(self) -> bool:
        """Whether it has to run: tasks wait for it, or its spool has to be asked."""
        return self.has_queued or self.unsettled

    def go(self, then: UepState) -> None:
        """Change state by the table. Raises IllegalTransition."""
        if then is not self.state:
            self.state = next_uep_state(self.state, then)

    def unlink(self) -> None:
        """Forget the link, and the state that belonged to it."""
        if self.peer is not None:
            self.peer.session = None
        self.peer, self.credit, self.engine_trouble, self.no_room = None, 0, None, None
        self.functions_sent.clear()

    def set_process(self, link_key: bytes, incarnation: bytes) -> None:
        """Note which process this is, none with an empty key."""
        self.record = msgspec.structs.replace(self.record, link_key=link_key, incarnation=incarnation)
        self.ends_for_room = False

    def has_joined(self, incarnation: bytes) -> bool:
        """Whether the process of this incarnation is the one that is enrolled."""
        return bool(self.record.link_key) and same_process(incarnation, self.record.incarnation)

    def is_starting(self, incarnation: bytes) -> bool:
        """Whether the process of this incarnation came from the start under way, according to its manager."""
        return self.state is UepState.STARTING and self.start_answered and same_process(incarnation, self.answered)

    def set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        """Replace the timer."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


@dataclass(eq=False, kw_only=True, slots=True)
class Joining(LinkSession):
    """The session of a peer while its join is being stored: its messages wait until then."""

    record: UepRecord
    offered: bytes
    incarnation: bytes
    held: list[int]
    default_attempts: int
    most_attempts: int
    takes_inputs: bool = False
    early: list[bytes] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class LiveState:
    """Everything shared inside this package."""

    store: Store
    link_: RelayLink
    loop: asyncio.AbstractEventLoop
    cut: Callable[[Peer, str], None]
    """Ends a link, as when it is silent."""
    managers: dict[str, ManagerLink] = field(default_factory=dict)
    up_since: float = field(default_factory=time.time)
    """When the relay started, in seconds since the epoch."""
    away_since: dict[str, float] = field(default_factory=dict)
    """When the link of an endpoint's manager broke, for endpoints that had one since the relay's start."""
    ueps: dict[str, Uep] = field(default_factory=dict)
    """By id: every user endpoint with unfinished tasks, a link or a start under way."""
    by_row: dict[int, Uep] = field(default_factory=dict)
    """The same, by the store's row."""
    _known: WeakValueDictionary[str, Uep] = field(default_factory=WeakValueDictionary)
    """Those, and every forgotten record that a step under way still holds: a second record for the same user endpoint
    would miss changes to the first."""
    draining: bool = False
    """Whether no new tasks are taken, since the administrator wants the relay to end."""
    open_tasks: OpenTasks = field(init=False)
    stories: Stories = field(default_factory=Stories)
    _background: set[asyncio.Task[Any]] = field(default_factory=set)
    _limited_log: RateLimitedLog = field(default_factory=RateLimitedLog)

    def __post_init__(self) -> None:
        """Count in the same store."""
        self.open_tasks = OpenTasks(self.store)

    def uep(self, record: UepRecord) -> Uep:
        """Return the one live record of a user endpoint, made now where there is none."""
        known = self._known.get(record.uep_id)
        if known is None or known.row != record.row:
            known = self._known[record.uep_id] = Uep(record)
        if self.ueps.get(record.uep_id) is not known:  # new, or forgotten: only the store knows later changes
            known.has_queued = self.store.has_queued(record.row)
            known.unsettled = not known.record.link_key and self.store.has_active(record.row)
            self.keep(known)
        return known

    def keep(self, uep: Uep) -> None:
        """Keep the record of a user endpoint that has something to remember, also one that was forgotten before."""
        self.ueps[uep.record.uep_id] = self.by_row[uep.row] = uep

    def tell(self, uep: Uep, level: str, text: str, correlation_id: str = "") -> None:
        """Add an event about a user endpoint to its endpoint's story."""
        record = uep.record
        self.stories.note(
            record.endpoint_id, level, text, uep_id=record.uep_id, correlation_id=correlation_id or uep.correlation_id
        )

    def of_endpoint(self, endpoint_id: str) -> list[Uep]:
        """Return the live user endpoints of one endpoint."""
        return [uep for uep in self.ueps.values() if uep.record.endpoint_id == endpoint_id]

    def forget_idle(self, uep: Uep) -> None:
        """Drop the live record of a user endpoint that has nothing to remember, unless a step under way holds it."""
        idle = not (uep.has_queued or uep.unsettled or uep.starting or uep.pumping or uep.record.link_key)
        if idle and uep.state is UepState.ABSENT and uep.peer is None:
            uep.set_timer(None)
            self.ueps.pop(uep.record.uep_id, None)
            self.by_row.pop(uep.row, None)

    def saw(self, ueps: Sequence[Uep]) -> Future[None]:
        """Note that these user endpoints have, or had until now, a link."""
        rows, now = [uep.row for uep in ueps], time.time()
        for uep in ueps:
            uep.record = msgspec.structs.replace(uep.record, seen_at=now)
        return self.store.submit(lambda tx: tx.touch_ueps(rows, now))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the side; a failure is logged."""
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._limited_log.error("dispatch: a step failed", exc_info=task.exception())

    def when_durable(self, peer: Peer | None, future: Future[T], then: Callable[[T], None]) -> None:
        """Call `then` with the result in this thread: at once if the commit is done already.

        If it failed, the link that it came from is cut: the peer reconnects and repeats its unconfirmed messages.
        """

        def finish() -> None:
            failure = future.exception()
            if failure is None:
                then(future.result())
                return
            self._limited_log.error("dispatch: not stored", error=repr(failure))
            if peer is not None:
                self.cut(peer, "what it said could not be stored")

        if future.done():
            finish()
        else:
            future.add_done_callback(lambda _: self.loop.call_soon_threadsafe(finish))

    async def submit_retrying(self, change: Callable[[Tx], T]) -> T:
        """Have a change stored, however long the store cannot write."""
        while True:
            try:
                return await durable(self.store.submit(change))
            except RelayUnavailable as error:
                self._limited_log.error("dispatch: a step is tried again", reason=error, detail=error.detail)
                await asyncio.sleep(STORE_RETRY_S)


async def durable(future: Future[T]) -> T:
    """Wait until a change is on disk and return its result."""
    if not future.done():  # cheaper by a third than asyncio.wrap_future, and a change can't be taken back
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(_wake, waiter))
        await waiter
    return future.result()


async def repeat(step: Callable[[], Awaitable[object]], interval_s: float, failed: str) -> None:
    """Do `step` for ever, after pauses. Whatever its failure, it is logged as `failed`, and ends none after it."""
    log = RateLimitedLog()
    while True:
        await asyncio.sleep(interval_s)
        (error,) = await asyncio.gather(step(), return_exceptions=True)
        if isinstance(error, RelayUnavailable):
            log.error(failed, reason=error, detail=error.detail)
        elif isinstance(error, Exception):
            log.error(failed, exc_info=error)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
