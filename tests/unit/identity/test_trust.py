"""Who could have written a file and who may read it: modes, owners, groups, ACLs, links, the whole path."""

from __future__ import annotations

import os
import pathlib
import stat
import struct
import sys

import pytest

from identity import tracked_files
from identity.tracked_files import FileRefused, Files, Rules, program_problem
from mep.boundary.file_trust import MAX_LINKS, Trust, UntrustedPath, ours

OWNER, USER, OWN_GROUP, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY_SPECIAL = 0xFFFFFFFF


def acl(path: pathlib.Path, *more: tuple[int, int, int], mask: int = 7, own_group: int = 0) -> None:
    """Give `path` an ACL: rw for its owner, nothing for others, and `more` (tag, permissions, id)."""
    entries = [(OWNER, 6, NOBODY_SPECIAL), *more, (OWN_GROUP, own_group, NOBODY_SPECIAL), (MASK, mask, NOBODY_SPECIAL)]
    entries = sorted([*entries, (OTHERS, 0, NOBODY_SPECIAL)])
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)


def problem(path: pathlib.Path | str, trust: Trust | None = None) -> str:
    """Return all that is wrong with `path`."""
    return "; ".join((trust or ours()).problems(path))


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    return file


def test_a_file_of_ours_that_no_other_account_may_write(file: pathlib.Path) -> None:
    assert problem(file) == ""
    assert problem("/etc/passwd") == ""


