"""The relay's log: plain lines `UTC-time level process[pid]: text`, on standard error.

Foreign text (names, keys, anything a peer sent) is passed as an argument. An argument that is not plain is quoted, and
control characters are escaped, so that it can forge neither a line nor another argument.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from mep_wire.text import field_text, log_line, printable_lines

logger = logging.getLogger("relay")


class _Argument:
    """An argument of a record, as it stands in a line."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return field_text(self._value)

    def __repr__(self) -> str:
        return field_text(repr(self._value))


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__)
        if isinstance(record.args, tuple):
            shown.args = tuple(each if isinstance(each, int | float) else _Argument(each) for each in record.args)
        pid = record.process or 0
        line = log_line("mep-relay", record.levelname, shown.getMessage(), {}, at=record.created, pid=pid)
        # An exception's text could hold a line of this log: its lines are indented.
        more = [self.formatException(record.exc_info)] if record.exc_info else []
        more += [self.formatStack(record.stack_info)] if record.stack_info else []
        return "".join([line, *("\n  " + printable_lines(each).replace("\n", "\n  ") for each in more)])


class Sparing:
    """Warnings that strangers can cause at will: each kind at most once in `every_s` seconds, with how many were not
    written."""

    def __init__(self, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every_s, clock
        self._last: dict[str, tuple[float, int]] = {}

    def warning(self, text: str, *args: object) -> None:
        """Log `text % args` as a warning, or count it. `text` says which kind it is."""
        now = self._clock()
        at, left_out = self._last.get(text, (float("-inf"), 0))
        if now - at < self._every:
            self._last[text] = at, left_out + 1
            return
        self._last[text] = now, 0
        logger.warning(text + (f" ({left_out} more like it before)" if left_out else ""), *args)


def _says_more(record: logging.LogRecord) -> bool:
    """Leave out asyncio's remark on each write to a client that has gone: it names neither client nor request."""
    return record.msg not in ("socket.send() raised exception.", "socket.sendto() raised exception.")


def formatter() -> logging.Formatter:
    """Return the formatter that turns a record into a line."""
    return _Line()


def set_up(level: int = logging.INFO) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_says_more)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
