"""Futures among a call's arguments: the call waits for them, and gets their values.

They are looked for in lists, tuples, dicts and sets as well. Used by Executor where arguments do not pickle, which
those with futures never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

_MAX_DEPTH = 20
_CONTAINERS = (list, tuple, set, frozenset, dict)
"""Compared by identity: a class may have an `__eq__` of its metaclass."""


def futures_in(value: Any, depth: int = 0) -> Iterator[Future[Any]]:
    """Yield the futures in a value."""
    if isinstance(value, Future):
        yield value
    elif depth < _MAX_DEPTH and any(type(value) is each for each in _CONTAINERS):
        for each in value.values() if type(value) is dict else value:
            yield from futures_in(each, depth + 1)


def with_values(value: Any, depth: int = 0) -> Any:
    """Return a value with its futures replaced by their results. All of them have ended. Raises what they do."""
    if isinstance(value, Future):
        return value.result(0)
    kind = type(value)
    if depth >= _MAX_DEPTH or next(futures_in(value, depth), None) is None:
        return value
    if kind is dict:
        return {key: with_values(each, depth + 1) for key, each in value.items()}
    return kind(with_values(each, depth + 1) for each in value)


class ResultOf:
    """Stands in a call's arguments for the result of another task, which its worker puts here."""

    def __init__(self, slot: int) -> None:
        self.slot = slot


def by_reference(value: Any, futures: list[Future[Any]]) -> Any:
    """Return a value with its futures replaced by references to their places in `futures`."""
    return _replaced(value, Future, lambda each: ResultOf(futures.index(each)))


def with_results(value: Any, results: list[Any]) -> Any:
    """Return a value with its references replaced by the results. In the worker. Raises IndexError."""
    return _replaced(value, ResultOf, lambda each: results[each.slot])


def _replaced(value: Any, kind: type, replace: Callable[[Any], Any], depth: int = -1) -> Any:
    if isinstance(value, kind):
        return replace(value)
    of = type(value)
    if depth >= _MAX_DEPTH or not any(of is each for each in _CONTAINERS):
        return value
    if of is dict:
        return {key: _replaced(each, kind, replace, depth + 1) for key, each in value.items()}
    return of(_replaced(each, kind, replace, depth + 1) for each in value)


def failed_among(futures: list[Future[Any]]) -> tuple[Future[Any], BaseException | None] | None:
    """Return the first that failed or was cancelled, and its exception; None where all succeeded."""
    for each in futures:
        if each.cancelled():
            return each, None
        if (error := each.exception(0)) is not None:
            return each, error
    return None
