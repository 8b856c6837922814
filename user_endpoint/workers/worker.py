"""A worker: runs one task after another, forked by the fork server, as the mapped user.

It reads a task's datagram, runs it with mep_sdk's runner and answers at once. The tasks without an
answer are therefore exactly those that the worker was running when it died. It trusts its engine; the function it
runs may do anything to this process, and the engine expects that.
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from contextvars import copy_context
from typing import TYPE_CHECKING

from user_endpoint.workers import datagrams, task_main
from user_endpoint.workers.task_environment import TaskEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable

    from user_endpoint.workers.output_ring import RingWriter
    from user_endpoint.workers.start_journal import StartJournal

_CACHE_BYTES = 64 * 1024 * 1024
_own_pid, _now = os.getpid, time.time
"""These functions as they are before a task replaces them in their modules."""


class FunctionCache:
    """The functions that this worker was given, by id; the oldest go when they are too many bytes."""

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit, self._size = limit_bytes, 0
        self._code: dict[str, bytes] = {}

    def add(self, function_id: str, code: bytes) -> None:
        """Remember `code`."""
        self._size += len(code) - len(self._code.pop(function_id, b""))
        self._code[function_id] = code
        while self._size > self._limit and len(self._code) > 1:
            oldest = next(iter(self._code))
            self._size -= len(self._code.pop(oldest))

    def get(self, function_id: str) -> bytes | None:
        """Return the code, or None."""
        return self._code.get(function_id)

    def take(self, function_id: str, code: bytes | None) -> bytes | None:
        """Return the code that a task came with, or that an earlier one did, or None."""
        if code is not None:
            self.add(function_id, code)
        return self.get(function_id)


def serve(
    sock: _socket.socket,
    max_result_bytes: int,
    *,
    directory: str = "",
    run_directory: str = "",
    sandbox: bool = False,
    max_tasks: int = 0,
) -> None:
    """Run tasks in `directory` until the engine closes its end, or `max_tasks` of them, each in a directory of its own
    below it if `sandbox`. `sock` is blocking.

    Raises JournalClosed if it may not begin another: a later user endpoint is now responsible for its tasks.
    """
    from mep_sdk import foreign_code  # all of these now: a task may remove modules
    from mep_sdk.task_runner import FunctionCache as Loaded
    from mep_sdk.task_runner import TaskOutcome, copy_output, keep_output, run_task, wants_live_output
    from mep_wire.errors import EngineFailed

    functions = FunctionCache()
    loaded: Loaded = {}
    log = _begun_log()
    task_main.install()
    keep_output()
    data = f"{run_directory}/data" if run_directory else ""
    environment = TaskEnvironment(directory=directory, run_directory=run_directory, sandbox=sandbox)
    own_pid = _own_pid()
    ring: RingWriter | None = None
    while True:
        try:
            (row, task_id, function_id, code, payload, variables, attempt), _ = datagrams.receive(sock)
        except datagrams.PeerGone:
            return
        if (function := functions.take(function_id, code)) is None:
            datagrams.send(sock, (row, datagrams.NEED_FUNCTION, "", b"", 0.0, 0.0))
            continue
        if log is not None and not log.note(row, task_id, attempt):
            return
        if wants_live_output(payload) and (ring := ring or _ring(sock)) is not None:
            copy_output(ring.begin(row))
        started = _now()
        try:
            environment.before(task_id, variables)
        except OSError as error:
            outcome = TaskOutcome(EngineFailed.code, EngineFailed(reason=f"no directory for it: {error}").text, b"")
        else:
            own = copy_context()  # what it sets there, as decimal's context, goes with it
            outcome = own.run(
                run_task, function, payload, max_result_bytes=max_result_bytes, cache=loaded, data_directory=data
            )
        _flush_output(foreign_code.attempt)
        if _own_pid() != own_pid:  # the task forked, and its child came back here: it is no worker
            os._exit(0)
        ended = _now()
        whole = _cleaned_up(environment)
        datagrams.send(sock, (row, outcome.code, outcome.text, outcome.payload, started, ended))
        max_tasks -= 1
        if not whole or max_tasks == 0:  # and tasks sent here since then go to another worker
            return


def _ring(sock: _socket.socket) -> RingWriter | None:
    """Return a ring for live output, which the engine has been told of; None where there is no memory for it."""
    from user_endpoint.workers import output_ring  # most workers need none

    try:
        ring, descriptor = output_ring.create()
    except OSError:
        return None
    try:
        datagrams.send(sock, (datagrams.OUTPUT_RING,), descriptor)
    finally:
        os.close(descriptor)
    return ring


def _cleaned_up(environment: TaskEnvironment) -> bool:
    """Clean up after a task. Return whether this worker may run another one."""
    try:
        return environment.after()
    except Exception:  # noqa: BLE001 - a task's own objects are compared: they may raise anything
        return False


def _flush_output(attempt: Callable[..., object]) -> None:
    """Flush what the task has printed, in the worker's own stream and in the one that the task has put in its place.

    The task may have closed it, or left an object of its own, and its flush may raise anything.
    """
    for name in ("stdout", "stderr", "__stdout__"):
        attempt(_flush, name)


def _flush(name: str) -> None:
    getattr(sys, name).flush()


def _begun_log() -> StartJournal | None:
    how, _, path = os.environ.pop(datagrams.BEGUN_VARIABLE, "").partition(":")
    if not path:
        return None
    from user_endpoint.workers.start_journal import StartJournal

    return StartJournal(path, how)
