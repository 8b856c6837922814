"""The pid file means a monitor only while that very process lives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mep.boundary.runtime_files import (
    PID_FILE,
    MonitorStatus,
    boot_id,
    pid_line,
    read_status,
    running_monitor,
    start_ticks,
    write_status,
)


def test_a_living_process_is_found_and_a_dead_one_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    (tmp_path / PID_FILE).write_text(pid_line(process.pid))
    try:
        assert running_monitor(tmp_path) == process.pid
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert running_monitor(tmp_path) is None  # a zombie does not run
    finally:
        process.kill()
        process.wait()
    assert running_monitor(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "x", "{pid}", "{pid} {start}", "{pid} 1 {boot}", "{pid} {start} another-boot", "-1 {start} {boot}",
     "{pid} {start} {boot} more", "999999999 1 {boot}"],
)  # fmt: skip
def test_a_file_that_means_another_process_means_nothing(tmp_path: Path, text: str) -> None:
    pid = os.getpid()
    (tmp_path / PID_FILE).write_text(text.format(pid=pid, start=start_ticks(pid), boot=boot_id()))
    assert running_monitor(tmp_path) is None


def test_a_pid_file_that_is_no_file(tmp_path: Path) -> None:
    assert running_monitor(tmp_path) is None
    (tmp_path / PID_FILE).symlink_to("/proc/self/stat")
    assert running_monitor(tmp_path) is None
    (tmp_path / PID_FILE).unlink()
    os.mkfifo(tmp_path / PID_FILE)
    assert running_monitor(tmp_path) is None
    (tmp_path / PID_FILE).unlink()
    (tmp_path / PID_FILE).mkdir()
    assert running_monitor(tmp_path) is None


def test_the_status_survives_a_reader_of_another_version(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    write_status(tmp_path, MonitorStatus(state="up", pid=1, started_at=2.0))
    assert read_status(tmp_path) == MonitorStatus(state="up", pid=1, started_at=2.0)
    (tmp_path / "status.json").write_text('{"state": "up", "pid": 1, "started_at": 2.0, "new_field": 1}')
    assert read_status(tmp_path) == MonitorStatus(state="up", pid=1, started_at=2.0)
    for damaged in ("", "[]", "{}", "\xff"):
        (tmp_path / "status.json").write_text(damaged)
        assert read_status(tmp_path) is None
