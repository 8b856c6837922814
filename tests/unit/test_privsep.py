"""The table at the end of PRIVSEP.md names tests that exist in every row, and has rows for every party."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "mep" / "PRIVSEP.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WHO = {
    "manager", "mapper", "user endpoint", "worker", "keeper, monitor, PAM process", "relay", "relay's TLS proxy",
    "an endpoint", "a stranger on the network", "a person's token", "a local user", "a member of admin_group",
    "a callout", "an administrator's slip",
}  # fmt: skip


def rows() -> list[list[str]]:
    table = TEXT.partition("## Who is taken over")[2]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def functions_of(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_everybody_has_something_they_can_do_and_something_they_cannot() -> None:
    found = rows()
    assert {row[0] for row in found} == WHO
    for who in WHO:
        assert {row[1] for row in found if row[0] == who} == {"can", "cannot"}, who


def test_each_row_names_a_test_that_exists_or_says_that_there_is_none() -> None:
    for row in rows():
        assert len(row) == 4, row
        named = NAMED.findall(row[3])
        assert named or row[3] == "no test", row
        for file, test in named:
            assert test in functions_of(ROOT / file), f"{file}::{test}"


def test_the_table_is_the_end_of_the_page() -> None:
    assert TEXT.rstrip().splitlines()[-1].startswith("|")
