"""The outermost frame of a process that forks and doesn't exec: keeper and PAM process. Called by their files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mep.boundary.log import Log


def run_process(work: Callable[[], None], log: Log, **fields: object) -> NoReturn:
    """Run `work` and exit: with status 0, or with 1 after an error, which is logged with `fields`."""
    status = 1
    try:
        work()
        status = 0
    except Exception as error:  # noqa: BLE001 - the outermost frame of this process: its parent reads the exit
        log.error("process failed: unexpected error", **fields, error=repr(error))
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)
