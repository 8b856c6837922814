"""Reading the administrator's files: only files that nobody but their owner could have written.

Root acts on what these files say, so whoever may write one, or any directory on the way to it, could become
root. Checked on the open descriptor, as sshd does for its files. Used by the resolver and the mapping check.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mep.errors import ConfigRefused


def _problem(path: Path, info: os.stat_result, owner: int) -> str:
    if info.st_uid not in {0, owner}:
        wanted = "root" if owner == 0 else f"uid {owner} or root"
        return f"belongs to uid {info.st_uid}: must belong to {wanted}; run: chown {owner} {path}"
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
    if info.st_mode & stat.S_IWOTH and not sticky:
        return f"may be written by everybody; run: chmod o-w {path}"
    own_groups = {0} if owner == 0 else {0, os.getgid()}
    if info.st_mode & stat.S_IWGRP and info.st_gid not in own_groups and not sticky:
        return f"may be written by group {info.st_gid}; run: chmod g-w {path}"
    return ""


def check_trusted(path: Path, owner: int) -> None:
    """Check `path`, where it really is, and every directory above. Raises ConfigRefused naming the first bad one."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ConfigRefused(str(path), "", getattr(error, "strerror", None) or str(error)) from None
    chain = {*path.absolute().parents, real, *real.parents}
    for one in sorted(chain, key=lambda p: len(p.parts)):
        if problem := _problem(one, one.stat(), owner):
            raise ConfigRefused(str(one), "", problem)


def read_trusted(path: Path, *, cap: int, owner: int) -> str:
    """Return the text of a regular file of at most `cap` bytes that only `owner` or root can have written.

    Raises ConfigRefused naming the file, or the directory above it, and what to do.
    """
    check_trusted(path, owner)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigRefused(str(path), "", error.strerror or str(error)) from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigRefused(str(path), "", "not a regular file")
        if problem := _problem(path, info, owner):
            raise ConfigRefused(str(path), "", problem)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(cap + 1)
    finally:
        os.close(descriptor)
    if len(data) > cap:
        raise ConfigRefused(str(path), "", f"larger than {cap} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigRefused(str(path), "", f"not UTF-8 text (byte {error.start})") from None


def walk_tree(top: Path) -> Iterator[Path]:
    """Yield every file under `top`, in order, without hidden ones and editors' leftovers."""
    for directory, subdirectories, names in os.walk(top, followlinks=False):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory) / name
            if name.startswith((".", "#")) or name.endswith(("~", ".swp", ".bak", ".rpmsave", ".dpkg-old")):
                continue
            yield path


def check_inside(path: Path, top: Path) -> None:
    """Raise ConfigRefused where `path` is a link that leads out of `top`."""
    if not path.resolve().is_relative_to(top.resolve()):
        raise ConfigRefused(str(path), "", f"a link that leaves {top}: copy the file instead")
