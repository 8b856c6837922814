"""What `mep-sdk run` shows while it waits: where the task is and why it waits, on standard error."""

from __future__ import annotations

import sys
import time
from concurrent.futures import wait
from typing import Any

from mep_sdk.tool import output

LOOK_S = 0.5
_WORDS = {
    "": "on its way to the relay",
    "waiting-for-ep": "at the relay",
    "waiting-for-nodes": "at the endpoint",
    "running": "running",
}


def follow(future: Any, timeout_s: float | None, *, always: bool = False) -> None:
    """Wait for a task's end, `timeout_s` seconds at most, and say each change: on a terminal alone, unless `always`."""
    if not (always or sys.stderr.isatty()):
        return
    began, told = time.monotonic(), ""
    while not future.done():
        passed = time.monotonic() - began
        if timeout_s is not None and passed >= timeout_s:
            return
        state, reason = _WORDS.get(future.status, future.status), future.reason
        text = f"{state}: {reason}" if reason else state
        if text != told and (told or passed >= LOOK_S):  # a quick task needs no words
            told = text
            output.note(f"[{passed:.0f} s] task {future.task_id} is {text}")
        left = LOOK_S if timeout_s is None else min(LOOK_S, timeout_s - passed)
        wait([future], max(0.0, left))
