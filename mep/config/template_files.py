"""Reads the administrator's files: only those that no other account could have written (mep/boundary/file_trust.py).

Root acts on these files, so an account that can write to one, or to a directory above it, could become root.
Used by the resolver and the commands.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import Trust, UntrustedPath


def trust_in(owner: int) -> Trust:
    """Return the trust in root and in `owner`, the account that the endpoint belongs to."""
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    return Trust(frozenset({owner}), chown_to=name)


def refusal(problems: list[str], where: str) -> ConfigRefused:
    """Return the error that lists `problems` of the files of `where`."""
    if len(problems) == 1:
        name, _, reason = problems[0].partition(": ")
        return ConfigRefused(name, "", reason)
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ConfigRefused(where, "", f"{len(problems)} files or directories are not trusted:{lines}")


def check_trusted(path: Path, owner: int) -> None:
    """Raise ConfigRefused if an account other than root and `owner` could have written or replaced `path`."""
    if problems := trust_in(owner).problems(path):
        raise refusal(problems, str(path))


def read_trusted(path: Path, *, cap: int, owner: int) -> str:
    """Return the text of a regular file of at most `cap` bytes that only `owner` or root can have written.

    Raises ConfigRefused, which names the file, or the directory above it, and the remedy.
    """
    try:
        data = trust_in(owner).read(path, cap + 1)
    except UntrustedPath as error:
        raise refusal(error.problems, str(path)) from None
    except (OSError, ValueError) as error:
        raise ConfigRefused(str(path), "", getattr(error, "strerror", None) or str(error)) from None
    if len(data) > cap:
        raise ConfigRefused(str(path), "", f"larger than {cap} bytes")
    return text_of(data, str(path))


def text_of(data: bytes, name: str) -> str:
    """Return the text of file `name`, without a byte order mark and with LF for CRLF. Raises ConfigRefused."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigRefused(name, "", f"not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def walk_tree(top: Path) -> Iterator[Path]:
    """Yield every file under `top`, in order, without hidden files and editor backups."""
    for directory, subdirectories, names in os.walk(top, followlinks=False):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory) / name
            if name.startswith((".", "#")) or name.endswith(("~", ".swp", ".bak", ".rpmsave", ".dpkg-old")):
                continue
            yield path


def check_inside(path: Path, top: Path) -> None:
    """Raise ConfigRefused if `path` is a link that leads out of `top`."""
    if not path.resolve().is_relative_to(top.resolve()):
        raise ConfigRefused(str(path), "", f"a link that leaves {top}: copy the file instead")
