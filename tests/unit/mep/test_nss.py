"""Whether an account is one of this host's own files."""

from __future__ import annotations

import pathlib

import pytest

from mep.root.account import nss


def test_whether_a_file_has_an_entry(tmp_path: pathlib.Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
    assert nss.is_listed("alice", str(passwd)) is True
    assert nss.is_listed("ali", str(passwd)) is False


def test_a_file_that_cannot_be_read_says_neither(tmp_path: pathlib.Path) -> None:
    assert nss.is_listed("alice", str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("text", "database", "names"),
    [
        ("passwd: files sss", "passwd", ["sss"]),
        ("passwd: files cache_oslogin oslogin", "passwd", ["cache_oslogin", "oslogin"]),
        ("passwd: files [NOTFOUND=return] my-nss.2 # sss", "passwd", ["my-nss.2"]),
        ("passwd: files [!UNAVAIL=return success=merge] sss", "passwd", ["sss"]),
        ("passwd:files[NOTFOUND=return]sss", "passwd", ["sss"]),
        ("passwd: sss", "shadow", ["sss"]),
        ("passwd: sss\nshadow: files", "shadow", []),
        ("group: files winbind", "initgroups", ["winbind"]),
        ("group: files\ninitgroups: files sss", "initgroups", ["sss"]),
        ("group: sss\ninitgroups: files", "initgroups", []),
    ],
)
def test_services_of_a_database(tmp_path: pathlib.Path, text: str, database: str, names: list[str]) -> None:
    file = tmp_path / "nsswitch.conf"
    file.write_text(text + "\n")
    assert nss.services(database, str(file)) == names


def test_gids_of_a_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "group"
    file.write_text("root:x:0:\nbroken\n+::::\nusers:x:100:a,b\n")
    assert nss.listed_gids(str(file)) == {0, 100}
    assert nss.listed_gids(str(tmp_path / "nothing")) == set()
