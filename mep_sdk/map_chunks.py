"""Several calls of one function as one task, for `Executor.map` with a chunksize."""

from __future__ import annotations

import functools
from typing import Any

from mep_sdk.function_serializer import LoadedFunction, load_function


@functools.lru_cache(maxsize=64)
def _loaded(code: bytes) -> LoadedFunction:
    return load_function(code)


def run_chunk(code: bytes, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Return the values of the serialized function for each set of arguments. Runs in a worker."""
    call = _loaded(code).call
    return [call(*args) for args in calls]
