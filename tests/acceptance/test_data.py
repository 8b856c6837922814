"""Arguments and results over the limit on a real site: by reference, once, counted, and nobody else's."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

RESULT_S = 120
MB = 1_000_000
ENGINES = ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"]


def random_bytes(size: int) -> bytes:
    return os.urandom(size)


def stored(campus: Any) -> int:
    """Return the bytes of all pieces that the relay has."""
    return sum(path.stat().st_size for path in (campus.site.root / "relay" / "data").glob("*/*"))


def digest(data: bytes, number: int = 0, *, again: Any = None) -> tuple[int, str, bool]:
    import hashlib

    return number, hashlib.sha256(data).hexdigest(), again is data


@pytest.mark.parametrize("engine", ENGINES)
def test_large_arguments_and_results_come_whole(campus: Any, engine: str) -> None:
    def twice(data: bytes) -> bytes:
        return data + data

    data = random_bytes(15 * MB)
    with campus.executor(campus.anybody, engine=engine) as executor:
        future = executor.submit(digest, data, 3, again=data)
        assert future.result(timeout=RESULT_S) == (3, hashlib.sha256(data).hexdigest(), True)
        assert executor.submit(twice, data).result(timeout=RESULT_S) == data + data
