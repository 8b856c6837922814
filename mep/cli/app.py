"""The command group of `mep`. Loads nothing but click until a command needs more."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mep import __version__
from mep.cli.admin_commands import ban, drain, reload, unban, undrain
from mep.cli.adopt_command import adopt
from mep.cli.boot_commands import disable_on_boot, enable_on_boot
from mep.cli.common import MepGroup, epilog
from mep.cli.diagnostic import self_diagnostic
from mep.cli.globus_options import add_common_options
from mep.cli.map_command import map_command
from mep.cli.render_command import render, render_user_config
from mep.cli.run_commands import resolve, restart, start, stop
from mep.cli.setup_commands import check, configure, delete, register
from mep.cli.status_commands import list_endpoints, logs, status, top
from mep.cli.why_command import why


@click.group(
    cls=MepGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=epilog(
        "mep configure site --multi-user --relay https://relay.example.org --token-file ~/token",
        "mep start site --detach",
        "mep status site",
        'eval "$(_MEP_COMPLETE=bash_source mep)"     # shell completion; also zsh_source, fish_source',
        status=True,
    ),
)
@click.version_option(__version__, "-V", "--version", prog_name="mep")
@click.option("-c", "--config-dir", type=click.Path(file_okay=False), metavar="DIR",
              help="Directory of the endpoints' directories, instead of /etc/mep or ~/.mep.")  # fmt: skip
def cli(config_dir: str | None) -> None:
    """Offer this machine as an endpoint that runs people's functions, each as their own account."""
    if config_dir is not None:
        os.environ["MEP_ETC"] = str(Path(config_dir).absolute())


for _command in (
    configure,
    adopt,
    register,
    check,
    render,
    render_user_config,
    start,
    stop,
    restart,
    list_endpoints,
    status,
    top,
    logs,
    drain,
    undrain,
    ban,
    unban,
    reload,
    why,
    map_command,
    delete,
    enable_on_boot,
    disable_on_boot,
    self_diagnostic,
    resolve,
):
    add_common_options(_command)
    cli.add_command(_command)
