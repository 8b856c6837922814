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

async def wait_for(executor):
    return await executor.asubmit(double, 5)

with Executor("ENDPOINT_ID") as executor:
    print(executor.submit(double, 3, extra=1).result(60), sum(executor.map(double, range(100))))
    for kind in ("group", "plain"):
        error = executor.submit(fail, kind).exception(60)
        print(type(error).__name__, [type(each).__name__ for each in getattr(error, "exceptions", ())])
    print(executor.submit(ShellFunction("echo {word}"), word="a b").result(60).stdout.strip())
    print(asyncio.run(wait_for(executor)), executor.stats()["succeeded"])
    if sys.version_info[:2] == tuple(map(int, "WORKERS".split("."))):
        print(executor.submit(remembered, 1).result(60))
print(f"{AllowlistWildcard.CODE}", executor.client)
"""
SAYS = ["7 9900", "ExceptionGroup ['ValueError', 'KeyError']", "ZeroDivisionError []", "a b", "10 103"]


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
        with FakeEndpoint(relay, token) as endpoint:
            yield endpoint.endpoint_id, home


def test_the_services_own_python_is_among_them() -> None:
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in INTERPRETERS


@pytest.mark.parametrize("version", INTERPRETERS)
def test_the_wheel_runs(wheel: Path, site: tuple[str, Path], tmp_path: Path, version: str) -> None:
    endpoint_id, home = site
    made, script = tmp_path / "env", tmp_path / "script.py"
    subprocess.run([INTERPRETERS[version], "-m", "venv", made], check=True)
    python = made / "bin" / "python"
    words = ["-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run([python, "-I", *words], check=True, capture_output=True)
    workers = f"{sys.version_info[0]}.{sys.version_info[1]}"
    script.write_text(SCRIPT.replace("ENDPOINT_ID", endpoint_id).replace("WORKERS", workers))
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


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_fit_on_other_systems(tmp_path: Path, platform: str) -> None:
    words = ["--no-error-summary", "--platform", platform, "--cache-dir", tmp_path, "mep_sdk", "mep_wire"]
    ran = subprocess.run([MYPY, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    wrong = [line for line in ran.stdout.splitlines() if Path(line.partition(":")[0]).stem not in OF_WORKERS]
    assert not wrong, "\n".join(wrong)
    assert not ran.stderr
