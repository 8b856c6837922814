"""Files that hold tokens: read only if other people cannot, written with mode 0600 and replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from mep_sdk.errors import SettingsFileUnsafe
from mep_wire.errors import NotConfigured


def read_private(path: Path) -> bytes | None:
    """Return a file's content; None if it does not exist. Raises SettingsFileUnsafe, NotConfigured."""
    try:
        with open(path, "rb", opener=_open) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise NotConfigured(what="The SDK", remedy=f"{path} is not a file.")
            # Elsewhere than on POSIX the mode says nothing.
            if sys.platform != "win32" and (info.st_mode & 0o077 or info.st_uid not in (os.getuid(), 0)):
                raise SettingsFileUnsafe(path=path)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotConfigured(what="The SDK", remedy=f"{path} cannot be read: {error}.") from error


def write_private(path: Path, data: bytes) -> None:
    """Replace a file's content; readers see the old or the new one. Raises NotConfigured."""
    import tempfile  # slow, and only logins need it

    try:
        private_directory(path.parent)
        number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # with mode 0600
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise NotConfigured(what="The SDK", remedy=f"{path} cannot be written: {error}.") from error


def private_directory(path: Path) -> None:
    """Make a directory that its owner alone may enter, with its parents. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def _open(path: str, flags: int) -> int:
    """Open a file; a pipe in its place must not be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
