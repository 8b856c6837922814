"""A store and a transaction that hand every call on: the base of those that add something to a few of them.

Every method is written out, so that the type checker sees the whole contract of relay.store.base. Called by
relay.store.task_record_writes.
"""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TypeVar

from mep_wire.identity import Identity, IdentitySet
from mep_wire.states import TaskState
from relay.store.base import Store, Tx
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


class DelegatingTx:
    """`relay.store.base.Tx`, handed on to another one."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    # --- people ----------------------------------------------------------------------------------------

    def add_account(self, account_id: str, identity: Identity) -> None:
        self._tx.add_account(account_id, identity)

    def merge_accounts(self, keep: str, other: str) -> None:
        self._tx.merge_accounts(keep, other)

    def move_identity(self, identity_id: str, account_id: str) -> None:
        self._tx.move_identity(identity_id, account_id)

    def remove_account(self, account_id: str) -> None:
        self._tx.remove_account(account_id)

    def add_identity(self, account_id: str, identity: Identity) -> None:
        self._tx.add_identity(account_id, identity)

    def username_of(self, identity_id: str) -> str | None:
        return self._tx.username_of(identity_id)

    def account_of_identity(self, identity_id: str) -> str | None:
        return self._tx.account_of_identity(identity_id)

    def identity_named(self, username: str) -> Caller | None:
        return self._tx.identity_named(username)

    def identities_of(self, account_id: str) -> list[str]:
        return self._tx.identities_of(account_id)

    def add_token(self, token_hash: bytes, token: TokenRecord) -> None:
        self._tx.add_token(token_hash, token)

    def remove_tokens(self, identity_id: str) -> int:
        return self._tx.remove_tokens(identity_id)

    def remove_token(self, token_id: str, account_id: str) -> bool:
        return self._tx.remove_token(token_id, account_id)

    def remove_grant_tokens(self, grant_id: str) -> int:
        return self._tx.remove_grant_tokens(grant_id)

    def use_token(self, token_id: str, now: float) -> None:
        self._tx.use_token(token_id, now)

    def sweep_tokens(self, expired_before: float, limit: int) -> int:
        return self._tx.sweep_tokens(expired_before, limit)

    # --- documents -------------------------------------------------------------------------------------

    def add_document(self, document: Document) -> bool:
        return self._tx.add_document(document)

    def put_document(self, document: Document) -> None:
        self._tx.put_document(document)

    def get_document(self, kind: str, id: str) -> Document | None:  # noqa: A002
        return self._tx.get_document(kind, id)

    def drop_document(self, kind: str, id: str) -> bool:  # noqa: A002
        return self._tx.drop_document(kind, id)

    def drop_documents(self, kind: str, owner: str) -> int:
        return self._tx.drop_documents(kind, owner)

    def sweep_documents(self, expired_before: float, limit: int) -> int:
        return self._tx.sweep_documents(expired_before, limit)

    # --- endpoints, functions, user endpoints ----------------------------------------------------------

    def put_endpoint(self, endpoint: EndpointRecord) -> None:
        self._tx.put_endpoint(endpoint)

    def delete_endpoint(self, endpoint_id: str, now: float) -> None:
        self._tx.delete_endpoint(endpoint_id, now)

    def put_function(self, function: FunctionRecord) -> None:
        self._tx.put_function(function)

    def change_function(self, function: FunctionRecord) -> None:
        self._tx.change_function(function)

    def delete_function(self, function_id: str, now: float) -> None:
        self._tx.delete_function(function_id, now)

    def put_uep(self, uep: UepRecord) -> UepRecord:
        return self._tx.put_uep(uep)

    def touch_ueps(self, uep_rows: Sequence[int], now: float) -> None:
        self._tx.touch_ueps(uep_rows, now)

    def add_join(self, uep_row: int, join_hash: bytes, expires: float, now: float) -> None:
        self._tx.add_join(uep_row, join_hash, expires, now)

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        return self._tx.enrol(uep_row, join_hash, link_key, now, incarnation)

    def clear_link(self, uep_row: int, link_key: bytes) -> None:
        self._tx.clear_link(uep_row, link_key)

    # --- tasks -----------------------------------------------------------------------------------------

    def add_tasks(
        self, owner: str, group_id: str, uep_row: int, tasks: Sequence[NewTask], dispatched: int, now: float
    ) -> Added:
        return self._tx.add_tasks(owner, group_id, uep_row, tasks, dispatched, now)

    def task_owner(self, task_id: bytes) -> tuple[int, str, str] | None:
        return self._tx.task_owner(task_id)

    def hold(self, rows: Sequence[int], on_rows: Sequence[int]) -> None:
        self._tx.hold(rows, on_rows)

    def is_awaited(self, on_row: int) -> bool:
        return self._tx.is_awaited(on_row)

    def decided_sets(self, on_row: int) -> list[int]:
        return self._tx.decided_sets(on_row)

    def held_by(self, set_row: int) -> list[tuple[int, int]]:
        return self._tx.held_by(set_row)

    def dependencies(self, row: int) -> list[Dependency]:
        return self._tx.dependencies(row)

    def release(self, set_row: int) -> None:
        self._tx.release(set_row)

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        return self._tx.take_queued(uep_row, limit, max_bytes)

    def record_started(self, uep_row: int, rows: Sequence[int], now: float) -> None:
        self._tx.record_started(uep_row, rows, now)

    def record_endings(self, uep_row: int, endings: Sequence[TaskEnding]) -> Settled:
        return self._tx.record_endings(uep_row, endings)

    def requeue(self, uep_row: int, rows: Sequence[int] | None) -> int:
        return self._tx.requeue(uep_row, rows)

    def reconcile(self, uep_row: int, held: Sequence[int]) -> Held:
        return self._tx.reconcile(uep_row, held)

    def end_queued(self, uep_row: int, ending: TaskEnding, limit: int) -> Settled:
        return self._tx.end_queued(uep_row, ending, limit)

    def queued_before(self, uep_row: int, submitted_before: float, limit: int) -> list[int]:
        return self._tx.queued_before(uep_row, submitted_before, limit)

    def running_rows(self, uep_row: int) -> list[int]:
        return self._tx.running_rows(uep_row)

    def queued_again(self, uep_row: int) -> list[int]:
        return self._tx.queued_again(uep_row)

    def queued_doubtful(self, uep_row: int) -> list[int]:
        return self._tx.queued_doubtful(uep_row)

    def doubt(self, uep_row: int, rows: Sequence[int], *, doubtful: bool) -> None:
        self._tx.doubt(uep_row, rows, doubtful=doubtful)

    def active_rows(self, uep_row: int) -> dict[int, TaskState]:
        return self._tx.active_rows(uep_row)

    def open_tasks_of(self, uep_row: int, rows: Sequence[int]) -> list[OpenTask]:
        return self._tx.open_tasks_of(uep_row, rows)

    def record_lost_attempts(self, uep_row: int, attempts: Sequence[tuple[int, int]]) -> None:
        self._tx.record_lost_attempts(uep_row, attempts)

    def ask_cancel(self, uep_row: int, rows: Sequence[int]) -> None:
        self._tx.ask_cancel(uep_row, rows)

    def cancelling(self, uep_row: int) -> dict[int, TaskState]:
        return self._tx.cancelling(uep_row)

    def sweep(self, ended_before: float, limit: int, *, after: int = 0, delivered: bool = False) -> Swept:
        return self._tx.sweep(ended_before, limit, after=after, delivered=delivered)

    def drop_inputs(self, after: int, limit: int) -> int:
        return self._tx.drop_inputs(after, limit)

    # --- removing --------------------------------------------------------------------------------------

    def sweep_ueps(self, seen_before: float, keep: Collection[int], limit: int) -> int:
        return self._tx.sweep_ueps(seen_before, keep, limit)

    def sweep_groups(self, after: int, keep: Collection[int], limit: int) -> int:
        return self._tx.sweep_groups(after, keep, limit)

    def use_functions(self, function_rows: Sequence[int], now: float) -> None:
        self._tx.use_functions(function_rows, now)

    def sweep_functions(self, used_before: float, now: float, limit: int) -> int:
        return self._tx.sweep_functions(used_before, now, limit)

    def purge_functions(self, deleted_before: float, limit: int) -> int:
        return self._tx.purge_functions(deleted_before, limit)

    def note_delivered(self, group_row: int, seq: int) -> None:
        self._tx.note_delivered(group_row, seq)

    def claim_chunk(self, name: str, owner: str, digest: bytes, size: int, now: float) -> tuple[str, bool]:
        return self._tx.claim_chunk(name, owner, digest, size, now)

    def collect_chunks(self, touched_before: float, limit: int) -> Collected:
        return self._tx.collect_chunks(touched_before, limit)

    def piece_came(self, uep_row: int, name: str) -> None:
        self._tx.piece_came(uep_row, name)

    def chunk_stored(self, name: str) -> None:
        self._tx.chunk_stored(name)

    def keep_pieces(self, owner: str, digests: Sequence[bytes], until: float) -> dict[bytes, str]:
        return self._tx.keep_pieces(owner, digests, until)

    def compact(self, pages: int) -> None:
        self._tx.compact(pages)

    # --- task events -----------------------------------------------------------------------------------

    def keep_task_events(self, endpoint_id: str, *, keep: bool) -> None:
        self._tx.keep_task_events(endpoint_id, keep=keep)

    def add_task_events(self, endpoint_id: str, bodies: Sequence[bytes], most: int) -> None:
        self._tx.add_task_events(endpoint_id, bodies, most)

    def task_events_written(self, endpoint_id: str, until: int, dropped: int) -> None:
        self._tx.task_events_written(endpoint_id, until, dropped)

    def task_refs(self, uep_row: int, rows: Sequence[int]) -> list[TaskRef]:
        return self._tx.task_refs(uep_row, rows)

    def queued_refs(self, uep_row: int, limit: int) -> list[TaskRef]:
        return self._tx.queued_refs(uep_row, limit)

    def uep_key(self, uep_row: int) -> UepKey | None:
        return self._tx.uep_key(uep_row)


class DelegatingStore:
    """`relay.store.base.Store`, handed on to another one."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    # --- people ----------------------------------------------------------------------------------------

    def token(self, token_hash: bytes) -> TokenRecord | None:
        return self._inner.token(token_hash)

    def tokens(self, account_id: str, limit: int) -> list[TokenRecord]:
        return self._inner.tokens(account_id, limit)

    def owner_of_identity(self, identity_id: str) -> str | None:
        return self._inner.owner_of_identity(identity_id)

    def count_documents(self, kind: str, owner: str, limit: int) -> int:
        return self._inner.count_documents(kind, owner, limit)

    def endpoint_of_uep(self, uep_row: int) -> str | None:
        return self._inner.endpoint_of_uep(uep_row)

    def document(self, kind: str, id: str) -> Document | None:  # noqa: A002
        return self._inner.document(kind, id)

    def documents(self, kind: str, owner: str | None = None, after: str = "", limit: int = 1000) -> list[Document]:
        return self._inner.documents(kind, owner, after, limit)

    def identity_set(self, account_id: str, first: str = "") -> IdentitySet | None:
        return self._inner.identity_set(account_id, first)

    def account_of(self, username: str) -> Caller | None:
        return self._inner.account_of(username)

    def accounts(self) -> list[IdentitySet]:
        return self._inner.accounts()

    # --- endpoints, functions, user endpoints ----------------------------------------------------------

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        return self._inner.endpoint(endpoint_id)

    def endpoints(self, owner: str | None = None) -> list[EndpointRecord]:
        return self._inner.endpoints(owner)

    def function(self, function_id: str) -> FunctionRecord | None:
        return self._inner.function(function_id)

    def function_ref(self, function_id: str) -> FunctionRef | None:
        return self._inner.function_ref(function_id)

    def function_code(self, function_id: str) -> bytes | None:
        return self._inner.function_code(function_id)

    def uep(self, uep_id: str) -> UepRecord | None:
        return self._inner.uep(uep_id)

    def uep_by_link_key(self, link_key: bytes) -> UepRecord | None:
        return self._inner.uep_by_link_key(link_key)

    def ueps_in_use(self, endpoint_id: str | None = None) -> list[UepRecord]:
        return self._inner.ueps_in_use(endpoint_id)

    # --- tasks and results -----------------------------------------------------------------------------

    def has_queued(self, uep_row: int) -> bool:
        return self._inner.has_queued(uep_row)

    def next_deadline(self) -> float | None:
        return self._inner.next_deadline()

    def overdue(self, now: float, limit: int) -> list[OverdueTask]:
        return self._inner.overdue(now, limit)

    def oldest_queued(self, uep_row: int) -> float | None:
        return self._inner.oldest_queued(uep_row)

    def has_active(self, uep_row: int) -> bool:
        return self._inner.has_active(uep_row)

    def open_tasks(self, account_id: str, endpoint_id: str = "") -> int:
        return self._inner.open_tasks(account_id, endpoint_id)

    def open_by_state(self) -> dict[TaskState, int]:
        return self._inner.open_by_state()

    def stored_bytes(self, account_id: str) -> int:
        return self._inner.stored_bytes(account_id)

    def tasks(self, task_ids: Sequence[bytes]) -> list[TaskRecord]:
        return self._inner.tasks(task_ids)

    def awaited(self) -> list[int]:
        return self._inner.awaited()

    def dependent_rows(self) -> list[tuple[int, int]]:
        return self._inner.dependent_rows()

    def dependencies(self, row: int) -> list[Dependency]:
        return self._inner.dependencies(row)

    def inputs(self, row: int) -> list[tuple[bytes, str]]:
        return self._inner.inputs(row)

    def briefs(self, task_ids: Sequence[bytes]) -> list[TaskBrief]:
        return self._inner.briefs(task_ids)

    def task_without_result(self, task_id: bytes) -> TaskRecord | None:
        return self._inner.task_without_result(task_id)

    def has_chunk(self, name: str) -> bool:
        return self._inner.has_chunk(name)

    def piece(self, owner: str, digest: bytes) -> str | None:
        return self._inner.piece(owner, digest)

    def piece_of_uep(self, owner: str, digest: bytes, uep_row: int) -> str | None:
        return self._inner.piece_of_uep(owner, digest, uep_row)

    def group(self, group_id: str) -> GroupRef | None:
        return self._inner.group(group_id)

    def group_tasks(self, group_row: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        return self._inner.group_tasks(group_row, after, limit)

    def groups_of(self, owner: str, before: int, limit: int) -> list[GroupRef]:
        return self._inner.groups_of(owner, before, limit)

    def group_size(self, group_row: int, limit: int) -> tuple[int, float, float]:
        return self._inner.group_size(group_row, limit)

    def group_states(self, group_row: int, after: int, limit: int) -> list[OwnTask]:
        return self._inner.group_states(group_row, after, limit)

    def completions(self, group_row: int, after: int, limit: int, max_bytes: int) -> list[Completion]:
        return self._inner.completions(group_row, after, limit, max_bytes)

    # --- task events -----------------------------------------------------------------------------------

    def task_events_kept(self) -> list[str]:
        return self._inner.task_events_kept()

    def task_events(self, endpoint_id: str, limit: int) -> EventPage:
        return self._inner.task_events(endpoint_id, limit)

    # --- an administrator's questions ------------------------------------------------------------------

    def list_tasks(self, account_id: str, endpoint_id: str, *, ended: bool, limit: int) -> list[ListedTask]:
        return self._inner.list_tasks(account_id, endpoint_id, ended=ended, limit=limit)

    def queues(self) -> list[QueueLength]:
        return self._inner.queues()

    def storage(self) -> list[tuple[str, int, int]]:
        return self._inner.storage()

    # --- changes ---------------------------------------------------------------------------------------

    def submit(self, change: Callable[[Tx], T]) -> Future[T]:
        return self._inner.submit(change)

    def failing_since(self) -> float:
        return self._inner.failing_since()

    def close(self) -> None:
        self._inner.close()
