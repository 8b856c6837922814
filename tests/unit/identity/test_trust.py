"""Who could have written a file and who may read it: modes, owners, groups, ACLs, links, the whole path."""

from __future__ import annotations

import os
import pathlib
import struct

import pytest

from identity import trust
from identity.files import FileRefused, Files
from identity.trust import Rules, Trust, ours

OWNER, USER, OWN_GROUP, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY_SPECIAL = 0xFFFFFFFF


def acl(path: pathlib.Path, *more: tuple[int, int, int], mask: int = 7) -> None:
    """Give `path` an ACL: rw for its owner, nothing for others, and `more` (tag, permissions, id)."""
    entries = [(OWNER, 6, NOBODY_SPECIAL), *more, (OWN_GROUP, 0, NOBODY_SPECIAL), (MASK, mask, NOBODY_SPECIAL)]
    entries = sorted([*entries, (OTHERS, 0, NOBODY_SPECIAL)])
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    return file


def test_a_file_of_ours_that_nobody_else_may_write(file: pathlib.Path) -> None:
    assert ours().problem(file) == ""
    assert ours().problem("/etc/passwd") == ""


@pytest.mark.parametrize(("mode", "reason"), [(0o602, "by everybody"), (0o666, "by everybody"), (0o644, "")])
def test_modes(file: pathlib.Path, mode: int, reason: str) -> None:
    file.chmod(mode)
    found = ours().problem(file)
    assert reason in found
    assert bool(found) == bool(reason)
    assert not found or f"run: chmod o-w {file}" in found


@pytest.mark.root
def test_owners_and_groups(file: pathlib.Path) -> None:
    os.chown(file, 12345, 0)
    assert f"{file} belongs to uid 12345 and must belong to root; run: chown -h root {file}" == Trust().problem(file)
    assert Trust(frozenset({12345})).problem(file) == ""
    os.chown(file, 0, 65534)
    file.chmod(0o664)
    assert "may be written by group 65534" in Trust().problem(file)
    os.chown(file, 0, 0)
    assert Trust().problem(file) == ""


def test_a_group_that_has_only_trusted_members(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = file.with_name("passwd")
    monkeypatch.setattr(trust, "_LOCAL_ACCOUNTS", accounts)
    gid = 54321
    for text, members in (("a:x:7:54321::/:/x\n", False), ("b:x:8:54321::/:/x\nbad line\n", True), ("", True)):
        accounts.write_text(text)
        assert trust._has_only(gid, frozenset({0, 8})) is members


def test_an_acl_that_lets_others_write_though_the_mode_looks_harmless(file: pathlib.Path) -> None:
    acl(file, (USER, 6, 4242))
    assert os.stat(file).st_mode & 0o002 == 0
    assert "may be written by uid 4242 (its ACL says so)" in ours().problem(file)
    acl(file, (GROUP, 6, 65534))
    assert "may be written by group 65534" in ours().problem(file)
    acl(file, (USER, 6, 4242), mask=4)
    assert ours().problem(file) == "", "the mask takes it away"
    acl(file, (USER, 6, 4242))
    assert Trust(frozenset({os.geteuid(), 4242})).problem(file) == ""


def test_every_directory_on_the_way_counts_and_a_sticky_one_is_fine(tmp_path: pathlib.Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    file = deep / "file"
    file.touch(mode=0o600)
    (tmp_path / "a").chmod(0o777)
    assert f"{tmp_path / 'a'} may be written by everybody" in ours().problem(file)
    (tmp_path / "a").chmod(0o1777)
    assert ours().problem(file) == ""


@pytest.mark.root
def test_a_link_in_a_sticky_directory_must_not_be_somebody_elses(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    directory = tmp_path / "sticky"
    directory.mkdir()
    directory.chmod(0o1777)
    link = directory / "link"
    link.symlink_to(file)
    assert Trust().problem(link) == ""
    os.lchown(link, 12345, 12345)
    assert f"{link} belongs to uid 12345 and must belong to root" in Trust().problem(link)
    assert Trust(frozenset({12345})).problem(link) == ""
    directory.chmod(0o755)
    assert Trust().problem(link) == "", "nobody but root can replace it there"


def test_links_are_followed_through_whatever_they_lead(tmp_path: pathlib.Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir(mode=0o755)
    file = tmp_path / "three" / "file"
    file.touch(mode=0o600)
    (tmp_path / "two" / "link").symlink_to("../three/file")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "two" / "link")
    start = tmp_path / "one" / "link"
    assert trust.way_to(start)[-1] == file
    assert ours().problem(start) == ""
    for name in ("one", "two", "three"):
        (tmp_path / name).chmod(0o777)
        assert f"{tmp_path / name} may be written by everybody" in ours().problem(start)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "round").symlink_to("round")
    for nowhere in (tmp_path / "round", tmp_path / "none", "a\0b"):
        assert ours().problem(nowhere)


def test_programs(file: pathlib.Path) -> None:
    assert "not a program" in ours().program_problem(str(file))
    file.chmod(0o700)
    assert ours().program_problem(str(file)) == ""
    assert "not a program" in ours().program_problem(str(file.parent))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(USER, 4, 4242)], "may be read by uid 4242 (its ACL says so): the mapper's account alone"),
        ([(GROUP, 4, 65534)], "may be read by group 65534"),
        ([(USER, 0, 4242)], ""),
    ],
)
def test_a_secret_that_an_acl_shows_to_others(
    file: pathlib.Path, entries: list[tuple[int, int, int]], reason: str
) -> None:
    file.write_text("secret")
    acl(file, *entries, mask=4)
    if reason:
        with pytest.raises(FileRefused) as caught:
            Files().read(file, secret=True)
        assert reason in str(caught.value)
    else:
        assert Files().read(file, secret=True) == b"secret"


@pytest.mark.root
def test_a_secret_of_a_group_with_other_members(file: pathlib.Path) -> None:
    os.chown(file, 0, 65534)  # the group of nobody
    file.chmod(0o640)
    with pytest.raises(FileRefused, match="group 65534"):
        Files().read(file, secret=True)


@pytest.mark.root
def test_the_mapping_must_be_roots_and_what_it_names_may_be_the_mappers(file: pathlib.Path) -> None:
    rules = Rules(mapping=Trust(), named=Trust(frozenset({12345})))
    os.chown(file, 12345, 0)
    assert Files(rules).read(file) == b""
    with pytest.raises(FileRefused, match="must belong to root"):
        Files(rules).read_mapping(file)
