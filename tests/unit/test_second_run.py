"""`make test` runs a few failed tests again, alone: it may hide no test that fails, and no run that broke otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import second_run

PYTEST = [f"{sys.prefix}-tests/bin/pytest", "-q"]
ENVIRONMENT = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take seconds to load, and are not needed
FIRST_TIME = "import pathlib\nMARK = pathlib.Path(__file__).with_name('ran')\n"
UNSTEADY = "def test_unsteady():\n    ran, _ = MARK.exists(), MARK.touch()\n    assert ran\n"
BROKEN = "def test_broken():\n    assert False\n"
SOUND = "def test_sound():\n    pass\n"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (UNSTEADY + SOUND, 0, "UNSTEADY: 1 failed beside other tests and passed alone"),
        (BROKEN + SOUND, 1, "1 failed"),
        (UNSTEADY + BROKEN, 1, "1 failed, 1 passed"),
        ("import no_such_module\n", 2, "No module named 'no_such_module'"),
    ],
    ids=["passes alone", "fails twice", "one of each", "not imported"],
)
def test_a_second_run(tmp_path: Path, text: str, status: int, said: str) -> None:
    (tmp_path / "test_it.py").write_text(FIRST_TIME + text)
    (tmp_path / "pytest.ini").touch()
    first = subprocess.run(PYTEST, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert first.returncode != 0
    script = [sys.executable, second_run.__file__, *PYTEST]
    again = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (again.returncode, said in again.stdout) == (status, True), again.stdout


def test_failures_all_over_are_no_matter_of_a_busy_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (tmp_path / f"test_{number}.py").write_text(BROKEN)
    (tmp_path / "pytest.ini").touch()
    assert subprocess.run(PYTEST, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False).returncode == 1
    assert second_run.main(["true"], tmp_path) == 1
    assert "none, with failed tests in 4 files" in capsys.readouterr().out


def test_a_run_that_itself_failed_stays_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers that collect other tests than one another are in the list by their own names."""
    cache = tmp_path / ".pytest_cache/v/cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text('{"gw0": true, "gw1": true}')
    assert second_run.main(["true"], tmp_path) == 1
    assert "the run itself has failed" in capsys.readouterr().out


def test_a_run_without_a_failed_test_stays_failed(tmp_path: Path) -> None:
    assert second_run.main(["true"], tmp_path) == 1
