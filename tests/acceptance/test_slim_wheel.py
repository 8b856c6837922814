"""The wheel mep-sdk, built and installed into an environment of its own, and tasks that run in that environment."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_engines import Bench, place
from user_endpoint.engines import make_engine
from user_endpoint.settings import EngineSettings, GlobusComputeSettings, ProcessPoolSettings

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "packaging" / "constraints.txt"


def whereabouts() -> dict[str, Any]:
    import sys
    from importlib import util

    import cloudpickle
    import msgspec

    import mep_sdk

    return {
        "prefix": sys.prefix,
        "cloudpickle": cloudpickle.__file__,
        "msgspec": msgspec.__file__,
        "runner": mep_sdk.__file__,
        "parsl": util.find_spec("parsl") is not None,
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [f"{sys.prefix}-build/bin/python", str(ROOT / "packaging" / "sdk_wheel.py"), "--out", str(out)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def environment(made: Path, *options: str) -> Path:
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    subprocess.run([base, "-m", "venv", *options, made], check=True)
    return made


@pytest.fixture(scope="module")
def slim(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = environment(tmp_path_factory.mktemp("slim") / "env")
    words = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", CONSTRAINTS, f"{wheel}[worker]"]
    subprocess.run([made / "bin" / "python", "-I", *words], check=True)
    return made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("bare") / "env", "--without-pip")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[EngineSettings], dict[str, Any]]]:
    engines = []

    def run_in(settings: EngineSettings) -> dict[str, Any]:
        engine = make_engine(settings, place(tmp_path))
        engines.append(engine)
        engine.start()
        bench = Bench(engine)
        row = bench.submit(whereabouts)
        bench.wait(row, timeout_s=60)
        found = bench.value(row)
        assert isinstance(found, dict)
        return found

    yield run_in
    for engine in engines:
        engine.stop(2.0)


def engine_in(kind: str, env: Path) -> EngineSettings:
    activate = f"source {env}/bin/activate"
    return {
        "process, python": lambda: ProcessPoolSettings(max_workers=1, python=str(env / "bin/python")),
        "process, worker_init": lambda: ProcessPoolSettings(max_workers=1, worker_init=activate),
        "blocks": lambda: GlobusComputeSettings(max_workers_per_node=1, worker_init=activate),
    }[kind]()


KINDS = ["process, python", "process, worker_init", "blocks"]


def test_it_holds_the_sdk_and_little_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        text = archive.read(metadata).decode()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mep_link", "mep_sdk", "mep_wire"}
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    extras: dict[str, list[str]] = {}
    for line in needed:
        name, _, extra = line.removeprefix("Requires-Dist: ").partition(";")
        extras.setdefault(extra.strip(), []).append(re.split("[<>=]", name)[0].lower())
    assert extras == {
        "": ["cloudpickle", "msgspec", "urllib3", "websockets"],
        'python_version < "3.11"': ["exceptiongroup", "tomli"],
        'extra == "worker"': ["pyzmq"],
        'extra == "socks"': ["pysocks", "python-socks"],
    }


def test_it_has_a_readme_a_licence_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Description-Content-Type: text/markdown" in text
    assert "pip install mep-sdk" in text
    assert any(name.endswith("/LICENSE") for name in names)
    assert {"mep_sdk/py.typed", "mep_wire/py.typed"} <= set(names)


def test_a_script_needs_no_more(slim: Path) -> None:
    code = "from mep_sdk import Client, Executor, ShellFunction, MPIFunction; print(Executor, Client)"
    subprocess.run([slim / "bin" / "python", "-I", "-c", code], check=True, capture_output=True)


def test_its_import_brings_nothing_that_only_a_connection_needs(slim: Path) -> None:
    heavy = ("asyncio", "email", "http", "ssl", "tomllib", "urllib.request", "urllib3", "websockets")
    code = (
        f"import sys; from mep_sdk import Client, Executor; print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([slim / "bin" / "python", "-I", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_run_where_only_that_is_installed(
    slim: Path, run: Callable[[EngineSettings], dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    found = run(engine_in(kind, slim))
    assert found["prefix"] == str(slim)
    assert found["msgspec"].startswith(str(slim))
    assert found["cloudpickle"].startswith(str(slim))
    assert found["runner"].startswith(str(tmp_path)), "the endpoint's own version, whatever is installed there"
    assert not found["parsl"]


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_run_where_nothing_is_installed(
    bare: Path, run: Callable[[EngineSettings], dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    found = run(engine_in(kind, bare))
    assert found["prefix"] == str(bare)
    for name in ("msgspec", "cloudpickle", "runner"):
        assert found[name].startswith(f"{tmp_path}/runner/")
    assert not found["parsl"]
