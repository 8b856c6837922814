"""The command line's entry: `mep`, also installed as `globus-compute-endpoint`.

Runs as root for a multi-user endpoint, or as the person whose endpoint it is. As root it first rids itself of the
caller's PYTHON* variables, before it imports anything that they could have put in its way.
"""

from __future__ import annotations

import os
import sys

_PROGRAM = "MEP_PROGRAM_NAME"


def _isolate_root() -> None:
    """As root, run again without the caller's PYTHON* variables and without the current directory on the path."""
    foreign = [name for name in os.environ if name.startswith("PYTHON")]
    if os.geteuid() != 0 or sys.flags.isolated or not foreign:
        return
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept[_PROGRAM] = sys.argv[0].rpartition("/")[2]
    argv = [sys.executable, "-I", "-m", "mep.cli", *sys.argv[1:]]
    os.execve(sys.executable, argv, kept)  # noqa: S606  # our own interpreter, by absolute path


def main() -> None:
    """Run the command that the arguments name."""
    _isolate_root()
    from mep.cli.app import cli

    name = os.environ.pop(_PROGRAM, sys.argv[0].rpartition("/")[2])
    cli(prog_name="mep" if name.startswith("__main__") else name)
