"""The audited store hands every call on, and every change of a task's state is recorded or listed with its reason.

Which transactions change one is read from the code: SQLite's own parser says which statements write `tasks.state`,
or add or remove a task, and the source says which methods execute those.
"""

from __future__ import annotations

import ast
import inspect
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from relay.store import statements
from relay.store.base import Store, Tx
from relay.store.delegating import DelegatingStore, DelegatingTx
from relay.store.schema import migrate
from relay.store.sqlite import SqliteTx
from relay.store.task_record_writes import NOT_RECORDED, AuditedStore, AuditedTx

RECORDED = {name for name in vars(AuditedTx) if not name.startswith("_")} - {"enrol"}
"""`enrol` is there because a process that joins makes a remembered account out of date."""
MODULES: dict[str, Any] = {"sql": statements}
"""The modules with statements, by the name under which methods have them."""


# --- which transactions change a task's state ------------------------------------------------------------------


class Writes:
    """Tells whether a statement writes a task's state, or adds or removes a task."""

    def __init__(self) -> None:
        self._database = sqlite3.connect(":memory:", cached_statements=0)  # each is parsed
        migrate(self._database)
        self._seen: list[tuple[int, str | None, str | None]] = []
        self._database.set_authorizer(self._note)

    def _note(self, action: int, table: str | None, column: str | None, *_: object) -> int:
        self._seen.append((action, table, column))
        return sqlite3.SQLITE_OK

    def changes_a_task(self, statement: str) -> bool:
        self._seen.clear()
        try:
            self._database.execute(f"EXPLAIN {statement}")
        except sqlite3.ProgrammingError:  # its parameters are missing, but it is parsed already
            assert self._seen, statement
        except sqlite3.OperationalError:
            assert not statement.startswith(("INSERT", "UPDATE", "DELETE", "REPLACE", "WITH")), statement
        ways = {(sqlite3.SQLITE_UPDATE, "tasks", "state"), (sqlite3.SQLITE_INSERT, "tasks", None)}
        return bool({*ways, (sqlite3.SQLITE_DELETE, "tasks", None)} & set(self._seen))


def _methods(kind: type) -> Iterator[tuple[str, ast.AST]]:
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        yield name, ast.parse(textwrap.dedent(inspect.getsource(method)))


def _statements(tree: ast.AST) -> Iterator[str]:
    """Yield every statement that a method names, and every text that it holds."""
    for node in ast.walk(tree):
        value: Any = None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            value = getattr(MODULES.get(node.value.id), node.attr, None)
        elif isinstance(node, ast.Constant):
            value = node.value
        elif isinstance(node, ast.JoinedStr):
            text = ast.unparse(node)
            assert not re.search(r"\b(INSERT|UPDATE|DELETE|REPLACE)\b", text), f"put together where it is used: {text}"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and " " in one.strip():
                yield one


def _with_callers(kind: type, direct: set[str]) -> set[str]:
    """Return these methods and those that call them, as far as they are transactions: methods of Tx."""
    calls = {
        name: {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        for name, tree in _methods(kind)
    }
    found = set(direct)
    while more := {name for name, called in calls.items() if called & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def changing_in_sqlite(kind: type) -> set[str]:
    """Return the names of the transactions of a SQLite store that change a task's state."""
    writes = Writes()
    trees = dict(_methods(kind))
    direct = {name for name, tree in trees.items() if any(map(writes.changes_a_task, _statements(tree)))}
    return _with_callers(kind, direct)


def test_a_change_of_a_tasks_state_is_recorded_or_listed_with_its_reason() -> None:
    changing = changing_in_sqlite(SqliteTx)
    unknown = changing - RECORDED - NOT_RECORDED.keys()
    assert not unknown, (
        f"record these in relay.store.task_record_writes.AuditedTx, or list them in NOT_RECORDED: {unknown}"
    )
    assert changing == RECORDED | NOT_RECORDED.keys(), "listed or recorded, and changing nothing"
    assert not RECORDED & NOT_RECORDED.keys()


def test_every_reason_is_a_sentence_about_a_transaction() -> None:
    assert all(hasattr(Tx, name) and len(reason.split()) > 4 for name, reason in NOT_RECORDED.items())


class Wider(SqliteTx):
    """Changes that a later version might add: each changes states, and is in no list."""

    def lose_all(self, uep_row: int) -> None:
        """By a statement written where it is used."""
        self._db.execute("UPDATE tasks SET ended_at = 1, state = 5 WHERE uep_row = ?", (uep_row,))

    def put_away(self, uep_row: int) -> None:
        """By one of a tuple of statements."""
        for statement in statements.SWEEP:
            self._db.execute(statement, (uep_row,))

    def by_another(self, uep_row: int) -> None:
        """By a method that does."""
        self._by_a_helper(uep_row)

    def _by_a_helper(self, uep_row: int) -> None:
        self.lose_all(uep_row)

    def harmless(self, uep_row: int) -> None:
        """Writes another column."""
        self._db.execute("UPDATE tasks SET cancelling = 1 WHERE uep_row = ?", (uep_row,))


def test_a_new_transaction_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "statements", statements)
    assert changing_in_sqlite(Wider) - changing_in_sqlite(SqliteTx) == {"lose_all", "put_away", "by_another"}


# --- everything else is handed on ------------------------------------------------------------------------------


class Noting:
    """Records its requests."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*args: object, **kwargs: object) -> object:
            self.calls.append((name, args, kwargs))
            return (name, "answer")

        return note


@pytest.mark.parametrize(("contract", "delegating"), [(Tx, DelegatingTx), (Store, DelegatingStore)])
def test_each_call_is_handed_on_as_it_is(contract: type, delegating: type) -> None:
    declared = {name: method for name, method in inspect.getmembers(contract, inspect.isfunction) if name[0] != "_"}
    assert len(declared) > 20
    for name, method in declared.items():
        noting = Noting()
        signature = inspect.signature(method)
        assert inspect.signature(getattr(delegating, name)) == signature
        parameters = list(signature.parameters.values())[1:]
        args = [f"<{p.name}>" for p in parameters if p.kind is not p.KEYWORD_ONLY]
        kwargs = {p.name: f"<{p.name}>" for p in parameters if p.kind is p.KEYWORD_ONLY}
        answer = getattr(delegating(noting), name)(*args, **kwargs)
        assert noting.calls == [(name, tuple(args), kwargs)]
        assert answer == (None if signature.return_annotation == "None" else (name, "answer"))


def test_nothing_is_looked_up_by_name() -> None:
    assert not any("__getattr__" in vars(kind) for made in (AuditedStore, AuditedTx) for kind in made.__mro__)
