"""The relay's log: lines `UTC-time level process[pid]: text key=value`, on standard error, written by a thread.

Foreign text (names, keys, anything a peer sent) is passed as a field. A field that is not plain is quoted, and control
characters are escaped, so that it can forge neither a line nor another field. The lines of libraries have arguments.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from mep_wire.text import field_text, log_line, printable, printable_lines

_target = logging.getLogger("relay")

EVERY_S = 10.0
"""How often a line that unauthenticated peers can cause is written."""
PEER_BURST = 10
"""Lines of one kind about one peer that are written in this time."""
MAX_KINDS = 1000
"""Most kinds of lines that a limiter remembers."""
MAX_LINES = 10_000
"""Most lines that wait to be written."""
FLUSH_S = 2.0
"""How long the process's end waits for them."""


def _write(level: int, text: str, fields: Mapping[str, object], exc_info: object = None) -> None:
    _target.log(level, text, extra={"fields": fields}, exc_info=exc_info)  # type: ignore[arg-type]


class _OwnLog:
    """The relay's own lines: a constant text, with all that differs in fields."""

    def debug(self, text: str, /, **fields: object) -> None:
        """Log a message for developers."""
        _write(logging.DEBUG, text, fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Log a normal event."""
        _write(logging.INFO, text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log an event that an operator may want to look at."""
        _write(logging.WARNING, text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log an event that an operator must look at."""
        _write(logging.ERROR, text, fields)


logger = _OwnLog()


class _Argument:
    """An argument of a record, as it stands in a line."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return field_text(self._value)

    def __repr__(self) -> str:
        return field_text(repr(self._value))


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    """Return the fields of a record; none for a library's."""
    found: Mapping[str, object] = getattr(record, "fields", {})
    return found


def _text(record: logging.LogRecord) -> str:
    """Return a record's text, its arguments quoted where they are not plain."""
    shown = logging.makeLogRecord(record.__dict__)
    if isinstance(record.args, tuple):
        shown.args = tuple(each if isinstance(each, int | float) else _Argument(each) for each in record.args)
    return shown.getMessage()


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        pid = record.process or 0
        line = log_line("mep-relay", record.levelname, _text(record), _fields(record), at=record.created, pid=pid)
        # An exception's text could hold a line of this log: its lines are indented.
        more = [self.formatException(record.exc_info)] if record.exc_info else []
        more += [self.formatStack(record.stack_info)] if record.stack_info else []
        return "".join([line, *("\n  " + printable_lines(each).replace("\n", "\n  ") for each in more)])


_left_out = [0]


def lines_left_out() -> int:
    """Return how many lines were counted in place of being written, since the process began."""
    return _left_out[0]


class _Json(logging.Formatter):
    """One JSON object a line. JSON escapes whatever could forge a line; `printable` escapes what a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "program": "mep-relay",
            "pid": record.process,
            "logger": record.name,
            "text": printable(_text(record)),
        }
        if own := _fields(record):
            fields["fields"] = {key: _json_value(value) for key, value in own.items()}
        if record.exc_info:
            fields["traceback"] = printable_lines(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def _json_value(value: object) -> object:
    return value if value is None or isinstance(value, int | float) else printable(str(value))


class Limiter:
    """Lets `burst` lines of each kind through in `every_s` seconds, and counts the others."""

    def __init__(
        self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic, *, burst: int = 1
    ) -> None:
        self._every, self._clock, self._burst = every_s, clock, burst
        self._last: dict[Hashable, tuple[float, int]] = {}
        """By kind: when its first line of now was let through, and how many came since."""

    def admit(self, kind: Hashable) -> str | None:
        """Return what is to be added to a line of this kind (how many were left out before), None to leave it out."""
        now = self._clock()
        at, more = self._last.get(kind, (float("-inf"), 0))
        if now - at < self._every:
            self._last[kind] = at, more + 1
            if more + 1 < self._burst:
                return ""
            _left_out[0] += 1
            return None
        if len(self._last) >= MAX_KINDS:
            self._last.clear()
        self._last[kind] = now, 0
        left_out = more + 1 - self._burst
        return f" ({left_out} more like it before)" if left_out > 0 else ""


class RateLimitedLog:
    """Warnings that unauthenticated peers can cause at will: each kind at most once in `every_s` seconds, with the
    number of those left out."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._limiter = Limiter(every_s, clock)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log `text` as a warning, or count it. `text` says which kind it is."""
        more = self._limiter.admit(text)
        if more is not None:
            _write(logging.WARNING, text + more, fields)

    def error(self, text: str, /, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """Log `text` as an error, with the exception's traceback; its type belongs to the kind."""
        more = self._limiter.admit((text, type(exc_info)))
        if more is not None:
            _write(logging.ERROR, text + more, fields, exc_info)

    def exception(self, text: str, /, **fields: object) -> None:
        """Log the exception that is being handled as an error; its type belongs to the kind."""
        more = self._limiter.admit((text, sys.exc_info()[0]))
        if more is not None:
            _write(logging.ERROR, text + more, fields, exc_info=True)


class PeerLog:
    """Lines about endpoints and user endpoints, which one of them can cause at will: PEER_BURST of each kind about each
    in `every_s` seconds, with how many were not written."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._limiter = Limiter(every_s, clock, burst=PEER_BURST)

    # The first field names the peer, or another subject whose lines are counted together.

    def info(self, text: str, /, **fields: object) -> None:
        """Log `text`, or count it."""
        self._log(logging.INFO, text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log `text` as a warning, or count it."""
        self._log(logging.WARNING, text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log `text` as an error, or count it."""
        self._log(logging.ERROR, text, fields)

    def _log(self, level: int, text: str, fields: Mapping[str, object]) -> None:
        more = self._limiter.admit((text, next(iter(fields.values()))))
        if more is not None:
            _write(level, text + more, fields)


peer_log = PeerLog()


class _Background(logging.Handler):
    """Writes lines in a thread of its own, so that a full pipe or a stopped terminal holds up nothing else.

    Lines of libraries pass a limiter: unauthenticated peers can cause them at will. A line beyond MAX_LINES is
    dropped and counted.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._limiter = Limiter()
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._dropped = 0
        threading.Thread(target=self._write, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record's line to the thread."""
        more: str | None = ""
        if record.name.partition(".")[0] != _target.name:
            kind = type(record.exc_info[1]) if record.exc_info else None
            more = self._limiter.admit((record.name, record.lineno, kind, str(record.msg).partition("\n")[0]))
        if more is None:
            return
        if self._lines.qsize() >= MAX_LINES:
            self._dropped += 1
            return
        if more:
            record = logging.makeLogRecord(record.__dict__)
            record.msg = f"{record.msg}{more}"
        self._lines.put(self.format(record) + "\n")

    def flush(self) -> None:
        """Wait until the lines so far are written, for FLUSH_S at most."""
        done = threading.Event()
        self._lines.put(done)
        done.wait(FLUSH_S)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            if self._dropped:
                line += f"{self._dropped} lines before were dropped: the log could not be written\n"
                self._dropped = 0
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                self._stream.write(line)
                self._stream.flush()


def _says_more(record: logging.LogRecord) -> bool:
    """Leave out asyncio's remark on each write to a client that has gone: it names neither client nor request."""
    return record.msg not in ("socket.send() raised exception.", "socket.sendto() raised exception.")


def json_formatter() -> logging.Formatter:
    """Return the formatter that turns a record into a JSON object."""
    return _Json()


def formatter() -> logging.Formatter:
    """Return the formatter that turns a record into a line."""
    return _Line()


def set_up(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Send the log to standard error, as lines of text or as a JSON object a line."""
    handler = _Background(sys.stderr)
    handler.setFormatter(json_formatter() if as_json else formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("asyncio", "uvicorn", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_says_more)
