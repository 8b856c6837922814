"""Keepers' records: read back as written, also those of an older version, and never believed when they are damaged."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

from mep.root.kernel.keeper_record import Records, new_record


@pytest.fixture
def records(tmp_path: pathlib.Path) -> Records:
    (tmp_path / "keepers").mkdir()
    return Records(str(tmp_path))


def test_as_written(records: Records) -> None:
    written = new_record("uep", "alice", "corr")
    records.write(written)
    assert records.read("uep") == written


def test_of_an_older_version(records: Records, tmp_path: pathlib.Path) -> None:
    written = new_record("uep", "alice", "corr")
    records.write(written)
    path = tmp_path / "keepers" / "uep.json"
    value = json.loads(path.read_text())
    del value["cgroup"], value["source"]
    path.write_text(json.dumps(value))
    assert records.read("uep") == written


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "{}", '{"uep_id": 4}', '{"uep_id": "uep", "more": 1}', "{"])
def test_damaged(records: Records, tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "keepers" / "uep.json").write_text(text)
    assert records.read("uep") is None


def test_what_living_keepers_are_writing_is_left_alone(records: Records, tmp_path: pathlib.Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [f"a.json.{gone.pid}.tmp", "b.mapped", "c.mapped.tmp", "odd", "odd.tmp"]
    kept = [f"d.json.{os.getpid()}.tmp", "e.json", "e.mapped"]
    for name in left + kept:
        (tmp_path / "keepers" / name).touch()
    assert records.ids() == ["e"]
    assert sorted(path.name for path in (tmp_path / "keepers").iterdir()) == kept


def test_what_vanishes_meanwhile_is_no_trouble(
    records: Records, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper has renamed its temporary file since the directory was read, and has ended since."""
    names = ["gone.json.999999999.tmp", "gone.mapped"]
    monkeypatch.setattr(os, "listdir", lambda _: names)
    assert records.ids() == []
