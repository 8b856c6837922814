"""The relay's log: plain lines `UTC-time level process[pid]: text`, on standard error.

Foreign text (names, keys, anything a peer sent) is passed as an argument, and control characters in a line
are escaped, so that nobody can forge one.
"""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger("relay")


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return "".join(c if c.isprintable() or (c == "\n" and record.exc_info) else f"\\x{ord(c):02x}" for c in line)


def set_up(level: int = logging.INFO) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Line("%(asctime)sZ %(levelname)s mep-relay[%(process)d]: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
