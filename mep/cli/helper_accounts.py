"""The accounts of an endpoint's manager and mapper: `mep configure` creates a pair, `mep delete` removes it.

The comment field of such an account names its endpoint by the directory of config.yaml. Only an account with that
comment and a uid in HELPER_UIDS is reused or removed. Runs useradd and userdel, as root.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mep.boundary import nss_database
from mep.boundary.resolved_config import HELPER_UIDS
from mep.cli.exit_codes import CliFailed
from mep.config import paths as names
from mep.config.paths import EndpointPaths

ROLES = {"manager_account": ("manager", "mep-"), "mapper_account": ("mapper", "mep-map-")}
"""For each option: the role in the account's comment, and the prefix of the account's name."""
_VALID = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""Longest name that every useradd accepts; utmp(5) has at most 32 bytes for a name."""
_SHARED = frozenset({names.MANAGER_ACCOUNT, names.MAPPER_ACCOUNT, names.RELAY_ACCOUNT, "mep-register"})
_PASSWD = Path("/etc/passwd")
_SEARCH_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_UID_TAKEN, _NAME_TAKEN, _IN_USE = 4, 9, 8
"""Exit statuses of useradd(8) and userdel(8)."""
_WAIT_S, _LOOK_AGAIN_S = 10.0, 0.1
_LOCK = "/run/mep-accounts.lock"


def make_account(where: EndpointPaths, key: str, endpoint_id: str) -> str:
    """Return the account for option `key` of an endpoint, created unless an earlier configure has. Raises CliFailed."""
    comment = _comment(where, key)
    for entry in _local_accounts():
        if _is_ours(entry, comment):
            return entry.pw_name
    with _alone():
        for name in _candidates(where.name, key, endpoint_id):
            if _is_free(name) and _useradd(name, comment):
                return name
    raise CliFailed(f"the names for a {ROLES[key][0]} account are taken: {_remedy(key)}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other configures of this host waiting: useradd(8) looks for the name before it takes its own lock.

    The second of two that create one name would give the first one's account its own uid, group and comment.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(_LOCK, flags, 0o600)
    except OSError as error:
        raise CliFailed(f"{_LOCK}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def remove_accounts(where: EndpointPaths) -> list[str]:
    """Remove the accounts that configure created for an endpoint. Return a line for each that has to stay."""
    comments = [_comment(where, key) for key in ROLES]
    kept = []
    for entry in _local_accounts():
        if any(_is_ours(entry, comment) for comment in comments):
            done = _run("userdel", entry.pw_name)
            if done.returncode:
                kept.append(f"account {entry.pw_name} was not removed: {done.stderr.strip()}")
    return kept


def _comment(where: EndpointPaths, key: str) -> str:
    return f"MEP {ROLES[key][0]} of {where.config_dir}"


def _is_ours(entry: pwd.struct_passwd, comment: str) -> bool:
    return entry.pw_gecos == comment and entry.pw_uid in HELPER_UIDS


def _local_accounts() -> list[pwd.struct_passwd]:
    """Return the accounts in /etc/passwd only: a directory may have a great many, and none of them is ours."""
    found = []
    for line in _PASSWD.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
            found.append(pwd.struct_passwd((*fields[:2], int(fields[2]), int(fields[3]), *fields[4:])))
    return found


def _candidates(endpoint: str, key: str, endpoint_id: str) -> list[str]:
    prefix = ROLES[key][1]
    wanted = [prefix + endpoint, prefix + endpoint_id.replace("-", "")[:8]]
    return [name for name in wanted if _VALID.fullmatch(name) and name not in _SHARED]


def _is_free(name: str) -> bool:
    return not _known(lambda: nss_database.passwd_by_name(name) or nss_database.group_by_name(name))


def _known(look_up: Callable[[], object | None]) -> bool:
    """Return whether NSS knows an account or a group. Raises CliFailed if that can't be determined."""
    try:
        return look_up() is not None
    except OSError as error:
        raise CliFailed(f"{error.strerror}: no account can be chosen for the endpoint's processes now") from None


def _is_free_uid(uid: int) -> bool:
    return not _known(lambda: nss_database.passwd_by_uid(uid) or nss_database.group_by_gid(uid))


def _free_uids(comment: str) -> Iterator[int]:
    """Yield the uids of the range with neither account nor group. The first one depends on `comment`.

    If an endpoint is created again, it gets the same uids if possible. systemd reports the users of running services
    through NSS, and doesn't take a uid that NSS knows.
    """
    first = int.from_bytes(hashlib.sha256(comment.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    for offset in range(len(HELPER_UIDS)):
        uid = HELPER_UIDS[(first + offset) % len(HELPER_UIDS)]
        if _is_free_uid(uid):
            yield uid


def _useradd(name: str, comment: str) -> bool:
    """Create the account. Return False if another process has taken the name in between. Raises CliFailed."""
    nologin = shutil.which("nologin", path=_SEARCH_PATH) or "/bin/false"
    homeless = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", nologin]
    for uid in _free_uids(comment):
        words = ["--system", "--user-group", "--uid", str(uid), *homeless, "--comment", comment, name]
        done = _run("useradd", *words)
        if done.returncode == _UID_TAKEN:
            continue
        if done.returncode not in {0, _NAME_TAKEN}:
            raise CliFailed(f"useradd {name}: {done.stderr.strip()}")
        return done.returncode == 0
    raise CliFailed(f"no uid from {HELPER_UIDS[0]} to {HELPER_UIDS[-1]} is free for account {name}")


def _remedy(key: str) -> str:
    return f"make one yourself, without login shell and home directory, and give --{key.replace('_', '-')} NAME"


def _run(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the shadow suite. Retry while another one holds the lock or a process is ending."""
    program = shutil.which(command, path=_SEARCH_PATH)
    if program is None:
        raise CliFailed(f"{command} is not installed: give --manager-account NAME and --mapper-account NAME")
    end = time.monotonic() + _WAIT_S
    while True:
        done = subprocess.run(
            [program, *words], env={"PATH": _SEARCH_PATH, "LANG": "C.UTF-8"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        again = "cannot lock" in done.stderr or (command == "userdel" and done.returncode == _IN_USE)
        if not again or time.monotonic() > end:
            return done
        time.sleep(_LOOK_AGAIN_S)
