"""Keepers' records: read back as written, also those of an older version, and never believed when they are damaged."""

from __future__ import annotations

import json
import pathlib

import pytest

from mep.monitor.records import Records, new_record


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
