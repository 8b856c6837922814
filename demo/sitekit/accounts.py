"""Throw-away accounts: made and removed with useradd and userdel, as root only."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sitekit.errors import NameTaken, SiteError

PREFIXES = ("mepdemo-", "meptest-", "mepbench-")
"""Only accounts with these names are ever made or removed here."""
HELPER_UIDS = range(61184, 65520)
"""The uids of the accounts that `mep configure` makes, as mep.boundary.resolved_config has them."""
_ROLES = ("MEP manager", "MEP mapper")
_NOT_UNIQUE = 9
"""The exit status of useradd and groupadd for a name that is taken."""
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Account:
    """A local account."""

    name: str
    uid: int
    gid: int
    home: Path

    @property
    def groups(self) -> list[int]:
        """Return all its group ids, sorted."""
        return sorted(os.getgrouplist(self.name, self.gid))


def existing(name: str) -> Account:
    """Return the account of that name. Raises KeyError."""
    entry = pwd.getpwnam(name)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def mine() -> Account:
    """Return the account that this process runs as."""
    return existing(pwd.getpwuid(os.geteuid()).pw_name)


def make(name: str, home: Path, groups: list[str] | None = None, uid: int | None = None) -> Account:
    """Make an account with a home directory at `home` and these supplementary groups. Raises NameTaken."""
    check_free(name)
    more = ["--groups", ",".join(groups)] if groups else []
    more += ["--uid", str(uid)] if uid is not None else []
    closed = ["--password", "*"]  # no password fits; ssh takes the usual "!" for a locked account
    where = ["--create-home", "--home-dir", str(home), "--shell", "/bin/bash"]
    _run("useradd", *where, "--user-group", *closed, *more, name)
    return existing(name)


def make_group(name: str) -> int:
    """Make a group; returns its id. Raises NameTaken."""
    check_free(name)
    _run("groupadd", name)
    return grp.getgrnam(name).gr_gid


def check_free(name: str) -> None:
    """Raises NameTaken if an account or group of that name exists: it isn't this run's, and is left alone."""
    _check(name)
    for what, find in (("account", pwd.getpwnam), ("group", grp.getgrnam)):
        with contextlib.suppress(KeyError):
            find(name)
            tool = "userdel --remove" if what == "account" else "groupdel"
            raise NameTaken(f"there is {what} {name} already, and no known run made it. To remove it: {tool} {name}")


def remove(name: str) -> None:
    """Remove a throw-away account with its processes and home directory, or a throw-away group."""
    _check(name)
    with contextlib.suppress(KeyError):
        _end_processes_of(pwd.getpwnam(name).pw_uid)
        _run("userdel", "--remove", "--force", name, check=False)
    with contextlib.suppress(KeyError):
        grp.getgrnam(name)
        _run("groupdel", name, check=False)


def processes_of(uid: int) -> list[int]:
    """Return the processes with `uid` as real or effective user, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            if str(uid) in status["Uid"].split()[:2] and not status["State"].startswith("Z"):
                found.append(int(entry.name))
    return found


def helpers_below(prefix: str) -> list[str]:
    """Return the accounts that `mep configure` made for endpoints in directories with the path prefix `prefix`."""
    found = []
    for entry in pwd.getpwall():
        role, of, path = entry.pw_gecos.partition(" of ")
        is_made = entry.pw_uid in HELPER_UIDS and role in _ROLES and of
        if is_made and path.startswith(prefix):
            found.append(entry.pw_name)
    return found


def remove_helpers(prefix: str) -> list[str]:
    """Remove those accounts with their processes, as root; return their names.

    Another run may remove the same accounts at the same time, and a third may then give a name to an endpoint of its
    own. One run removes at a time, and removes a name only while it is still of this endpoint.
    """
    if os.geteuid() != 0 or not helpers_below(prefix):
        return []
    with open("/run/mep-sites-accounts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = helpers_below(prefix)
        for name in names:
            _end_processes_of(pwd.getpwnam(name).pw_uid)
            _run("userdel", "--force", name, check=False)
    return names


def throwaway_names() -> list[str]:
    """Return the throw-away accounts that exist."""
    return [entry.pw_name for entry in pwd.getpwall() if entry.pw_name.startswith(PREFIXES)]


def _end_processes_of(uid: int) -> None:
    deadline = time.monotonic() + 10
    while (alive := processes_of(uid)) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _check(name: str) -> None:
    if not name.startswith(PREFIXES):
        raise ValueError(f"{name} is not the name of a throw-away account")


def _run(*argv: str, check: bool = True) -> None:
    for _ in range(20):
        done = subprocess.run(argv, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
        if "cannot lock" not in done.stderr:
            break
        time.sleep(0.25)  # another run is changing accounts
    if check and done.returncode:
        kind = NameTaken if done.returncode == _NOT_UNIQUE else SiteError
        raise kind(f"{' '.join(argv)}: {done.stderr.strip()}")
