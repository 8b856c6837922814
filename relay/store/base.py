"""The contract of a store. One backend is one file beside this one; one suite in tests/contract runs on all.

Reads are direct calls. Writes are functions over a `Tx`, handed to `Store.submit`: each is atomic, several
may share one commit, and the returned future is done once the change is durable. The store trusts its
callers with everything but concurrency: permissions are checked before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from mep_wire.identity import Identity, IdentitySet
from mep_wire.states import TaskState
from relay.store.records import (
    Added,
    Caller,
    Collected,
    Completion,
    Dependency,
    Document,
    EndpointRecord,
    EventPage,
    FunctionRecord,
    FunctionRef,
    GroupRef,
    Held,
    ListedTask,
    NewTask,
    OpenTask,
    OverdueTask,
    OwnTask,
    QueuedTask,
    QueueLength,
    Settled,
    Swept,
    TaskBrief,
    TaskEnding,
    TaskRecord,
    TaskRef,
    TokenRecord,
    UepKey,
    UepRecord,
)

T = TypeVar("T")


class AccountTx(Protocol):
    """Changes to people: accounts, their identities and their tokens."""

    def add_account(self, account_id: str, identity: Identity) -> None:
        """Add a person with one identity. Raises IdConflict where the username is taken."""

    def merge_accounts(self, keep: str, other: str) -> None:
        """Give `other`'s identities, tokens, endpoints, functions and task groups to `keep`."""

    def move_identity(self, identity_id: str, account_id: str) -> None:
        """Make an identity, with its tokens, a person of its own, with this new account."""

    def remove_account(self, account_id: str) -> None:
        """Remove the person's identities and tokens. Their property stays, without an owner."""

    def add_identity(self, account_id: str, identity: Identity) -> None:
        """Add an identity to a person, or make the identity with this id say what this one says. The account of a known
        identity stays. Raises IdConflict where the username is another identity's."""

    def username_of(self, identity_id: str) -> str | None:
        """Return the username of an identity."""

    def account_of_identity(self, identity_id: str) -> str | None:
        """Return the account of an identity, as it is inside this transaction."""

    def identity_named(self, username: str) -> Caller | None:
        """Return the identity with this username and its account."""

    def identities_of(self, account_id: str) -> list[str]:
        """Return the ids of a person's identities."""

    def add_token(self, token_hash: bytes, token: TokenRecord) -> None:
        """Let the token with this SHA-256 speak for its person."""

    def remove_tokens(self, identity_id: str) -> int:
        """Revoke every token made for this identity; return how many there were."""

    def remove_token(self, token_id: str, account_id: str) -> bool:
        """Revoke one token of this person; False where they have no such token."""

    def remove_grant_tokens(self, grant_id: str) -> int:
        """Revoke the tokens of one login; return how many there were."""

    def use_token(self, token_id: str, now: float) -> None:
        """Note that a token was used."""

    def sweep_tokens(self, expired_before: float, limit: int) -> int:
        """Remove up to `limit` tokens that expired before this time; return how many."""


class DocumentTx(Protocol):
    """Changes to documents: small records of policies, groups, logins and others, by kind and id."""

    def add_document(self, document: Document) -> bool:
        """Store a document; False, and no change, where there is one of this kind and id."""

    def put_document(self, document: Document) -> None:
        """Store a document, in place of the one of this kind and id."""

    def get_document(self, kind: str, id: str) -> Document | None:  # noqa: A002 - its name in the record
        """Return a document as it is inside this transaction."""

    def drop_document(self, kind: str, id: str) -> bool:  # noqa: A002
        """Remove a document; False where there is none."""

    def drop_documents(self, kind: str, owner: str) -> int:
        """Remove the documents of one owner; return how many there were."""

    def sweep_documents(self, expired_before: float, limit: int) -> int:
        """Remove up to `limit` documents that expired before this time; return how many."""


