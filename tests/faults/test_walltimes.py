"""Tasks with a walltime and blocks that end: none is begun where its block would end first, none waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire.messages import ResultItem
from tests.support.slurm import Slurm
from user_endpoint.engines.base import EngineTask
from user_endpoint.engines.htex.mpi import MpiEngine
from user_endpoint.engines.htex.walltimes import fits, seconds_left, seconds_of

from .test_htex import Bench, echo, note
from .test_htex_scheduler import jobs as jobs  # the fixture: a scheduler's commands that run jobs on this host
from .test_htex_scheduler import log_of
from .test_slurm import bench_on
from .test_slurm import slurm as slurm  # the fixture: a real one


def block() -> str:
    import os

    return os.environ["PARSL_WORKER_BLOCK_ID"]


@pytest.fixture
def make(tmp_path: Path, jobs: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(*, engine: dict[str, Any] | None = None, **provider: Any) -> Bench:
        options = {"type": "SlurmProvider", "exclusive": False, "walltime": "00:10:00", "init_blocks": 0, **provider}
        settings = {"provider": options, "address": "127.0.0.1", "max_workers_per_node": 1, **(engine or {})}
        made.append(Bench(tmp_path / "uep", **settings))
        return made[-1]

    yield build
    for bench in made:
        bench.engine.stop(2.0)


def submit(bench: Bench, walltime_s: float, function: Callable[..., object] = block, *args: object) -> int:
    bench.row += 1
    code, payload = serialize_function(function), serialize_arguments(args, {})
    task = EngineTask(bench.row, f"t{bench.row}", function.__name__, code, payload, b"", walltime_s)
    bench.engine.submit([task])
    return bench.row


def aged(seconds: int, unless: Path | None = None) -> str:
    """A worker_init by which a block is older than it is; only the first one where `unless` is given."""
    older = f"export MEP_BLOCK_STARTED=$((MEP_BLOCK_STARTED - {seconds}))"
    return older if unless is None else f"[ -e {unless} ] || {{ touch {unless}; {older}; }}"


def value(item: ResultItem) -> object:
    assert not item.code, item
    return load_result(item.payload)


def test_a_task_that_does_not_fit_waits_for_a_new_block_beside_the_old_one(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make(max_blocks=2, worker_init=aged(480, tmp_path / "aged"))
    assert bench.value(submit(bench, 0), timeout_s=40) == "0"
    held = submit(bench, 0, note, str(tmp_path / "ran"), 60.0)
    bench.until(lambda: held in bench.started, timeout_s=40)
    bench.engine.cancel([held])  # the old block has room again
    bench.wait(held, timeout_s=40)
    assert bench.value(submit(bench, 5.0), timeout_s=40) == "0", "it fits into what is left"
    assert bench.value(submit(bench, 300.0), timeout_s=40) == "1"


def test_an_idle_block_that_is_too_old_makes_room_for_a_new_one(
    make: Callable[..., Bench], jobs: Path, tmp_path: Path
) -> None:
    bench = make(max_blocks=1, worker_init=aged(480, tmp_path / "aged"))
    assert bench.value(submit(bench, 0), timeout_s=40) == "0"
    assert bench.value(submit(bench, 300.0), timeout_s=40) == "1"
    assert [line.split()[0] for line in log_of(jobs)] == ["sbatch", "scancel", "sbatch"]


def test_a_busy_block_is_not_ended_for_it(make: Callable[..., Bench], jobs: Path, tmp_path: Path) -> None:
    bench = make(max_blocks=1, worker_init=aged(480, tmp_path / "aged"))
    mark = tmp_path / "ran"
    busy = submit(bench, 0, note, str(mark), 3.0)
    bench.until(lambda: busy in bench.started, timeout_s=40)
    waiting = submit(bench, 300.0)
    assert value(bench.wait(busy, timeout_s=40)[0])
    assert value(bench.wait(waiting, timeout_s=40)[0]) == "1"
    assert len(mark.read_text().splitlines()) == 1
    assert [line.split()[0] for line in log_of(jobs)] == ["sbatch", "scancel", "sbatch"]


def test_a_walltime_longer_than_any_blocks_is_refused_at_once(make: Callable[..., Bench], jobs: Path) -> None:
    bench = make()
    (item,) = bench.wait(submit(bench, 600.0))
    assert item.code == "WALLTIME_TOO_LONG"
    assert "walltime of 600.0 s is longer than the blocks here allow: blocks run for 600 s" in item.text
    assert not (jobs / "log").exists(), "no block was asked for"
    assert bench.value(bench.submit(echo, 1), timeout_s=40) == 1


def test_one_that_no_new_block_has_room_for_is_told_how_much_there_was(make: Callable[..., Bench]) -> None:
    bench = make(worker_init=aged(480))
    rows = [submit(bench, 300.0), submit(bench, 5.0)]
    late, fitting = bench.wait(*rows, timeout_s=60)
    assert value(fitting) in ("0", "1")
    assert late.code == "WALLTIME_TOO_LONG"
    assert "s were left of the last 2 blocks when their workers were up" in late.text


def test_a_block_that_waits_in_the_queue_makes_no_room(make: Callable[..., Bench], jobs: Path) -> None:
    bench = make(max_blocks=1)
    rows = [submit(bench, 300.0), submit(bench, 300.0)]
    assert [value(item) for item in bench.wait(*rows, timeout_s=60)] == ["0", "0"]
    assert len(log_of(jobs)) == 1


class _Workers:
    """Takes tasks and never ends them. The tests look at the tasks that it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def submit(self, tasks: list[EngineTask]) -> None:
        self.given += [task.row for task in tasks]

    def collect(self) -> list[Any]:
        return []


