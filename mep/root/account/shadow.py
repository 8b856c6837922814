"""Whether an account is closed by its shadow entry (shadow(5)): locked, expired, or inactive.

An entry that can't be read now is told from one that doesn't exist. If it can't be read, nothing is known, and the
account must not be taken as open. Called by keepers and checkers alone, as root. It goes through NSS and may block.
Single-user endpoints don't run as root and learn nothing here. Trusts NSS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from dataclasses import dataclass

from mep.boundary.nss_database import NOT_FOUND, reason_of, with_growing_buffer
from mep.root.account import nss

_DAY_S = 86400
SHADOW_FILE = "/etc/shadow"
_NEVER = -1


@dataclass(frozen=True, slots=True)
class Shadow:
    """A shadow entry. Days count from 1970; -1 is an empty field."""

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
    """Return the entry of `name`, or None if there is none. Raises OSError if that can't be determined."""
    try:
        call = ctypes.CDLL(None).getspnam_r
    except AttributeError:  # a libc without shadow passwords
        return None
    entry, result = _Spwd(), ctypes.c_void_p()
    kept: list[ctypes.Array[ctypes.c_char]] = []  # `entry` points into the buffer

    def ask(buffer: ctypes.Array[ctypes.c_char]) -> int:
        kept[:] = [buffer]
        size = ctypes.c_size_t(len(buffer))
        return int(call(os.fsencode(name), ctypes.byref(entry), buffer, size, ctypes.byref(result)))

    status = with_growing_buffer(ask)
    if result.value and status == 0:
        password = (entry.password or b"").decode("utf-8", "replace")
        return Shadow(password, entry.changed, entry.most, entry.inactive, entry.expire)
    if status not in NOT_FOUND:
        raise OSError(status, f"the shadow entry of {name} cannot be read: {reason_of(status)}")
    # libc gives the same answer for a missing entry and, mostly, for a service that is down. So ask each service.
    nss.check_readable(SHADOW_FILE)  # a host without any is no error
    if silent := nss.silent("shadow", name):
        raise OSError(errno.EAGAIN, f"the shadow entry of {name} cannot be read: {', '.join(silent)} does not answer")
    return None


def objection(entry: Shadow | None, today: int) -> str:
    """Return why the account with this entry is closed on day `today`, or an empty string.

    Expired and inactive mean the same as in pam_unix. Locked means a mark before the old content, as `usermod -L` and
    `passwd -l` put it. A bare mark (`!`, `!!`, `*`) only says that the account has no password login. Most accounts of
    a cluster have one since `useradd`. A password that is merely due for a change closes nothing, because user
    endpoints have no password prompt.
    """
    if entry is None:
        return ""
    if entry.expire >= 0 and today >= entry.expire:
        return f"the account has expired ({date_of(entry.expire)})"
    if (entry.password.startswith("!") and entry.password.strip("!")) or entry.password.startswith("*LK*"):
        return "the account is locked"
    if entry.changed > 0 and entry.most >= 0 and entry.inactive >= 0:
        last = entry.changed + entry.most + entry.inactive
        if today >= last:
            return f"the account is inactive: its password expired, and was not changed by {date_of(last)}"
    return ""


def closed(name: str, *, today: int | None = None) -> str:
    """Return why the shadow entry closes the account. Raises OSError if that can't be determined."""
    if os.geteuid() != 0:
        return ""
    return objection(read(name), int(time.time() / _DAY_S) if today is None else today)


def date_of(day: int) -> str:
    """Return the day as a date, or as its number if it is beyond the calendar."""
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY_S))
    except (OverflowError, ValueError, OSError):
        return f"day {day}"
