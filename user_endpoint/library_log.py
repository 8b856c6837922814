"""Forwards `logging` records of engines and libraries to the user endpoint's log, as lines with time and level.

Without it such a record would have neither, and those of level INFO would be lost. Used for engines that import
`logging` anyway; records come from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re

from mep_wire.text import LEVELS, formatted, is_json

_STDERR = 2
_OURS = "user_endpoint"
_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)')
_ESCAPED = re.compile(r'\\(["\\])')


class _Forward(logging.Handler):
    """Writes to standard error, which the log file takes in: one write a line, so threads can't mix theirs."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname in LEVELS else "ERROR"
        ours, text = record.name.partition(".")[0] == _OURS, record.getMessage()
        fields = {} if ours else {"source": record.name}
        if ours and is_json():
            text, fields = _parts(text)
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        with contextlib.suppress(OSError):
            os.write(_STDERR, (formatted("mep-uep", level, text, fields, at=record.created) + "\n").encode())


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """Return the text of one of our own records without the fields at its end, and the fields."""
    found = {key: _ESCAPED.sub(r"\1", value[1:-1] if value[0] == '"' else value) for key, value in _FIELD.findall(text)}
    return _FIELD.sub("", text), found


def forward_library_log() -> None:
    """Forward our own records from INFO on, and others' from WARNING on. Again: no effect."""
    root = logging.getLogger()
    if not any(isinstance(each, _Forward) for each in root.handlers):
        root.addHandler(_Forward())
        logging.getLogger(_OURS).setLevel(logging.INFO)
