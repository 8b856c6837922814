"""Messages on the endpoint link (ZeroMQ ROUTER at the relay, DEALER at its peers), one struct each.

Each ZeroMQ message is one frame: the MessagePack encoding of one struct, tagged by name. Arrays rather
than maps, since tasks and results come by the thousand. The relay identifies the sender by the peer's
CURVE key (ZAP), never by anything inside a message. Byte strings are opaque here.

A user endpoint has one process at a time and many in its life. A message about one of them names it by its
`incarnation` (mep_wire.start_request.incarnation_of), which is compared by equality: one that names another process
than the receiver's is logged and dropped. Empty means unknown: peers of the version before have no such field, and
their messages count for the current process. A user endpoint's own messages need none: its key names it.
"""

from __future__ import annotations

import msgspec

from mep_wire.struct_info import build_struct_info
from mep_wire.task_events import TaskEvent


class _Msg(msgspec.Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    pass


# --- any peer ---------------------------------------------------------------------------------------


class Ping(_Msg, frozen=True):
    """Sent when nothing else was for a heartbeat interval. Answered by Pong."""

    sent_at: float


class Pong(_Msg, frozen=True):
    """The answer to Ping, with the time that it carried."""

    sent_at: float


class Refused(_Msg, frozen=True):
    """Relay to peer: what you said is refused; with `final`, do not come back with it.

    HELLO_NEEDED is never final. The relay does not know the link (it was restarted, or took the peer for
    gone) and needs a hello first. The peer sends its earlier messages again after the welcome.
    """

    code: str
    text: str
    final: bool


# --- manager ----------------------------------------------------------------------------------------


class ManagerHello(_Msg, frozen=True):
    """First message of a manager's link, and again when the mapper's epoch changes."""

    protocol: int
    endpoint_id: str
    epoch: bytes
    version: str
    hostname: str
    audit_tasks: bool = False
    """Whether the endpoint keeps task records: TaskEvents are wanted."""
    clock: float = 0.0
    """Its clock now, in seconds since the epoch, so that the relay can compare; 0 from a version before."""
    takes_inputs: bool = False
    """Whether its user endpoints take TaskItem.inputs, which those of the version before would not see."""
    end_users: bool = False
    """Whether its mapper knows StartRequest.end_user; false from a version before."""


class ManagerWelcome(_Msg, frozen=True):
    """Relay to manager: the link is up. `relay_time` lets the manager report clock skew."""

    relay_time: float
    heartbeat_s: float
    explains: bool = False
    """Whether it answers Explain. A relay of the version before would close the link."""


class SignedStart(_Msg, frozen=True):
    """Relay to manager: start this user endpoint. `request` is opaque to the manager."""

    uep_id: str
    request: bytes
    signature: bytes
    """1 to MAX_SIGNATURES signatures, one after the other: mep_wire.start_request."""
    recheck: bool = False
    """A copy for the manager of the field in the signed request, which is authoritative."""
    incarnation: bytes = b""
    """Of the process that this may lead to; of a re-check, of the process that it is about."""


class StartAnswer(_Msg, frozen=True):
    """Manager to relay: the outcome of a SignedStart.

    `outcome`: `started`, `already_running`, `refused` (fails the waiting tasks with code and text) or
    `unavailable` (nothing wrong with the request: the relay asks again, with back-off).
    """

    uep_id: str
    outcome: str
    code: str
    text: str
    correlation_id: str
    asked: bytes = b""
    """The incarnation of the SignedStart that this answers."""
    incarnation: bytes = b""
    """Of the process that runs, for the first two outcomes: an earlier request may have led to it."""


class StartQueued(_Msg, frozen=True, tag="StartPlaced"):
    """Manager to relay: a SignedStart waits for others, as number `position`: the site starts few at once."""

    uep_id: str
    position: int
    asked: bytes = b""
    """The incarnation of that SignedStart."""


class UepEnded(_Msg, frozen=True):
    """Manager to relay: a user endpoint's process has ended. `code` is IDLE, STOPPED or an error code."""

    uep_id: str
    code: str
    text: str
    correlation_id: str
    incarnation: bytes = b""


class UepRevoked(_Msg, frozen=True):
    """Manager to relay: this user endpoint is being ended, since its person may not have it any more (a code of
    mep_wire.errors.REVOCATIONS). UepEnded follows."""

    uep_id: str
    code: str
    text: str
    correlation_id: str
    incarnation: bytes = b""


class Recheck(_Msg, frozen=True):
    """Manager to relay: state again, by a SignedStart with `recheck` for each, who owns these user endpoints.

    At most MAX_RECHECKS ids; those that the relay does not know as this endpoint's get no answer.
    """

    uep_ids: list[str]
    incarnations: list[bytes] = []
    """One for each id, or none at all."""


class RunningUeps(_Msg, frozen=True):
    """Manager to relay, after each welcome and whenever it learns of one: every user endpoint that has a process on
    this host."""

    uep_ids: list[str]
    incarnations: list[bytes] = []
    """One for each id, or none at all."""


class Explain(_Msg, frozen=True):
    """Manager to relay: a question about a task, user endpoint or correlation id. Answered by Explained.
    Only to a relay that explains."""

    ref: int
    about: str


class StoryLine(msgspec.Struct, frozen=True, array_like=True):
    """One event: seconds since the epoch, a log level, and a text without control characters."""

    at: float
    level: str
    text: str


class Explained(_Msg, frozen=True):
    """Relay to manager: what it knows, the oldest first. The ids and the code are empty where it knows none.
    `status` is a task's, by the words of the HTTP API."""

    ref: int
    uep_id: str = ""
    correlation_id: str = ""
    code: str = ""
    status: str = ""
    lines: list[StoryLine] = []


class EndpointGone(_Msg, frozen=True):
    """Relay to manager: this endpoint was deleted; stop its user endpoints and do not come back."""

    text: str


class StopEndpoint(_Msg, frozen=True):
    """Relay to manager: an administrator wants this endpoint to stop, wherever it runs."""

    text: str


class TaskEvents(_Msg, frozen=True):
    """Relay to manager: write these, in this order. The next come after TaskEventsWritten. `dropped`: how many older
    ones the relay has dropped since it last said so, its room being full."""

    dropped: int
    events: list[TaskEvent]


class TaskEventsWritten(_Msg, frozen=True):
    """Manager to relay: the events of the last TaskEvents are on the disk, to this `seq`, and so is `dropped`."""

    until: int
    dropped: int


# --- user endpoint ----------------------------------------------------------------------------------


class Join(_Msg, frozen=True):
    """First message of a user endpoint's first link: spends the join token for the key of this link.

    `held`: rows of the results that an earlier process of the same user endpoint left on disk; the Results
    follow. That process's other started tasks are lost. mep_wire.attempts applies `default_attempts` and
    `most_attempts` to a task's max_attempts here.
    """

    protocol: int
    uep_id: str
    token: bytes
    held: list[int] = []
    default_attempts: int = 1
    most_attempts: int = 0
    takes_inputs: bool = False


class UepHello(_Msg, frozen=True):
    """First message of a later link of an enrolled key. `held`: every row that it was sent, unless it knows that the
    result is durable: waiting, running, or with its result in the spool. The rest is as in Join."""

    protocol: int
    uep_id: str
    held: list[int]
    default_attempts: int = 1
    most_attempts: int = 0
    takes_inputs: bool = False


class UepWelcome(_Msg, frozen=True):
    """Relay to user endpoint: joined, or welcome back."""

    heartbeat_s: float
    max_result_bytes: int
    takes_output: bool = False
    """Whether it takes Printed. A relay of the version before would close the link."""
    max_data_bytes: int = 0
    """Largest result by reference; 0: this relay takes none, nor the four messages of pieces."""


class Credit(_Msg, frozen=True):
    """User endpoint to relay: `grant` more tasks may be sent. A new link starts from zero.

    `worker_python` is the Python in which tasks run, e.g. 3.12.1, empty before a worker has told. `trouble` is what
    keeps the engine from beginning tasks just now, and is tried again; empty if nothing does.
    """

    grant: int
    worker_python: str = ""
    trouble: str = ""
    trouble_code: str = ""
    """A mep_wire.waits.WaitCode, or an error's code."""
    trouble_since: float = 0.0
    """Seconds since the epoch, by the endpoint's clock."""


class FunctionItem(msgspec.Struct, frozen=True, array_like=True):
    """A registered function's serialized code."""

    function_id: str
    code: bytes


class TaskItem(msgspec.Struct, frozen=True, array_like=True):
    """One task. `row` is the relay's integer key for it, used for everything that follows.

    `resource_spec` is MessagePack (empty when there is none); `walltime_s` is 0 when there is none. `attempt`
    counts from 1: the task was begun and lost `attempt` - 1 times. `max_attempts` is the person's limit, 0
    for the endpoint's default. `expires_in_s`: seconds from now until its deadline, 0 for none; `priority` orders it
    among the person's tasks, higher first.
    """

    row: int
    task_id: str
    function_id: str
    payload: bytes
    resource_spec: bytes = b""
    walltime_s: float = 0.0
    attempt: int = 1
    max_attempts: int = 0
    expires_in_s: float = 0.0
    priority: int = 0
    inputs: list[bytes] = []
    """The results of other tasks that its arguments refer to. Only to a process that takes them."""


class Tasks(_Msg, frozen=True):
    """Relay to user endpoint: run these. Functions it has not yet had on this link come with them."""

    functions: list[FunctionItem]
    tasks: list[TaskItem]


class Started(_Msg, frozen=True):
    """User endpoint to relay: workers have started these rows. `locations`, where the site keeps task records: the
    block and the scheduler's job of each."""

    rows: list[int]
    locations: list[tuple[str, str]] = []


class ResultItem(msgspec.Struct, frozen=True, array_like=True):
    """How one task ended. `code` is empty for success; then `payload` is the serialized value, else the
    serialized exception (or empty, when `text` says it all). Times are seconds since the epoch."""

    row: int
    task_id: str
    code: str
    text: str
    payload: bytes
    started_at: float = 0.0
    ended_at: float = 0.0
    block_id: str = ""
    """Where it ran, where the site keeps task records."""
    job_id: str = ""
    pieces: tuple[bytes, ...] = ()
    """SHA-256 of the pieces that the payload refers to: each was stored before (PieceStored)."""


class PrintedItem(msgspec.Struct, frozen=True, array_like=True):
    """Output of a running task: `stream` 0 is its stdout, 1 its stderr. `position`: how many bytes came before
    it in that stream, of which some may have been left out. `attempt` is the task's, and begins at 0 again."""

    row: int
    task_id: str
    attempt: int
    stream: int
    position: int
    data: bytes


class Printed(_Msg, frozen=True):
    """User endpoint to relay: pass this on to those who look at it, if any. Nothing repeats it: a loss is seen as a gap
    of positions, and the task's result brings the end of its output. Only to a relay that takes it."""

    items: list[PrintedItem]


class Results(_Msg, frozen=True):
    """User endpoint to relay: these ended. Repeated after a reconnect until ResultsDurable names them."""

    items: list[ResultItem]


class ResultsDurable(_Msg, frozen=True):
    """Relay to user endpoint: these results are on disk (or were already): drop them from the spool."""

    rows: list[int]


class CancelTasks(_Msg, frozen=True):
    """Relay to user endpoint: stop these rows; each still ends with a ResultItem."""

    rows: list[int]


class Returned(_Msg, frozen=True):
    """User endpoint to relay: it has these rows, has not started them and will not: queue them again."""

    rows: list[int]


class Lost(_Msg, frozen=True):
    """User endpoint to relay: the processes of these attempts died and the tasks may run again. Count them, and
    queue the tasks. `attempts` has one number for each row. Repeated after a reconnect until LossesDurable names them
    or they come as later attempts."""

    rows: list[int]
    attempts: list[int]


class LossesDurable(_Msg, frozen=True):
    """Relay to user endpoint: it has these losses on its disk. The next attempts may have come before this."""

    rows: list[int]
    attempts: list[int]


class WantPieces(_Msg, frozen=True):
    """User endpoint to relay: send these pieces, by SHA-256, of the arguments of tasks that it was sent. At most
    MAX_PIECES_WANTED may be under way. Each is answered by one Piece."""

    digests: list[bytes]


class Piece(_Msg, frozen=True):
    """Relay to user endpoint: the bytes of a piece; with `code`, why it has none."""

    digest: bytes
    data: bytes = b""
    code: str = ""
    text: str = ""


class StorePiece(_Msg, frozen=True):
    """User endpoint to relay: keep this piece of a result of the person's. At most MAX_PIECES_WANTED may be under way.
    Each is answered by one PieceStored."""

    digest: bytes
    data: bytes


class PieceStored(_Msg, frozen=True):
    """Relay to user endpoint: the piece is on the disk; with `code`, why not."""

    digest: bytes
    code: str = ""
    text: str = ""


class Goodbye(_Msg, frozen=True):
    """User endpoint to relay: it is ending on its own account (`IDLE`, `STOPPED`) and holds no task."""

    code: str
    text: str


class StopUep(_Msg, frozen=True):
    """Relay to user endpoint: end (after returning tasks that have not started)."""

    code: str
    text: str


ToRelay = (
    Ping
    | Pong
    | ManagerHello
    | StartAnswer
    | StartQueued
    | UepEnded
    | UepRevoked
    | Recheck
    | RunningUeps
    | TaskEventsWritten
    | Explain
    | Join
    | UepHello
    | Credit
    | Started
    | Printed
    | Results
    | Returned
    | Lost
    | WantPieces
    | StorePiece
    | Goodbye
)
"""Every message that a peer may send the relay."""
ToManager = Ping | Pong | Refused | ManagerWelcome | SignedStart | EndpointGone | StopEndpoint | TaskEvents | Explained
"""Every message that the relay may send a manager."""
ToUep = (
    Ping
    | Pong
    | Refused
    | UepWelcome
    | Tasks
    | ResultsDurable
    | LossesDurable
    | CancelTasks
    | Piece
    | PieceStored
    | StopUep
)
"""Every message that the relay may send a user endpoint."""

build_struct_info(__name__)
