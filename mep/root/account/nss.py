"""Tells whether an NSS entry doesn't exist or its directory doesn't answer, which `pwd` can't.

pwd.getpwnam reports both in the same way, and ending a person's work because a directory server is down would be
wrong. So each service in nsswitch.conf(5) is asked separately, through its module (libnss_NAME.so.2), which tells
"not found" from "unavailable". Called by keepers and checkers alone, because any call may block. Trusts NSS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Sequence

from mep.boundary.nss_database import reason_of, with_growing_buffer

SWITCH_FILE, PASSWD_FILE, GROUP_FILE = "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"
LOCAL = "files"
_LOCAL_SERVICES = frozenset({LOCAL, "compat", "db"})
_TRY_AGAIN, _NOT_FOUND, _SUCCESS = -2, 0, 1
_UNREMARKABLE = frozenset({0, errno.ENOENT, errno.EAGAIN})
"""errno values of a service that doesn't answer which add nothing to that."""
_CALLS = {"passwd": "getpwnam_r", "group": "getgrnam_r", "shadow": "getspnam_r"}


def is_listed(name: str, path: str) -> bool | None:
    """Return whether the file at `path` (passwd or group) has an entry `name`; None if it can't be read."""
    start = name.encode() + b":"
    try:
        with open(path, "rb") as file:
            return any(line.startswith(start) for line in file)
    except OSError:
        return None


def names_of(uid: int, path: str = PASSWD_FILE) -> list[str]:
    """Return the names of `uid` in the file at `path`, without those of other services. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split(":") for line in file]
        return [fields[0] for fields in lines if len(fields) > 2 and fields[2] == str(uid)]
    return []


def services(database: str, path: str = SWITCH_FILE) -> list[str]:
    """Return the services that `database` is looked up in, without this host's files.

    As in libc, shadow entries are looked up in the same services as accounts, unless the file says otherwise.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split("#")[0].partition(":") for line in file]
    except OSError:
        return []
    said = {name.strip(): rest.split() for name, _, rest in reversed(lines)}
    words = said.get(database, said.get("passwd", []) if database == "shadow" else [])
    return [word for word in words if word.isalnum() and word not in _LOCAL_SERVICES]


def silent(database: str, name: str, names: Sequence[str] | None = None) -> list[str]:
    """Return the services that can't say now whether they have an entry `name` of `database`, each with its reason.

    A service without an installed module can't have entries and isn't counted. An entry that no buffer holds exists.
    """
    found = []
    for service in services(database) if names is None else names:
        ask = _module_call(service, _CALLS[database])
        status, number = (_NOT_FOUND, 0) if ask is None else ask(name)
        exists = status == _TRY_AGAIN and number == errno.ERANGE
        if status not in (_NOT_FOUND, _SUCCESS) and not exists:
            found.append(service if number in _UNREMARKABLE else f"{service} ({reason_of(number)})")
    return found


def check_readable(path: str) -> None:
    """Raise OSError if the file at `path` exists and can't be read now."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.read(1)


def _module_call(service: str, call: str) -> Callable[[str], tuple[int, int]] | None:
    """Return a function that gives the status of a service's answer about a name, and its errno."""
    try:
        function = getattr(ctypes.CDLL(f"libnss_{service}.so.2"), f"_nss_{service}_{call}")
    except (OSError, AttributeError):
        return None

    def ask(name: str) -> tuple[int, int]:
        entry, number, key, status = ctypes.create_string_buffer(256), ctypes.c_int(), os.fsencode(name), _NOT_FOUND

        def once(buffer: ctypes.Array[ctypes.c_char]) -> int:
            nonlocal status
            number.value = 0
            status = int(function(key, entry, buffer, ctypes.c_size_t(len(buffer)), ctypes.byref(number)))
            return number.value if status == _TRY_AGAIN else 0

        with_growing_buffer(once)
        return status, number.value

    return ask
