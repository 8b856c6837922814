"""Makes directories below the run directory, never the run directory itself or one above it.

paths.py has made and checked it. A program that may rename entries of the home directory could put a link in its way
later; a plain os.makedirs would then make `uep/UEP_ID/run` wherever the link leads. Called by engines.
"""

from __future__ import annotations

import contextlib
import errno
import os


def make_below(run_directory: str, path: str) -> None:
    """Make the directory `path` and those between it and `run_directory`. A path elsewhere is the person's choice.

    Raises OSError, also if `run_directory` isn't there.
    """
    if not path.startswith(f"{run_directory}/"):
        os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - no pathlib: the start is measured
        return
    made = run_directory
    for part in path.removeprefix(f"{run_directory}/").split("/"):
        made = f"{made}/{part}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(made, mode=0o700)  # noqa: PTH102 - as above
    if not os.path.isdir(made):  # noqa: PTH112 - as above
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), made)
