"""Programs that the keeper runs: what becomes of their output, their end and their children."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mep.root.kernel import cgroup
from mep.root.kernel.program import STOPPED, Program, run
from tests.support.waiting import until

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def script(directory: Path, text: str) -> Program:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Program(str(path), ["program"], ENVIRONMENT)


def test_input_output_and_exit_status(tmp_path: Path) -> None:
    ran = run(script(tmp_path, "cat; echo bad >&2; exit 3"), 60.0, request=b"asked")
    assert (ran.problem, ran.code, ran.output, ran.errors) == ("", 3, "asked", "bad")


def test_more_output_than_is_kept_does_not_block_it(tmp_path: Path) -> None:
    ran = run(script(tmp_path, "head -c 1000000 /dev/zero | tr '\\0' x"), 60.0)
    assert (ran.problem, ran.code, ran.output) == ("", 0, "x" * 8192)


def test_it_is_killed_at_its_deadline_with_its_children(tmp_path: Path) -> None:
    ran = run(script(tmp_path, "sleep 600 & echo $!; sleep 600"), 1.0)
    assert "not done within 1 s" in ran.problem and ran.code == -9
    until("its child is gone", lambda: _is_gone(Path("/proc", ran.output, "stat")))


def _is_gone(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_is_killed_once_it_is_told_to_stop(tmp_path: Path) -> None:
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.write(theirs, b"x")
    ran = run(script(tmp_path, "sleep 600"), 60.0, watch=[ours], stop=lambda: True)
    os.close(ours)
    os.close(theirs)
    assert (ran.problem, ran.code) == (STOPPED, -9)


def test_it_inherits_no_descriptor_of_its_caller(tmp_path: Path) -> None:
    kept = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    ran = run(script(tmp_path, "for one in /proc/self/fd/*; do readlink $one; done"), 60.0)
    os.close(kept)
    assert ran.output and str(tmp_path) not in ran.output.split()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo no such unit >&2; exit 1", "systemd: no such unit"),
        ("exit 4", "systemd: busctl ended with 4"),
        ("sleep 600", "systemd: not done within"),
    ],
    ids=["refused", "silent", "hanging"],
)
def test_an_answer_of_systemds_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setattr(cgroup, "BUSCTL", script(tmp_path, text).path)
    with pytest.raises(cgroup.CgroupFailed, match=says):
        cgroup._busctl("StartTransientUnit", "s", ["a.scope"], lambda: 0.0)


def test_what_systemd_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "BUSCTL", script(tmp_path, f'echo "$@" > {tmp_path}/asked').path)
    cgroup._busctl("StartTransientUnit", "s", ["a.scope"], lambda: 5.0)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[1:4] == ["--quiet", "--timeout=5", "call"]
    assert asked[-3:] == ["StartTransientUnit", "s", "a.scope"]
