"""Scripts written for Globus Compute run on a real site: with the import lines as the only change, and by the drop-in
package with none.

They are the samples of its tutorials and talks. Ids and directories are filled in, as their text asks for; what the
slides lack to be Python, or to be of 4.x, is added. UCX needs hardware, so ProxyStore's sample uses files. The notebook
of molecular design is in test_notebooks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sitekit.endpoint import SCHEMA

from tests.support.campus import Campus, make_campus
from tests.support.science import PYTHON, environment

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).with_name("peer_samples")
NODES = ("localhost", "127.0.0.1")
TEMPLATE = f"""\
heartbeat_period: 5
engine:
  type: ProcessPoolEngine
  max_workers: 2
  python: {PYTHON}
  worker_init: export ALLOCATION={{{{ ACCOUNT_ID | default("none") | shell_escape }}}}
"""
MPI_TEMPLATE = f"""\
heartbeat_period: 5
engine:
  type: GlobusMPIEngine
  mpi_launcher: mpiexec
  max_workers_per_block: 2
  provider:
    type: LocalProvider
    init_blocks: 0
    max_blocks: 1
    worker_init: |
      export PBS_NODEFILE="$HOME/nodes"
      printf '%s\\n' {" ".join(NODES)} > "$PBS_NODEFILE"
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {
        "NODES_PER_BLOCK": {"type": "integer"},
        "ACCOUNT_ID": {"type": "string"},
        "WALLTIME": {"type": "string"},
    },
    "additionalProperties": False,
}
SAYS = {
    "hello_world": ["Hello World"],
    "shell_function": ["hello\n", "hola\n", "bonjour\n"],
    "shell_walltime": ["124"],
    "user_endpoint_config": ["Hello 314159265"],
    "proxystore": ["20000000"],
    "hello_name": ["TaskFuture", "Hello, you!"],
    "pi": ["3.1"],
    "process_image": ["(200, 150) (200, 150)"],
    "0_remote_adder": ["15"],
    "1_register_function": ["Registered hello_affinity; id "],
    "2_call_registered_function": ["(0, '", "Affinity Reported!", "'status': 'success'"],
    "parsl_join_app": ["<FIRST>", "<SECOND>"],
}
IMPORT = re.compile(r"^(\s*(?:from|import) )globus_compute_sdk\b(.*)$", re.MULTILINE)


def with_the_import_changed(text: str) -> str:
    """Return a script with import lines that name mep_sdk: `import globus_compute_sdk` keeps the name that it binds."""
    bound = re.sub(r"^import globus_compute_sdk$", "import mep_sdk as globus_compute_sdk", text, flags=re.MULTILINE)
    return IMPORT.sub(r"\1mep_sdk\2", bound)


def wheel(out: Path, *options: str) -> Path:
    command = [f"{sys.prefix}-build/bin/python", str(ROOT / "packaging" / "sdk_wheel.py"), "--out", str(out), *options]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def drop_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel's content, as pip --target makes it."""
    place = tmp_path_factory.mktemp("drop-in")
    with zipfile.ZipFile(wheel(place / "wheels", "--drop-in")) as archive:
        archive.extractall(place / "packages")
    return place / "packages"


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    with make_campus("single", "samples", TEMPLATE) as made:
        made.endpoint.write(SCHEMA, SCHEMA_VALUE)
        made.endpoint.register_again()
        made.endpoint.start()
        workplace = Path(made.site.workplace)
        (workplace / "experiments").mkdir()
        for name in ("first", "second"):
            (workplace / "experiments" / name).write_text(f"  {name}\n")
        draw = f"from PIL import Image; Image.new('RGB', (400, 300)).save({str(workplace / 'image.png')!r})"
        subprocess.run([PYTHON, "-c", draw], check=True)
        os.chmod(workplace, 0o777)  # the person's script is another account's here
        yield made


@pytest.fixture(scope="module")
def function(campus: Campus) -> str:
    """The id that 1_register_function prints, for the script that calls the function."""

    def where(run_directory: str) -> tuple[int, str, str]:
        return 0, run_directory, ""

    return campus.client(campus.anybody).register_function(where)


