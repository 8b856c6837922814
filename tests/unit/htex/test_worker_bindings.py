"""A node's workers: how many, and the share of each."""

from __future__ import annotations

from typing import Any

import pytest

from user_endpoint.engines.htex.worker_binding import worker_bindings
from user_endpoint.engines.htex.worker_pool_options import Options, OptionsInvalid, parse_options, worker_count

NEEDED = ["--addresses=10.0.0.1,::1", "--port=5", "--cert_dir=/c", "--logdir=/l", "--block_id=3"]


def options(**changes: Any) -> Options:
    return Options(("127.0.0.1",), 5, "/c", "/l", "3", **changes)


def test_options_are_typed() -> None:
    found = parse_options([*NEEDED, "--mem_per_worker=0.5", "--accelerators=0,gpu-1", "--max_workers_per_node=4"])
    assert found.addresses == ("10.0.0.1", "::1")
    assert (found.port, found.mem_per_worker, found.max_workers_per_node) == (5, 0.5, 4)
    assert found.accelerators == ("0", "gpu-1")
    assert parse_options([*NEEDED, "--accelerators="]).accelerators == ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (NEEDED[1:], "missing: addresses"),
        ([*NEEDED, "--nonsense=1"], "unknown option --nonsense=1"),
        ([*NEEDED, "--port=x"], "--port=x"),
        ([*NEEDED, "--directory=/x"], "unknown option"),
    ],
)
def test_options_that_are_none(arguments: list[str], says: str) -> None:
    with pytest.raises(OptionsInvalid, match=says):
        parse_options(arguments)


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSL_CORES", "8")
    monkeypatch.setenv("PARSL_MEMORY_GB", "10")
    assert worker_count(options()) == 8
    assert worker_count(options(cores_per_worker=3)) == 2
    assert worker_count(options(cores_per_worker=0.5)) == 16
    assert worker_count(options(cores_per_worker=9)) == 1
    assert worker_count(options(mem_per_worker=4)) == 2
    assert worker_count(options(max_workers_per_node=5)) == 5
    assert worker_count(options(accelerators=("0", "1", "2"))) == 3


@pytest.mark.parametrize(
    ("affinity", "shares"),
    [
        ("block", [[0, 1], [2, 3], [4, 5]]),
        ("block-reverse", [[4, 5], [2, 3], [0, 1]]),
        ("alternating", [[0, 3, 6], [1, 4], [2, 5]]),
        ("list:24-26,56:0:7", [[24, 25, 26, 56], [0], [7]]),
        ("none", [[], [], []]),
    ],
)
def test_processors(affinity: str, shares: list[list[int]]) -> None:
    found = worker_bindings(options(cpu_affinity=affinity), 3, range(7), "pool")
    assert [location.processors for location in found] == shares
    if affinity != "none":
        assert [location.variables["OMP_NUM_THREADS"] for location in found] == [str(len(share)) for share in shares]
        assert found[0].variables["KMP_AFFINITY"] == f"explicit,proclist=[{','.join(map(str, shares[0]))}]"
    else:
        assert "OMP_NUM_THREADS" not in found[0].variables


@pytest.mark.parametrize(("affinity", "says"), [("list:1:2", "2 groups"), ("block", "more than the 2 processors")])
def test_processors_that_are_not_there(affinity: str, says: str) -> None:
    with pytest.raises(OptionsInvalid, match=says):
        worker_bindings(options(cpu_affinity=affinity), 3, [0, 1], "pool")


def test_accelerators_and_ranks() -> None:
    first, second = worker_bindings(options(accelerators=("0", "MIG-7")), 2, [0], "pool")
    assert second.variables["CUDA_VISIBLE_DEVICES"] == second.variables["ZE_AFFINITY_MASK"] == "MIG-7"
    assert first.variables["PARSL_WORKER_RANK"] == "0"
    assert second.variables["PARSL_WORKER_COUNT"] == "2"
    assert second.variables["PARSL_WORKER_BLOCK_ID"] == "3"


def test_workers_share_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.engines.htex.worker_binding._cuda_devices", lambda: 2)
    found = worker_bindings(options(accelerators=("0", "1", "2", "3")), 4, [0], "pool")
    assert [location.variables["CUDA_VISIBLE_DEVICES"] for location in found] == ["0", "0", "1", "1"]