class RegistryTx(Protocol):
    """Changes to endpoints, functions and user endpoints."""

    def put_endpoint(self, endpoint: EndpointRecord) -> None:
        """Add or replace an endpoint. Raises IdConflict where its link key belongs to another."""

    def delete_endpoint(self, endpoint_id: str, now: float) -> None:
        """Mark an endpoint as deleted."""

    def put_function(self, function: FunctionRecord) -> None:
        """Add a function. Raises IdConflict where its id is taken."""

    def change_function(self, function: FunctionRecord) -> None:
        """Replace everything of a function but its owner and code."""

    def delete_function(self, function_id: str, now: float) -> None:
        """Mark a function as deleted: it can't be found any more; tasks that have it still run."""

    def put_uep(self, uep: UepRecord) -> UepRecord:
        """Add a user endpoint, or find the one with this `uep_id`; `row` is the store's to choose."""

    def touch_ueps(self, uep_rows: Sequence[int], now: float) -> None:
        """Note that these user endpoints have a link, or were given tasks."""

    def add_join(self, uep_row: int, join_hash: bytes, expires: float, now: float) -> None:
        """Remember a start's join token; earlier ones stay good until they expire or one of them is spent."""

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        """Spend a join token for the link key of the process of this incarnation. False where the token is unknown,
        spent or expired."""

    def clear_link(self, uep_row: int, link_key: bytes) -> None:
        """Forget the process that had this link key, if it is still the one."""


class TaskTx(Protocol):
    """Changes to tasks. Every state is set by the tables of mep_wire.states."""

    def add_tasks(
        self, owner: str, group_id: str, uep_row: int, tasks: Sequence[NewTask], dispatched: int, now: float
    ) -> Added:
        """Store tasks, the first `dispatched` of them as already sent.

        A task is left as it is if its id is known with the same group, function and user endpoint. Raises
        IdConflict for a task id or group id that is taken by something else; then nothing is stored.
        """

    def task_owner(self, task_id: bytes) -> tuple[int, str, str] | None:
        """Return a task's row, its owner and its endpoint."""

    def hold(self, rows: Sequence[int], on_rows: Sequence[int]) -> None:
        """Have queued tasks wait for others; those of which this was said before are left alone."""

    def is_awaited(self, on_row: int) -> bool:
        """Return whether a held task waits for this one."""

    def decided_sets(self, on_row: int) -> list[int]:
        """Return the sets of tasks with this one, about which it is decided: this one has failed, or all of them have
        succeeded or failed. None while this one is unfinished."""

    def held_by(self, set_row: int) -> list[tuple[int, int]]:
        """Return the rows, and the user endpoints, of the held tasks that wait for this set."""

    def dependencies(self, row: int) -> list[Dependency]:
        """Return the tasks that this one waits for, or has waited for."""

    def release(self, set_row: int) -> None:
        """Hold the tasks no longer that wait for this set."""

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        """Mark the first queued tasks, by priority and then by age, as dispatched and return them: at least one (if
        there is one), then no more than `limit` tasks or `max_bytes` of payload."""

    def record_started(self, uep_row: int, rows: Sequence[int], now: float) -> None:
        """Mark dispatched tasks of this user endpoint as running; others are left alone."""

    def record_endings(self, uep_row: int, endings: Sequence[TaskEnding]) -> Settled:
        """End tasks of this user endpoint; those that have ended already, are not its own, or are not the tasks
        that the endings are for (see `Settled.foreign`), are left alone."""

    def requeue(self, uep_row: int, rows: Sequence[int] | None) -> int:
        """Put tasks back into the queue: these rows, or (None) those dispatched and not started. Return how many."""

    def reconcile(self, uep_row: int, held: Sequence[int]) -> Held:
        """After a reconnection: queued rows that it holds are marked as dispatched, dispatched rows that it
        does not hold are queued again."""

    def end_queued(self, uep_row: int, ending: TaskEnding, limit: int) -> Settled:
        """End the first queued tasks alike, up to `limit` (the row in `ending` is not looked at)."""

    def queued_before(self, uep_row: int, submitted_before: float, limit: int) -> list[int]:
        """Return rows of this user endpoint that have waited since before a time, up to `limit`."""

    def running_rows(self, uep_row: int) -> list[int]:
        """Return the rows of this user endpoint that have started and not ended."""

    def queued_again(self, uep_row: int) -> list[int]:
        """Return the rows of this user endpoint that wait after an attempt at them was lost."""

    def queued_doubtful(self, uep_row: int) -> list[int]:
        """Return the rows of this user endpoint that wait and are doubtful."""

    def doubt(self, uep_row: int, rows: Sequence[int], *, doubtful: bool) -> None:
        """Note of unfinished tasks whether a process that is gone may have begun them."""

    def active_rows(self, uep_row: int) -> dict[int, TaskState]:
        """Return the rows of this user endpoint that are dispatched or running, with which."""

    def open_tasks_of(self, uep_row: int, rows: Sequence[int]) -> list[OpenTask]:
        """Return where those of these tasks are that are this user endpoint's and have not ended."""

    def record_lost_attempts(self, uep_row: int, attempts: Sequence[tuple[int, int]]) -> None:
        """Note of unfinished tasks, by row, that so many attempts have begun and were lost, where fewer are noted."""

    def ask_cancel(self, uep_row: int, rows: Sequence[int]) -> None:
        """Note of unfinished tasks that they are to be cancelled."""

    def cancelling(self, uep_row: int) -> dict[int, TaskState]:
        """Return this user endpoint's unfinished rows that are to be cancelled, with where they are."""

    def sweep(self, ended_before: float, limit: int, *, after: int = 0, delivered: bool = False) -> Swept:
        """Of the `limit` oldest ends, which come after this sequence number, remove the records of tasks that ended
        before this time. `delivered`: of those alone that their person has been sent."""

    def drop_inputs(self, after: int, limit: int) -> int:
        """Remove the arguments of ended tasks, for `limit` endings after this sequence number; return the number of the
        last of them, `after` if there is none."""


