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
import re
from collections.abc import Callable, Sequence
from typing import Any

from mep.boundary.nss_database import reason_of, with_growing_buffer

SWITCH_FILE, PASSWD_FILE, GROUP_FILE = "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"
LOCAL = "files"
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""A service's name. Some have an underscore: cache_oslogin."""
_ACTION = re.compile(r"\[[^\]]*\]")
_LOCAL_SERVICES = frozenset({LOCAL, "compat", "db"})
_TRY_AGAIN, _NOT_FOUND, _SUCCESS = -2, 0, 1
_UNREMARKABLE = frozenset({0, errno.ENOENT, errno.EAGAIN})
"""errno values of a service that doesn't answer which add nothing to that."""
_CALLS = {"passwd": "getpwnam_r", "group": "getgrnam_r", "shadow": "getspnam_r"}
_SAME_SERVICES = {"shadow": "passwd", "initgroups": "group"}
"""Databases that libc looks up in the services of another, unless nsswitch.conf has a line for them."""
_NO_GROUP, _FIRST_GROUPS = 2**32 - 1, 64
_INITGROUPS_ARGUMENTS = (
    ctypes.c_char_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_long), ctypes.POINTER(ctypes.c_long),
    ctypes.POINTER(ctypes.c_void_p), ctypes.c_long, ctypes.POINTER(ctypes.c_int),
)  # fmt: skip


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


def listed_gids(path: str = GROUP_FILE) -> set[int]:
    """Return the gids in the file at `path`, without those of other services; none if it can't be read."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split(":") for line in file]
        return {int(fields[2]) for fields in lines if len(fields) > 2 and fields[2].isdecimal()}
    return set()


def services(database: str, path: str = SWITCH_FILE) -> list[str]:
    """Return the services that `database` is looked up in, without this host's files.

    As in libc, shadow entries are looked up in the same services as accounts, and an account's groups (`initgroups`)
    in those of groups, unless the file says otherwise.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split("#")[0].partition(":") for line in file]
    except OSError:
        return []
    said = {name.strip(): _ACTION.sub(" ", rest).split() for name, _, rest in reversed(lines)}
    words = said.get(database, said.get(_SAME_SERVICES.get(database, ""), []))
    return [word for word in words if _SERVICE.fullmatch(word) and word not in _LOCAL_SERVICES]


def silent(database: str, name: str, names: Sequence[str] | None = None) -> list[str]:
    """Return the services that can't say now whether they have an entry `name` of `database`, each with its reason.

    A service without an installed module can't have entries and isn't counted. An entry that no buffer holds exists.
    For the database `initgroups`, `name` is an account's, and its entry is the list of its groups.
    """
    found = []
    for service in services(database) if names is None else names:
        groups = database == "initgroups"
        ask = _groups_call(service) if groups else _module_call(service, _CALLS[database])
        status, number = (_NOT_FOUND, 0) if ask is None else ask(name)
        absent = groups and number == errno.ESRCH  # libnss_systemd on a host without user database services
        answered = absent or (status == _TRY_AGAIN and number == errno.ERANGE and not groups)
        if status not in (_NOT_FOUND, _SUCCESS) and not answered:
            found.append(service if number in _UNREMARKABLE else f"{service} ({reason_of(number)})")
    return found


def check_readable(path: str) -> None:
    """Raise OSError if the file at `path` exists and can't be read now."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.read(1)


def _function(service: str, call: str) -> Any:
    """Return the function `call` of a service's module; None if the module or the function is missing."""
    try:
        return ctypes.CDLL(f"libnss_{service}.so.2")[f"_nss_{service}_{call}"]
    except (OSError, AttributeError):
        return None


def _groups_call(service: str) -> Callable[[str], tuple[int, int]] | None:
    """Return a function that gives the status of a service's answer about an account's groups, and its errno.

    Without one in the module, libc reads all groups of the service, and the answer about one group says enough.
    """
    function = _function(service, "initgroups_dyn")
    if function is None:
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    call = ctypes.CFUNCTYPE(ctypes.c_int, *_INITGROUPS_ARGUMENTS)(ctypes.cast(function, ctypes.c_void_p).value or 0)

    def ask(name: str) -> tuple[int, int]:
        count, size, number = ctypes.c_long(0), ctypes.c_long(_FIRST_GROUPS), ctypes.c_int()
        groups = ctypes.c_void_p(libc.malloc(_FIRST_GROUPS * ctypes.sizeof(ctypes.c_uint32)))  # the module may grow it
        try:
            status = call(os.fsencode(name), _NO_GROUP, count, size, groups, -1, number)
            return status, number.value
        finally:
            libc.free(groups)

    return ask


def _module_call(service: str, call: str) -> Callable[[str], tuple[int, int]] | None:
    """Return a function that gives the status of a service's answer about a name, and its errno."""
    function = _function(service, call)
    if function is None:
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
