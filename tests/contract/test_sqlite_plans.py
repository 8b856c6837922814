"""No query about one user endpoint's tasks reads those of others, or ended ones: the relay's cost stays flat."""

from __future__ import annotations

import sqlite3

import pytest

from relay.store import statements
from relay.store.schema import migrate

ABOUT_TASKS = (
    "QUEUED_TASKS",
    "QUEUED_ROWS",
    "QUEUED_ROWS_BY_AGE",
    "CANCELLING",
    "NEXT_DEADLINE",
    "OVERDUE",
    "RUNNING_ROWS",
    "ACTIVE_ROWS",
    "REQUEUE_NOT_STARTED",
    "HAS_QUEUED",
    "HAS_ACTIVE",
    "OPEN_TASKS",
    "OPEN_TASKS_AT",
    "COMPLETIONS",
    "GROUP_TASKS",
    "ENDED_INPUTS",
    "STORED_BYTES",
    "GROUPS_AFTER",
)


@pytest.mark.parametrize("name", ABOUT_TASKS)
def test_an_index_is_used(name: str) -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    statement = getattr(statements, name)
    plan = connection.execute("EXPLAIN QUERY PLAN " + statement, [1] * statement.count("?")).fetchall()
    steps = [row[3] for row in plan]
    assert not [step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step], steps
    assert not [step for step in steps if "TEMP B-TREE" in step], steps


def test_what_is_to_be_cancelled_is_found_without_reading_what_waits() -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    (step,) = connection.execute("EXPLAIN QUERY PLAN " + statements.CANCELLING, [1]).fetchall()
    assert "USING INDEX tasks_cancelling " in step[3]