@pytest.mark.parametrize(("mode", "bad"), [(0o602, True), (0o620, True), (0o666, True), (0o644, False)])
def test_modes(file: pathlib.Path, mode: int, bad: bool) -> None:
    file.chmod(mode)
    wanted = f"{file}: has mode {mode:04o}: bad permissions: chmod go-w {file}"
    assert problem(file) == (wanted if bad else "")
    if bad:
        with pytest.raises(UntrustedPath, match="chmod go-w"):
            ours().open(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_is_its_owners_alone(file: pathlib.Path, mode: int) -> None:
    file.chmod(mode)
    assert problem(file) == ""
    with pytest.raises(UntrustedPath, match=f"bad permissions: chmod 600 {file}"):
        ours().read(file, 1, secret=True)
    file.chmod(0o600)
    acl(file, (USER, 4, 4242), mask=4)
    with pytest.raises(UntrustedPath, match=f"its ACL admits uid 4242: bad permissions: setfacl -b {file}"):
        ours().read(file, 1, secret=True)


@pytest.mark.root
def test_owners_and_groups(file: pathlib.Path) -> None:
    os.chown(file, 12345, 0)
    assert problem(file, Trust()) == f"{file}: belongs to uid 12345: bad ownership: chown root {file}"
    assert problem(file, Trust(frozenset({12345}))) == ""
    assert problem(file, Trust(last_owner=12345)) == ""
    os.chown(file, 54321, 0)
    assert "chown keys" in problem(file, Trust(last_owner=12345, chown_to="keys"))
    os.chown(file, 0, 0)
    file.chmod(0o664)
    assert "chmod go-w" in problem(file, Trust()), "whoever is in that group"


@pytest.mark.root
def test_the_owner_of_a_key_is_not_to_own_its_directory(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    os.chown(tmp_path, 12345, 0)
    wanted = f"{tmp_path}: belongs to uid 12345: bad ownership: chown root {tmp_path}"
    assert problem(file, Trust(last_owner=12345, chown_to="keys")) == wanted


def test_an_acl_that_lets_others_write_though_the_mode_looks_harmless(file: pathlib.Path) -> None:
    acl(file, (USER, 6, 4242))
    assert os.stat(file).st_mode & 0o002 == 0
    assert problem(file) == f"{file}: its ACL admits uid 4242: bad permissions: setfacl -b {file}"
    acl(file, (GROUP, 6, 65534))
    assert "its ACL admits gid 65534" in problem(file)
    acl(file, own_group=6)
    assert "its ACL admits its own group" in problem(file)
    acl(file, (USER, 6, 4242), mask=4)
    assert problem(file) == "", "the mask takes it away"
    acl(file, (USER, 4, 4242))
    assert problem(file) == "", "the group's bits of the mode are the mask, which gives nothing"
    acl(file, (USER, 6, 4242))
    assert problem(file, Trust(frozenset({os.geteuid(), 4242}))) == ""


def test_every_directory_on_the_way_counts_and_a_sticky_one_is_fine(tmp_path: pathlib.Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    file = deep / "file"
    file.touch(mode=0o600)
    (tmp_path / "a").chmod(0o777)
    assert f"chmod go-w {tmp_path / 'a'}" in problem(file)
    (tmp_path / "a").chmod(0o1777)
    assert problem(file) == ""
    assert ours().problems(tmp_path / "a") == []
    assert ours().problems(tmp_path / "a", private=True), "others make files there"


def test_a_link_in_a_shared_directory_is_refused_whoever_made_it(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    directory = tmp_path / "sticky"
    directory.mkdir()
    link = directory / "link"
    link.symlink_to(file)
    assert problem(link) == ""
    directory.chmod(0o1777)
    wanted = f"{link}: a symbolic link in a directory that others may write to: name its target instead: {file}"
    assert problem(link) == wanted


def test_links_are_followed_through_all_that_they_lead(tmp_path: pathlib.Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir(mode=0o755)
    file = tmp_path / "three" / "file"
    file.write_text("here")
    (tmp_path / "two" / "link").symlink_to("../three/./file")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "two" / "link")
    start = tmp_path / "one" / "link"
    assert ours().read(start, 10) == b"here"
    assert ours().read(f"{tmp_path}/one/../two//link", 10) == b"here"
    for name in ("one", "two", "three"):
        (tmp_path / name).chmod(0o777)
        assert f"chmod go-w {tmp_path / name}" in problem(start)
        (tmp_path / name).chmod(0o755)
    with pytest.raises(OSError, match="symbolic link"):
        ours().open(start, os.O_RDONLY | os.O_NOFOLLOW)


def test_ways_that_lead_nowhere(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    (tmp_path / "round").symlink_to("round")
    for nowhere in (tmp_path / "round", tmp_path / "none", "a\0b", file / "below", file / ".." / "file"):
        assert problem(nowhere)
    before = file
    for number in range(MAX_LINKS + 1):
        (tmp_path / f"link{number}").symlink_to(before)
        before = tmp_path / f"link{number}"
    assert problem(tmp_path / f"link{MAX_LINKS - 1}") == ""
    assert "Too many levels" in problem(before)


def test_no_descriptor_is_left(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    (tmp_path / "link").symlink_to(file)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    before = count()
    for path in (file, tmp_path, tmp_path / "link", tmp_path / "none", tmp_path / "open" / "x", file / "x", "/", "/.."):
        ours().problems(path)
    assert count() == before


def test_files_are_made_where_they_are_missing_and_never_through_a_link(tmp_path: pathlib.Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    for _ in range(2):
        descriptor = ours().open(tmp_path / "log", flags, mode=0o640)
        os.write(descriptor, b"line\n")
        os.close(descriptor)
    assert (tmp_path / "log").read_text() == "line\n" * 2
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        ours().open(tmp_path / "dangling", flags)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            ours().open(path, os.O_RDONLY)


def test_directories_are_made(tmp_path: pathlib.Path) -> None:
    ours().make_directory(tmp_path / "a" / "b", 0o700)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o700]
    (tmp_path / "a").chmod(0o1777)
    with pytest.raises(UntrustedPath):
        ours().make_directory(tmp_path / "a", 0o700)
    ours().make_directory(tmp_path / "a", 0o700, private=False)
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(UntrustedPath):
        ours().make_directory(tmp_path / "a" / "c", 0o700)
    assert not (tmp_path / "a" / "c").exists()


def test_all_below_a_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    bad = [tmp_path / "a" / "b" / "file", tmp_path / "file"]
    for path in bad:
        path.touch()
        path.chmod(0o666)
    (tmp_path / "a" / "link").symlink_to(tmp_path)  # around in a circle
    (tmp_path / "a" / "nowhere").symlink_to("missing")
    found = list(ours().problems_below(str(tmp_path)))
    assert sorted(set(found)) == [f"{path}: has mode 0666: bad permissions: chmod go-w {path}" for path in bad]
    for path in bad:
        path.chmod(0o600)
    assert list(ours().problems_below(str(tmp_path))) == []
    for target in ("/tmp", "/tmp/missing"):  # where others make files
        (tmp_path / "a" / "shared").symlink_to(target)
        assert list(ours().problems_below(str(tmp_path))) == ["/tmp: has mode 1777: bad permissions: chmod go-w /tmp"]
        (tmp_path / "a" / "shared").unlink()


def test_programs(file: pathlib.Path) -> None:
    assert "not a program" in program_problem(ours(), str(file))
    file.chmod(0o700)
    assert program_problem(ours(), str(file)) == ""
    assert "not a program" in program_problem(ours(), str(file.parent))


def test_the_interpreter_of_a_script_counts(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    interpreter = tmp_path / "interpreter"
    file.write_text(f"#! {interpreter} -x\n")
    file.chmod(0o700)
    with pytest.raises(FileNotFoundError):
        ours().open_program(file)
    interpreter.symlink_to(sys.executable)
    os.close(ours().open_program(file))
    interpreter.unlink()
    interpreter.touch()
    interpreter.chmod(0o777)
    with pytest.raises(UntrustedPath, match=f"chmod go-w {interpreter}"):
        ours().open_program(file)


def test_a_group_that_has_only_trusted_members(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = file.with_name("passwd")
    monkeypatch.setattr(tracked_files, "_LOCAL_ACCOUNTS", accounts)
    gid = 54321
    for text, members in (("a:x:7:54321::/:/x\n", False), ("b:x:8:54321::/:/x\nbad line\n", True), ("", True)):
        accounts.write_text(text)
        assert tracked_files._has_only(gid, frozenset({0, 8})) is members


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(USER, 4, 4242)], "may be read by uid 4242 (its ACL says so): the mapper's account alone"),
        ([(GROUP, 4, 65534)], "may be read by group 65534"),
        ([(USER, 0, 4242)], ""),
    ],
)
def test_a_password_that_an_acl_shows_to_others(
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
def test_a_password_of_a_group_with_other_members(file: pathlib.Path) -> None:
    os.chown(file, 0, 65534)  # the group of the account `nobody`
    file.chmod(0o640)
    with pytest.raises(FileRefused, match="group 65534"):
        Files().read(file, secret=True)


@pytest.mark.root
def test_the_mapping_must_be_roots_and_what_it_names_may_be_the_mappers(file: pathlib.Path) -> None:
    rules = Rules(mapping=Trust(), named=Trust(frozenset({12345})))
    os.chown(file, 12345, 0)
    assert Files(rules).read(file) == b""
    with pytest.raises(FileRefused, match="chown root"):
        Files(rules).read_mapping(file)
