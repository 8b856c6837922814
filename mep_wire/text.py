"""Text from elsewhere, made harmless for a terminal and for a line of a log. Standard library only.

`mep/boundary/text.py` is the same code for root's processes, which import nothing of this package. A test
compares them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TextIO, cast

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
HEAD = ("at", "level", "process", "pid", "event")
"""The members that begin each line of JSON. A field of such a name gets an underscore: `process_`."""
MAX_JSON_LINE = 4000
"""Characters of a line of JSON: a ready pipe takes so many at once, and the monitor copies no longer line."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+,%*")


def printable(text: str) -> str:
    r"""Return `text` on one line, with each character that has an effect but no glyph as `\x1b` or `\u202e`.

    Those are C0 and C1 controls, DEL, controls of direction, zero-width characters, separators of lines, every space
    but U+0020, lone surrogates, and code points that Unicode leaves to private use or to later versions.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but with its newlines and tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def field_text(value: object) -> str:
    """Return `value` as it stands after `key=` in a line of a log: bare where it is plain, else quoted."""
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def log_line(
    process: str, level: str, text: str, fields: Mapping[str, object], *, at: float | None = None, pid: int = 0
) -> str:
    """Return one line of a log, without its newline: `UTC-time level process[pid]: text key=value`.

    `at` is seconds since 1970, now by default; `pid` is this process's by default. Foreign text can't forge a line or
    a field: it stands in `fields`, quoted by `field_text`, and `text` is on one line.
    """
    words = [f"{key}={field_text(value)}" for key, value in fields.items()]
    return " ".join([_stamp(at), level, f"{process}[{pid or os.getpid()}]:", printable(text), *words])


def _stamp(at: float | None) -> str:
    at = time.time() if at is None else at
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"


def json_line(
    process: str, level: str, text: str, fields: Mapping[str, object], *, at: float | None = None, pid: int = 0,
    limit: int = MAX_JSON_LINE,
) -> str:  # fmt: skip
    """Return the same line as one JSON object in ASCII: the members of HEAD, then the fields.

    Whole numbers stay numbers, all else becomes text. If it exceeds `limit` characters, the longest text is halved
    until it fits, so a line is never cut in the middle of its JSON.
    """
    import json  # a user endpoint needs it for this format alone

    head = {"at": _stamp(at), "level": level, "process": process, "pid": pid or os.getpid()}
    said: dict[str, int | str] = {"event": text[:limit]}
    for key, value in fields.items():
        said[f"{key}_" if key in HEAD else key] = value if isinstance(value, int) else str(value)[:limit]
    while len(line := json.dumps({**head, **said})) > limit and any(said.values()):
        longest = max(said, key=lambda key: len(str(said[key])))
        said[longest] = str(said[longest])[: len(str(said[longest])) // 2]
    return line


_format: list[Callable[..., str]] = [log_line]


def set_format(name: str, limit: int = MAX_JSON_LINE) -> None:
    """Log from now on in the format `name`, `json` or `text`, in this process and those that it forks."""
    _format[0] = partial(json_line, limit=limit) if name == "json" else log_line


def formatted(process: str, level: str, text: str, fields: Mapping[str, object], *, at: float | None = None) -> str:
    """Return one line of a log, without its newline, in the format of `set_format`."""
    return _format[0](process, level, text, fields, at=at)


def is_json() -> bool:
    """Whether this process logs in JSON."""
    return _format[0] is not log_line


class FieldLog:
    """The log of one process: each message one line with its fields."""

    def __init__(self, process: str, emit: Callable[[str], None], level: str = "INFO") -> None:
        """`emit` takes a line with its newline. Messages below `level` are left out; an unknown level is INFO."""
        self._process, self._emit = process, emit
        self._threshold = LEVELS.index(level if level in LEVELS else "INFO")

    def debug(self, text: str, /, **fields: object) -> None:
        """Log a message for developers."""
        self.write("DEBUG", text, **fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Log a normal event."""
        self.write("INFO", text, **fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log an event that an administrator may want to look at. The process goes on."""
        self.write("WARNING", text, **fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log an event that an administrator must look at, or that ends a process, a task or a link."""
        self.write("ERROR", text, **fields)

    def write(self, level: str, text: str, /, **fields: object) -> None:
        """Log a message of `level`, one of LEVELS."""
        if LEVELS.index(level) >= self._threshold:
            self._emit(formatted(self._process, level, text, fields) + "\n")


class EscapingStream:
    """A text stream that passes its input through `printable_lines`. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`."""
        self._stream.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of `lines`."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def escape_output() -> None:
    """Escape all that this process prints from now on. `sys.__stdout__` stays as it is, for our own colours."""
    sys.stdout = cast("TextIO", EscapingStream(sys.stdout))
    sys.stderr = cast("TextIO", EscapingStream(sys.stderr))
