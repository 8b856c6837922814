"""Following a mapping file: every way in which it can change, and broken ones."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import pytest

from identity import loader
from identity.chain import Chain
from identity.errors import NoMapping, SourceUnavailable
from identity.reloader import RETRY_S, SETTLE_S, Reloader
from identity.tracked_files import FileRefused, Files, Rules
from mep.boundary.file_trust import ours

ALICE = {"id": "1", "username": "alice@example.edu", "status": "used"}


def content(output: str) -> str:
    rule = {"source": "{username}", "match": ".*", "output": output}
    return json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}])


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "identity_mapping.json"
    path.write_text(content("one"))
    return path


class Clock:
    """Seconds that the test counts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def follow(path: pathlib.Path, **keys: Any) -> Reloader:
    return Reloader(path, clock=CLOCK, sleep=lambda _: None, **keys)


def settled(reloader: Reloader) -> bool:
    """Check as the mapper does, until a changed file has settled. Return whether a check said so."""
    first = reloader.check()
    CLOCK.now += SETTLE_S
    return reloader.check() or first


def name(reloader: Reloader) -> str:
    return reloader.chain.map([ALICE]).name


def test_nothing_changed(path: pathlib.Path) -> None:
    reloader = follow(path, wall_clock=lambda: 0)
    chain = reloader.chain
    assert reloader.status.loaded == f"{path}: 1 document, loaded 1970-01-01T00:00:00Z"
    assert not settled(reloader)
    assert reloader.chain is chain


def test_written_in_place(path: pathlib.Path) -> None:
    reloader = follow(path)
    path.write_text(content("two"))
    settled(reloader)
    assert name(reloader) == "two"


def test_replaced_by_rename_with_the_same_size_and_times(path: pathlib.Path) -> None:
    reloader = follow(path)
    other = path.with_name("other")
    other.write_text(content("two"))
    shutil.copystat(path, other)
    other.replace(path)
    settled(reloader)
    assert name(reloader) == "two"


def test_a_link_that_leads_elsewhere(path: pathlib.Path) -> None:
    for version in ("a", "b"):
        path.with_name(version).write_text(content(f"from-{version}"))
    link = path.with_name("link")
    link.symlink_to("a")
    reloader = follow(link)
    assert name(reloader) == "from-a"
    new = path.with_name("new")
    new.symlink_to("b")
    new.replace(link)
    settled(reloader)
    assert name(reloader) == "from-b"


@pytest.mark.parametrize("broken", [b"", b"[", b"[]", b'[{"DATA_TYPE": "x#1"}]', None])
def test_a_broken_one_leaves_the_one_before(path: pathlib.Path, broken: bytes | None) -> None:
    reloader = follow(path)
    loaded = reloader.status.loaded
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken)
    assert settled(reloader)
    assert name(reloader) == "one"
    assert reloader.status.loaded == loaded
    assert str(path) in reloader.status.problem
    assert not settled(reloader)
    path.write_text(content("two"))
    assert settled(reloader)
    assert name(reloader) == "two"
    assert reloader.status.problem == ""


def test_none_that_was_ever_good(path: pathlib.Path) -> None:
    path.write_text("[")
    reloader = follow(path)
    with pytest.raises(SourceUnavailable, match="not JSON"):
        _ = reloader.chain
    path.write_text(content("two"))
    assert settled(reloader)
    assert name(reloader) == "two"


