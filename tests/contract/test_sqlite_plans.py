"""No statement reads more of a table than it needs: a relay's cost stays flat while its tables grow."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from relay.store import statements
from relay.store.schema import migrate

ADMINISTRATOR = "a command of the relay's administrator, in a process of its own"
START = "once, at the relay's start"
SCANS = {
    "ACCOUNTS": ADMINISTRATOR,
    "ENDPOINTS": "lists for administrators, and a relay has few endpoints",
    "LIST_TASKS": ADMINISTRATOR,
    "QUEUES": ADMINISTRATOR,
    "STORAGE": ADMINISTRATOR,
    "REFERRED_CHUNKS": ADMINISTRATOR,
    "OPEN_BY_STATE": "index entries of unfinished tasks alone, for figures that are asked for once in a while",
    "UEPS_IN_USE": START,
    "AWAITED": f"{START}, and of held tasks alone",
    "DEPENDENT_ROWS": f"{START}, and of unfinished tasks alone",
    "EVENTS_KEPT": f"{START}, a row for each endpoint that keeps task records",
    "HAS_USES": "whether there is any row: it reads one",
    "KEEP_EVENTS": "one row is written",
}
"""By statement: why it may read a whole table or index."""
SORTS = {
    "TOKENS_OF": "tokens of one person that were made in the same instant",
    "ENDPOINTS_OF": "the endpoints of one owner",
    "GROUP_STATES": "one page",
    "DEPENDENCIES": "the few that one task waits for",
    "INPUTS": "the few that one task waits for",
    "DECIDED_SETS": "the sets with one task",
}
"""By statement: why it may sort, though no table is read whole."""
_GIVEN = ("SCAN s", "SCAN t", "SCAN CONSTANT")
"""Steps over rows that another step has chosen, and of which there is a limit."""


def named_statements() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in vars(statements).items():
        if name.isupper() and name[0] != "_" and name != "PAD_LOG" and isinstance(value, str | tuple):
            found += [(name, text) for text in ((value,) if isinstance(value, str) else value)]
    return found


def _sqlite_steps(connection: sqlite3.Connection, text: str) -> list[str]:
    values: Any = {"keep": 1, "other": 1} if ":other" in text else [1] * text.count("?")
    return [str(row[3]) for row in connection.execute("EXPLAIN QUERY PLAN " + text, values)]


def test_sqlite_reads_no_table_for_a_few_rows() -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    scans, sorts = {}, {}
    for name, text in named_statements():
        steps = _sqlite_steps(connection, text)
        if found := [step for step in steps if step.startswith("SCAN") and not step.startswith(_GIVEN)]:
            scans[name] = found
        elif found := [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]:
            sorts[name] = found
    assert not {name: steps for name, steps in scans.items() if name not in SCANS}
    assert not {name: steps for name, steps in sorts.items() if name not in SORTS and name not in SCANS}


def test_what_is_to_be_cancelled_is_found_without_reading_what_waits() -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    (step,) = connection.execute("EXPLAIN QUERY PLAN " + statements.CANCELLING, [1]).fetchall()
    assert "USING INDEX tasks_cancelling " in step[3]


@pytest.mark.parametrize("name", ["QUEUED_TASKS", "HAS_QUEUED", "QUEUED_ROWS_BY_AGE"])
def test_what_may_be_sent_is_found_without_reading_what_is_held(name: str) -> None:
    """Ten thousand tasks of a user endpoint may be held, and each task that is sent would be looked for behind them."""
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    steps = _sqlite_steps(connection, getattr(statements, name))
    assert [step for step in steps if "tasks_active (uep_row=? AND state=? AND held=?" in step], steps


def test_what_has_begun_once_is_found_without_reading_what_waits() -> None:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    (step,) = _sqlite_steps(connection, statements.QUEUED_AGAIN)
    assert "USING INDEX tasks_again " in step
