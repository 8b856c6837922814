"""The typed records that a store takes and gives. Plain values: nothing here knows SQL or the network.

Every field is given by its name: most records have several of one type, which a caller could exchange unnoticed.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from mep_wire.states import TaskState

FUNCTION_ROW_BYTES = 1024
"""What a function counts beyond its bytes: its row, ids and index entries. This bounds the number of small ones too."""
CHUNK_ROW_BYTES = 1024
"""The same of a chunk: its row, name and file."""
PIECE_USE_BYTES = 256
"""The same for each piece of data that a task's arguments or its result refer to: a row with two index entries."""
BUILT_IN_SCOPES = ("submit", "read", "manage_endpoints", "manage_tokens")
"""What a token may do that the administrator's command made without saying more."""


class Login(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How and when a person proved who they are. Empty fields are unknown."""

    provider: str = ""
    """The name of a provider in the relay's configuration, or of its password login."""
    at: float = 0.0
    """When, in seconds since the epoch; 0 for tokens that were made without a login."""
    acr: str = ""
    amr: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """As the provider's claim says, each as PROVIDER:GROUP."""


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who a token belongs to: the person's stable account and the identity that the token was made for."""

    account_id: str
    identity_id: str
    scopes: tuple[str, ...] = BUILT_IN_SCOPES
    login: Login = Login()
    token_id: str = ""
    client_id: str = ""
    """The service or gateway that the token was made for, empty for a person's own."""
    end_user: str = ""
    """The person for whom a gateway's community account acts, as the gateway says."""
    functions: tuple[str, ...] = ()
    """The only functions that this token may submit; empty: any."""
    expires_at: float = 0.0
    """When the token ends; 0 for never."""


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored access token, without its hash."""

    token_id: str
    account_id: str
    identity_id: str
    created_at: float
    expires_at: float = 0.0
    """0 for never."""
    used_at: float = 0.0
    """When it was last used, to the hour; 0 if never."""
    grant_id: str = ""
    """The login that it was made from; all of its tokens are revoked together."""
    name: str = ""
    scopes: tuple[str, ...] = BUILT_IN_SCOPES
    login: Login = Login()
    client_id: str = ""
    end_user: str = ""
    functions: tuple[str, ...] = ()

    @property
    def caller(self) -> Caller:
        """Who it speaks for."""
        return Caller(
            account_id=self.account_id,
            identity_id=self.identity_id,
            scopes=self.scopes,
            login=self.login,
            token_id=self.token_id,
            client_id=self.client_id,
            end_user=self.end_user,
            functions=self.functions,
            expires_at=self.expires_at,
        )


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A small record that one part of the relay keeps under a kind and an id. The store doesn't read its body."""

    kind: str
    id: str
    body: bytes
    owner: str = ""
    """Its account, or another id by which it is looked up."""
    expires: float = 0.0
    """When the store may remove it, in seconds since the epoch; 0 for never."""


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One registered endpoint. The keys are 32 raw bytes; `deleted_at` is 0 while it exists."""

    endpoint_id: str
    owner: str
    name: str
    display_name: str
    multi_user: bool
    public: bool
    allowed_functions: list[str] | None
    user_config_schema: dict[str, Any] | None
    metadata: dict[str, Any]
    link_key: bytes
    unseal_key: bytes
    created_at: float
    deleted_at: float = 0.0
    admins: list[str] = []
    """Ids of identities that may change and delete it, as its owner may."""
    policy: str = ""
    """The id of the authentication policy that its users must fulfil."""
    high_assurance: bool = False


class FunctionRef(msgspec.Struct, frozen=True, kw_only=True):
    """The data on a registered function that a submission needs; its code stays in the store."""

    row: int
    function_id: str
    owner: str
    public: bool
    used_at: float = 0.0
    """When it was last submitted or registered, to the day."""
    group: str = ""
    """The group with which it is shared."""
    ha_endpoint_id: str = ""
    """The high-assurance endpoint that it is bound to."""


class FunctionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One registered function."""

    function_id: str
    owner: str
    name: str
    code: bytes
    public: bool
    description: str
    metadata: dict[str, Any]
    created_at: float
    group: str = ""
    ha_endpoint_id: str = ""

    def without_code(self) -> bytes:
        """Return everything but the code, as it is stored."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, code=b""))

    @property
    def stored_bytes(self) -> int:
        """The bytes that count for its owner."""
        return len(self.code) + len(self.without_code()) + FUNCTION_ROW_BYTES


class UepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One user endpoint: four values that identify it, and the enrolled CURVE key of its process (empty while
    none is known)."""

    row: int
    uep_id: str
    endpoint_id: str
    account_id: str
    identity_id: str
    config: dict[str, Any]
    runtime: dict[str, Any]
    link_key: bytes = b""
    seen_at: float = 0.0
    """When it last had a link or was given tasks, to the minute."""
    incarnation: bytes = b""
    """Of the process that joined last (mep_wire.start_request.incarnation_of); empty where that is unknown."""
    made_of: str = ""
    """The account that `uep_id` was made of, the store's to set: `account_id` is another once accounts were merged."""


class NewTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task to be stored. `task_id` is the UUID's 16 bytes."""

    task_id: bytes
    function: FunctionRef
    payload: bytes
    resource_spec: bytes = b""
    walltime_s: float = 0.0
    max_attempts: int = 0
    """How often it may be begun, 0 for the endpoint's default."""
    deadline: float = 0.0
    """When it expires by the relay's clock, 0 for never."""
    priority: int = 0
    chunk: str = ""
    """The name of the chunk that holds the payload; empty: `payload` has it."""
    chunk_size: int = 0
    depends_on: tuple[bytes, ...] = ()
    """The ids of the tasks that it waits for."""
    pieces: tuple[str, ...] = ()
    """The names of the chunks that hold its arguments by reference."""

    @property
    def counted(self) -> int:
        """Bytes that it counts for its person's quota, until its arguments are removed."""
        return len(self.payload) + PIECE_USE_BYTES * len(self.pieces)


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """A task that another one waits for, and how it ended."""

    task_id: bytes
    state: TaskState
    code: str
    text: str


class QueuedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task on its way to a user endpoint."""

    row: int
    task_id: bytes
    function_id: str
    payload: bytes
    resource_spec: bytes
    walltime_s: float
    attempt: int = 1
    max_attempts: int = 0
    deadline: float = 0.0
    priority: int = 0
    chunk: str = ""
    """The name of the chunk that holds the payload; empty: `payload` has it."""
    chunk_size: int = 0
    inputs: tuple[bytes, ...] = ()
    """The results of the tasks that it has waited for."""


class OpenTask(msgspec.Struct, frozen=True, kw_only=True):
    """An unfinished task, with the data that decides its fate. `attempts`: how many had begun and were lost."""

    row: int
    state: TaskState
    attempts: int
    max_attempts: int
    cancelling: bool
    """The person has asked for it to be cancelled, and its user endpoint is to be told."""


class OverdueTask(msgspec.Struct, frozen=True, kw_only=True):
    """An unfinished task past its deadline."""

    row: int
    uep_row: int
    state: TaskState
    attempts: int = 0
    """How many had begun and were lost."""
    doubtful: bool = False
    """Whether it was sent to a process that is gone and may have begun it."""


class TaskEnding(msgspec.Struct, frozen=True, kw_only=True):
    """How one task ended, as it is to be stored."""

    row: int
    state: TaskState
    code: str = ""
    text: str = ""
    payload: bytes = b""
    correlation_id: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    stored_at: float = msgspec.field(default_factory=time.time)
    """By the relay's clock; the other two are by the endpoint's."""
    task_id: bytes | None = None
    """The task that the row must belong to, according to a user endpoint: after a restored backup, rows are reused.
    None where the row comes from the store itself."""
    block_id: str = ""
    """Where it ran, for endpoints that keep task records; not stored with the task."""
    job_id: str = ""
    chunk: str = ""
    """The name of the chunk that holds the payload; empty: `payload` has it."""
    chunk_size: int = 0
    digests: tuple[bytes, ...] = ()
    """SHA-256 of the pieces that the payload refers to."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A stored ending as readers of the result stream see it."""

    seq: int
    task_id: bytes
    state: TaskState
    code: str
    text: str
    payload: bytes
    correlation_id: str
    chunk: str = ""
    uep_row: int = 0


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task and, once it has one, its end."""

    row: int
    task_id: bytes
    owner: str
    uep_row: int
    state: TaskState
    submitted_at: float
    started_at: float
    ended_at: float
    code: str = ""
    text: str = ""
    payload: bytes = b""
    correlation_id: str = ""
    chunk: str = ""


class TaskBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A task without its end: `size` is the size of the end, in bytes of payload and characters of text."""

    row: int
    task_id: bytes
    owner: str
    uep_row: int
    state: TaskState
    submitted_at: float
    started_at: float
    ended_at: float
    size: int
    group_row: int = 0


class OwnTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task as its person lists it."""

    row: int
    task_id: bytes
    state: TaskState
    submitted_at: float
    ended_at: float
    endpoint_id: str
    function_id: str


class ListedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task as administrators list it."""

    task_id: bytes
    owner: str
    endpoint_id: str
    state: TaskState
    submitted_at: float


class QueueLength(msgspec.Struct, frozen=True, kw_only=True):
    """How many unfinished tasks of a user endpoint are in one state, and when the oldest was submitted."""

    uep_id: str
    endpoint_id: str
    account_id: str
    state: int
    count: int
    oldest: float


class TaskRef(msgspec.Struct, frozen=True, kw_only=True):
    """The data on a task that a task event needs."""

    row: int
    task_id: bytes
    function_id: str
    state: TaskState
    submitted_at: float


class UepKey(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a user endpoint, and its endpoint."""

    endpoint_id: str
    uep_id: str
    account_id: str
    identity_id: str
    incarnation: bytes = b""
    """Of its process that joined last."""


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """The oldest task events of an endpoint that are not written there yet, with their numbers; `dropped`: how many
    before them are gone, since there were too many."""

    dropped: int
    events: list[tuple[int, bytes]]


class GroupRef(msgspec.Struct, frozen=True, kw_only=True):
    """A task group."""

    row: int
    group_id: str
    owner: str


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a submission. `rows[i]` is the row of task i; `repeated` says that some were there before
    (in that case none was marked as dispatched)."""

    rows: list[int]
    group: GroupRef
    new: int
    repeated: bool


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """A page of old records: how many were removed."""

    count: int
    last: int = 0
    """Where the next page begins, 0 where there is none."""


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """A page of old chunks: the names of those that are forgotten."""

    names: list[str]
    more: bool = False
    """Whether there may be another page."""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a change of task states: the group rows in which tasks ended, and how many ended."""

    groups: frozenset[int]
    ended: int
    foreign: list[int] = []
    """Rows that stand for another task than the one reported as ended. They stay open and are queued again, since the
    user endpoint may have had only the other task. If it has both, it knows the row when it receives it again."""
    rows: list[int] = []
    """Those that ended."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How a user endpoint's own list of rows compares with the store's, after putting it right."""

    requeued: int
    lost: list[int]
    """Rows that had started and that it no longer has."""
    over: list[int]
    """Rows that it holds and that have ended, or are not its own: to be cancelled there."""
