"""Following a mapping file: every way in which it can change, and broken ones."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import pytest

from identity.errors import MapperUnavailable
from identity.files import FileRefused, Files
from identity.reload import RETRY_S, Reloader

ALICE = {"id": "1", "username": "alice@example.edu", "status": "used"}


def content(output: str) -> str:
    rule = {"source": "{username}", "match": ".*", "output": output}
    return json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}])


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "identity_mapping.json"
    path.write_text(content("one"))
    return path


def name(reloader: Reloader) -> str:
    return reloader.chain.map([ALICE]).name


def test_nothing_changed(path: pathlib.Path) -> None:
    reloader = Reloader(path, wall_clock=lambda: 0)
    chain = reloader.chain
    assert reloader.status.loaded == f"{path}: 1 documents, loaded 1970-01-01T00:00:00Z"
    assert not reloader.check()
    assert reloader.chain is chain


def test_written_in_place(path: pathlib.Path) -> None:
    reloader = Reloader(path)
    path.write_text(content("two"))
    reloader.check()
    assert name(reloader) == "two"


def test_replaced_by_rename_with_the_same_size_and_times(path: pathlib.Path) -> None:
    reloader = Reloader(path)
    other = path.with_name("other")
    other.write_text(content("two"))
    shutil.copystat(path, other)
    other.replace(path)
    reloader.check()
    assert name(reloader) == "two"


def test_a_link_that_leads_elsewhere(path: pathlib.Path) -> None:
    for version in ("a", "b"):
        path.with_name(version).write_text(content(f"from-{version}"))
    link = path.with_name("link")
    link.symlink_to("a")
    reloader = Reloader(link)
    assert name(reloader) == "from-a"
    new = path.with_name("new")
    new.symlink_to("b")
    new.replace(link)
    reloader.check()
    assert name(reloader) == "from-b"


@pytest.mark.parametrize("broken", [b"", b"[", b"[]", b'[{"DATA_TYPE": "x#1"}]', None])
def test_a_broken_one_leaves_the_one_before(path: pathlib.Path, broken: bytes | None) -> None:
    reloader = Reloader(path)
    loaded = reloader.status.loaded
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken)
    assert reloader.check()
    assert name(reloader) == "one"
    assert reloader.status.loaded == loaded
    assert str(path) in reloader.status.problem
    assert not reloader.check()
    path.write_text(content("two"))
    assert reloader.check()
    assert name(reloader) == "two"
    assert reloader.status.problem == ""


def test_none_that_was_ever_good(path: pathlib.Path) -> None:
    path.write_text("[")
    reloader = Reloader(path)
    with pytest.raises(MapperUnavailable, match="not JSON"):
        _ = reloader.chain
    path.write_text(content("two"))
    assert reloader.check()
    assert name(reloader) == "two"


def test_a_broken_one_is_tried_again_after_a_while(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    now = [0.0]
    program = tmp_path / "callout"
    path.write_text(json.dumps([{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}]))
    reloader = Reloader(path, clock=lambda: now[0])
    assert "no program" in reloader.status.problem
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert not reloader.check()
    now[0] = RETRY_S
    assert reloader.check()
    assert reloader.status.problem == ""


def ldap(tmp_path: pathlib.Path) -> dict[str, Any]:
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("swordfish\n")
    return {
        "DATA_TYPE": "ldap_identity_mapping#1.0.0",
        "servers": ["ldaps://ldap.example.edu"],
        "bind_dn": "cn=reader,dc=example,dc=edu",
        "password_file": str(password),
        "base": "dc=example,dc=edu",
        "filter": "(mail={email})",
    }


def test_the_password_file_counts_as_well(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path.write_text(json.dumps([ldap(tmp_path)]))
    reloader = Reloader(path)
    first = reloader.chain
    assert first.files == (tmp_path / "password",)
    (tmp_path / "new").touch(mode=0o600)
    (tmp_path / "new").write_text("other\n")
    (tmp_path / "new").replace(tmp_path / "password")
    assert reloader.check() or reloader.chain is not first
    assert reloader.chain is not first
    (tmp_path / "password").chmod(0o644)
    assert reloader.check()
    assert "mode 0644" in reloader.status.problem
    (tmp_path / "password").chmod(0o600)
    assert reloader.check()
    assert reloader.status.problem == ""


def test_no_secret_is_shown(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path.write_text(json.dumps([ldap(tmp_path)]))
    reloader = Reloader(path)
    assert "swordfish" not in repr((reloader.status, reloader.chain.descriptions, vars(reloader.chain)))


def test_files_that_are_refused(tmp_path: pathlib.Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    files = Files()
    for bad in (tmp_path / "none", tmp_path, fifo, pathlib.Path("a\0b")):
        with pytest.raises(FileRefused):
            files.read(bad)
    for mode in (0o644, 0o604, 0o660, 0o620):
        plain.chmod(mode)
        with pytest.raises(FileRefused, match="the mapper's account alone"):
            files.read(plain, secret=True)
    plain.chmod(0o640)
    assert files.read(plain, secret=True) == b"x"
    assert files.read(plain) == b"x"
