"""Runs a function in a forked child as the account `nobody`, for actions that must not be tried as root."""

from __future__ import annotations

import os
import pickle
import pwd
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def as_nobody(function: Callable[[], T]) -> T:
    """Return the result of `function` in a child without root; raises its exception. Not root: runs it here."""
    if os.geteuid() != 0:
        return function()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(_outcome(function))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    value, error, trace = pickle.loads(data)
    if error is not None:
        error.add_note(f"in the dropped child:\n{trace}")
        raise error
    return value  # type: ignore[no-any-return]


def _outcome(function: Callable[[], T]) -> bytes:
    try:
        account = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        os.chdir("/")
        return pickle.dumps((function(), None, ""))
    except BaseException as error:  # whatever it is, the parent raises it
        return pickle.dumps((None, error, traceback.format_exc()))
