"""The monitor dies under people's work, and another one takes over: no task and no process notices."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.waiting import until

RESULT_S = 30


def slow_square(number: int) -> int:

    time.sleep(0.3)
    return number * number


def test_killing_the_monitor_leaves_user_endpoints_alone_and_the_next_adopts_them(own_place: Any) -> None:
    endpoint = own_place.endpoint
    endpoint.start()
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        before = own_place.new_pids({})
        futures = [executor.submit(slow_square, number) for number in range(8)]
        killed = int(endpoint.status()["pid"])
        os.kill(killed, signal.SIGKILL)
        assert [future.result(timeout=RESULT_S) for future in futures] == [n * n for n in range(8)]
        endpoint.start()
        until("a new monitor", lambda: endpoint.status().get("pid") not in {None, killed} and endpoint.is_up())
        assert own_place.pids() == before
        assert executor.submit(pow, 2, 5).result(timeout=RESULT_S) == 32
        assert own_place.pids() == before
        endpoint.stop()
    for pid in before.values():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or b") Z" in state.read_bytes()
    assert not list((endpoint.runtime_dir / "keepers").iterdir())