def test_a_broken_one_is_tried_again_after_a_while(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    parent = tmp_path / "bin"
    parent.mkdir()
    parent.chmod(0o777)
    program = parent / "callout"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path.write_text(json.dumps([{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}]))
    reloader = follow(path)
    assert f"chmod go-w {parent}" in reloader.status.problem
    parent.chmod(0o755)
    assert not settled(reloader)
    CLOCK.now += RETRY_S
    assert reloader.check()
    assert reloader.status.problem == ""


# --- half-written files -----------------------------------------------------------------------------

YAML = """
- DATA_TYPE: domain_identity_mapping#1.0.0
  domain: example.edu
  identity_provider: 1f8ba017-6224-43ad-a42f-03059574ba38
"""


def test_a_file_that_is_being_written_is_left_alone_until_it_rests(path: pathlib.Path) -> None:
    provider = {**ALICE, "identity_provider": "1f8ba017-6224-43ad-a42f-03059574ba38"}
    reloader = follow(path)
    half = YAML.index("  identity_provider")
    path.write_text(YAML[:half])  # a good file in which the provider, which narrows it, is missing
    for piece in YAML[half:].splitlines(keepends=True):
        assert not reloader.check()
        CLOCK.now += SETTLE_S * 0.9
        with path.open("a") as file:
            file.write(piece)
    assert not reloader.check()
    assert name(reloader) == "one"
    CLOCK.now += SETTLE_S * 0.9
    assert not reloader.check(), "it was seen for less than the time it must rest"
    CLOCK.now += SETTLE_S * 0.2
    assert reloader.check()
    assert reloader.chain.map([provider]).name == "alice"
    with pytest.raises(NoMapping):
        reloader.chain.map([ALICE])


def test_one_that_changes_while_it_is_read_is_read_again(path: pathlib.Path) -> None:
    writes = iter([content("two"), content("three")])

    def load(file: pathlib.Path, **keys: Any) -> Chain:
        chain = loader.load(file, **keys)
        if follows and (text := next(writes, None)):
            path.write_text(text)
        return chain

    follows: list[Reloader] = []
    follows.append(follow(path, load=load))
    path.write_text(content("half"))
    settled(follows[0])
    assert name(follows[0]) == "one"
    settled(follows[0])
    assert name(follows[0]) == "one"
    settled(follows[0])
    assert name(follows[0]) == "three"


def test_a_yaml_file_that_was_written_just_before_the_start_is_read_again(path: pathlib.Path) -> None:
    half = YAML.index("  identity_provider")
    path.write_text(YAML[:half])
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            path.write_text(YAML)

    reloader = Reloader(path, wall_clock=lambda: path.stat().st_mtime + 0.25 * (len(slept) < 2), sleep=sleep)
    assert slept
    assert 0 < slept[0] <= SETTLE_S
    with pytest.raises(NoMapping):
        reloader.chain.map([ALICE])
    slept.clear()
    path.write_text(content("one"))
    Reloader(path, wall_clock=lambda: path.stat().st_mtime, sleep=slept.append)
    assert not slept, "the beginning of a JSON file is none: no need to wait"


# --- owners and modes of the files -------------------------------------------------------------------

RULES = Rules(mapping=ours(), named=ours())


def test_what_others_may_write_is_refused_at_a_reload_and_the_one_before_stays(path: pathlib.Path) -> None:
    reloader = follow(path, rules=RULES)
    path.write_text(content("two"))
    path.chmod(0o666)
    assert settled(reloader)
    assert reloader.status.problem == f"{path}: {path}: has mode 0666: bad permissions: chmod go-w {path}"
    assert name(reloader) == "one"
    path.chmod(0o644)
    assert settled(reloader)
    assert (name(reloader), reloader.status.problem) == ("two", "")


def test_a_directory_on_the_way_that_others_may_write_is_noticed_after_a_while(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    path = directory / "mapping.json"
    path.write_text(content("one"))
    reloader = follow(path, rules=RULES)
    assert reloader.status.problem == ""
    (tmp_path / "a").chmod(0o777)
    CLOCK.now += RETRY_S
    assert reloader.check()
    assert f"chmod go-w {tmp_path / 'a'}" in reloader.status.problem
    assert name(reloader) == "one"
    (tmp_path / "a").chmod(0o1777)
    CLOCK.now += RETRY_S
    assert reloader.check()
    assert reloader.status.problem == ""


def test_a_program_that_others_may_write_or_that_is_gone(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "callout"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path.write_text(json.dumps([{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}]))
    reloader = follow(path, rules=RULES)
    assert reloader.status.problem == ""
    for spoil, reason in (
        (lambda: program.chmod(0o757), "chmod go-w"),
        (lambda: program.chmod(0o644), "there is no program"),
        (program.unlink, "there is no program"),
    ):
        spoil()
        assert settled(reloader)
        assert reason in reloader.status.problem
        assert reloader.chain.descriptions == (f"document 0: callout {program}",)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert settled(reloader)
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
    reloader = follow(path)
    first = reloader.chain
    assert first.files == (tmp_path / "password",)
    (tmp_path / "new").touch(mode=0o600)
    (tmp_path / "new").write_text("other\n")
    (tmp_path / "new").replace(tmp_path / "password")
    assert settled(reloader) or reloader.chain is not first
    assert reloader.chain is not first
    (tmp_path / "password").chmod(0o644)
    assert settled(reloader)
    assert "mode 0644" in reloader.status.problem
    (tmp_path / "password").chmod(0o600)
    assert settled(reloader)
    assert reloader.status.problem == ""


def test_no_secret_is_shown(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path.write_text(json.dumps([ldap(tmp_path)]))
    reloader = follow(path)
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