class SweepTx(Protocol):
    """Removing rows unused for long, and freeing the space."""

    def sweep_ueps(self, seen_before: float, keep: Collection[int], limit: int) -> int:
        """Remove user endpoints without process and tasks that were last seen before this time, up to `limit` and none
        of the rows in `keep`; return how many."""

    def sweep_groups(self, after: int, keep: Collection[int], limit: int) -> int:
        """Of the `limit` task groups after this row, remove those that have no task and are not in `keep`; return the
        last row that was looked at, 0 at the end. Rows are never given again."""

    def use_functions(self, function_rows: Sequence[int], now: float) -> None:
        """Note that these functions are used."""

    def sweep_functions(self, used_before: float, now: float, limit: int) -> int:
        """Delete, as their owners would, up to `limit` functions last used before this time; return how many."""

    def purge_functions(self, deleted_before: float, limit: int) -> int:
        """Remove up to `limit` functions that were deleted before this time, of which no task is left; return how
        many."""

    def note_delivered(self, group_row: int, seq: int) -> None:
        """Note that a group's endings up to this sequence number were sent to their person."""

    def claim_chunk(self, name: str, owner: str, digest: bytes, size: int, now: float) -> tuple[str, bool]:
        """Return the name of the person's chunk with this SHA-256, `name` for a new one, and whether its bytes are
        known to be stored. It is not collected soon after `now`, nor sooner than it would have been."""

    def collect_chunks(self, touched_before: float, limit: int) -> Collected:
        """Of the `limit` oldest chunks that were claimed before this time, forget those that nothing refers to. The
        others count as claimed now."""

    def piece_came(self, uep_row: int, name: str) -> None:
        """This user endpoint has sent the bytes of this chunk, so that its results may refer to it."""

    def chunk_stored(self, name: str) -> None:
        """The bytes of a claimed chunk are stored."""

    def keep_pieces(self, owner: str, digests: Sequence[bytes], until: float) -> dict[bytes, str]:
        """Return the names of the person's stored chunks among these, which are not collected before `until`, nor
        sooner than they would have been."""

    def compact(self, pages: int) -> None:
        """Give up to so many unused pages back to the file system."""


