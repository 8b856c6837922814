"""Forwards `logging` records of engines and libraries to the user endpoint's log, as lines with time and level.

Without it such a record would have neither, and those of level INFO would be lost. Used for engines that import
`logging` anyway; records come from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os

from mep_wire.text import LEVELS, log_line

_STDERR = 2
_OURS = "user_endpoint"


class _Forward(logging.Handler):
    """Writes to standard error, which the log file takes in: one write a line, so threads can't mix theirs."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname in LEVELS else "ERROR"
        fields = {} if record.name.partition(".")[0] == _OURS else {"source": record.name}
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        with contextlib.suppress(OSError):
            os.write(_STDERR, (log_line("mep-uep", level, text, fields, at=record.created) + "\n").encode())


def forward_library_log() -> None:
    """Forward our own records from INFO on, and others' from WARNING on. Again: no effect."""
    root = logging.getLogger()
    if not any(isinstance(each, _Forward) for each in root.handlers):
        root.addHandler(_Forward())
        logging.getLogger(_OURS).setLevel(logging.INFO)
