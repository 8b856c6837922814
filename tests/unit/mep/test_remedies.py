"""What an administrator is told to do about an endpoint's missing file, and an identity given for an account."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mep.cli import remedies
from mep.cli.admin_commands import _account
from mep.cli.exit_codes import CliFailed


def test_a_missing_file_names_the_packages_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "_EXAMPLES", tmp_path)
    text = f"/etc/mep/a b/config.yaml: {os.strerror(errno.ENOENT)}"
    assert remedies.with_command(text) == text
    (tmp_path / "config.yaml").touch()
    told = remedies.with_command(text)
    assert told == f"{text}; restore it, or run: cp {tmp_path}/config.yaml '/etc/mep/a b/config.yaml'"
    assert remedies.with_command(told) == told


def test_an_identity_is_no_account() -> None:
    with pytest.raises(CliFailed, match=r"no account meptest@example\.edu on this host; .*mep map NAME --identity"):
        _account("meptest@example.edu")
    with pytest.raises(CliFailed, match=r"no account meptest-nobody on this host$"):
        _account("meptest-nobody")
