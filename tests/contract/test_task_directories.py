"""Where tasks run: working_dir, run_in_sandbox, and the variables that existing functions read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mep_wire.errors import EngineFailed
from tests.contract.test_engines import Bench, place
from user_endpoint.engines import make_engine
from user_endpoint.settings import EngineSettings, GlobusComputeSettings, ProcessPoolSettings


def where() -> tuple[str, str | None, str | None]:
    import os

    with open("left-behind", "w"):
        pass
    return os.getcwd(), os.environ.get("GC_TASK_SANDBOX_DIR"), os.environ.get("GC_TASK_UUID")


def inside() -> str | None:
    import os

    return os.environ.get("INSIDE")


def seen(settings: EngineSettings, tmp_path: Path) -> list[object]:
    engine = make_engine(settings, place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        return [bench.value(bench.submit(where)) for _ in range(2)]
    finally:
        engine.stop(2.0)


@pytest.mark.parametrize("kind", [ProcessPoolSettings, GlobusComputeSettings])
def test_each_task_has_a_directory_of_its_own(
    kind: type[ProcessPoolSettings | GlobusComputeSettings], tmp_path: Path
) -> None:
    base = tmp_path / "tasks_working_dir"
    expected = [(str(base / f"task-{n}"), str(base / f"task-{n}"), f"task-{n}") for n in (1, 2)]
    assert seen(kind(run_in_sandbox=True), tmp_path) == expected
    assert (base / "task-1" / "left-behind").exists()


@pytest.mark.parametrize("kind", [ProcessPoolSettings, GlobusComputeSettings])
def test_working_dir_without_sandbox(kind: type[ProcessPoolSettings | GlobusComputeSettings], tmp_path: Path) -> None:
    expected = [(str(tmp_path / "mine"), None, f"task-{n}") for n in (1, 2)]
    assert seen(kind(working_dir="mine"), tmp_path) == expected


def test_the_process_engine_runs_tasks_where_it_was_started_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert seen(ProcessPoolSettings(), tmp_path) == [(str(tmp_path), None, f"task-{n}") for n in (1, 2)]


def test_a_working_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineFailed, match="working_dir"):
        make_engine(ProcessPoolSettings(working_dir="file/below"), place(tmp_path))


def test_workers_run_inside_what_the_site_wraps_them_in(tmp_path: Path) -> None:
    bin_directory = Path(sys.executable).parent
    wrapped = f"env INSIDE={{EXECUTOR_RUNDIR}} PATH={bin_directory}:/usr/bin {{EXECUTOR_LAUNCH_CMD}}"
    engine = make_engine(GlobusComputeSettings(container_type="custom", container_cmd_options=wrapped), place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        assert bench.value(bench.submit(inside)) == str(tmp_path)
    finally:
        engine.stop(2.0)
