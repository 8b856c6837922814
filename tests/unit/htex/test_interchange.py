"""The interchange's own decisions, without sockets."""

from __future__ import annotations

import time

import pytest

from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.interchange import BatchInterchange


class Results:
    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, frame: bytes) -> None:
        self.sent.append(protocol.decode_to_client(frame))


def test_a_step_of_the_clock_loses_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    interchange = BatchInterchange.__new__(BatchInterchange)
    node = {"last_heartbeat": time.monotonic(), "tasks": [1, 2], "block_id": "0", "uid": "u"}
    results = Results()
    interchange.__dict__.update(heartbeat_threshold=120, _ready_managers={b"n": node}, results_outgoing=results)
    real = time.time
    for step in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: real() + step)
        interchange.expire_bad_managers(set(), None)
    assert not results.sent
    interchange._block_ended("0")
    interchange.expire_bad_managers(set(), None)
    (report,) = results.sent
    assert isinstance(report, protocol.WorkerReport)
    assert list(report.lost) == [1, 2]
    assert not interchange._ready_managers
