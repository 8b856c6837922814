"""The outermost frame of a process that is forked and does not exec: keeper and PAM process. Called by their files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mep.boundary.log import Log


def be(work: Callable[[], None], log: Log, **fields: object) -> NoReturn:
    """Do `work`, and end: with status 0, or with 1 after a mistake, which is logged with `fields`."""
    status = 1
    try:
        work()
        status = 0
    except Exception as error:  # noqa: BLE001 - the outermost frame of this process: its parent reads the exit
        log.error("ended by a mistake of its own", **fields, error=repr(error))
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)
