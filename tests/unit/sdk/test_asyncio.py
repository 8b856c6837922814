"""Futures for coroutines end as their tasks do, and to cancel them cancels the tasks without holding up the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mep_sdk import Executor
from mep_sdk.async_futures import for_asyncio, running_loop
from mep_sdk.futures import TaskFuture

WAIT_S = 30


class Inline:
    """Calls callbacks at once; to cancel takes as long as the relay's answer does."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def call_back(self, future: Any) -> None:
        future.call_callbacks()

    def cancel_futures(self, futures: Any) -> int:
        self.asked.set()
        self.answers.wait(WAIT_S)
        return sum(future.mark_cancelled() for future in futures)

    def look_soon(self) -> None:
        pass

    def held_up(self, _: str) -> None:
        """Nothing does."""


def made(canceller: Inline | None = None) -> TaskFuture[Any]:
    return TaskFuture("t", "g", canceller or Inline())  # type: ignore[arg-type]


async def ended(value: Any, failure: BaseException | None) -> Any:
    """Await a task that another thread ends."""
    future = made()
    waiter = for_asyncio(running_loop(), future)
    threading.Thread(target=future.resolve, args=(value, failure)).start()
    return await asyncio.wait_for(waiter, WAIT_S)


def test_a_value_comes_from_another_thread() -> None:
    assert asyncio.run(ended(3, None)) == 3


@pytest.mark.parametrize("failure", [ValueError("x"), KeyError(1), ExceptionGroup("g", [OSError()])])
def test_an_exception_keeps_its_type(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught:
        asyncio.run(ended(None, failure))
    assert caught.value is failure


def test_stop_iteration_is_told_and_hangs_nothing() -> None:
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        asyncio.run(ended(None, StopIteration(1)))
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_task_cancelled_elsewhere_cancels_the_wait() -> None:
    async def main() -> None:
        future = made()
        waiter = for_asyncio(running_loop(), future)
        threading.Thread(target=future.mark_cancelled).start()
        await asyncio.wait_for(waiter, WAIT_S)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_to_cancel_asks_the_relay_in_another_thread() -> None:
    canceller = Inline()

    async def main() -> bool:
        waiter = for_asyncio(running_loop(), made(canceller))
        waiter.cancel()
        asked = await asyncio.to_thread(canceller.asked.wait, WAIT_S)  # the loop goes on without the relay's answer
        canceller.answers.set()
        return asked

    assert asyncio.run(main())


def test_a_loop_that_has_ended_is_no_error() -> None:
    future = made()

    async def main() -> None:
        for_asyncio(running_loop(), future)

    asyncio.run(main())
    future.resolve(1, None)
    assert future.result(0) == 1


def test_outside_a_coroutine_it_says_what_to_use() -> None:
    with (
        Executor("4b116d3c-1703-4f8f-9f6f-39921e5864df", relay_url="http://127.0.0.1:9", token="t") as executor,
        pytest.raises(RuntimeError, match="use submit"),
    ):
        executor.asubmit(len, "abc")
    assert executor.task_count_submitted == 0
