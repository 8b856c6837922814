"""The interchange's own decisions, without sockets."""

from __future__ import annotations

import time

import pytest
from parsl.executors.high_throughput.interchange import PKL_SHUTDOWN_CODE

from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.interchange import BatchInterchange


class Results:
    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, frame: bytes) -> None:
        self.sent.append(protocol.decode_to_client(frame))


class Pools:
    """The socket to the pools."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []

    def send_multipart(self, parts: list[bytes]) -> None:
        self.sent.append(parts)


def test_a_step_of_the_clock_loses_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    interchange = BatchInterchange.__new__(BatchInterchange)
    node = {"last_heartbeat": time.monotonic(), "tasks": [1, 2], "block_id": "0", "uid": "u"}
    results = Results()
    interchange.__dict__.update(
        heartbeat_threshold=120,
        _ready_managers={b"n": node},
        results_outgoing=results,
        _managers_real=Pools(),
        _ended_blocks=set(),
    )
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


@pytest.mark.parametrize(("mep", "order"), [(True, protocol.encode(protocol.Leave())), (False, PKL_SHUTDOWN_CODE)])
def test_a_pool_whose_block_has_ended_is_sent_away_whenever_it_registers(mep: bool, order: bytes) -> None:
    """The scripts of a block may be killed, and their children live on; nothing would watch what the pool does."""
    interchange = BatchInterchange.__new__(BatchInterchange)

    def node(block_id: str) -> dict[str, object]:
        return {"block_id": block_id, "mep": mep, "python_v": "3.11.2", "worker_count": 1, "last_heartbeat": 0.0}

    results, pools = Results(), Pools()
    interchange.__dict__.update(
        _ready_managers={b"early": node("0")},
        results_outgoing=results,
        _managers_real=pools,
        _ended_blocks=set(),
    )
    interchange._block_ended("0")
    assert pools.sent == [[b"early", order]]
    interesting = {b"late", b"other"}
    interchange._ready_managers |= {b"late": node("0"), b"other": node("1")}  # type: ignore[dict-item]
    for manager_id in (b"late", b"other"):
        interchange._registered(manager_id, interesting)
    assert pools.sent[1:] == [[b"late", order]]
    assert b"late" not in interchange._ready_managers
    assert interesting == {b"other"}
    assert results.sent == [protocol.Registered("1", 1, None, "3.11.2")]


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        (protocol.WorkerReport(leaving=True, block_id="0"), [1, 2, 3, 4]),
        (protocol.WorkerReport(lost=[1, 2], leaving=True, block_id="0", pool="u"), [1, 2, 3, 4]),
        (protocol.WorkerReport(returned=[3], lost=[1], leaving=True, block_id="0", pool="u"), [1, 2, 4]),
        (protocol.WorkerReport(results=[protocol.Result(2, "", "", b"", 1.0, 2.0)], leaving=True), [1, 3, 4]),
        (protocol.WorkerReport(lost=[1, 2, 3, 4], leaving=True, block_id="0", pool="u"), [1, 2, 3, 4]),
    ],
    ids=["none named", "some lost", "one returned", "one ended", "all lost"],
)
def test_a_pool_that_leaves_takes_no_task_with_it_that_it_has_not_heard_of(
    last: protocol.WorkerReport, lost: list[int]
) -> None:
    """Tasks may be under way to a pool while the scheduler ends its node."""
    interchange = BatchInterchange.__new__(BatchInterchange)
    node = {"last_heartbeat": time.monotonic(), "tasks": [1, 2, 3, 4], "block_id": "0", "uid": "u"}
    results = Results()
    interchange.__dict__.update(_ready_managers={b"n": node}, results_outgoing=results)
    assert interchange._from_pool(node, protocol.encode(last))
    (report,) = results.sent
    assert isinstance(report, protocol.WorkerReport)
    assert report.leaving
    assert report.pool == "u"
    assert (report.lost, report.returned, report.results) == (lost, last.returned, last.results)