class TaskEventTx(Protocol):
    """Changes to the events of endpoints that keep task records. A body is opaque to the store."""

    def keep_task_events(self, endpoint_id: str, *, keep: bool) -> None:
        """Begin to keep the endpoint's events, or stop and delete the kept ones. Numbers are never reused."""

    def add_task_events(self, endpoint_id: str, bodies: Sequence[bytes], most: int) -> None:
        """Append events, if the endpoint's are kept; beyond `most` the oldest are dropped, and counted."""

    def task_events_written(self, endpoint_id: str, until: int, dropped: int) -> None:
        """Forget events up to the number `until`, and take `dropped` off the count of dropped ones."""

    def task_refs(self, uep_row: int, rows: Sequence[int]) -> list[TaskRef]:
        """Return those of the tasks that are this user endpoint's, as they are inside this transaction."""

    def queued_refs(self, uep_row: int, limit: int) -> list[TaskRef]:
        """Return the oldest queued tasks of this user endpoint."""

    def uep_key(self, uep_row: int) -> UepKey | None:
        """Return the owner of a user endpoint."""


class Tx(AccountTx, DocumentTx, RegistryTx, TaskTx, SweepTx, TaskEventTx, Protocol):
    """Everything that a write may do."""


class AccountReads(Protocol):
    """Questions about people."""

    def token(self, token_hash: bytes) -> TokenRecord | None:
        """Return the token with this SHA-256, an expired one too until it is swept."""

    def tokens(self, account_id: str, limit: int) -> list[TokenRecord]:
        """Return a person's tokens, the newest first."""

    def owner_of_identity(self, identity_id: str) -> str | None:
        """Return the account of an identity."""

    def count_documents(self, kind: str, owner: str, limit: int) -> int:
        """Return how many documents of a kind an owner has, counted up to `limit`, without reading them."""

    def endpoint_of_uep(self, uep_row: int) -> str | None:
        """Return the id of the endpoint that a user endpoint belongs to."""

    def identity_set(self, account_id: str, first: str = "") -> IdentitySet | None:
        """Return a person's identities, the one with id `first` in front."""

    def account_of(self, username: str) -> Caller | None:
        """Return the account and identity of a username."""

    def accounts(self) -> list[IdentitySet]:
        """Return all people, in order of their first username."""


class DocumentReads(Protocol):
    """Questions about documents. Expired ones are found until they are swept."""

    def document(self, kind: str, id: str) -> Document | None:  # noqa: A002
        """Return a document."""

    def documents(self, kind: str, owner: str | None = None, after: str = "", limit: int = 1000) -> list[Document]:
        """Return documents of a kind, all or one owner's, with ids after `after`, in their order."""


class RegistryReads(Protocol):
    """Questions about endpoints, functions and user endpoints. Deleted functions are not found."""

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        """Return an endpoint, deleted ones too (see `deleted_at`)."""

    def endpoints(self, owner: str | None = None) -> list[EndpointRecord]:
        """Return the endpoints that exist, all or one owner's, by name."""

    def function(self, function_id: str) -> FunctionRecord | None:
        """Return a function with its code."""

    def function_ref(self, function_id: str) -> FunctionRef | None:
        """Return the data on a function that a submission needs."""

    def function_code(self, function_id: str) -> bytes | None:
        """Return a function's code, a deleted function's too: tasks submitted before may still need it."""

    def uep(self, uep_id: str) -> UepRecord | None:
        """Return a user endpoint by its id."""

    def uep_by_link_key(self, link_key: bytes) -> UepRecord | None:
        """Return the user endpoint that this key is enrolled for."""

    def ueps_in_use(self, endpoint_id: str | None = None) -> list[UepRecord]:
        """Return user endpoints that have a link key or unfinished tasks."""


