"""Futures among a call's arguments: the call waits for them, and gets their values.

They are looked for in lists, tuples, dicts and sets as well. Used by Executor where arguments do not pickle, which
those with futures never do.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def failed_among(futures: list[Future[Any]]) -> tuple[Future[Any], BaseException | None] | None:
    """Return the first that failed or was cancelled, and its exception; None where all succeeded."""
    for each in futures:
        if each.cancelled():
            return each, None
        if (error := each.exception(0)) is not None:
            return each, error
    return None
