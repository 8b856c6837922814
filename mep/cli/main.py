"""The command line's entry point: `mep`, also installed as `globus-compute-endpoint`.

Runs as root for a multi-user endpoint, or as the owner of a single-user endpoint. The installed command starts Python
with `-I` (packaging/install.py). As root, the caller's PYTHON* variables are removed as well, because children would
act on them. If Python was started without `-I`, it is started again.
"""

from __future__ import annotations

import os
import sys

_PROGRAM = "MEP_PROGRAM_NAME"


def _isolate_root() -> None:
    """As root, remove the caller's PYTHON* variables, and restart if Python may have acted on them."""
    if os.geteuid() != 0:
        return
    foreign = [name for name in os.environ if name.startswith("PYTHON")]
    for name in foreign:
        del os.environ[name]
    if sys.flags.isolated or not foreign:
        return
    os.environ[_PROGRAM] = _program()
    argv = [sys.executable, "-I", "-m", "mep.cli", *sys.argv[1:]]
    os.execv(sys.executable, argv)  # noqa: S606  # our own interpreter, by absolute path


def validator() -> None:
    """Run `mep map` as globus-idm-validator, which takes the same options."""
    _as_command("map")


def diagnostic() -> None:
    """Run `mep self-diagnostic` as mep-diagnostic, also installed as globus-compute-diagnostic."""
    _as_command("self-diagnostic")


def _as_command(name: str) -> None:
    program = _program()
    if f"_{program.upper().replace('-', '_')}_COMPLETE" in os.environ:  # the shell's words lack the subcommand
        _isolate_root()
        from mep.cli.app import cli

        cli.commands[name](prog_name=program)
    sys.argv[1:1] = [name]
    main()


def _program() -> str:
    return sys.argv[0].rpartition("/")[2]


def main() -> None:
    """Run the command that the arguments name."""
    _isolate_root()
    from mep.boundary.text import escape_output
    from mep.cli.app import cli

    escape_output()
    name = os.environ.pop(_PROGRAM, _program())
    cli(prog_name="mep" if name.startswith("__main__") else name)
