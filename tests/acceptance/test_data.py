"""Arguments and results over the limit on a real site: by reference, once, counted, and nobody else's."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mep_sdk.data_transfer import IN_FLIGHT
from mep_wire.errors import DataUnavailable, PayloadTooLarge, ResultTooLarge
from mep_wire.limits import DATA_PIECE_BYTES
from tests.support.waiting import until

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


@pytest.mark.timeout(600)
def test_what_a_thousand_tasks_share_travels_once(own_place: Any) -> None:
    own_place.endpoint.start()

    def length(number: int, data: bytes) -> int:
        return number + len(data)

    data = random_bytes(12 * MB)
    with own_place.executor(own_place.anybody) as executor:
        futures = [executor.submit(length, number, data) for number in range(1000)]
        assert [future.result(timeout=4 * RESULT_S) for future in futures] == [12 * MB + n for n in range(1000)]
        assert executor.client.data.sent_bytes == stored(own_place) == 12 * MB
        # And a script of its own that sends it again: the relay has it.
        again = own_place.client(own_place.anybody)
        again.data.payload((1, data), {}, "length")
        assert again.data.sent_bytes == 0
    (cache,) = pieces_at_the_site(own_place)
    assert sum(path.stat().st_size for path in cache.iterdir() if len(path.name) == 64) == 12 * MB
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}


def pieces_at_the_site(campus: Any) -> list[Path]:
    return [*campus.site.root.glob("uep/*/run/data"), *campus.site.root.glob("home/*/.mep/uep/*/run/data")]


@pytest.mark.timeout(600)
def test_a_relay_that_is_killed_in_the_middle_loses_nothing(own_place: Any) -> None:
    own_place.endpoint.start()

    def back(data: bytes) -> tuple[bytes, int]:
        return data[::-1], len(data)

    data = random_bytes(60 * MB)
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(len, b"warm").result(timeout=RESULT_S) == 4
        kills = [10 * MB, 40 * MB]

        def kill_at(size: int) -> None:
            until("pieces at the relay", lambda: stored(own_place) >= size, RESULT_S)
            own_place.site.relay.kill()
            own_place.site.relay.start()

        killer = threading.Thread(target=lambda: [kill_at(size) for size in kills])
        killer.start()
        future = executor.submit(back, data)
        killer.join()
        kill_at(80 * MB)  # its result is on the way
        assert future.result(timeout=RESULT_S) == (data[::-1], 60 * MB)


def test_a_limit_is_told_with_size_and_remedy(own_place: Any) -> None:
    state = own_place.site.root / "relay"
    own_place.site.relay.stop()
    (state / "mep-relay.toml").write_text("max_data_mb = 20\nmax_payload_mb = 1\n")
    own_place.site.relay.start()
    own_place.endpoint.start()

    def many(count: int) -> bytes:
        return bytes(count)

    with own_place.executor(own_place.anybody) as executor:
        with pytest.raises(PayloadTooLarge, match=r"len has \d{8} bytes, more than the 20971520 .* mep_sdk.data"):
            executor.submit(len, random_bytes(30 * MB))
        with pytest.raises(ResultTooLarge, match=r"has 300000\d\d bytes, more than the 20971520 .* mep_sdk.data"):
            executor.submit(many, 30 * MB).result(timeout=RESULT_S)
        assert executor.submit(many, 15 * MB).result(timeout=RESULT_S) == bytes(15 * MB)
        before = executor.client.data.sent_bytes
        assert executor.submit(len, random_bytes(5 * MB)).result(timeout=RESULT_S) == 5 * MB
        assert executor.client.data.sent_bytes - before == 5 * MB


def test_progress_and_memory_of_a_large_value(campus: Any) -> None:
    shown: list[Any] = []

    class Bar:
        def __init__(self, *, total: float, unit: str) -> None:
            self.total, self.unit, self.done = total, unit, 0.0
            shown.append(self)

        def update(self, count: float) -> None:
            self.done += count

        def close(self) -> None:
            pass

    data = [random_bytes(10 * MB) for _ in range(3)]
    client = campus.client(campus.anybody)
    tracemalloc.start()
    try:
        client.data.payload((data,), {}, "f", progress=Bar)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [bar.unit for bar in shown] == ["MB"]
    assert round(shown[0].done) == round(shown[0].total) == 30
    assert peak < 2 * IN_FLIGHT * DATA_PIECE_BYTES + 4 * MB


def test_arguments_that_the_relay_has_lost_end_their_task(own_place: Any) -> None:
    own_place.endpoint.start()
    data = random_bytes(12 * MB)
    with own_place.executor(own_place.anybody) as executor:
        executor.submit(len, b"warm").result(timeout=RESULT_S)
        executor.client.data.payload((data,), {}, "len")
        for path in (own_place.site.root / "relay" / "data").glob("*/*"):
            path.write_bytes(b"damaged")
        with pytest.raises(DataUnavailable, match="large arguments"):
            executor.submit(len, data).result(timeout=RESULT_S)
