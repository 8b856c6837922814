"""The contract of a store: one suite, every backend."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_wire.errors import IdConflict
from mep_wire.identity import Identity
from mep_wire.ids import uuid7
from mep_wire.states import TaskState
from relay.dispatch import dependencies
from relay.store.base import Store
from relay.store.delegating import DelegatingTx
from relay.store.postgres import PostgresStore
from relay.store.records import (
    Caller,
    Document,
    EndpointRecord,
    FunctionRecord,
    FunctionRef,
    Login,
    NewTask,
    TaskEnding,
    TokenRecord,
    UepRecord,
)
from relay.store.sqlite import SqliteStore
from tests.support.postgres import Postgres, postgres

S = TaskState


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            made: Store = SqliteStore(tmp_path / "relay.db")
        else:
            server: Postgres = request.getfixturevalue("server")
            made = PostgresStore(stack.enter_context(server.database()), for_server=True)
        yield made
        made.close()


def _token(who: Caller) -> TokenRecord:
    return TokenRecord(token_id="t", account_id=who.account_id, identity_id=who.identity_id, created_at=1.0)


def _who(store: Store, token_hash: bytes) -> Caller:
    found = store.token(token_hash)
    assert found is not None
    return Caller(account_id=found.account_id, identity_id=found.identity_id)


def do(store: Store, change: Callable[[Any], Any]) -> Any:
    return store.submit(change).result(timeout=20)


def identity(username: str) -> Identity:
    return Identity(id=str(uuid.uuid4()), username=username)


def add_person(store: Store, username: str) -> Caller:
    one = identity(username)
    caller = Caller(account_id=str(uuid.uuid4()), identity_id=one.id)
    do(store, lambda tx: tx.add_account(caller.account_id, one))
    return caller


def endpoint(owner: str = "a", **fields: Any) -> EndpointRecord:
    values: dict[str, Any] = {
        "endpoint_id": str(uuid.uuid4()),
        "owner": owner,
        "name": "lab",
        "display_name": "Lab",
        "multi_user": True,
        "public": False,
        "allowed_functions": None,
        "user_config_schema": {"type": "object"},
        "metadata": {"x": 1},
        "link_key": os.urandom(32),
        "unseal_key": os.urandom(32),
        "created_at": 1.0,
    }
    return EndpointRecord(**{**values, **fields})


def add_function(store: Store, owner: str = "a", code: bytes = b"code") -> FunctionRef:
    record = FunctionRecord(
        function_id=str(uuid.uuid4()),
        owner=owner,
        name="f",
        code=code,
        public=False,
        description="d",
        metadata={"k": [1]},
        created_at=1.0,
    )
    do(store, lambda tx: tx.put_function(record))
    ref = store.function_ref(record.function_id)
    assert ref is not None
    return ref


def add_uep(store: Store, endpoint_id: str = "e", account: str = "a") -> UepRecord:
    record = UepRecord(
        row=0,
        uep_id=str(uuid.uuid4()),
        endpoint_id=endpoint_id,
        account_id=account,
        identity_id="i",
        config={"Q": "gpu", "n": [1, None]},
        runtime={"python": "3.11"},
    )
    made: UepRecord = do(store, lambda tx: tx.put_uep(record))
    return made


class Work:
    """A store with a user endpoint, a function and a task group."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.function = add_function(store)
        self.uep = add_uep(store)
        self.group_id = str(uuid.uuid4())

    def new(self, count: int, payload: bytes = b"p") -> list[NewTask]:
        return [NewTask(task_id=uuid7().bytes, function=self.function, payload=payload) for _ in range(count)]

    def add(self, tasks: list[NewTask], dispatched: int = 0) -> list[int]:
        added = do(
            self.store, lambda tx: tx.add_tasks("a", self.group_id, self.uep.row, tasks, dispatched, time.time())
        )
        rows: list[int] = added.rows
        return rows

    def add_at(self, task: NewTask, now: float, dispatched: int = 0) -> None:
        do(self.store, lambda tx: tx.add_tasks("a", self.group_id, self.uep.row, [task], dispatched, now))

    def take(self, limit: int = 100, max_bytes: int = 1 << 20) -> list[int]:
        taken = do(self.store, lambda tx: tx.take_queued(self.uep.row, limit, max_bytes))
        return [task.row for task in taken]

    def end(self, rows: list[int], state: TaskState = S.SUCCESS, payload: bytes = b"r") -> Any:
        endings = [TaskEnding(row=row, state=state, code="", text="", payload=payload) for row in rows]
        return do(self.store, lambda tx: tx.record_endings(self.uep.row, endings))

    def states(self, tasks: list[NewTask]) -> list[TaskState]:
        return [record.state for record in self.store.tasks([task.task_id for task in tasks])]

    @property
    def group_row(self) -> int:
        group = self.store.group(self.group_id)
        assert group is not None
        return group.row

    def completions(self, after: int = 0, limit: int = 100, max_bytes: int = 1 << 20) -> list[Any]:
        return self.store.completions(self.group_row, after, limit, max_bytes)


@pytest.fixture
def work(store: Store) -> Work:
    return Work(store)


# --- people -----------------------------------------------------------------------------------------


def test_a_token_leads_to_its_person_until_it_is_revoked(store: Store) -> None:
    alice = add_person(store, "alice@example.edu")
    do(store, lambda tx: tx.add_token(b"h" * 32, _token(alice)))
    assert _who(store, b"h" * 32) == alice
    assert store.token(b"x" * 32) is None
    assert do(store, lambda tx: tx.remove_tokens(alice.identity_id)) == 1
    assert store.token(b"h" * 32) is None


def test_a_username_is_taken_once_whatever_its_case(store: Store) -> None:
    add_person(store, "alice@example.edu")
    with pytest.raises(IdConflict):
        add_person(store, "Alice@Example.edu")
    assert len(store.accounts()) == 1


def test_linking_two_people_keeps_one_account_and_everything_they_had(store: Store) -> None:
    alice, lab = add_person(store, "alice@example.edu"), add_person(store, "alice@lab.example.org")
    do(store, lambda tx: tx.add_token(b"1" * 32, _token(alice)))
    do(store, lambda tx: tx.add_token(b"2" * 32, _token(lab)))
    mine = endpoint(lab.account_id)
    do(store, lambda tx: tx.put_endpoint(mine))
    function = add_function(store, lab.account_id)
    uep = add_uep(store, account=lab.account_id)
    new = [NewTask(task_id=uuid7().bytes, function=function, payload=b"")]
    do(store, lambda tx: tx.add_tasks(lab.account_id, "g", uep.row, new, 0, 1.0))

    do(store, lambda tx: tx.merge_accounts(alice.account_id, lab.account_id))

    assert _who(store, b"2" * 32) == Caller(account_id=alice.account_id, identity_id=lab.identity_id)
    people = store.identity_set(alice.account_id, first=lab.identity_id)
    assert people is not None
    assert [one.username for one in people.identities] == ["alice@lab.example.org", "alice@example.edu"]
    assert store.identity_set(lab.account_id) is None
    assert store.endpoints(alice.account_id)[0].endpoint_id == mine.endpoint_id
    assert store.function_ref(function.function_id).owner == alice.account_id  # type: ignore[union-attr]
    assert store.tasks([new[0].task_id])[0].owner == alice.account_id
    assert store.open_tasks(alice.account_id) == 1
    merged = store.uep(uep.uep_id)
    assert merged is not None
    assert (merged.account_id, merged.made_of, uep.made_of) == (alice.account_id, lab.account_id, lab.account_id)


