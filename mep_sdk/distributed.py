"""A client with the methods of dask.distributed's, for scripts written for it: `map`, `gather` and their kin.

Futures are those of mep_sdk.Executor. A future among the arguments stands for its value.
"""

from __future__ import annotations

import concurrent.futures
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mep_sdk.batch import UuidLike
from mep_sdk.executor import Executor
from mep_sdk.futures import TaskFuture

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")


class Client:
    """Submits calls to one endpoint, and gathers their results."""

    def __init__(
        self, endpoint_id: UuidLike | None = None, *, executor: Executor | None = None, **options: Any
    ) -> None:
        """`options` are those of mep_sdk.Executor. An `executor` in place of an endpoint stays open after `close`.
        Raises what Executor raises, and ValueError for both or neither."""
        if (executor is None) == (endpoint_id is None):
            raise ValueError('pass the endpoint, such as Client("ENDPOINT_ID"), or executor=..., and not both')
        self._own = executor is None
        self._executor = executor or Executor(endpoint_id, **options)

    def submit(self, func: Callable[..., _T], *args: Any, **kwargs: Any) -> TaskFuture[_T]:
        """Call `func(*args, **kwargs)` on the endpoint; return its future. Raises what Executor.submit raises."""
        return self._executor.submit(func, *args, **kwargs)

    def map(self, func: Callable[..., _T], *iterables: Iterable[Any], **kwargs: Any) -> list[TaskFuture[_T]]:
        """Call `func` for each set of arguments, with the same `kwargs`; return the futures at once."""
        return [self._executor.submit(func, *args, **kwargs) for args in zip(*iterables, strict=False)]

    def gather(self, futures: Any, errors: Literal["raise", "skip"] = "raise") -> Any:
        """Wait for the futures in lists, tuples, sets and dicts; return the same with their values in place of them.

        Where a task has failed its exception is raised, or with errors="skip" it is left out.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors is 'raise' or 'skip', not {errors!r}")
        if isinstance(futures, concurrent.futures.Future):
            return futures.result()
        if isinstance(futures, dict):
            return {key: self.gather(each, errors) for key, each in futures.items() if _wanted(each, errors)}
        if isinstance(futures, (list, tuple, set, frozenset, Iterator)):
            found = [self.gather(each, errors) for each in futures if _wanted(each, errors)]
            return found if isinstance(futures, Iterator) else type(futures)(found)
        return futures

    def cancel(self, futures: Iterable[TaskFuture[Any]] | TaskFuture[Any]) -> None:
        """Cancel these tasks, waiting or running."""
        self._executor.cancel([futures] if isinstance(futures, TaskFuture) else list(futures))

    def get_executor(self) -> Executor:
        """Return the executor that the tasks go through."""
        return self._executor

    def close(self) -> None:
        """Wait for the tasks, and end."""
        if self._own:
            self._executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if kind is not None and self._own:  # as dask's: results that were not gathered are of no use
            self._executor.shutdown(wait=False, cancel_futures=True)
        self.close()


def as_completed(futures: Iterable[TaskFuture[_T]]) -> Iterator[TaskFuture[_T]]:
    """Yield the futures as they end."""
    return concurrent.futures.as_completed(futures)  # type: ignore[return-value]  # it yields what it was given


def wait(futures: Iterable[TaskFuture[Any]], timeout: float | None = None) -> Any:
    """Wait until all have ended. Raises TimeoutError after `timeout` seconds."""
    done = concurrent.futures.wait(futures, timeout)
    if done.not_done:
        raise TimeoutError(f"{len(done.not_done)} tasks have not ended after {timeout} s")
    return done


def _wanted(each: Any, errors: str) -> bool:
    if errors == "raise" or not isinstance(each, concurrent.futures.Future):
        return True
    return not each.cancelled() and each.exception() is None
