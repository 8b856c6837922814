"""Reads the log of a user endpoint, and the stderr of its failed blocks, as the account that it belongs to.

The files are the person's, so root never opens them: a child that has dropped to the account does, and follows no link.
Its answer is bounded and not trusted. Used by `mep why`.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
from dataclasses import dataclass, field
from typing import Any

from mep.cli.exit_codes import CliFailed
from mep.cli.log_lines import read_line
from mep.cli.unprivileged_child import UnprivilegedChild

MAX_LOG_BYTES = 2 * 1024 * 1024
MAX_STDERR_BYTES = 4096
MAX_STDERR_FILES = 8
TIMEOUT_S = 20.0
_CHUNK = 32 * 1024
_BLOCK_FAILED = "a block failed"
_END = b"end"


@dataclass(slots=True)
class UserLogs:
    """The lines read. `stderr`: the end of each failed block's file, by path. `problem`: why there is no log."""

    log: list[str] = field(default_factory=list)
    stderr: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def directory_of(account: pwd.struct_passwd, uep_id: str, user_state_dir: str | None) -> str:
    """Return the directory of a user endpoint."""
    if not user_state_dir:
        return f"{account.pw_dir}/.mep/uep/{uep_id}"
    base = user_state_dir.replace("{user}", account.pw_name)
    return f"{account.pw_dir if base.startswith('~') else ''}{base.removeprefix('~')}/{uep_id}"


def read_user_logs(account: pwd.struct_passwd, directory: str, *, drop: bool) -> UserLogs:
    """Return the log in `directory`, read as `account` (the present one without `drop`). Never raises CliFailed."""
    found = UserLogs()
    data = bytearray()
    if drop and account.pw_uid == 0:
        found.problem = "the account is root, and no user endpoint runs as root"
        return found
    try:
        with UnprivilegedChild(lambda answers: _send(answers, directory), account if drop else None) as child:
            while (chunk := child.receive(_CHUNK, TIMEOUT_S)) and chunk != _END:
                data += chunk
                if len(data) > 2 * MAX_LOG_BYTES + MAX_STDERR_FILES * 8 * MAX_STDERR_BYTES:
                    break
    except CliFailed as error:
        found.problem = error.text
    try:
        value: dict[str, Any] = json.loads(data) if data else {"problem": found.problem or "the reading child ended"}
        found.log = [str(line) for line in value.get("log", [])]
        found.stderr = {str(path): str(text) for path, text in value.get("stderr", {}).items()}
        found.problem = str(value.get("problem", ""))
    except (ValueError, AttributeError, RecursionError):
        found.problem = "the reading child gave no answer"
    return found


def _send(answers: socket.socket, directory: str) -> None:
    """Read the files, in the child, and send them in datagrams."""
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        log = b"".join(_read(root, name, MAX_LOG_BYTES // 2) for name in ("endpoint.log.1", "endpoint.log"))
        value: dict[str, object] = {
            "log": log.decode("utf-8", "replace").splitlines(),
            "stderr": _stderr(root, directory, log),
        }
    except OSError as error:
        value = {"problem": f"{directory}: {error.strerror}"}
    data = json.dumps(value).encode()
    for start in range(0, len(data), _CHUNK):
        answers.sendall(data[start : start + _CHUNK])
    answers.sendall(_END)


def _stderr(root: int, directory: str, log: bytes) -> dict[str, str]:
    """Return the ends of the files that lines about failed blocks name, below the user endpoint's own directory."""
    found = {}
    lines = [line for text in log.decode("utf-8", "replace").splitlines() if _BLOCK_FAILED in text
             and (line := read_line(text)) is not None]  # fmt: skip
    paths = [path for line in lines if line.text.startswith(_BLOCK_FAILED) and (path := line.fields.get("stderr"))]
    for path in paths[-MAX_STDERR_FILES:]:
        real = os.path.realpath(path)
        below = os.path.realpath(directory) + "/"
        if real.startswith(below) and (text := _read(root, real.removeprefix(below), MAX_STDERR_BYTES)):
            found[path] = text.decode("utf-8", "replace")
    return found


def _read(root: int, name: str, most: int) -> bytes:
    """Return the last `most` bytes of a regular file below `root`; empty if there is none."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b""
        return os.pread(descriptor, most, max(0, status.st_size - most))
    finally:
        os.close(descriptor)