def test_an_unlinked_identity_is_a_person_of_its_own_and_takes_its_tokens_along(store: Store) -> None:
    alice, lab = add_person(store, "alice@example.edu"), add_person(store, "alice@lab.example.org")
    do(store, lambda tx: tx.add_token(b"1" * 32, _token(alice)))
    do(store, lambda tx: tx.add_token(b"2" * 32, _token(lab)))
    do(store, lambda tx: tx.merge_accounts(alice.account_id, lab.account_id))
    uep = add_uep(store, account=alice.account_id)

    do(store, lambda tx: tx.move_identity(lab.identity_id, "new-account"))

    assert _who(store, b"1" * 32) == alice
    assert _who(store, b"2" * 32) == Caller(account_id="new-account", identity_id=lab.identity_id)
    for account_id, username in ((alice.account_id, "alice@example.edu"), ("new-account", "alice@lab.example.org")):
        people = store.identity_set(account_id)
        assert people is not None
        assert [one.username for one in people.identities] == [username]
    assert store.uep(uep.uep_id).account_id == alice.account_id  # type: ignore[union-attr]


def test_a_removed_person_has_no_identity_and_no_token(store: Store) -> None:
    alice = add_person(store, "alice@example.edu")
    do(store, lambda tx: tx.add_token(b"h" * 32, _token(alice)))
    do(store, lambda tx: tx.remove_account(alice.account_id))
    assert store.token(b"h" * 32) is None
    assert store.account_of("alice@example.edu") is None
    assert store.accounts() == []


# --- endpoints and functions ------------------------------------------------------------------------


def test_an_endpoint_comes_back_as_it_was_put(store: Store) -> None:
    record = endpoint()
    do(store, lambda tx: tx.put_endpoint(record))
    assert store.endpoint(record.endpoint_id) == record
    assert store.endpoint("no") is None


def test_a_link_key_belongs_to_one_endpoint(store: Store) -> None:
    first = endpoint()
    do(store, lambda tx: tx.put_endpoint(first))
    second = endpoint(link_key=first.link_key)
    with pytest.raises(IdConflict):
        do(store, lambda tx: tx.put_endpoint(second))
    do(store, lambda tx: tx.delete_endpoint(first.endpoint_id, 5.0))
    do(store, lambda tx: tx.put_endpoint(second))


def test_an_endpoint_is_replaced_by_its_owner_alone_and_never_once_it_is_deleted(store: Store) -> None:
    mine = endpoint()
    do(store, lambda tx: tx.put_endpoint(mine))
    theirs = endpoint("b", endpoint_id=mine.endpoint_id)
    with pytest.raises(IdConflict):
        do(store, lambda tx: tx.put_endpoint(theirs))
    assert store.endpoint(mine.endpoint_id) == mine
    do(store, lambda tx: tx.put_endpoint(endpoint(endpoint_id=mine.endpoint_id, name="renamed")))
    do(store, lambda tx: tx.delete_endpoint(mine.endpoint_id, 5.0))
    with pytest.raises(IdConflict):
        do(store, lambda tx: tx.put_endpoint(mine))


def test_a_deleted_endpoint_is_remembered_and_not_listed(store: Store) -> None:
    record = endpoint()
    do(store, lambda tx: tx.put_endpoint(record))
    do(store, lambda tx: tx.delete_endpoint(record.endpoint_id, 5.0))
    known = store.endpoint(record.endpoint_id)
    assert known is not None
    assert known.deleted_at == 5.0
    assert store.endpoints() == []


def test_a_function_is_found_until_it_is_deleted_and_its_code_still_then(store: Store) -> None:
    ref = add_function(store, code=b"\x00\xffcode")
    found = store.function(ref.function_id)
    assert found is not None
    assert (found.code, found.metadata) == (b"\x00\xffcode", {"k": [1]})
    do(store, lambda tx: tx.delete_function(ref.function_id, 5.0))
    assert store.function(ref.function_id) is None
    assert store.function_ref(ref.function_id) is None
    assert store.function_code(ref.function_id) == b"\x00\xffcode"


# --- user endpoints ---------------------------------------------------------------------------------


def test_a_user_endpoint_is_one_by_its_id(store: Store) -> None:
    one = add_uep(store)
    again = do(store, lambda tx: tx.put_uep(one))
    assert again.row == one.row
    assert store.uep(one.uep_id) == one
    assert add_uep(store).row != one.row


def test_a_join_token_is_spent_once(store: Store) -> None:
    uep = add_uep(store)
    do(store, lambda tx: tx.add_join(uep.row, b"j1", 100.0, 0.0))
    do(store, lambda tx: tx.add_join(uep.row, b"j2", 100.0, 0.0))
    assert not do(store, lambda tx: tx.enrol(uep.row, b"other", b"k" * 32, 50.0))
    assert do(store, lambda tx: tx.enrol(uep.row, b"j1", b"k" * 32, 50.0, b"the process here"))
    known = store.uep(uep.uep_id)
    assert known is not None and known.incarnation == b"the process here"
    assert not do(store, lambda tx: tx.enrol(uep.row, b"j1", b"l" * 32, 50.0, b"another process!"))
    assert not do(store, lambda tx: tx.enrol(uep.row, b"j2", b"l" * 32, 50.0))
    assert store.uep_by_link_key(b"k" * 32).row == uep.row  # type: ignore[union-attr]


def test_a_join_token_expires_and_is_good_for_its_user_endpoint_alone(store: Store) -> None:
    one, other = add_uep(store), add_uep(store)
    do(store, lambda tx: tx.add_join(one.row, b"j", 100.0, 0.0))
    assert not do(store, lambda tx: tx.enrol(other.row, b"j", b"k" * 32, 50.0))
    assert not do(store, lambda tx: tx.enrol(one.row, b"j", b"k" * 32, 101.0))
    assert store.uep_by_link_key(b"k" * 32) is None


def test_a_link_key_is_forgotten_only_for_the_process_that_had_it(store: Store) -> None:
    uep = add_uep(store)
    do(store, lambda tx: tx.add_join(uep.row, b"j", 100.0, 0.0))
    do(store, lambda tx: tx.enrol(uep.row, b"j", b"k" * 32, 50.0))
    do(store, lambda tx: tx.clear_link(uep.row, b"z" * 32))
    assert store.uep_by_link_key(b"k" * 32) is not None
    assert [one.row for one in store.ueps_in_use("e")] == [uep.row]
    do(store, lambda tx: tx.clear_link(uep.row, b"k" * 32))
    assert store.uep_by_link_key(b"k" * 32) is None
    assert store.ueps_in_use() == []


# --- tasks: submitting ------------------------------------------------------------------------------


def test_added_tasks_are_there_in_order(work: Work) -> None:
    tasks = work.new(3)
    rows = work.add(tasks, dispatched=1)
    assert rows == sorted(set(rows))
    assert work.states(tasks) == [S.DISPATCHED, S.QUEUED, S.QUEUED]
    listed = work.store.group_tasks(work.group_row, 0, 2)
    listed += work.store.group_tasks(work.group_row, listed[-1][0], 9)
    assert [task_id for _, task_id in listed] == [task.task_id for task in tasks]
    assert work.store.open_tasks("a") == 3
    assert work.store.open_by_state() == {S.DISPATCHED: 1, S.QUEUED: 2}
    assert [uep.row for uep in work.store.ueps_in_use()] == [work.uep.row]


