"""The command line's entry: `mep`, also installed as `globus-compute-endpoint`.

Runs as root for a multi-user endpoint, or as the person whose endpoint it is. As root it first rids itself of
PYTHON* variables. Loads nothing but click until a command needs more.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mep import __version__
from mep.cli.common import MepGroup, epilog
from mep.cli.run_commands import list_endpoints, resolve, restart, start, status, stop
from mep.cli.setup_commands import check, configure, delete, register

_PROGRAM = "MEP_PROGRAM_NAME"


@click.group(
    cls=MepGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=epilog(
        "mep configure site --multi-user --relay https://relay.example.org --token-file ~/token",
        "mep start site --detach",
        "mep status site",
        'eval "$(_MEP_COMPLETE=bash_source mep)"     # shell completion; also zsh_source, fish_source',
    ),
)
@click.version_option(__version__, "-V", "--version", prog_name="mep")
def cli() -> None:
    """Offer this machine as an endpoint that runs people's functions, each as their own account."""


for _command in (configure, register, check, start, stop, restart, list_endpoints, status, delete, resolve):
    cli.add_command(_command)


def _isolate_root() -> None:
    """As root, run again without the caller's PYTHON* variables and without the current directory on the path."""
    foreign = [name for name in os.environ if name.startswith("PYTHON")]
    if os.geteuid() != 0 or sys.flags.isolated or not foreign:
        return
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept[_PROGRAM] = Path(sys.argv[0]).name
    argv = [sys.executable, "-I", "-m", "mep.cli", *sys.argv[1:]]
    os.execve(sys.executable, argv, kept)  # noqa: S606  # our own interpreter, by absolute path


def main() -> None:
    """Run the command that the arguments name."""
    _isolate_root()
    name = os.environ.pop(_PROGRAM, Path(sys.argv[0]).name)
    cli(prog_name="mep" if name.startswith("__main__") else name)
