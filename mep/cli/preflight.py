"""Whether other accounts can execute this installation: checked before an endpoint starts, as root.

A virtual environment or an interpreter inside a private home directory works for root and for nobody else; the
person would only see that their process could not be started.
"""

from __future__ import annotations

import stat
import sys
import sysconfig
from pathlib import Path

from mep.cli.failures import CliFailed
from mep.config.resolver import user_endpoint_main


def _links(path: Path) -> list[Path]:
    """Return `path` and every path that its symbolic links lead through."""
    found = [path]
    while found[-1].is_symlink() and len(found) < 40:
        found.append(found[-1].parent / found[-1].readlink())
    return found


def first_closed(path: Path) -> Path | None:
    """Return the first directory on the way to `path`, or `path` itself, that other accounts cannot use."""
    for step in [*_links(path), path.resolve()]:
        for one in [*reversed(step.parents), step]:
            mode = one.stat().st_mode
            wanted = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if not mode & wanted:
                return one
    return None


def check_installation() -> None:
    """Raise CliFailed naming the first file or directory of the installation that other accounts cannot use."""
    needed = [Path(sys.executable), Path(sysconfig.get_path("stdlib")) / "os.py", Path(sysconfig.get_path("purelib"))]
    needed += [Path(user_endpoint_main()).parent, Path(__file__)]
    for path in needed:
        closed = first_closed(path)
        if closed is not None:
            raise CliFailed(
                f"{closed} cannot be used by other accounts, and user endpoints run {path} as theirs. "
                f"Either run: chmod o+rX {closed}, or install into /opt/mep over a Python that everybody can execute "
                "(the system's /usr/bin/python3)."
            )