def test_a_person_s_groups_and_tasks_are_listed_in_pages(work: Work) -> None:
    tasks = work.new(3)
    rows = work.add(tasks, dispatched=1)
    later = str(uuid.uuid4())
    do(work.store, lambda tx: tx.add_tasks("a", later, work.uep.row, work.new(1), 0, 9.0))
    do(work.store, lambda tx: tx.add_tasks("b", str(uuid.uuid4()), work.uep.row, work.new(1), 0, 9.0))
    newest = work.store.groups_of("a", 1 << 62, 1)
    assert [one.group_id for one in newest] == [later]
    assert [one.group_id for one in work.store.groups_of("a", newest[0].row, 9)] == [work.group_id]
    assert work.store.group_size(newest[0].row, 9) == (1, 9.0, 9.0)
    assert [work.store.group_size(work.group_row, limit)[0] for limit in (2, 9)] == [2, 3]
    assert work.store.group_size(1 << 40, 9) == (0, 0.0, 0.0)
    found = work.store.group_states(work.group_row, 0, 2)
    assert [(one.row, one.task_id) for one in found] == list(
        zip(rows[:2], [one.task_id for one in tasks[:2]], strict=True)
    )
    assert [one.state for one in found] == [S.DISPATCHED, S.QUEUED]
    assert {(one.endpoint_id, one.function_id) for one in found} == {("e", work.function.function_id)}
    assert [one.row for one in work.store.group_states(work.group_row, rows[1], 9)] == [rows[2]]


def test_a_repeated_submission_changes_nothing_and_adds_what_was_missing(work: Work) -> None:
    tasks = work.new(2)
    rows = work.add(tasks, dispatched=2)
    more = work.new(1)
    added = do(work.store, lambda tx: tx.add_tasks("a", work.group_id, work.uep.row, [*tasks, *more], 3, 1.0))
    assert (added.rows[:2], added.new, added.repeated) == (rows, 1, True)
    assert work.states([*tasks, *more]) == [S.DISPATCHED, S.DISPATCHED, S.QUEUED]


def test_a_task_id_that_is_taken_by_something_else_stores_nothing(work: Work) -> None:
    tasks = work.new(1)
    work.add(tasks)
    other = Work(work.store)
    fresh = work.new(1)
    with pytest.raises(IdConflict):
        do(work.store, lambda tx: tx.add_tasks("a", other.group_id, work.uep.row, [*fresh, *tasks], 0, 1.0))
    assert work.store.tasks([fresh[0].task_id]) == []
    assert work.store.group(other.group_id) is None


def test_another_persons_group_is_taken(work: Work) -> None:
    work.add(work.new(1))
    with pytest.raises(IdConflict):
        do(work.store, lambda tx: tx.add_tasks("b", work.group_id, work.uep.row, work.new(1), 0, 1.0))