def run(text: str, campus: Campus, home: Path, packages: Path | None = None) -> str:
    """Run a script as a person would; return its output."""
    workplace = Path(campus.site.workplace)
    script = home / "script.py"
    script.write_text(text.replace("ENDPOINT_ID", campus.endpoint.id).replace("DIRECTORY", str(workplace)))
    env = environment(campus, home) | ({"PYTHONPATH": str(packages)} if packages else {})
    done = subprocess.run(
        [PYTHON, script], env=env, capture_output=True, text=True, check=False, cwd=home, timeout=110, umask=0
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_each_sample_has_an_expectation() -> None:
    assert {each.stem for each in SAMPLES.iterdir()} == {*SAYS, "mpi_function"}


@pytest.mark.parametrize("changed", [True, False], ids=["import changed", "drop-in"])
@pytest.mark.parametrize("name", SAYS)
def test_the_sample_runs(
    campus: Campus, drop_in: Path, function: str, tmp_path: Path, name: str, changed: bool
) -> None:
    text = (SAMPLES / f"{name}.py").read_text().replace("FUNCTION_ID", function)
    said = run(with_the_import_changed(text) if changed else text, campus, tmp_path, None if changed else drop_in)
    assert not [each for each in SAYS[name] if each not in said], said


@pytest.mark.root
@pytest.mark.parametrize("changed", [True, False], ids=["import changed", "drop-in"])
def test_the_mpi_sample_runs(mpi_campus: Campus, drop_in: Path, tmp_path: Path, changed: bool) -> None:
    text = (SAMPLES / "mpi_function.py").read_text()
    said = run(with_the_import_changed(text) if changed else text, mpi_campus, tmp_path, None if changed else drop_in)
    name = os.uname().nodename
    assert said.split("Ranks per node: ")[1:] == [f"1\n{name}\n{name}\n\n", f"2\n{name}\n{name}\n{name}\n{name}\n\n"]


@pytest.fixture(scope="module")
def mpi_campus() -> Iterator[Campus]:
    with make_campus("multi", "mpi", MPI_TEMPLATE) as made:
        made.endpoint.write(SCHEMA, {"type": "object", "additionalProperties": False})
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def test_parsls_own_executor_for_globus_compute_takes_it(campus: Campus, drop_in: Path, tmp_path: Path) -> None:
    text = """
from globus_compute_sdk import Executor
import parsl
from parsl.executors import GlobusComputeExecutor

@parsl.python_app
def double(number):
    return 2 * number

with Executor("ENDPOINT_ID") as gce, parsl.load(parsl.Config(executors=[GlobusComputeExecutor(executor=gce)])):
    print(double(double(21)).result())
"""
    assert run(text, campus, tmp_path, drop_in) == "84\n"


def test_values_fill_commands_as_they_do_there(campus: Campus, drop_in: Path, tmp_path: Path) -> None:
    """Unquoted, unless it is asked for. Workers need not have the drop-in package."""
    text = """
from globus_compute_sdk import Executor, ShellFunction
from globus_compute_sdk.sdk.executor import ComputeFuture

plain, quoted = ShellFunction("echo {words}"), ShellFunction("echo {words}", quote=True)
assert isinstance(plain, ShellFunction)
with Executor("ENDPOINT_ID") as gce:
    futures = [gce.submit(each, words="$((1 + 2))  'x'") for each in (plain, quoted)]
    assert all(isinstance(each, ComputeFuture) for each in futures)
    print([each.result().stdout for each in futures])
"""
    assert run(text, campus, tmp_path, drop_in) == """['3 x\\n', "$((1 + 2))  'x'\\n"]\n"""


def test_a_script_catches_what_a_task_raises_as_it_does_there(campus: Campus, drop_in: Path, tmp_path: Path) -> None:
    """And as what it is."""
    text = """
import pickle, sys, traceback
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed

class Spoiled(Exception):
    def __init__(self, code, *, why):
        super().__init__(f"{code}: {why}")
        self.code = code

def spoils(code):
    raise Spoiled(code, why="so")

def is_missing():
    open("/no/such/file")

def is_deep():
    try:
        spoils(1)
    except Spoiled as error:
        raise RuntimeError("deep") from error

with Executor("ENDPOINT_ID") as gce:
    for function, args in ((spoils, (4,)), (is_missing, ()), (sys.exit, (3,))):
        try:
            gce.submit(function, *args).result()
        except TaskExecutionFailed as error:
            print(type(error).__name__, isinstance(error, Exception), "Traceback" in error.remote_data, end=" ")
            print(float(error.completion_t) > 0, getattr(error, "code", None), getattr(error, "filename", None))
    error = gce.submit(spoils, 5).exception()
    again = pickle.loads(pickle.dumps(error))
    print(isinstance(error, Spoiled), isinstance(again, Spoiled), isinstance(again, TaskExecutionFailed), again.code)
    deep = gce.submit(is_deep).exception()
    told = "".join(traceback.format_exception(deep))
    print('raise Spoiled(code, why="so")' in told, 'raise RuntimeError("deep") from error' in told)

gcc = Client()
task_id = gcc.run(6, endpoint_id="ENDPOINT_ID", function_id=gcc.register_function(spoils))
for read in (gcc.get_task, gcc.get_result):
    while True:
        try:
            if not gcc.get_batch_result([task_id])[task_id]["pending"]:
                read(task_id)
        except TaskExecutionFailed as error:
            print(type(error).__name__, error.code)
            break
print(float(gcc.get_batch_result([task_id])[task_id]["completion_t"]) > 1.7e9)
"""
    assert run(text, campus, tmp_path, drop_in).splitlines() == [
        "Spoiled True True True 4 None",
        "FileNotFoundError True True True None /no/such/file",
        "RemoteError True False True REMOTE_ERROR None",
        "True True True 5",
        "True True",
        "Spoiled 6",
        "Spoiled 6",
        "True",
    ]


def test_a_scripts_own_kind_of_shell_function_travels(campus: Campus, drop_in: Path, tmp_path: Path) -> None:
    text = """
from globus_compute_sdk import Executor, MPIFunction, ShellFunction

class Loud(ShellFunction):
    def __call__(self, **values):
        return super().__call__(**values).stdout.upper()

class Said(MPIFunction):
    def __call__(self, **values):
        return self.cmd

with Executor("ENDPOINT_ID") as gce:
    print(gce.submit(Loud("echo {word} {word}"), word="a'b'").result(), gce.submit(Said("hostname")).result())
"""
    assert run(text, campus, tmp_path, drop_in) == "AB AB\n hostname\n"


def test_it_is_refused_beside_the_sdk_of_that_name(drop_in: Path, tmp_path: Path) -> None:
    other = tmp_path / "globus_compute_sdk-4.19.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: globus-compute-sdk\nVersion: 4.19.0\n")
    code = "import globus_compute_sdk"
    env = {"PYTHONPATH": f"{drop_in}:{tmp_path}"}
    done = subprocess.run([PYTHON, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "globus-compute-sdk 4.19.0" in done.stderr
    assert "pip uninstall globus-compute-sdk mep-globus-compute" in done.stderr


def test_every_public_name_is_there(drop_in: Path) -> None:
    """By the list of the package's own names, and in the modules that scripts also import them from."""
    listed = json.loads((ROOT / "docs" / "globus_compute_api.json").read_text())["modules"]
    names = {module: sorted(found) for module, found in listed.items()}
    names |= {"globus_compute_sdk.errors.error_types": names["globus_compute_sdk.errors"]}
    names |= {"globus_compute_sdk.serialize.facade": ["ComputeSerializer"]}
    names |= {f"globus_compute_sdk.sdk.{each.lower()}": [each] for each in ("Client", "Executor", "Batch")}
    names |= {"globus_compute_sdk.sdk.shell_function": ["ShellFunction", "ShellResult"]}
    names |= {"globus_compute_sdk.sdk.mpi_function": ["MPIFunction"], "globus_compute_sdk.version": ["__version__"]}
    lines = [f"from {module} import {', '.join(found)}" for module, found in names.items()]
    done = subprocess.run(
        [PYTHON, "-W", "error", "-c", "\n".join(lines)],
        env={"PYTHONPATH": str(drop_in)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_needs_the_sdk_of_its_version_and_has_a_readme_and_types(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel(tmp_path, "--drop-in")) as archive:
        names = archive.namelist()
        text = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    version = re.findall(r"^Version: (.*)$", text, re.MULTILINE)[0]
    assert f"Requires-Dist: mep-sdk=={version}" in text
    assert "License-Expression: Apache-2.0" in text
    assert "can't be installed beside" in text
    assert "globus_compute_sdk/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"globus_compute_sdk", "mep_globus_compute"}
