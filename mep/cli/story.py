"""The story of one start or task, from the lines of every process that had a part in it. Pure: others read the logs.

All lines are foreign text: a user endpoint's log belongs to its person, who may write anything there. They are parsed
by log_lines.py, bounded, and printed with control characters escaped.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mep.boundary.text import LEVELS, printable
from mep.cli.log_lines import fields_of, read_line

MAX_LINES = 200
"""Lines of one process in a story: the first and the last of them."""
MAX_SHOWN = 1000
"""Characters of one line."""
_SAYS_NOTHING = re.compile(r"exit status \d+")
_RANK = ("block", "user endpoint", "keeper", "mapper", "monitor", "manager", "relay")
"""Who knows the cause best: the process nearest to it."""
_FINE = frozenset({"", "IDLE", "STOPPED", "CANCELLED"})
_OF_BLOCKS = frozenset({"ENGINE_FAILED", "USER_ENDPOINT_UNSTABLE"})
"""Codes behind which failed blocks may be."""
_STARTS, _BLOCK_FAILED = "starting", "a block failed"
_LANDMARKS = ("starting", "joined the relay", "ending", "block ", "a block failed")
USER_ENDPOINT = "user endpoint"
_SOURCES = {"mep-uep": USER_ENDPOINT}
_LATEST = 253402300800.0
"""The year 10000, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Line:
    """One event. `at` is in seconds since the epoch."""

    at: float
    level: str
    source: str
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_failure(self) -> bool:
        """Whether it says that something went wrong."""
        return self.level in ("WARNING", "ERROR") or self.code not in _FINE

    @property
    def code(self) -> str:
        """The error's code, if it names one."""
        return self.fields.get("code", "")

    @property
    def reason(self) -> str:
        """What it says about the cause, in the words of the process that knew."""
        said = [self.fields.get(key, "") for key in ("detail", "reason", "public", "cause", "text")]
        return next((one for one in said if one and not _SAYS_NOTHING.fullmatch(one)), self.text)


def parse_line(text: str, source: str = "") -> Line | None:
    """Return a line of a log of ours; None for any other.

    `source` is given for a person's log, whatever its lines say: that person may write any name there.
    """
    found = read_line(text)
    if found is None:
        return None
    stamp, _, fraction = found.stamp.rstrip("Z").partition(".")
    source = source or _SOURCES.get(found.process, found.process)
    return Line(_seconds(stamp, fraction or None), found.level, source, found.text, found.fields)


def _seconds(stamp: str, fraction: str | None) -> float:
    try:
        whole = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        whole = 0
    return whole + float(f"0.{fraction or 0}")


