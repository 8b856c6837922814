"""Lines of the endpoint's logs, in either format: a file has both after a change of log_format.

All lines are foreign text: a user endpoint's log belongs to its person, who may write anything there. Used by
`mep logs`, `mep why` and tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mep.boundary.text import HEAD, LEVELS, field_text, printable

_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z"
_TEXT = re.compile(rf"({_STAMP}) (DEBUG|INFO|WARNING|ERROR) ([\w-]+)\[(\d+)\]: (.*)")
_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)')
_UNQUOTED = re.compile(r"\\(.)")
_NAME = re.compile(r"[\w-]+")
_OF_HEAD = {f"{name}_": name for name in HEAD}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `text` is what follows `process[pid]: ` in a text log: the event, then the fields."""

    stamp: str
    level: str
    process: str
    pid: int
    text: str
    fields: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.stamp} {self.level} {self.process}[{self.pid}]: {self.text}"


def read_line(line: str) -> LogLine | None:
    """Return a line of a log of ours, in either format; None for any other."""
    line = line.rstrip("\n")
    if line.startswith("{"):
        return _of_json(line)
    found = _TEXT.fullmatch(line)
    if found is None:
        return None
    stamp, level, process, pid, text = found.groups()
    return LogLine(stamp, level, process, int(pid[:20]), text, fields_of(text))


def as_text(line: str) -> str:
    """Return a line of JSON as it would be in a text log, and any other line as it is."""
    if line.startswith("{") and (found := read_line(line)) is not None:
        return str(found)
    return line


def fields_of(text: str) -> dict[str, str]:
    """Return the fields in the text of a line."""
    return {key: unquoted(value) for key, value in _FIELD.findall(text)}


def unquoted(value: str) -> str:
    """Return a field's value without its quotes."""
    return _UNQUOTED.sub(r"\1", value[1:-1]) if value.startswith('"') else value


def _of_json(line: str) -> LogLine | None:
    try:
        found = json.loads(line)
        stamp, level, process, pid, event = (found.pop(name) for name in HEAD)
        said = {_OF_HEAD.get(key, key): str(value) for key, value in found.items() if _NAME.fullmatch(key)}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    texts = all(isinstance(one, str) for one in (stamp, level, process, event))
    if not (texts and type(pid) is int and 0 <= pid < 2**31):
        return None
    if not (re.fullmatch(_STAMP, stamp) and level in LEVELS and _NAME.fullmatch(process)):
        return None
    text = " ".join([printable(event), *(f"{key}={field_text(value)}" for key, value in said.items())])
    return LogLine(stamp, level, process, pid, text, said)
