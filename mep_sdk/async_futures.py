"""A task's future for asyncio: `await executor.asubmit(...)`. Called by Executor."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import CancelledError
from typing import TypeVar

from mep_sdk.futures import TaskFuture

_T = TypeVar("_T")


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop. Raises RuntimeError without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "asubmit is for coroutines: `await executor.asubmit(fn, 1)` within async def; elsewhere use submit"
        ) from None


def for_asyncio(loop: asyncio.AbstractEventLoop, future: TaskFuture[_T]) -> asyncio.Future[_T]:
    """Return a future of `loop` that ends as `future` does. To cancel it cancels the task, in a thread: the relay is
    asked, and the loop does not wait for its answer."""
    waiter: asyncio.Future[_T] = loop.create_future()

    def ended(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
            loop.call_soon_threadsafe(_copy, future, waiter)

    def given_up(_: object) -> None:
        if waiter.cancelled() and not future.done():
            loop.run_in_executor(None, future.cancel)

    future.add_done_callback(ended)
    waiter.add_done_callback(given_up)
    return waiter


def _copy(future: TaskFuture[_T], waiter: asyncio.Future[_T]) -> None:
    if waiter.done():
        return
    try:
        error = future.exception(0)
    except CancelledError:
        waiter.cancel()
        return
    if error is None:
        waiter.set_result(future.result(0))
        return
    try:
        waiter.set_exception(error)
    except TypeError as refused:  # StopIteration: a coroutine cannot raise it
        wrapped = RuntimeError(f"the task has raised {type(error).__name__}, which no coroutine can: {refused}")
        wrapped.__cause__ = error
        waiter.set_exception(wrapped)
