"""Tells whether an NSS entry doesn't exist or its directory doesn't answer, which `pwd` can't.

pwd.getpwnam reports both in the same way, and ending a person's work because a directory server is down would be
wrong. So each service in nsswitch.conf(5) is asked separately, through its module (libnss_NAME.so.2), which tells
"not found" from "unavailable". Called by keepers and checkers alone, because any call may block. Trusts NSS.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

SWITCH_FILE, PASSWD_FILE, GROUP_FILE = "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"
LOCAL = "files"
_LOCAL_SERVICES = frozenset({LOCAL, "compat", "db"})
_NOT_FOUND, _SUCCESS = 0, 1
_BUFFER_BYTES = 64 * 1024
_CALLS = {"passwd": "getpwnam_r", "group": "getgrnam_r", "shadow": "getspnam_r"}


def is_listed(name: str, path: str) -> bool | None:
    """Return whether the file at `path` (passwd or group) has an entry `name`; None if it can't be read."""
    start = name.encode() + b":"
    try:
        with open(path, "rb") as file:
            return any(line.startswith(start) for line in file)
    except OSError:
        return None


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
    """Return the services that can't say now whether they have an entry `name` of `database`.

    A service without an installed module can't have entries and isn't counted.
    """
    found = []
    for service in services(database) if names is None else names:
        ask = _module_call(service, _CALLS[database])
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
