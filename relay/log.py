"""The relay's log: plain lines `UTC-time level process[pid]: text`, on standard error.

Foreign text (names, keys, anything a peer sent) is passed as an argument, and control characters in a line
are escaped, so that nobody can forge one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

logger = logging.getLogger("relay")


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return "".join(c if c.isprintable() or (c == "\n" and record.exc_info) else f"\\x{ord(c):02x}" for c in line)


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


def set_up(level: int = logging.INFO) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Line("%(asctime)sZ %(levelname)s mep-relay[%(process)d]: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
