"""Whether an account is one of this host's own files."""

from __future__ import annotations

import pathlib

from mep.root.account import nss


def test_whether_a_file_has_an_entry(tmp_path: pathlib.Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
    assert nss.is_listed("alice", str(passwd)) is True
    assert nss.is_listed("ali", str(passwd)) is False


def test_a_file_that_cannot_be_read_says_neither(tmp_path: pathlib.Path) -> None:
    assert nss.is_listed("alice", str(tmp_path / "nothing")) is None
