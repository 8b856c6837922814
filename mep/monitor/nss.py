"""What NSS cannot say through `pwd`: whether an account is gone or its directory only silent, and whether it is locked.

pwd.getpwnam says the same of both, and ending somebody's work because a directory server is away would be wrong. So
each service that nsswitch.conf(5) names is asked by itself, through its module (libnss_NAME.so.2), whose answer tells
"not found" from "unavailable". Called by keepers and checkers alone: any of it may block. Trusts NSS.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence

SWITCH_FILE, PASSWD_FILE, GROUP_FILE = "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"
LOCAL = "files"
_LOCAL_SERVICES = frozenset({LOCAL, "compat", "db"})
_NOT_FOUND, _SUCCESS = 0, 1
_BUFFER_BYTES = 64 * 1024
_DAY_S = 86400


def is_listed(name: str, path: str) -> bool:
    """Return whether the file at `path` (passwd or group) has an entry `name`."""
    start = name.encode() + b":"
    try:
        with open(path, "rb") as file:
            return any(line.startswith(start) for line in file)
    except OSError:
        return False


def services(database: str, path: str = SWITCH_FILE) -> list[str]:
    """Return the services that `database` is looked up in, without the files of this host."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split("#")[0].partition(":") for line in file]
    except OSError:
        return []
    words = next((rest.split() for name, _, rest in lines if name.strip() == database), [])
    return [word for word in words if word.isalnum() and word not in _LOCAL_SERVICES]


def silent(database: str, name: str, names: Sequence[str] | None = None) -> list[str]:
    """Return the services that could not say just now whether they have an entry `name` of `database`.

    A service whose module is not installed has nothing to say and is not counted.
    """
    call = "getpwnam_r" if database == "passwd" else "getgrnam_r"
    found = []
    for service in services(database) if names is None else names:
        ask = _module_call(service, call)
        if ask is not None and ask(name) not in (_NOT_FOUND, _SUCCESS):
            found.append(service)
    return found


def _module_call(service: str, call: str) -> Callable[[str], int] | None:
    try:
        function = getattr(ctypes.CDLL(f"libnss_{service}.so.2"), f"_nss_{service}_{call}")
    except (OSError, AttributeError):
        return None

    def ask(name: str) -> int:
        entry, buffer = ctypes.create_string_buffer(256), ctypes.create_string_buffer(_BUFFER_BYTES)
        number = ctypes.c_int()
        return int(function(name.encode(), entry, buffer, ctypes.c_size_t(_BUFFER_BYTES), ctypes.byref(number)))

    return ask


class _Spwd(ctypes.Structure):
    """struct spwd of <shadow.h>."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("changed", ctypes.c_long), ("least", ctypes.c_long),
        ("most", ctypes.c_long), ("warn", ctypes.c_long), ("inactive", ctypes.c_long), ("expire", ctypes.c_long),
        ("flag", ctypes.c_ulong),
    )  # fmt: skip


def _shadow(name: str) -> tuple[str, int] | None:
    """Return password field and day of expiry, or None where there is no shadow entry or we may not read it."""
    try:
        call = ctypes.CDLL(None).getspnam_r
    except AttributeError:
        return None
    entry, buffer, result = _Spwd(), ctypes.create_string_buffer(_BUFFER_BYTES), ctypes.c_void_p()
    size = ctypes.c_size_t(_BUFFER_BYTES)
    status = call(os.fsencode(name), ctypes.byref(entry), buffer, size, ctypes.byref(result))
    if status != 0 or not result.value:
        return None
    return (entry.password or b"").decode("utf-8", "replace"), int(entry.expire)


def closed(name: str, *, today: int | None = None) -> str:
    """Return why the account may not be used by its shadow entry (shadow(5)), or an empty string.

    Expired is as for pam_unix: the day of expiry has come. Locked is what `usermod -L` and `passwd -l` do: a mark
    before a password. A bare mark (`!`, `!!`, `*`) says only that nobody logs in by password, as most accounts of a
    cluster have it, and no entry at all says nothing.
    """
    found = _shadow(name)
    if found is None:
        return ""
    password, expire = found
    if expire >= 0 and (int(time.time() / _DAY_S) if today is None else today) >= expire:
        return "the account has expired"
    if (password.startswith("!") and password.strip("!")) or password.startswith("*LK*"):
        return "the account is locked"
    return ""
