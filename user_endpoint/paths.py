"""Where a user endpoint keeps log, spool and run directory: ~/.mep/uep/UEP_ID, mode 0700.

The home directory is the user's own, but others may be able to write there. Each level is opened without
following links and must belong to this user. Others therefore can't redirect these files. In `user_state_dir` the same
goes for the levels that are called after the user, which another account could have made first. Called by main.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat

from user_endpoint.keeper_report import StartFailure
from user_endpoint.shortage import interrupted, reason_of

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOCK_WAIT_S = 5.0


def home_unusable(reason: str, detail: str = "", error: OSError | None = None) -> StartFailure:
    """Return the failure for a home directory that cannot hold our files. `error` may say that it soon can again."""
    if error is not None and (short := reason_of(error)):
        return interrupted(short, f"{reason} {detail}".strip())
    text = f"Your home directory at the site cannot hold the process's files: {reason}"
    return StartFailure("HOME_UNUSABLE", text, detail)


class Paths:
    """The directory of one user endpoint, by name; made and checked by `make_paths`."""

    def __init__(self, root: str, descriptor: int) -> None:
        self.root = root
        self.descriptor = descriptor
        """The open root directory: the one that was checked, even if its name changes later."""
        self.log = f"{root}/endpoint.log"
        self.worker_log = f"{root}/worker.log"
        self.spool = f"{root}/spool"
        self.run = f"{root}/run"

    def held(self, path: str) -> str:
        """Return another name of `path`, below the root, that stays valid if the root is renamed."""
        return f"/proc/self/fd/{self.descriptor}{path.removeprefix(self.root)}"


def make_paths(uep_id: str, home: str, user_state_dir: str | None, user: str) -> Paths:
    """Return the user endpoint's directory, made where it was missing. Raises StartFailure (HOME_UNUSABLE)."""
    if not _UUID.fullmatch(uep_id):
        raise StartFailure("START_REQUEST_REFUSED", "The user endpoint's id is not a UUID.", repr(uep_id))
    base, named = _split(user_state_dir, user) if user_state_dir else (home, ())
    below = (uep_id,) if user_state_dir else (".mep", "uep", uep_id)
    if not base.startswith("/"):
        raise home_unusable("it has no absolute path", f"base={base!r}")
    return _make_below(base, named, below, shared=bool(user_state_dir))


def _split(user_state_dir: str, user: str) -> tuple[str, tuple[str, ...]]:
    """Return the directory that all users share, and the levels below it that are called after this one."""
    before, mark, after = user_state_dir.partition("{user}")
    if not mark:
        return user_state_dir, ()
    base, _, first = before.rpartition("/")
    names = f"{first}{user}{after}".replace("{user}", user).split("/")
    return base or "/", tuple(name for name in names if name)


def _make_below(base: str, named: tuple[str, ...], below: tuple[str, ...], *, shared: bool) -> Paths:
    name = base.rstrip("/")
    try:
        current = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise home_unusable(f"{error.strerror}", f"open {base}", error) from None
    if shared and _is_anybodys(os.fstat(current)):
        raise home_unusable(f"{base} can be written by others, and is not sticky")
    for steps, enter in ((named, _enter_named), (below, _enter)):
        for part in steps:
            name = f"{name}/{part}"
            parent, current = current, enter(current, part, name)
            os.close(parent)
    os.fchmod(current, 0o700)
    for part in ("spool", "run"):
        os.close(_enter(current, part, f"{name}/{part}"))
    return Paths(name, current)


def _is_anybodys(status: os.stat_result) -> bool:
    """Return whether every account may rename what others have put into a directory."""
    return bool(status.st_mode & 0o002) and not status.st_mode & stat.S_ISVTX


def _make(parent: int, part: str) -> None:
    """Make the directory `part` of `parent` if there is none.

    It is looked for first: an automounter mounts it then, and refuses to make it.
    """
    try:
        os.stat(part, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=parent)


def _enter_named(parent: int, part: str, name: str) -> int:
    """Return the open directory `part` of `parent`, made if need be. A link of the user's or of root's is followed."""
    try:
        _make(parent, part)
        owners = {os.stat(part, dir_fd=parent, follow_symlinks=False).st_uid}
        descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise home_unusable(f"{name}: {error.strerror}", error=error) from None
    status = os.fstat(descriptor)
    if others := {*owners, status.st_uid} - {0, os.geteuid()}:
        os.close(descriptor)
        raise home_unusable(f"{name} belongs to somebody else", f"uid {min(others)}")
    if _is_anybodys(status):
        os.close(descriptor)
        raise home_unusable(f"{name} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")
    return descriptor


def _enter(parent: int, part: str, name: str) -> int:
    """Return the open directory `part` of `parent`, made if need be. Refuses links and other people's."""
    try:
        _make(parent, part)
        descriptor = os.open(part, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        link = _is_link(parent, part)
        reason = f"{name} is a symbolic link" if link else f"{name}: {error.strerror}"
        raise home_unusable(reason, error=error) from None
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        os.close(descriptor)
        raise home_unusable(f"{name} belongs to somebody else", f"uid {status.st_uid}")
    if status.st_mode & 0o022:
        os.close(descriptor)
        raise home_unusable(f"{name} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")
    return descriptor


def _is_link(parent: int, part: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def take_lock(paths: Paths) -> int | None:
    """Return the descriptor of this user endpoint's lock, or None where another process has it.

    A file system without locks (ENOLCK) is used without one: the relay already keeps to one process.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open("lock", flags, 0o600, dir_fd=paths.descriptor)
    except OSError as error:
        raise home_unusable(f"{paths.root}/lock: {error.strerror}", error=error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor
    return descriptor
