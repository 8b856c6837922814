"""Forwards the identity package's `logging` output to the mapper's own log."""

from __future__ import annotations

import logging

from mep.boundary.log import Log
from mep.boundary.text import LEVELS


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname in LEVELS else "ERROR"
        self._log.write(level, record.getMessage(), source=record.name)


def forward_library_log(log: Log) -> None:
    """Forward library log records from INFO on to `log`."""
    root = logging.getLogger()
    root.addHandler(_Forward(log))
    root.setLevel(logging.INFO)
