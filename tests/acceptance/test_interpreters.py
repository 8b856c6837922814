"""The SDK's wheel on every Python from 3.10 that this host has, against an endpoint with the service's own.

Other systems than Linux are checked by mypy alone, without the modules that only workers use: those are on Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_endpoint import FakeEndpoint
from tests.support.relay import RelayProcess

ROOT = Path(__file__).resolve().parents[2]
MYPY = Path(f"{sys.prefix}-tests", "bin", "mypy")
OF_WORKERS = {"hardware_report", "process_limits", "shell"}
OLDEST, NEWEST = 10, 20
SCRIPT = """
import asyncio
import functools
import sys
from mep_sdk import Client, Executor, ShellFunction
from mep_sdk.serialize import AllowlistWildcard

FACTOR = 2

def double(number, extra=0):
    return FACTOR * number + extra

def fail(kind):
    if kind == "group":
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    raise ZeroDivisionError(kind)

@functools.lru_cache
def remembered(number):
    return number + 1

CARRIED_CODE
async def wait_for(executor):
    return await executor.asubmit(double, 5)

with Executor("ENDPOINT_ID") as executor:
    print(executor.submit(takes, Savings(1), Pair(2, 3), Named(4)).result(60))
    print(executor.submit(double, 3, extra=1).result(60), sum(executor.map(double, range(100))))
    for kind in ("group", "plain"):
        error = executor.submit(fail, kind).exception(60)
        print(type(error).__name__, [type(each).__name__ for each in getattr(error, "exceptions", ())])
    print(executor.submit(ShellFunction("echo {word}"), word="a b").result(60).stdout.strip())
    print(asyncio.run(wait_for(executor)), executor.stats()["succeeded"])
    print(executor.submit(remembered, 1).result(60))
    print([executor.submit(fn, *args).result(60) for fn, args in CARRIED])
    error = executor.submit(spoils, 4).exception(60)
    print(type(error) is Spoiled, error.code, error, executor.submit(gives, 3).result(60).total(1))
print(f"{AllowlistWildcard.CODE}", executor.client)
"""
CARRIED = """
import collections
import dataclasses
import math
import typing

Pair = collections.namedtuple("Pair", "first second")

class Named(typing.NamedTuple):
    first: int
    second: typing.Optional["int"] = 5
    def total(self):
        return self.first + self.second

class Spoiled(Exception):
    def __init__(self, code, *, why):
        super().__init__(f"{code}: {why}")
        self.code = code

class Account:
    __fee = 3
    def __init__(self, value):
        self.__value = value
    def total(self, more):
        return self.__value + more + self.__fee

class Savings(Account):
    def total(self, more):
        return 100 + super().total(more)

@dataclasses.dataclass(order=True)
class Point:
    x: int
    notes: list = dataclasses.field(default_factory=list)