def test_mpi_tasks_are_given_back_when_the_block_is_too_old() -> None:
    workers: Any = _Workers()
    engine = MpiEngine(workers, 2, ["n1", "n2"], "srun", ends=time.monotonic() + 20)
    spec = msgspec.msgpack.encode({"num_nodes": 1})
    engine.submit([EngineTask(row, "t", "f", b"", b"", spec, walltime) for row, walltime in ((1, 5.0), (2, 60.0))])
    assert workers.given == [1]
    assert [event.row for event in engine.collect()] == [2]


def test_walltimes_as_schedulers_write_them() -> None:
    found = [seconds_of(text) for text in ("00:01:00", "01:30", "1-00:00:30", "00:00:00", "", "90", "1:2:3:4")]
    assert found == [60.0, 5400.0, 86430.0, None, None, None, None]


def test_what_is_left_of_a_block() -> None:
    assert seconds_left({}, 0, 0, 1000.0) is None
    assert seconds_left({}, 900.0, 600, 1000.0) == 500.0
    assert seconds_left({}, 0, 600, 1000.0) == 600.0
    assert seconds_left({"SLURM_JOB_END_TIME": "1100"}, 900.0, 600, 1000.0) == 100.0
    assert seconds_left({"SLURM_JOB_END_TIME": "1700"}, 900.0, 600, 1000.0) == 500.0
    assert fits(None, 1e9)
    assert fits(-5.0, 0.0)
    assert not fits(30.0, 30.0)


@pytest.mark.root
def test_a_real_slurm(slurm: Slurm, tmp_path: Path) -> None:
    init = aged(120, tmp_path / "aged")
    bench = bench_on(tmp_path / "uep", walltime="00:03:00", max_blocks=1, worker_init=init)
    try:
        assert bench.value(submit(bench, 0), timeout_s=60) == "0"
        assert bench.value(submit(bench, 5.0), timeout_s=60) == "0"
        assert bench.value(submit(bench, 90.0), timeout_s=60) == "1", "too much of the first block is over"
    finally:
        bench.engine.stop(2.0)
