"""Lays out the state of an endpoint for a terminal or a pipe: a table where there is room, else a few lines for each.

A UUID is never broken, whatever the width: people paste it. Foreign text is escaped as it becomes part of a line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mep.boundary.text import printable
from mep.cli.admin_client import account_name
from mep.cli.endpoint_state import ages
from mep.cli.output import fields_text

WIDE = 100
"""From this width on, user endpoints are rows of a table."""
_HEADS = ("user endpoint", "account", "state", "since", "wait", "run", "done", "cpu", "memory", "person")
_DETAILS = (
    ("values", "values"), ("blocks", "blocks"), ("trouble", "waits because"), ("last_failure", "last failure"),
    ("log_path", "log"),
)  # fmt: skip
_PIECES = re.compile(r"\s+|\S+")


def text_of(value: dict[str, Any], width: int | None, *, cut: bool = False) -> list[str]:
    """Return the lines. `width` None: as wide as they are. `cut`: each detail on one line, for a live screen."""
    lines = _head(value, width)
    running = value["user_endpoints"]
    if width is None or width >= WIDE:
        lines += _table(running, width, cut=cut)
    else:
        for one in running:
            lines += _stanza(one, width, cut=cut)
    return lines


def _head(value: dict[str, Any], width: int | None) -> list[str]:
    shown = {key: printable(item) if isinstance(item, str) else item for key, item in value.items()}
    for key in ("restrictions", "failures", "overdue", "accounts_overdue"):
        shown.pop(key)
    shown["user_endpoints"] = len(value["user_endpoints"])
    for key in ("configured_at", "configuration_refused_at", "mapping_refused_at"):
        shown[key] = calendar(value[key]) if value[key] else None
    count = len(value["user_endpoints"])
    if value["overdue"]:
        shown["overdue"] = f"{value['overdue']} of {count}: identity mapping not re-verified for too long"
    if value["accounts_overdue"]:
        late = f"{value['accounts_overdue']} of {count}"
        shown["accounts_overdue"] = f"{late}: account not checked successfully for too long; the log says why"
    lines = fields_text(shown).splitlines()
    lines += [_restriction(one) for one in value["restrictions"]]
    if value["failures"]:
        lines += _failures(value["failures"])
    return [part for line in lines for part in wrapped(line, width, "    ")]


def _restriction(one: dict[str, Any]) -> str:
    whom = one["local_user"] or "everybody"
    what = "banned" if one["kind"] == "ban" else "drained, starts are refused" if one["refuse"] else "drained"
    said = f": {one['message']}" if one["message"] else ""
    return printable(f"{whom} is {what} since {calendar(one['since'])} by {account_name(one['by_uid'])}{said}")


def _failures(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for the last start that failed, and one for the last user endpoint that was ended."""
    for event, title in (("start", "last failure of a start"), ("end", "last user endpoint that was ended")):
        for one in [one for one in found if one["event"] == event][-1:]:
            yield f"{title}: {_failure(one)}"


def _failure(one: dict[str, Any]) -> str:
    who = one["local_user"] or one["person"] or "unknown"
    if one["event"] == "end":
        text = f"{who}'s, {ages(one['at'])} ago, ended: {one['detail'] or one['code']} ({one['code']}"
        return printable(f"{text}, correlation id {one['correlation_id']})")
    text = f"{one['code']} for {who}, {ages(one['at'])} ago: {one['detail']} (correlation id {one['correlation_id']})"
    return printable(text)


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    tasks = one.get("tasks") or {}
    counts = [str(tasks.get(key, "-")) for key in ("waiting", "running", "done")]
    cpu = f"{one['cpu_percent']:.0f} %" if "cpu_percent" in one else f"{one['cpu_s']:.0f} s" if "cpu_s" in one else "-"
    cells = (
        one.get("uep_id"), one.get("local_user"), one.get("state"), ages(one.get("since")), *counts, cpu,
        size_text(one.get("memory_bytes")), one.get("person", ""),
    )  # fmt: skip
    return tuple(printable(str(cell)) for cell in cells)


def _table(running: Sequence[dict[str, Any]], width: int | None, *, cut: bool) -> Iterator[str]:
    if not running:
        return
    rows = [_cells(one) for one in running]
    widths = [max(len(row[i]) for row in [_HEADS, *rows]) for i in range(len(_HEADS) - 1)]
    numbers = {4, 5, 6, 7, 8}
    for at, row in enumerate([_HEADS, *rows]):
        cells = [
            cell.rjust(size) if i in numbers else cell.ljust(size)
            for i, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        yield fitted("  ".join([*cells, row[-1]]).rstrip(), width)
        if at:
            yield from _details(running[at - 1], width, cut=cut)


def _details(one: dict[str, Any], width: int | None, *, cut: bool) -> Iterator[str]:
    for key, name in _DETAILS:
        if one.get(key):
            line = f"    {name}: {printable(str(one[key]))}"
            yield from [fitted(line, width)] if cut else wrapped(line, width, "      ")
    checks = [_check(one, "mapping", "overdue"), _check(one, "account", "account_overdue")]
    if not cut or one.get("overdue") or one.get("account_overdue"):
        yield from wrapped(f"    pid {one.get('pid')}, {', '.join(checks)}", width, "      ")


def _check(one: dict[str, Any], what: str, late: str) -> str:
    at = one.get(f"{what}_checked_at")
    return f"{what} checked {ages(at)}{' ago' if at else ''}{' (overdue)' if one.get(late) else ''}"


def _stanza(one: dict[str, Any], width: int, *, cut: bool) -> Iterator[str]:
    uep_id, account, state, since, waiting, running, done, cpu, memory, person = _cells(one)
    yield ""
    yield uep_id
    for line in (
        f"  {account} {person}", f"  {state} since {since}", f"  {waiting} waiting, {running} running, {done} done",
        f"  cpu {cpu}, memory {memory}",
    ):  # fmt: skip
        yield from wrapped(line.rstrip(), width, "    ")
    yield from _details(one, width, cut=cut)


def wrapped(line: str, width: int | None, indent: str) -> list[str]:
    """Return `line` in lines of at most `width`, broken at spaces and after the slashes of a path: never in a UUID."""
    if width is None or len(line) <= width:
        return [line]
    lines, current = [], ""
    pieces = [part for word in _PIECES.findall(line) for part in (_steps(word) if word[0] == "/" else [word])]
    for piece in pieces:
        if current.strip() and len(current) + len(piece.rstrip()) > width:
            lines.append(current.rstrip())
            current = indent + piece.lstrip()
        else:
            current += piece
    return [*lines, current.rstrip()] if current.strip() else lines


def _steps(path: str) -> list[str]:
    return re.findall(r"[^/]*/|[^/]+", path)


def fitted(line: str, width: int | None) -> str:
    """Return `line` cut to `width`. A UUID that does not fit is left out whole."""
    if width is None or len(line) <= width:
        return line
    kept = line[: max(0, width - 1)]
    for found in _UUID.finditer(line):
        if found.start() < len(kept) < found.end():
            kept = kept[: found.start()]
    return kept.rstrip() + "…"


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def size_text(size: Any) -> str:
    """Return a number of bytes as people read it."""
    if not isinstance(size, int) or size <= 0:
        return "-"
    amount = float(size)
    for unit in ("B", "KB", "MB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"


def calendar(at: float) -> str:
    """Return a time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
