"""Whether an account is closed by its shadow entry (shadow(5)): locked, expired, or inactive.

An entry that cannot be read just now is told from one that does not exist: the first says nothing, and must not be
taken for an open account. Called by keepers and checkers alone, as root: it goes through NSS and may block. Single-user
endpoints are not root, and learn nothing here. Trusts NSS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from dataclasses import dataclass

from mep.root.account import nss

_BUFFER_BYTES = 64 * 1024
_DAY_S = 86400
SHADOW_FILE = "/etc/shadow"
_NO_SUCH = (errno.ENOENT, errno.ESRCH)
_NEVER = -1


@dataclass(frozen=True, slots=True)
class Shadow:
    """An entry: days are since 1970, -1 is an empty field."""

    password: str
    changed: int = _NEVER
    most: int = _NEVER
    inactive: int = _NEVER
    expire: int = _NEVER


class _Spwd(ctypes.Structure):
    """struct spwd of <shadow.h>."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("changed", ctypes.c_long), ("least", ctypes.c_long),
        ("most", ctypes.c_long), ("warn", ctypes.c_long), ("inactive", ctypes.c_long), ("expire", ctypes.c_long),
        ("flag", ctypes.c_ulong),
    )  # fmt: skip


def read(name: str) -> Shadow | None:
    """Return the entry of `name`, or None where there is none. Raises OSError where that cannot be said."""
    try:
        call = ctypes.CDLL(None).getspnam_r
    except AttributeError:  # a libc without shadow passwords
        return None
    entry, buffer, result = _Spwd(), ctypes.create_string_buffer(_BUFFER_BYTES), ctypes.c_void_p()
    size = ctypes.c_size_t(_BUFFER_BYTES)
    status = call(os.fsencode(name), ctypes.byref(entry), buffer, size, ctypes.byref(result))
    if result.value and status == 0:
        password = (entry.password or b"").decode("utf-8", "replace")
        return Shadow(password, entry.changed, entry.most, entry.inactive, entry.expire)
    if status not in (0, *_NO_SUCH):
        raise OSError(status, f"the shadow entry of {name} cannot be read: {os.strerror(status)}")
    # libc says the same of a service that has no such entry and, mostly, of one that is away. So each is asked.
    _check_file()
    if silent := nss.silent("shadow", name):
        raise OSError(errno.EAGAIN, f"the shadow entry of {name} cannot be read: {', '.join(silent)} does not answer")
    return None


def _check_file() -> None:
    """Raise OSError where this host's own entries cannot be read; a host without any is no error."""
    with contextlib.suppress(FileNotFoundError), open(SHADOW_FILE, "rb") as file:
        file.read(1)


def objection(entry: Shadow | None, today: int) -> str:
    """Return why the account with this entry is closed on day `today`, or an empty string.

    Expired and inactive are what pam_unix calls so. Locked is what `usermod -L` and `passwd -l` do: a mark before
    what was there. A bare mark (`!`, `!!`, `*`) says only that nobody logs in by password, as most accounts of a
    cluster have it from `useradd` on. A password that is merely due for a change closes nothing: nobody types it here.
    """
    if entry is None:
        return ""
    if entry.expire >= 0 and today >= entry.expire:
        return f"the account has expired ({_date(entry.expire)})"
    if (entry.password.startswith("!") and entry.password.strip("!")) or entry.password.startswith("*LK*"):
        return "the account is locked"
    if entry.changed > 0 and entry.most >= 0 and entry.inactive >= 0:
        last = entry.changed + entry.most + entry.inactive
        if today >= last:
            return f"the account is inactive: its password expired, and was not changed by {_date(last)}"
    return ""


def closed(name: str, *, today: int | None = None) -> str:
    """Return why the account may not be used by its shadow entry. Raises OSError where that cannot be said."""
    if os.geteuid() != 0:
        return ""
    return objection(read(name), int(time.time() / _DAY_S) if today is None else today)


def describe(entry: Shadow | None) -> str:
    """Return in words what an entry says of an account that is open."""
    if entry is None:
        return "no shadow entry: whether it is locked, its directory and PAM alone know"
    words = "open, with no password" if not entry.password.strip("!*") else "open, with a password"
    if entry.expire >= 0:
        words += f", expires {_date(entry.expire)}"
    return words


def _date(day: int) -> str:
    """Return the day as a date; a day beyond the calendar as its number."""
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY_S))
    except (OverflowError, ValueError, OSError):
        return f"day {day}"