def test_failed_changes_leave_the_store_in_use(work: Work) -> None:
    """A store's in-memory state must be right again after a change that failed."""
    tasks = work.new(1)
    work.add(tasks)

    def fails(tx: Any) -> None:
        tx.add_tasks("a", "another-group", work.uep.row, work.new(3), 0, 1.0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        do(work.store, fails)
    assert work.store.group("another-group") is None
    more = work.new(2)
    work.add(more)
    assert work.states(more) == [S.QUEUED, S.QUEUED]


# --- tasks: dispatching -----------------------------------------------------------------------------


def test_the_oldest_are_taken_first_within_number_and_size(work: Work) -> None:
    rows = work.add(work.new(5, payload=b"x" * 100))
    assert work.take(limit=2) == rows[:2]
    assert work.take(max_bytes=250) == rows[2:4]
    assert work.take(max_bytes=1) == rows[4:]  # at least one, whatever its size
    assert work.take() == []
    assert not work.store.has_queued(work.uep.row)
    assert work.store.has_active(work.uep.row)


def test_what_is_taken_says_everything_that_a_user_endpoint_needs(work: Work) -> None:
    task = NewTask(
        task_id=uuid7().bytes, function=work.function, payload=b"\x00payload", resource_spec=b"spec", walltime_s=2.5
    )
    rows = work.add([task])
    (taken,) = do(work.store, lambda tx: tx.take_queued(work.uep.row, 9, 999))
    assert (taken.row, taken.task_id, taken.function_id) == (rows[0], task.task_id, work.function.function_id)
    assert (taken.payload, taken.resource_spec, taken.walltime_s) == (b"\x00payload", b"spec", 2.5)


def test_tasks_are_taken_by_priority_and_then_by_age(work: Work) -> None:
    low, high, plain, highest = (
        NewTask(task_id=uuid7().bytes, function=work.function, payload=b"p", priority=priority)
        for priority in (-5, 1, 0, 5)
    )
    later = NewTask(task_id=uuid7().bytes, function=work.function, payload=b"p", priority=1)
    rows = dict(zip("lhpxH", work.add([low, high, plain, highest, later]), strict=True))
    assert work.take(limit=2) == [rows["x"], rows["h"]]
    do(work.store, lambda tx: tx.requeue(work.uep.row, [rows["h"]]))
    assert work.take() == [rows["h"], rows["H"], rows["p"], rows["l"]]


def test_the_oldest_that_waits_is_found_whatever_its_priority(work: Work) -> None:
    for at, priority in ((10.0, -3), (20.0, 5), (30.0, 0)):
        work.add_at(NewTask(task_id=uuid7().bytes, function=work.function, payload=b"", priority=priority), at)
    assert work.store.oldest_queued(work.uep.row) == 10.0
    assert len(do(work.store, lambda tx: tx.queued_before(work.uep.row, 25.0, 10))) == 2


def test_lost_attempts_are_counted_and_said_when_the_task_is_taken_again(work: Work) -> None:
    task = NewTask(task_id=uuid7().bytes, function=work.function, payload=b"", max_attempts=3, deadline=9e9, priority=2)
    (row,) = work.add([task], dispatched=1)
    do(work.store, lambda tx: tx.record_lost_attempts(work.uep.row, [(row, 1)]))
    do(work.store, lambda tx: tx.record_lost_attempts(work.uep.row, [(row, 1)]))  # said twice, counted once
    (open_tasks_of,) = do(work.store, lambda tx: tx.open_tasks_of(work.uep.row, [row, 10**9]))
    assert (open_tasks_of.attempts, open_tasks_of.max_attempts, open_tasks_of.state) == (1, 3, S.DISPATCHED)
    do(work.store, lambda tx: tx.requeue(work.uep.row, [row]))
    (taken,) = do(work.store, lambda tx: tx.take_queued(work.uep.row, 9, 999))
    assert (taken.attempt, taken.max_attempts, taken.deadline, taken.priority) == (2, 3, 9e9, 2)
    work.end([row])
    assert do(work.store, lambda tx: tx.open_tasks_of(work.uep.row, [row])) == []
    other = add_uep(work.store)
    assert do(work.store, lambda tx: tx.open_tasks_of(other.row, [row])) == []


def test_what_is_to_be_cancelled_is_known_until_it_ends(work: Work) -> None:
    tasks = work.new(3)
    rows = work.add(tasks, dispatched=2)
    do(work.store, lambda tx: tx.ask_cancel(work.uep.row, rows[1:]))
    assert do(work.store, lambda tx: tx.cancelling(work.uep.row)) == {rows[1]: S.DISPATCHED, rows[2]: S.QUEUED}
    assert [one.cancelling for one in do(work.store, lambda tx: tx.open_tasks_of(work.uep.row, rows))] == [
        False,
        True,
        True,
    ]
    work.end(rows[1:], S.CANCELLED)
    assert do(work.store, lambda tx: tx.cancelling(work.uep.row)) == {}


def test_deadlines_are_told_in_their_order_until_the_tasks_end(work: Work) -> None:
    assert work.store.next_deadline() is None
    late, later, none = (
        NewTask(task_id=uuid7().bytes, function=work.function, payload=b"", deadline=at) for at in (200.0, 300.0, 0.0)
    )
    rows = work.add([later, late, none], dispatched=1)
    assert work.store.next_deadline() == 200.0
    assert work.store.overdue(199.0, 10) == []
    found = work.store.overdue(300.0, 10)
    assert [(one.row, one.uep_row, one.state) for one in found] == [
        (rows[1], work.uep.row, S.QUEUED),
        (rows[0], work.uep.row, S.DISPATCHED),
    ]
    assert len(work.store.overdue(300.0, 1)) == 1
    work.end([rows[1]], S.EXPIRED)
    assert work.store.next_deadline() == 300.0


def test_when_a_user_endpoint_was_last_seen_is_noted(work: Work) -> None:
    do(work.store, lambda tx: tx.touch_ueps([work.uep.row], 77.0))
    assert work.store.uep(work.uep.uep_id).seen_at == 77.0  # type: ignore[union-attr]


def test_rows_that_wait_again_are_those_with_a_lost_attempt(work: Work) -> None:
    rows = work.add(work.new(3), dispatched=2)
    do(work.store, lambda tx: tx.record_lost_attempts(work.uep.row, [(rows[0], 1), (rows[2], 1)]))
    assert do(work.store, lambda tx: tx.queued_again(work.uep.row)) == [rows[2]]
    do(work.store, lambda tx: tx.requeue(work.uep.row, None))
    assert sorted(do(work.store, lambda tx: tx.queued_again(work.uep.row))) == [rows[0], rows[2]]


def test_doubt_is_noted_of_unfinished_tasks_until_it_is_taken_back(work: Work) -> None:
    rows = work.add(work.new(4), dispatched=3)
    do(work.store, lambda tx: tx.doubt(work.uep.row, rows, doubtful=True))
    assert do(work.store, lambda tx: tx.queued_doubtful(work.uep.row)) == [rows[3]]
    do(work.store, lambda tx: tx.requeue(work.uep.row, rows[:2]))
    do(work.store, lambda tx: tx.doubt(work.uep.row, rows[:1], doubtful=False))
    assert sorted(do(work.store, lambda tx: tx.queued_doubtful(work.uep.row))) == [rows[1], rows[3]]
    work.end([rows[3]])
    assert do(work.store, lambda tx: tx.queued_doubtful(work.uep.row)) == [rows[1]]
    do(work.store, lambda tx: tx.doubt(work.uep.row, [rows[3]], doubtful=True))
    assert do(work.store, lambda tx: tx.queued_doubtful(work.uep.row)) == [rows[1]]


def test_active_rows_are_those_that_are_sent_or_running(work: Work) -> None:
    rows = work.add(work.new(3), dispatched=2)
    do(work.store, lambda tx: tx.record_started(work.uep.row, rows[:1], 5.0))
    assert do(work.store, lambda tx: tx.active_rows(work.uep.row)) == {rows[0]: S.RUNNING, rows[1]: S.DISPATCHED}


def test_only_dispatched_tasks_of_the_user_endpoint_start(work: Work) -> None:
    tasks = work.new(2)
    rows = work.add(tasks, dispatched=1)
    other = add_uep(work.store)
    do(work.store, lambda tx: tx.record_started(other.row, rows, 5.0))
    assert work.states(tasks) == [S.DISPATCHED, S.QUEUED]
    do(work.store, lambda tx: tx.record_started(work.uep.row, rows, 5.0))
    assert work.states(tasks) == [S.RUNNING, S.QUEUED]
    assert do(work.store, lambda tx: tx.running_rows(work.uep.row)) == rows[:1]


def test_requeueing_spares_what_has_started_unless_it_is_named(work: Work) -> None:
    tasks = work.new(3)
    rows = work.add(tasks, dispatched=3)
    do(work.store, lambda tx: tx.record_started(work.uep.row, rows[:1], 5.0))
    assert do(work.store, lambda tx: tx.requeue(work.uep.row, None)) == 2
    assert work.states(tasks) == [S.RUNNING, S.QUEUED, S.QUEUED]
    assert do(work.store, lambda tx: tx.requeue(work.uep.row, rows)) == 1
    assert work.take() == rows


def test_reconciling_puts_right_what_a_user_endpoint_holds(work: Work) -> None:
    tasks = work.new(6)
    queued, kept, away, started, lost, ended = work.add(tasks, dispatched=0)
    do(work.store, lambda tx: tx.take_queued(work.uep.row, 100, 1 << 20))
    do(work.store, lambda tx: tx.requeue(work.uep.row, [queued]))
    do(work.store, lambda tx: tx.record_started(work.uep.row, [started, lost], 5.0))
    work.end([ended])
    foreign = Work(work.store).add(work.new(1), dispatched=1)[0]

    found = do(work.store, lambda tx: tx.reconcile(work.uep.row, [queued, kept, started, ended, foreign, 10**9]))

    assert found.requeued == 1
    assert found.lost == [lost]
    assert sorted(found.over) == sorted([ended, foreign, 10**9])
    expected = [S.DISPATCHED, S.DISPATCHED, S.QUEUED, S.RUNNING, S.RUNNING, S.SUCCESS]
    assert work.states(tasks) == expected
    assert work.take() == [away]


# --- tasks: ending ----------------------------------------------------------------------------------


def test_an_ending_is_stored_once_and_in_order(work: Work) -> None:
    tasks = work.new(3)
    rows = work.add(tasks, dispatched=3)
    settled = work.end([rows[2], rows[0]])
    assert (settled.groups, settled.ended) == (frozenset({work.group_row}), 2)
    assert work.end([rows[2]], S.FAILED).ended == 0
    found = work.completions()
    assert [c.task_id for c in found] == [tasks[2].task_id, tasks[0].task_id]
    assert found[0].seq < found[1].seq
    assert work.states(tasks) == [S.SUCCESS, S.DISPATCHED, S.SUCCESS]


def test_a_queued_task_may_end_and_another_user_endpoints_may_not(work: Work) -> None:
    tasks = work.new(1)
    rows = work.add(tasks)
    other = add_uep(work.store)
    ending = TaskEnding(row=rows[0], state=S.SUCCESS)
    assert do(work.store, lambda tx: tx.record_endings(other.row, [ending])).ended == 0
    assert do(work.store, lambda tx: tx.record_endings(work.uep.row, [ending])).ended == 1
    assert work.take() == []


def test_an_ending_comes_back_as_it_went(work: Work) -> None:
    tasks = work.new(1)
    rows = work.add(tasks, dispatched=1)
    ending = TaskEnding(
        row=rows[0],
        state=S.FAILED,
        code="TASK_FAILED",
        text="why — ü",
        payload=b"\x00\xff",
        correlation_id="c-1",
        started_at=3.0,
        ended_at=4.0,
    )
    do(work.store, lambda tx: tx.record_endings(work.uep.row, [ending]))
    (record,) = work.store.tasks([tasks[0].task_id])
    assert (record.state, record.code, record.text) == (S.FAILED, "TASK_FAILED", "why — ü")
    assert (record.payload, record.correlation_id) == (b"\x00\xff", "c-1")
    assert (record.started_at, record.ended_at, record.owner) == (3.0, 4.0, "a")


def test_a_tasks_brief_has_the_size_of_its_end_and_not_the_end(work: Work) -> None:
    ended, waiting = work.new(2)
    rows = work.add([ended, waiting], dispatched=2)
    ending = TaskEnding(row=rows[0], state=S.FAILED, code="TASK_FAILED", text="why", payload=b"x" * 1000)
    do(work.store, lambda tx: tx.record_endings(work.uep.row, [ending]))
    first, second = work.store.briefs([ended.task_id, waiting.task_id, uuid7().bytes])
    assert (first.row, first.task_id, first.owner, first.uep_row) == (rows[0], ended.task_id, "a", work.uep.row)
    assert (first.state, first.size) == (S.FAILED, 1003)
    assert (second.state, second.size) == (S.DISPATCHED, 0)


def test_completions_are_paged_by_cursor_number_and_size(work: Work) -> None:
    rows = work.add(work.new(6), dispatched=6)
    work.end(rows, payload=b"x" * 100)
    first = work.completions(limit=2)
    assert len(first) == 2
    second = work.completions(first[-1].seq, max_bytes=250)
    assert len(second) == 2
    rest = work.completions(second[-1].seq, max_bytes=1)
    assert len(rest) == 1
    assert len({c.seq for c in [*first, *second, *rest]}) == 5
    assert work.completions(10**9) == []


def test_a_whole_queue_ends_alike_a_page_at_a_time(work: Work) -> None:
    tasks = work.new(5)
    work.add(tasks, dispatched=1)
    ending = TaskEnding(row=0, state=S.FAILED, code="ENDPOINT_DELETED", text="gone")
    assert do(work.store, lambda tx: tx.end_queued(work.uep.row, ending, 3)).ended == 3
    assert do(work.store, lambda tx: tx.end_queued(work.uep.row, ending, 3)).ended == 1
    assert do(work.store, lambda tx: tx.end_queued(work.uep.row, ending, 3)).ended == 0
    assert work.states(tasks) == [S.DISPATCHED, *[S.FAILED] * 4]
    assert {c.code for c in work.completions()} == {"ENDPOINT_DELETED"}


def test_what_waits_since_before_a_time_is_found(work: Work) -> None:
    tasks = work.new(4)
    assert work.store.oldest_queued(work.uep.row) is None
    work.add_at(tasks[0], 0.0, dispatched=1)
    for at, task in enumerate(tasks[1:], start=1):
        work.add_at(task, at * 10.0)
    assert work.store.oldest_queued(work.uep.row) == 10.0
    rows = {at: work.store.briefs([task.task_id])[0].row for at, task in enumerate(tasks)}
    assert do(work.store, lambda tx: tx.queued_before(work.uep.row, 10.0, 10)) == []
    assert do(work.store, lambda tx: tx.queued_before(work.uep.row, 30.0, 10)) == [rows[1], rows[2]]
    assert do(work.store, lambda tx: tx.queued_before(work.uep.row, 30.0, 1)) == [rows[1]]


def test_sweeping_removes_old_endings_and_never_gives_a_row_again(work: Work) -> None:
    tasks = work.new(4)
    rows = work.add(tasks, dispatched=4)
    work.end([rows[0], rows[1], rows[3]])
    assert do(work.store, lambda tx: tx.sweep(time.time() - 60, 10)).count == 0
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 2  # the newest row stays
    assert work.store.tasks([task.task_id for task in tasks[:2]]) == []
    assert work.states(tasks[2:]) == [S.DISPATCHED, S.SUCCESS]
    assert work.add(work.new(1))[0] > rows[3]


def test_many_changes_at_once_all_become_durable(work: Work) -> None:
    futures = []
    for _ in range(300):
        tasks = work.new(2)
        change = lambda tx, t=tasks: tx.add_tasks("a", work.group_id, work.uep.row, t, 0, 1.0)  # noqa: E731
        futures.append(work.store.submit(change))
    rows = [row for future in futures for row in future.result(timeout=20).rows]
    assert rows == sorted(set(rows))
    assert len(work.store.group_tasks(work.group_row, 0, 1000)) == 600


def test_an_ending_for_another_task_does_not_end_the_one_that_has_its_row(work: Work) -> None:
    sent, started = work.new(2)
    rows = work.add([sent, started], dispatched=2)
    do(work.store, lambda tx: tx.record_started(work.uep.row, [rows[1]], 1.0))
    strange = [TaskEnding(row=row, state=S.SUCCESS, task_id=uuid7().bytes) for row in rows]
    settled = do(work.store, lambda tx: tx.record_endings(work.uep.row, strange))
    assert (settled.ended, settled.foreign, settled.groups) == (0, rows, frozenset())
    assert work.states([sent, started]) == [S.QUEUED, S.QUEUED]
    own = [
        TaskEnding(row=rows[0], state=S.SUCCESS, task_id=sent.task_id),
        TaskEnding(row=rows[1], state=S.SUCCESS, task_id=started.task_id),
    ]
    settled = do(work.store, lambda tx: tx.record_endings(work.uep.row, own))
    assert (settled.ended, settled.foreign) == (2, [])


# --- retention: which records, and for how long ----------------------------------------------------


def test_a_persons_bytes_are_those_of_arguments_and_results_until_they_are_removed(work: Work) -> None:
    own = work.store.stored_bytes("a")  # of the function
    assert 1024 < own < 1200
    tasks = work.new(3, payload=b"x" * 100)
    rows = work.add(tasks, dispatched=3)
    work.add(tasks)  # the same again is not counted again
    assert work.store.stored_bytes("a") == own + 300
    assert work.store.stored_bytes("b") == 0
    work.end(rows[:2], payload=b"y" * 10)
    assert work.store.stored_bytes("a") == own + 320
    last = do(work.store, lambda tx: tx.drop_inputs(0, 1))
    assert work.store.stored_bytes("a") == own + 220
    assert do(work.store, lambda tx: tx.drop_inputs(last, 10)) > last
    assert work.store.stored_bytes("a") == own + 120
    work.end(rows[2:], payload=b"y" * 10)
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 2  # the newest stays
    assert work.store.stored_bytes("a") == own + 110
    do(work.store, lambda tx: tx.merge_accounts("b", "a"))
    assert work.store.stored_bytes("b") == own + 110


def test_functions_count_for_their_owner_until_they_are_purged(store: Store) -> None:
    first, second = add_function(store, code=b"c" * 5000), add_function(store, code=b"c")
    size = store.stored_bytes("a")
    assert 6000 + 1024 < size < 6000 + 1400
    assert store.storage() == [("a", size, 0)]
    changed = store.function(first.function_id)
    assert changed is not None
    do(store, lambda tx: tx.change_function(msgspec.structs.replace(changed, description="d" * 101)))
    assert size + 100 <= store.stored_bytes("a") <= size + 102
    do(store, lambda tx: tx.delete_function(first.function_id, 5.0))
    assert store.stored_bytes("a") > 5000, "its code is still stored"
    assert do(store, lambda tx: tx.purge_functions(6.0, 10)) == 1
    left = store.function(second.function_id)
    assert left is not None
    assert store.stored_bytes("a") == left.stored_bytes
    do(store, lambda tx: tx.merge_accounts("b", "a"))
    assert (store.stored_bytes("a"), store.stored_bytes("b")) == (0, left.stored_bytes)


def test_a_task_whose_arguments_are_gone_has_its_result_and_is_known(work: Work) -> None:
    tasks = work.new(2)
    rows = work.add(tasks, dispatched=1)
    work.end(rows[:1])
    last = do(work.store, lambda tx: tx.drop_inputs(0, 10))
    assert do(work.store, lambda tx: tx.drop_inputs(last, 10)) == last
    assert work.store.tasks([tasks[0].task_id])[0].payload == b"r"
    added = do(work.store, lambda tx: tx.add_tasks("a", work.group_id, work.uep.row, tasks, 0, 1.0))
    assert (added.rows, added.new) == (rows, 0)
    assert work.take() == rows[1:]


def test_user_endpoints_that_nobody_uses_are_removed(work: Work) -> None:
    unused, linked, kept, newest = (add_uep(work.store) for _ in range(4))
    do(work.store, lambda tx: tx.add_join(unused.row, b"j0", 100.0, 0.0))
    do(work.store, lambda tx: tx.add_join(linked.row, b"j", 100.0, 0.0))
    do(work.store, lambda tx: tx.enrol(linked.row, b"j", b"k" * 32, 50.0))
    work.add(work.new(1))
    do(work.store, lambda tx: tx.touch_ueps([one.row for one in (work.uep, unused, linked, kept, newest)], 10.0))
    assert do(work.store, lambda tx: tx.sweep_ueps(10.0, {kept.row}, 10)) == 0
    assert do(work.store, lambda tx: tx.sweep_ueps(11.0, {kept.row}, 10)) == 1
    assert work.store.uep(unused.uep_id) is None
    for one in (work.uep, linked, kept, newest):
        assert work.store.uep(one.uep_id) is not None
    assert add_uep(work.store).row > newest.row


def test_empty_task_groups_are_removed_and_their_rows_never_given_again(store: Store) -> None:
    works = [Work(store) for _ in range(4)]
    rows = []
    for one in works:
        rows += one.add(one.new(1), dispatched=1)
    group_rows = [one.group_row for one in works]
    assert do(store, lambda tx: tx.sweep_groups(0, set(), 10)) == 0
    for one, row in zip(works, rows, strict=True):
        one.end([row])
    do(store, lambda tx: tx.sweep(time.time() + 60, 10))  # the newest task stays
    followed = group_rows[1]
    assert do(store, lambda tx: tx.sweep_groups(0, {followed}, 2)) == followed
    assert do(store, lambda tx: tx.sweep_groups(followed, {followed}, 2)) == 0
    assert [store.group(one.group_id) is not None for one in works] == [False, True, False, True]
    again = works[0]
    again.add(again.new(1))
    assert again.group_row > group_rows[3]


def test_functions_that_nobody_uses_are_deleted_and_later_removed(store: Store) -> None:
    unused, used, newest = (add_function(store) for _ in range(3))
    do(store, lambda tx: tx.use_functions([used.row, newest.row], 50.0))
    assert store.function_ref(used.function_id).used_at == 50.0  # type: ignore[union-attr]
    assert do(store, lambda tx: tx.sweep_functions(40.0, 100.0, 10)) == 1
    assert store.function_ref(unused.function_id) is None
    assert store.function_code(unused.function_id) == b"code"
    do(store, lambda tx: tx.delete_function(newest.function_id, 90.0))
    assert do(store, lambda tx: tx.purge_functions(100.0, 10)) == 0  # the newest stays
    assert do(store, lambda tx: tx.purge_functions(101.0, 10)) == 1
    assert store.function_code(unused.function_id) is None
    assert store.function_ref(used.function_id) is not None
    assert add_function(store).row > newest.row


# --- documents, tokens and identities of logins -------------------------------------------------------


def note(name: str, owner: str = "", expires: float = 0.0, body: bytes = b"x", kind: str = "note") -> Document:
    return Document(kind=kind, id=name, owner=owner, expires=expires, body=body)


def test_a_document_is_added_once_replaced_and_dropped(store: Store) -> None:
    assert do(store, lambda tx: tx.add_document(note("a"))) is True
    assert do(store, lambda tx: tx.add_document(note("a", body=b"other"))) is False
    assert store.document("note", "a") == note("a")
    do(store, lambda tx: tx.put_document(note("a", "me", 5.0, b"new")))
    assert store.document("note", "a") == note("a", "me", 5.0, b"new")
    assert do(store, lambda tx: tx.get_document("note", "a")) == note("a", "me", 5.0, b"new")
    assert store.document("another", "a") is None
    assert do(store, lambda tx: tx.drop_document("note", "a")) is True
    assert do(store, lambda tx: tx.drop_document("note", "a")) is False


def test_documents_are_found_by_owner_in_order_and_by_pages(store: Store) -> None:
    for number in range(5):
        do(store, lambda tx, n=number: tx.put_document(note(f"n{n}", "even" if n % 2 == 0 else "odd")))
    do(store, lambda tx: tx.put_document(note("z", "even", kind="another")))
    assert [one.id for one in store.documents("note")] == ["n0", "n1", "n2", "n3", "n4"]
    assert [one.id for one in store.documents("note", "even")] == ["n0", "n2", "n4"]
    assert [one.id for one in store.documents("note", "even", "n0", 1)] == ["n2"]
    assert [one.id for one in store.documents("note", None, "n2", 9)] == ["n3", "n4"]
    assert do(store, lambda tx: tx.drop_documents("note", "even")) == 3
    assert [one.id for one in store.documents("note")] == ["n1", "n3"]
    assert len(store.documents("another")) == 1


def test_expired_documents_and_tokens_are_swept_and_others_stay(store: Store) -> None:
    alice = add_person(store, "alice@example.edu")
    for name, expires in (("never", 0.0), ("old", 10.0), ("new", 1e12)):
        do(store, lambda tx, i=name, e=expires: tx.put_document(note(i, expires=e)))
        token = msgspec.structs.replace(_token(alice), token_id=name, expires_at=expires)
        do(store, lambda tx, t=token: tx.add_token(t.token_id.encode(), t))
    assert do(store, lambda tx: tx.sweep_documents(1000.0, 10)) == 1
    assert do(store, lambda tx: tx.sweep_tokens(1000.0, 10)) == 1
    assert {one.id for one in store.documents("note")} == {"never", "new"}
    assert {one.token_id for one in store.tokens(alice.account_id, 10)} == {"never", "new"}


def test_a_token_keeps_what_it_may_do_and_is_revoked_alone_or_with_its_login(store: Store) -> None:
    alice = add_person(store, "alice@example.edu")
    whole = TokenRecord(
        token_id="one", account_id=alice.account_id, identity_id=alice.identity_id, created_at=2.0, expires_at=9.0,
        grant_id="login", name="laptop", scopes=("read",), client_id="c", end_user="e", functions=("f",),
        login=Login(provider="campus", at=1.0, acr="a", amr=("otp",), groups=("campus:g",)),
    )  # fmt: skip
    second = msgspec.structs.replace(whole, token_id="two", created_at=3.0)
    third = msgspec.structs.replace(whole, token_id="three", created_at=4.0, grant_id="")
    for each in (whole, second, third):
        do(store, lambda tx, t=each: tx.add_token(t.token_id.encode(), t))
    assert store.token(b"one") == whole
    do(store, lambda tx: tx.use_token("one", 7.0))
    assert store.token(b"one") == msgspec.structs.replace(whole, used_at=7.0)
    assert [one.token_id for one in store.tokens(alice.account_id, 2)] == ["three", "two"]
    assert do(store, lambda tx: tx.remove_token("three", "somebody-else")) is False
    assert do(store, lambda tx: tx.remove_token("three", alice.account_id)) is True
    assert do(store, lambda tx: tx.remove_grant_tokens("login")) == 2
    assert store.tokens(alice.account_id, 10) == []


def test_logins_end_with_their_identity(store: Store) -> None:
    alice, bob = add_person(store, "alice@example.edu"), add_person(store, "bob@example.edu")
    for person in (alice, bob):
        do(store, lambda tx, p=person: tx.put_document(note(p.identity_id, p.identity_id, kind="grant")))
    do(store, lambda tx: tx.remove_tokens(alice.identity_id))
    assert [one.owner for one in store.documents("grant")] == [bob.identity_id]
    do(store, lambda tx: tx.remove_account(bob.account_id))
    assert store.documents("grant") == []


def test_identities_are_added_changed_and_found(store: Store) -> None:
    alice = add_person(store, "alice@example.edu")
    more = Identity(id="second", username="alice@lab.example.org")
    do(store, lambda tx: tx.add_identity(alice.account_id, more))
    do(store, lambda tx: tx.add_identity("another-account", Identity(id="second", username="renamed@example.org")))
    assert store.owner_of_identity("second") == alice.account_id
    assert store.owner_of_identity("nobody") is None
    assert sorted(do(store, lambda tx: tx.identities_of(alice.account_id))) == sorted([alice.identity_id, "second"])
    found = do(store, lambda tx: tx.identity_named("RENAMED@example.org"))
    assert (found.account_id, found.identity_id) == (alice.account_id, "second")
    assert do(store, lambda tx: tx.account_of_identity("second")) == alice.account_id
    with pytest.raises(IdConflict):
        do(store, lambda tx: tx.add_identity(alice.account_id, Identity(id="third", username="Alice@example.edu")))


def test_property_of_merged_people_includes_their_documents(store: Store) -> None:
    alice, lab = add_person(store, "alice@example.edu"), add_person(store, "alice@lab.example.org")
    do(store, lambda tx: tx.put_document(note("g", lab.account_id)))
    do(store, lambda tx: tx.merge_accounts(alice.account_id, lab.account_id))
    assert [one.id for one in store.documents("note", alice.account_id)] == ["g"]


def test_a_functions_group_and_description_change_and_its_code_does_not(store: Store) -> None:
    made = FunctionRecord(
        function_id="f", owner="o", name="n", code=b"code", public=False, description="", metadata={}, created_at=1.0,
        ha_endpoint_id="e",
    )  # fmt: skip
    do(store, lambda tx: tx.put_function(made))
    with pytest.raises(IdConflict):
        do(store, lambda tx: tx.put_function(made))
    changed = msgspec.structs.replace(made, public=True, group="g", description="d", code=b"ignored")
    do(store, lambda tx: tx.change_function(changed))
    assert store.function("f") == msgspec.structs.replace(changed, code=b"code")
    ref = store.function_ref("f")
    assert ref is not None
    assert (ref.public, ref.group, ref.ha_endpoint_id) == (True, "g", "e")


def test_delivered_ends_can_be_removed_before_others(work: Work) -> None:
    rows = work.add(work.new(3))
    work.take()
    work.end(rows)
    group, seqs = work.group_row, [one.seq for one in work.completions()]
    do(work.store, lambda tx: tx.note_delivered(group, seqs[0]))
    do(work.store, lambda tx: tx.note_delivered(group, 0))  # never back
    assert do(work.store, lambda tx: tx.sweep(0.0, 10, delivered=True)).count == 0
    assert do(work.store, lambda tx: tx.sweep(2e10, 10, delivered=True)).count == 1
    assert [one.seq for one in work.completions()] == seqs[1:]


def test_an_administrator_sees_tasks_queues_and_storage(work: Work) -> None:
    function = work.store.stored_bytes("a")
    tasks = work.new(3, payload=b"12345")
    rows = work.add(tasks)
    work.take(1)
    listed = work.store.list_tasks("a", "e", ended=False, limit=2)
    assert [one.task_id for one in listed] == [tasks[2].task_id, tasks[1].task_id]
    assert work.store.list_tasks("other", "", ended=True, limit=9) == []
    assert {(one.state, one.count) for one in work.store.queues()} == {(int(S.QUEUED), 2), (int(S.DISPATCHED), 1)}
    assert work.store.storage() == [("a", 15 + function, 1)]
    work.end(rows)
    assert work.store.list_tasks("", "", ended=False, limit=9) == []
    assert len(work.store.list_tasks("", "", ended=True, limit=9)) == 3


def test_a_large_task_names_its_chunk_all_the_way(work: Work) -> None:
    (new,) = work.new(1, payload=b"")
    new = NewTask(task_id=new.task_id, function=new.function, payload=b"", chunk="a/x", chunk_size=7)
    work.add([new, *work.new(1)])
    (taken,) = do(work.store, lambda tx: tx.take_queued(work.uep.row, 9, 5))  # the chunk's size counts
    assert (taken.chunk, taken.chunk_size) == ("a/x", 7)
    ending = TaskEnding(row=taken.row, state=S.SUCCESS, chunk="a/y", chunk_size=9)
    do(work.store, lambda tx: tx.record_endings(work.uep.row, [ending]))
    assert work.store.tasks([new.task_id])[0].chunk == "a/y"
    assert [one.chunk for one in work.completions()] == ["a/y"]
    assert work.store.briefs([new.task_id])[0].size == 9


# --- tasks that wait for others ---------------------------------------------------------------------------


def waiting(work: Work, *on: bytes) -> NewTask:
    """Return a task that waits for those of these ids."""
    return NewTask(task_id=uuid7().bytes, function=work.function, payload=b"p", depends_on=on)


def stored(work: Work, *tasks: NewTask) -> list[int]:
    """Store tasks as the dispatcher does."""

    def change(tx: Any) -> list[int]:
        dependencies.check(tx, "a", work.uep.endpoint_id, tasks)
        added = tx.add_tasks("a", "waits", work.uep.row, tasks, 0, 1.0)
        dependencies.hold(tx, added, tasks)
        return list(added.rows)

    rows: list[int] = do(work.store, change)
    return rows


def ended(work: Work, row: int, state: TaskState, payload: bytes = b"", code: str = "", text: str = "") -> Any:
    """End a task, and decide about those that wait for it."""
    ending = TaskEnding(row=row, state=state, payload=payload, code=code, text=text, ended_at=2.0)

    def change(tx: Any) -> Any:
        tx.record_endings(work.uep.row, [ending])
        return dependencies.release(tx, [row])

    return do(work.store, change)


def takes(work: Work) -> list[int]:
    return [task.row for task in do(work.store, lambda tx: tx.take_queued(work.uep.row, 100, 10**6))]


def test_a_task_is_held_until_the_last_of_its_dependencies_succeeds(work: Work) -> None:
    one, two = waiting(work), waiting(work)
    last = waiting(work, one.task_id, two.task_id)
    first_row, second_row, row = stored(work, one, two, last)
    assert takes(work) == [first_row, second_row]
    assert not work.store.has_queued(work.uep.row)
    assert sorted(work.store.awaited()) == [first_row, second_row]
    assert work.store.dependent_rows() == [(row, work.uep.row)]
    assert not ended(work, second_row, S.SUCCESS, b"two").ready
    assert list(ended(work, first_row, S.SUCCESS, b"one").ready) == [work.uep.row]
    assert work.store.awaited() == []
    assert work.store.has_queued(work.uep.row)
    assert takes(work) == [row]
    assert work.store.inputs(row) == [(b"one", ""), (b"two", "")]
    ended(work, row, S.SUCCESS)
    assert work.store.dependent_rows() == []


@pytest.mark.parametrize(
    ("state", "code", "text", "said"),
    [
        (S.FAILED, "WORKER_LOST", "its worker died", "WORKER_LOST its worker died"),
        (S.CANCELLED, "TASK_CANCELLED", "", "it was cancelled"),
        (S.EXPIRED, "TASK_EXPIRED", "", "it expired"),
    ],
)
def test_an_end_in_another_way_ends_all_that_wait(
    work: Work, state: TaskState, code: str, text: str, said: str
) -> None:
    one = waiting(work)
    two = waiting(work, one.task_id)
    three, other = waiting(work, two.task_id), waiting(work)
    rows = stored(work, one, two, three, other)
    found = ended(work, rows[0], state, code=code, text=text)
    assert sorted(found.failed[work.uep.row][1].rows) == rows[1:3]
    assert not found.ready
    ends = {task.task_id: (task.state, task.code, task.text) for task in work.store.tasks([two.task_id, three.task_id])}
    assert {(state, code) for state, code, _ in ends.values()} == {(S.FAILED, "DEPENDENCY_FAILED")}
    assert said in ends[two.task_id][2]
    assert takes(work) == [rows[3]]


def test_a_task_that_waits_on_costs_next_to_nothing(work: Work) -> None:
    """Ten thousand tasks may wait for the same hundred: each end of those is looked at in one transaction."""
    asked: list[Any] = []
    held: list[Any] = []

    class Noting(DelegatingTx):
        def hold(self, rows: Any, on_rows: Any) -> None:
            held.append((rows, on_rows))
            super().hold(rows, on_rows)

        def dependencies(self, row: int) -> list[Any]:
            asked.append(row)
            return super().dependencies(row)

        def task_owner(self, task_id: bytes) -> Any:
            asked.append(task_id)
            return super().task_owner(task_id)

    one, two = waiting(work), waiting(work)
    tasks = [one, two, *(waiting(work, one.task_id, two.task_id) for _ in range(3))]

    def store(tx: Any) -> list[int]:
        added = tx.add_tasks("a", "waits", work.uep.row, tasks, 0, 1.0)
        dependencies.hold(Noting(tx), added, tasks)
        return list(added.rows)

    rows = do(work.store, store)
    assert asked == [one.task_id, two.task_id]
    assert held == [(rows[2:], rows[:2])]  # the pairs are two rows, not six
    for number, looked_at in enumerate([[], rows[2:3]]):
        asked.clear()
        ending = TaskEnding(row=rows[number], state=S.SUCCESS, payload=b"", ended_at=2.0)
        do(work.store, lambda tx, ending=ending: tx.record_endings(work.uep.row, [ending]))
        do(work.store, lambda tx, row=ending.row: dependencies.release(Noting(tx), [row]))
        assert asked == looked_at


def test_tasks_of_one_set_end_and_go_on_their_own(work: Work) -> None:
    one, two = waiting(work), waiting(work)
    pair = [waiting(work, one.task_id, two.task_id) for _ in range(3)]
    first, second, *rows = stored(work, one, two, *pair)
    assert takes(work) == [first, second]
    ended(work, rows[0], S.CANCELLED)
    ended(work, first, S.SUCCESS, b"one")
    ended(work, second, S.SUCCESS, b"two")
    assert takes(work) == rows[1:]
    ended(work, rows[1], S.SUCCESS)
    newest = stored(work, waiting(work))[0]
    ended(work, newest, S.SUCCESS)
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 2  # the first of the set, and the second
    assert work.store.inputs(rows[2]) == [(b"one", ""), (b"two", "")]
    ended(work, rows[2], S.SUCCESS)
    newest = stored(work, waiting(work))[0]
    ended(work, newest, S.SUCCESS)
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 4
    assert do(work.store, lambda tx: tx._db.execute("SELECT count(*) FROM dependencies").fetchone()) == (0,)


def test_held_tasks_expire_and_end_with_their_queue_too(work: Work) -> None:
    one = waiting(work)
    first, held = stored(work, one, waiting(work, one.task_id))
    assert do(work.store, lambda tx: tx.queued_before(work.uep.row, 2.0, 10)) == [first, held]
    assert takes(work) == [first]
    assert do(work.store, lambda tx: tx.queued_before(work.uep.row, 2.0, 10)) == [held]
    assert work.store.oldest_queued(work.uep.row) == 1.0
    settled = do(work.store, lambda tx: tx.end_queued(work.uep.row, TaskEnding(row=0, state=S.FAILED), 10))
    assert settled.rows == [held]


def test_a_sweep_goes_on_behind_what_must_stay(work: Work) -> None:
    one = waiting(work)
    first, second, third, newest = stored(work, one, *(waiting(work) for _ in range(3)))
    stored(work, waiting(work, one.task_id))
    for row in (first, second, third, newest):
        ended(work, row, S.SUCCESS)
    until = time.time() + 60
    page = do(work.store, lambda tx: tx.sweep(until, 1))
    assert (page.count, bool(page.last)) == (0, True)  # a task waits for the first
    page = do(work.store, lambda tx: tx.sweep(until, 2, after=page.last))
    assert (page.count, bool(page.last)) == (2, True)
    assert do(work.store, lambda tx: tx.sweep(until, 2, after=page.last)).last == 0


def test_a_sweep_goes_on_behind_ends_of_a_clock_that_was_ahead(work: Work) -> None:
    rows, ahead = work.add(work.new(5)), time.time() + 1e6
    endings = [
        TaskEnding(row=row, state=S.SUCCESS, stored_at=at)
        for row, at in zip(rows, (ahead, ahead, 1.0, time.time(), 1.0), strict=True)
    ]
    do(work.store, lambda tx: tx.record_endings(work.uep.row, endings))
    page = do(work.store, lambda tx: tx.sweep(2.0, 2))
    assert (page.count, bool(page.last)) == (0, True)
    page = do(work.store, lambda tx: tx.sweep(2.0, 2, after=page.last))
    assert (page.count, page.last) == (1, 0)  # what comes after a young end is younger


def test_a_result_stays_while_a_task_waits_for_it(work: Work) -> None:
    one, two = waiting(work), waiting(work)
    (row, later, held) = stored(work, one, two, waiting(work, one.task_id, two.task_id))
    ended(work, row, S.SUCCESS, b"one")
    newest = stored(work, waiting(work))[0]
    ended(work, newest, S.SUCCESS)  # the newest row and the newest result stay in any case
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 0
    ended(work, later, S.SUCCESS, b"two")
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 0
    assert work.store.inputs(held) == [(b"one", ""), (b"two", "")]
    ended(work, held, S.SUCCESS)
    ended(work, stored(work, waiting(work))[0], S.SUCCESS)
    assert do(work.store, lambda tx: tx.sweep(time.time() + 60, 10)).count == 4


def test_a_repeated_submission_changes_nothing_and_closes_no_circle(work: Work) -> None:
    one = waiting(work)
    two = waiting(work, one.task_id)
    rows = stored(work, one, two)
    ended(work, rows[0], S.SUCCESS)
    again = msgspec.structs.replace(one, depends_on=(two.task_id,))
    third = msgspec.structs.replace(waiting(work), depends_on=(one.task_id,))
    assert stored(work, again, two, third)[:2] == rows
    assert takes(work) == [rows[1]]  # released once, and not held again
    four = waiting(work)
    five = waiting(work, four.task_id)
    (fourth, _) = stored(work, four, five)
    stored(work, msgspec.structs.replace(four, depends_on=(five.task_id,)), five, waiting(work))
    assert fourth in takes(work)
