"""Local accounts for tests: made with a unique name, removed with everything they own."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFIX = "meptest-"


@dataclass(frozen=True)
class LocalAccount:
    """An account of this host."""

    name: str
    uid: int
    gid: int
    home: str


def unique_name() -> str:
    """Return a name that no other test run uses."""
    return PREFIX + secrets.token_hex(4)


def create_account(
    name: str = "", *, home: bool = True, shell: str = "/bin/bash", uid: int | None = None
) -> LocalAccount:
    """Create an account (as root)."""
    name = name or unique_name()
    command = ["useradd", "--shell", shell, "--create-home" if home else "--no-create-home", name]
    if uid is not None:
        command[1:1] = ["--uid", str(uid), "--non-unique"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    entry = pwd.getpwnam(name)
    return LocalAccount(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def unshared_uid() -> int:
    """Return a uid at random: the kernel counts a uid's processes over all containers, which share the low ones."""
    return 20_000 + secrets.randbelow(30_000)


def remove_account(name: str) -> None:
    """Remove an account and its home; a missing account is not an error."""
    subprocess.run(["userdel", "--force", "--remove", name], check=False, capture_output=True, timeout=30)
    subprocess.run(["groupdel", name], check=False, capture_output=True, timeout=30)


@contextlib.contextmanager
def account(**options: object) -> Iterator[LocalAccount]:
    """An account for the length of a `with` block; options as for create_account."""
    made = create_account(**options)  # type: ignore[arg-type]  # passed through
    try:
        yield made
    finally:
        remove_account(made.name)


@contextlib.contextmanager
def group(members: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A group with `members` for the length of a `with` block: its name and number."""
    name = unique_name()
    subprocess.run(["groupadd", name], check=True, capture_output=True, timeout=30)
    try:
        for member in members:
            subprocess.run(
                ["usermod", "--append", "--groups", name, member], check=True, capture_output=True, timeout=30
            )
        yield name, grp.getgrnam(name).gr_gid
    finally:
        subprocess.run(["groupdel", name], check=False, capture_output=True, timeout=30)


def is_root() -> bool:
    """Tell whether tests that need root can run."""
    return os.geteuid() == 0
