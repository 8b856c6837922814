"""The process engine with the person's own Python and shell commands: nothing of MEP is installed there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import EngineFailed
from tests.contract.test_engines import Bench, place
from user_endpoint.engines import make_engine
from user_endpoint.settings import ProcessPoolSettings
from user_endpoint.worker_staging import stage, unstage


def about() -> tuple[str, str | None]:
    import os
    import sys

    return sys.prefix, os.environ.get("SET_BY_INIT")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own") / "env"
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    subprocess.run([base, "-m", "venv", "--without-pip", made], check=True)
    return made


def value(tmp_path: Path, **options: Any) -> object:
    engine = make_engine(ProcessPoolSettings(max_workers=1, **options), place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        return bench.value(bench.submit(about))
    finally:
        engine.stop(2.0)


def test_another_python_runs_the_tasks(bare: Path, tmp_path: Path) -> None:
    assert value(tmp_path, python=str(bare / "bin/python")) == (str(bare), None)


def test_worker_init_chooses_the_environment(bare: Path, tmp_path: Path) -> None:
    init = f"source {bare}/bin/activate\nexport SET_BY_INIT=yes"
    assert value(tmp_path, worker_init=init) == (str(bare), "yes")


def test_worker_init_alone_keeps_the_endpoints_python(tmp_path: Path) -> None:
    assert value(tmp_path, worker_init="export SET_BY_INIT='it is'") == (sys.prefix, "it is")


def test_what_worker_init_complained_of_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert value(tmp_path, worker_init="no-such-module load x; export SET_BY_INIT=on") == (sys.prefix, "on")
    assert "worker_init: " in (said := capfd.readouterr().err)
    assert "no-such-module: command not found" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"python": "/nowhere/python"}, "/nowhere/python: No such file"),
        ({"worker_init": "echo no such module >&2; exit 3"}, "no such module\nworker_init: exit status 3"),
        ({"worker_init": "exit 3"}, "worker_init: exit status 3"),
        ({"worker_init": "set -e; false; true"}, "worker_init: exit status 1"),
        ({"worker_init": "source /nosuch/bin/activate"}, "No such file or directory\n.*activated no environment"),
        ({"worker_init": "conda activate none\nexport A=1"}, "conda: command not found\n.*activated no environment"),
        ({"worker_init": "export VIRTUAL_ENV=/nosuch"}, "an environment without a Python: /nosuch/bin/python"),
    ],
)
def test_what_is_wrong_with_it_is_said(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    engine = make_engine(ProcessPoolSettings(**options), place(tmp_path))
    with pytest.raises(EngineFailed, match=reason):
        engine.start()
    engine.stop(1.0)


@pytest.mark.parametrize(
    "init",
    ["[ -d /none ] && source /none/bin/activate; :", "false", "trap 'echo x' EXIT", "set -eu; IFS=x", "a=1 \\"],
)
def test_what_is_no_failure_starts(init: str, tmp_path: Path) -> None:
    assert value(tmp_path, worker_init=init) == (sys.prefix, None)


@pytest.mark.parametrize("program", ["workers/external_server.py", "engines/htex/worker_pool_main.py"])
def test_another_version_without_our_packages_is_told_both(tmp_path: Path, bare: Path, program: str) -> None:
    packages = Path(stage(str(tmp_path), copy=False))
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    packages.with_name(f"libraries-{own}").rename(packages.with_name("libraries-3.99"))
    command = [str(bare / "bin/python"), str(packages / "user_endpoint" / program), "3", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert f"is Python {own} and the endpoint's is 3.99: install mep-sdk[worker]" in answer.stderr


def test_tasks_find_nothing_of_the_endpoints(bare: Path, tmp_path: Path) -> None:
    engine = make_engine(ProcessPoolSettings(max_workers=1, python=str(bare / "bin/python")), place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        (item,) = bench.wait(bench.submit(imports_parsl))
        assert "No module named 'parsl'" in item.text
    finally:
        engine.stop(2.0)


def imports_parsl() -> None:
    import parsl  # noqa: F401


def test_what_is_staged_takes_the_place_of_what_is_there_and_goes(tmp_path: Path) -> None:
    for copy in (True, False):
        packages = Path(stage(str(tmp_path), copy=copy))
        assert sorted(path.name for path in packages.iterdir()) == ["mep_link", "mep_sdk", "mep_wire", "user_endpoint"]
        assert (packages / "mep_sdk").is_symlink() != copy
    unstage(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def whose() -> int:
    import os

    return os.getpid()


@pytest.mark.parametrize("most", [None, 1, 3])
def test_a_worker_is_replaced_after_so_many_tasks(tmp_path: Path, most: int | None) -> None:
    engine = make_engine(ProcessPoolSettings(max_workers=1, max_tasks_per_child=most), place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        rows = [bench.submit(whose) for _ in range(9)]
        bench.wait(*rows)
        pids = [bench.value(row) for row in rows]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == ([9] if most is None else [most] * (9 // most))
    finally:
        engine.stop(2.0)
