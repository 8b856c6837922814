"""Run a task in Parsl's own worker pool, where a site's launch_cmd uses that in place of ours.

Called in the worker, as the mapped user, with the bytes of one Task. Cannot be cancelled or timed from outside.
"""

from __future__ import annotations

import time

from mep_sdk.task_runner import FunctionCache, run_task
from user_endpoint.engines.htex import protocol

_cache: FunctionCache = {}


def run(data: bytes) -> bytes:
    """Return the encoded Result of the encoded Task `data`."""
    task = protocol.decode_task(data)
    started = time.time()
    outcome = run_task(
        task.function,
        task.payload,
        max_result_bytes=task.max_result_bytes,
        cache=_cache,
        data_directory=task.data_directory,
    )
    result = protocol.Result(task.id, outcome.code, outcome.text, outcome.payload, started, time.time())
    return protocol.encode(result)
