"""Landlock: restricts the files that a process may read and the TCP ports it may connect to; no writing or listening.

Rules apply to the inodes of the paths at the time of the call, so name a directory if a file in it may be replaced.
Files that are already open are not affected. Source: the kernel's Documentation/userspace-api/landlock.rst.

Standard library only. Called by mep/boundary/confinement.py.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CONNECT_TCP = 1 << 1
_RIGHTS_OF = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the file access rights each version knows."""
_WITH_NETWORK, _WITH_SCOPES = 4, 6


class LandlockUnavailable(Exception):
    """This kernel can't restrict files; the text gives the reason."""


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise LandlockUnavailable(f"the kernel refuses it: {os.strerror(ctypes.get_errno())}")
    return int(result)


def version() -> int:
    """Return the version of Landlock that this kernel has. Raises LandlockUnavailable."""
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))


def restrict(readable: Iterable[str], connect: Iterable[int] | None) -> int:
    """Restrict this thread, and the threads it starts, to reading `readable` and connecting to TCP ports `connect`.

    If `connect` is None, TCP isn't restricted. Missing paths are skipped. Needs no_new_privs. Returns the version.
    Raises LandlockUnavailable.
    """
    known = version()
    files = (1 << _RIGHTS_OF.get(known, 16)) - 1
    network = 0 if connect is None else 0b11  # binding and connecting; ldap3 binds before it connects
    words = [files]
    if known >= _WITH_NETWORK:
        words.append(network)
    if known >= _WITH_SCOPES:
        words.append(0b11)  # abstract UNIX sockets and signals
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path in readable:
            _allow_reading(ruleset, path)
        for port in connect or () if known >= _WITH_NETWORK else ():
            _add(ruleset, _NET_PORT, struct.pack("=QQ", _CONNECT_TCP, port))
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return known


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rights = _READ_FILE | (_READ_DIR if is_directory else 0)
        _add(ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor))
    finally:
        os.close(descriptor)


def _add(ruleset: int, kind: int, rule: bytes) -> None:
    _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(kind), rule, ctypes.c_uint32(0))
