"""Functions that are tasks for others: several calls of one function, and a call that travels as an argument.

`Executor.map` with a chunksize sends the first, the backend for joblib the second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mep_sdk.function_serializer import LoadedFunction, load_function


@functools.lru_cache(maxsize=64)
def _loaded(code: bytes) -> LoadedFunction:
    return load_function(code)


def run_chunk(code: bytes, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Return the values of the serialized function for each set of arguments. Runs in a worker."""
    call = _loaded(code).call
    return [call(*args) for args in calls]


def call(work: Callable[[], Any]) -> Any:
    """Return what `work` returns. Runs in a worker: where each call has its own, it travels as an argument."""
    return work()
