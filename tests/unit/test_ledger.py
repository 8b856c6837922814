"""What a killed run has left is cleared up by the next, and nothing of a run that goes on is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sitekit import accounts, ledger

DEMO = Path(__file__).resolve().parents[2] / "demo"
RUN = """
import subprocess, sys, time
from pathlib import Path
from sitekit.ledger import Ledger
ledger = Ledger()
ledger.path(Path(sys.argv[1]))
Path(sys.argv[1]).mkdir()
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
ledger.process(child.pid)
print(child.pid, flush=True)
time.sleep(600)
"""


def _run(directory: Path) -> tuple[subprocess.Popen[str], int]:
    argv = [sys.executable, "-c", RUN, str(directory)]
    process = subprocess.Popen(argv, env={"PYTHONPATH": str(DEMO)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_what_a_killed_run_left_is_cleared_up(tmp_path: Path) -> None:
    process, child = _run(tmp_path / "site")
    process.kill()
    process.wait()
    assert ledger.start_ticks(child) is not None
    assert any(str(process.pid) in line for line in ledger.sweep())
    assert ledger.start_ticks(child) is None
    assert not (tmp_path / "site").exists()


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    process, child = _run(tmp_path / "site")
    try:
        assert not any(str(process.pid) in line for line in ledger.sweep())
        assert ledger.start_ticks(child) is not None
        assert (tmp_path / "site").exists()
    finally:
        process.kill()
        process.wait()
        ledger.sweep()


def test_a_process_that_has_the_number_of_a_recorded_one_is_not_ended() -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        ticks = ledger.start_ticks(bystander.pid)
        assert ticks is not None
        ledger.end_processes([(bystander.pid, ticks - 1)])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("name", ["root", "alice", "meptest"])
def test_only_throwaway_accounts_are_ever_removed(name: str) -> None:
    with pytest.raises(ValueError, match="throw-away"):
        accounts.remove(name)
