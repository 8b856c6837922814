"""GlobusComputeEngine's options, each seen to take effect: containers, addresses, scaling, waiting, places of tasks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_wire.errors import EndpointMisconfigured
from user_endpoint.engines.htex.provider import Plan, worker_addresses
from user_endpoint.settings import AddressSettings, GlobusComputeSettings, GlobusMPISettings, settings_from

from .test_htex import Bench, _arguments, echo, note, variables

_RUNTIME = """#!/bin/bash
echo "$(basename $0) $*" >> {log}
while [ "$1" != image:1 ]; do shift; done
shift
export IN_CONTAINER=yes
exec "$@"
"""
"""Stands in for docker and the others: runs the command that follows the image."""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(**options: Any) -> Bench:
        engine = settings_from({"engine": {"type": "GlobusComputeEngine", **options}}).engine
        assert isinstance(engine, GlobusComputeSettings)
        made.append(Bench(tmp_path / str(len(made)), **msgspec.structs.asdict(engine)))
        return made[-1]

    yield build
    for bench in made:
        bench.engine.stop(2.0)


def arguments(bench: Bench) -> list[str]:
    """Every word of the command lines of the engine's pools."""
    return [word for pid in bench.processes("pool_main") for word in _arguments(pid)]


@pytest.mark.parametrize("kind", ["apptainer", "singularity", "docker", "podman", "podman-hpc", "custom"])
def test_workers_run_in_a_container(
    make: Callable[..., Bench], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / ("site-tool" if kind == "custom" else kind)
    tool.write_text(_RUNTIME.format(log=tmp_path / "log"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    options = {"container_type": kind, "container_uri": "image:1", "container_cmd_options": "--opt 'a b'"}
    if kind == "custom":
        command = "site-tool --in {EXECUTOR_RUNDIR} image:1 {EXECUTOR_LAUNCH_CMD}"
        options = {"container_type": "custom", "container_cmd_options": command}
    bench = make(max_workers_per_node=1, **options)
    seen = bench.value(bench.submit(variables), timeout_s=60)
    assert seen["IN_CONTAINER"] == "yes"
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert str(bench.directory) in line.split("image:1")[0], "the run directory is given to it"
    assert kind == "custom" or " run --opt a b " in line
    assert f"python3 {bench.directory}/runner/packages/user_endpoint/engines/htex/worker_pool_main.py" in line


def test_addresses_by_interface_name_and_route() -> None:
    def found(**address: Any) -> list[str]:
        return worker_addresses(GlobusComputeSettings(address=AddressSettings(**address)), local=False)

    assert found(type="address_by_interface", ifname="lo") == ["127.0.0.1"]
    assert found(type="address_by_hostname") == [socket.gethostbyname(socket.gethostname())]
    try:
        (by_route,) = found(type="address_by_route")
    except EndpointMisconfigured as error:  # a host without any way to the outside
        assert "engine.address: address_by_route: " in error.detail
    else:
        assert socket.inet_aton(by_route)


def test_workers_reach_the_host_at_the_address(make: Callable[..., Bench]) -> None:
    bench = make(max_workers_per_node=1, address={"type": "address_by_interface", "ifname": "lo"})
    assert bench.value(bench.submit(echo, 1), timeout_s=60) == 1
    assert "--addresses=127.0.0.1" in arguments(bench)


@pytest.mark.parametrize(
    "options",
    [
        {"job_status_kwargs": {"max_idletime": 0.5, "strategy_period": 0.2}},
        {"strategy": {"type": "SimpleStrategy", "max_idletime": 0.5}, "job_status_kwargs": {"strategy_period": 0.2}},
        {"strategy": "htex_auto_scale", "job_status_kwargs": {"max_idletime": 0.5, "strategy_period": 0.2}},
    ],
)
def test_idle_blocks_are_given_back(make: Callable[..., Bench], options: dict[str, Any]) -> None:
    bench = make(max_workers_per_node=1, provider={"type": "LocalProvider", "min_blocks": 0}, **options)
    assert bench.value(bench.submit(echo, 1), timeout_s=60) == 1
    bench.until(lambda: not bench.blocks(), timeout_s=60)


def test_no_busy_block_is_given_back(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(
        max_workers_per_node=1,
        provider={"type": "LocalProvider", "min_blocks": 0, "init_blocks": 2, "max_blocks": 2},
        strategy="htex_auto_scale",
        job_status_kwargs={"max_idletime": 0.5, "strategy_period": 0.2},
    )
    row = bench.submit(note, str(tmp_path / "ran"), 300.0)
    bench.until(lambda: row in bench.started and len(bench.blocks()) == 1, timeout_s=60)
    deadline = time.monotonic() + 2.0
    bench.until(lambda: time.monotonic() > deadline)
    assert len(bench.blocks()) == 1
    assert row not in bench.ended
    assert len((tmp_path / "ran").read_text().splitlines()) == 1
    bench.engine.cancel([row])
    bench.wait(row)


def test_blocks_stay_with_strategy_none(make: Callable[..., Bench]) -> None:
    bench = make(
        max_workers_per_node=1,
        provider={"type": "LocalProvider", "min_blocks": 0, "init_blocks": 1},
        strategy="none",
        job_status_kwargs={"max_idletime": 0.1, "strategy_period": 0.1},
    )
    assert bench.value(bench.submit(echo, 1), timeout_s=60) == 1
    deadline = time.monotonic() + 2.0
    bench.until(lambda: time.monotonic() > deadline)
    assert len(bench.blocks()) == 1


def test_prefetch(make: Callable[..., Bench], tmp_path: Path) -> None:
    """With none, a task that waits goes to whichever node is free first; with some, a node holds it already."""
    for prefetch in (0, 2):
        bench = make(max_workers_per_node=1, prefetch_capacity=prefetch)
        assert bench.value(bench.submit(echo, 1), timeout_s=60) == 1
        assert f"--prefetch_capacity={prefetch}" in arguments(bench)
        rows = [bench.submit(note, str(tmp_path / "ran"), 0.2) for _ in range(3)]
        assert not any(item.code for item in bench.wait(*rows, timeout_s=60))


def test_the_oldest_blocks_fill_first(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(
        max_workers_per_node=1,
        prefetch_capacity=0,
        manager_selector={"type": "BlockIdManagerSelector"},
        provider={"type": "LocalProvider", "init_blocks": 2, "min_blocks": 2, "max_blocks": 2},
    )
    rows = [bench.submit(stay_and_tell, str(tmp_path / name), str(tmp_path / other)) for name, other in ("ab", "ba")]
    seen = [bench.value(row, timeout_s=60) for row in rows]  # both are up
    assert sorted(each["PARSL_WORKER_BLOCK_ID"] for each in seen) == ["0", "1"]
    for _ in range(12):
        assert bench.value(bench.submit(variables), timeout_s=60)["PARSL_WORKER_BLOCK_ID"] == "0"


def test_tasks_wait_on_where_failed_blocks_are_not_to_fail_them(make: Callable[..., Bench]) -> None:
    provider = {"type": "LocalProvider", "init_blocks": 0, "worker_init": "exit 7"}
    failing, waiting = make(provider=provider), make(provider=provider, block_error_handler=False)
    row = waiting.submit(echo, 1)
    (item,) = failing.wait(failing.submit(echo, 1), timeout_s=60)
    assert item.code == "ENGINE_FAILED"
    deadline = time.monotonic() + 3.0
    waiting.until(lambda: time.monotonic() > deadline)
    assert row not in waiting.ended


def test_limits_of_a_node(make: Callable[..., Bench]) -> None:
    count = len(os.sched_getaffinity(0))
    for options, workers in (
        ({"cores_per_worker": count / 4}, "4"),
        ({"max_workers_per_node": 3, "cores_per_worker": 0.1}, "3"),
        ({"available_accelerators": 2, "cores_per_worker": 0.1}, "2"),
        ({"mem_per_worker": 100_000.0}, "1"),
    ):
        bench = make(**options)
        assert bench.value(bench.submit(variables), timeout_s=60)["PARSL_WORKER_COUNT"] == workers
        bench.engine.stop(2.0)
        bench.engine.stop = lambda grace_s: None  # type: ignore[method-assign]


def test_each_worker_has_its_own_accelerator_and_processors(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(available_accelerators=["gpu:a", "gpu:b"], cores_per_worker=0.1, cpu_affinity="list:0:0")
    rows = [bench.submit(stay_and_tell, str(tmp_path / name), str(tmp_path / other)) for name, other in ("ab", "ba")]
    seen = [bench.value(row, timeout_s=60) for row in rows]
    assert sorted(each["ROCR_VISIBLE_DEVICES"] for each in seen) == ["gpu:a", "gpu:b"]
    assert {each["OMP_NUM_THREADS"] for each in seen} == {"1"}


def stay_and_tell(mark: str, other: str) -> dict[str, str]:
    import os
    import time

    with open(mark, "w"):
        pass
    while not os.path.exists(other):  # both run at once
        time.sleep(0.01)
    return dict(os.environ)


def test_most_tasks_in_an_mpi_block() -> None:
    engine = GlobusMPISettings(max_workers_per_block=3, provider={"type": "LocalProvider", "max_blocks": 2})
    assert Plan(engine).expected_slots(engine) == 6
