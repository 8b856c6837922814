"""A short slice of `make faults`: each of a few kinds of fault once, at a site of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "demo"


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.parametrize("only", ["user endpoint killed", "links cut", "relay killed", "endpoint's clock"])
def test_every_task_ends_as_its_effects_allow(only: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "__main__.py"), "--rounds", "1", "--seconds", "240", "--only", only, "--json"],
        env=os.environ | {"PYTHONPATH": str(DEMO)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert not found["broken"]
    assert found["ends"]["success"]


def test_the_oracle_knows_each_broken_rule() -> None:
    program = """
import collections, sys
sys.path.insert(0, sys.argv[1])
from concurrent.futures import Future
from work import Submitted, _wrong
class Ended(Exception):
    code = "START_FAILED"
def task(result=None, error=None, attempts=1, done=True):
    future = Future()
    if error is not None:
        future.set_exception(error)
    elif done:
        future.set_result(result)
    return Submitted(3, attempts, future)
print([bool(_wrong(*one)) for one in [
    (task(10), "", 1), (task(10), "", 2), (task(11), "", 1), (task(10), "", 0), (task(10, attempts=3), "", 3),
    (task(error=Ended()), "START_FAILED", 0), (task(error=Ended()), "START_FAILED", 1),
    (task(error=Ended()), "WORKER_LOST", 1), (task(done=False), "NO_END", 0),
]])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["[False,", "True,", "True,", "True,", "False,", "False,", "True,", "False,", "True]"]


def test_a_slope_comes_with_its_error() -> None:
    program = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]; sys.path.append(sys.argv[3]); from soak import slope; "
        "print(slope([0, 1, 2, 3], [1, 3, 5, 7]), slope([0, 1, 2, 3], [0, 1, 0, 1]))"
    )
    paths = [str(HERE), str(DEMO), str(HERE.parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "(2.0, 0.0) (0.2, 0.282842712474619)"


def test_stray_files_are_found(tmp_path: Path) -> None:
    program = """
import os, socket, sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = [sys.argv[1], sys.argv[2]]
sys.path.append(sys.argv[3])
import campus
top = Path(sys.argv[4])
for name in ("shm", "site/home", "site/effects", "site/run"):
    (top / name).mkdir(parents=True)
for name in ("shm/left", "site/home/kept", "site/home/half.tmp", "site/effects/1", "site/run/left"):
    (top / name).touch()
socket.socket(socket.AF_UNIX).bind(str(top / "site/home/s"))
campus.STRAY = (str(top / "shm"),)
account = SimpleNamespace(uid=os.getuid(), home=top / "site/home", name="me")
site = SimpleNamespace(root=top / "site")
found = campus.Campus(site, None, account, None, None, None, None)._files_left()
print(*sorted(str(file.relative_to(top)) for file in found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE), str(DEMO), str(HERE.parents[1]), str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["shm/left", "site/home/half.tmp", "site/home/s", "site/run", "site/run/left"]