def parse_audit(text: str) -> Line | None:
    """Return a record of the audit log; None for anything else. Identities are left out of its text."""
    try:
        record = json.loads(text)
        stamp, _, fraction = str(record.pop("time")).rstrip("Z").partition(".")
        event = str(record.pop("event"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    fields = {key: str(value) for key, value in record.items() if value not in (None, "")}
    level = "WARNING" if fields.get("outcome") in ("refused", "unavailable") else "INFO"
    if event == "end" and fields.get("code", "") not in _FINE:
        level = "WARNING"
    shown = " ".join(f"{key}={printable(value)}" for key, value in fields.items() if key != "identities")
    return Line(_seconds(stamp, fraction or None), level, "monitor", f"audit: {event} {shown}", fields)


def parse_relay(value: Mapping[str, Any]) -> list[Line]:
    """Return the relay's lines, as the manager passes them on. Raises ValueError for what can't be such lines."""
    try:
        return _parse_relay(value)
    except (LookupError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _parse_relay(value: Mapping[str, Any]) -> list[Line]:
    found = []
    for one in value.get("lines", []):
        text, level = str(one["text"]), str(one["level"])
        fields = fields_of(f" {text}")
        if code := fields.get("code", ""):
            fields["public"] = text.partition(f"code={code}")[2].strip()
        at = float(one["at"])
        if level not in LEVELS or not 0 <= at < _LATEST:
            raise ValueError("a line of no level or time")
        found.append(Line(at, level, "relay", text, fields))
    return found


@dataclass(slots=True)
class Story:
    """The events found about `about`. `notes` say which files could not be read."""

    about: str
    uep_id: str = ""
    correlation_id: str = ""
    local_user: str = ""
    code: str = ""
    status: str = ""
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cause(self) -> Line | None:
        """Return the line that says why, by the process nearest to the cause; None if nothing failed."""
        failures = [line for line in self.lines if line.is_failure]
        code = self.code or next((line.code for line in reversed(failures) if line.code not in _FINE), "")
        self.code = code
        if code in _OF_BLOCKS and (blocks := [line for line in failures if _of_block(line)]):
            return min(blocks, key=lambda line: (_rank(line), line.at))
        named = [line for line in failures if code and line.code == code]
        return min(named or failures, key=self._distance, default=None)

    def _distance(self, line: Line) -> tuple[object, ...]:
        """Return how far a line is from the cause. One that names no reason of its own knows least."""
        return line.reason == line.text, _rank(line), self.about not in line.fields.values(), line.at

    def add(self, lines: Iterable[Line]) -> None:
        """Add lines, in order and each once."""
        self.lines = sorted({(one.at, one.source, one.text): one for one in [*self.lines, *lines]}.values(), key=_at)

    def to_json(self) -> dict[str, Any]:
        """Return it for --json."""
        cause = self.cause()
        return {
            "about": self.about,
            "code": self.code,
            "status": self.status,
            "cause": None if cause is None else _line_json(cause),
            "uep_id": self.uep_id,
            "correlation_id": self.correlation_id,
            "local_user": self.local_user,
            "story": [_line_json(line) for line in self.lines],
            "notes": self.notes,
        }


def _at(line: Line) -> float:
    return line.at


def _of_block(line: Line) -> bool:
    return line.source == "block" or line.text.startswith(_BLOCK_FAILED)


def _rank(line: Line) -> int:
    return _RANK.index(line.source) if line.source in _RANK else len(_RANK)


def _line_json(line: Line) -> dict[str, Any]:
    value = {"at": line.at, "level": line.level, "source": line.source, "text": line.text}
    return value | {"code": line.code, "reason": line.reason}


def of_monitor(lines: Iterable[Line], correlation_id: str, uep_id: str) -> list[Line]:
    """Return the lines about one start and the process that followed.

    Lines that name the user endpoint alone count from the first line of this start to the first of the next one.
    """
    named = [line for line in lines if line.fields.keys() & {"correlation_id", "uep_id", "uep"} or uep_id in line.text]
    own = [line for line in named if correlation_id and correlation_id in line.fields.values()]
    if not own:
        return _bounded([line for line in named if not line.fields.get("correlation_id")])
    first, last = own[0].at, own[-1].at
    about_it = {line.fields.get("uep_id") or line.fields.get("uep") for line in own} - {None, ""}
    near = [
        line for line in named
        if first <= line.at <= last and "correlation_id" not in line.fields
        and (line.fields.get("uep_id") or line.fields.get("uep")) in about_it
    ]  # fmt: skip
    return _bounded(sorted([*own, *near], key=_at))


def processes(lines: Iterable[Line]) -> list[list[Line]]:
    """Return a user endpoint's log in parts, one for each of its processes."""
    found: list[list[Line]] = []
    for line in lines:
        if not found or (line.text.startswith(_STARTS) and "correlation_id" in line.fields):
            found.append([])
        found[-1].append(line)
    return found


def process_of(parts: Sequence[list[Line]], about: str, correlation_id: str) -> list[Line]:
    """Return the process that ran the task, or that the start led to; else the last one."""
    for part in reversed(parts):
        if any(about in line.fields.values() for line in part):
            return part
    by_start = [part for part in parts if part and part[0].fields.get("correlation_id") == correlation_id]
    return by_start[-1] if by_start else []


def of_user_endpoint(part: Sequence[Line], about: str) -> list[Line]:
    """Return what matters of a process's log: failures, landmarks, and lines about the task."""
    tasks = [line for line in part if "task" in line.fields and line.fields["task"] != about]
    others = {id(line) for line in tasks} if any(about in line.fields.values() for line in part) else set()
    return _bounded(
        [
            line for line in part
            if id(line) not in others
            and (line.is_failure or line.text.startswith(_LANDMARKS) or about in line.fields.values())
        ]
    )  # fmt: skip


def _bounded(lines: list[Line]) -> list[Line]:
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES // 4], *lines[-3 * MAX_LINES // 4 :]]


def text_of(story: Story, sentence: str) -> str:
    """Return the story for a person to read: the cause first, then every event in its order."""
    cause = story.cause()
    outcome = " ".join(word for word in (story.status, story.code) if word)
    head = [f"{story.about}: {_shown(outcome) or 'nothing failed'}"]
    if cause is not None:
        head.append(f"cause: {_shown(cause.reason)}")
        head.append(f"  said by the {cause.source} at {_stamp(cause.at)}")
    if sentence:
        head.append(f"the person reads: {_shown(sentence)}")
    where = [("account", story.local_user), ("user endpoint", story.uep_id), ("correlation id", story.correlation_id)]
    head.append(", ".join(f"{name} {_shown(value)}" for name, value in where if value))
    body = [f"{_stamp(line.at)}  {line.source:<13}  {line.level:<7}  {_shown(line.text)}" for line in story.lines]
    notes = [f"note: {_shown(note)}" for note in story.notes]
    return "\n".join([line for line in head if line] + [""] + body + notes)


def _shown(text: str) -> str:
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
