"""`make demo`, to its end and interrupted: its output is right, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sitekit import accounts

ROOT = Path(__file__).resolve().parents[2]


def _start() -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "demo"), "PYTHONUNBUFFERED": "1"}
    demo = [sys.executable, str(ROOT / "demo" / "demo.py")]
    return subprocess.Popen(demo, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _left(pid: int) -> list[str]:
    places = [str(path) for path in Path(tempfile.gettempdir()).glob(f"mepdemo-{pid}-*")]
    return places + [name for name in accounts.throwaway_names() if name.startswith(f"mepdemo-{pid}-")]


@pytest.mark.timeout(240)
def test_the_demo_runs_to_its_end() -> None:
    demo = _start()
    said, _ = demo.communicate()
    assert demo.returncode == 0, said
    people = ("alice", "bob") if os.geteuid() == 0 else (accounts.mine().name,)
    for person in people:
        assert f"{person}: uid " in said
    for words in ("add_func(5, 10) = 15", "pi is 3.1", "USER_CONFIG_INVALID", "What it took", "done, after"):
        assert words in said
    assert ("IDENTITY_NOT_MAPPED" if os.geteuid() == 0 else "ENDPOINT_FORBIDDEN") in said
    assert not _left(demo.pid)


def test_an_interrupted_demo_removes_what_it_made() -> None:
    demo = _start()
    assert demo.stdout is not None
    for line in demo.stdout:
        if "estimates pi" in line:
            break
    time.sleep(0.2)  # tasks are running
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "everything was stopped and removed" in said
    assert not _left(demo.pid)