def thrice(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return 3 * function(*args, **kwargs)
    return inner

@thrice
def decorated(x, y=1):
    return math.floor(x + y)

def adds(n):
    return lambda x: x + n

def spoils(code):
    raise Spoiled(code, why="so")

def gives(value):
    return Savings(value)

def compares(x):
    return Point(x) < Point(x + 1), repr(Point(x))

def takes(savings, pair, named):
    return savings.total(1), pair._replace(first=0)._asdict(), named.total(), repr(named)

two = (lambda x: x + 1, lambda x: x + 2)
CARRIED = [
    (two[0], (1,)), (two[1], (1,)), (adds(5), (1,)), (decorated, (1.5,)), (functools.partial(decorated, y=2), (1,)),
    (functools.partial(adds(1), 4), ()), (compares, (1,)), (Savings(1).total, (2,)),
    (takes, (Savings(1), Pair(2, 3), Named(4))),
]
"""
SCRIPT = SCRIPT.replace("CARRIED_CODE", CARRIED)
TAKES_SAYS = "(105, {'first': 0, 'second': 3}, 9, 'Named(first=4, second=5)')"
CARRIED_SAYS = f"[2, 3, 6, 6, 9, 5, (True, 'Point(x=1, notes=[])'), 106, {TAKES_SAYS}]"
WORKER = """
import sys
from mep_sdk.task_runner import run_task
for line in sys.stdin:
    outcome = run_task(*map(bytes.fromhex, line.split()), max_result_bytes=1 << 20)
    print(outcome.code or "-", outcome.payload.hex() or "-", outcome.text)
"""
HERE = f"""
import functools
import subprocess
import sys
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function
{CARRIED}
calls = [*CARRIED, (gives, (3,)), (spoils, (4,))]
given = [f"{{serialize_function(fn).hex()}} {{serialize_arguments(args, {{}}).hex()}}" for fn, args in calls]
ran = subprocess.run([sys.argv[1], "-c", sys.argv[2]], input="\\n".join(given), capture_output=True, text=True)
assert ran.returncode == 0, ran.stderr
outcomes = [line.split(" ", 2) for line in ran.stdout.splitlines()]
values = [load_result(bytes.fromhex(payload)) if code == "-" else text for code, payload, text in outcomes]
print(values[:len(CARRIED)])
error = load_exception(bytes.fromhex(outcomes[-1][1]))
print(type(error) is Spoiled, error.code, error, values[-2].total(1))
"""
SAYS = [
    *(TAKES_SAYS, "7 9900", "ExceptionGroup ['ValueError', 'KeyError']", "ZeroDivisionError []", "a b", "10 104", "2"),
    *(CARRIED_SAYS, "True 4 4: so 107"),
]


def interpreters() -> dict[str, str]:
    """Return this host's Pythons by their versions: those on PATH, and those of pyenv."""
    names = [f"python3.{minor}" for minor in range(OLDEST, NEWEST)]
    found = [path for name in names if (path := shutil.which(name)) and "shims" not in path]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += [str(path) for path in root.glob("versions/3.*/bin/python")]
    known: dict[str, str] = {}
    for path in found:
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        ran = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False)
        version = ran.stdout.strip()
        if ran.returncode == 0 and int(version.partition(".")[2]) >= OLDEST:
            known.setdefault(version, path)
    return dict(sorted(known.items()))


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [f"{sys.prefix}-build/bin/python", str(ROOT / "packaging" / "sdk_wheel.py"), "--out", str(out)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An endpoint's id, and a home directory with the settings for it."""
    home = tmp_path_factory.mktemp("home")
    with RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        token = relay.add_user("ada@example.edu")
        settings = home / ".mep" / "client.toml"
        settings.parent.mkdir()
        settings.write_text(f'relay_url = "{relay.url}"\ntoken = "{token}"\n')
        settings.chmod(0o600)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEP_TEST_WORKER_PYTHON", sys.version.split()[0])
            endpoint = FakeEndpoint(relay, token)
        with endpoint:
            yield endpoint.endpoint_id, home


def test_the_services_own_python_is_among_them() -> None:
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in INTERPRETERS


@pytest.fixture(scope="module", params=INTERPRETERS)
def python(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel."""
    made = tmp_path_factory.mktemp("env")
    subprocess.run([INTERPRETERS[request.param], "-m", "venv", made], check=True)
    words = ["-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run([made / "bin" / "python", "-I", *words], check=True, capture_output=True)
    return made / "bin" / "python"


def test_the_wheel_runs(python: Path, site: tuple[str, Path], tmp_path: Path) -> None:
    endpoint_id, home = site
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("ENDPOINT_ID", endpoint_id))
    command = [python, "-X", "dev", script]
    ran = subprocess.run(
        command,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[: len(SAYS)] == SAYS
    assert ran.stdout.splitlines()[-1].startswith("globus_compute_sdk.*Code Client<http://")
    assert "ResourceWarning" not in ran.stderr


def test_workers_of_the_wheel_run_functions_of_another_python(python: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HERE)
    command = [sys.executable, script, python, WORKER]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == SAYS[-2:]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_fit_on_other_systems(tmp_path: Path, platform: str) -> None:
    words = ["--no-error-summary", "--platform", platform, "--cache-dir", tmp_path, "mep_sdk", "mep_wire"]
    ran = subprocess.run([MYPY, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    wrong = [line for line in ran.stdout.splitlines() if Path(line.partition(":")[0]).stem not in OF_WORKERS]
    assert not wrong, "\n".join(wrong)
    assert not ran.stderr
