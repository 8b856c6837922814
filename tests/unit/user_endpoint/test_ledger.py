"""Credit arithmetic and the book of held tasks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mep_wire.messages import TaskItem
from user_endpoint.credit import CreditLedger, Ledger


def task(row: int, payload: bytes = b"") -> TaskItem:
    return TaskItem(row, str(row), "f", payload)


def test_first_grant_is_the_whole_capacity() -> None:
    credit = CreditLedger()
    assert credit.grant(capacity=10, held=0) == 10
    assert credit.grant(capacity=10, held=0) == 0


def test_small_grants_wait_for_each_other() -> None:
    credit = CreditLedger()
    credit.grant(100, 0)
    credit.used(10)
    assert credit.grant(100, held=0) == 0
    credit.used(20)
    assert credit.grant(100, held=0) == 30


def test_with_no_credit_out_one_place_is_worth_a_message() -> None:
    credit = CreditLedger()
    credit.grant(100, 0)
    credit.used(100)
    assert credit.grant(100, held=99) == 1


def test_capacity_of_one() -> None:
    credit = CreditLedger()
    assert credit.grant(1, 0) == 1
    credit.used(1)
    assert credit.grant(1, held=1) == 0
    assert credit.grant(1, held=0) == 1


def test_a_new_connection_starts_from_nothing() -> None:
    credit = CreditLedger()
    credit.grant(10, 0)
    credit.reset()
    assert credit.grant(10, held=4) == 6


def test_a_relay_that_sends_too_much_gets_no_more_for_it() -> None:
    credit = CreditLedger()
    credit.grant(2, 0)
    credit.used(5)
    assert credit.outstanding == 0
    assert credit.grant(2, held=5) == 0


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 500)), max_size=60),
)
def test_never_more_than_capacity_and_never_stuck(first: int, steps: list[tuple[int, int, int]]) -> None:
    credit, held, capacity = CreditLedger(), 0, first
    for arrive, end, capacity_now in steps:
        capacity = max(capacity, capacity_now)
        before = credit.outstanding + held
        granted = credit.grant(capacity_now, held)
        assert granted == 0 or credit.outstanding + held == max(before, capacity_now)
        if capacity_now > held:
            assert credit.outstanding > 0
        come = min(arrive, credit.outstanding)
        credit.used(come)
        held += come
        held -= min(end, held)
        assert credit.outstanding + held <= capacity


def test_ledger_counts_each_task_once() -> None:
    ledger = Ledger()
    assert ledger.take(task(1, b"abc"))
    assert not ledger.take(task(1, b"abc"))
    assert (len(ledger), ledger.bytes) == (1, 3)
    assert ledger.release(1)
    assert not ledger.release(1)
    assert (len(ledger), ledger.bytes) == (0, 0)