class TaskReads(Protocol):
    """Questions about tasks and results."""

    def has_queued(self, uep_row: int) -> bool:
        """Return whether any task waits for this user endpoint."""

    def next_deadline(self) -> float | None:
        """Return the first deadline of any unfinished task; None if there are no deadlines."""

    def overdue(self, now: float, limit: int) -> list[OverdueTask]:
        """Return the first unfinished tasks past their deadline, up to `limit`."""

    def oldest_queued(self, uep_row: int) -> float | None:
        """Return the submission time of the task that has waited longest for this user endpoint; None if none waits."""

    def has_active(self, uep_row: int) -> bool:
        """Return whether this user endpoint has any task dispatched or running."""

    def open_tasks(self, account_id: str, endpoint_id: str = "") -> int:
        """Return how many unfinished tasks a person's user endpoints have, all of them or those of one endpoint."""

    def open_by_state(self) -> dict[TaskState, int]:
        """Return how many unfinished tasks there are, by state. It reads an index entry of each."""

    def stored_bytes(self, account_id: str) -> int:
        """Return the bytes of a person's waiting arguments, kept results and functions, until they are removed."""

    def tasks(self, task_ids: Sequence[bytes]) -> list[TaskRecord]:
        """Return the tasks that exist among these."""

    def task_without_result(self, task_id: bytes) -> TaskRecord | None:
        """Return a task without reading its payload, which is empty here."""

    def awaited(self) -> list[int]:
        """Return the rows of the tasks that held tasks wait for."""

    def dependent_rows(self) -> list[tuple[int, int]]:
        """Return the rows, and the user endpoints, of the unfinished tasks that have dependencies."""

    def dependencies(self, row: int) -> list[Dependency]:
        """Return the tasks that this one waits for, or has waited for."""

    def inputs(self, row: int) -> list[tuple[bytes, str]]:
        """Return the results, or their chunks, of the tasks that this one has waited for."""

    def briefs(self, task_ids: Sequence[bytes]) -> list[TaskBrief]:
        """Return the tasks that exist among these, without reading their payloads."""

    def has_chunk(self, name: str) -> bool:
        """Return whether there is a chunk of this name."""

    def piece(self, owner: str, digest: bytes) -> str | None:
        """Return the name of the person's stored chunk with this SHA-256."""

    def piece_of_uep(self, owner: str, digest: bytes, uep_row: int) -> str | None:
        """Return the same where an unfinished task of this user endpoint has it among its arguments."""

    def group(self, group_id: str) -> GroupRef | None:
        """Return a task group."""

    def group_tasks(self, group_row: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return rows and ids of a group's tasks after a row, in order of submission, up to `limit`."""

    def groups_of(self, owner: str, before: int, limit: int) -> list[GroupRef]:
        """Return an account's task groups with rows below `before`, the newest first, up to `limit`."""

    def group_size(self, group_row: int, limit: int) -> tuple[int, float, float]:
        """Return how many tasks a group has, counting up to `limit`, and when the first and last of them came."""

    def group_states(self, group_row: int, after: int, limit: int) -> list[OwnTask]:
        """Return a group's tasks after a row, in order of submission, up to `limit`, without payloads."""

    def completions(self, group_row: int, after: int, limit: int, max_bytes: int) -> list[Completion]:
        """Return a group's endings with a sequence number above `after`, in order: at least one (if there is
        one), then no more than `limit` or `max_bytes` of payload."""


class TaskEventReads(Protocol):
    """Questions about task events."""

    def task_events_kept(self) -> list[str]:
        """Return the endpoints with kept events."""

    def task_events(self, endpoint_id: str, limit: int) -> EventPage:
        """Return the oldest events of an endpoint, up to `limit`."""


class OperatorReads(Protocol):
    """Questions of the relay's administrator. They may read every task."""

    def list_tasks(self, account_id: str, endpoint_id: str, *, ended: bool, limit: int) -> list[ListedTask]:
        """Return the newest tasks, `ended` ones too; of one person and endpoint where these are not empty."""

    def queues(self) -> list[QueueLength]:
        """Return how many unfinished tasks there are, by user endpoint and state."""

    def storage(self) -> list[tuple[str, int, int]]:
        """Return each account with the bytes that it has stored, and its number of task groups."""


class Store(AccountReads, DocumentReads, RegistryReads, TaskReads, TaskEventReads, OperatorReads, Protocol):
    """A store: reads by direct calls from the thread that opened it, writes through `submit`."""

    def submit(self, change: Callable[[Tx], T]) -> Future[T]:
        """Run `change` atomically; the future is done when it is durable, or carries its exception
        (RelayUnavailable if the store can't write). Never waits: a thread of the store's own runs the change.
        """

    def failing_since(self) -> float:
        """Return since when nothing could be stored, in seconds since the epoch; 0 where the last commit was well."""

    def close(self) -> None:
        """Finish submitted changes and close."""
