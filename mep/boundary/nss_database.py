"""Accounts and groups of this host by NSS, with "there is none" told from "it cannot be said".

`pwd` and `grp` raise KeyError for both: for a missing entry, and for a host without a free descriptor. A policy that
takes the second for the first admits an account that it should refuse. Each call here gets a buffer that grows to
MAX_BUFFER_BYTES, because a group of a directory may have a hundred thousand members. Standard library only. Any call
may block as long as a directory server does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

FIRST_BUFFER_BYTES = 16 * 1024
MAX_BUFFER_BYTES = 64 * 1024 * 1024
"""Largest entry: a group of over a million members. A larger one is an error that names it."""
_GROWTH, _MAX_ID = 4, 2**32 - 1
_MAX_INTERRUPTIONS = 100
_Entry = TypeVar("_Entry", "Passwd", "Group")
NOT_FOUND = frozenset({0, errno.ENOENT, errno.ESRCH})
"""errno values of a *_r call without an entry. With all others, it isn't known whether there is an entry."""


@dataclass(frozen=True, slots=True)
class Passwd:
    """An entry of the passwd database."""

    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str

    def as_struct(self) -> pwd.struct_passwd:
        """Return the entry as `pwd` has it, without a password."""
        return pwd.struct_passwd((self.name, "x", self.uid, self.gid, self.gecos, self.home, self.shell))


@dataclass(frozen=True, slots=True)
class Group:
    """An entry of the group database."""

    name: str
    gid: int
    members: tuple[str, ...]


class _CPasswd(ctypes.Structure):
    """struct passwd of <pwd.h>."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32),
        ("gecos", ctypes.c_char_p), ("home", ctypes.c_char_p), ("shell", ctypes.c_char_p),
    )  # fmt: skip


class _CGroup(ctypes.Structure):
    """struct group of <grp.h>."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("gid", ctypes.c_uint32),
        ("members", ctypes.POINTER(ctypes.c_char_p)),
    )  # fmt: skip


def passwd_by_name(name: str) -> Passwd | None:
    """Return the account `name`; None if there is none. Raises OSError if that can't be determined."""
    return _passwd("getpwnam_r", _encoded(name), f"the account {name!r}")


def passwd_by_uid(uid: int) -> Passwd | None:
    """Return the first account with `uid`; None if there is none. Raises OSError if that can't be determined."""
    return _passwd("getpwuid_r", ctypes.c_uint32(uid), f"the account with uid {uid}")


def group_by_name(name: str) -> Group | None:
    """Return the group `name`; None if there is none. Raises OSError if that can't be determined."""
    return _group("getgrnam_r", _encoded(name), f"the group {name!r}")


def group_by_gid(gid: int) -> Group | None:
    """Return the first group with `gid`; None if there is none. Raises OSError if that can't be determined."""
    return _group("getgrgid_r", ctypes.c_uint32(gid), f"the group with gid {gid}")


def number_of(text: str) -> int | None:
    """Return the uid or gid that `text` is; None if it is a name."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else _MAX_ID + 1
    return number if number <= _MAX_ID else None


def with_growing_buffer(call: Callable[[ctypes.Array[ctypes.c_char]], int]) -> int:
    """Return the errno of `call`, which is given a larger buffer while it answers ERANGE, and is repeated on EINTR.

    The result is ERANGE if MAX_BUFFER_BYTES are not enough.
    """
    size, interruptions = FIRST_BUFFER_BYTES, 0
    while True:
        number = call(ctypes.create_string_buffer(size))
        if number == errno.EINTR and interruptions < _MAX_INTERRUPTIONS:
            interruptions += 1
        elif number == errno.ERANGE and size < MAX_BUFFER_BYTES:
            size = min(size * _GROWTH, MAX_BUFFER_BYTES)
        else:
            return number


def reason_of(number: int) -> str:
    """Return the words for an errno of a *_r call."""
    if number == errno.ERANGE:
        return f"its entry is larger than {MAX_BUFFER_BYTES // 2**20} MiB"
    return os.strerror(number)


def _encoded(name: str) -> bytes | None:
    """Return the name as libc gets it; None if no entry could have it."""
    try:
        return os.fsencode(name) if name and "\0" not in name else None
    except UnicodeEncodeError:
        return None


def _passwd(call: str, key: object, what: str) -> Passwd | None:
    entry = _CPasswd()

    def made() -> Passwd:
        texts = (_text(entry.gecos), _text(entry.home), _text(entry.shell))
        return Passwd(_text(entry.name), entry.uid, entry.gid, *texts)

    return _found(call, key, what, entry, made)


def _group(call: str, key: object, what: str) -> Group | None:
    entry = _CGroup()
    return _found(call, key, what, entry, lambda: Group(_text(entry.name), entry.gid, _members(entry.members)))


def _found(call: str, key: object, what: str, entry: ctypes.Structure, made: Callable[[], _Entry]) -> _Entry | None:
    if key is None:
        return None
    function, result = getattr(ctypes.CDLL(None), call), ctypes.c_void_p()
    kept: list[ctypes.Array[ctypes.c_char]] = []  # `entry` points into the buffer

    def ask(buffer: ctypes.Array[ctypes.c_char]) -> int:
        kept[:] = [buffer]
        size = ctypes.c_size_t(len(buffer))
        return int(function(key, ctypes.byref(entry), buffer, size, ctypes.byref(result)))

    number = with_growing_buffer(ask)
    if number == 0 and result.value:
        return made()
    if number in NOT_FOUND:
        return None
    raise OSError(number, f"{what} cannot be looked up: {reason_of(number)}")


def _members(pointer: Sequence[bytes | None]) -> tuple[str, ...]:
    found: list[str] = []
    while pointer and (name := pointer[len(found)]) is not None:
        found.append(_text(name))
    return tuple(found)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogateescape")
